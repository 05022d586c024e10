/*
 * indexhint.c
 *	  Tells index scans of our tables which columns and rows are wanted.
 *
 * An index access method sees scan keys only.  Here each IndexScan node over
 * one of our tables gets, when the executor starts, a description of what its
 * target list and conditions need; the node's first call hands it to
 * ambeginscan.  All conditions stay in the node as well, so a lost hint costs
 * bytes, never rows.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "commands/explain.h"
#include "commands/explain_state.h"
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/memutils.h"

#include "push.h"
#include "store.h"

struct MerIndexHint
{
	MerIndexHint *next;			/* of all nodes of running statements */
	PlanState  *node;
	ExecProcNodeMtd run;
	Oid			index;			/* invalid: the node is counted only */
	Bitmapset  *attrs;			/* NULL: all columns */
	List	   *clauses;		/* the filter's */
	MerFilter  *filter;			/* NULL: none */
	StringInfoData buf;
	MerNodeCounters counters;	/* with EXPLAIN ANALYZE */
};

static ExecutorStart_hook_type next_start;
static explain_per_node_hook_type next_explain;
static MerIndexHint *hints;		/* in the query contexts of their statements */
static MerIndexHint *starting;	/* of the node whose first call is under way */

MerIndexHint *
mer_index_hint_take(Relation index)
{
	MerIndexHint *hint = starting;

	if (hint == NULL || hint->index != RelationGetRelid(index))
		return NULL;
	starting = NULL;
	return hint;
}

void
mer_index_hint_apply(MerIndexHint *hint, MerScanSpec *spec)
{
	MerRel	   *mrel = mer_rel(spec->table);
	bool		exact;

	if (hint == NULL)
		return;
	spec->attrs = hint->attrs;
	spec->filter = NULL;
	if (hint->filter == NULL ||
		mer_filter_last_column(hint->filter) > mer_txn_stored_natts(mrel->sid, mrel->natts))
		return;
	resetStringInfo(&hint->buf);
	if (mer_filter_encode(hint->filter, hint->node->ps_ExprContext, &hint->buf,
						  &exact) == MER_FILTER_SOME)
	{
		spec->filter = hint->buf.data;
		spec->filter_len = hint->buf.len;
	}
}

/* ---------- from the executor to the access method ---------- */

static MerIndexHint *
find_hint(PlanState *node)
{
	for (MerIndexHint *hint = hints; hint; hint = hint->next)
		if (hint->node == node)
			return hint;
	return NULL;
}

static TupleTableSlot *
counted_call(PlanState *node)
{
	MerIndexHint *hint = find_hint(node);
	TupleTableSlot *slot;

	mer_count_start(&hint->counters);
	slot = hint->run(node);
	mer_count_stop(&hint->counters);
	return slot;
}

static TupleTableSlot *
first_call(PlanState *node)
{
	IndexScanState *state = castNode(IndexScanState, node);
	MerIndexHint *hint = find_hint(node);
	TupleTableSlot *slot;

	ExecSetExecProcNode(node, node->instrument ? counted_call : hint->run);

	/*
	 * Keys computed at run time may run statements of their own: do that
	 * before the hint is up, so that only this node's scan can take it.
	 */
	if (state->iss_NumRuntimeKeys != 0 && !state->iss_RuntimeKeysReady)
		ExecReScan(node);
	PG_TRY();
	{
		starting = hint;
		slot = node->instrument ? counted_call(node) : hint->run(node);
	}
	PG_FINALLY();
	{
		starting = NULL;
	}
	PG_END_TRY();
	return slot;
}

/* ---------- describing the nodes of a statement ---------- */

