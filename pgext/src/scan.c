/*
 * scan.c
 *	  Scans: stored rows as of tau_start, page by page, merged with this
 *	  transaction's own versions that the snapshot sees.
 *
 * The position is a key.  Local entries are found again from it at each step,
 * and versions written after the snapshot are invisible to it, so a scan may
 * run while its own statement writes (no Halloween problem), and in either
 * direction.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "scan.h"

#define FIRST_BATCH 64
#define BATCH_GROWTH 4
#define MAX_BATCH 262144
#define PAGE_BYTES (1024 * 1024)
#define POINT_BATCH 1024
#define KEY_BYTES 64			/* of most keys */
#define AHEAD_BATCH 16384		/* from the page after the fourth on */

/* ---------- begin ---------- */

static MerShape *
make_shape(const AttrNumber *attnums, int n, int natts)
{
	MerShape   *shape = palloc(offsetof(MerShape, attnums) + n * sizeof(AttrNumber));

	shape->n = n;
	shape->natts = natts;
	shape->next = NULL;
	if (n > 0)
		memcpy(shape->attnums, attnums, n * sizeof(AttrNumber));
	return shape;
}

static bool
attr_needed(Bitmapset *attrs, AttrNumber attnum)
{
	return attrs == NULL ||
		bms_is_member(attnum - FirstLowInvalidHeapAttributeNumber, attrs) ||
		bms_is_member(InvalidAttrNumber - FirstLowInvalidHeapAttributeNumber, attrs);
}

static void
choose_columns(MerScan *scan)
{
	MerRel	   *table = scan->table;
	int			natts = mer_txn_stored_natts(table->sid, table->natts);
	Bitmapset  *attrs = scan->tids == MER_TIDS_ROWS ? NULL : scan->spec.attrs;
	AttrNumber *cols = palloc(Max(natts, 1) * sizeof(AttrNumber));
	int			n = 0;

	if (scan->spec.index && !scan->table->organised)
		Assert(scan->index);
	for (int i = 0; i < natts; i++)
		if (!table->cols[i].dropped && attr_needed(attrs, i + 1))
			cols[n++] = i + 1;
	scan->shape = make_shape(cols, n, natts);
	if (scan->index)
	{
		scan->cols = palloc((INDEX_MAX_KEYS + 1) * sizeof(AttrNumber));
		scan->ncols = 0;
		if (!scan->joined)
			scan->ncols = mer_index_payload_attnums(scan->index, scan->cols);
		scan->entry_shape = make_shape(scan->cols, scan->ncols, scan->index->natts);
		scan->row_cols = cols;
		scan->nrow_cols = scan->joined ? n : 0;
	}
	else
	{
		scan->cols = cols;
		scan->ncols = n;
		scan->row_cols = NULL;
		scan->nrow_cols = 0;
	}
}

static const char *
copy_key(const char *key, uint32 len, bool terminate)
{
	char	   *copy;

	if (key == NULL)
		return NULL;
	copy = palloc(len + 1);
	memcpy(copy, key, len);
	copy[len] = '\0';
	return copy;
}

static MerBuf *
written_buf(int64 sid)
{
	MerBuf	   *buf = mer_buf_find(sid);

	return buf && buf->nentries > 0 ? buf : NULL;
}

