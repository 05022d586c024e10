/*
 * planner.c
 *	  The planner's hooks, and the settings of everything planner-side.
 */
#include "postgres.h"

#include "nodes/parsenodes.h"
#include "optimizer/paths.h"
#include "optimizer/plancat.h"
#include "optimizer/planner.h"
#include "utils/guc.h"

#include "joinpush.h"
#include "push.h"

bool		mer_enable_pushdown = true;

static planner_hook_type next_planner;
static get_relation_info_hook_type next_relation_info;
static set_rel_pathlist_hook_type next_rel_pathlist;
static set_join_pathlist_hook_type next_join_pathlist;
static create_upper_paths_hook_type next_upper_paths;

/*
 * Parallel workers have no transaction of ours, hence no snapshot and no
 * write buffer: no statement runs in parallel.
 */
static PlannedStmt *
plan_statement(Query *parse, const char *query_string, int cursor_options,
			   ParamListInfo params)
{
	cursor_options &= ~CURSOR_OPT_PARALLEL_OK;
	return next_planner ?
		next_planner(parse, query_string, cursor_options, params) :
		standard_planner(parse, query_string, cursor_options, params);
}

static void
relation_info(PlannerInfo *root, Oid relid, bool inhparent, RelOptInfo *rel)
{
	if (next_relation_info)
		next_relation_info(root, relid, inhparent, rel);
	mer_relation_info(root, relid, inhparent, rel);
}

static void
rel_pathlist(PlannerInfo *root, RelOptInfo *rel, Index rti, RangeTblEntry *rte)
{
	if (next_rel_pathlist)
		next_rel_pathlist(root, rel, rti, rte);
	mer_scan_pathlist(root, rel, rti, rte);
}

static void
join_pathlist(PlannerInfo *root, RelOptInfo *joinrel, RelOptInfo *outer, RelOptInfo *inner,
			  JoinType jointype, JoinPathExtraData *extra)
{
	if (next_join_pathlist)
		next_join_pathlist(root, joinrel, outer, inner, jointype, extra);
	mer_join_pathlist(root, joinrel, outer, inner, jointype, extra);
}

static void
upper_paths(PlannerInfo *root, UpperRelationKind stage, RelOptInfo *input,
			RelOptInfo *output, void *extra)
{
	if (next_upper_paths)
		next_upper_paths(root, stage, input, output, extra);
	if (!mer_enable_pushdown)
		return;
	if (stage == UPPERREL_GROUP_AGG)
		mer_agg_paths(root, input, output, extra);
	else if (stage == UPPERREL_DISTINCT)
		mer_distinct_paths(root, input, output);
}

static void
define_settings(void)
{
	DefineCustomBoolVariable("meridian.enable_pushdown",
							 "Has storage evaluate filters and aggregates.",
							 NULL, &mer_enable_pushdown, true,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomRealVariable("meridian.round_trip_cost",
							 "Planner's cost of one request to storage.",
							 NULL, &mer_round_trip_cost, mer_round_trip_cost, 0, 1e9,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomRealVariable("meridian.row_fetch_cost",
							 "Planner's cost of one row sent by storage.",
							 NULL, &mer_row_fetch_cost, mer_row_fetch_cost, 0, 1e9,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("meridian.statistics_ttl",
							"How long row counts from storage are kept for planning.",
							NULL, &mer_stats_ttl_ms, mer_stats_ttl_ms, 0, 3600 * 1000,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
}

void
mer_planner_init(void)
{
	define_settings();
	mer_cost_init();
	mer_customscan_init();
	mer_aggpush_init();
	mer_joinpush_init();
	mer_index_hint_init();

	next_planner = planner_hook;
	planner_hook = plan_statement;
	next_relation_info = get_relation_info_hook;
	get_relation_info_hook = relation_info;
	next_rel_pathlist = set_rel_pathlist_hook;
	set_rel_pathlist_hook = rel_pathlist;
	next_join_pathlist = set_join_pathlist_hook;
	set_join_pathlist_hook = join_pathlist;
	next_upper_paths = create_upper_paths_hook;
	create_upper_paths_hook = upper_paths;
}
