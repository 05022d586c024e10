/*
 * rewrite_rows.c
 *	  New rows of a table that is being rewritten, and their index entries.
 *
 * Only the job writes them, one step after the other, so what it reads of them
 * is what it wrote.  A new row has the key of its old row.  Each is the old row
 * as of the last step that looked at it; whoever wrote the old row since has left
 * a mark, so a later step looks again.  Until then two new rows may have the same
 * value in a unique index although no two old rows ever had it at once: then the
 * other row is looked at in the same step, and only if it still has the value are
 * they duplicates.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "commands/sequence.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "rewrite.h"
#include "store.h"

#define STEP_BYTES (512 * 1024)
#define ROWS_MAX 400000
#define GET_KEYS 4000

/* A unique entry that was written here; whose it was before, storage must say. */
typedef struct Claim
{
	MerBytes	key;
	MerBytes	rowkey;
} Claim;

typedef struct RowIndex
{
	Relation	rel;
	MerRel	   *mr;
	const char *name;			/* of the table's index */
	Claim	   *claims;
	int			n;
	int			max;
} RowIndex;

struct MerRewriteRows
{
	MerRewritePlan *plan;
	Relation	table;
	Relation	rows;
	MemoryContext cxt;
	EState	   *estate;
	ExprState **exprs;			/* parallel to plan->columns */
	ExprState **checks;
	RowIndex   *indexes;
	int			nindexes;
	bool		looks_back;		/* what a new row was matters */
	TupleTableSlot *old;
	TupleTableSlot *new;
	int			refreshed;
	/* whoever ran the statement */
	Oid			user;
	int			context;
	int			nest;
};

static MerBytes
keep(MerBytes bytes)
{
	char	   *copy = palloc(bytes.len + 1);

	memcpy(copy, bytes.data, bytes.len);
	copy[bytes.len] = '\0';
	return (MerBytes) {copy, bytes.len};
}

/* ---------- begin and end ---------- */

static void
become(MerRewriteRows *r, Oid owner)
{
	GetUserIdAndSecContext(&r->user, &r->context);
	r->nest = NewGUCNestLevel();
	for (int i = 0; i + 1 < list_length(r->plan->settings); i += 2)
		(void) set_config_option(strVal(list_nth(r->plan->settings, i)),
								 strVal(list_nth(r->plan->settings, i + 1)),
								 PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	SetUserIdAndSecContext(owner, r->context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
}

static void
open_indexes(MerRewriteRows *r)
{
	List	   *oids = RelationGetIndexList(r->rows);

	r->indexes = palloc0((list_length(oids) + 1) * sizeof(RowIndex));
	foreach_oid(oid, oids)
	{
		RowIndex   *index = &r->indexes[r->nindexes++];
		char	   *number;

		index->rel = index_open(oid, RowExclusiveLock);
		index->mr = mer_rel(index->rel);
		/* Named entries_<table>_<number>, in the order of the names. */
		number = strrchr(RelationGetRelationName(index->rel), '_');
		index->name = strVal(list_nth(r->plan->index_names, atoi(number + 1)));
	}
}

MerRewriteRows *
mer_rewrite_rows_begin(MerRewritePlan *plan, Relation table, Relation rows, Oid owner)
{
	MerRewriteRows *r = palloc0(sizeof(MerRewriteRows));
	int			n = 0;

	r->plan = plan;
	r->table = table;
	r->rows = rows;
	r->cxt = CurrentMemoryContext;
	open_indexes(r);
	r->looks_back = r->nindexes > 0;
	become(r, owner);
	r->estate = CreateExecutorState();
	r->exprs = palloc0((list_length(plan->columns) + 1) * sizeof(ExprState *));
	r->checks = palloc0((list_length(plan->checks) + 1) * sizeof(ExprState *));
	foreach_ptr(MerRewriteColumn, column, plan->columns)
	{
		r->looks_back = r->looks_back || column->kind == MER_ONCE || column->kind == MER_NUMBER;
		if (column->expr)
			r->exprs[n] = ExecPrepareExpr((Expr *) column->expr, r->estate);
		n++;
	}
	n = 0;
	foreach_ptr(MerRewriteCheck, check, plan->checks)
		r->checks[n++] = ExecPrepareExpr((Expr *) check->expr, r->estate);
	r->old = table_slot_create(table, NULL);
	r->new = MakeSingleTupleTableSlot(RelationGetDescr(rows), mer_slot_ops());
	return r;
}

void
mer_rewrite_rows_end(MerRewriteRows *r)
{
	ExecDropSingleTupleTableSlot(r->old);
	ExecDropSingleTupleTableSlot(r->new);
	FreeExecutorState(r->estate);
	for (int i = 0; i < r->nindexes; i++)
		index_close(r->indexes[i].rel, NoLock);
	AtEOXact_GUC(false, r->nest);
	SetUserIdAndSecContext(r->user, r->context);
}

/* ---------- one new row ---------- */

static Datum
next_number(MerRewriteRows *r, MerRewriteColumn *column)
{
	Oid			type = TupleDescAttr(r->plan->desc, column->attnum - 1)->atttypid;
	int64		value = column->next;

	if (value > column->max || value < column->min)
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("nextval: reached the last value of the sequence of column \"%s\"",
						NameStr(TupleDescAttr(r->plan->desc, column->attnum - 1)->attname))));
	column->next = value + column->increment;
	switch (getBaseType(type))
	{
		case INT2OID:
			return Int16GetDatum((int16) value);
		case INT4OID:
			return Int32GetDatum((int32) value);
		default:
			return Int64GetDatum(value);
	}
}

