/*
 * cost.c
 *	  What reads cost: round trips, rows and bytes instead of pages.
 *
 * Row counts come from storage and are kept for a short time, so that
 * planning costs no round trip each time.
 */
#include "postgres.h"

#include <math.h>

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/selfuncs.h"
#include "utils/timestamp.h"

#include "push.h"
#include "store.h"

#define MAX_CACHED_STATS 4096

/* What every full scan costs, however small the table. */
#define FIXED_PAGES (MER_FULL_SCAN_PAGES + mer_round_trip_cost)

/* Rows of one answer, in bytes, for counting round trips. */
#define PAGE_BYTES_ASSUMED (256.0 * 1024)

/* A table nobody has analysed is planned as at least this big: it may fill. */
#define UNANALYSED_ROWS 10000.0

/* Whole keys of a table asked for in one request. */
#define KEYS_PER_TRIP 1024

/* Storage's work per row looked at. */
#define EXAMINE_ROW_COST 0.01
#define FETCH_BYTE_COST 0.0001

double		mer_round_trip_cost = 10.0;
double		mer_row_fetch_cost = 0.03;
int			mer_stats_ttl_ms = 10000;

/*
 * After a large commit of our own the counts held are wrong, and those of
 * storage may still be about to grow.
 */
#define BULK_ROWS 1000
#define BULK_SETTLE_MS 3000
#define BULK_TTL_MS 200

typedef struct StatsEntry
{
	int64		sid;			/* hash key */
	double		rows;
	double		bytes;
	TimestampTz fetched_at;
} StatsEntry;

static HTAB *stats_cache;
static TimestampTz bulk_commit_at;

/* ---------- statistics from storage ---------- */

void
mer_rel_stats_forget(void)
{
	if (stats_cache)
		hash_destroy(stats_cache);
	stats_cache = NULL;
}

static StatsEntry *
stats_lookup(int64 sid)
{
	return stats_cache ? hash_search(stats_cache, &sid, HASH_FIND, NULL) : NULL;
}

static bool
stats_fresh(int64 sid)
{
	StatsEntry *entry = stats_lookup(sid);
	TimestampTz now = GetCurrentTimestamp();
	int			ttl_ms = mer_stats_ttl_ms;

	if (!TimestampDifferenceExceeds(bulk_commit_at, now, BULK_SETTLE_MS))
		ttl_ms = Min(ttl_ms, BULK_TTL_MS);
	return entry != NULL && !TimestampDifferenceExceeds(entry->fetched_at, now, ttl_ms);
}

static void
transaction_ends(XactEvent event, void *arg)
{
	static bool bulk;

	if (event == XACT_EVENT_PRE_COMMIT)
		bulk = mer_txn.rows >= BULK_ROWS;
	else if (event == XACT_EVENT_COMMIT && bulk)
	{
		mer_rel_stats_forget();
		bulk_commit_at = GetCurrentTimestamp();
	}
}

void
mer_cost_init(void)
{
	RegisterXactCallback(transaction_ends, NULL);
}

static void
stats_enter(int64 sid, double rows, double bytes)
{
	StatsEntry *entry;

	if (stats_cache && hash_get_num_entries(stats_cache) >= MAX_CACHED_STATS)
		mer_rel_stats_forget();
	if (stats_cache == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(int64), .entrysize = sizeof(StatsEntry)};

		stats_cache = hash_create("meridian statistics", 64, &ctl,
								  HASH_ELEM | HASH_BLOBS);
	}
	entry = hash_search(stats_cache, &sid, HASH_ENTER, NULL);
	entry->rows = rows;
	entry->bytes = bytes;
	entry->fetched_at = GetCurrentTimestamp();
}

