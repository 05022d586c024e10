/*
 * catlock.c
 *	  A catalog delta gets its locks beside running sessions.
 *
 * What another instance has committed holds: sessions here that stand in its
 * way for longer than MER_CATALOG_LOCK_MS have to go.  One that is idle in its
 * transaction hears of it at its next statement (sendaway.c).  The others get
 * the conflict that PostgreSQL gives to sessions of a standby, for the very same
 * reason: a running statement ends with 40001; inside a subtransaction, whose
 * end would not let go of the lock, the session loses its connection with
 * 40001.  Its words are replaced by those of OC001.
 *
 * Nothing here can deadlock for long: who waits for apply to bring a version
 * gives up at once if apply waits for it (coherence.c); who waits for the
 * version lock in order to commit DDL can be cancelled; and a COMMIT under way
 * is answered within a bounded time.
 */
#include "coherence.h"

#include "access/xact.h"
#include "catalog/catalog.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/procsignal.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#define ATTEMPTS 100

/* Of coherence.c, which a library for tests of deltas alone does without. */
extern void mer_apply_wants(List *relids) __attribute__((weak));
extern bool mer_ask_to_leave(VirtualTransactionId vxid) __attribute__((weak));

static emit_log_hook_type next_emit_log = NULL;

typedef struct LockStep
{
	Oid			relid;
} LockStep;

/* Asked kindly the first time only. */
static void
send_away(VirtualTransactionId vxid, int tries)
{
	if (tries > 1 || mer_ask_to_leave == NULL || !mer_ask_to_leave(vxid))
		(void) CancelVirtualTransaction(vxid, PROCSIG_RECOVERY_CONFLICT_LOCK);
}

static void
send_holders_away(Oid relid, int tries)
{
	LOCKTAG		tag;
	VirtualTransactionId *holders;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relid);
	for (holders = GetLockConflicts(&tag, AccessExclusiveLock, NULL);
		 VirtualTransactionIdIsValid(*holders); holders++)
		send_away(*holders, tries);
}

/*
 * Local transactions with a transaction id have written catalogs, or temporary
 * tables: rows of ours take none.  One of them has touched a row of the delta,
 * or made an object of the same name.
 */
static void
send_writers_away(int tries)
{
	uint32		i;

	for (i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];
		VirtualTransactionId vxid;

		if (proc == MyProc || proc->pid == 0 || proc->databaseId != MyDatabaseId ||
			!TransactionIdIsValid(proc->xid))
			continue;
		GET_VXID_FROM_PGPROC(vxid, *proc);
		if (VirtualTransactionIdIsValid(vxid))
			send_away(vxid, tries);
	}
}

/*
 * One attempt, in a subtransaction, in which no lock is waited for longer than
 * MER_CATALOG_LOCK_MS.  False: a lock was not to be had.
 */
bool
mer_apply_attempt(void (*step) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int			timeout = LockTimeout;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		LockTimeout = MER_CATALOG_LOCK_MS;
		step(arg);
		LockTimeout = timeout;
		ReleaseCurrentSubTransaction();
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		LockTimeout = timeout;
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE &&
			error->sqlerrcode != ERRCODE_T_R_DEADLOCK_DETECTED)
			ReThrowError(error);
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return done;
}

/*
 * PostgreSQL's words for the conflict speak of a standby's recovery.  The code
 * is right; who sends a report gets to see it here first.
 */
static void
reword(ErrorData *error)
{
	if (error->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE && error->message_id != NULL &&
		strstr(error->message_id, "due to conflict with recovery") != NULL)
	{
		error->message = pstrdup(MER_OC001);
		error->detail = pstrdup("The session was using what a schema change concerns.");
		error->hint = pstrdup("Retry the transaction.");
	}
	if (next_emit_log != NULL)
		next_emit_log(error);
}

void
mer_catlock_init(void)
{
	next_emit_log = emit_log_hook;
	emit_log_hook = reword;
}

pg_noreturn static void
give_up(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("sessions of this instance do not let go of what a schema change concerns")));
}

static void
lock_one(void *arg)
{
	LockRelationOid(((LockStep *) arg)->relid, AccessExclusiveLock);
}

void
mer_apply_lock(List *relids)
{
	bool		announced = false;

	foreach_oid(relid, relids)
	{
		LockStep	step = {relid};
		int			tries = 0;

		if (IsCatalogRelationOid(relid) || ConditionalLockRelationOid(relid, AccessExclusiveLock))
			continue;
		if (!announced && mer_apply_wants != NULL)
			mer_apply_wants(relids);
		announced = true;
		while (!mer_apply_attempt(lock_one, &step))
		{
			if (++tries == ATTEMPTS)
				give_up();
			send_holders_away(relid, tries);
		}
	}
}

void
mer_apply_insist(void (*step) (void *arg), void *arg)
{
	int			tries = 0;

	while (!mer_apply_attempt(step, arg))
	{
		if (++tries == ATTEMPTS)
			give_up();
		send_writers_away(tries);
	}
}