static void
fill_column(MerRewriteRows *r, MerRewriteColumn *column, ExprState *expr, HeapTuple was)
{
	ExprContext *econtext = GetPerTupleExprContext(r->estate);
	int			a = column->attnum - 1;
	bool		once = column->kind == MER_ONCE || column->kind == MER_NUMBER;

	if (once && was)
		r->new->tts_values[a] = heap_getattr(was, a + 1, RelationGetDescr(r->rows),
											 &r->new->tts_isnull[a]);
	else if (column->kind == MER_NUMBER)
	{
		r->new->tts_values[a] = next_number(r, column);
		r->new->tts_isnull[a] = false;
	}
	else
	{
		econtext->ecxt_scantuple = column->kind == MER_FROM_NEW ? r->new : r->old;
		r->new->tts_values[a] = ExecEvalExpr(expr, econtext, &r->new->tts_isnull[a]);
	}
}

/* In PostgreSQL's words. */
static void
check_row(MerRewriteRows *r)
{
	ExprContext *econtext = GetPerTupleExprContext(r->estate);
	int			n = 0;

	foreach_int(attnum, r->plan->not_null)
	{
		if (slot_attisnull(r->new, attnum))
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("column \"%s\" of relation \"%s\" contains null values",
							NameStr(TupleDescAttr(r->plan->desc, attnum - 1)->attname),
							RelationGetRelationName(r->table)),
					 errtable(r->table)));
	}
	econtext->ecxt_scantuple = r->new;
	foreach_ptr(MerRewriteCheck, check, r->plan->checks)
	{
		if (!ExecCheck(r->checks[n++], econtext))
			ereport(ERROR,
					(errcode(ERRCODE_CHECK_VIOLATION),
					 errmsg("check constraint \"%s\" of relation \"%s\" is violated by some row",
							check->name, RelationGetRelationName(r->table)),
					 errtableconstraint(r->table, check->name)));
	}
}

/* From r->old into r->new, in per-tuple memory; was: the new row that there is, or NULL. */
static void
convert(MerRewriteRows *r, HeapTuple was)
{
	TupleDesc	desc = RelationGetDescr(r->rows);
	int			old_natts = list_length(r->plan->types);

	slot_getallattrs(r->old);
	ExecClearTuple(r->new);
	for (int i = 0; i < desc->natts; i++)
	{
		bool		there = i < old_natts && !TupleDescAttr(desc, i)->attisdropped;

		r->new->tts_isnull[i] = !there || r->old->tts_isnull[i];
		r->new->tts_values[i] = there ? r->old->tts_values[i] : (Datum) 0;
	}
	for (int pass = 0; pass < 2; pass++)
	{
		int			n = 0;

		/* Generated columns are made of all others. */
		foreach_ptr(MerRewriteColumn, column, r->plan->columns)
		{
			if ((column->kind == MER_FROM_NEW) == (pass == 1))
				fill_column(r, column, r->exprs[n], was);
			n++;
		}
		if (pass == 0)
			ExecStoreVirtualTuple(r->new);
	}
	r->new->tts_tableOid = RelationGetRelid(r->table);
	check_row(r);
}