/* One round trip for all storage ids that are not known or known too long. */
static void
stats_fetch(const int64 *sids, int nsids)
{
	StringInfoData buf;
	MerReply	reply;
	uint32		id,
				n;

	initStringInfo(&buf);
	id = mer_wire_begin(&buf, MER_STATS, 3);
	mp_put_array(&buf, nsids);
	for (int i = 0; i < nsids; i++)
		mp_put_int(&buf, sids[i]);
	reply = mer_wire_call(&buf, id);
	n = mp_get_array(&reply.body);
	if (n != (uint32) nsids)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("storage answered statistics of %u relations instead of %d",
						n, nsids)));
	for (int i = 0; i < nsids; i++)
	{
		int64		rows,
					bytes;

		if (mp_get_array(&reply.body) != 2)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("malformed statistics from storage")));
		rows = mp_get_int(&reply.body);
		bytes = mp_get_int(&reply.body);
		stats_enter(sids[i], Max(rows, 0), Max(bytes, 0));
	}
	pfree(reply.frame);
	pfree(buf.data);
}

bool
mer_rel_stats(Relation rel, double *rows, double *bytes)
{
	MerRel	   *mrel = mer_rel(rel);
	int64		sid = mrel->primary_of_organised ? mrel->table_sid : mrel->sid;
	StatsEntry *entry;

	if (!stats_fresh(sid))
		stats_fetch(&sid, 1);
	entry = stats_lookup(sid);
	if (entry == NULL)
		return false;
	*rows = entry->rows;
	*bytes = entry->bytes;
	return true;
}

/* ---------- get_relation_info ---------- */

/*
 * "Pages" of a table: what reading all of it costs, in units of
 * seq_page_cost.  Core's own sequential scan, which set_rel_pathlist_hook
 * will replace, must never look cheaper than ours, or it would drive out index
 * paths before the hook runs; and core charges an index scan its share of
 * these pages for the rows it fetches.
 */
static BlockNumber
pages_of(double rows, double bytes)
{
	double		width = rows > 0 ? bytes / rows : 0;
	double		pages = FIXED_PAGES + mer_rows_cost(rows, width) + rows * EXAMINE_ROW_COST +
		mer_round_trip_cost * (mer_round_trips(rows, width) - 1);

	return (BlockNumber) Min(ceil(pages), (double) MaxBlockNumber);
}

/* The statistics of a table and of all its indexes in one round trip. */
static void
prefetch_stats(const int64 *sids, int nsids)
{
	int64	   *missing = palloc(sizeof(int64) * nsids);
	int			n = 0;

	for (int i = 0; i < nsids; i++)
		if (!stats_fresh(sids[i]))
			missing[n++] = sids[i];
	if (n > 0)
		stats_fetch(missing, n);
	pfree(missing);
}

static void
index_info_from_stats(IndexOptInfo *info, int64 sid, double table_rows)
{
	StatsEntry *entry = stats_lookup(sid);
	double		rows = entry ? entry->rows : table_rows;

	/* A full index has the table's rows; a partial one what it has. */
	info->tuples = info->indpred ? Min(Max(rows, 1), table_rows) : table_rows;
	info->pages = (BlockNumber) clamp_row_est(Min(rows / 100, (double) MaxBlockNumber));
	info->tree_height = 1;
	/* Asked for by mer_scan_pathlist only where it pays. */
	info->amhasgetbitmap = false;
}

void
mer_relation_info(PlannerInfo *root, Oid relid, bool inhparent, RelOptInfo *rel)
{
	Relation	table;
	int64	   *sids;
	int			nsids = 0,
				i = 1;
	StatsEntry *entry;

	if (inhparent)
		return;
	table = table_open(relid, NoLock);
	if (!mer_is_table(table))
	{
		table_close(table, NoLock);
		return;
	}
	sids = palloc(sizeof(int64) * (list_length(rel->indexlist) + 1));
	sids[nsids++] = mer_rel(table)->sid;
	foreach_node(IndexOptInfo, info, rel->indexlist)
	{
		Relation	index = index_open(info->indexoid, NoLock);

		sids[nsids++] = mer_rel(index)->primary_of_organised ? sids[0] :
			mer_rel(index)->sid;
		index_close(index, NoLock);
	}
	prefetch_stats(sids, nsids);
	entry = stats_lookup(sids[0]);
	if (entry != NULL)
	{
		rel->tuples = Max(entry->rows, table->rd_rel->reltuples < 0 ? UNANALYSED_ROWS : 1);
		rel->pages = pages_of(rel->tuples, entry->bytes);
		rel->allvisfrac = 1.0;
		foreach_node(IndexOptInfo, info, rel->indexlist)
			index_info_from_stats(info, sids[i++], rel->tuples);
	}
	table_close(table, NoLock);
}

