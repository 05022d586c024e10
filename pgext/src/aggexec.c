/*
 * aggexec.c
 *	  "Meridian Aggregate" at run time: ask storage for the groups, or run the
 *	  ordinary plan that stands by.
 *
 * Storage knows nothing of this transaction's own writes, so a table it has
 * written is aggregated by the child.
 */
#include "postgres.h"

#include "access/table.h"
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "aggpush.h"
#include "coherence.h"
#include "store.h"

#define SCAN_FIELDS 17

/* A larger answer is given up for the child plan. */
#define MAX_GROUPS_ASKED 100000
#define MAX_ANSWER_BYTES (8 * 1024 * 1024)

typedef enum AggMode
{
	MODE_UNDECIDED,
	MODE_REMOTE,
	MODE_LOCAL
} AggMode;

typedef struct AggPushState
{
	CustomScanState css;
	Relation	table;
	int			ngroups;
	int			nitems;
	MerAggItem *items;
	AttrNumber *attnums;		/* of the scan tuple's columns, 0 = aggregate */
	MerFilter  *filter;
	StringInfoData filter_buf;
	MerScanSpec range;			/* of row keys, table is set */
	AggMode		mode;
	MerReply	reply;
	uint32		rows_left;
	MemoryContext row_cxt;		/* values of the current group */
	MerNodeCounters counters;
} AggPushState;

static Node *create_agg_state(CustomScan *cscan);
static void begin_agg(CustomScanState *node, EState *estate, int eflags);
static TupleTableSlot *exec_agg(CustomScanState *node);
static void end_agg(CustomScanState *node);
static void rescan_agg(CustomScanState *node);
static void explain_agg(CustomScanState *node, List *ancestors, ExplainState *es);

const CustomScanMethods mer_agg_scan_methods = {
	.CustomName = "Meridian Aggregate",
	.CreateCustomScanState = create_agg_state,
};

static const CustomExecMethods exec_methods = {
	.CustomName = "Meridian Aggregate",
	.BeginCustomScan = begin_agg,
	.ExecCustomScan = exec_agg,
	.EndCustomScan = end_agg,
	.ReScanCustomScan = rescan_agg,
	.ExplainCustomScan = explain_agg,
};

static Node *
create_agg_state(CustomScan *cscan)
{
	AggPushState *state = (AggPushState *) newNode(sizeof(AggPushState),
												   T_CustomScanState);

	state->css.methods = &exec_methods;
	return (Node *) state;
}

static void
begin_agg(CustomScanState *node, EState *estate, int eflags)
{
	AggPushState *state = (AggPushState *) node;
	CustomScan *cscan = castNode(CustomScan, node->ss.ps.plan);
	List	   *attnums = lthird(cscan->custom_private);
	List	   *items = lfourth(cscan->custom_private);
	int			i = 0;

	/* The child's scan holds the lock. */
	state->table = table_open((Oid) intVal(linitial(cscan->custom_private)), NoLock);
	state->range.table = state->table;
	state->ngroups = intVal(lsecond(cscan->custom_private));
	state->attnums = palloc(sizeof(AttrNumber) * list_length(attnums));
	foreach_int(attnum, attnums)
		state->attnums[i++] = attnum;
	state->nitems = list_length(items);
	state->items = palloc(sizeof(MerAggItem) * (state->nitems + 1));
	i = 0;
	foreach_ptr(List, item, items)
	{
		state->items[i].result = linitial_int(item);
		state->items[i].fn = lsecond_int(item);
		state->items[i++].attnum = lthird_int(item);
	}
	if (cscan->custom_exprs != NIL)
		state->filter = mer_filter_compile(cscan->custom_exprs, INDEX_VAR,
										   state->attnums, &node->ss.ps);
	initStringInfo(&state->filter_buf);
	state->row_cxt = AllocSetContextCreate(CurrentMemoryContext, "Meridian group",
										   ALLOCSET_SMALL_SIZES);
	node->custom_ps = list_make1(ExecInitNode(linitial(cscan->custom_plans),
											  estate, eflags));
}

/* ---------- asking storage ---------- */

static bool
is_average(const MerAggItem *item)
{
	return item->result == MER_AGG_AVG || item->result == MER_AGG_AVG_WIDE;
}

static void
put_aggregate(StringInfo buf, int fn, AttrNumber attnum)
{
	mp_put_array(buf, 2);
	mp_put_int(buf, fn);
	mp_put_int(buf, attnum);
}

static void
put_aggregates(StringInfo buf, AggPushState *state)
{
	uint32		n = 0;

	for (int i = 0; i < state->nitems; i++)
		n += is_average(&state->items[i]) ? 2 : 1;
	mp_put_array(buf, n);
	for (int i = 0; i < state->nitems; i++)
	{
		put_aggregate(buf, state->items[i].fn, state->items[i].attnum);
		if (is_average(&state->items[i]))
			put_aggregate(buf, MER_FN_COUNT, state->items[i].attnum);
	}
}

