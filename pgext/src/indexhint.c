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
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/memutils.h"

#include "push.h"
#include "store.h"

struct MerIndexHint
{
	MerIndexHint *next;			/* of nodes that have not been called yet */
	PlanState  *node;
	ExecProcNodeMtd run;
	Oid			index;
	Bitmapset  *attrs;			/* NULL: all columns */
	MerFilter  *filter;			/* NULL: none */
	StringInfoData buf;
};

static ExecutorStart_hook_type next_start;
static MerIndexHint *waiting;	/* in the query contexts of running statements */
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
remove_waiting(PlanState *node)
{
	for (MerIndexHint **link = &waiting; *link; link = &(*link)->next)
	{
		MerIndexHint *hint = *link;

		if (hint->node == node)
		{
			*link = hint->next;
			return hint;
		}
	}
	return NULL;
}

static TupleTableSlot *
first_call(PlanState *node)
{
	IndexScanState *state = castNode(IndexScanState, node);
	MerIndexHint *hint = remove_waiting(node);
	TupleTableSlot *slot;

	if (hint == NULL)
		elog(ERROR, "index scan has lost its description");
	ExecSetExecProcNode(node, hint->run);

	/*
	 * Keys computed at run time may run statements of their own: do that
	 * before the hint is up, so that only this node's scan can take it.
	 */
	if (state->iss_NumRuntimeKeys != 0 && !state->iss_RuntimeKeysReady)
		ExecReScan(node);
	PG_TRY();
	{
		starting = hint;
		slot = hint->run(node);
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
	/* Never empty, which would mean all. */
	return bms_add_member(attrs, TableOidAttributeNumber -
						  FirstLowInvalidHeapAttributeNumber);
}

static MerFilter *
pushable_filter(IndexScan *plan, PlanState *node)
{
	List	   *pushed = NIL;

	foreach_ptr(Expr, clause, plan->scan.plan.qual)
	{
		bool		exact;
		Expr	   *part = mer_push_extract(clause, plan->scan.scanrelid, &exact);

		if (part)
			pushed = lappend(pushed, part);
	}
	return pushed ? mer_filter_compile(pushed, plan->scan.scanrelid, NULL, node) : NULL;
}

static void
describe(IndexScanState *state)
{
	IndexScan  *plan = castNode(IndexScan, state->ss.ps.plan);
	MerIndexHint *hint = palloc0(sizeof(MerIndexHint));

	hint->node = &state->ss.ps;
	hint->run = state->ss.ps.ExecProcNodeReal;
	hint->index = plan->indexid;
	hint->attrs = needed_columns(plan);
	hint->filter = pushable_filter(plan, &state->ss.ps);
	initStringInfo(&hint->buf);
	hint->next = waiting;
	waiting = hint;
	ExecSetExecProcNode(&state->ss.ps, first_call);
}

static bool
describe_walker(PlanState *node, void *context)
{
	if (IsA(node, IndexScanState) &&
		mer_is_table(((ScanState *) node)->ss_currentRelation))
	{
		describe((IndexScanState *) node);
		*(bool *) context = true;
	}
	return planstate_tree_walker(node, describe_walker, context);
}

/* The statement's memory goes: so do the hints that no node has asked for. */
static void
forget_hints(void *estate)
{
	for (MerIndexHint **link = &waiting; *link;)
	{
		if ((*link)->node->state == estate)
			*link = (*link)->next;
		else
			link = &(*link)->next;
	}
}

static void
start_statement(QueryDesc *desc, int eflags)
{
	EState	   *estate;
	MemoryContext old;
	bool		any = false;

	if (next_start)
		next_start(desc, eflags);
	else
		standard_ExecutorStart(desc, eflags);
	if (!mer_enable_pushdown || (eflags & EXEC_FLAG_EXPLAIN_ONLY))
		return;
	estate = desc->estate;
	old = MemoryContextSwitchTo(estate->es_query_cxt);
	describe_walker(desc->planstate, &any);
	if (any)
	{
		MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));

		callback->func = forget_hints;
		callback->arg = estate;
		MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
	}
	MemoryContextSwitchTo(old);
}

void
mer_index_hint_init(void)
{
	next_start = ExecutorStart_hook;
	ExecutorStart_hook = start_statement;
}
