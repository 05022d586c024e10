/*
 * joinpush.c
 *	  "Meridian Join": planning of joins that look up a table of ours by its
 *	  whole primary key, many keys per round trip.
 *
 * An ordinary nested loop asks storage once per outer row.  Here the outer
 * rows are taken in batches and their keys fetched together (joinexec.c).
 * Inner joins of read-only statements only: those that lock or change rows
 * find them again through the scan nodes core knows.
 */
#include "postgres.h"

#include <math.h>

#include "access/stratnum.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "utils/lsyscache.h"

#include "joinpush.h"

static Plan *plan_join(PlannerInfo *root, RelOptInfo *rel, CustomPath *path,
					   List *tlist, List *clauses, List *custom_plans);

static const CustomPathMethods path_methods = {
	.CustomName = "Meridian Join",
	.PlanCustomPath = plan_join,
};

/* ---------- which joins ---------- */

/* The outer side of "inner key column = expression of the outer rows", or NULL. */
static Expr *
match_key_clause(RestrictInfo *rinfo, IndexOptInfo *index, int column,
				 RelOptInfo *inner, RelOptInfo *outer)
{
	OpExpr	   *op = (OpExpr *) rinfo->clause;
	AttrNumber	attnum = index->indexkeys[column];

	if (!IsA(op, OpExpr) || list_length(op->args) != 2 ||
		get_op_opfamily_strategy(op->opno, index->opfamily[column]) != BTEqualStrategyNumber)
		return NULL;
	for (int side = 0; side < 2; side++)
	{
		Var		   *var = mer_push_column(list_nth(op->args, side), inner->relid);
		Expr	   *other = list_nth(op->args, 1 - side);
		Relids		relids = side == 0 ? rinfo->right_relids : rinfo->left_relids;

		/* Of the key's own type: its encoding is the key. */
		if (var != NULL && var->varattno == attnum &&
			exprType((Node *) other) == index->opcintype[column] &&
			op->inputcollid == index->indexcollations[column] &&
			!bms_is_empty(relids) && bms_is_subset(relids, outer->relids) &&
			!contain_volatile_functions((Node *) other) &&
			!contain_subplans((Node *) other))
			return other;
	}
	return NULL;
}

/* One outer expression per key column, or NIL. */
static List *
match_keys(List *restrictlist, IndexOptInfo *index, RelOptInfo *inner, RelOptInfo *outer)
{
	List	   *keys = NIL;

	for (int column = 0; column < index->nkeycolumns; column++)
	{
		Expr	   *key = NULL;

		foreach_node(RestrictInfo, rinfo, restrictlist)
		{
			key = match_key_clause(rinfo, index, column, inner, outer);
			if (key != NULL)
				break;
		}
		if (key == NULL)
			return NIL;
		keys = lappend(keys, key);
	}
	return keys;
}

static bool
join_qualifies(PlannerInfo *root, RelOptInfo *outer, RelOptInfo *inner, JoinType jointype)
{
	return jointype == JOIN_INNER && mer_enable_pushdown &&
		root->parse->commandType == CMD_SELECT && root->parse->rowMarks == NIL &&
		root->rowMarks == NIL && !root->hasPseudoConstantQuals &&
		inner->reloptkind == RELOPT_BASEREL && inner->lateral_relids == NULL &&
		outer->cheapest_total_path != NULL &&
		outer->cheapest_total_path->param_info == NULL &&
		mer_rte_is_ours(planner_rt_fetch(inner->relid, root));
}

/* ---------- path ---------- */

static void
cost_join_path(CustomPath *path, Path *outer, RelOptInfo *joinrel, RelOptInfo *inner,
			   int nquals)
{
	double		rows = outer->rows;
	double		batches = ceil(rows / MER_JOIN_BATCH);

	path->path.rows = joinrel->rows;
	path->path.startup_cost = outer->startup_cost + mer_round_trip_cost;
	path->path.total_cost = outer->total_cost + Max(batches, 1) * mer_round_trip_cost +
		mer_rows_cost(rows, inner->reltarget->width) +
		rows * (MER_LOOKUP_ROW_COST + cpu_tuple_cost + (nquals + 1) * cpu_operator_cost) +
		joinrel->reltarget->cost.startup +
		joinrel->rows * (cpu_tuple_cost + joinrel->reltarget->cost.per_tuple);
}

