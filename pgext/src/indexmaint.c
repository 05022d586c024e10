/*
 * indexmaint.c
 *	  Entries of secondary indexes: made, replaced and removed with their rows.
 *
 * PostgreSQL never deletes index entries, so updates and deletions compute the
 * old row's entries here and put tombstones on them.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "catalog/index.h"
#include "catalog/pg_index.h"
#include "executor/executor.h"
#include "utils/datum.h"
#include "utils/rel.h"

#include "store.h"

/*
 * Column 0 (the row key), and what cannot be rebuilt from the entry's key: a key
 * column whose encoding loses something, and all columns behind it.
 */
int
mer_index_payload_attnums(MerRel *index, AttrNumber *attnums)
{
	int			n = 0;
	bool		lost = false;

	attnums[n++] = 0;
	for (int i = 0; i < index->natts; i++)
	{
		lost = lost || i >= index->nkeys || !mer_key_lossless(&index->keys[i]);
		if (lost)
			attnums[n++] = i + 1;
	}
	return n;
}

static void
check_key_size(StringInfo key)
{
	if (key->len > mer_limit("key_size_bytes"))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("key size too large")));
}

bool
mer_index_form(StringInfo key, StringInfo payload, MerRel *index,
			   const Datum *values, const bool *isnull,
			   const char *rowkey, uint32 rowklen)
{
	AttrNumber	attnums[INDEX_MAX_KEYS + 1];
	int			n;
	bool		has_null = false;
	bool		unique;

	resetStringInfo(key);
	for (int i = 0; i < index->nkeys; i++)
	{
		mer_key_put(key, &index->keys[i], values[i], isnull[i]);
		has_null |= isnull[i];
	}
	unique = index->unique && (!has_null || index->nulls_not_distinct);
	if (!unique)
		appendBinaryStringInfo(key, rowkey, rowklen);
	check_key_size(key);
	if (payload == NULL)
		return unique;
	resetStringInfo(payload);
	n = mer_index_payload_attnums(index, attnums);
	mp_put_array(payload, n);
	mp_put_bin(payload, rowkey, rowklen);
	for (int i = 1; i < n; i++)
	{
		int			a = attnums[i] - 1;

		mer_value_put(payload, &index->cols[a], values[a], isnull[a]);
	}
	return unique;
}

static bool
is_plain(Relation index)
{
	return heap_attisnull(index->rd_indextuple, Anum_pg_index_indexprs, NULL) &&
		heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL);
}

/* Index values of a row; false if the index's predicate leaves the row out. */
bool
mer_index_values(Relation heap, Relation index, TupleTableSlot *slot,
				 Datum *values, bool *isnull)
{
	IndexInfo  *info;
	EState	   *estate;
	ExprContext *econtext;
	MemoryContext old;
	bool		in_index = true;

	if (is_plain(index))
	{
		for (int i = 0; i < index->rd_index->indnatts; i++)
			values[i] = slot_getattr(slot, index->rd_index->indkey.values[i], &isnull[i]);
		return true;
	}
	info = BuildIndexInfo(index);
	estate = CreateExecutorState();
	econtext = GetPerTupleExprContext(estate);
	econtext->ecxt_scantuple = slot;
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(estate));
	if (info->ii_Predicate != NIL)
		in_index = ExecQual(ExecPrepareQual(info->ii_Predicate, estate), econtext);
	if (in_index)
		FormIndexDatum(info, slot, estate, values, isnull);
	MemoryContextSwitchTo(old);
	if (in_index)
		for (int i = 0; i < index->rd_index->indnatts; i++)
		{
			CompactAttribute *att = TupleDescCompactAttr(RelationGetDescr(index), i);

			if (!isnull[i])
				values[i] = datumCopy(values[i], att->attbyval, att->attlen);
		}
	FreeExecutorState(estate);
	return in_index;
}

static bool
refuse_duplicate(MerVersion *row, Oid index, IndexUniqueCheck check)
{
	if (check == UNIQUE_CHECK_PARTIAL)
		return false;
	mer_unique_violation(index, row);
}

/*
 * Our own chain decides when we have touched the key, else storage, asked at
 * the next flush.  ON CONFLICT (PARTIAL) has just looked there itself.
 */
bool
mer_rowkey_check(Oid pkey, MerVersion *row, IndexUniqueCheck check)
{
	MerVersion *older = row->older;

	while (older && older->dead)
		older = older->older;
	if (older && !older->tombstone)
		return refuse_duplicate(row, pkey, check);
	if (older == NULL && check != UNIQUE_CHECK_PARTIAL)
		mer_check_queue(row->sid, pkey, row->key, row->klen, row);
	return true;
}

