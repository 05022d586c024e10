/*
 * aggpush.c
 *	  "Meridian Aggregate": planning of grouping and aggregation done by
 *	  storage.
 *
 * A grouping (or SELECT DISTINCT) over one of our tables qualifies when its whole WHERE can be
 * evaluated by storage, its GROUP BY columns are bare columns of the classes
 * integer and bytes, and each aggregate is one whose result can be had exactly.
 * The ordinary plan stays as the node's child: it runs when this transaction
 * has written the table, or when the answer would not fit.
 *
 * custom_scan_tlist holds the group columns, the aggregates and the columns
 * that only the filter names; aggexec.c fills the scan tuple from the answer.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_type_d.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/planner.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/selfuncs.h"

#include "aggpush.h"

/* Storage's work per row and aggregate, against cpu_operator_cost here. */
#define AGGREGATE_ROW_COST 0.001

/* More estimated groups than this are not asked for. */
#define MAX_GROUPS_PLANNED 50000.0

static Plan *plan_agg(PlannerInfo *root, RelOptInfo *rel, CustomPath *path,
					  List *tlist, List *clauses, List *custom_plans);

static const CustomPathMethods path_methods = {
	.CustomName = "Meridian Aggregate",
	.PlanCustomPath = plan_agg,
};

/* What can be had of one query, while it is being examined. */
typedef struct AggQuery
{
	PlannerInfo *root;
	RelOptInfo *input;
	RangeTblEntry *rte;
	Path	   *child;			/* the ordinary plan */
	List	   *groups;			/* of Var */
	List	   *aggrefs;		/* of Aggref */
	List	   *having;			/* of Expr */
	List	   *filter;			/* of Expr: the whole WHERE */
	double		ngroups;
} AggQuery;

/* ---------- aggregates ---------- */

static bool
is_min_max(Oid aggfnoid, bool *is_min)
{
	switch (aggfnoid)
	{
		case F_MIN_INT2:
		case F_MIN_INT4:
		case F_MIN_INT8:
		case F_MIN_OID:
		case F_MIN_DATE:
		case F_MIN_TIME:
		case F_MIN_TIMESTAMP:
		case F_MIN_TIMESTAMPTZ:
		case F_MIN_TEXT:
		case F_MIN_BYTEA:
			*is_min = true;
			return true;
		case F_MAX_INT2:
		case F_MAX_INT4:
		case F_MAX_INT8:
		case F_MAX_OID:
		case F_MAX_DATE:
		case F_MAX_TIME:
		case F_MAX_TIMESTAMP:
		case F_MAX_TIMESTAMPTZ:
		case F_MAX_TEXT:
		case F_MAX_BYTEA:
			*is_min = false;
			return true;
		default:
			return false;
	}
}

/* min or max: the column's order in storage must be the aggregate's. */
static bool
match_min_max(Aggref *agg, Var *var, MerAggItem *item)
{
	Oid			typid = getBaseType(var->vartype);
	MerClass	cls = mer_column_class(typid, var->varcollid);
	bool		is_min;

	if (!is_min_max(agg->aggfnoid, &is_min) ||
		(cls != MER_INTEGER && cls != MER_BYTES))
		return false;
	if (typid == VARCHAROID)
		typid = TEXTOID;
	if (linitial_oid(agg->aggargtypes) != typid)
		return false;
	if (typid == TEXTOID && mer_column_class(TEXTOID, agg->inputcollid) != MER_BYTES)
		return false;
	item->result = MER_AGG_VALUE;
	item->fn = is_min ? MER_FN_MIN : MER_FN_MAX;
	return true;
}

static bool
match_sum_avg(Aggref *agg, Var *var, MerAggItem *item)
{
	Oid			typid = getBaseType(var->vartype);

	if (linitial_oid(agg->aggargtypes) != typid)
		return false;
	item->fn = typid == INT8OID ? MER_FN_SUM_WIDE : MER_FN_SUM;
	switch (agg->aggfnoid)
	{
		case F_SUM_INT2:
		case F_SUM_INT4:
			item->result = MER_AGG_SUM;
			return true;
		case F_SUM_INT8:
			item->result = MER_AGG_SUM_WIDE;
			return true;
		case F_AVG_INT2:
		case F_AVG_INT4:
			item->result = MER_AGG_AVG;
			return true;
		case F_AVG_INT8:
			item->result = MER_AGG_AVG_WIDE;
			return true;
		default:
			return false;
	}
}