/* ---------- the model ---------- */

double
mer_round_trips(double rows, double row_bytes)
{
	return Max(1.0, ceil(rows * (row_bytes + 16) / PAGE_BYTES_ASSUMED));
}

/* Rows on their way here. */
Cost
mer_rows_cost(double rows, double row_bytes)
{
	return rows * (mer_row_fetch_cost + row_bytes * FETCH_BYTE_COST);
}

Cost
mer_scan_cost(double rows_examined, double rows_shipped, double row_bytes)
{
	return mer_round_trip_cost * mer_round_trips(rows_shipped, row_bytes) +
		rows_examined * EXAMINE_ROW_COST + mer_rows_cost(rows_shipped, row_bytes);
}

/* Is the index the table's own order, with no entries apart from the rows? */
static bool
is_table_order(Oid indexoid)
{
	Relation	index = index_open(indexoid, NoLock);
	bool		result = mer_rel(index)->primary_of_organised;

	index_close(index, NoLock);
	return result;
}

IndexOptInfo *
mer_table_order(RelOptInfo *rel)
{
	foreach_node(IndexOptInfo, info, rel->indexlist)
		if (is_table_order(info->indexoid))
			return info;
	return NULL;
}

/* Does the clause compare the column with something else, in the family's order? */
static bool
bounds_column(Expr *clause, IndexOptInfo *index, AttrNumber attnum)
{
	OpExpr	   *op = (OpExpr *) clause;

	if (!IsA(op, OpExpr) || list_length(op->args) != 2 ||
		get_op_opfamily_strategy(op->opno, index->opfamily[0]) == 0)
		return false;
	foreach_ptr(Expr, arg, op->args)
	{
		Var		   *var = mer_push_column(arg, index->rel->relid);

		if (var != NULL && var->varattno == attnum)
			return true;
	}
	return false;
}

double
mer_rows_in_range(PlannerInfo *root, RelOptInfo *rel)
{
	IndexOptInfo *index = mer_table_order(rel);
	List	   *quals = NIL;

	if (index == NULL)
		return rel->tuples;
	foreach_node(RestrictInfo, rinfo, rel->baserestrictinfo)
		if (bounds_column(rinfo->clause, index, index->indexkeys[0]))
			quals = lappend(quals, rinfo);
	return clamp_row_est(rel->tuples * clauselist_selectivity(root, quals, rel->relid,
															  JOIN_INNER, NULL));
}

/* What an index scan's conditions bound. */
typedef struct IndexBounds
{
	List	   *quals;			/* those that bound the range read */
	double		ranges;			/* separate ranges (= ANY) */
	bool		point;			/* equality on all columns of a unique index */
} IndexBounds;

/*
 * One index qual as a bound: does it fix its column to one value (per range)?
 */
static bool
qual_is_equality(PlannerInfo *root, IndexOptInfo *index, int column,
				 Expr *clause, IndexBounds *bounds, bool *plain)
{
	Oid			opno = InvalidOid;

	*plain = true;
	if (IsA(clause, OpExpr))
		opno = ((OpExpr *) clause)->opno;
	else if (IsA(clause, ScalarArrayOpExpr))
	{
		ScalarArrayOpExpr *saop = (ScalarArrayOpExpr *) clause;

		opno = saop->opno;
		bounds->ranges *= Max(1.0, estimate_array_length(root, lsecond(saop->args)));
	}
	else if (IsA(clause, NullTest))
	{
		*plain = false;
		return ((NullTest *) clause)->nulltesttype == IS_NULL;
	}
	return OidIsValid(opno) &&
		get_op_opfamily_strategy(opno, index->opfamily[column]) == BTEqualStrategyNumber;
}

