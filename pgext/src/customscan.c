/*
 * customscan.c
 *	  "Meridian Scan": a sequential scan of one of our tables that tells
 *	  storage which columns and rows are wanted.
 *
 * All conditions stay in plan.qual as well: what goes out is a superset hint,
 * so rows of this transaction's own write buffer, which never pass storage,
 * are filtered all the same.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "utils/rel.h"

#include "push.h"
#include "store.h"

typedef struct ScanPlanState
{
	CustomScanState css;
	List	   *clauses;		/* pushed, for EXPLAIN */
	MerFilter  *filter;			/* NULL: none pushed */
	StringInfoData filter_buf;
	MerScanSpec spec;
	MerScan    *scan;			/* NULL: not begun */
	bool		empty;			/* no row can qualify: storage was not asked */
	MerNodeCounters counters;
} ScanPlanState;

static Plan *plan_scan(PlannerInfo *root, RelOptInfo *rel, CustomPath *path,
					   List *tlist, List *clauses, List *custom_plans);
static Node *create_scan_state(CustomScan *cscan);
static void begin_scan(CustomScanState *node, EState *estate, int eflags);
static TupleTableSlot *exec_scan(CustomScanState *node);
static void end_scan(CustomScanState *node);
static void rescan_scan(CustomScanState *node);
static void explain_scan(CustomScanState *node, List *ancestors, ExplainState *es);

static const CustomPathMethods path_methods = {
	.CustomName = "Meridian Scan",
	.PlanCustomPath = plan_scan,
};

static const CustomScanMethods scan_methods = {
	.CustomName = "Meridian Scan",
	.CreateCustomScanState = create_scan_state,
};

static const CustomExecMethods exec_methods = {
	.CustomName = "Meridian Scan",
	.BeginCustomScan = begin_scan,
	.ExecCustomScan = exec_scan,
	.EndCustomScan = end_scan,
	.ReScanCustomScan = rescan_scan,
	.ExplainCustomScan = explain_scan,
};

/* ---------- planning ---------- */

bool
mer_rte_is_ours(RangeTblEntry *rte)
{
	Relation	rel;
	bool		ours;

	if (rte->rtekind != RTE_RELATION || rte->inh || rte->tablesample != NULL ||
		(rte->relkind != RELKIND_RELATION && rte->relkind != RELKIND_MATVIEW))
		return false;
	rel = table_open(rte->relid, NoLock);
	ours = mer_is_table(rel);
	table_close(rel, NoLock);
	return ours;
}

/* The rows storage would still send with the pushable clauses applied. */
static double
rows_shipped(PlannerInfo *root, RelOptInfo *rel)
{
	List	   *pushed = NIL;

	foreach_node(RestrictInfo, rinfo, rel->baserestrictinfo)
	{
		bool		exact;

		if (mer_push_extract(rinfo->clause, rel->relid, &exact) != NULL && exact)
			pushed = lappend(pushed, rinfo);
	}
	return clamp_row_est(rel->tuples *
						 clauselist_selectivity(root, pushed, rel->relid,
												JOIN_INNER, NULL));
}

static void
cost_scan_path(PlannerInfo *root, RelOptInfo *rel, Path *path)
{
	double		shipped = rows_shipped(root, rel);
	QualCost	qual = rel->baserestrictcost;

	path->rows = path->param_info ? path->param_info->ppi_rows : rel->rows;
	path->startup_cost = mer_round_trip_cost + qual.startup +
		path->pathtarget->cost.startup;
	path->total_cost = path->startup_cost - mer_round_trip_cost +
		MER_FULL_SCAN_PAGES * seq_page_cost +
		mer_scan_cost(mer_rows_in_range(root, rel), shipped, rel->reltarget->width) +
		shipped * (cpu_tuple_cost + qual.per_tuple) +
		path->rows * path->pathtarget->cost.per_tuple;
	path->disabled_nodes = enable_seqscan ? 0 : 1;
}

