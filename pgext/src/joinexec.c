/*
 * joinexec.c
 *	  "Meridian Join" at run time: outer rows are taken in batches, their keys
 *	  fetched together, and the pairs given out in the order of the outer rows.
 *
 * The rows come through an ordinary scan of whole keys, so that this
 * transaction's own writes are seen.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "commands/explain_format.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/memutils.h"

#include "joinpush.h"
#include "store.h"

/* Batches start small, so that LIMIT takes little from the outer side in vain. */
#define FIRST_BATCH 16
#define BATCH_GROWTH 4

typedef struct Pair
{
	MinimalTuple outer;
	const char *key;			/* NULL: a NULL in it, no match */
	uint32		klen;
	MinimalTuple inner;			/* NULL: no such row */
} Pair;

typedef struct JoinPushState
{
	CustomScanState css;
	Relation	table;
	int			nouter;			/* leading columns of the scan tuple */
	int			ninner;
	AttrNumber *attnums;		/* of the inner columns that follow */
	int			nkeys;
	ExprState **keys;
	ExprState  *matches;		/* what else makes a partner, NULL: nothing */
	JoinType	jointype;
	Bitmapset  *attrs;			/* of the inner table, key columns included */
	TupleTableSlot *outer_slot; /* rows out of the batch */
	TupleTableSlot *inner_slot;
	TupleTableSlot *fetch_slot; /* rows from the scan */
	MemoryContext batch_cxt;
	Pair	   *pairs;
	int			npairs;
	int			next;
	int			batch;			/* size of the next batch */
	bool		outer_done;
	MerNodeCounters counters;
} JoinPushState;

static Node *create_join_state(CustomScan *cscan);
static void begin_join(CustomScanState *node, EState *estate, int eflags);
static TupleTableSlot *exec_join(CustomScanState *node);
static void end_join(CustomScanState *node);
static void rescan_join(CustomScanState *node);
static void explain_join(CustomScanState *node, List *ancestors, ExplainState *es);

const CustomScanMethods mer_join_scan_methods = {
	.CustomName = "Meridian Join",
	.CreateCustomScanState = create_join_state,
};

static const CustomExecMethods exec_methods = {
	.CustomName = "Meridian Join",
	.BeginCustomScan = begin_join,
	.ExecCustomScan = exec_join,
	.EndCustomScan = end_join,
	.ReScanCustomScan = rescan_join,
	.ExplainCustomScan = explain_join,
};

static Node *
create_join_state(CustomScan *cscan)
{
	JoinPushState *state = (JoinPushState *) newNode(sizeof(JoinPushState),
													 T_CustomScanState);

	state->css.methods = &exec_methods;
	return (Node *) state;
}

static void
need_column(JoinPushState *state, AttrNumber attnum)
{
	state->attrs = bms_add_member(state->attrs,
								  attnum - FirstLowInvalidHeapAttributeNumber);
}

static void
begin_join(CustomScanState *node, EState *estate, int eflags)
{
	JoinPushState *state = (JoinPushState *) node;
	CustomScan *cscan = castNode(CustomScan, node->ss.ps.plan);
	List	   *attnums = lthird(cscan->custom_private);
	MerRel	   *mrel;
	PlanState  *outer;
	int			i = 0;

	/* The executor holds the lock of every relation of the statement. */
	state->table = table_open((Oid) intVal(linitial(cscan->custom_private)), NoLock);
	mrel = mer_rel(state->table);
	state->nouter = intVal(lsecond(cscan->custom_private));
	state->ninner = list_length(attnums);
	state->attnums = palloc(sizeof(AttrNumber) * (state->ninner + 1));
	foreach_int(attnum, attnums)
	{
		state->attnums[i++] = attnum;
		need_column(state, attnum);
	}
	for (i = 0; i < mrel->nkeys; i++)
		need_column(state, mrel->keys[i].attnum);
	state->nkeys = intVal(lfourth(cscan->custom_private));
	state->jointype = (JoinType) intVal(list_nth(cscan->custom_private, 4));
	if (!mrel->organised || state->nkeys != mrel->nkeys)
		elog(ERROR, "table \"%s\" is not organised by the key of its join",
			 RelationGetRelationName(state->table));
	state->keys = palloc(sizeof(ExprState *) * state->nkeys);
	for (i = 0; i < state->nkeys; i++)
		state->keys[i] = ExecInitExpr(list_nth(cscan->custom_exprs, i), &node->ss.ps);
	state->matches = ExecInitQual(list_copy_tail(cscan->custom_exprs, state->nkeys),
								  &node->ss.ps);

	outer = ExecInitNode(linitial(cscan->custom_plans), estate, eflags);
	node->custom_ps = list_make1(outer);
	state->outer_slot = ExecInitExtraTupleSlot(estate, ExecGetResultType(outer),
											   &TTSOpsMinimalTuple);
	state->inner_slot = ExecInitExtraTupleSlot(estate, RelationGetDescr(state->table),
											   &TTSOpsMinimalTuple);
	state->fetch_slot = ExecInitExtraTupleSlot(estate, RelationGetDescr(state->table),
											   mer_slot_ops());
	state->batch_cxt = AllocSetContextCreate(CurrentMemoryContext, "Meridian join batch",
											 ALLOCSET_DEFAULT_SIZES);
	state->batch = FIRST_BATCH;
}