/* The SCAN of docs/protocol.md, in its order of fields. */
static uint32
put_request(StringInfo buf, AggPushState *state)
{
	uint32		id = mer_wire_begin(buf, MER_SCAN, SCAN_FIELDS);

	mp_put_int(buf, mer_catver());
	mp_put_int(buf, mer_txn.tau);
	mp_put_int(buf, mer_rel(state->table)->sid);
	mp_put_bin(buf, state->range.lo ? state->range.lo : "",
			   state->range.lo ? state->range.lo_len : 0);
	if (state->range.hi)
		mp_put_bin(buf, state->range.hi, state->range.hi_len);
	else
		mp_put_nil(buf);
	mp_put_int(buf, 0);			/* flags */
	mp_put_array(buf, 0);		/* cols */
	if (state->filter_buf.len > 0)
		appendBinaryStringInfo(buf, state->filter_buf.data, state->filter_buf.len);
	else
		mp_put_nil(buf);
	mp_put_int(buf, MAX_GROUPS_ASKED);
	mp_put_int(buf, MAX_ANSWER_BYTES);
	mp_put_int(buf, 0);			/* row_sid */
	mp_put_array(buf, 0);		/* row_cols */
	mp_put_nil(buf);			/* row_filter */
	mp_put_array(buf, state->ngroups);
	for (int i = 0; i < state->ngroups; i++)
		mp_put_int(buf, state->attnums[i]);
	put_aggregates(buf, state);
	return id;
}

/* Send the request; false if the answer was cut. */
static bool
ask_storage(AggPushState *state)
{
	StringInfoData buf;
	uint32		id;
	bool		more;

	mer_txn_start();
	mer_checks_flush();
	initStringInfo(&buf);
	id = put_request(&buf, state);
	state->reply = mer_wire_call(&buf, id);
	pfree(buf.data);
	if (state->reply.type != MER_RESULT)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("unexpected answer %d to a scan", state->reply.type)));
	mer_txn_saw_tau(mp_get_int(&state->reply.body));
	more = mp_get_bool(&state->reply.body);
	state->rows_left = mp_get_array(&state->reply.body);
	mer_counters.rows += state->rows_left;
	if (more)
	{
		pfree(state->reply.frame);
		state->reply.frame = NULL;
	}
	return !more;
}

static AggMode
decide(AggPushState *state)
{
	MerRel	   *mrel = mer_rel(state->table);
	MerFilterResult result = MER_FILTER_TRUE;
	bool		exact = true,
				fits;
	MemoryContext old;

	if (mer_rel_written(mrel->sid) || mer_txn_created(mrel->sid) ||
		mer_txn_stored_natts(mrel->sid, mrel->natts) < mrel->natts)
		return MODE_LOCAL;
	resetStringInfo(&state->filter_buf);
	if (state->filter)
	{
		ExprContext *econtext = state->css.ss.ps.ps_ExprContext;

		result = mer_filter_encode(state->filter, econtext, &state->filter_buf, &exact);
		if (!mer_filter_bound(state->filter, econtext, &state->range))
			result = MER_FILTER_FALSE;
	}
	/* The child knows best what no rows at all give. */
	if (!exact || result == MER_FILTER_FALSE)
		return MODE_LOCAL;
	old = MemoryContextSwitchTo(state->css.ss.ps.state->es_query_cxt);
	mer_count_start(&state->counters);
	fits = ask_storage(state);
	mer_count_stop(&state->counters);
	MemoryContextSwitchTo(old);
	return fits ? MODE_REMOTE : MODE_LOCAL;
}

/* ---------- the answer ---------- */

/* high * 2^32 + low, exactly. */
static Datum
wide_sum(int64 high, int64 low)
{
	Datum		shift = NumericGetDatum(int64_to_numeric(INT64CONST(1) << 32));
	Datum		sum = DirectFunctionCall2(numeric_mul,
										  NumericGetDatum(int64_to_numeric(high)), shift);

	return DirectFunctionCall2(numeric_add, sum, NumericGetDatum(int64_to_numeric(low)));
}

/* The way core's avg() of integers divides. */
static Datum
average(Datum sum, int64 count)
{
	return DirectFunctionCall2(numeric_div, sum, NumericGetDatum(int64_to_numeric(count)));
}

static Datum
read_sum(MpReader *r, bool wide, bool as_numeric, bool *isnull)
{
	int64		first,
				second = 0;

	*isnull = mp_try_nil(r);
	if (*isnull)
	{
		if (wide)
			mp_skip(r);
		return (Datum) 0;
	}
	first = mp_get_int(r);
	if (wide)
	{
		second = mp_get_int(r);
		return wide_sum(first, second);
	}
	return as_numeric ? NumericGetDatum(int64_to_numeric(first)) : Int64GetDatum(first);
}

