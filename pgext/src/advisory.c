/*
 * advisory.c
 *	  Advisory locks of the whole cluster, held at the gateway (docs/protocol.md).
 *
 * The functions take the names of PostgreSQL's.  The owner of a lock is this
 * backend's connection to the gateway: whoever loses the connection has lost
 * its locks.  Those of a transaction belong to work that cannot commit then;
 * with locks of the session the session ends, before it does anything more in
 * the belief that it holds them.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"
#include "utils/timeout.h"

#include "utility.h"
#include "wire.h"

#define OP_LOCK 1
#define OP_TRY 2
#define OP_UNLOCK 3
#define OP_UNLOCK_ALL 4
#define OP_WAITED_FOR 5

#define SHARED 1
#define TRANSACTION 2

#define CLASS_BIGINT 1
#define CLASS_TWO_INTS 2

#define RELEASE_TIMEOUT_MS 10000
#define WAITERS_MAX 256

typedef struct AdvisoryKey
{
	int			cls;
	int64		key;
	int			flags;
} AdvisoryKey;

/* A lock of the running transaction, and the subtransaction whose rollback frees it. */
typedef struct Taken
{
	SubTransactionId subxact;
	AdvisoryKey lock;
} Taken;

static Taken *taken;
static int	ntaken;
static int	max_taken;
static bool told_waiters;		/* of the running wait, to the gateway */
static int64 session_locks;		/* grants of session locks not given back */
static ExecutorStart_hook_type next_start;

static const AdvisoryKey everything = {.cls = CLASS_BIGINT};

/* ---------- what is held ---------- */

static void
set_session_locks(int64 n)
{
	/* Pinned from the first lock on: later ones are on the same connection. */
	if ((n > 0) != (session_locks > 0))
		mer_wire_pin(n > 0);
	session_locks = n;
}

static void
note_granted(const AdvisoryKey *lock)
{
	if (!(lock->flags & TRANSACTION))
	{
		set_session_locks(session_locks + 1);
		return;
	}
	taken[ntaken].subxact = GetCurrentSubTransactionId();
	taken[ntaken].lock = *lock;
	ntaken++;
}

/* Room first: what is granted must not be forgotten for lack of memory. */
static void
make_room(void)
{
	if (ntaken < max_taken)
		return;
	max_taken = max_taken ? max_taken * 2 : 16;
	if (taken)
		taken = repalloc(taken, max_taken * sizeof(Taken));
	else
		taken = MemoryContextAlloc(TopMemoryContext, max_taken * sizeof(Taken));
}

/* ---------- requests ---------- */

static uint32
begin_request(StringInfo buf, int op, const AdvisoryKey *lock)
{
	uint32		id;

	initStringInfo(buf);
	id = mer_wire_begin(buf, MER_ADVISORY, 6);
	mp_put_int(buf, op);
	mp_put_int(buf, lock->cls);
	mp_put_int(buf, lock->key);
	mp_put_int(buf, lock->flags);
	return id;
}

static bool
answered_yes(MerReply *reply)
{
	bool		yes;

	if (reply->type != MER_VALUES || mp_get_array(&reply->body) != 1)
		mp_malformed("not an answer to ADVISORY");
	yes = mp_get_bool(&reply->body);
	pfree(reply->frame);
	return yes;
}

/* Where no error may be thrown.  If the gateway does not listen, the connection goes. */
static void
release_quietly(int op, const AdvisoryKey *lock)
{
	StringInfoData buf;
	MerReply	reply;
	uint32		id = begin_request(&buf, op, lock);

	if (mer_wire_try_call(&buf, id, RELEASE_TIMEOUT_MS, &reply) == MER_OK)
		pfree(reply.frame);
	else
		mer_wire_drop();
	pfree(buf.data);
}

/* The statement was cancelled while its answer was on the way. */
static void
late_grant(const MerReply *reply, const void *arg)
{
	MpReader	r = reply->body;

	if (reply->type == MER_VALUES && mp_get_array(&r) == 1 && mp_get_bool(&r))
		release_quietly(OP_UNLOCK, arg);
}

static void
late_unlock(const MerReply *reply, const void *arg)
{
	MpReader	r = reply->body;

	if (reply->type == MER_VALUES && mp_get_array(&r) == 1 && mp_get_bool(&r))
		set_session_locks(session_locks - 1);
}

/* ---------- deadlocks with PostgreSQL's own locks ---------- */

static bool
blocked_by(int pid, const int *those, int n)
{
	ArrayType  *blockers = DatumGetArrayTypeP(DirectFunctionCall1(pg_blocking_pids,
																 Int32GetDatum(pid)));
	const int32 *pids = (const int32 *) ARR_DATA_PTR(blockers);
	int			count = ArrayGetNItems(ARR_NDIM(blockers), ARR_DIMS(blockers));

	for (int i = 0; i < count; i++)
		for (int j = 0; j < n; j++)
			if (pids[i] == those[j])
				return true;
	return false;
}