/* ---------- one batch ---------- */

/* The outer row in the scan tuple's leading columns, NULLs behind it. */
static void
show_outer(JoinPushState *state, TupleTableSlot *outer)
{
	TupleTableSlot *slot = state->css.ss.ss_ScanTupleSlot;

	ExecClearTuple(slot);
	slot_getallattrs(outer);
	memcpy(slot->tts_values, outer->tts_values, sizeof(Datum) * state->nouter);
	memcpy(slot->tts_isnull, outer->tts_isnull, sizeof(bool) * state->nouter);
	memset(slot->tts_isnull + state->nouter, true, state->ninner);
}

static void
make_key(JoinPushState *state, Pair *pair)
{
	MerRel	   *mrel = mer_rel(state->table);
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	StringInfoData key;

	initStringInfo(&key);
	econtext->ecxt_scantuple = state->css.ss.ss_ScanTupleSlot;
	for (int i = 0; i < state->nkeys; i++)
	{
		bool		isnull;
		Datum		value = ExecEvalExprSwitchContext(state->keys[i], econtext, &isnull);

		if (isnull)
			return;
		mer_key_put(&key, &mrel->keys[i], value, false);
	}
	pair->key = key.data;
	pair->klen = key.len;
}

static void
take_outer_rows(JoinPushState *state)
{
	PlanState  *outer = linitial(state->css.custom_ps);
	MemoryContext old = MemoryContextSwitchTo(state->batch_cxt);

	state->pairs = palloc0(sizeof(Pair) * state->batch);
	while (state->npairs < state->batch)
	{
		TupleTableSlot *row;
		Pair	   *pair;

		MemoryContextSwitchTo(old);
		row = ExecProcNode(outer);
		MemoryContextSwitchTo(state->batch_cxt);
		if (TupIsNull(row))
		{
			state->outer_done = true;
			break;
		}
		pair = &state->pairs[state->npairs++];
		pair->outer = ExecCopySlotMinimalTuple(row);
		show_outer(state, row);
		ExecStoreVirtualTuple(state->css.ss.ss_ScanTupleSlot);
		make_key(state, pair);
		ExecClearTuple(state->css.ss.ss_ScanTupleSlot);
		ResetExprContext(state->css.ss.ps.ps_ExprContext);
	}
	state->batch = Min(state->batch * BATCH_GROWTH, MER_JOIN_BATCH);
	MemoryContextSwitchTo(old);
}

static int
cmp_pairs(const void *a, const void *b)
{
	const Pair *x = *(Pair *const *) a;
	const Pair *y = *(Pair *const *) b;

	return mer_key_cmp(x->key, x->klen, y->key, y->klen);
}

/* Scan the distinct keys in ascending order; each row found serves its pairs. */
static void
fetch_inner_rows(JoinPushState *state, Pair **sorted, int n)
{
	MerRel	   *mrel = mer_rel(state->table);
	MerBytes   *points = palloc(sizeof(MerBytes) * n);
	MerScanSpec spec = {.table = state->table, .direction = ForwardScanDirection,
		.attrs = state->attrs, .no_tids = true, .points = points};
	MerScan    *scan;
	StringInfoData key;
	int			at = 0;

	for (int i = 0; i < n; i++)
	{
		if (i > 0 && cmp_pairs(&sorted[i - 1], &sorted[i]) == 0)
			continue;
		points[spec.npoints].data = sorted[i]->key;
		points[spec.npoints++].len = sorted[i]->klen;
	}
	initStringInfo(&key);
	scan = mer_scan_begin(&spec, state->css.ss.ps.state->es_snapshot);
	while (mer_scan_next(scan, ForwardScanDirection, state->fetch_slot))
	{
		MinimalTuple row = ExecCopySlotMinimalTuple(state->fetch_slot);

		resetStringInfo(&key);
		mer_rowkey_put(&key, mrel, state->fetch_slot);
		for (; at < n; at++)
		{
			int			c = mer_key_cmp(sorted[at]->key, sorted[at]->klen, key.data, key.len);

			if (c > 0)
				break;
			if (c == 0)
				sorted[at]->inner = row;
		}
	}
	ExecClearTuple(state->fetch_slot);
	mer_scan_end(scan);
}