/* ---------- entries ---------- */

pg_noreturn static void
duplicate(MerRewriteRows *r, RowIndex *index, const Datum *values, const bool *isnull)
{
	char	   *key;

	/* Whoever ran the statement owns the table, but not the hidden one. */
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, r->context);
	key = BuildIndexValueDescription(index->rel, values, isnull);
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("could not create unique index \"%s\"", index->name),
			 key ? errdetail("Key %s is duplicated.", key) : errdetail("Duplicate keys exist."),
			 errtableconstraint(r->table, index->name)));
}

static MerVersion *
written_entry(RowIndex *index, StringInfo key)
{
	MerBuf	   *buf = mer_buf_find(index->mr->sid);
	MerEntry   *e = buf ? mer_entry_find(buf, key->data, key->len) : NULL;

	return e ? mer_entry_newest(e) : NULL;
}

static bool
belongs_to(MerVersion *entry, MerBytes rowkey)
{
	MpReader	row = {entry->row, entry->row + entry->rowlen};
	uint32		len;
	const char *owner;

	mp_get_array(&row);
	owner = mp_get_bytes(&row, &len);
	return mer_key_cmp(owner, len, rowkey.data, rowkey.len) == 0;
}

static void
claim(MerRewriteRows *r, RowIndex *index, StringInfo key, MerBytes rowkey)
{
	MemoryContext old = MemoryContextSwitchTo(r->cxt);
	Claim	   *made;

	if (index->n == index->max)
	{
		index->max = index->max ? 2 * index->max : 64;
		index->claims = index->claims ? repalloc_array(index->claims, Claim, index->max) :
			palloc_array(Claim, index->max);
	}
	made = &index->claims[index->n++];
	made->key = keep((MerBytes) {key->data, key->len});
	made->rowkey = keep(rowkey);
	MemoryContextSwitchTo(old);
}

static void
put_entry(MerRewriteRows *r, RowIndex *index, MerBytes rowkey, CommandId cid)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	AttrNumber	attnums[INDEX_MAX_KEYS + 1];
	int			n = mer_index_payload_attnums(index->mr, attnums);
	StringInfoData key,
				payload;
	MerBuf	   *buf;
	MerVersion *there;
	bool		unique;

	if (!mer_index_values(r->rows, index->rel, r->new, values, isnull))
		return;
	initStringInfo(&key);
	initStringInfo(&payload);
	unique = mer_index_form(&key, &payload, index->mr, values, isnull, rowkey.data, rowkey.len);
	there = unique ? written_entry(index, &key) : NULL;
	if (there && !there->tombstone && !belongs_to(there, rowkey))
		duplicate(r, index, values, isnull);
	if (unique && there == NULL)
		claim(r, index, &key, rowkey);
	buf = mer_buf_get(index->mr->sid, index->mr->relid, true);
	/* Another row's entry may lie below a unique one. */
	mer_buf_push(buf, key.data, key.len, payload.data, payload.len,
				 mer_buf_shape(buf, attnums, n, index->mr->natts), cid, unique,
				 true)->has_big = payload.len > MER_BIG_BYTES;
}

/* Of a new row as it was.  What another row has taken over in this step is that one's. */
static void
remove_entry(MerRewriteRows *r, RowIndex *index, MerBytes rowkey, TupleTableSlot *slot, CommandId cid)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	StringInfoData key;
	MerVersion *there;

	if (!mer_index_values(r->rows, index->rel, slot, values, isnull))
		return;
	initStringInfo(&key);
	(void) mer_index_form(&key, NULL, index->mr, values, isnull, rowkey.data, rowkey.len);
	there = written_entry(index, &key);
	if (there && !there->tombstone && !belongs_to(there, rowkey))
		return;
	mer_buf_push(mer_buf_get(index->mr->sid, index->mr->relid, true), key.data, key.len,
				 NULL, 0, NULL, cid, true, true);
}

/* ---------- rows ---------- */