/* Processes of this instance that wait for this one, each maybe through others. */
static int
local_waiters(int *found)
{
	LockData   *data = GetLockStatusData();
	int		   *waiting = palloc((data->nelements + 1) * sizeof(int));
	int			nwaiting = 0;
	int			n = 1;
	bool		grew = true;

	for (int i = 0; i < data->nelements; i++)
		if (data->locks[i].waitLockMode != NoLock && data->locks[i].pid != MyProcPid)
			waiting[nwaiting++] = data->locks[i].pid;
	found[0] = MyProcPid;
	while (grew && n < WAITERS_MAX)
	{
		grew = false;
		for (int i = 0; i < nwaiting && n < WAITERS_MAX; i++)
			if (waiting[i] != 0 && blocked_by(waiting[i], found, n))
			{
				found[n++] = waiting[i];
				waiting[i] = 0;
				grew = true;
			}
	}
	return n - 1;
}

static void
tell_waited_for(int pid, bool first)
{
	AdvisoryKey note = {.cls = CLASS_BIGINT,.key = pid,.flags = first ? 1 : 0};
	StringInfoData buf;
	uint32		id = begin_request(&buf, OP_WAITED_FOR, &note);
	MerReply	reply = mer_wire_call(&buf, id);

	pfree(reply.frame);
	pfree(buf.data);
}

/*
 * PostgreSQL does not see that this process waits, the gateway not who waits
 * for a lock of PostgreSQL's that this process holds: it is told, and finds the
 * circles that go through both.
 */
static void
tell_who_waits(void)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "meridian waiters",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	int			pids[WAITERS_MAX];
	int			n = local_waiters(pids);

	if (n == 0 && told_waiters)
		tell_waited_for(0, true);
	for (int i = 1; i <= n; i++)
		tell_waited_for(pids[i], i == 1);
	told_waiters = n > 0;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
}

/* Cancel and timeouts end the wait; lock_timeout counts it as PostgreSQL's own. */
static MerReply
wait_for_lock(uint32 id, const AdvisoryKey *lock)
{
	MerSettle	settle = {.late = late_grant,.arg = lock,.meanwhile = tell_who_waits,
	.each_ms = DeadlockTimeout};
	MerReply	reply;

	told_waiters = false;
	if (LockTimeout > 0)
		enable_timeout_after(LOCK_TIMEOUT, LockTimeout);
	PG_TRY();
	{
		reply = mer_wire_wait_settled(id, &settle);
	}
	PG_FINALLY();
	{
		if (LockTimeout > 0)
			disable_timeout(LOCK_TIMEOUT, true);
	}
	PG_END_TRY();
	return reply;
}

static bool
acquire(const AdvisoryKey *lock, bool wait)
{
	MerSettle	settle = {.late = late_grant,.arg = lock};
	StringInfoData buf;
	MerReply	reply;
	uint32		id;
	bool		granted;

	make_room();
	id = begin_request(&buf, wait ? OP_LOCK : OP_TRY, lock);
	mer_wire_send(&buf);
	if (wait)
		reply = wait_for_lock(id, lock);
	else
		reply = mer_wire_wait_settled(id, &settle);
	granted = answered_yes(&reply);
	if (granted)
		note_granted(lock);
	pfree(buf.data);
	return granted;
}

static bool
release(const AdvisoryKey *lock)
{
	MerSettle	settle = {.late = late_unlock};
	StringInfoData buf;
	MerReply	reply;
	uint32		id;
	bool		released;

	id = begin_request(&buf, OP_UNLOCK, lock);
	mer_wire_send(&buf);
	reply = mer_wire_wait_settled(id, &settle);
	released = answered_yes(&reply);
	if (released)
		set_session_locks(session_locks - 1);
	else
		ereport(WARNING,
				(errmsg("you don't own a lock of type %s",
						lock->flags & SHARED ? "ShareLock" : "ExclusiveLock")));
	pfree(buf.data);
	return released;
}

void
mer_advisory_unlock_all(void)
{
	if (session_locks == 0)
		return;
	release_quietly(OP_UNLOCK_ALL, &everything);
	set_session_locks(0);
}

/* ---------- the functions ---------- */

static AdvisoryKey
key_of(FunctionCallInfo fcinfo, int flags)
{
	AdvisoryKey lock = {.cls = CLASS_BIGINT,.flags = flags};

	if (PG_NARGS() == 1)
	{
		lock.key = PG_GETARG_INT64(0);
		return lock;
	}
	lock.cls = CLASS_TWO_INTS;
	lock.key = (int64) (((uint64) (uint32) PG_GETARG_INT32(0) << 32) | (uint32) PG_GETARG_INT32(1));
	return lock;
}

