/*
 * tableam.c
 *	  Table access method "meridian": scans, fetches by TID, and storage of
 *	  relations.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/multixact.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "fmgr.h"
#include "nodes/tidbitmap.h"
#include "storage/bufpage.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "store.h"

typedef struct MerTableScan
{
	TableScanDescData base;		/* must be first */
	MerScan    *scan;			/* NULL: not started */
	bool		on_page;		/* bitmap: scan runs over the keys of a page */
	bool		recheck;
} MerTableScan;

pg_noreturn static void
not_supported(const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("%s is not supported on distributed tables", what),
			 hint ? errhint("%s", hint) : 0));
}

static const TupleTableSlotOps *
am_slot_callbacks(Relation rel)
{
	return mer_slot_ops();
}

/* ---------- scans ---------- */

static TableScanDesc
am_scan_begin(Relation rel, Snapshot snapshot, int nkeys, struct ScanKeyData *key,
			  ParallelTableScanDesc pscan, uint32 flags)
{
	MerTableScan *scan;

	if (nkeys > 0 || pscan != NULL)
		elog(ERROR, "meridian: neither scan keys nor parallel scans of tables");
	RelationIncrementReferenceCount(rel);
	scan = palloc0(sizeof(MerTableScan));
	scan->base.rs_rd = rel;
	scan->base.rs_snapshot = snapshot;
	scan->base.rs_flags = flags;
	return &scan->base;
}

static void
am_scan_end(TableScanDesc sscan)
{
	MerTableScan *scan = (MerTableScan *) sscan;

	if (scan->scan)
		mer_scan_end(scan->scan);
	if (sscan->rs_flags & SO_TEMP_SNAPSHOT)
		UnregisterSnapshot(sscan->rs_snapshot);
	RelationDecrementReferenceCount(sscan->rs_rd);
	pfree(scan);
}

static void
am_scan_rescan(TableScanDesc sscan, struct ScanKeyData *key, bool set_params,
			   bool allow_strat, bool allow_sync, bool allow_pagemode)
{
	MerTableScan *scan = (MerTableScan *) sscan;

	if (scan->scan)
		mer_scan_end(scan->scan);
	scan->scan = NULL;
	scan->on_page = false;
}

/* The first row may be asked for in a context that lives shorter than the scan. */
static MerScan *
start_scan(MerTableScan *scan, const MerScanSpec *spec)
{
	MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(scan));
	MerScan    *result = mer_scan_begin(spec, scan->base.rs_snapshot);

	MemoryContextSwitchTo(old);
	return result;
}

static bool
am_scan_getnextslot(TableScanDesc sscan, ScanDirection direction, TupleTableSlot *slot)
{
	MerTableScan *scan = (MerTableScan *) sscan;

	if (scan->scan == NULL)
	{
		MerScanSpec spec = {.table = sscan->rs_rd,.direction = direction};

		if (mer_rewrite_hides_rows(RelationGetRelid(sscan->rs_rd)))
			return false;

		scan->scan = start_scan(scan, &spec);
	}
	return mer_scan_next(scan->scan, direction, slot);
}

/* ---------- bitmap scans ---------- */

/* The keys that the TIDs of one bitmap page name, ascending, each once. */
static int
page_keys(MerTableScan *scan, TBMIterateResult *page, MerBytes *keys)
{
	OffsetNumber offsets[MaxHeapTuplesPerPage];
	int			n = 256;
	int			nkeys = 0;
	int			unique = 0;
	int64		sid = mer_rel(scan->base.rs_rd)->sid;

	if (page->lossy)
		for (int i = 0; i < n; i++)
			offsets[i] = i + 1;
	else
		n = tbm_extract_page_tuple(page, offsets, lengthof(offsets));
	for (int i = 0; i < n; i++)
	{
		ItemPointerData tid;
		MerVersion *v;

		ItemPointerSet(&tid, page->blockno, offsets[i]);
		v = mer_tid_lookup(&tid);
		if (v == NULL || v->sid != sid)
			continue;
		keys[nkeys].data = v->key;
		keys[nkeys].len = v->klen;
		nkeys++;
	}
	qsort(keys, nkeys, sizeof(MerBytes), mer_bytes_cmp);
	for (int i = 0; i < nkeys; i++)
		if (unique == 0 || mer_bytes_cmp(&keys[unique - 1], &keys[i]) != 0)
			keys[unique++] = keys[i];
	return unique;
}