static void
put_row(MerRewriteRows *r, MerBytes key, bool replaces)
{
	MerRel	   *mr = mer_rel(r->rows);
	MerBuf	   *buf = mer_buf_get(mr->sid, mr->relid, false);
	CommandId	cid = GetCurrentCommandId(true);
	StringInfoData row;
	bool		has_big;

	initStringInfo(&row);
	mer_row_encode(&row, mr, r->new, &has_big);
	mer_buf_push(buf, key.data, key.len, row.data, row.len, mer_rel_shape(mr, buf), cid, replaces,
				 true)->has_big = has_big;
	for (int i = 0; i < r->nindexes; i++)
		put_entry(r, &r->indexes[i], key, cid);
}

static void
convert_and_put(MerRewriteRows *r, MerBytes key, HeapTuple was, bool replaces)
{
	MemoryContext old = MemoryContextSwitchTo(GetPerTupleMemoryContext(r->estate));

	convert(r, was);
	put_row(r, key, replaces);
	ExecClearTuple(r->new);
	MemoryContextSwitchTo(old);
	ResetPerTupleExprContext(r->estate);
}

static void
remove_row(MerRewriteRows *r, MerBytes key)
{
	MerRel	   *mr = mer_rel(r->rows);

	mer_buf_push(mer_buf_get(mr->sid, mr->relid, false), key.data, key.len, NULL, 0, NULL,
				 GetCurrentCommandId(true), true, true);
}

static MerScan *
scan_keys(Relation rel, const MerBytes *keys, int n)
{
	MerScanSpec spec = {.table = rel,.direction = ForwardScanDirection,.no_tids = true,
	.npoints = n,.points = keys};

	/* None of them was written before in this step: storage has them. */
	return mer_scan_begin(&spec, SnapshotAny);
}

/* New rows as they were, parallel to the keys; their entries go. */
static HeapTuple *
take_away(MerRewriteRows *r, const MerBytes *keys, int n)
{
	HeapTuple  *was = palloc0(n * sizeof(HeapTuple));
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(r->rows), mer_slot_ops());
	CommandId	cid = GetCurrentCommandId(true);
	MerScan    *scan = scan_keys(r->rows, keys, n);
	int			i = 0;

	while (mer_scan_next(scan, ForwardScanDirection, slot))
	{
		MerBytes	key;
		MemoryContext old;

		mer_scan_rowkey(scan, &key);
		while (mer_bytes_cmp(&keys[i], &key) != 0)
			i++;
		was[i] = ExecCopySlotHeapTuple(slot);
		old = MemoryContextSwitchTo(GetPerTupleMemoryContext(r->estate));
		for (int x = 0; x < r->nindexes; x++)
			remove_entry(r, &r->indexes[x], keys[i], slot, cid);
		MemoryContextSwitchTo(old);
		ResetPerTupleExprContext(r->estate);
	}
	mer_scan_end(scan);
	ExecDropSingleTupleTableSlot(slot);
	return was;
}

static void
put_back(MerRewriteRows *r, const MerBytes *keys, int n, HeapTuple *was)
{
	MerScan    *scan = scan_keys(r->table, keys, n);
	int			i = 0;

	while (mer_scan_next(scan, ForwardScanDirection, r->old))
	{
		MerBytes	key;

		CHECK_FOR_INTERRUPTS();
		mer_scan_rowkey(scan, &key);
		for (; mer_bytes_cmp(&keys[i], &key) != 0; i++)
			remove_row(r, keys[i]);
		convert_and_put(r, keys[i], was ? was[i] : NULL, true);
		i++;
	}
	for (; i < n; i++)
		remove_row(r, keys[i]);
	mer_scan_end(scan);
}

/* ---------- rows whose unique entries were taken over ---------- */

static int
by_key(const void *a, const void *b)
{
	return mer_bytes_cmp(&((const Claim *) a)->key, &((const Claim *) b)->key);
}