#define ADVISORY_FUNCTIONS(name, flags) \
PG_FUNCTION_INFO_V1(mer_advisory_##name); \
Datum \
mer_advisory_##name(PG_FUNCTION_ARGS) \
{ \
	AdvisoryKey lock = key_of(fcinfo, flags); \
	(void) acquire(&lock, true); \
	PG_RETURN_VOID(); \
} \
PG_FUNCTION_INFO_V1(mer_advisory_try_##name); \
Datum \
mer_advisory_try_##name(PG_FUNCTION_ARGS) \
{ \
	AdvisoryKey lock = key_of(fcinfo, flags); \
	PG_RETURN_BOOL(acquire(&lock, false)); \
}

ADVISORY_FUNCTIONS(lock, 0)
ADVISORY_FUNCTIONS(lock_shared, SHARED)
ADVISORY_FUNCTIONS(xact_lock, TRANSACTION)
ADVISORY_FUNCTIONS(xact_lock_shared, TRANSACTION | SHARED)

PG_FUNCTION_INFO_V1(mer_advisory_unlock);

Datum
mer_advisory_unlock(PG_FUNCTION_ARGS)
{
	AdvisoryKey lock = key_of(fcinfo, 0);

	PG_RETURN_BOOL(release(&lock));
}

PG_FUNCTION_INFO_V1(mer_advisory_unlock_shared);

Datum
mer_advisory_unlock_shared(PG_FUNCTION_ARGS)
{
	AdvisoryKey lock = key_of(fcinfo, SHARED);

	PG_RETURN_BOOL(release(&lock));
}

PG_FUNCTION_INFO_V1(mer_advisory_unlock_everything);

Datum
mer_advisory_unlock_everything(PG_FUNCTION_ARGS)
{
	mer_advisory_unlock_all();
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(mer_advisory_locks);

/* Every hold and wait of the cluster, as the gateway tells it. */
Datum
mer_advisory_locks(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	StringInfoData buf;
	MerReply	reply;
	uint32		id;
	uint32		n;

	InitMaterializedSRF(fcinfo, 0);
	initStringInfo(&buf);
	id = mer_wire_begin(&buf, MER_ADMIN, 4);
	mp_put_str(&buf, "advisory-locks", strlen("advisory-locks"));
	mp_put_map(&buf, 0);
	reply = mer_wire_call(&buf, id);
	n = mp_get_array(&reply.body);
	while (n-- > 0)
	{
		Datum		values[7];
		bool		nulls[7] = {false};
		bool		bigint;
		int64		key;

		(void) mp_get_array(&reply.body);
		bigint = mp_get_int(&reply.body) == CLASS_BIGINT;
		key = mp_get_int(&reply.body);
		values[0] = Int64GetDatum(key);
		values[1] = Int32GetDatum((int32) ((uint64) key >> 32));
		values[2] = Int32GetDatum((int32) key);
		nulls[0] = !bigint;
		nulls[1] = nulls[2] = bigint;
		values[3] = CStringGetTextDatum(mp_get_bool(&reply.body) ? "ShareLock" : "ExclusiveLock");
		values[4] = BoolGetDatum(mp_get_bool(&reply.body));
		values[5] = Int32GetDatum((int32) mp_get_int(&reply.body));
		values[6] = Int32GetDatum((int32) mp_get_int(&reply.body));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	pfree(reply.frame);
	return (Datum) 0;
}

/* ---------- transactions and statements ---------- */

/*
 * Once the commit is decided, or the transaction's work undone.  The answer is
 * waited for: who hears COMMIT may tell others that the lock is free.
 */
static void
at_transaction_end(XactEvent event, void *arg)
{
	AdvisoryKey lock = everything;

	if ((event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT) || ntaken == 0)
		return;
	ntaken = 0;
	lock.flags = TRANSACTION;
	release_quietly(OP_UNLOCK_ALL, &lock);
}

static void
at_subtransaction_end(SubXactEvent event, SubTransactionId mine,
					  SubTransactionId parent, void *arg)
{
	int			kept = 0;

	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = ntaken; i-- > 0 && taken[i].subxact == mine;)
			taken[i].subxact = parent;
		return;
	}
	if (event != SUBXACT_EVENT_ABORT_SUB)
		return;
	for (int i = 0; i < ntaken; i++)
	{
		if (taken[i].subxact == mine)
			release_quietly(OP_UNLOCK, &taken[i].lock);
		else
			taken[kept++] = taken[i];
	}
	ntaken = kept;
}

void
mer_advisory_check(void)
{
	if (session_locks > 0)
		mer_wire_check_pin();
}

static void
start_hook(QueryDesc *desc, int eflags)
{
	mer_advisory_check();
	if (next_start)
		next_start(desc, eflags);
	else
		standard_ExecutorStart(desc, eflags);
}

void
mer_advisory_init(void)
{
	RegisterXactCallback(at_transaction_end, NULL);
	RegisterSubXactCallback(at_subtransaction_end, NULL);
	next_start = ExecutorStart_hook;
	ExecutorStart_hook = start_hook;
}