bool
mer_agg_match(Aggref *agg, Index varno, MerAggItem *item)
{
	TargetEntry *arg;
	Var		   *var;

	memset(item, 0, sizeof(*item));
	if (agg->agglevelsup != 0 || agg->aggfilter != NULL || agg->aggdistinct != NIL ||
		agg->aggorder != NIL || agg->aggdirectargs != NIL || agg->aggvariadic ||
		agg->aggkind != AGGKIND_NORMAL || agg->aggsplit != AGGSPLIT_SIMPLE)
		return false;
	if (agg->aggfnoid == F_COUNT_)
	{
		item->result = MER_AGG_COUNT;
		item->fn = MER_FN_COUNT_ROWS;
		return true;
	}
	if (list_length(agg->args) != 1)
		return false;
	arg = linitial_node(TargetEntry, agg->args);
	if (agg->aggfnoid == F_COUNT_ANY && IsA(arg->expr, Const))
	{
		item->result = MER_AGG_COUNT;
		item->fn = MER_FN_COUNT_ROWS;
		return !((Const *) arg->expr)->constisnull;
	}
	var = mer_push_column(arg->expr, varno);
	if (var == NULL)
		return false;
	item->attnum = var->varattno;
	if (agg->aggfnoid == F_COUNT_ANY)
	{
		item->result = MER_AGG_COUNT;
		item->fn = MER_FN_COUNT;
		return true;
	}
	return match_min_max(agg, var, item) || match_sum_avg(agg, var, item);
}

/* ---------- examining a query ---------- */

static bool
group_column_ok(Var *var, SortGroupClause *sgc)
{
	MerClass	cls = mer_column_class(getBaseType(var->vartype), var->varcollid);

	return (cls == MER_INTEGER || cls == MER_BYTES) &&
		mer_push_is_equality(sgc->eqop, getBaseType(var->vartype));
}

static bool
find_groups(AggQuery *q, List *clauses)
{
	foreach_node(SortGroupClause, sgc, clauses)
	{
		TargetEntry *tle = get_sortgroupclause_tle(sgc, q->root->processed_tlist);

		/* A relabelled column would be grouped by another type's rules. */
		if (!IsA(tle->expr, Var) ||
			mer_push_column(tle->expr, q->input->relid) == NULL ||
			!group_column_ok((Var *) tle->expr, sgc))
			return false;
		q->groups = list_append_unique(q->groups, tle->expr);
	}
	return true;
}

/* Every column outside an aggregate must be a group column. */
static bool
find_aggregates(AggQuery *q)
{
	List	   *exprs = list_concat_copy(q->child->pathtarget->exprs, q->having);
	List	   *leaves;

	if (contain_subplans((Node *) exprs))
		return false;
	leaves = pull_var_clause((Node *) exprs,
							 PVC_INCLUDE_AGGREGATES | PVC_RECURSE_WINDOWFUNCS |
							 PVC_INCLUDE_PLACEHOLDERS);
	foreach_ptr(Node, leaf, leaves)
	{
		MerAggItem	item;

		if (IsA(leaf, Aggref))
		{
			if (!mer_agg_match((Aggref *) leaf, q->input->relid, &item))
				return false;
			q->aggrefs = list_append_unique(q->aggrefs, leaf);
		}
		else if (!list_member(q->groups, leaf))
			return false;
	}
	return q->aggrefs != NIL || q->groups != NIL;
}

static bool
find_filter(AggQuery *q)
{
	foreach_node(RestrictInfo, rinfo, q->input->baserestrictinfo)
	{
		bool		exact;
		Expr	   *part;

		if (rinfo->pseudoconstant)
			return false;
		part = mer_push_extract(rinfo->clause, q->input->relid, &exact);
		if (part == NULL || !exact)
			return false;
		q->filter = lappend(q->filter, part);
	}
	return true;
}

static bool
query_qualifies(AggQuery *q)
{
	Query	   *parse = q->root->parse;

	return parse->groupingSets == NIL && !parse->hasTargetSRFs &&
		q->input->reloptkind == RELOPT_BASEREL && q->input->lateral_relids == NULL &&
		!IS_DUMMY_REL(q->input) && !q->root->hasPseudoConstantQuals &&
		mer_rte_is_ours(q->rte);
}

/* ---------- paths ---------- */

/* The ordinary plan that stands by: the cheapest of those that group. */
static Path *
find_child(RelOptInfo *output)
{
	Path	   *best = NULL;

	foreach_ptr(Path, path, output->pathlist)
	{
		if (path->param_info != NULL || (!IsA(path, AggPath) && !IsA(path, GroupPath) &&
										 !IsA(path, UpperUniquePath)))
			continue;
		if (best == NULL || path->total_cost < best->total_cost)
			best = path;
	}
	return best;
}

/*
 * The planner offers the same paths to the next upper relation, where add_path
 * frees those it finds dominated: ours keeps its own copy of the node.
 */
static Path *
copy_path(Path *path)
{
	Size		size = IsA(path, AggPath) ? sizeof(AggPath) :
		IsA(path, GroupPath) ? sizeof(GroupPath) : sizeof(UpperUniquePath);
	Path	   *copy = palloc(size);

	memcpy(copy, path, size);
	return copy;
}

