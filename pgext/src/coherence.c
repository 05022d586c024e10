/*
 * coherence.c
 *	  The catalog version of this instance, in shared memory.
 *
 * The version moves inside the local transaction that applies or makes a delta,
 * after its rows are visible and before its locks go.  So whoever holds a lock
 * on a relation reads a version that is right for this relation; and as every
 * request bears the version, an instance that lacks a delta is refused, not
 * wrong.
 *
 * Functions, types and roles are not locked by those who use them.  A change of
 * them that another instance made counts as seen by a transaction only if its
 * invalidations came before the transaction began to look at the catalogs.
 */
#include "coherence.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "portability/instr_time.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/wait_event.h"

#include "catdelta.h"
#include "store.h"
#include "wire.h"

#define WANTED_MAX 64
#define TOO_NEW_PAUSE_US 1000

typedef struct Shared
{
	pg_atomic_uint64 version;	/* plus 1; 0: nobody has read it from the state table yet */
	pg_atomic_uint64 change;	/* last version that is not merely additive */
	pg_atomic_uint64 global;	/* last version of global reach from elsewhere */
	pg_atomic_uint64 settled;	/* the same, once its invalidations are out */
	ConditionVariable moved;
	slock_t		lock;			/* of wanted */
	int			nwanted;		/* WANTED_MAX + 1: more than fit */
	Oid			wanted[WANTED_MAX];
} Shared;

static Shared *shared = NULL;
static shmem_request_hook_type next_request = NULL;
static shmem_startup_hook_type next_startup = NULL;

/* What this transaction brings. */
static int64 moves = 0;
static bool moves_something = false;
static bool moves_globally = false;
static bool wants = false;

/* The last global version that this backend's caches are sure to know. */
static uint64 known_global = 0;

/* The request that asked for this transaction's tau_start. */
static char *asked = NULL;
static int	asked_len = 0;
static int	asked_max = 0;
static uint32 asked_id = 0;
static int64 asked_version = 0;
static bool retrying = false;
static instr_time retry_start;

/* ---------- shared memory ---------- */

static void
request(void)
{
	if (next_request)
		next_request();
	RequestAddinShmemSpace(MAXALIGN(sizeof(Shared)) + mer_oids_size() + mer_sendaway_size());
}

static void
startup(void)
{
	bool		found;

	if (next_startup)
		next_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("meridian coherence", sizeof(Shared), &found);
	if (!found)
	{
		pg_atomic_init_u64(&shared->version, 0);
		pg_atomic_init_u64(&shared->change, 0);
		pg_atomic_init_u64(&shared->global, 0);
		pg_atomic_init_u64(&shared->settled, 0);
		ConditionVariableInit(&shared->moved);
		SpinLockInit(&shared->lock);
		shared->nwanted = 0;
	}
	mer_oids_startup();
	mer_sendaway_startup();
	LWLockRelease(AddinShmemInitLock);
}

/* ---------- the version ---------- */

/*
 * The first reader after a start takes it from the state table.  A version
 * that moves meanwhile is newer and wins.
 */
int64
mer_catver(void)
{
	uint64		present = pg_atomic_read_u64(&shared->version);

	if (present == 0)
	{
		uint64		read = (uint64) mer_catalog_version() + 1;

		if (pg_atomic_compare_exchange_u64(&shared->version, &present, read))
			present = read;
	}
	return (int64) present - 1;
}

void
mer_version_moves(int64 version, bool additive, bool global_from_elsewhere)
{
	moves = version;
	moves_something = moves_something || !additive;
	moves_globally = moves_globally || global_from_elsewhere;
}

int64
mer_last_change(void)
{
	return (int64) pg_atomic_read_u64(&shared->change);
}

int64
mer_version_at_start(void)
{
	return asked_version;
}

bool
mer_catalog_changed_globally(void)
{
	return pg_atomic_read_u64(&shared->global) != known_global;
}

void
mer_schema_changed(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg(MER_OC001),
			 errhint("Retry the transaction.")));
}