static bool
next_bitmap_page(MerTableScan *scan, uint64 *lossy_pages, uint64 *exact_pages)
{
	MerBytes	keys[MaxHeapTuplesPerPage];
	TBMIterateResult page;
	MerScanSpec spec = {.table = scan->base.rs_rd,.direction = ForwardScanDirection,
	.points = keys};

	do
	{
		if (!tbm_iterate(&scan->base.st.rs_tbmiterator, &page))
			return false;
		if (page.lossy)
			++*lossy_pages;
		else
			++*exact_pages;
		spec.npoints = page_keys(scan, &page, keys);
	} while (spec.npoints == 0);
	scan->recheck = page.recheck || page.lossy;
	if (scan->scan == NULL)
		scan->scan = start_scan(scan, &spec);
	else
		mer_scan_rescan(scan->scan, &spec);
	scan->on_page = true;
	return true;
}

static bool
am_scan_bitmap_next_tuple(TableScanDesc sscan, TupleTableSlot *slot, bool *recheck,
						  uint64 *lossy_pages, uint64 *exact_pages)
{
	MerTableScan *scan = (MerTableScan *) sscan;

	for (;;)
	{
		if (scan->on_page && mer_scan_next(scan->scan, ForwardScanDirection, slot))
		{
			*recheck = scan->recheck;
			return true;
		}
		if (!next_bitmap_page(scan, lossy_pages, exact_pages))
			return false;
	}
}

/* ---------- fetches through an index ---------- */

static struct IndexFetchTableData *
am_index_fetch_begin(Relation rel)
{
	MerIndexFetch *fetch = palloc0(sizeof(MerIndexFetch));

	fetch->base.rel = rel;
	return &fetch->base;
}

static void
am_index_fetch_reset(struct IndexFetchTableData *data)
{
	((MerIndexFetch *) data)->scan = NULL;
}

static void
am_index_fetch_end(struct IndexFetchTableData *data)
{
	pfree(data);
}

/* The index scan stands on the row; an index-only scan needs to hear "yes". */
static bool
am_index_fetch_tuple(struct IndexFetchTableData *data, ItemPointer tid, Snapshot snapshot,
					 TupleTableSlot *slot, bool *call_again, bool *all_dead)
{
	MerIndexFetch *fetch = (MerIndexFetch *) data;

	*call_again = false;
	if (all_dead)
		*all_dead = false;
	if (fetch->scan == NULL || !ItemPointerEquals(tid, &fetch->tid))
		elog(ERROR, "meridian: index scan does not stand on the row asked for");
	if (fetch->index_only)
	{
		ExecStoreAllNullTuple(slot);
		slot->tts_tid = *tid;
		return true;
	}
	mer_scan_row(fetch->scan, slot);
	return true;
}

/* ---------- fetches by TID ---------- */

bool
mer_version_visible(MerVersion *version, uint64 cid_limit)
{
	MerBuf	   *buf = mer_buf_find(version->sid);
	MerEntry   *e;

	if (version->entry)
		return mer_entry_visible(version->entry, cid_limit) == version;
	e = buf ? mer_entry_find(buf, version->key, version->klen) : NULL;
	return e == NULL || mer_entry_visible(e, cid_limit) == NULL;
}

static bool
am_tuple_fetch_row_version(Relation rel, ItemPointer tid, Snapshot snapshot,
						   TupleTableSlot *slot)
{
	MerVersion *v = mer_tid_lookup(tid);

	if (mer_checks_pending())
		mer_checks_flush();
	if (v == NULL || v->sid != mer_rel(rel)->sid)
		return false;
	if (snapshot->snapshot_type != SNAPSHOT_ANY &&
		!mer_version_visible(v, mer_cid_limit(snapshot)))
		return false;
	mer_slot_store_version(slot, rel, v);
	return true;
}