static CustomPath *
make_path(AggQuery *q, RelOptInfo *output)
{
	CustomPath *path = makeNode(CustomPath);
	PathTarget *target = q->child->pathtarget;
	Cost		tuple_cost = cpu_tuple_cost + target->cost.per_tuple;

	path->path.pathtype = T_CustomScan;
	path->path.parent = output;
	path->path.pathtarget = target;
	path->path.rows = q->child->rows;
	path->path.startup_cost = target->cost.startup +
		mer_scan_cost(mer_rows_in_range(q->root, q->input), q->ngroups, target->width) +
		q->input->rows * list_length(q->aggrefs) * AGGREGATE_ROW_COST;
	path->path.total_cost = path->path.startup_cost + q->child->rows * tuple_cost;
	path->flags = CUSTOMPATH_SUPPORT_PROJECTION;
	path->custom_paths = list_make1(copy_path(q->child));
	path->custom_private = list_make4(q->groups, q->aggrefs, q->filter, q->having);
	path->methods = &path_methods;
	return path;
}

/*
 * add_path frees the paths it finds dominated, here and again in the rels
 * above.  The child must not be freed under our path, so the list is built by
 * hand and never holds both: ours and what is cheaper than ours, or neither
 * changed where the child itself is cheaper.
 */
static void
add_agg_path(RelOptInfo *output, CustomPath *path)
{
	Path	   *child = linitial(path->custom_paths);
	List	   *kept = list_make1(path);

	if (child->disabled_nodes <= path->path.disabled_nodes &&
		child->total_cost <= path->path.total_cost)
		return;
	foreach_ptr(Path, other, output->pathlist)
		if (other != child && other->total_cost < path->path.total_cost)
			kept = lappend(kept, other);
	output->pathlist = kept;
}

static void
consider(AggQuery *q, RelOptInfo *output, List *group_clauses)
{
	PlannerInfo *root = q->root;

	if (q->input->relid == 0 || !bms_equal(root->all_baserels, q->input->relids))
		return;
	q->rte = planner_rt_fetch(q->input->relid, root);
	q->child = find_child(output);
	if (q->child == NULL || !query_qualifies(q) || !find_groups(q, group_clauses) ||
		!find_aggregates(q) || !find_filter(q))
		return;
	q->ngroups = q->groups == NIL ? 1 :
		estimate_num_groups(root, q->groups, q->input->rows, NULL, NULL);
	if (q->ngroups <= MAX_GROUPS_PLANNED)
		add_agg_path(output, make_path(q, output));
}

void
mer_agg_paths(PlannerInfo *root, RelOptInfo *input, RelOptInfo *output, void *extra)
{
	AggQuery	q = {.root = root, .input = input};

	q.having = (List *) ((GroupPathExtraData *) extra)->havingQual;
	consider(&q, output, root->parse->groupClause);
}

void
mer_distinct_paths(PlannerInfo *root, RelOptInfo *input, RelOptInfo *output)
{
	AggQuery	q = {.root = root, .input = input};
	Query	   *parse = root->parse;

	if (!parse->hasDistinctOn && !parse->hasAggs && parse->groupClause == NIL &&
		!parse->hasWindowFuncs)
		consider(&q, output, parse->distinctClause);
}

/* ---------- plan ---------- */

static Plan *
plan_agg(PlannerInfo *root, RelOptInfo *rel, CustomPath *path, List *tlist,
		 List *clauses, List *custom_plans)
{
	CustomScan *cscan = makeNode(CustomScan);
	List	   *groups = linitial(path->custom_private);
	List	   *aggrefs = lsecond(path->custom_private);
	List	   *filter = lthird(path->custom_private);
	List	   *exprs = list_concat_copy(groups, aggrefs);
	List	   *columns = pull_var_clause((Node *) filter, 0);
	Index		varno = bms_singleton_member(root->all_baserels);
	List	   *items = NIL;
	List	   *attnums = NIL;

	exprs = list_concat_unique(exprs, columns);
	foreach_ptr(Node, expr, exprs)
	{
		MerAggItem	item;

		attnums = lappend_int(attnums, IsA(expr, Var) ? ((Var *) expr)->varattno : 0);
		if (!IsA(expr, Aggref))
			continue;
		if (!mer_agg_match((Aggref *) expr, varno, &item))
			elog(ERROR, "aggregate was not meant to be pushed down");
		items = lappend(items, list_make3_int(item.result, item.fn, item.attnum));
	}

	cscan->scan.plan.targetlist = tlist;
	cscan->scan.plan.qual = (List *) lfourth(path->custom_private);
	cscan->scan.scanrelid = 0;
	cscan->flags = path->flags;
	cscan->custom_plans = custom_plans;
	cscan->custom_exprs = filter;
	cscan->custom_scan_tlist = add_to_flat_tlist(NIL, exprs);
	cscan->custom_private = list_make4(makeInteger((int) planner_rt_fetch(varno, root)->relid),
									   makeInteger(list_length(groups)),
									   attnums, items);
	cscan->methods = &mer_agg_scan_methods;
	return &cscan->scan.plan;
}

void
mer_aggpush_init(void)
{
	RegisterCustomScanMethods(&mer_agg_scan_methods);
}
