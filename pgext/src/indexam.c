/*
 * indexam.c
 *	  Index access method: the interface of PostgreSQL's btree over our scans.
 */
#include "postgres.h"

#include "access/amapi.h"
#include "access/htup_details.h"
#include "access/nbtree.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "commands/vacuum.h"
#include "fmgr.h"
#include "nodes/tidbitmap.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "store.h"

typedef struct MerIndexScan
{
	MemoryContext range_cxt;	/* until rescan */
	MerIndexHint *hint;
	MerRanges	ranges;
	MerBytes   *points;			/* of all ranges, if the table answers them at once */
	int			at;				/* range the scan runs over; -1 before, n after */
	int			scan_at;		/* range that scan was set up for, -1 none */
	MerScan    *scan;
	Relation	heap;
	bool		own_heap;
	bool		by_row;			/* the entries are the rows (primary key) */
	bool		index_only;
	bool		no_rows;		/* bitmap: keys will do */
	TupleTableSlot *slot;		/* index-only over rows */
	int			mark_at;
	bool		has_mark;
} MerIndexScan;

/* ---------- begin, rescan, end ---------- */

static IndexScanDesc
am_beginscan(Relation index, int nkeys, int norderbys)
{
	IndexScanDesc scan = RelationGetIndexScan(index, nkeys, norderbys);
	MerIndexScan *so = palloc0(sizeof(MerIndexScan));

	so->range_cxt = AllocSetContextCreate(CurrentMemoryContext, "meridian ranges",
										  ALLOCSET_SMALL_SIZES);
	so->hint = mer_index_hint_take(index);
	scan->opaque = so;
	scan->xs_itupdesc = RelationGetDescr(index);
	scan->xs_hitupdesc = RelationGetDescr(index);
	return scan;
}

static void
am_rescan(IndexScanDesc scan, ScanKey keys, int nkeys, ScanKey orderbys, int norderbys)
{
	MerIndexScan *so = scan->opaque;
	MemoryContext old;

	if (keys && scan->numberOfKeys > 0)
		memmove(scan->keyData, keys, scan->numberOfKeys * sizeof(ScanKeyData));
	so->by_row = mer_rel(scan->indexRelation)->primary_of_organised;
	so->points = NULL;
	MemoryContextReset(so->range_cxt);
	old = MemoryContextSwitchTo(so->range_cxt);
	mer_index_ranges(&so->ranges, scan->indexRelation, scan->keyData, scan->numberOfKeys);
	if (so->ranges.points && so->ranges.n > 1)
	{
		so->points = palloc(so->ranges.n * sizeof(MerBytes));
		for (int i = 0; i < so->ranges.n; i++)
			so->points[i] = so->ranges.ranges[i].lo;
	}
	MemoryContextSwitchTo(old);
	so->at = so->scan_at = -1;
	so->has_mark = false;
	if (scan->instrument)
		scan->instrument->nsearches++;
}

static void
am_endscan(IndexScanDesc scan)
{
	MerIndexScan *so = scan->opaque;

	if (so->scan)
		mer_scan_end(so->scan);
	if (so->slot)
		ExecDropSingleTupleTableSlot(so->slot);
	if (so->own_heap)
		table_close(so->heap, AccessShareLock);
	MemoryContextDelete(so->range_cxt);
	pfree(so);
}

/* ---------- ranges, one after the other ---------- */

static int
range_count(MerIndexScan *so)
{
	return so->points ? 1 : so->ranges.n;
}

static Bitmapset *
index_columns(Relation index)
{
	Bitmapset  *attrs = NULL;

	for (int i = 0; i < index->rd_index->indnatts; i++)
		attrs = bms_add_member(attrs, index->rd_index->indkey.values[i] -
							   FirstLowInvalidHeapAttributeNumber);
	return attrs;
}

static void
fill_spec(IndexScanDesc scan, MerScanSpec *spec, ScanDirection direction)
{
	MerIndexScan *so = scan->opaque;

	memset(spec, 0, sizeof(MerScanSpec));
	spec->table = so->heap;
	spec->index = scan->indexRelation;
	spec->direction = direction;
	spec->index_only = so->index_only || so->no_rows;
	if (so->no_rows && so->by_row)
		/* Never empty, which would mean all. */
		spec->attrs = bms_make_singleton(TableOidAttributeNumber -
										 FirstLowInvalidHeapAttributeNumber);
	else if (so->index_only && so->by_row)
		spec->attrs = index_columns(scan->indexRelation);
	else if (!spec->index_only && so->hint)
		mer_index_hint_apply(so->hint, spec);
	if (so->points)
	{
		spec->npoints = so->ranges.n;
		spec->points = so->points;
	}
	else
	{
		MerRange   *r = &so->ranges.ranges[so->at];

		spec->lo = r->lo.data;
		spec->lo_len = r->lo.len;
		spec->hi = r->hi.data;
		spec->hi_len = r->hi.len;
		spec->point = r->point;
	}
}

