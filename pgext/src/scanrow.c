/*
 * scanrow.c
 *	  The row a scan stands on: its TID, its values, its place in an index; and
 *	  marked positions.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "scan.h"

/* ---------- the row the scan stands on ---------- */

static MerBytes
stored_rowkey(MerScan *scan)
{
	MerRowRef  *ref = scan->ref;
	MerBytes	key;

	if (scan->index == NULL || (scan->entry && scan->joined))
	{
		key.data = ref->key;
		key.len = ref->klen;
	}
	else if (scan->joined)
	{
		key.data = ref->rowkey;
		key.len = ref->rowklen;
	}
	else
	{
		MpReader	r = {ref->values, scan->page->reply.body.end};

		key.data = mp_get_bytes(&r, &key.len);
	}
	return key;
}

static void
stored_tid(MerScan *scan, ItemPointer tid)
{
	MerBytes	key = stored_rowkey(scan);
	MerPage    *page = scan->entry ? scan->extra : scan->page;
	MerVersion *v;
	MpReader	r;

	v = mer_tid_stored(scan->table->sid, key.data, key.len, NULL, 0, NULL);
	if (scan->tids == MER_TIDS_ROWS && v->row == NULL && !mer_tids_full())
	{
		StringInfoData row;
		MerBuf	   *buf = mer_buf_get(scan->table->sid, scan->table->relid, false);

		r.p = scan->ref->values;
		r.end = page->reply.body.end;
		if (scan->ref->end)
			r.p = scan->ref->end;
		else
			for (uint32 i = 0; i < page->nvalues; i++)
				mp_skip(&r);
		scan->ref->end = r.p;
		initStringInfo(&row);
		mp_put_array(&row, scan->shape->n);
		appendBinaryStringInfo(&row, scan->ref->values, r.p - scan->ref->values);
		(void) mer_tid_stored(scan->table->sid, key.data, key.len, row.data, row.len,
							  mer_buf_shape(buf, scan->shape->attnums, scan->shape->n,
											scan->shape->natts));
		pfree(row.data);
	}
	/* Found again by the same key without asking: statements come back to rows. */
	if (v->row && scan->spec.point && scan->joined && !scan->entry)
		mer_tid_link(scan->sid, scan->ref->key, scan->ref->klen, v);
	mer_tid_assign(v, tid);
}

/*
 * The entry is not ours, so it is as it was read; its row may be ours by now.
 * As of one tau_start storage would answer both again.
 */
bool
mer_scan_known_entry(MerScan *scan)
{
	MerVersion *row;
	MerEntry   *e;
	MerVersion *v;

	if (!scan->joined || !scan->stored)
		return false;
	row = mer_tid_find_stored(scan->sid, scan->spec.lo, scan->spec.lo_len);
	if (row == NULL)
		return false;
	e = scan->local_rows ? mer_entry_find(scan->local_rows, row->key, row->klen) : NULL;
	v = e ? mer_entry_visible(e, scan->cid_limit) : NULL;
	if (v && v->tombstone)
		return false;
	scan->version = v ? v : row;
	scan->where = AT_ROW;
	scan->pos = scan->spec.lo;
	scan->poslen = scan->spec.lo_len;
	return true;
}

/*
 * The version below an index entry, without its row: ours if we have replaced
 * the stored one.
 */
static void
entry_tid(MerScan *scan, ItemPointer tid)
{
	MerBytes	key = scan->entry ? mer_entry_rowkey(scan->entry) : stored_rowkey(scan);
	MerEntry   *e = scan->local_rows ?
		mer_entry_find(scan->local_rows, key.data, key.len) : NULL;
	MerVersion *v = e ? mer_entry_visible(e, scan->cid_limit) : NULL;

	if (v == NULL)
		v = mer_tid_stored(scan->table->sid, key.data, key.len, NULL, 0, NULL);
	mer_tid_assign(v, tid);
}

void
mer_scan_tid(MerScan *scan, ItemPointer tid)
{
	if (scan->version)
		mer_tid_assign(scan->version, tid);
	else if (scan->tids == MER_TIDS_NONE)
		mer_tid_none(tid);
	else if (scan->index && !scan->joined)
		entry_tid(scan, tid);
	else
		stored_tid(scan, tid);
}

void
mer_scan_rowkey(MerScan *scan, MerBytes *key)
{
	if (scan->version)
	{
		key->data = scan->version->key;
		key->len = scan->version->klen;
	}
	else
		*key = scan->entry && !scan->joined ? mer_entry_rowkey(scan->entry) : stored_rowkey(scan);
}

/* A TID whose row is fetched again when somebody asks for it. */
void
mer_scan_key_tid(MerScan *scan, ItemPointer tid)
{
	MerBytes	key;

	if (scan->version)
		mer_tid_assign(scan->version, tid);
	else if (scan->index && !scan->joined)
		entry_tid(scan, tid);
	else
	{
		mer_scan_rowkey(scan, &key);
		mer_tid_assign(mer_tid_stored(scan->table->sid, key.data, key.len, NULL, 0, NULL), tid);
	}
}