static bool
has_or_clause(List *clauses)
{
	foreach_node(RestrictInfo, rinfo, clauses)
		if (restriction_is_or_clause(rinfo))
			return true;
	return false;
}

static void
set_bitmaps(RelOptInfo *rel, bool on)
{
	foreach_node(IndexOptInfo, info, rel->indexlist)
		info->amhasgetbitmap = on;
}

/*
 * An index scan brings its rows along, a bitmap scan asks for them once more;
 * at core's prices the two look alike.  So the planner has not considered
 * bitmaps (mer_relation_info).  Where conditions are ORed, unions of indexes
 * are made up for here, at our price.
 */
static void
add_bitmap_paths(PlannerInfo *root, RelOptInfo *rel)
{
	List	   *kept = rel->pathlist;
	List	   *found;

	rel->pathlist = NIL;
	set_bitmaps(rel, true);
	create_index_paths(root, rel);
	set_bitmaps(rel, false);
	found = rel->pathlist;
	rel->pathlist = kept;
	foreach_ptr(Path, path, found)
	{
		if (!IsA(path, BitmapHeapPath) || IsA(((BitmapHeapPath *) path)->bitmapqual, IndexPath))
			continue;
		path->startup_cost += mer_round_trip_cost;
		path->total_cost += mer_round_trip_cost +
			mer_rows_cost(path->rows, rel->reltarget->width);
		add_path(rel, path);
	}
}

void
mer_scan_pathlist(PlannerInfo *root, RelOptInfo *rel, Index rti, RangeTblEntry *rte)
{
	CustomPath *path;
	ListCell   *lc;

	if (IS_DUMMY_REL(rel) || !mer_rte_is_ours(rte))
		return;
	foreach(lc, rel->pathlist)
	{
		if (((Path *) lfirst(lc))->pathtype == T_SeqScan)
		{
			rel->pathlist = foreach_delete_current(rel->pathlist, lc);
		}
	}
	/* No sequential scan left: an index path dominated it at heap prices. */
	rel->partial_pathlist = NIL;
	if (rel->indexlist != NIL &&
		(has_or_clause(rel->baserestrictinfo) || has_or_clause(rel->joininfo)))
		add_bitmap_paths(root, rel);

	path = makeNode(CustomPath);
	path->path.pathtype = T_CustomScan;
	path->path.parent = rel;
	path->path.pathtarget = rel->reltarget;
	path->path.param_info = get_baserel_parampathinfo(root, rel, rel->lateral_relids);
	path->flags = CUSTOMPATH_SUPPORT_BACKWARD_SCAN | CUSTOMPATH_SUPPORT_PROJECTION;
	path->methods = &path_methods;
	cost_scan_path(root, rel, &path->path);
	add_path(rel, &path->path);
}

/*
 * Rows that will be updated or locked are needed whole; the statement names
 * their ctid.  Whether TIDs are kept is the transaction's affair (hooks.c).
 */
static bool
needs_whole_rows(Bitmapset *attrs)
{
	return bms_is_member(SelfItemPointerAttributeNumber -
						 FirstLowInvalidHeapAttributeNumber, attrs);
}

/* Attribute numbers as a list of integers for custom_private; NIL means all. */
static List *
column_list(Bitmapset *attrs, bool all)
{
	List	   *result = NIL;
	int			x = -1;

	if (all || bms_is_member(-FirstLowInvalidHeapAttributeNumber, attrs))
		return NIL;
	/* Never empty, which would mean all. */
	result = list_make1_int(TableOidAttributeNumber);
	while ((x = bms_next_member(attrs, x)) >= 0)
		if (x + FirstLowInvalidHeapAttributeNumber > 0)
			result = lappend_int(result, x + FirstLowInvalidHeapAttributeNumber);
	return result;
}

/* How many rows the statement will take from this scan, 0 if unknown. */
static double
wanted_rows(PlannerInfo *root, RelOptInfo *rel, bool exact)
{
	if (root->limit_tuples < 0 || !exact || root->parse->sortClause != NIL ||
		!bms_equal(root->all_baserels, rel->relids))
		return 0;
	return root->limit_tuples;
}