static void
set_spec(MerScan *scan, const MerScanSpec *spec)
{
	MerScanSpec *s = &scan->spec;
	MemoryContext old;

	MemoryContextReset(scan->spec_cxt);
	old = MemoryContextSwitchTo(scan->spec_cxt);
	*s = *spec;
	s->attrs = bms_copy(spec->attrs);
	s->lo = copy_key(spec->lo, spec->lo_len, true);
	s->hi = spec->point ? s->lo : copy_key(spec->hi, spec->hi_len, true);
	if (spec->point)
		s->hi_len = spec->lo_len + 1;	/* the key and a zero byte */
	s->filter = copy_key(spec->filter, spec->filter_len, true);
	if (spec->npoints > 0)
	{
		MerBytes   *points = palloc(spec->npoints * sizeof(MerBytes));

		for (int i = 0; i < spec->npoints; i++)
		{
			points[i].data = copy_key(spec->points[i].data, spec->points[i].len, true);
			points[i].len = spec->points[i].len;
		}
		s->points = points;
	}

	scan->table = mer_rel(spec->table);
	scan->index = spec->index ? mer_rel(spec->index) : NULL;
	if (scan->index && scan->index->primary_of_organised)
		scan->index = NULL;		/* its entries are the rows */
	scan->sid = scan->index ? scan->index->sid : scan->table->sid;
	scan->joined = scan->index && !spec->index_only;
	scan->stored = !mer_txn_created(scan->sid);
	scan->local = written_buf(scan->sid);
	scan->local_rows = scan->index ? written_buf(scan->table->sid) : NULL;
	scan->tids = spec->want_tids ? MER_TIDS_ROWS :
		spec->no_tids ? MER_TIDS_NONE : mer_tid_mode();
	if (spec->index_only && scan->tids == MER_TIDS_ROWS)
		scan->tids = MER_TIDS_KEYS;
	choose_columns(scan);
	MemoryContextSwitchTo(old);
}

static void
drop_ahead(void *arg)
{
	MerScan    *scan = arg;

	if (scan->ahead)
		mer_wire_forget(scan->ahead);
	scan->ahead = 0;
}

void
mer_scan_drop_page(MerScan *scan)
{
	drop_ahead(scan);
	MemoryContextReset(scan->page_cxt);
	scan->page = NULL;
	scan->ref = NULL;
}

static void
reset_position(MerScan *scan)
{
	mer_scan_drop_page(scan);
	scan->extra = NULL;
	scan->gap = 0;
	scan->more_before = scan->more_after = false;
	scan->batch = FIRST_BATCH;
	if (scan->spec.limit > 0)
		scan->batch = Min(scan->spec.limit, MAX_BATCH);
	scan->last_direction = NoMovementScanDirection;
	scan->where = ScanDirectionIsBackward(scan->spec.direction) ? AT_END : AT_START;
	scan->pos = NULL;
	scan->poslen = 0;
	scan->point = scan->where == AT_START ? -1 : scan->spec.npoints;
	scan->batch_from = scan->batch_to = 0;
	scan->version = NULL;
	scan->entry = NULL;
}

MerScan *
mer_scan_begin(const MerScanSpec *spec, Snapshot snapshot)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "meridian scan",
											  ALLOCSET_SMALL_SIZES);
	MerScan    *scan = MemoryContextAllocZero(cxt, sizeof(MerScan));
	MemoryContext old;

	scan->cxt = cxt;
	scan->spec_cxt = AllocSetContextCreate(cxt, "spec", ALLOCSET_SMALL_SIZES);
	scan->page_cxt = AllocSetContextCreate(cxt, "page", ALLOCSET_SMALL_SIZES);
	scan->row_cxt = AllocSetContextCreate(cxt, "row", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(cxt);
	/* Few scans need them, and these fit the context's first block. */
	initStringInfoExt(&scan->pos_copy, KEY_BYTES);
	initStringInfoExt(&scan->mark, KEY_BYTES);
	MemoryContextSwitchTo(old);
	/* However the scan ends, errors included. */
	scan->at_end.func = drop_ahead;
	scan->at_end.arg = scan;
	MemoryContextRegisterResetCallback(cxt, &scan->at_end);
	scan->heap = spec->table;
	scan->cid_limit = mer_cid_limit(snapshot);
	set_spec(scan, spec);
	reset_position(scan);
	return scan;
}

void
mer_scan_rescan(MerScan *scan, const MerScanSpec *spec)
{
	set_spec(scan, spec);
	reset_position(scan);
}

void
mer_scan_end(MerScan *scan)
{
	MemoryContextDelete(scan->cxt);
}

/* ---------- position ---------- */

/* The page under pos is about to go. */
static void
keep_position(MerScan *scan)
{
	if (scan->pos == NULL || scan->pos == scan->pos_copy.data)
		return;
	resetStringInfo(&scan->pos_copy);
	appendBinaryStringInfo(&scan->pos_copy, scan->pos, scan->poslen);
	scan->pos = scan->pos_copy.data;
}

