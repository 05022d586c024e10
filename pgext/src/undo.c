/*
 * undo.c
 *	  What one transaction has done so far, in its order, and how the end of a
 *	  subtransaction takes back a part of it.
 *
 * No server is needed here: the simulation links this file, too (writelib.c).
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "store.h"

MerTxn		mer_txn;

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

static MerVersion **undo;
static uint64 undo_max;
static Savepoint *savepoints;
static int	nsavepoints;
static int	max_savepoints;
static SchemaOp *schema_ops;
static int	nschema_ops;
static int	max_schema_ops;

void
mer_txn_start(void)
{
	if (mer_txn.active)
		return;
	mer_txn.cxt = BumpContextCreate(TopTransactionContext, "meridian transaction",
									8 * 1024, 32 * 1024, 4 * 1024 * 1024);
	mer_txn.active = true;
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

void
mer_savepoint(SubTransactionId id)
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

/* Nothing happens if that one has ended. */
void
mer_savepoint_rollback(SubTransactionId id)
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

void
mer_savepoint_release(SubTransactionId id)
{
	if (nsavepoints > 0 && savepoints[nsavepoints - 1].id == id)
		nsavepoints--;
}

void
mer_undo_reset(void)
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
}