static bool
am_tuple_tid_valid(TableScanDesc scan, ItemPointer tid)
{
	MerVersion *v = mer_tid_lookup(tid);

	return v != NULL && v->sid == mer_rel(scan->rs_rd)->sid;
}

static void
am_tuple_get_latest_tid(TableScanDesc sscan, ItemPointer tid)
{
	MerVersion *v = mer_tid_version(tid);
	MerBuf	   *buf = mer_buf_find(v->sid);
	MerEntry   *e = v->entry ? v->entry :
		buf ? mer_entry_find(buf, v->key, v->klen) : NULL;
	MerVersion *visible = e ? mer_entry_visible(e, mer_cid_limit(sscan->rs_snapshot)) : NULL;

	if (visible && !visible->tombstone)
		mer_tid_assign(visible, tid);
}

/* Foreign keys ask whether the new row is still there (SnapshotSelf). */
static bool
am_tuple_satisfies_snapshot(Relation rel, TupleTableSlot *slot, Snapshot snapshot)
{
	MerVersion *v = mer_tid_version(&slot->tts_tid);

	return snapshot->snapshot_type == SNAPSHOT_ANY ||
		mer_version_visible(v, mer_cid_limit(snapshot));
}

static TransactionId
am_index_delete_tuples(Relation rel, TM_IndexDeleteOp *delstate)
{
	not_supported("deleting index tuples", NULL);
}

/* ---------- storage of relations ---------- */

static void
am_set_new_filelocator(Relation rel, const RelFileLocator *newrlocator, char persistence,
					   TransactionId *freezeXid, MultiXactId *minmulti)
{
	*freezeXid = InvalidTransactionId;
	*minmulti = InvalidMultiXactId;
	if (persistence != RELPERSISTENCE_PERMANENT)
		not_supported(persistence == RELPERSISTENCE_TEMP ? "a temporary table" : "UNLOGGED",
					  "Temporary tables use the heap access method.");
	if (!mer_rewrite_new_table(rel))
		(void) mer_relmap_recreate(rel);
}

/* Only of relations that this transaction has created. */
static void
am_nontransactional_truncate(Relation rel)
{
	(void) mer_relmap_recreate(rel);
}

static void
am_copy_data(Relation rel, const RelFileLocator *newrlocator)
{
	not_supported("SET TABLESPACE", "Storage places rows itself.");
}

static void
am_copy_for_cluster(Relation OldTable, Relation NewTable, Relation OldIndex, bool use_sort,
					TransactionId OldestXmin, TransactionId *xid_cutoff,
					MultiXactId *multi_cutoff, double *num_tuples,
					double *tups_vacuumed, double *tups_recently_dead)
{
	not_supported("VACUUM FULL or CLUSTER", "Storage keeps tables compact and in key order itself.");
}

/* Storage drops old versions by itself: there is nothing to do. */
static void
am_vacuum(Relation rel, struct VacuumParams *params, BufferAccessStrategy bstrategy)
{
}

static double
am_index_build_range_scan(Relation table_rel, Relation index_rel, struct IndexInfo *index_info,
						  bool allow_sync, bool anyvisible, bool progress,
						  BlockNumber start_blockno, BlockNumber numblocks,
						  IndexBuildCallback callback, void *callback_state,
						  TableScanDesc scan)
{
	not_supported("this index access method", "Use btree.");
}

static void
am_index_validate_scan(Relation table_rel, Relation index_rel, struct IndexInfo *index_info,
					   Snapshot snapshot, struct ValidateIndexState *state)
{
	not_supported("CREATE INDEX CONCURRENTLY", "Use CREATE INDEX.");
}