/* Rows of which storage has an entry that was written here for another row. */
static List *
former_owners(RowIndex *index)
{
	AttrNumber	attnum = 0;
	MerBytes   *keys = palloc(Max(index->n, 1) * sizeof(MerBytes));
	List	   *owners = NIL;
	int			from = 0;

	qsort(index->claims, index->n, sizeof(Claim), by_key);
	while (from < index->n)
	{
		MerPage    *page;
		int			i = from;
		int			to = Min(index->n, from + GET_KEYS);

		for (int j = from; j < to; j++)
			keys[j - from] = index->claims[j].key;
		page = mer_page_wait(mer_send_get(index->mr->sid, &attnum, 1, keys, to - from), 1, false, false);
		for (uint32 row = 0; row < page->nrows; row++)
		{
			MerRowRef  *ref = mer_page_row(page, row);
			MpReader	value = {ref->values, page->reply.body.end};
			MerBytes	owner;

			owner.data = mp_get_bytes(&value, &owner.len);
			while (mer_key_cmp(index->claims[i].key.data, index->claims[i].key.len,
							   ref->key, ref->klen) < 0)
				i++;
			if (mer_bytes_cmp(&owner, &index->claims[i].rowkey) != 0)
			{
				MerBytes   *found = palloc(sizeof(MerBytes));

				*found = keep(owner);
				owners = lappend(owners, found);
			}
			i++;
		}
		if (page->more && page->nrows == 0)
			elog(ERROR, "gateway answered nothing of a GET");
		from = page->more ? i : to;
		mer_page_free(page);
	}
	index->n = 0;
	pfree(keys);
	return owners;
}

static int
sorted_keys(List *found, MerBytes **keys)
{
	int			n = 0;
	int			unique = 0;

	*keys = palloc(Max(list_length(found), 1) * sizeof(MerBytes));
	foreach_ptr(MerBytes, key, found)
		(*keys)[n++] = *key;
	qsort(*keys, n, sizeof(MerBytes), mer_bytes_cmp);
	for (int i = 0; i < n; i++)
		if (unique == 0 || mer_bytes_cmp(&(*keys)[unique - 1], &(*keys)[i]) != 0)
			(*keys)[unique++] = (*keys)[i];
	return unique;
}

static void
refresh_keys(MerRewriteRows *r, const MerBytes *keys, int n)
{
	HeapTuple  *was = r->looks_back ? take_away(r, keys, n) : NULL;

	put_back(r, keys, n, was);
	r->refreshed += n;
}

/* Each round's rows have left their own values first, so no row comes twice. */
static void
settle_claims(MerRewriteRows *r)
{
	for (;;)
	{
		List	   *owners = NIL;
		MerBytes   *keys;
		int			n;

		for (int i = 0; i < r->nindexes; i++)
			if (r->indexes[i].n > 0)
				owners = list_concat(owners, former_owners(&r->indexes[i]));
		n = sorted_keys(owners, &keys);
		if (n == 0)
			return;
		if (r->refreshed + n > ROWS_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("too many rows have exchanged values of a unique index")));
		refresh_keys(r, keys, n);
	}
}

void
mer_rewrite_refresh(MerRewriteRows *r, MerBytes *keys, int n)
{
	if (n > 0)
		refresh_keys(r, keys, n);
	settle_claims(r);
}

bool
mer_rewrite_copy(MerRewriteRows *r, MerBytes *position, int budget, int64 *read)
{
	MerScanSpec spec = {.table = r->table,.direction = ForwardScanDirection,.no_tids = true,
	.limit = budget};
	MerScan    *scan;
	bool		ended = false;
	Size		bytes = 0;

	if (position->len > 0)
	{
		/* With its zero byte: the first key above it. */
		spec.lo = keep(*position).data;
		spec.lo_len = position->len + 1;
	}
	if (r->plan->end.len > 0)
	{
		spec.hi = r->plan->end.data;
		spec.hi_len = r->plan->end.len + 1;
	}
	scan = mer_scan_begin(&spec, SnapshotAny);
	while (*read < budget && bytes < STEP_BYTES)
	{
		uint64		before = mer_txn.bytes;
		MerBytes	key;

		if (!mer_scan_next(scan, ForwardScanDirection, r->old))
		{
			ended = true;
			break;
		}
		mer_scan_rowkey(scan, &key);
		*position = keep(key);
		convert_and_put(r, *position, NULL, false);
		bytes += mer_txn.bytes - before;
		(*read)++;
	}
	mer_scan_end(scan);
	settle_claims(r);
	return ended;
}