/* Equalities on leading columns and the first inequality bound the range. */
static void
find_bounds(PlannerInfo *root, IndexPath *path, IndexBounds *bounds)
{
	IndexOptInfo *index = path->indexinfo;
	int			column = 0;
	bool		equal_here = false,
				all_plain = true,
				stopped = false;

	bounds->quals = NIL;
	bounds->ranges = 1;
	foreach_node(IndexClause, iclause, path->indexclauses)
	{
		if (iclause->indexcol != column)
		{
			if (!equal_here || iclause->indexcol != column + 1)
			{
				stopped = true;
				break;
			}
			column++;
			equal_here = false;
		}
		foreach_node(RestrictInfo, rinfo, iclause->indexquals)
		{
			bool		plain;

			equal_here |= qual_is_equality(root, index, column, rinfo->clause,
										   bounds, &plain);
			all_plain &= plain;
			bounds->quals = lappend(bounds->quals, rinfo);
		}
	}
	bounds->point = index->unique && !stopped && equal_here && all_plain &&
		column == index->nkeycolumns - 1;
}

static Selectivity
quals_selectivity(PlannerInfo *root, IndexOptInfo *index, List *quals)
{
	return clauselist_selectivity(root, add_predicate_to_index_quals(index, quals),
								  index->rel->relid, JOIN_INNER, NULL);
}

void
mer_index_cost(PlannerInfo *root, IndexPath *path, double loop_count,
			   double *startup_cost, double *total_cost, double *selectivity,
			   double *correlation, double *pages)
{
	IndexOptInfo *index = path->indexinfo;
	bool		only = path->path.pathtype == T_IndexOnlyScan;
	bool		by_row = is_table_order(index->indexoid);
	double		width = index->rel->reltarget->width;
	List	   *all_quals = get_quals_from_indexclauses(path->indexclauses);
	IndexBounds bounds;
	double		entries,
				trips;

	find_bounds(root, path, &bounds);
	*selectivity = quals_selectivity(root, index, all_quals);
	if (bounds.point)
	{
		entries = bounds.ranges;
		*selectivity = Min(*selectivity, entries / index->rel->tuples);
	}
	else
		entries = rint(quals_selectivity(root, index, bounds.quals) * index->tuples);
	entries = clamp_row_est(Min(entries, Max(index->tuples, 1)));

	/*
	 * One request per range, but whole row keys go together; a long range
	 * takes more than one.  Rows are joined to their entries in storage, so
	 * that a secondary index costs a lookup there but no round trip.  Core
	 * adds the rows' share of the table's pages on top, except for index-only
	 * scans; the fixed part of those pages is no cost of this scan.
	 */
	trips = bounds.point && by_row ? ceil(bounds.ranges / KEYS_PER_TRIP) : bounds.ranges;
	*startup_cost = mer_round_trip_cost;
	*total_cost = (trips - 1) * mer_round_trip_cost +
		mer_scan_cost(entries, only ? entries : 0, width) +
		entries * (cpu_index_tuple_cost + list_length(all_quals) * cpu_operator_cost);
	if (!only && loop_count == 1)
		*total_cost -= *selectivity * FIXED_PAGES;
	if (bounds.quals == NIL)
		*total_cost += MER_FULL_SCAN_PAGES * seq_page_cost;
	if (!only && !by_row)
		*total_cost += entries * MER_LOOKUP_ROW_COST;
	*correlation = 1.0;
	*pages = Max(1.0, ceil(entries / 100));
}
