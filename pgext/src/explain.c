/*
 * explain.c
 *	  What EXPLAIN says about work done in storage.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "commands/explain.h"
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#include "nodes/makefuncs.h"
#include "nodes/bitmapset.h"
#include "utils/ruleutils.h"

#include "push.h"

MerCounters mer_counters;

void
mer_count_start(MerNodeCounters *c)
{
	c->mark = mer_counters;
}

void
mer_count_stop(MerNodeCounters *c)
{
	c->sum.round_trips += mer_counters.round_trips - c->mark.round_trips;
	c->sum.rows += mer_counters.rows - c->mark.rows;
	c->sum.bytes += mer_counters.bytes - c->mark.bytes;
}

/* The conditions storage evaluates; label tells where. */
void
mer_explain_filter(List *clauses, const char *label, PlanState *ps,
				   List *ancestors, ExplainState *es)
{
	List	   *context;

	if (clauses == NIL)
		return;
	context = set_deparse_context_plan(es->deparse_cxt, ps->plan, ancestors);
	ExplainPropertyText(label,
						deparse_expression((Node *) make_ands_explicit(clauses),
										   context, es->verbose, false), es);
}

/* The groups and aggregates storage computes: leading entries of the tlist. */
void
mer_explain_groups(List *tlist, int ngroups, int naggs, PlanState *ps,
				   List *ancestors, ExplainState *es)
{
	List	   *context = set_deparse_context_plan(es->deparse_cxt, ps->plan, ancestors);
	bool		prefix = es->rtable_size > 1 || es->verbose;
	List	   *groups = NIL,
			   *aggs = NIL;

	foreach_node(TargetEntry, tle, tlist)
	{
		char	   *text = deparse_expression((Node *) tle->expr, context, prefix, false);

		if (tle->resno <= ngroups)
			groups = lappend(groups, text);
		else if (tle->resno <= ngroups + naggs)
			aggs = lappend(aggs, text);
	}
	if (groups != NIL)
		ExplainPropertyList("Storage Group Key", groups, es);
	if (aggs != NIL)
		ExplainPropertyList("Storage Aggregates", aggs, es);
}

/* The table whose rows are fetched by key, and the keys. */
void
mer_explain_lookup(Relation table, List *keys, PlanState *ps, List *ancestors,
				   ExplainState *es)
{
	List	   *context = set_deparse_context_plan(es->deparse_cxt, ps->plan, ancestors);
	List	   *texts = NIL;

	foreach_ptr(Node, key, keys)
		texts = lappend(texts, deparse_expression(key, context, true, false));
	ExplainPropertyText("Storage Table", RelationGetRelationName(table), es);
	ExplainPropertyList("Storage Key", texts, es);
}

/* The columns storage sends; attrs NULL means all. */
void
mer_explain_columns(Relation rel, Bitmapset *attrs, ExplainState *es)
{
	TupleDesc	desc = RelationGetDescr(rel);
	List	   *names = NIL;

	if (attrs == NULL)
		return;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped &&
			bms_is_member(att->attnum - FirstLowInvalidHeapAttributeNumber, attrs))
			names = lappend(names, NameStr(att->attname));
	}
	if (names == NIL)
		names = list_make1("(none)");
	ExplainPropertyList("Storage Columns", names, es);
}

void
mer_explain_counters(const MerNodeCounters *c, ExplainState *es)
{
	if (!es->analyze)
		return;
	if (es->format == EXPLAIN_FORMAT_TEXT)
	{
		ExplainIndentText(es);
		appendStringInfo(es->str,
						 "Storage: round trips=" UINT64_FORMAT " rows=" UINT64_FORMAT
						 " bytes=" UINT64_FORMAT "\n",
						 c->sum.round_trips, c->sum.rows, c->sum.bytes);
		return;
	}
	ExplainPropertyUInteger("Storage Round Trips", NULL, c->sum.round_trips, es);
	ExplainPropertyUInteger("Storage Rows", NULL, c->sum.rows, es);
	ExplainPropertyUInteger("Storage Bytes", NULL, c->sum.bytes, es);
}