static void
fill_batch(JoinPushState *state)
{
	Pair	  **sorted;
	int			n = 0;
	MemoryContext old;

	state->npairs = state->next = 0;
	MemoryContextReset(state->batch_cxt);
	take_outer_rows(state);
	old = MemoryContextSwitchTo(state->batch_cxt);
	sorted = palloc(sizeof(Pair *) * (state->npairs + 1));
	for (int i = 0; i < state->npairs; i++)
		if (state->pairs[i].key != NULL)
			sorted[n++] = &state->pairs[i];
	if (n > 0)
	{
		qsort(sorted, n, sizeof(Pair *), cmp_pairs);
		mer_count_start(&state->counters);
		fetch_inner_rows(state, sorted, n);
		mer_count_stop(&state->counters);
	}
	MemoryContextSwitchTo(old);
}

/* ---------- the node ---------- */

/* The joined row in the scan tuple; false if the inner row is no partner. */
static bool
has_partner(JoinPushState *state, Pair *pair)
{
	TupleTableSlot *slot = state->css.ss.ss_ScanTupleSlot;
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;

	if (pair->inner == NULL)
		return false;
	ExecStoreMinimalTuple(pair->inner, state->inner_slot, false);
	for (int i = 0; i < state->ninner; i++)
		slot->tts_values[state->nouter + i] =
			slot_getattr(state->inner_slot, state->attnums[i],
						 &slot->tts_isnull[state->nouter + i]);
	ExecStoreVirtualTuple(slot);
	econtext->ecxt_scantuple = slot;
	return ExecQual(state->matches, econtext);
}

/* The row that a pair yields, or NULL. */
static TupleTableSlot *
join_pair(JoinPushState *state, Pair *pair)
{
	TupleTableSlot *slot = state->css.ss.ss_ScanTupleSlot;

	ResetExprContext(state->css.ss.ps.ps_ExprContext);
	ExecStoreMinimalTuple(pair->outer, state->outer_slot, false);
	show_outer(state, state->outer_slot);
	if (has_partner(state, pair))
		return state->jointype == JOIN_ANTI ? NULL : slot;
	if (state->jointype != JOIN_LEFT && state->jointype != JOIN_ANTI)
		return NULL;
	show_outer(state, state->outer_slot);
	return ExecStoreVirtualTuple(slot);
}

static TupleTableSlot *
next_pair(ScanState *ss)
{
	JoinPushState *state = (JoinPushState *) ss;

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		while (state->next < state->npairs)
		{
			TupleTableSlot *slot = join_pair(state, &state->pairs[state->next++]);

			if (slot != NULL)
				return slot;
		}
		ExecClearTuple(ss->ss_ScanTupleSlot);
		if (state->outer_done)
			return ss->ss_ScanTupleSlot;
		fill_batch(state);
	}
}

static bool
recheck_pair(ScanState *ss, TupleTableSlot *slot)
{
	return true;
}

static TupleTableSlot *
exec_join(CustomScanState *node)
{
	return ExecScan(&node->ss, next_pair, recheck_pair);
}

static void
forget_batch(JoinPushState *state)
{
	ExecClearTuple(state->css.ss.ss_ScanTupleSlot);
	ExecClearTuple(state->outer_slot);
	ExecClearTuple(state->inner_slot);
	MemoryContextReset(state->batch_cxt);
	state->npairs = state->next = 0;
	state->batch = FIRST_BATCH;
	state->outer_done = false;
}

static void
rescan_join(CustomScanState *node)
{
	PlanState  *outer = linitial(node->custom_ps);

	forget_batch((JoinPushState *) node);
	if (node->ss.ps.chgParam != NULL)
		UpdateChangedParamSet(outer, node->ss.ps.chgParam);
	if (outer->chgParam == NULL)
		ExecReScan(outer);
	ExecScanReScan(&node->ss);
}

static void
end_join(CustomScanState *node)
{
	JoinPushState *state = (JoinPushState *) node;

	forget_batch(state);
	ExecEndNode(linitial(node->custom_ps));
	table_close(state->table, NoLock);
}

static const char *
join_name(JoinType jointype)
{
	switch (jointype)
	{
		case JOIN_LEFT:
			return "Left";
		case JOIN_SEMI:
			return "Semi";
		case JOIN_ANTI:
			return "Anti";
		default:
			return "Inner";
	}
}

static void
explain_join(CustomScanState *node, List *ancestors, ExplainState *es)
{
	JoinPushState *state = (JoinPushState *) node;
	List	   *exprs = castNode(CustomScan, node->ss.ps.plan)->custom_exprs;

	ExplainPropertyText("Join Type", join_name(state->jointype), es);
	mer_explain_filter(list_copy_tail(exprs, state->nkeys), "Join Filter", &node->ss.ps,
					   ancestors, es);
	mer_explain_lookup(state->table, list_copy_head(exprs, state->nkeys), &node->ss.ps,
					   ancestors, es);
	mer_explain_columns(state->table, state->attrs, es);
	mer_explain_counters(&state->counters, es);
}