static Bitmapset *
needed_columns(IndexScan *plan)
{
	Index		varno = plan->scan.scanrelid;
	Bitmapset  *attrs = NULL;

	pull_varattnos((Node *) plan->scan.plan.targetlist, varno, &attrs);
	pull_varattnos((Node *) plan->scan.plan.qual, varno, &attrs);
	pull_varattnos((Node *) plan->indexqualorig, varno, &attrs);
	pull_varattnos((Node *) plan->indexorderbyorig, varno, &attrs);
	/* Rows to be updated or locked are needed whole. */
	if (bms_is_member(SelfItemPointerAttributeNumber - FirstLowInvalidHeapAttributeNumber, attrs))
		return NULL;
	/* Never empty, which would mean all. */
	return bms_add_member(attrs, TableOidAttributeNumber -
						  FirstLowInvalidHeapAttributeNumber);
}

static List *
pushable_clauses(IndexScan *plan)
{
	List	   *pushed = NIL;

	foreach_ptr(Expr, clause, plan->scan.plan.qual)
	{
		bool		exact;
		Expr	   *part = mer_push_extract(clause, plan->scan.scanrelid, &exact);

		if (part)
			pushed = lappend(pushed, part);
	}
	return pushed;
}

/* The statement's memory goes, and its hints with it. */
static void
forget_hints(void *estate)
{
	for (MerIndexHint **link = &hints; *link;)
	{
		if ((*link)->node->state == estate)
			*link = (*link)->next;
		else
			link = &(*link)->next;
	}
}

static MerIndexHint *
add_hint(PlanState *node, ExecProcNodeMtd replacement)
{
	MerIndexHint *hint = palloc0(sizeof(MerIndexHint));

	/* Before the first hint of a statement is linked: what follows may fail. */
	if (hints == NULL || hints->node->state != node->state)
	{
		MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));

		callback->func = forget_hints;
		callback->arg = node->state;
		MemoryContextRegisterResetCallback(node->state->es_query_cxt, callback);
	}
	hint->node = node;
	hint->run = node->ExecProcNodeReal;
	hint->next = hints;
	hints = hint;
	ExecSetExecProcNode(node, replacement);
	return hint;
}

static void
describe_index_scan(PlanState *node)
{
	IndexScan  *plan = castNode(IndexScan, node->plan);
	MerIndexHint *hint = add_hint(node, first_call);

	hint->index = plan->indexid;
	hint->attrs = needed_columns(plan);
	hint->clauses = pushable_clauses(plan);
	if (hint->clauses != NIL)
		hint->filter = mer_filter_compile(hint->clauses, plan->scan.scanrelid, NULL, node);
	initStringInfo(&hint->buf);
}

static bool
describe_walker(PlanState *node, void *context)
{
	bool		index = IsA(node, IndexScanState);

	if ((index || (node->instrument && (IsA(node, IndexOnlyScanState) ||
										IsA(node, BitmapHeapScanState)))) &&
		mer_is_table(((ScanState *) node)->ss_currentRelation))
	{
		if (index)
			describe_index_scan(node);
		else
			(void) add_hint(node, counted_call);
	}
	return planstate_tree_walker(node, describe_walker, context);
}

static void
explain_node(PlanState *node, List *ancestors, const char *relationship,
			 const char *plan_name, ExplainState *es)
{
	MerIndexHint *hint = find_hint(node);

	if (next_explain)
		next_explain(node, ancestors, relationship, plan_name, es);
	if (hint == NULL)
		return;
	if (OidIsValid(hint->index))
	{
		mer_explain_filter(hint->clauses, "Storage Filter", node, ancestors, es);
		mer_explain_columns(((ScanState *) node)->ss_currentRelation, hint->attrs, es);
	}
	mer_explain_counters(&hint->counters, es);
}

static void
start_statement(QueryDesc *desc, int eflags)
{
	MemoryContext old;

	if (next_start)
		next_start(desc, eflags);
	else
		standard_ExecutorStart(desc, eflags);
	if (!mer_enable_pushdown)
		return;
	old = MemoryContextSwitchTo(desc->estate->es_query_cxt);
	describe_walker(desc->planstate, NULL);
	MemoryContextSwitchTo(old);
}

void
mer_index_hint_init(void)
{
	next_start = ExecutorStart_hook;
	ExecutorStart_hook = start_statement;
	next_explain = explain_per_node_hook;
	explain_per_node_hook = explain_node;
}