static bool
insert_formed(MerRel *index, StringInfo key, StringInfo payload, bool unique,
			  MerVersion *row, CommandId cid, IndexUniqueCheck check)
{
	MerBuf	   *buf = mer_buf_get(index->sid, index->relid, true);
	AttrNumber	attnums[INDEX_MAX_KEYS + 1];
	MerEntry   *e = unique ? mer_entry_find(buf, key->data, key->len) : NULL;
	MerVersion *present = e ? mer_entry_newest(e) : NULL;
	MerVersion *entry;
	int			n;

	if (present && !present->tombstone && check != UNIQUE_CHECK_NO)
		return refuse_duplicate(row, index->relid, check);
	n = mer_index_payload_attnums(index, attnums);
	entry = mer_buf_push(buf, key->data, key->len, payload->data, payload->len,
						 mer_buf_shape(buf, attnums, n, index->natts), cid, false, !unique);
	entry->has_big = payload->len > MER_BIG_BYTES;
	if (unique && present == NULL && check == UNIQUE_CHECK_YES)
		mer_check_queue(index->sid, index->relid, entry->key, entry->klen, row);
	return true;
}

bool
mer_index_insert_entry(Relation index, const Datum *values, const bool *isnull,
					   MerVersion *row, CommandId cid, IndexUniqueCheck check)
{
	MerRel	   *mr = mer_rel(index);
	StringInfoData key,
				payload;
	bool		unique;
	bool		ok;

	initStringInfo(&key);
	initStringInfo(&payload);
	unique = mer_index_form(&key, &payload, mr, values, isnull, row->key, row->klen);
	ok = insert_formed(mr, &key, &payload, unique, row, cid, check);
	pfree(key.data);
	pfree(payload.data);
	return ok;
}

List *
mer_index_list(Relation heap)
{
	List	   *all;
	List	   *result = NIL;
	ListCell   *lc;

	if (!heap->rd_rel->relhasindex)
		return NIL;
	all = RelationGetIndexList(heap);
	foreach(lc, all)
	{
		Oid			oid = lfirst_oid(lc);

		if (mer_rel(heap)->organised && oid == heap->rd_pkindex)
			continue;
		result = lappend_oid(result, oid);
	}
	list_free(all);
	return result;
}

/* ---------- indexes that a job is filling (jobs_build.c) ---------- */

static bool
is_building(Relation index)
{
	return !index->rd_index->indisvalid;
}

typedef enum Owner
{
	OWNER_NONE,
	OWNER_US,
	OWNER_OTHER
} Owner;

static Owner
owner_in_row(MpReader r, const char *rowkey, uint32 rowklen)
{
	uint32		len;
	const char *owner = mp_get_bytes(&r, &len);

	return mer_key_cmp(owner, len, rowkey, rowklen) == 0 ? OWNER_US : OWNER_OTHER;
}

/* Whose is the entry under a unique key, as this transaction sees it? */
static Owner
entry_owner(MerRel *mr, StringInfo key, const char *rowkey, uint32 rowklen)
{
	MerBuf	   *buf = mer_buf_find(mr->sid);
	MerEntry   *e = buf ? mer_entry_find(buf, key->data, key->len) : NULL;
	MerVersion *v = e ? mer_entry_newest(e) : NULL;
	MerBytes	wanted = {key->data, key->len};
	AttrNumber	attnum = 0;
	MerPage    *page;
	Owner		owner = OWNER_NONE;

	if (v)
	{
		MpReader	r = {v->row, v->row + v->rowlen};

		if (v->tombstone)
			return OWNER_NONE;
		mp_get_array(&r);
		return owner_in_row(r, rowkey, rowklen);
	}
	if (mer_txn_created(mr->sid))
		return OWNER_NONE;
	mer_checks_flush();
	page = mer_page_wait(mer_send_get(mr->sid, &attnum, 1, &wanted, 1), 1, false, false);
	if (page->nrows == 1)
		owner = owner_in_row((MpReader) {mer_page_row(page, 0)->values, page->reply.body.end},
							 rowkey, rowklen);
	mer_page_free(page);
	return owner;
}

/*
 * May a row's writer touch this entry?  While a unique index is being filled,
 * old rows may share a key: the entry is then another row's, which must keep it
 * until the job has found the duplicate.  The key is locked, so that the answer
 * still holds at COMMIT.
 */