/* Rows are visible, locks are held: nothing here can fail. */
static void
publish(void)
{
	/* Versions are made under the version lock, one after the other. */
	if (moves != 0)
	{
		if (moves_something)
			pg_atomic_write_u64(&shared->change, (uint64) moves);
		if (moves_globally)
			pg_atomic_write_u64(&shared->global, (uint64) moves);
		pg_atomic_write_u64(&shared->version, (uint64) moves + 1);
	}
}

static void
end_wants(void)
{
	if (wants)
	{
		SpinLockAcquire(&shared->lock);
		shared->nwanted = 0;
		SpinLockRelease(&shared->lock);
	}
	wants = false;
}

/*
 * What was settled before this point is in the invalidations that the next
 * transaction starts with.
 */
static void
at_xact(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
		return;
	if (event == XACT_EVENT_COMMIT)
		publish();
	if (moves != 0 || wants)
	{
		end_wants();
		ConditionVariableBroadcast(&shared->moved);
	}
	if (event == XACT_EVENT_ABORT)
	{
		moves = 0;
		moves_something = moves_globally = false;
	}
	asked_id = 0;
	asked_version = 0;
	retrying = false;
	known_global = pg_atomic_read_u64(&shared->settled);
}

/* Invalidations were sent just before the locks went. */
static void
at_release(ResourceReleasePhase phase, bool is_commit, bool is_top_level, void *arg)
{
	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !is_top_level || moves == 0)
		return;
	if (is_commit && moves_globally)
		pg_atomic_write_u64(&shared->settled, (uint64) moves);
	moves = 0;
	moves_something = moves_globally = false;
}

/*
 * Invalidations that come while a transaction starts precede all it looks at.
 * Those of the state table say that something global came from elsewhere; which
 * tables' they are does not matter here, as the others do no harm.
 */
static void
at_invalidation(Datum arg, Oid relid)
{
	if (!IsTransactionState())
		known_global = pg_atomic_read_u64(&shared->settled);
}

/* ---------- waiting for a version ---------- */

void
mer_apply_wants(List *relids)
{
	int			n = 0;

	SpinLockAcquire(&shared->lock);
	shared->nwanted = Min(list_length(relids), WANTED_MAX + 1);
	for (n = 0; n < list_length(relids) && n < WANTED_MAX; n++)
		shared->wanted[n] = list_nth_oid(relids, n);
	SpinLockRelease(&shared->lock);
	wants = true;
	ConditionVariableBroadcast(&shared->moved);
}

/* Does apply, for which we are about to wait, wait for us? */
static bool
stands_in_the_way(void)
{
	Oid			wanted[WANTED_MAX];
	int			n;
	int			i;

	SpinLockAcquire(&shared->lock);
	n = shared->nwanted;
	memcpy(wanted, shared->wanted, sizeof(wanted));
	SpinLockRelease(&shared->lock);
	if (n > WANTED_MAX)
		return true;
	for (i = 0; i < n; i++)
		if (CheckRelationOidLockedByMe(wanted[i], AccessShareLock, true))
			return true;
	return false;
}

static long
remaining_ms(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, retry_start);
	return MER_CATALOG_WAIT_MS - (long) INSTR_TIME_GET_MILLISEC(now);
}

/* False: it did not come in time, or waits for what we hold. */
static bool
wait_for_version(int64 version)
{
	static uint32 wait_event = 0;
	bool		came;

	if (wait_event == 0)
		wait_event = WaitEventExtensionNew("MeridianCatalog");
	ConditionVariablePrepareToSleep(&shared->moved);
	while (!(came = mer_catver() >= version))
	{
		long		left = remaining_ms();

		if (left <= 0 || stands_in_the_way())
			break;
		(void) ConditionVariableTimedSleep(&shared->moved, left, wait_event);
	}
	ConditionVariableCancelSleep();
	return came;
}

/* ---------- requests that ask for tau_start ---------- */