/* Count the rows of the page that lie before the position, seen in a direction. */
static void
find_gap(MerScan *scan, bool forward)
{
	uint32		low = 0;
	uint32		high = scan->page->nrows;

	if (scan->where == AT_START)
		high = 0;
	else if (scan->where == AT_END)
		low = high;
	while (low < high)
	{
		uint32		mid = low + (high - low) / 2;
		MerRowRef  *ref = mer_page_row(scan->page, mid);
		int			c = mer_key_cmp(ref->key, ref->klen, scan->pos, scan->poslen);

		if (c < 0 || (c == 0 && forward))
			low = mid + 1;
		else
			high = mid;
	}
	scan->gap = low;
}

/* ---------- stored rows ---------- */

static void
fetch_point(MerScan *scan)
{
	MerBytes	key = {scan->spec.lo, scan->spec.lo_len};
	uint32		id;

	mer_checks_flush();
	id = mer_send_get(scan->sid, scan->cols, scan->ncols, &key, 1);
	scan->page = mer_page_wait(id, scan->ncols, false, false);
	scan->more_before = scan->more_after = false;
}

/* Ask for a page: from the end of the range, or from a key on. */
static uint32
send_range(MerScan *scan, bool forward, const MerBytes *from)
{
	MerScanSpec *spec = &scan->spec;
	MerRequest	req = {.sid = scan->sid,.row_sid = scan->joined ? scan->table->sid : 0,
		.lo = spec->lo,.lo_len = spec->lo_len,.hi = spec->hi,.hi_len = spec->hi_len,
		.descending = !forward,.cols = scan->cols,.ncols = scan->ncols,
		.row_cols = scan->row_cols,.nrow_cols = scan->nrow_cols,
		.filter = spec->filter,.filter_len = spec->filter_len,
	.limit = scan->batch,.page_bytes = PAGE_BYTES};

	/* A row that we have changed may match although its stored version does not. */
	if (scan->index && scan->local_rows)
		req.filter = NULL;
	if (from && forward)
	{
		req.lo = from->data;
		req.lo_len = from->len;
		req.lo_exclusive = true;
	}
	else if (from)
	{
		req.hi = from->data;
		req.hi_len = from->len;
	}
	scan->batch = Min(scan->batch * BATCH_GROWTH, MAX_BATCH);
	return mer_send_scan(&req);
}

/* Whoever has read this much will read on: storage works while we do. */
static void
send_ahead(MerScan *scan)
{
	MerRowRef  *last;
	MerBytes	from;

	if (!scan->more_after || scan->batch < AHEAD_BATCH)
		return;
	last = mer_page_row(scan->page, scan->page->nrows - 1);
	from.data = last->key;
	from.len = last->klen;
	scan->ahead = send_range(scan, true, &from);
}

static void
fetch_range(MerScan *scan, bool forward)
{
	MerBytes	from = {scan->pos, scan->poslen};
	bool		continued = scan->where == AT_ROW;
	uint32		id = scan->ahead;

	/* What was asked for ahead goes on from the edge of the page, as we do. */
	scan->ahead = 0;
	if (id == 0)
		id = send_range(scan, forward, continued ? &from : NULL);
	scan->page = mer_page_wait(id, scan->ncols + scan->nrow_cols, scan->joined, !forward);
	if (scan->page->more && scan->page->nrows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("gateway answered an empty page and promised more rows")));
	scan->more_before = forward ? continued : scan->page->more;
	scan->more_after = forward ? scan->page->more : continued;
	if (forward)
		send_ahead(scan);
}

/*
 * Get the page beyond the position.  The stored rows up to the edge of the
 * present page are behind us, so the edge is as good a position as any: the
 * position may be a local key that lies further back.
 */
