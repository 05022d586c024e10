/*
 * catdelta.c
 *	  The catalog in the journal: a transaction that changed catalogs ships
 *	  its catalog delta in the same write set as its rows, as the row of the
 *	  next catalog version (system relation 1); deltas that this instance
 *	  lacks are applied at its start and as they come.
 *
 * Transactions of one instance get their versions one after the other: the
 * version row is locked from the delta's capture to the end of the local
 * transaction, which writes the version itself.  So the local catalog and its
 * version are never apart, whatever ends in between.
 */
#include "catdelta.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/queryjumble.h"
#include "port/pg_bswap.h"
#include "postmaster/autovacuum.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "varatt.h"

#include "coherence.h"
#include "reach.h"
#include "state.h"
#include "store.h"
#include "utility.h"
#include "wire.h"

PG_FUNCTION_INFO_V1(mer_catalog_version_sql);
PG_FUNCTION_INFO_V1(mer_apply_catalog_delta);
PG_FUNCTION_INFO_V1(mer_apply_catalog_image);
PG_FUNCTION_INFO_V1(mer_apply_pending_catalog);

#define AUDIT_MAX_BYTES (64 * 1024)
#define DELTA_PAGE_BYTES (4 * 1024 * 1024)
#define VERSION_KEY_BYTES 8
#define VERSION_NAME "catalog_version"

extern void mer_catdelta_init(void);

static ProcessUtility_hook_type next_utility = NULL;
static StringInfo audit = NULL; /* DDL texts of this transaction, in its memory */
static bool applying = false;	/* this transaction applies deltas: it makes none */

/* ---------- the local version ---------- */

int64
mer_catalog_version(void)
{
	return mer_state_get(VERSION_NAME);
}

void
mer_catalog_version_lock(void)
{
	LockRelationOid(mer_state_table(), ShareUpdateExclusiveLock);
}

void
mer_catalog_version_set(int64 version)
{
	mer_state_set(VERSION_NAME, version);
	CommandCounterIncrement();
}

/* ---------- versions in storage ---------- */

static void
version_key(int64 version, char *key)
{
	uint64		order = pg_hton64((uint64) version);

	memcpy(key, &order, VERSION_KEY_BYTES);
}

/*
 * A page of deltas from this version on; rows are [key, delta, reach].  Whoever
 * asks for newer versions is behind and need not be told so.
 */
static MerReply
read_deltas(int64 from, int64 limit, uint32 *nrows, bool *more)
{
	static const AttrNumber columns[] = {1, 3};
	char		key[VERSION_KEY_BYTES];
	MerRequest	request = {
		.sid = MER_CATALOG_SID,.lo = key,.lo_len = sizeof(key),.cols = columns,
		.ncols = lengthof(columns),.limit = limit,.page_bytes = DELTA_PAGE_BYTES,
		.any_version = true
	};
	MerReply	reply;

	version_key(from, key);
	reply = mer_wire_wait(mer_send_scan(&request));
	if (reply.type != MER_RESULT)
		mp_malformed("not an answer to SCAN");
	mer_txn_saw_tau(mp_get_int(&reply.body));
	*more = mp_get_bool(&reply.body);
	*nrows = mp_get_array(&reply.body);
	return reply;
}

/*
 * The journal may hold a version that this instance has not seen: another one's,
 * or one whose own backend gave up before the answer came.  It is about to be
 * applied, as soon as this transaction lets go of the version lock.
 *
 * Nor may this transaction have looked at functions, types or roles of before a
 * change that was applied while it ran: its own changes may rest on them.
 */
static void
check_not_behind(int64 next)
{
	uint32		nrows;
	bool		more;
	MerReply	reply = read_deltas(next, 1, &nrows, &more);

	pfree(reply.frame);
	if (nrows > 0 || mer_catalog_changed_globally())
		mer_schema_changed();
}

/* ---------- shipping ---------- */

static bool
ships_catalog(void)
{
	return IsUnderPostmaster && IsNormalProcessingMode() && !applying &&
		!AmAutoVacuumWorkerProcess() && !mer_maintenance() && OidIsValid(mer_state_table());
}