static Datum
read_item(MpReader *r, const MerAggItem *item, MerRel *mrel, bool *isnull)
{
	Datum		sum;
	int64		count;

	*isnull = false;
	switch (item->result)
	{
		case MER_AGG_COUNT:
			return Int64GetDatum(mp_get_int(r));
		case MER_AGG_VALUE:
			return mer_value_get(r, &mrel->cols[item->attnum - 1], isnull);
		case MER_AGG_SUM:
		case MER_AGG_SUM_WIDE:
			return read_sum(r, item->fn == MER_FN_SUM_WIDE, false, isnull);
		case MER_AGG_AVG:
		case MER_AGG_AVG_WIDE:
			sum = read_sum(r, item->fn == MER_FN_SUM_WIDE, true, isnull);
			count = mp_get_int(r);
			return *isnull ? (Datum) 0 : average(sum, count);
	}
	pg_unreachable();
}

/* Fill the scan tuple with the next group. */
static TupleTableSlot *
next_group(ScanState *ss)
{
	AggPushState *state = (AggPushState *) ss;
	TupleTableSlot *slot = ss->ss_ScanTupleSlot;
	MerRel	   *mrel = mer_rel(state->table);
	MpReader   *r = &state->reply.body;
	MemoryContext old;
	int			n = 0;

	ExecClearTuple(slot);
	if (state->rows_left == 0)
		return slot;
	state->rows_left--;
	MemoryContextReset(state->row_cxt);
	old = MemoryContextSwitchTo(state->row_cxt);
	(void) mp_get_array(r);
	for (; n < state->ngroups; n++)
		slot->tts_values[n] = mer_value_get(r, &mrel->cols[state->attnums[n] - 1],
											&slot->tts_isnull[n]);
	for (int i = 0; i < state->nitems; i++, n++)
		slot->tts_values[n] = read_item(r, &state->items[i], mrel, &slot->tts_isnull[n]);
	for (; n < slot->tts_tupleDescriptor->natts; n++)
		slot->tts_isnull[n] = true; /* columns only the filter names */
	MemoryContextSwitchTo(old);
	return ExecStoreVirtualTuple(slot);
}

static bool
recheck_group(ScanState *ss, TupleTableSlot *slot)
{
	return true;
}

/* The child's row, which is final, in the slot the parent expects. */
static TupleTableSlot *
next_local(AggPushState *state)
{
	TupleTableSlot *row = ExecProcNode(linitial(state->css.custom_ps));
	ScanState  *ss = &state->css.ss;
	TupleTableSlot *slot = ss->ps.ps_ProjInfo ? ss->ps.ps_ResultTupleSlot :
		ss->ss_ScanTupleSlot;

	ExecClearTuple(slot);
	if (TupIsNull(row))
		return NULL;
	slot_getallattrs(row);
	for (int i = 0; i < slot->tts_tupleDescriptor->natts; i++)
	{
		slot->tts_values[i] = row->tts_values[i];
		slot->tts_isnull[i] = row->tts_isnull[i];
	}
	return ExecStoreVirtualTuple(slot);
}

static TupleTableSlot *
exec_agg(CustomScanState *node)
{
	AggPushState *state = (AggPushState *) node;

	if (state->mode == MODE_UNDECIDED)
		state->mode = decide(state);
	if (state->mode == MODE_LOCAL)
		return next_local(state);
	return ExecScan(&node->ss, next_group, recheck_group);
}

static void
forget_answer(AggPushState *state)
{
	if (state->reply.frame)
		pfree(state->reply.frame);
	state->reply.frame = NULL;
	state->rows_left = 0;
	state->mode = MODE_UNDECIDED;
}

static void
rescan_agg(CustomScanState *node)
{
	AggPushState *state = (AggPushState *) node;
	PlanState  *child = linitial(node->custom_ps);

	forget_answer(state);
	if (node->ss.ps.chgParam != NULL)
		UpdateChangedParamSet(child, node->ss.ps.chgParam);
	if (child->chgParam == NULL)
		ExecReScan(child);
	ExecScanReScan(&node->ss);
}

static void
end_agg(CustomScanState *node)
{
	AggPushState *state = (AggPushState *) node;

	forget_answer(state);
	ExecEndNode(linitial(node->custom_ps));
	table_close(state->table, NoLock);
}

static void
explain_agg(CustomScanState *node, List *ancestors, ExplainState *es)
{
	AggPushState *state = (AggPushState *) node;
	CustomScan *cscan = castNode(CustomScan, node->ss.ps.plan);

	mer_explain_groups(cscan->custom_scan_tlist, state->ngroups, state->nitems,
					   &node->ss.ps, ancestors, es);
	mer_explain_filter(cscan->custom_exprs, "Storage Filter", &node->ss.ps, ancestors, es);
	if (es->analyze && state->mode == MODE_LOCAL)
		ExplainPropertyText("Storage Aggregate",
							"not used: written by this transaction, or too many groups", es);
	mer_explain_counters(&state->counters, es);
}