static void
open_range(IndexScanDesc scan, ScanDirection direction)
{
	MerIndexScan *so = scan->opaque;
	MerScanSpec spec;
	MemoryContext old;

	if (so->scan_at == so->at)
		return;
	if (so->heap == NULL)
	{
		so->heap = scan->heapRelation;
		if (so->heap == NULL)
		{
			so->heap = table_open(scan->indexRelation->rd_index->indrelid, AccessShareLock);
			so->own_heap = true;
		}
	}
	old = MemoryContextSwitchTo(so->range_cxt);
	fill_spec(scan, &spec, direction);
	MemoryContextSwitchTo(GetMemoryChunkContext(so));
	if (so->scan == NULL)
		so->scan = mer_scan_begin(&spec, scan->xs_snapshot);
	else
		mer_scan_rescan(so->scan, &spec);
	MemoryContextSwitchTo(old);
	so->scan_at = so->at;
}

static bool
advance(IndexScanDesc scan, ScanDirection direction)
{
	MerIndexScan *so = scan->opaque;
	bool		forward = !ScanDirectionIsBackward(direction);
	int			n = range_count(so);

	if (so->scan_at == -1 && so->at < 0 && !forward)
		so->at = n;				/* a backward scan starts at the end */
	for (;;)
	{
		if (so->at >= 0 && so->at < n)
		{
			open_range(scan, forward ? ForwardScanDirection : BackwardScanDirection);
			if (mer_scan_advance(so->scan, direction))
				return true;
		}
		so->at += forward ? 1 : -1;
		so->scan_at = so->at < 0 || so->at >= n ? -2 : -1;
		if (so->at < 0 || so->at >= n)
		{
			so->at = forward ? n : -1;
			return false;
		}
	}
}

/* ---------- tuples ---------- */

static HeapTuple
tuple_from_row(IndexScanDesc scan, MerIndexScan *so)
{
	Relation	index = scan->indexRelation;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	mer_scan_row(so->scan, so->slot);
	for (int i = 0; i < index->rd_index->indnatts; i++)
		values[i] = slot_getattr(so->slot, index->rd_index->indkey.values[i], &isnull[i]);
	return heap_form_tuple(RelationGetDescr(index), values, isnull);
}

static HeapTuple
tuple_from_entry(IndexScanDesc scan, MerIndexScan *so)
{
	MerRel	   *mr = mer_rel(scan->indexRelation);
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	AttrNumber	attnums[INDEX_MAX_KEYS + 1];
	int			n = mer_index_payload_attnums(mr, attnums);
	MerBytes	key;
	MpReader	payload;
	const char *p;

	mer_scan_entry(so->scan, &key, &payload);
	p = key.data;
	for (int i = 0; i < mr->natts - (n - 1); i++)
		values[i] = mer_key_get(&p, key.data + key.len, &mr->keys[i], &isnull[i]);
	mp_skip(&payload);
	for (int i = 1; i < n; i++)
	{
		int			a = attnums[i] - 1;

		values[a] = mer_value_get(&payload, &mr->cols[a], &isnull[a]);
	}
	return heap_form_tuple(RelationGetDescr(scan->indexRelation), values, isnull);
}

static void
make_index_tuple(IndexScanDesc scan, MerIndexScan *so)
{
	MemoryContext work = AllocSetContextCreate(CurrentMemoryContext, "meridian entry",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(so));
	HeapTuple	tuple;

	if (so->by_row && so->slot == NULL)
		so->slot = table_slot_create(so->heap, NULL);
	MemoryContextSwitchTo(work);
	tuple = so->by_row ? tuple_from_row(scan, so) : tuple_from_entry(scan, so);
	MemoryContextSwitchTo(GetMemoryChunkContext(so));
	if (scan->xs_hitup)
		pfree(scan->xs_hitup);
	scan->xs_hitup = heap_copytuple(tuple);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
}

static bool
am_gettuple(IndexScanDesc scan, ScanDirection direction)
{
	MerIndexScan *so = scan->opaque;
	MerIndexFetch *fetch = (MerIndexFetch *) scan->xs_heapfetch;
	Snapshot	snapshot = scan->xs_snapshot;

	/* The planner's look at the ends of an index: not worth a round trip. */
	if (snapshot->snapshot_type == SNAPSHOT_NON_VACUUMABLE)
		return false;
	if (snapshot->snapshot_type == SNAPSHOT_DIRTY)
	{
		snapshot->xmin = snapshot->xmax = InvalidTransactionId;
		snapshot->speculativeToken = 0;
	}
	so->index_only = scan->xs_want_itup;
	if (!advance(scan, direction))
		return false;
	mer_scan_tid(so->scan, &scan->xs_heaptid);
	scan->xs_recheck = so->ranges.recheck;
	if (scan->xs_want_itup)
		make_index_tuple(scan, so);
	if (fetch)
	{
		fetch->scan = so->scan;
		fetch->index_only = so->index_only;
		fetch->tid = scan->xs_heaptid;
	}
	return true;
}