static uint64
am_relation_size(Relation rel, ForkNumber forkNumber)
{
	double		rows,
				bytes;

	if (forkNumber != MAIN_FORKNUM && forkNumber != InvalidForkNumber)
		return 0;
	if (!mer_rel_stats(rel, &rows, &bytes))
		return 0;
	/* Never empty: ANALYZE scales by pages, and the rows may be ours alone yet. */
	return Max((uint64) bytes, BLCKSZ);
}

static bool
am_needs_toast_table(Relation rel)
{
	return false;
}

static void
am_estimate_size(Relation rel, int32 *attr_widths, BlockNumber *pages, double *tuples,
				 double *allvisfrac)
{
	double		rows = 0,
				bytes = 0;

	(void) mer_rel_stats(rel, &rows, &bytes);
	*tuples = rows;
	*pages = (BlockNumber) Min(bytes / BLCKSZ + 1, (double) MaxBlockNumber);
	*allvisfrac = 1.0;
}

static bool
am_sample_next_block(TableScanDesc scan, struct SampleScanState *scanstate)
{
	not_supported("TABLESAMPLE", "Use ORDER BY random() LIMIT.");
}

static bool
am_sample_next_tuple(TableScanDesc scan, struct SampleScanState *scanstate, TupleTableSlot *slot)
{
	not_supported("TABLESAMPLE", NULL);
}

static Size
am_parallelscan_estimate(Relation rel)
{
	not_supported("a parallel scan", NULL);
}

static Size
am_parallelscan_initialize(Relation rel, ParallelTableScanDesc pscan)
{
	not_supported("a parallel scan", NULL);
}

static void
am_parallelscan_reinitialize(Relation rel, ParallelTableScanDesc pscan)
{
	not_supported("a parallel scan", NULL);
}

static bool
am_analyze_next_block(TableScanDesc scan, ReadStream *stream)
{
	return mer_analyze_next_block(scan, stream);
}

static TableAmRoutine routine = {
	.type = T_TableAmRoutine,
	.slot_callbacks = am_slot_callbacks,
	.scan_begin = am_scan_begin,
	.scan_end = am_scan_end,
	.scan_rescan = am_scan_rescan,
	.scan_getnextslot = am_scan_getnextslot,
	.parallelscan_estimate = am_parallelscan_estimate,
	.parallelscan_initialize = am_parallelscan_initialize,
	.parallelscan_reinitialize = am_parallelscan_reinitialize,
	.index_fetch_begin = am_index_fetch_begin,
	.index_fetch_reset = am_index_fetch_reset,
	.index_fetch_end = am_index_fetch_end,
	.index_fetch_tuple = am_index_fetch_tuple,
	.tuple_fetch_row_version = am_tuple_fetch_row_version,
	.tuple_tid_valid = am_tuple_tid_valid,
	.tuple_get_latest_tid = am_tuple_get_latest_tid,
	.tuple_satisfies_snapshot = am_tuple_satisfies_snapshot,
	.index_delete_tuples = am_index_delete_tuples,
	.relation_set_new_filelocator = am_set_new_filelocator,
	.relation_nontransactional_truncate = am_nontransactional_truncate,
	.relation_copy_data = am_copy_data,
	.relation_copy_for_cluster = am_copy_for_cluster,
	.relation_vacuum = am_vacuum,
	.scan_analyze_next_block = am_analyze_next_block,
	.scan_analyze_next_tuple = mer_analyze_next_tuple,
	.index_build_range_scan = am_index_build_range_scan,
	.index_validate_scan = am_index_validate_scan,
	.relation_size = am_relation_size,
	.relation_needs_toast_table = am_needs_toast_table,
	.relation_estimate_size = am_estimate_size,
	.scan_bitmap_next_tuple = am_scan_bitmap_next_tuple,
	.scan_sample_next_block = am_sample_next_block,
	.scan_sample_next_tuple = am_sample_next_tuple,
};

const TableAmRoutine *
mer_table_routine(void)
{
	return &routine;
}

PG_FUNCTION_INFO_V1(mer_tableam_handler);

Datum
mer_tableam_handler(PG_FUNCTION_ARGS)
{
	mer_write_methods(&routine);
	PG_RETURN_POINTER(&routine);
}