static void
fetch_page(MerScan *scan, bool forward)
{
	const char *pos;
	uint32		poslen;
	Where		where;
	StringInfoData edge;
	MemoryContext old;
	uint32		ahead;

	old = MemoryContextSwitchTo(scan->cxt);
	keep_position(scan);
	pos = scan->pos;
	poslen = scan->poslen;
	where = scan->where;
	if (scan->page && scan->page->nrows > 0)
	{
		MerRowRef  *ref = mer_page_row(scan->page, forward ? scan->page->nrows - 1 : 0);

		initStringInfo(&edge);
		appendBinaryStringInfo(&edge, ref->key, ref->klen);
		scan->pos = edge.data;
		scan->poslen = edge.len;
		scan->where = AT_ROW;
	}
	else
		edge.data = NULL;
	ahead = forward ? scan->ahead : 0;
	if (ahead)
		scan->ahead = 0;		/* not to be dropped with the page */
	mer_scan_drop_page(scan);
	scan->ahead = ahead;
	MemoryContextSwitchTo(scan->page_cxt);
	if (scan->spec.point && !scan->joined && !scan->index)
		fetch_point(scan);
	else
		fetch_range(scan, forward);
	scan->gap = forward ? 0 : scan->page->nrows;
	scan->pos = pos;
	scan->poslen = poslen;
	scan->where = where;
	if (edge.data)
		pfree(edge.data);
	MemoryContextSwitchTo(old);
}

static MerRowRef *
stored_next(MerScan *scan, bool forward)
{
	if (!scan->stored)
		return NULL;
	/* One whole key, and it was ours. */
	if (scan->spec.point && scan->page == NULL && scan->where == AT_ROW)
		return NULL;
	if (scan->page == NULL)
		fetch_page(scan, forward);
	else if (scan->last_direction != (forward ? ForwardScanDirection : BackwardScanDirection))
		find_gap(scan, forward);
	for (;;)
	{
		if (forward && scan->gap < scan->page->nrows)
			return mer_page_row(scan->page, scan->gap);
		if (!forward && scan->gap > 0)
			return mer_page_row(scan->page, scan->gap - 1);
		if (!(forward ? scan->more_after : scan->more_before))
			return NULL;
		fetch_page(scan, forward);
	}
}

/* ---------- local rows ---------- */

static bool
in_range(MerScan *scan, MerEntry *e)
{
	MerScanSpec *s = &scan->spec;

	if (s->lo && mer_key_cmp(e->key, e->klen, s->lo, s->lo_len) < 0)
		return false;
	return s->hi == NULL || mer_key_cmp(e->key, e->klen, s->hi, s->hi_len) < 0;
}

static MerEntry *
local_first(MerScan *scan, bool forward)
{
	MerScanSpec *s = &scan->spec;

	if (scan->where == AT_ROW)
		return forward ? mer_entry_above(scan->local, scan->pos, scan->poslen, false)
			: mer_entry_below(scan->local, scan->pos, scan->poslen, false);
	if (forward)
	{
		if (scan->where == AT_END)
			return NULL;
		return s->lo ? mer_entry_above(scan->local, s->lo, s->lo_len, true)
			: mer_entry_first(scan->local);
	}
	if (scan->where == AT_START)
		return NULL;
	return s->hi ? mer_entry_below(scan->local, s->hi, s->hi_len, false)
		: mer_entry_last(scan->local);
}

/* The next entry of ours that the snapshot sees, tombstones included. */
static MerEntry *
local_next(MerScan *scan, bool forward, MerVersion **version)
{
	MerEntry   *e;

	if (scan->local == NULL)
		return NULL;
	for (e = local_first(scan, forward); e && in_range(scan, e);
		 e = forward ? mer_entry_next(e) : mer_entry_prev(e))
	{
		*version = mer_entry_visible(e, scan->cid_limit);
		if (*version)
			return e;
	}
	return NULL;
}

/* ---------- one step ---------- */

/* The row key that a local index entry points to. */
MerBytes
mer_entry_rowkey(MerVersion *entry)
{
	MpReader	r = {entry->row, entry->row + entry->rowlen};
	MerBytes	key;

	mp_get_array(&r);
	key.data = mp_get_bytes(&r, &key.len);
	return key;
}

/* Find the row below a local index entry; false if there is none (any more). */
static bool
row_of_local_entry(MerScan *scan, MerVersion *entry)
{
	MerBytes	key = mer_entry_rowkey(entry);
	MerEntry   *e = scan->local_rows ? mer_entry_find(scan->local_rows, key.data, key.len) : NULL;
	MerVersion *v = e ? mer_entry_visible(e, scan->cid_limit) : NULL;
	MemoryContext old;

	scan->entry = entry;
	if (!scan->joined)
		return true;
	if (v)
	{
		scan->version = v;
		return !v->tombstone;
	}
	/* The index was built by this transaction over stored rows. */
	old = MemoryContextSwitchTo(scan->cxt);
	if (scan->extra)
		mer_page_free(scan->extra);
	scan->extra = NULL;
	mer_checks_flush();
	scan->extra = mer_page_wait(mer_send_get(scan->table->sid, scan->row_cols,
											 scan->nrow_cols, &key, 1),
								scan->nrow_cols, false, false);
	MemoryContextSwitchTo(old);
	if (scan->extra->nrows == 0)
		return false;
	scan->ref = mer_page_row(scan->extra, 0);
	return true;
}