void
mer_join_pathlist(PlannerInfo *root, RelOptInfo *joinrel, RelOptInfo *outer,
				  RelOptInfo *inner, JoinType jointype, JoinPathExtraData *extra)
{
	IndexOptInfo *index;
	CustomPath *path;
	List	   *keys;
	List	   *quals;

	if (!join_qualifies(root, outer, inner, jointype))
		return;
	index = mer_table_order(inner);
	if (index == NULL)
		return;
	keys = match_keys(extra->restrictlist, index, inner, outer);
	if (keys == NIL || joinrel->lateral_relids != NULL)
		return;
	/* Row security orders its conditions before others; this node does not. */
	foreach_node(RestrictInfo, rinfo, list_concat_copy(extra->restrictlist,
													   inner->baserestrictinfo))
		if (rinfo->security_level > 0)
			return;
	quals = list_concat_copy(extract_actual_clauses(extra->restrictlist, false),
							 extract_actual_clauses(inner->baserestrictinfo, false));

	path = makeNode(CustomPath);
	path->path.pathtype = T_CustomScan;
	path->path.parent = joinrel;
	path->path.pathtarget = joinrel->reltarget;
	path->path.pathkeys = build_join_pathkeys(root, joinrel, jointype,
											  outer->cheapest_total_path->pathkeys);
	path->flags = CUSTOMPATH_SUPPORT_PROJECTION;
	path->custom_paths = list_make1(outer->cheapest_total_path);
	path->custom_private = list_make3(keys, quals, makeInteger(inner->relid));
	path->methods = &path_methods;
	cost_join_path(path, outer->cheapest_total_path, joinrel, inner, list_length(quals));
	add_path(joinrel, &path->path);
}

/* ---------- plan ---------- */

/*
 * The scan tuple is the child's row followed by the inner columns that the
 * node's output and conditions name.
 */
static List *
inner_columns(PlannerInfo *root, RelOptInfo *joinrel, CustomPath *path, List *quals,
			  Index inner)
{
	List	   *exprs = list_concat_copy(joinrel->reltarget->exprs,
										 path->path.pathtarget->exprs);
	List	   *columns = NIL;

	exprs = list_concat(exprs, list_copy(quals));
	foreach_ptr(Node, leaf, pull_var_clause((Node *) exprs, PVC_RECURSE_AGGREGATES |
											PVC_RECURSE_WINDOWFUNCS |
											PVC_RECURSE_PLACEHOLDERS))
	{
		if (IsA(leaf, Var) && ((Var *) leaf)->varno == inner)
			columns = list_append_unique(columns, leaf);
	}
	return columns;
}

static Plan *
plan_join(PlannerInfo *root, RelOptInfo *rel, CustomPath *path, List *tlist,
		  List *clauses, List *custom_plans)
{
	CustomScan *cscan = makeNode(CustomScan);
	Plan	   *outer = linitial(custom_plans);
	List	   *quals = lsecond(path->custom_private);
	Index		inner = intVal(lthird(path->custom_private));
	List	   *columns = inner_columns(root, rel, path, quals, inner);
	List	   *scan_tlist = NIL;
	List	   *attnums = NIL;
	int			resno = 0;

	foreach_node(TargetEntry, tle, outer->targetlist)
		scan_tlist = lappend(scan_tlist, makeTargetEntry(copyObject(tle->expr), ++resno,
														 NULL, false));
	foreach_node(Var, var, columns)
	{
		scan_tlist = lappend(scan_tlist, makeTargetEntry(copyObject((Expr *) var), ++resno,
														 NULL, false));
		attnums = lappend_int(attnums, var->varattno);
	}
	cscan->scan.plan.targetlist = tlist;
	cscan->scan.plan.qual = quals;
	cscan->scan.scanrelid = 0;
	cscan->flags = path->flags;
	cscan->custom_plans = custom_plans;
	cscan->custom_exprs = linitial(path->custom_private);
	cscan->custom_scan_tlist = scan_tlist;
	cscan->custom_private = list_make3(makeInteger((int) planner_rt_fetch(inner, root)->relid),
									   makeInteger(list_length(outer->targetlist)),
									   attnums);
	cscan->methods = &mer_join_scan_methods;
	return &cscan->scan.plan;
}

void
mer_joinpush_init(void)
{
	RegisterCustomScanMethods(&mer_join_scan_methods);
}
