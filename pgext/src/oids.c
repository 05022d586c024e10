/*
 * oids.c
 *	  Object ids that no other instance gives.
 *
 * The server's counter is kept within a range leased from the metadata store:
 * it is looked at before every statement that may make objects, temporary ones
 * too, and after each object made, and set to the start of a new range when the
 * present one nears its end.
 * Numbers of files and of values out of line come from the same counter and
 * may run past the range: they mean nothing to other instances.  An object that
 * got such a number is refused when its transaction commits.
 */
#include "coherence.h"

#include "access/transam.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#define LEASE_OIDS 8192
#define MARGIN_OIDS 2048		/* most that is used of a range between two looks */
#define RANGES 64				/* remembered for transactions that began in an older one */

typedef struct Range
{
	uint32		first;
	uint32		end;			/* exclusive */
} Range;

/* Protected by OidGenLock, as the counter is. */
typedef struct Oids
{
	uint32		nranges;		/* ever; the last one, modulo RANGES, is in use */
	Range		ranges[RANGES];
} Oids;

static Oids *oids = NULL;

Size
mer_oids_size(void)
{
	return MAXALIGN(sizeof(Oids));
}

void
mer_oids_startup(void)
{
	bool		found;

	oids = ShmemInitStruct("meridian oids", sizeof(Oids), &found);
	if (!found)
		memset(oids, 0, sizeof(Oids));
}

/* Is there room for so many objects more, and what others make meanwhile? */
static bool
enough(uint32 objects)
{
	Range	   *range = &oids->ranges[(oids->nranges - 1) % RANGES];
	Oid			next = TransamVariables->nextOid;

	return oids->nranges > 0 && next >= range->first && next < range->end &&
		range->end - next >= MARGIN_OIDS + objects;
}

static bool
have_enough(uint32 objects)
{
	bool		answer;

	LWLockAcquire(OidGenLock, LW_SHARED);
	answer = enough(objects);
	LWLockRelease(OidGenLock);
	return answer;
}

/* Someone else may have been faster: then the numbers are lost, no more. */
static void
use(uint32 first, uint32 count, uint32 objects)
{
	LWLockAcquire(OidGenLock, LW_EXCLUSIVE);
	if (!enough(objects))
	{
		Range	   *range = &oids->ranges[oids->nranges++ % RANGES];

		range->first = first;
		range->end = first + count;
		TransamVariables->nextOid = first;
		TransamVariables->oidCount = 0; /* the next one writes the log anew */
	}
	LWLockRelease(OidGenLock);
}

/* A lease may be smaller than asked for: the rest of a block. */
void
mer_oids_ensure(uint32 objects)
{
	if (objects > LEASE_OIDS - MARGIN_OIDS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("one statement makes %u objects at once, %d at most are possible",
						objects, LEASE_OIDS - MARGIN_OIDS),
				 errhint("Make the others with further statements, such as ALTER TYPE ... ADD VALUE.")));
	while (IsUnderPostmaster && !have_enough(objects))
	{
		int64		first;
		int64		count = mer_lease(MER_LEASE_OID, LEASE_OIDS, &first);

		if (first < FirstNormalObjectId || first + count > PG_UINT32_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("no object ids are left")));
		if (count >= MARGIN_OIDS + objects)
			use((uint32) first, (uint32) count, objects);
	}
}

bool
mer_oid_leased(Oid oid)
{
	bool		leased = false;
	uint32		i;

	LWLockAcquire(OidGenLock, LW_SHARED);
	for (i = 0; i < Min(oids->nranges, RANGES) && !leased; i++)
		leased = oid >= oids->ranges[i].first && oid < oids->ranges[i].end;
	LWLockRelease(OidGenLock);
	return leased;
}