/* A stored entry came with its stored row; ours may have replaced the row. */
static bool
row_of_stored_entry(MerScan *scan, MerRowRef *ref)
{
	MerEntry   *e;
	MerVersion *v;

	scan->ref = ref;
	if (!scan->joined || scan->local_rows == NULL)
		return true;
	e = mer_entry_find(scan->local_rows, ref->rowkey, ref->rowklen);
	v = e ? mer_entry_visible(e, scan->cid_limit) : NULL;
	if (v == NULL)
		return true;
	scan->version = v;
	return !v->tombstone;
}

void
mer_scan_clear_row(MerScan *scan)
{
	scan->version = NULL;
	scan->entry = NULL;
	scan->ref = NULL;
}

static bool
take_local(MerScan *scan, MerEntry *e, MerVersion *v)
{
	scan->where = AT_ROW;
	scan->pos = e->key;
	scan->poslen = e->klen;
	if (v->tombstone)
		return false;
	if (scan->index)
		return row_of_local_entry(scan, v);
	scan->version = v;
	return true;
}

/* One whole key that was read before, with its row: known without asking. */
static bool
take_known(MerScan *scan)
{
	MerVersion *v;

	if (!scan->spec.point || scan->page || scan->where == AT_ROW)
		return false;
	if (scan->index)
		return mer_scan_known_entry(scan);
	v = mer_tid_find_stored(scan->sid, scan->spec.lo, scan->spec.lo_len);
	if (v == NULL)
		return false;
	scan->version = v;
	scan->where = AT_ROW;
	scan->pos = v->key;
	scan->poslen = v->klen;
	return true;
}

static bool
advance_range(MerScan *scan, bool forward)
{
	for (;;)
	{
		MerVersion *v = NULL;
		MerEntry   *e = local_next(scan, forward, &v);
		MerRowRef  *ref;
		int			c;

		mer_scan_clear_row(scan);
		if (e == NULL && take_known(scan))
			return true;
		/* One whole key that is ours needs no round trip. */
		ref = scan->spec.point && e ? NULL : stored_next(scan, forward);
		scan->last_direction = forward ? ForwardScanDirection : BackwardScanDirection;
		if (e == NULL && ref == NULL)
		{
			scan->where = forward ? AT_END : AT_START;
			return false;
		}
		if (ref == NULL)
			c = -1;
		else if (e == NULL)
			c = 1;
		else
		{
			c = mer_key_cmp(e->key, e->klen, ref->key, ref->klen);
			if (!forward)
				c = -c;
		}
		if (ref && c >= 0)
			scan->gap += forward ? 1 : -1;
		if (c <= 0)
		{
			if (take_local(scan, e, v))
				return true;
			continue;
		}
		scan->where = AT_ROW;
		scan->pos = ref->key;
		scan->poslen = ref->klen;
		if (row_of_stored_entry(scan, ref))
			return true;
	}
}

/* ---------- many whole keys ---------- */

/*
 * Entries of a unique index, then their rows: one page in the order of the
 * entries.  Both answers are of one tau_start, so every entry has its row.
 */
