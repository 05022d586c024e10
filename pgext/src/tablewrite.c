/*
 * tablewrite.c
 *	  Table access method: insert, update, delete and lock rows.
 *
 * Writes go to the buffer only.  Another transaction's change is never seen
 * here; it is found at COMMIT.
 */
#include "postgres.h"

#include "access/tableam.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "store.h"

#define ROW_LEASE_MIN 32
#define ROW_LEASE_MAX 65536

/* ---------- hidden ids ---------- */

static void
put_hidden_id(StringInfo key)
{
	static int64 next = 0;
	static int64 end = 0;
	static int	ask = ROW_LEASE_MIN;
	uint64		be;

	if (next >= end)
	{
		int64		granted = mer_lease(MER_LEASE_ROW, ask, &next);

		end = next + granted;
		ask = Min(ask * 4, ROW_LEASE_MAX);
	}
	be = pg_hton64((uint64) next++);
	appendBinaryStringInfo(key, &be, sizeof(be));
}

/* ---------- scratch space, one row at a time ---------- */

static StringInfo
scratch(StringInfo buf)
{
	if (buf->data && buf->maxlen > 1024 * 1024)
	{
		pfree(buf->data);
		buf->data = NULL;
	}
	if (buf->data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		initStringInfo(buf);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(buf);
	return buf;
}

static StringInfoData row_scratch;
static StringInfoData key_scratch;

static void
count_row(void)
{
	if (++mer_txn.rows > mer_limit("txn_rows"))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("transaction row limit exceeded")));
}

static MerVersion *
push_row(MerRel *mr, MerBuf *buf, TupleTableSlot *slot, StringInfo key,
		 CommandId cid, bool base_present)
{
	StringInfo	row = scratch(&row_scratch);
	MerVersion *v;
	bool		has_big;

	mer_row_encode(row, mr, slot, &has_big);
	count_row();
	v = mer_buf_push(buf, key->data, key->len, row->data, row->len,
					 mer_rel_shape(mr, buf), cid, base_present, buf->hidden && !base_present);
	v->has_big = has_big;
	return v;
}

static MerBuf *
table_buf(MerRel *mr)
{
	MerBuf	   *buf = mer_buf_get(mr->sid, mr->relid, false);

	buf->hidden = !mr->organised;
	buf->marks = mr->marks_sid;
	return buf;
}

/* ---------- insert ---------- */

static void
write_insert(Relation rel, TupleTableSlot *slot, CommandId cid, int options,
			 struct BulkInsertStateData *bistate)
{
	MerRel	   *mr = mer_rel(rel);
	StringInfo	key = scratch(&key_scratch);
	MerVersion *v;

	if (mr->organised)
		mer_rowkey_put(key, mr, slot);
	else
		put_hidden_id(key);
	v = push_row(mr, table_buf(mr), slot, key, cid, false);
	slot->tts_tableOid = RelationGetRelid(rel);
	mer_tid_assign(v, &slot->tts_tid);
}

static void
write_insert_speculative(Relation rel, TupleTableSlot *slot, CommandId cid, int options,
						 struct BulkInsertStateData *bistate, uint32 token)
{
	write_insert(rel, slot, cid, options, bistate);
}

static void
write_complete_speculative(Relation rel, TupleTableSlot *slot, uint32 token, bool succeeded)
{
	if (!succeeded)
	{
		mer_undo_kill(mer_tid_version(&slot->tts_tid));
		mer_txn.rows--;
	}
}

static void
write_multi_insert(Relation rel, TupleTableSlot **slots, int nslots, CommandId cid,
				   int options, struct BulkInsertStateData *bistate)
{
	for (int i = 0; i < nslots; i++)
		write_insert(rel, slots[i], cid, options, bistate);
}

/* ---------- may this version be changed? ---------- */

/* The live version right above one, or NULL: it is the newest. */
static MerVersion *
successor(MerVersion *version)
{
	MerEntry   *e = version->entry;
	MerVersion *above = NULL;

	if (e == NULL)
	{
		MerBuf	   *buf = mer_buf_find(version->sid);

		e = buf ? mer_entry_find(buf, version->key, version->klen) : NULL;
		if (e == NULL)
			return NULL;
	}
	for (MerVersion *v = e->newest; v && v != version; v = v->older)
		if (!v->dead)
			above = v;
	return above;
}

static TM_Result
check_version(MerVersion *version, CommandId cid, TM_FailureData *tmfd)
{
	MerVersion *next = successor(version);

	if (version->dead)
		return TM_Invisible;
	if (next == NULL)
		return version->entry && version->cid >= cid ? TM_Invisible : TM_Ok;
	if (next->cid < cid)
		return TM_Invisible;
	/* MERGE wants to know that it was this transaction. */
	mer_tid_assign(version, &tmfd->ctid);
	tmfd->xmax = GetCurrentTransactionId();
	tmfd->cmax = next->cid;
	tmfd->traversed = false;
	return TM_SelfModified;
}

