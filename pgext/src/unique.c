/*
 * unique.c
 *	  Uniqueness against stored rows: GETs that are queued by insertions and
 *	  asked together.
 *
 * A key is queued only while this transaction has neither a row nor a
 * tombstone for it, so a stored entry at tau_start is a violation.  What
 * happens to the key between tau_start and the commit is the conflict check's
 * business (design section 9, "Indexes").
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "store.h"

#define QUEUE_MAX 1024

typedef struct Check
{
	int64		sid;
	Oid			index;
	MerBytes	key;
	MerVersion *row;			/* the new row, for the message */
	int			order;
} Check;

static Check *queue;
static int	nqueued;
static bool flushing;

bool
mer_checks_pending(void)
{
	return nqueued > 0;
}

int
mer_checks_mark(void)
{
	return nqueued;
}

/* Also called when a flush came since the mark was taken. */
void
mer_checks_release(int mark)
{
	nqueued = Min(nqueued, mark);
}

void
mer_checks_reset(void)
{
	nqueued = 0;
	flushing = false;
}

void
mer_check_queue(int64 sid, Oid index, const char *key, uint32 klen, MerVersion *row)
{
	Check	   *c;

	if (mer_txn_created(sid))
		return;
	if (nqueued == QUEUE_MAX)
		mer_checks_flush();
	if (queue == NULL)
		queue = MemoryContextAlloc(TopMemoryContext, QUEUE_MAX * sizeof(Check));
	c = &queue[nqueued];
	c->sid = sid;
	c->index = index;
	c->key.data = key;
	c->key.len = klen;
	c->row = row;
	c->order = nqueued;
	nqueued++;
}

static int
check_cmp(const void *a, const void *b)
{
	const Check *x = a;
	const Check *y = b;

	if (x->sid != y->sid)
		return x->sid < y->sid ? -1 : 1;
	return mer_bytes_cmp(&x->key, &y->key);
}

/* The first violated check, in queue order, of the run [from, to). */
static int
first_found(MerPage *page, Check *checks, int from, int to)
{
	int			best = -1;
	int			i = from;

	for (uint32 r = 0; r < page->nrows; r++)
	{
		MerRowRef  *ref = mer_page_row(page, r);

		while (i < to && mer_key_cmp(checks[i].key.data, checks[i].key.len,
									 ref->key, ref->klen) < 0)
			i++;
		for (int j = i; j < to && mer_key_cmp(checks[j].key.data, checks[j].key.len,
											  ref->key, ref->klen) == 0; j++)
			if (best < 0 || checks[j].order < checks[best].order)
				best = j;
	}
	return best;
}

static uint32
send_run(Check *checks, int from, int to)
{
	MerBytes   *keys = palloc((to - from) * sizeof(MerBytes));
	int			n = 0;
	uint32		id;

	for (int i = from; i < to; i++)
		if (n == 0 || mer_bytes_cmp(&keys[n - 1], &checks[i].key) != 0)
			keys[n++] = checks[i].key;
	id = mer_send_get(checks[from].sid, NULL, 0, keys, n);
	pfree(keys);
	return id;
}

void
mer_checks_flush(void)
{
	Check	   *checks;
	int			n = nqueued;
	Check		violation = {.order = -1};

	if (n == 0 || flushing)
		return;
	checks = palloc(n * sizeof(Check));
	memcpy(checks, queue, n * sizeof(Check));
	nqueued = 0;
	flushing = true;
	qsort(checks, n, sizeof(Check), check_cmp);
	PG_TRY();
	{
		for (int from = 0, to; from < n; from = to)
		{
			MerPage    *page;
			int			found;

			for (to = from; to < n && checks[to].sid == checks[from].sid;)
				to++;
			page = mer_page_wait(send_run(checks, from, to), 0, false, false);
			found = first_found(page, checks, from, to);
			if (found >= 0 && (violation.order < 0 || checks[found].order < violation.order))
				violation = checks[found];
			mer_page_free(page);
		}
	}
	PG_FINALLY();
	{
		flushing = false;
	}
	PG_END_TRY();
	pfree(checks);
	if (violation.order >= 0)
		mer_unique_violation(violation.index, violation.row);
}

void
mer_unique_violation(Oid indexid, MerVersion *row)
{
	Relation	index = index_open(indexid, AccessShareLock);
	Relation	heap = table_open(index->rd_index->indrelid, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(heap, NULL);
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	char	   *detail;

	mer_slot_store_version(slot, heap, row);
	mer_index_values(heap, index, slot, values, isnull);
	detail = BuildIndexValueDescription(index, values, isnull);
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("duplicate key value violates unique constraint \"%s\"",
					RelationGetRelationName(index)),
			 detail ? errdetail("Key %s already exists.", detail) : 0,
			 errtableconstraint(heap, RelationGetRelationName(index))));
}