static Plan *
plan_scan(PlannerInfo *root, RelOptInfo *rel, CustomPath *path, List *tlist,
		  List *clauses, List *custom_plans)
{
	CustomScan *cscan = makeNode(CustomScan);
	List	   *quals = extract_actual_clauses(clauses, false);
	List	   *pushed = NIL;
	Bitmapset  *attrs = NULL;
	bool		all_exact = true;

	foreach_ptr(Expr, clause, quals)
	{
		bool		exact = false;
		Expr	   *part = mer_enable_pushdown ?
			mer_push_extract(clause, rel->relid, &exact) : NULL;

		if (part != NULL)
			pushed = lappend(pushed, part);
		all_exact &= exact;
	}
	pull_varattnos((Node *) rel->reltarget->exprs, rel->relid, &attrs);
	pull_varattnos((Node *) path->path.pathtarget->exprs, rel->relid, &attrs);
	pull_varattnos((Node *) quals, rel->relid, &attrs);

	cscan->scan.plan.targetlist = tlist;
	cscan->scan.plan.qual = quals;
	cscan->scan.scanrelid = rel->relid;
	cscan->flags = path->flags;
	cscan->custom_exprs = pushed;
	cscan->custom_private = list_make2(column_list(attrs, needs_whole_rows(attrs) ||
												   !mer_enable_pushdown),
									   makeInteger((int) Min(wanted_rows(root, rel, all_exact),
															 (double) INT_MAX)));
	cscan->methods = &scan_methods;
	return &cscan->scan.plan;
}

/* ---------- execution ---------- */

static Node *
create_scan_state(CustomScan *cscan)
{
	ScanPlanState *state = (ScanPlanState *) newNode(sizeof(ScanPlanState),
													 T_CustomScanState);

	state->css.methods = &exec_methods;
	state->css.slotOps = mer_slot_ops();
	return (Node *) state;
}

/* Conditions that name ctid want it before they are looked at. */
static bool
tids_can_wait(CustomScan *cscan)
{
	Bitmapset  *attrs = NULL;

	if (cscan->scan.plan.qual == NIL)
		return false;
	pull_varattnos((Node *) cscan->scan.plan.qual, cscan->scan.scanrelid, &attrs);
	return !bms_is_member(SelfItemPointerAttributeNumber - FirstLowInvalidHeapAttributeNumber,
						  attrs);
}

static void
begin_scan(CustomScanState *node, EState *estate, int eflags)
{
	ScanPlanState *state = (ScanPlanState *) node;
	CustomScan *cscan = castNode(CustomScan, node->ss.ps.plan);
	List	   *columns = linitial(cscan->custom_private);

	state->clauses = cscan->custom_exprs;
	if (state->clauses != NIL)
		state->filter = mer_filter_compile(state->clauses, cscan->scan.scanrelid,
										   NULL, &node->ss.ps);
	initStringInfo(&state->filter_buf);
	state->spec.table = node->ss.ss_currentRelation;
	state->spec.direction = ForwardScanDirection;
	state->spec.late_tids = tids_can_wait(cscan);
	foreach_int(attnum, columns)
		state->spec.attrs = bms_add_member(state->spec.attrs,
										   attnum - FirstLowInvalidHeapAttributeNumber);
	state->spec.limit = intVal(lsecond(cscan->custom_private));
}

/* A column this transaction has added is not in storage yet. */
static bool
filter_is_stored(ScanPlanState *state)
{
	MerRel	   *mrel = mer_rel(state->spec.table);

	return mer_filter_last_column(state->filter) <=
		mer_txn_stored_natts(mrel->sid, mrel->natts);
}

