/*
 * push.h
 *	  What the planner-side modules share: expressions that storage can
 *	  evaluate, the cost model, and the custom scan nodes.
 */
#ifndef MERIDIAN_PUSH_H
#define MERIDIAN_PUSH_H

#include "meridian.h"

#include "commands/explain.h"
#include "nodes/execnodes.h"
#include "nodes/extensible.h"
#include "nodes/pathnodes.h"

/* ---------- expressions (pushexpr.c, pushfilter.c) ---------- */

/*
 * The part of a boolean expression over the columns of range table entry
 * varno that storage can evaluate, or NULL.  The part is implied by the
 * clause (it never drops a row that the clause keeps); *exact tells whether
 * it also keeps no other row.
 */
extern Expr *mer_push_extract(Expr *clause, Index varno, bool *exact);

/* The bare column below harmless relabels, or NULL. */
extern Var *mer_push_column(Expr *expr, Index varno);

/* Is op the equality that storage uses for columns of this base type? */
extern bool mer_push_is_equality(Oid op, Oid typid);

/* Pushed clauses made ready for one executor node. */
typedef struct MerFilter MerFilter;

/*
 * clauses are implicitly ANDed; mer_push_extract returned each of them.
 * attnums, where not NULL, maps the attribute numbers of the clauses' Vars
 * (from 1) to those of the table.
 */
extern MerFilter *mer_filter_compile(List *clauses, Index varno, const AttrNumber *attnums,
									 PlanState *parent);

/* The highest table column it names: storage may not have it yet. */
extern AttrNumber mer_filter_last_column(const MerFilter *filter);

typedef enum MerFilterResult
{
	MER_FILTER_TRUE,			/* every row may qualify: send no filter */
	MER_FILTER_FALSE,			/* no row qualifies: ask nobody */
	MER_FILTER_SOME				/* buf holds the encoded filter */
} MerFilterResult;

/*
 * Evaluate the comparison values and encode the filter (docs/formats.md) into
 * buf, which the caller has reset.  *exact becomes false where a value made
 * the filter keep more rows than the clauses do.
 */
extern MerFilterResult mer_filter_encode(MerFilter *filter, ExprContext *econtext,
										 StringInfo buf, bool *exact);

/*
 * Bound spec (its table is set) to the range of row keys that the filter
 * leaves, in the econtext's per-tuple memory.  False: no row can pass.
 */
extern bool mer_filter_bound(MerFilter *filter, ExprContext *econtext, MerScanSpec *spec);

/* ---------- cost (cost.c) ---------- */

extern double mer_round_trip_cost;	/* GUCs */
extern double mer_row_fetch_cost;
extern int	mer_stats_ttl_ms;

/*
 * A scan of everything is never planned as cheaper than this many pages, so
 * that a key lookup wins on tables that look empty and fill later.
 */
#define MER_FULL_SCAN_PAGES 10

/* Storage's work per row found by its key. */
#define MER_LOOKUP_ROW_COST 0.2

/* One line of the model: what it costs to have storage look at and ship rows. */
extern Cost mer_scan_cost(double rows_examined, double rows_shipped,
						  double row_bytes);
/* The primary key that is the table's own order, or NULL. */
extern IndexOptInfo *mer_table_order(RelOptInfo *rel);

/* Rows within the range of row keys that the conditions leave. */
extern double mer_rows_in_range(PlannerInfo *root, RelOptInfo *rel);
extern Cost mer_rows_cost(double rows, double row_bytes);
extern double mer_round_trips(double rows, double row_bytes);
extern void mer_relation_info(PlannerInfo *root, Oid relid, bool inhparent,
							  RelOptInfo *rel);

/* ---------- custom nodes ---------- */

/* Counter differences of one node. */
typedef struct MerNodeCounters
{
	MerCounters mark;			/* mer_counters when the node last started work */
	MerCounters sum;
} MerNodeCounters;

extern void mer_count_start(MerNodeCounters *c);
extern void mer_count_stop(MerNodeCounters *c);

extern void mer_explain_filter(List *clauses, const char *label, PlanState *ps,
							   List *ancestors, ExplainState *es);
extern void mer_explain_lookup(Relation table, List *keys, PlanState *ps,
							   List *ancestors, ExplainState *es);
extern void mer_explain_groups(List *tlist, int ngroups, int naggs, PlanState *ps,
							   List *ancestors, ExplainState *es);
extern void mer_explain_columns(Relation rel, Bitmapset *attrs, ExplainState *es);
extern void mer_explain_counters(const MerNodeCounters *c, ExplainState *es);

/* Does the range table entry name a plain (leaf) table of ours? */
extern bool mer_rte_is_ours(RangeTblEntry *rte);

extern void mer_cost_init(void);
extern void mer_customscan_init(void);
extern void mer_scan_pathlist(PlannerInfo *root, RelOptInfo *rel, Index rti,
							  RangeTblEntry *rte);
extern void mer_index_hint_init(void);
extern void mer_aggpush_init(void);
extern void mer_agg_paths(PlannerInfo *root, RelOptInfo *input, RelOptInfo *output,
						  void *extra);
extern void mer_distinct_paths(PlannerInfo *root, RelOptInfo *input, RelOptInfo *output);

#endif							/* MERIDIAN_PUSH_H */