static Datum
audit_text(bool secret)
{
	if (secret)
		return CStringGetTextDatum("-- concerns roles; the text may hold a password");
	if (audit == NULL)
		return CStringGetTextDatum("");
	return PointerGetDatum(cstring_to_text_with_len(audit->data, audit->len));
}

static void
put_delta(StringInfo delta, MerReach *reach, bool secret)
{
	int64		version;
	char		key[VERSION_KEY_BYTES];
	Datum		values[3];
	StringInfoData concerned;

	if (delta->len > MER_DELTA_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the schema changes of one transaction exceed %d MiB",
						MER_DELTA_MAX_BYTES / (1024 * 1024)),
				 errhint("Spread them over several transactions.")));
	mer_catalog_version_lock();
	version = mer_catalog_version() + 1;
	check_not_behind(version);
	version_key(version, key);
	values[0] = PointerGetDatum(cstring_to_text_with_len(delta->data, delta->len));
	values[1] = audit_text(secret);
	initStringInfo(&concerned);
	mer_reach_put(reach, &concerned);
	values[2] = PointerGetDatum(cstring_to_text_with_len(concerned.data, concerned.len));
	mer_txn_put_system(MER_CATALOG_SID, key, sizeof(key), lengthof(values), values);
	mer_catalog_version_set(version);
	mer_version_moves(version, mer_reach_is_additive(reach), false);
}

static void
ship(void)
{
	StringInfoData delta;
	MerReach	reach;
	bool		secret;

	/* Values out of line need a snapshot to be read under, and no statement runs now. */
	PushActiveSnapshot(GetLatestSnapshot());
	initStringInfo(&delta);
	if (mer_catalog_capture(&delta, &reach, &secret))
		put_delta(&delta, &reach, secret);
	pfree(delta.data);
	PopActiveSnapshot();
}

static void
at_transaction_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if ((TransactionIdIsValid(GetTopTransactionIdIfAny()) || mer_txn_schema_count() > 0) &&
				ships_catalog())
				mer_txn_at_precommit(ship);
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_COMMIT:
			audit = NULL;
			applying = false;
			break;
		default:
			break;
	}
}

/* ---------- texts for the audit ---------- */

void
mer_catalog_note_statement(PlannedStmt *pstmt, const char *text)
{
	int			location = pstmt->stmt_location;
	int			len = pstmt->stmt_len;

	if (audit == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

		audit = makeStringInfo();
		MemoryContextSwitchTo(old);
	}
	text = CleanQuerytext(text, &location, &len);
	if (audit->len + len + 2 > AUDIT_MAX_BYTES)
		return;
	appendBinaryStringInfo(audit, text, len);
	appendBinaryStringInfo(audit, ";\n", 2);
}

/* Labels of an enum are made all at once; whatever else is made is looked at one by one (ddl.c). */
static uint32
objects_at_once(Node *stmt)
{
	return IsA(stmt, CreateEnumStmt) ? (uint32) list_length(((CreateEnumStmt *) stmt)->vals) : 0;
}

static void
note_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
			 ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *queryEnv,
			 DestReceiver *dest, QueryCompletion *qc)
{
	bool		ddl = context <= PROCESS_UTILITY_QUERY && ships_catalog() &&
		GetCommandLogLevel(pstmt->utilityStmt) == LOGSTMT_DDL;

	if (ddl)
		mer_oids_ensure(objects_at_once(pstmt->utilityStmt));
	if (context <= PROCESS_UTILITY_QUERY && IsA(pstmt->utilityStmt, TruncateStmt))
		mer_gate_before_truncate((TruncateStmt *) pstmt->utilityStmt);
	next_utility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	/* A statement that ends its transaction leaves nothing to note it in. */
	if (ddl && IsTransactionState())
		mer_catalog_note_statement(pstmt, queryString);
}

/* ---------- SQL functions ---------- */

static void
begin_apply(void)
{
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to apply catalog deltas")));
	if (mer_txn_has_writes() || TransactionIdIsValid(GetTopTransactionIdIfAny()))
		if (!applying)
			ereport(ERROR,
					(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
					 errmsg("catalog deltas are applied in a transaction of their own")));
	/* A version moves with the whole transaction or not at all. */
	if (IsSubTransaction())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("catalog deltas are not applied in a subtransaction")));
	applying = true;
	mer_catalog_version_lock();
}