/* Encode the filter with the values of this (re)scan. */
static void
prepare_spec(ScanPlanState *state)
{
	bool		exact;
	MerFilterResult result = MER_FILTER_TRUE;

	resetStringInfo(&state->filter_buf);
	if (state->filter && filter_is_stored(state))
	{
		ExprContext *econtext = state->css.ss.ps.ps_ExprContext;

		result = mer_filter_encode(state->filter, econtext, &state->filter_buf, &exact);
		if (!mer_filter_bound(state->filter, econtext, &state->spec))
			result = MER_FILTER_FALSE;
	}
	state->empty = result == MER_FILTER_FALSE;
	state->spec.filter = result == MER_FILTER_SOME ? state->filter_buf.data : NULL;
	state->spec.filter_len = result == MER_FILTER_SOME ? state->filter_buf.len : 0;
}

static TupleTableSlot *
next_row(ScanState *ss)
{
	ScanPlanState *state = (ScanPlanState *) ss;
	EState	   *estate = ss->ps.state;
	TupleTableSlot *slot = ss->ss_ScanTupleSlot;
	bool		found;

	if (state->empty)
		return ExecClearTuple(slot);
	mer_count_start(&state->counters);
	if (state->scan == NULL)
	{
		/* The first row may be asked for in a context that ends before us. */
		MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);

		prepare_spec(state);
		if (!state->empty)
			state->scan = mer_scan_begin(&state->spec, estate->es_snapshot);
		MemoryContextSwitchTo(old);
	}
	found = state->scan && mer_scan_next(state->scan, estate->es_direction, slot);
	mer_count_stop(&state->counters);
	if (!found)
		return ExecClearTuple(slot);
	slot->tts_tableOid = RelationGetRelid(ss->ss_currentRelation);
	return slot;
}

static bool
recheck_row(ScanState *ss, TupleTableSlot *slot)
{
	return true;				/* ExecScan evaluates all quals anyway */
}

/*
 * What ExecScan does, but a row gets its TID, and with it a place in this
 * transaction's memory, only once it has passed the conditions.
 */
static TupleTableSlot *
exec_late(ScanPlanState *state)
{
	ScanState  *ss = &state->css.ss;
	ExprContext *econtext = ss->ps.ps_ExprContext;
	ProjectionInfo *projection = ss->ps.ps_ProjInfo;

	for (;;)
	{
		TupleTableSlot *slot;

		ResetExprContext(econtext);
		slot = next_row(ss);
		if (TupIsNull(slot))
			return projection ? ExecClearTuple(projection->pi_state.resultslot) : slot;
		econtext->ecxt_scantuple = slot;
		if (ExecQual(ss->ps.qual, econtext))
		{
			mer_scan_keep(state->scan, slot);
			return projection ? ExecProject(projection) : slot;
		}
		InstrCountFiltered1(ss, 1);
	}
}

static TupleTableSlot *
exec_scan(CustomScanState *node)
{
	ScanPlanState *state = (ScanPlanState *) node;

	if (state->spec.late_tids)
		return exec_late(state);
	return ExecScan(&node->ss, next_row, recheck_row);
}

static void
end_scan(CustomScanState *node)
{
	ScanPlanState *state = (ScanPlanState *) node;

	if (state->scan)
		mer_scan_end(state->scan);
	state->scan = NULL;
}

static void
rescan_scan(CustomScanState *node)
{
	ScanPlanState *state = (ScanPlanState *) node;

	state->empty = false;
	if (state->scan)
	{
		prepare_spec(state);
		if (state->empty)
			end_scan(node);
		else
			mer_scan_rescan(state->scan, &state->spec);
	}
	ExecScanReScan(&node->ss);
}

static void
explain_scan(CustomScanState *node, List *ancestors, ExplainState *es)
{
	ScanPlanState *state = (ScanPlanState *) node;

	mer_explain_filter(state->clauses, "Storage Filter", &node->ss.ps, ancestors, es);
	mer_explain_columns(node->ss.ss_currentRelation, state->spec.attrs, es);
	mer_explain_counters(&state->counters, es);
}

void
mer_customscan_init(void)
{
	RegisterCustomScanMethods(&scan_methods);
}
