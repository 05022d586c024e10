/*
 * txn.c
 *	  One transaction of this query processor: its tau_start and what
 *	  PostgreSQL's transaction events mean for it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "coherence.h"
#include "store.h"

#define COMMITTED_BUT_FAILED "transaction committed, but its query processor failed afterwards"
#define COMMITTED_HINT "Reconnect; the transaction's effects are there."

static emit_log_hook_type next_emit_log = NULL;

typedef struct PrecommitCallback
{
	struct PrecommitCallback *next;
	void		(*callback) (void);
} PrecommitCallback;

static PrecommitCallback *callbacks;

/* ---------- tau ---------- */

void
mer_txn_saw_tau(int64 tau)
{
	if (mer_txn.tau == 0)
		mer_txn.tau = tau;
	else if (tau != mer_txn.tau)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("gateway answered as of another time than asked")));
}

int64
mer_tau_start(void)
{
	if (mer_txn.tau == 0)
	{
		StringInfoData buf;
		MerReply	reply;
		uint32		id;

		initStringInfo(&buf);
		id = mer_wire_begin(&buf, MER_BEGIN, 3);
		mp_put_int(&buf, mer_catver());
		reply = mer_wire_call(&buf, id);
		if (reply.type != MER_RESULT)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("unexpected answer %d to BEGIN", reply.type)));
		mer_txn_saw_tau(mp_get_int(&reply.body));
		pfree(reply.frame);
		pfree(buf.data);
	}
	return mer_txn.tau;
}

bool
mer_txn_has_writes(void)
{
	return mer_txn.undo_len > 0 || mer_txn_schema_count() > 0;
}

bool
mer_rel_written(int64 sid)
{
	MerBuf	   *buf = mer_buf_find(sid);

	return (buf != NULL && buf->nentries > 0) || mer_txn_created(sid);
}

void
mer_txn_at_precommit(void (*callback) (void))
{
	PrecommitCallback *c;

	for (c = callbacks; c; c = c->next)
		if (c->callback == callback)
			return;
	mer_txn_start();
	c = MemoryContextAlloc(mer_txn.cxt, sizeof(PrecommitCallback));
	c->callback = callback;
	c->next = callbacks;
	callbacks = c;
}

void
mer_txn_put_system(int64 sid, const char *key, uint32 keylen, int nvalues,
				   const Datum *bytea_values)
{
	StringInfoData row;
	AttrNumber *attnums = palloc(nvalues * sizeof(AttrNumber));
	MerBuf	   *buf;
	MerVersion *v;
	bool		big = false;

	if (sid >= 1000)
		elog(ERROR, "meridian: " INT64_FORMAT " is not a system relation", sid);
	buf = mer_buf_get(sid, InvalidOid, false);
	initStringInfo(&row);
	mp_put_array(&row, nvalues);
	for (int i = 0; i < nvalues; i++)
	{
		bytea	   *value = DatumGetByteaPP(bytea_values[i]);

		mp_put_bin(&row, VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
		big |= VARSIZE_ANY_EXHDR(value) > MER_BIG_BYTES;
		attnums[i] = i + 1;
	}
	v = mer_buf_push(buf, key, keylen, row.data, row.len,
					 mer_buf_shape(buf, attnums, nvalues, nvalues),
					 GetCurrentCommandId(false), false, false);
	v->has_big = big;
	pfree(row.data);
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mySubid,
				 SubTransactionId parentSubid, void *arg)
{
	switch (event)
	{
		case SUBXACT_EVENT_START_SUB:
			mer_savepoint(mySubid);
			break;
		case SUBXACT_EVENT_PRE_COMMIT_SUB:
			mer_checks_flush();
			break;
		case SUBXACT_EVENT_COMMIT_SUB:
			mer_savepoint_release(mySubid);
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			mer_savepoint_rollback(mySubid);
			break;
	}
}

/* ---------- end ---------- */

static void
txn_reset(void)
{
	mer_undo_reset();
	callbacks = NULL;
	mer_commit_reset();
	mer_tids_reset();
	mer_checks_reset();
	mer_locks_reset();
	mer_notify_reset();
	mer_relmap_end();
	mer_reldesc_end();
}

static bool
has_something_to_ship(void)
{
	return mer_txn_has_writes() || mer_have_locks() || mer_notify_pending();
}

/*
 * Everything that may still fail comes before mer_commit; what the callbacks
 * add (catalog delta) joins the write set.
 */
static void
pre_commit(void)
{
	mer_checks_flush();
	if (!has_something_to_ship() && callbacks == NULL)
		return;
	mer_rewrite_mark_writes();
	mer_relmap_flush();
	for (PrecommitCallback *c = callbacks; c; c = c->next)
		c->callback();
	if (has_something_to_ship())
		mer_commit();
}

static void
xact_callback(XactEvent event, void *arg)
{
	bool		committed;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			pre_commit();
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (mer_txn.active || mer_txn.tau != 0)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("PREPARE TRANSACTION is not supported"),
						 errhint("A transaction lives in one query processor and commits at once.")));
			break;
		case XACT_EVENT_COMMIT:
			/* An error would have let go of all holds itself. */
			if (mer_txn.interrupts_held)
				RESUME_INTERRUPTS();
			txn_reset();
			break;
		case XACT_EVENT_ABORT:
			committed = mer_txn.committed;
			txn_reset();
			/*
			 * The journal holds the transaction but this backend could not
			 * finish it locally: nobody may believe that it failed.
			 */
			if (committed)
				ereport(FATAL,
						(errcode(ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN),
						 errmsg(COMMITTED_BUT_FAILED),
						 errhint(COMMITTED_HINT)));
			break;
		default:
			break;
	}
}

/*
 * The report of the failure leaves before the transaction is aborted: it must
 * not tell the client that nothing happened.
 */
static void
report_committed(ErrorData *error)
{
	if (mer_txn.committed && error->elevel >= ERROR)
	{
		error->sqlerrcode = ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN;
		error->detail = error->message;
		error->message = pstrdup(COMMITTED_BUT_FAILED);
		error->hint = pstrdup(COMMITTED_HINT);
	}
	if (next_emit_log)
		next_emit_log(error);
}

void
mer_txn_init(void)
{
	/* The last one registered runs first: ours, registered first, runs last. */
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	next_emit_log = emit_log_hook;
	emit_log_hook = report_committed;
	mer_slot_init();
	mer_hooks_init();
}
