/*
 * txn.c
 *	  One transaction of this query processor: its tau_start, its undo stack
 *	  and what PostgreSQL's transaction events mean for it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "coherence.h"
#include "store.h"

#define COMMITTED_BUT_FAILED "transaction committed, but its query processor failed afterwards"
#define COMMITTED_HINT "Reconnect; the transaction's effects are there."

MerTxn		mer_txn;
static emit_log_hook_type next_emit_log = NULL;

/* A subtransaction remembers how much there was when it started. */
typedef struct Savepoint
{
	SubTransactionId id;
	uint64		undo_len;
	int			nops;
	int			nrelmap;
	int			nchecks;
	uint64		rows;
} Savepoint;

typedef struct SchemaOp
{
	int			tag;
	int64		sid;
	int			attnum;
	char	   *data;
	uint32		len;
} SchemaOp;

typedef struct PrecommitCallback
{
	struct PrecommitCallback *next;
	void		(*callback) (void);
} PrecommitCallback;

static MerVersion **undo;
static uint64 undo_max;
static Savepoint *savepoints;
static int	nsavepoints;
static int	max_savepoints;
static SchemaOp *schema_ops;
static int	nschema_ops;
static int	max_schema_ops;
static PrecommitCallback *callbacks;

/* ---------- start and tau ---------- */

void
mer_txn_start(void)
{
	if (mer_txn.active)
		return;
	mer_txn.cxt = BumpContextCreate(TopTransactionContext, "meridian transaction",
									8 * 1024, 32 * 1024, 4 * 1024 * 1024);
	mer_txn.active = true;
}

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
	return mer_txn.undo_len > 0 || nschema_ops > 0;
}

bool
mer_rel_written(int64 sid)
{
	MerBuf	   *buf = mer_buf_find(sid);

	return (buf != NULL && buf->nentries > 0) || mer_txn_created(sid);
}

/* ---------- schema ops ---------- */

void
mer_txn_schema_op(const char *op, uint32 len)
{
	MpReader	r = {op, op + len};
	uint32		n = mp_get_array(&r);
	SchemaOp   *s;

	if (n < 2)
		elog(ERROR, "meridian: malformed schema op");
	mer_txn_start();
	if (nschema_ops == max_schema_ops)
	{
		max_schema_ops = max_schema_ops ? max_schema_ops * 2 : 16;
		if (schema_ops)
			schema_ops = repalloc(schema_ops, max_schema_ops * sizeof(SchemaOp));
		else
			schema_ops = MemoryContextAlloc(TopMemoryContext,
											max_schema_ops * sizeof(SchemaOp));
	}
	s = &schema_ops[nschema_ops];
	s->tag = (int) mp_get_int(&r);
	s->sid = mp_get_int(&r);
	s->attnum = s->tag == 7 ? (int) mp_get_int(&r) : 0;
	s->data = MemoryContextAlloc(mer_txn.cxt, len);
	s->len = len;
	memcpy(s->data, op, len);
	nschema_ops++;
}

int
mer_txn_schema_count(void)
{
	return nschema_ops;
}

const char *
mer_txn_schema_get(int i, uint32 *len)
{
	*len = schema_ops[i].len;
	return schema_ops[i].data;
}

bool
mer_txn_created(int64 sid)
{
	for (int i = 0; i < nschema_ops; i++)
		if (schema_ops[i].tag == 6 && schema_ops[i].sid == sid)
			return true;
	return false;
}

bool
mer_txn_dropped(int64 sid)
{
	for (int i = 0; i < nschema_ops; i++)
		if (schema_ops[i].tag == 8 && schema_ops[i].sid == sid)
			return true;
	return false;
}

/* Columns that storage knows: those added by this transaction are not there yet. */
int
mer_txn_stored_natts(int64 sid, int natts)
{
	for (int i = 0; i < nschema_ops; i++)
		if (schema_ops[i].tag == 7 && schema_ops[i].sid == sid)
			natts = Min(natts, schema_ops[i].attnum - 1);
	return mer_ddl_pending_natts(sid, natts);
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

/* ---------- undo ---------- */

void
mer_undo_push(MerVersion *version)
{
	if (mer_txn.undo_len == undo_max)
	{
		undo_max = undo_max ? undo_max * 2 : 1024;
		if (undo == NULL)
			undo = MemoryContextAllocHuge(TopMemoryContext,
										  undo_max * sizeof(MerVersion *));
		else
			undo = repalloc_huge(undo, undo_max * sizeof(MerVersion *));
	}
	undo[mer_txn.undo_len++] = version;
}

/*
 * Take back a speculative insertion: the row and the index entries made for
 * it, which are the versions pushed since.
 */
void
mer_undo_kill(MerVersion *row)
{
	for (uint64 i = mer_txn.undo_len; i-- > 0;)
	{
		MerVersion *v = undo[i];
		MerBuf	   *buf = mer_buf_find(v->sid);
		MpReader	r = {v->row, v->row + v->rowlen};
		const char *rowkey;
		uint32		len;

		if (v == row)
		{
			v->dead = true;
			return;
		}
		if (!buf->is_index || v->tombstone)
			continue;
		mp_get_array(&r);
		rowkey = mp_get_bytes(&r, &len);
		if (mer_key_cmp(rowkey, len, row->key, row->klen) == 0)
			v->dead = true;
	}
	elog(ERROR, "meridian: speculative row is not in the write buffer");
}

static void
savepoint_push(SubTransactionId id)
{
	Savepoint  *s;

	if (nsavepoints == max_savepoints)
	{
		max_savepoints = max_savepoints ? max_savepoints * 2 : 16;
		if (savepoints)
			savepoints = repalloc(savepoints, max_savepoints * sizeof(Savepoint));
		else
			savepoints = MemoryContextAlloc(TopMemoryContext,
											max_savepoints * sizeof(Savepoint));
	}
	s = &savepoints[nsavepoints++];
	s->id = id;
	s->undo_len = mer_txn.undo_len;
	s->nops = nschema_ops;
	s->nrelmap = mer_relmap_mark();
	s->nchecks = mer_checks_mark();
	s->rows = mer_txn.rows;
}

static void
savepoint_rollback(SubTransactionId id)
{
	Savepoint  *s;

	if (nsavepoints == 0 || savepoints[nsavepoints - 1].id != id)
		return;
	s = &savepoints[nsavepoints - 1];
	while (mer_txn.undo_len > s->undo_len)
		mer_buf_pop(undo[--mer_txn.undo_len]);
	nschema_ops = s->nops;
	mer_relmap_undo(s->nrelmap);
	mer_checks_release(s->nchecks);
	mer_txn.rows = s->rows;
	nsavepoints--;
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mySubid,
				 SubTransactionId parentSubid, void *arg)
{
	switch (event)
	{
		case SUBXACT_EVENT_START_SUB:
			savepoint_push(mySubid);
			break;
		case SUBXACT_EVENT_PRE_COMMIT_SUB:
			mer_checks_flush();
			break;
		case SUBXACT_EVENT_COMMIT_SUB:
			if (nsavepoints > 0 && savepoints[nsavepoints - 1].id == mySubid)
				nsavepoints--;
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			savepoint_rollback(mySubid);
			break;
	}
}

/* ---------- end ---------- */

static void
txn_reset(void)
{
	memset(&mer_txn, 0, sizeof(mer_txn));
	if (undo_max > 65536)
	{
		pfree(undo);
		undo = NULL;
		undo_max = 0;
	}
	nsavepoints = 0;
	nschema_ops = 0;
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
