/*
 * joinpush.c
 *	  "Meridian Join": planning of joins that look up a table of ours by its
 *	  whole primary key, many keys per round trip.
 *
 * An ordinary nested loop asks storage once per outer row.  Here the outer
 * rows are taken in batches and their keys fetched together (joinexec.c).
 * The key is unique, so each outer row has at most one partner: inner, left,
 * semi and anti joins differ only in what follows from having one or none.
 * Statements that lock or change rows find them again through the scan nodes
 * core knows, so their joins stay with core.
 */
#include "postgres.h"

#include <math.h>

#include "access/stratnum.h"
#include "access/sysattr.h"
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
match_keys(List *restrictlist, Relids joinrelids, JoinType jointype,
		   IndexOptInfo *index, RelOptInfo *inner, RelOptInfo *outer)
{
	List	   *keys = NIL;

	for (int column = 0; column < index->nkeycolumns; column++)
	{
		Expr	   *key = NULL;

		foreach_node(RestrictInfo, rinfo, restrictlist)
		{
			/* A filter above an outer join does not make partners. */
			if (IS_OUTER_JOIN(jointype) && RINFO_IS_PUSHED_DOWN(rinfo, joinrelids))
				continue;
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

/*
 * Expressions that must be computed below an outer join, to be NULL where it
 * has no row, are not computed by this node.
 */
static bool
only_columns(RelOptInfo *rel)
{
	foreach_ptr(Node, expr, rel->reltarget->exprs)
		if (!IsA(expr, Var))
			return false;
	return true;
}

/* Whole rows and system columns of the inner table stay with core. */
static bool
only_user_columns(RelOptInfo *inner)
{
	Bitmapset  *attrs = NULL;

	pull_varattnos((Node *) inner->reltarget->exprs, inner->relid, &attrs);
	foreach_node(RestrictInfo, rinfo, inner->baserestrictinfo)
		pull_varattnos((Node *) rinfo->clause, inner->relid, &attrs);
	return bms_is_empty(attrs) ||
		bms_next_member(attrs, -1) > -FirstLowInvalidHeapAttributeNumber;
}

static bool
join_qualifies(PlannerInfo *root, RelOptInfo *outer, RelOptInfo *inner, JoinType jointype)
{
	return (jointype == JOIN_INNER || jointype == JOIN_LEFT ||
			jointype == JOIN_SEMI || jointype == JOIN_ANTI) && mer_enable_pushdown &&
		(root->parse->commandType == CMD_SELECT || root->parse->commandType == CMD_INSERT) &&
		root->parse->rowMarks == NIL &&
		root->rowMarks == NIL && !root->hasPseudoConstantQuals &&
		inner->reloptkind == RELOPT_BASEREL && only_user_columns(inner) &&
		only_columns(inner) && only_columns(outer) && inner->lateral_relids == NULL &&
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
	List	   *matches;
	List	   *filters = NIL;

	if (!join_qualifies(root, outer, inner, jointype))
		return;
	index = mer_table_order(inner);
	if (index == NULL)
		return;
	keys = match_keys(extra->restrictlist, joinrel->relids, jointype, index, inner, outer);
	if (keys == NIL || joinrel->lateral_relids != NULL || !only_columns(joinrel))
		return;
	/* Row security orders its conditions before others; this node does not. */
	foreach_node(RestrictInfo, rinfo, list_concat_copy(extra->restrictlist,
													   inner->baserestrictinfo))
		if (rinfo->security_level > 0)
			return;
	/* What makes a partner, and what the joined row must pass afterwards. */
	if (IS_OUTER_JOIN(jointype))
		extract_actual_join_clauses(extra->restrictlist, joinrel->relids, &matches, &filters);
	else
		matches = extract_actual_clauses(extra->restrictlist, false);
	matches = list_concat_copy(matches,
							   extract_actual_clauses(inner->baserestrictinfo, false));

	path = makeNode(CustomPath);
	path->path.pathtype = T_CustomScan;
	path->path.parent = joinrel;
	path->path.pathtarget = joinrel->reltarget;
	path->path.pathkeys = build_join_pathkeys(root, joinrel, jointype,
											  outer->cheapest_total_path->pathkeys);
	path->flags = CUSTOMPATH_SUPPORT_PROJECTION;
	path->custom_paths = list_make1(outer->cheapest_total_path);
	path->custom_private = list_make5(keys, matches, filters, makeInteger(inner->relid),
									  makeInteger(jointype));
	path->methods = &path_methods;
	cost_join_path(path, outer->cheapest_total_path, joinrel, inner,
				   list_length(matches) + list_length(filters));
	add_path(joinrel, &path->path);
}

/* ---------- plan ---------- */

static Var *
find_column(List *columns, const Var *var)
{
	foreach_node(Var, column, columns)
		if (column->varno == var->varno && column->varattno == var->varattno)
			return column;
	return NULL;
}

/* Columns of the expressions that are not in the list yet, appended. */
static List *
add_columns(List *columns, List *exprs)
{
	foreach_node(Var, var, pull_var_clause((Node *) exprs, PVC_RECURSE_AGGREGATES |
										   PVC_RECURSE_WINDOWFUNCS |
										   PVC_RECURSE_PLACEHOLDERS))
		if (find_column(columns, var) == NULL)
			columns = lappend(columns, var);
	return columns;
}

/*
 * The planner marks a column with the outer joins that may have made it NULL
 * where it is named, and insists that a node's expressions name the columns
 * of custom_scan_tlist with one mark.  Ours are named below the join (its
 * conditions) and above it: all get the mark they have above.
 */
static Node *
unify_columns(Node *node, void *columns)
{
	Var		   *column;

	if (node == NULL)
		return NULL;
	if (!IsA(node, Var))
		return expression_tree_mutator(node, unify_columns, columns);
	column = find_column((List *) columns, (Var *) node);
	return copyObject(column ? (Node *) column : node);
}

/* The scan tuple: the child's row, then the inner columns. */
static List *
make_scan_tlist(Plan *outer, List *columns, Index inner, List **attnums)
{
	List	   *tlist = NIL;
	int			resno = 0;

	foreach_node(TargetEntry, tle, outer->targetlist)
		tlist = lappend(tlist, makeTargetEntry((Expr *) unify_columns((Node *) tle->expr, columns),
											   ++resno, NULL, false));
	foreach_node(Var, var, columns)
	{
		if (var->varno != inner)
			continue;
		tlist = lappend(tlist, makeTargetEntry((Expr *) copyObject(var), ++resno, NULL, false));
		*attnums = lappend_int(*attnums, var->varattno);
	}
	return tlist;
}

static Plan *
plan_join(PlannerInfo *root, RelOptInfo *rel, CustomPath *path, List *tlist,
		  List *clauses, List *custom_plans)
{
	CustomScan *cscan = makeNode(CustomScan);
	Plan	   *outer = linitial(custom_plans);
	List	   *keys = linitial(path->custom_private);
	List	   *matches = lsecond(path->custom_private);
	List	   *filters = lthird(path->custom_private);
	Index		inner = intVal(lfourth(path->custom_private));
	List	   *exprs = list_concat_copy(keys, matches);
	List	   *attnums = NIL;
	List	   *columns;

	columns = add_columns(NIL, rel->reltarget->exprs);
	columns = add_columns(columns, path->path.pathtarget->exprs);
	columns = add_columns(columns, filters);
	columns = add_columns(columns, exprs);

	cscan->scan.plan.targetlist = tlist;
	cscan->scan.plan.qual = (List *) unify_columns((Node *) filters, columns);
	cscan->scan.scanrelid = 0;
	cscan->flags = path->flags;
	cscan->custom_plans = custom_plans;
	cscan->custom_exprs = (List *) unify_columns((Node *) exprs, columns);
	cscan->custom_scan_tlist = make_scan_tlist(outer, columns, inner, &attnums);
	cscan->custom_private = list_make5(makeInteger((int) planner_rt_fetch(inner, root)->relid),
									   makeInteger(list_length(outer->targetlist)),
									   attnums,
									   makeInteger(list_length(keys)),
									   list_nth(path->custom_private, 4));
	cscan->methods = &mer_join_scan_methods;
	return &cscan->scan.plan;
}

void
mer_joinpush_init(void)
{
	RegisterCustomScanMethods(&mer_join_scan_methods);
}