static MerVersion *
version_of(Relation rel, ItemPointer tid)
{
	MerVersion *v = mer_tid_version(tid);

	if (v->sid != mer_rel(rel)->sid)
		elog(ERROR, "meridian: row version belongs to another relation");
	return v;
}

/* ---------- delete ---------- */

static TM_Result
write_delete(Relation rel, ItemPointer tid, CommandId cid, Snapshot snapshot,
			 Snapshot crosscheck, bool wait, TM_FailureData *tmfd, bool changingPart)
{
	MerVersion *v = version_of(rel, tid);
	TM_Result	result = check_version(v, cid, tmfd);
	List	   *indexes;

	if (result != TM_Ok)
		return result;
	indexes = mer_index_list(rel);
	if (indexes != NIL)
	{
		TupleTableSlot *old = table_slot_create(rel, NULL);

		mer_slot_store_version(old, rel, v);
		mer_index_delete_all(rel, indexes, old, v->key, v->klen, cid);
		ExecDropSingleTupleTableSlot(old);
		list_free(indexes);
	}
	count_row();
	mer_buf_push(table_buf(mer_rel(rel)), v->key, v->klen, NULL, 0, NULL, cid, true, false);
	return TM_Ok;
}

/* ---------- update ---------- */

/* A new row version under its own key; the old key ends if that is another. */
static MerVersion *
push_update(Relation rel, MerVersion *old, TupleTableSlot *slot, CommandId cid)
{
	MerRel	   *mr = mer_rel(rel);
	MerBuf	   *buf = table_buf(mr);
	StringInfo	key = scratch(&key_scratch);
	MerVersion *v;

	if (mr->organised)
		mer_rowkey_put(key, mr, slot);
	else
		appendBinaryStringInfo(key, old->key, old->klen);
	if (mer_key_cmp(key->data, key->len, old->key, old->klen) == 0)
		return push_row(mr, buf, slot, key, cid, true);
	mer_buf_push(buf, old->key, old->klen, NULL, 0, NULL, cid, true, false);
	v = push_row(mr, buf, slot, key, cid, false);
	if (rel->rd_pkindex == InvalidOid)
		list_free(RelationGetIndexList(rel));
	(void) mer_rowkey_check(rel->rd_pkindex, v, UNIQUE_CHECK_YES);
	return v;
}

static TM_Result
write_update(Relation rel, ItemPointer otid, TupleTableSlot *slot, CommandId cid,
			 Snapshot snapshot, Snapshot crosscheck, bool wait, TM_FailureData *tmfd,
			 LockTupleMode *lockmode, TU_UpdateIndexes *update_indexes)
{
	MerVersion *old = version_of(rel, otid);
	TM_Result	result = check_version(old, cid, tmfd);
	List	   *indexes;
	MerVersion *v;

	*lockmode = LockTupleExclusive;
	*update_indexes = TU_None;
	if (result != TM_Ok)
		return result;
	v = push_update(rel, old, slot, cid);
	slot->tts_tableOid = RelationGetRelid(rel);
	mer_tid_assign(v, &slot->tts_tid);

	/* Entries are maintained here, for only we know the old ones. */
	indexes = mer_index_list(rel);
	if (indexes != NIL)
	{
		TupleTableSlot *before = table_slot_create(rel, NULL);

		mer_slot_store_version(before, rel, old);
		mer_index_update_all(rel, indexes, before, slot, old->key, old->klen, v, cid);
		ExecDropSingleTupleTableSlot(before);
		list_free(indexes);
	}
	return TM_Ok;
}

/* ---------- lock ---------- */

static TM_Result
write_lock(Relation rel, ItemPointer tid, Snapshot snapshot, TupleTableSlot *slot,
		   CommandId cid, LockTupleMode mode, LockWaitPolicy wait_policy, uint8 flags,
		   TM_FailureData *tmfd)
{
	MerVersion *v = version_of(rel, tid);
	TM_Result	result = check_version(v, cid, tmfd);

	tmfd->traversed = false;
	if (result == TM_Invisible && v->entry && !v->dead && flags == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("%s command cannot affect row a second time", "ON CONFLICT DO UPDATE"),
				 errhint("Ensure that no rows proposed for insertion within the same command have duplicate constrained values.")));
	if (result != TM_Ok)
		return result;
	if (v->entry == NULL || v->entry->base_present)
		mer_lock_row(v->sid, v->key, v->klen, mode);
	mer_slot_store_version(slot, rel, v);
	return TM_Ok;
}

void
mer_write_methods(TableAmRoutine *routine)
{
	routine->tuple_insert = write_insert;
	routine->tuple_insert_speculative = write_insert_speculative;
	routine->tuple_complete_speculative = write_complete_speculative;
	routine->multi_insert = write_multi_insert;
	routine->tuple_delete = write_delete;
	routine->tuple_update = write_update;
	routine->tuple_lock = write_lock;
}