/* Number of fields, type and id of a request, and what follows them. */
static uint32
open_request(const char *data, int len, int *type, uint32 *id, MpReader *rest)
{
	uint32		n;

	/* The frame's length comes first. */
	rest->p = data + sizeof(uint32);
	rest->end = data + len;
	n = mp_get_array(rest);
	*type = (int) mp_get_int(rest);
	*id = (uint32) mp_get_int(rest);
	return n;
}

void
mer_stale_note(StringInfo buf)
{
	MpReader	rest;
	int			type;
	uint32		id;

	if (mer_txn.tau != 0)
		return;
	(void) open_request(buf->data, buf->len, &type, &id, &rest);
	if (type != MER_BEGIN && type != MER_GET && type != MER_SCAN)
		return;
	asked_version = mp_get_int(&rest);
	if (asked_version == 0)
		return;
	if (asked_max < buf->len)
	{
		asked_max = Max(buf->len, 1024);
		if (asked)
			pfree(asked);
		asked = MemoryContextAllocHuge(TopMemoryContext, asked_max);
	}
	memcpy(asked, buf->data, buf->len);
	asked_len = buf->len;
	asked_id = id;
}

/* The version in force at the tau that the refused request was given. */
static bool
version_in_force(const MerReply *reply, int64 *version)
{
	MpReader	r = reply->body;
	char		detail[64];
	const char *text;
	uint32		len;
	int64		tau;

	if (mer_wire_sqlstate(reply) != ERRCODE_T_R_SERIALIZATION_FAILURE)
		return false;
	mp_skip(&r);				/* our code */
	mp_skip(&r);				/* SQLSTATE */
	mp_skip(&r);				/* message */
	text = mp_get_bytes(&r, &len);
	if (len >= sizeof(detail))
		return false;
	memcpy(detail, text, len);
	detail[len] = '\0';
	return sscanf(detail, "catalog " INT64_FORMAT " " INT64_FORMAT, version, &tau) == 2;
}

/* The same request with today's version; nothing was read, so tau_start may be a new one. */
static uint32
ask_again(void)
{
	StringInfoData buf;
	MpReader	rest;
	int			type;
	uint32		id;
	uint32		n = open_request(asked, asked_len, &type, &id, &rest);

	(void) mp_get_int(&rest);
	initStringInfo(&buf);
	id = mer_wire_begin(&buf, type, n);
	mp_put_int(&buf, mer_catver());
	appendBinaryStringInfo(&buf, rest.p, rest.end - rest.p);
	mer_wire_send(&buf);		/* notes it, too */
	pfree(buf.data);
	return id;
}

/*
 * The relations that the running statement uses are locked: no delta that
 * concerns them was applied meanwhile.  What concerns others, or is new, does
 * not change what the statement's plan means; what is global may.
 *
 * The other way round, a version may lie ahead of a tau_start just assigned:
 * commits lead the clock a little.  A later tau_start will do.
 */
bool
mer_stale_retry(MerReply *reply, uint32 *id)
{
	MpReader	rest;
	int			type;
	uint32		sent_id;
	int64		sent;
	int64		in_force;

	if (asked_id == 0 || asked_id != *id || mer_txn.tau != 0 || !version_in_force(reply, &in_force))
		return false;
	if (!retrying)
		INSTR_TIME_SET_CURRENT(retry_start);
	retrying = true;
	pfree(reply->frame);
	(void) open_request(asked, asked_len, &type, &sent_id, &rest);
	sent = mp_get_int(&rest);
	if (remaining_ms() <= 0 || !wait_for_version(in_force) || mer_catalog_changed_globally())
		mer_schema_changed();
	if (in_force < sent)
		pg_usleep(TOO_NEW_PAUSE_US);
	*id = ask_again();
	return true;
}

void
mer_coherence_init(void)
{
	next_request = shmem_request_hook;
	shmem_request_hook = request;
	next_startup = shmem_startup_hook;
	shmem_startup_hook = startup;
	RegisterXactCallback(at_xact, NULL);
	RegisterResourceReleaseCallback(at_release, NULL);
	CacheRegisterRelcacheCallback(at_invalidation, (Datum) 0);
	mer_catlock_init();
	mer_sendaway_init();
	mer_replan_init();
}