static bool
is_ours(Relation index, MerRel *mr, StringInfo key, bool unique, const char *rowkey, uint32 rowklen)
{
	if (!unique || !is_building(index) ||
		entry_owner(mr, key, rowkey, rowklen) != OWNER_OTHER)
		return true;
	mer_lock_row(mr->sid, key->data, key->len, LockTupleNoKeyExclusive);
	return false;
}

/*
 * A row was written and its entry stays the same: while the index is being
 * filled the entry is written all the same, for the job relies on it.
 */
static void
write_again(Relation index, MerRel *mr, StringInfo key, StringInfo payload, bool unique,
			MerVersion *row, CommandId cid)
{
	AttrNumber	attnums[INDEX_MAX_KEYS + 1];
	int			n = mer_index_payload_attnums(mr, attnums);
	MerBuf	   *buf;

	if (!is_ours(index, mr, key, unique, row->key, row->klen))
		return;
	buf = mer_buf_get(mr->sid, mr->relid, true);
	mer_buf_push(buf, key->data, key->len, payload->data, payload->len,
				 mer_buf_shape(buf, attnums, n, mr->natts), cid, true,
				 !unique)->has_big = payload->len > MER_BIG_BYTES;
}

void
mer_index_delete_all(Relation heap, List *indexes, TupleTableSlot *old,
					 const char *rowkey, uint32 rowklen, CommandId cid)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	StringInfoData key;
	ListCell   *lc;

	initStringInfo(&key);
	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), RowExclusiveLock);
		MerRel	   *mr = mer_rel(index);

		if (mer_index_values(heap, index, old, values, isnull))
		{
			bool		unique = mer_index_form(&key, NULL, mr, values, isnull, rowkey, rowklen);

			if (is_ours(index, mr, &key, unique, rowkey, rowklen))
				mer_buf_push(mer_buf_get(mr->sid, mr->relid, true), key.data, key.len,
							 NULL, 0, NULL, cid, true, !unique);
		}
		index_close(index, NoLock);
	}
	pfree(key.data);
}

typedef struct Formed
{
	StringInfoData key;
	StringInfoData payload;
	bool		present;
	bool		unique;
} Formed;

static void
form(Formed *f, Relation heap, Relation index, MerRel *mr, TupleTableSlot *slot,
	 const char *rowkey, uint32 rowklen)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	f->present = mer_index_values(heap, index, slot, values, isnull);
	if (f->present)
		f->unique = mer_index_form(&f->key, &f->payload, mr, values, isnull, rowkey, rowklen);
}

static bool
same_bytes(StringInfo a, StringInfo b)
{
	return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

static void
update_one(Relation heap, Relation index, Formed *was, Formed *now, TupleTableSlot *old,
		   TupleTableSlot *new, const char *old_key, uint32 old_klen, MerVersion *row,
		   CommandId cid)
{
	MerRel	   *mr = mer_rel(index);
	bool		same_key;

	form(was, heap, index, mr, old, old_key, old_klen);
	form(now, heap, index, mr, new, row->key, row->klen);
	same_key = was->present && now->present && same_bytes(&was->key, &now->key);
	if (same_key && same_bytes(&was->payload, &now->payload))
	{
		if (is_building(index))
			write_again(index, mr, &now->key, &now->payload, now->unique, row, cid);
		return;
	}
	if (mr->unique && !same_key)
		row->entry->identity = true;
	if (was->present && is_ours(index, mr, &was->key, was->unique, old_key, old_klen))
		mer_buf_push(mer_buf_get(mr->sid, mr->relid, true), was->key.data, was->key.len,
					 NULL, 0, NULL, cid, true, !was->unique);
	if (now->present)
		(void) insert_formed(mr, &now->key, &now->payload, now->unique, row, cid,
							 now->unique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO);
}

void
mer_index_update_all(Relation heap, List *indexes, TupleTableSlot *old,
					 TupleTableSlot *new, const char *old_key, uint32 old_klen,
					 MerVersion *row, CommandId cid)
{
	Formed		was,
				now;
	ListCell   *lc;

	initStringInfo(&was.key);
	initStringInfo(&was.payload);
	initStringInfo(&now.key);
	initStringInfo(&now.payload);
	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), RowExclusiveLock);

		update_one(heap, index, &was, &now, old, new, old_key, old_klen, row, cid);
		index_close(index, NoLock);
	}
	pfree(was.key.data);
	pfree(was.payload.data);
	pfree(now.key.data);
	pfree(now.payload.data);
}