static int64
am_getbitmap(IndexScanDesc scan, TIDBitmap *tbm)
{
	MerIndexScan *so = scan->opaque;
	int64		n = 0;

	so->no_rows = true;
	while (advance(scan, ForwardScanDirection))
	{
		ItemPointerData tid;

		mer_scan_key_tid(so->scan, &tid);
		tbm_add_tuples(tbm, &tid, 1, so->ranges.recheck);
		n++;
	}
	return n;
}

static void
am_markpos(IndexScanDesc scan)
{
	MerIndexScan *so = scan->opaque;

	so->has_mark = so->scan != NULL && so->at >= 0 && so->at < range_count(so);
	so->mark_at = so->at;
	if (so->has_mark)
		mer_scan_mark(so->scan);
}

static void
am_restrpos(IndexScanDesc scan)
{
	MerIndexScan *so = scan->opaque;

	so->at = so->mark_at;
	if (!so->has_mark)
	{
		so->scan_at = so->at < 0 ? -1 : -2;
		return;
	}
	open_range(scan, ForwardScanDirection);
	mer_scan_restore(so->scan);
}

/* ---------- insertion ---------- */

static bool
am_insert(Relation index, Datum *values, bool *isnull, ItemPointer heap_tid,
		  Relation heap, IndexUniqueCheck check, bool unchanged, struct IndexInfo *info)
{
	MerVersion *row = mer_tid_version(heap_tid);

	if (check == UNIQUE_CHECK_EXISTING)
		elog(ERROR, "meridian: deferred uniqueness is not supported");
	if (row->entry == NULL)
		elog(ERROR, "meridian: index entry for a row that was not written");
	if (mer_rel(index)->primary_of_organised)
		return mer_rowkey_check(RelationGetRelid(index), row, check);
	return mer_index_insert_entry(index, values, isnull, row, row->cid, check);
}

/* ---------- the rest ---------- */

static bool
am_canreturn(Relation index, int attno)
{
	return true;
}

static void
am_buildempty(Relation index)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("UNLOGGED is not supported on distributed tables")));
}

static IndexBulkDeleteResult *
am_bulkdelete(IndexVacuumInfo *info, IndexBulkDeleteResult *stats,
			  IndexBulkDeleteCallback callback, void *callback_state)
{
	elog(ERROR, "meridian: storage removes index entries, VACUUM does not");
}

/* ANALYZE calls it: there is nothing to clean up. */
static IndexBulkDeleteResult *
am_vacuumcleanup(IndexVacuumInfo *info, IndexBulkDeleteResult *stats)
{
	return stats;
}

static bool
am_validate(Oid opclassoid)
{
	return true;
}

PG_FUNCTION_INFO_V1(mer_indexam_handler);

Datum
mer_indexam_handler(PG_FUNCTION_ARGS)
{
	IndexAmRoutine *am = makeNode(IndexAmRoutine);

	am->amstrategies = BTMaxStrategyNumber;
	am->amsupport = BTNProcs;
	am->amoptsprocnum = BTOPTIONS_PROC;
	am->amcanorder = true;
	am->amconsistentequality = true;
	am->amconsistentordering = true;
	am->amcanbackward = true;
	am->amcanunique = true;
	am->amcanmulticol = true;
	am->amoptionalkey = true;
	am->amsearcharray = true;
	am->amsearchnulls = true;
	am->amcaninclude = true;
	am->amkeytype = InvalidOid;
	am->ambuild = mer_index_build;
	am->ambuildempty = am_buildempty;
	am->aminsert = am_insert;
	am->ambulkdelete = am_bulkdelete;
	am->amvacuumcleanup = am_vacuumcleanup;
	am->amcanreturn = am_canreturn;
	am->amcostestimate = mer_index_cost;
	am->amoptions = btoptions;
	am->amvalidate = am_validate;
	am->ambeginscan = am_beginscan;
	am->amrescan = am_rescan;
	am->amgettuple = am_gettuple;
	am->amgetbitmap = am_getbitmap;
	am->amendscan = am_endscan;
	am->ammarkpos = am_markpos;
	am->amrestrpos = am_restrpos;
	am->amtranslatestrategy = bttranslatestrategy;
	am->amtranslatecmptype = bttranslatecmptype;
	PG_RETURN_POINTER(am);
}