/*
 * Those who use what no lock protects learn of a global change by an
 * invalidation of the state table (coherence.c).
 */
static void
move_version(int64 version, const char *delta, uint32 len, int kind)
{
	mer_catalog_apply(delta, len, kind);
	if (kind == MER_REACH_GLOBAL)
		CacheInvalidateRelcacheByRelid(mer_state_table());
	mer_catalog_version_set(version);
	mer_version_moves(version, kind == MER_REACH_ADDITIVE, kind == MER_REACH_GLOBAL);
}

/* True if the delta was applied now, false if it had been before. */
static bool
apply_version(int64 version, const char *delta, uint32 len, int kind)
{
	int64		local = mer_catalog_version();

	if (version <= local)
		return false;
	if (version != local + 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("catalog version " INT64_FORMAT " follows " INT64_FORMAT, version, local)));
	move_version(version, delta, len, kind);
	return true;
}

/* catalog_version(); the instance manager asks before it lets anybody in */
Datum
mer_catalog_version_sql(PG_FUNCTION_ARGS)
{
	(void) mer_catver();
	PG_RETURN_INT64(mer_catalog_version());
}

/* apply_catalog_delta(version, delta) */
Datum
mer_apply_catalog_delta(PG_FUNCTION_ARGS)
{
	bytea	   *delta = PG_GETARG_BYTEA_PP(1);

	begin_apply();
	PG_RETURN_BOOL(apply_version(PG_GETARG_INT64(0), VARDATA_ANY(delta),
								 (uint32) VARSIZE_ANY_EXHDR(delta), MER_REACH_GLOBAL));
}

/* Rows of older versions have no reach. */
static int
next_kind(MpReader *r)
{
	uint32		len;
	const char *reach;

	if (mp_try_nil(r))
		return MER_REACH_GLOBAL;
	reach = mp_get_bytes(r, &len);
	return mer_reach_kind(reach, len);
}

/* apply_catalog_image(version, image): all versions through this one, into a new catalog */
Datum
mer_apply_catalog_image(PG_FUNCTION_ARGS)
{
	int64		version = PG_GETARG_INT64(0);
	bytea	   *image = PG_GETARG_BYTEA_PP(1);

	begin_apply();
	if (mer_catalog_version() != 0 || version <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("an image of the catalog is for a new instance")));
	move_version(version, VARDATA_ANY(image), (uint32) VARSIZE_ANY_EXHDR(image), MER_REACH_GLOBAL);
	PG_RETURN_VOID();
}

/* apply_pending_catalog(most): how many versions were applied */
Datum
mer_apply_pending_catalog(PG_FUNCTION_ARGS)
{
	int32		most = PG_GETARG_INT32(0);
	int32		applied = 0;
	uint32		nrows;
	bool		more = true;

	begin_apply();
	while (applied < most && more)
	{
		MerReply	reply = read_deltas(mer_catalog_version() + 1, most - applied, &nrows, &more);

		while (nrows-- > 0)
		{
			uint32		len;
			const char *key;
			const char *delta;
			uint64		version;
			int			kind;

			if (mp_get_array(&reply.body) != 3)
				mp_malformed("row of another width");
			key = mp_get_bytes(&reply.body, &len);
			if (len != VERSION_KEY_BYTES)
				mp_malformed("catalog version of another length");
			memcpy(&version, key, sizeof(version));
			delta = mp_get_bytes(&reply.body, &len);
			kind = next_kind(&reply.body);
			applied += apply_version((int64) pg_ntoh64(version), delta, len, kind) ? 1 : 0;
		}
		pfree(reply.frame);
	}
	PG_RETURN_INT32(applied);
}

void
mer_catdelta_init(void)
{
	/* After txn.c, so that this comes before it: the last one registered runs first. */
	RegisterXactCallback(at_transaction_event, NULL);
	next_utility = ProcessUtility_hook != NULL ? ProcessUtility_hook : standard_ProcessUtility;
	ProcessUtility_hook = note_utility;
}
