/*
 * slot.c
 *	  Slots of our tables, and encoded rows into and out of them.
 *
 * A slot is a virtual one that also answers for system columns.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/transam.h"
#include "access/xact.h"
#include "utils/memutils.h"

#include "store.h"

static TupleTableSlotOps slot_ops;
static MemoryContext store_cxt;

static Datum
our_getsysattr(TupleTableSlot *slot, int attnum, bool *isnull)
{
	*isnull = false;
	switch (attnum)
	{
		case MinTransactionIdAttributeNumber:
			return TransactionIdGetDatum(FrozenTransactionId);
		case MaxTransactionIdAttributeNumber:
			return TransactionIdGetDatum(InvalidTransactionId);
		case MinCommandIdAttributeNumber:
		case MaxCommandIdAttributeNumber:
			return CommandIdGetDatum(FirstCommandId);
		default:
			elog(ERROR, "invalid system column %d", attnum);
	}
}

/* Foreign keys ask this about the old version of an updated row. */
static bool
our_is_current_xact_tuple(TupleTableSlot *slot)
{
	MerVersion *version = mer_tid_lookup(&slot->tts_tid);

	return version != NULL && version->entry != NULL;
}

static HeapTuple
our_copy_heap_tuple(TupleTableSlot *slot)
{
	HeapTuple	tuple = TTSOpsVirtual.copy_heap_tuple(slot);

	tuple->t_self = slot->tts_tid;
	tuple->t_tableOid = slot->tts_tableOid;
	return tuple;
}

void
mer_slot_init(void)
{
	slot_ops = TTSOpsVirtual;
	slot_ops.getsysattr = our_getsysattr;
	slot_ops.is_current_xact_tuple = our_is_current_xact_tuple;
	slot_ops.copy_heap_tuple = our_copy_heap_tuple;
}

const TupleTableSlotOps *
mer_slot_ops(void)
{
	return &slot_ops;
}

bool
mer_slot_is_ours(TupleTableSlot *slot)
{
	return slot->tts_ops == &slot_ops;
}

/*
 * Columns as the slot sees them.  While a table is being rewritten, old rows
 * are read under the old descriptor.
 */
const MerColumn *
mer_slot_columns(TupleTableSlot *slot, Relation rel)
{
	TupleDesc	desc = slot->tts_tupleDescriptor;
	MerRel	   *mr = mer_rel(rel);
	MerColumn  *cols;
	bool		same = desc == RelationGetDescr(rel) || desc->natts == mr->natts;

	if (desc != RelationGetDescr(rel))
		for (int i = 0; same && i < desc->natts; i++)
		{
			Form_pg_attribute att = TupleDescAttr(desc, i);

			same = mr->cols[i].dropped || (!att->attisdropped &&
										   att->atttypid == TupleDescAttr(RelationGetDescr(rel), i)->atttypid);
		}
	if (same)
		return mr->cols;
	cols = palloc0(desc->natts * sizeof(MerColumn));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			cols[i].dropped = true;
		else
			mer_column_init(&cols[i], att);
		cols[i].attnum = i + 1;
	}
	return cols;
}

static void
fill_missing(TupleTableSlot *slot, int from)
{
	TupleDesc	desc = slot->tts_tupleDescriptor;

	for (int i = from; i < desc->natts; i++)
		if (!TupleDescAttr(desc, i)->attisdropped)
			slot->tts_values[i] = getmissingattr(desc, i + 1, &slot->tts_isnull[i]);
}

void
mer_slot_decode(TupleTableSlot *slot, const MerColumn *cols,
				const MerShape *shape, MpReader *r)
{
	int			natts = slot->tts_tupleDescriptor->natts;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, natts);
	for (int i = 0; i < shape->n; i++)
	{
		int			a = shape->attnums[i] - 1;

		if (unlikely(a >= natts || cols[a].dropped))
			mp_skip(r);
		else
			slot->tts_values[a] = mer_value_get(r, &cols[a], &slot->tts_isnull[a]);
	}
	if (unlikely(shape->natts < natts))
		fill_missing(slot, shape->natts);
}

void
mer_slot_finish(TupleTableSlot *slot, Relation rel, ItemPointer tid)
{
	slot->tts_flags &= ~TTS_FLAG_EMPTY;
	slot->tts_nvalid = slot->tts_tupleDescriptor->natts;
	slot->tts_tid = *tid;
	slot->tts_tableOid = RelationGetRelid(rel);
}

void
mer_slot_store_version(TupleTableSlot *slot, Relation rel, MerVersion *version)
{
	MpReader	r;
	ItemPointerData tid;
	MemoryContext old;

	if (version->row == NULL)
	{
		if (version->tombstone || version->entry)
			elog(ERROR, "meridian: row version has no row");
		mer_version_fetch(version, rel);
	}
	if (store_cxt == NULL)
		store_cxt = AllocSetContextCreate(TopMemoryContext, "meridian slot",
										  ALLOCSET_DEFAULT_SIZES);
	r.p = version->row;
	r.end = version->row + version->rowlen;
	old = MemoryContextSwitchTo(store_cxt);
	if (mp_get_array(&r) != (uint32) version->shape->n)
		elog(ERROR, "meridian: row does not fit its shape");
	mer_slot_decode(slot, mer_slot_columns(slot, rel), version->shape, &r);
	MemoryContextSwitchTo(old);
	mer_tid_assign(version, &tid);
	mer_slot_finish(slot, rel, &tid);
	ExecMaterializeSlot(slot);
	MemoryContextReset(store_cxt);
}

/* ---------- encoding ---------- */

const MerShape *
mer_rel_shape(MerRel *rel, MerBuf *buf)
{
	AttrNumber	attnums[MaxHeapAttributeNumber];
	int			n = 0;

	for (int i = 0; i < rel->natts; i++)
		if (!rel->cols[i].dropped)
			attnums[n++] = i + 1;
	return mer_buf_shape(buf, attnums, n, rel->natts);
}

void
mer_row_encode(StringInfo buf, MerRel *rel, TupleTableSlot *slot, bool *has_big)
{
	int			n = 0;
	int			before;

	slot_getallattrs(slot);
	for (int i = 0; i < rel->natts; i++)
		n += !rel->cols[i].dropped;
	*has_big = false;
	mp_put_array(buf, n);
	for (int i = 0; i < rel->natts; i++)
	{
		if (rel->cols[i].dropped)
			continue;
		before = buf->len;
		mer_value_put(buf, &rel->cols[i], slot->tts_values[i], slot->tts_isnull[i]);
		if (likely(buf->len - before <= MER_BIG_BYTES))
			continue;
		*has_big = true;
		/* The value's own header does not count. */
		if (buf->len - before - 5 > mer_limit("column_size_bytes"))
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("maximum column size exceeded")));
	}
	if (buf->len > mer_limit("row_size_bytes"))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("maximum row size exceeded")));
}

/* The row key of an organised table. */
void
mer_rowkey_put(StringInfo buf, MerRel *rel, TupleTableSlot *slot)
{
	for (int i = 0; i < rel->nkeys; i++)
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, rel->keys[i].attnum, &isnull);

		mer_key_put(buf, &rel->keys[i], value, isnull);
	}
	if (buf->len > mer_limit("key_size_bytes"))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("key size too large")));
}