void
mer_scan_row(MerScan *scan, TupleTableSlot *slot)
{
	ItemPointerData tid;
	MemoryContext old;
	const MerShape *shape;
	MpReader	r;

	ExecClearTuple(slot);
	MemoryContextReset(scan->row_cxt);
	old = MemoryContextSwitchTo(scan->row_cxt);
	if (scan->spec.late_tids)
		mer_tid_none(&tid);
	else
		mer_scan_tid(scan, &tid);
	if (scan->version)
	{
		r.p = scan->version->row;
		r.end = r.p + scan->version->rowlen;
		shape = scan->version->shape;
		if (mp_get_array(&r) != (uint32) shape->n)
			elog(ERROR, "meridian: row does not fit its shape");
	}
	else
	{
		MerPage    *page = scan->entry ? scan->extra : scan->page;

		r.p = scan->ref->values;
		r.end = page->reply.body.end;
		shape = scan->shape;
	}
	mer_slot_decode(slot, mer_slot_columns(slot, scan->heap), shape, &r);
	if (scan->ref && !scan->version)
		scan->ref->end = r.p;
	mer_slot_finish(slot, scan->heap, &tid);
	MemoryContextSwitchTo(old);
}

void
mer_scan_keep(MerScan *scan, TupleTableSlot *slot)
{
	mer_scan_tid(scan, &slot->tts_tid);
}

bool
mer_scan_next(MerScan *scan, ScanDirection direction, TupleTableSlot *slot)
{
	if (!mer_scan_advance(scan, direction))
	{
		ExecClearTuple(slot);
		return false;
	}
	mer_scan_row(scan, slot);
	return true;
}

void
mer_scan_entry(MerScan *scan, MerBytes *key, MpReader *payload)
{
	if (scan->entry)
	{
		key->data = scan->entry->key;
		key->len = scan->entry->klen;
		payload->p = scan->entry->row;
		payload->end = payload->p + scan->entry->rowlen;
		mp_get_array(payload);
	}
	else
	{
		key->data = scan->ref->key;
		key->len = scan->ref->klen;
		payload->p = scan->ref->values;
		payload->end = scan->page->reply.body.end;
	}
}

/* ---------- mark and restore ---------- */

void
mer_scan_mark(MerScan *scan)
{
	scan->mark_where = scan->where;
	resetStringInfo(&scan->mark);
	if (scan->where == AT_ROW)
		appendBinaryStringInfo(&scan->mark, scan->pos, scan->poslen);
	if (scan->spec.npoints > 0)
		appendBinaryStringInfo(&scan->mark, (char *) &scan->point, sizeof(int));
}

/* Is the key between the edges of the page, so that the page still serves? */
static bool
page_covers(MerScan *scan)
{
	MerPage    *page = scan->page;
	MerRowRef  *ref;

	if (page == NULL)
		return true;
	if (page->nrows == 0)
		return !scan->more_before && !scan->more_after;
	ref = mer_page_row(page, 0);
	if (scan->more_before &&
		(scan->where == AT_START ||
		 (scan->where == AT_ROW && mer_key_cmp(scan->pos, scan->poslen, ref->key, ref->klen) < 0)))
		return false;
	ref = mer_page_row(page, page->nrows - 1);
	return !(scan->more_after &&
			 (scan->where == AT_END ||
			  (scan->where == AT_ROW && mer_key_cmp(scan->pos, scan->poslen, ref->key, ref->klen) > 0)));
}

void
mer_scan_restore(MerScan *scan)
{
	mer_scan_clear_row(scan);
	if (scan->spec.npoints > 0)
	{
		memcpy(&scan->point, scan->mark.data + scan->mark.len - sizeof(int), sizeof(int));
		return;
	}
	scan->where = scan->mark_where;
	resetStringInfo(&scan->pos_copy);
	appendBinaryStringInfo(&scan->pos_copy, scan->mark.data, scan->mark.len);
	scan->pos = scan->pos_copy.data;
	scan->poslen = scan->mark.len;
	if (!page_covers(scan))
		mer_scan_drop_page(scan);
	scan->last_direction = NoMovementScanDirection;
}

/* ---------- one row by its key ---------- */

bool
mer_fetch_row(Relation table, const char *key, uint32 len, Snapshot snapshot,
			  TupleTableSlot *slot)
{
	MerScanSpec spec = {.table = table,.lo = key,.lo_len = len,.point = true,
	.direction = ForwardScanDirection,.limit = 1};
	MerScan    *scan = mer_scan_begin(&spec, snapshot);
	bool		found = mer_scan_next(scan, ForwardScanDirection, slot);

	if (found)
		ExecMaterializeSlot(slot);
	mer_scan_end(scan);
	return found;
}