static MerPage *
fetch_joined_points(MerScan *scan, const MerBytes *points, int n)
{
	AttrNumber	rowkey_col = 0;
	MerPage    *entries = mer_page_wait(mer_send_get(scan->sid, &rowkey_col, 1, points, n),
										1, false, false);
	MerBytes   *keys = palloc(Max(entries->nrows, 1) * sizeof(MerBytes));
	MerBytes   *sorted = palloc(Max(entries->nrows, 1) * sizeof(MerBytes));
	MerRowRef  *refs = palloc(Max(entries->nrows, 1) * sizeof(MerRowRef));
	MerPage    *rows;

	for (uint32 i = 0; i < entries->nrows; i++)
	{
		MpReader	r;

		refs[i] = *mer_page_row(entries, i);
		r.p = refs[i].values;
		r.end = entries->reply.body.end;
		keys[i].data = mp_get_bytes(&r, &keys[i].len);
	}
	memcpy(sorted, keys, entries->nrows * sizeof(MerBytes));
	qsort(sorted, entries->nrows, sizeof(MerBytes), mer_bytes_cmp);
	if (entries->nrows == 0)
		return entries;
	rows = mer_page_wait(mer_send_get(scan->table->sid, scan->row_cols, scan->nrow_cols,
									  sorted, entries->nrows),
						 scan->nrow_cols, false, false);
	if (rows->nrows != entries->nrows)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("index entries and rows do not agree")));
	for (uint32 i = 0; i < entries->nrows; i++)
	{
		MerBytes   *at = bsearch(&keys[i], sorted, entries->nrows, sizeof(MerBytes),
								 mer_bytes_cmp);
		MerRowRef  *row = mer_page_row(rows, at - sorted);

		if (mer_key_cmp(row->key, row->klen, keys[i].data, keys[i].len) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("index entries and rows do not agree")));
		refs[i].rowkey = keys[i].data;
		refs[i].rowklen = keys[i].len;
		refs[i].values = row->values;
		refs[i].end = NULL;
	}
	rows->rows = refs;
	rows->joined = true;
	rows->nparsed = rows->nrows;
	return rows;
}

static void
fetch_points(MerScan *scan, int from, int to)
{
	MemoryContext old = MemoryContextSwitchTo(scan->page_cxt);
	const MerBytes *points = scan->spec.points;

	mer_scan_drop_page(scan);
	mer_checks_flush();
	if (scan->joined)
		scan->page = fetch_joined_points(scan, points + from, to - from);
	else
		scan->page = mer_page_wait(mer_send_get(scan->sid, scan->cols, scan->ncols,
												points + from, to - from),
								   scan->ncols, false, false);
	scan->batch_from = from;
	scan->batch_to = to;
	MemoryContextSwitchTo(old);
}

static bool
point_stored(MerScan *scan, bool forward)
{
	MerBytes	key = scan->spec.points[scan->point];

	if (!scan->stored)
		return false;
	if (scan->page == NULL || scan->point < scan->batch_from || scan->point >= scan->batch_to)
	{
		if (forward)
			fetch_points(scan, scan->point,
						 Min(scan->point + POINT_BATCH, scan->spec.npoints));
		else
			fetch_points(scan, Max(scan->point - POINT_BATCH + 1, 0), scan->point + 1);
	}
	scan->where = AT_ROW;
	scan->pos = key.data;
	scan->poslen = key.len;
	find_gap(scan, false);
	if (scan->gap < scan->page->nrows)
	{
		MerRowRef  *ref = mer_page_row(scan->page, scan->gap);

		if (mer_key_cmp(ref->key, ref->klen, key.data, key.len) == 0)
			return row_of_stored_entry(scan, ref);
	}
	return false;
}

static bool
advance_points(MerScan *scan, bool forward)
{
	int			n = scan->spec.npoints;

	for (;;)
	{
		MerBytes	key;
		MerEntry   *e;
		MerVersion *v;

		mer_scan_clear_row(scan);
		if (forward ? scan->point >= n : scan->point < 0)
			return false;
		scan->point += forward ? 1 : -1;
		if (scan->point < 0 || scan->point >= n)
			return false;
		key = scan->spec.points[scan->point];
		e = scan->local ? mer_entry_find(scan->local, key.data, key.len) : NULL;
		v = e ? mer_entry_visible(e, scan->cid_limit) : NULL;
		if (v == NULL)
		{
			if (point_stored(scan, forward))
				return true;
		}
		else if (!v->tombstone && take_local(scan, e, v))
			return true;
	}
}

bool
mer_scan_advance(MerScan *scan, ScanDirection direction)
{
	bool		forward = !ScanDirectionIsBackward(direction);

	CHECK_FOR_INTERRUPTS();
	if (scan->spec.npoints > 0)
		return advance_points(scan, forward);
	return advance_range(scan, forward);
}
