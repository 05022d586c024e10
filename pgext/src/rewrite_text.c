/*
 * rewrite_text.c
 *	  The plan of a rewrite as text, and back: lists of nodes, in the server's
 *	  own notation.
 */
#include "postgres.h"

#include "nodes/makefuncs.h"
#include "nodes/nodes.h"
#include "nodes/value.h"
#include "utils/builtins.h"

#include "rewrite.h"

#define VERSION 2
#define VERSION_WITHOUT_END 1
#define FIELDS 9

static Node *
int64_node(int64 value)
{
	return (Node *) makeString(psprintf(INT64_FORMAT, value));
}

static int64
node_int64(void *node)
{
	return strtoll(strVal(node), NULL, 10);
}

/* With a letter before, for a node of digits alone would be read as a number. */
static char *
hex(MerBytes bytes)
{
	char	   *text = palloc(2 * bytes.len + 2);

	text[0] = 'x';
	text[1 + hex_encode(bytes.data, bytes.len, text + 1)] = '\0';
	return text;
}

static MerBytes
unhex(const char *text)
{
	uint32		digits = strlen(text + 1);
	char	   *data = palloc0(digits / 2 + 1);

	return (MerBytes) {data, (uint32) hex_decode(text + 1, digits, data)};
}

static List *
columns_out(List *columns)
{
	List	   *out = NIL;

	foreach_ptr(MerRewriteColumn, c, columns)
		out = lappend(out, list_concat(list_make3(makeInteger(c->attnum), makeInteger(c->kind), c->expr),
									   list_make4(int64_node(c->next), int64_node(c->increment),
												  int64_node(c->min), int64_node(c->max))));
	return out;
}

static List *
columns_in(List *in)
{
	List	   *columns = NIL;

	foreach_ptr(List, fields, in)
	{
		MerRewriteColumn *c = palloc(sizeof(MerRewriteColumn));

		c->attnum = (AttrNumber) intVal(linitial(fields));
		c->kind = intVal(lsecond(fields));
		c->expr = lthird(fields);
		c->next = node_int64(lfourth(fields));
		c->increment = node_int64(list_nth(fields, 4));
		c->min = node_int64(list_nth(fields, 5));
		c->max = node_int64(list_nth(fields, 6));
		columns = lappend(columns, c);
	}
	return columns;
}

static List *
checks_out(List *checks)
{
	List	   *out = NIL;

	foreach_ptr(MerRewriteCheck, check, checks)
		out = lappend(out, list_make2(makeString(check->name), check->expr));
	return out;
}

static List *
checks_in(List *in)
{
	List	   *checks = NIL;

	foreach_ptr(List, fields, in)
	{
		MerRewriteCheck *check = palloc(sizeof(MerRewriteCheck));

		check->name = strVal(linitial(fields));
		check->expr = lsecond(fields);
		checks = lappend(checks, check);
	}
	return checks;
}

char *
mer_rewrite_plan_out(const MerRewritePlan *plan)
{
	List	   *out = list_make5(makeInteger(VERSION), plan->stmt, plan->settings,
								 columns_out(plan->columns), checks_out(plan->checks));

	out = list_concat(out, list_make4(plan->not_null, plan->types, plan->index_names,
									  list_make3(int64_node(plan->sid),
												 makeInteger(plan->organised),
												 makeString(hex(plan->end)))));
	Assert(list_length(out) == FIELDS);
	return nodeToString(out);
}

MerRewritePlan *
mer_rewrite_plan_in(const char *text)
{
	MerRewritePlan *plan = palloc0(sizeof(MerRewritePlan));
	List	   *in = stringToNode(text);
	int			version = intVal(linitial(in));

	if (list_length(in) != FIELDS || version < VERSION_WITHOUT_END || version > VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the plan of a rewrite has an unknown format")));
	plan->stmt = lsecond(in);
	plan->settings = lthird(in);
	plan->columns = columns_in(lfourth(in));
	plan->checks = checks_in(list_nth(in, 4));
	plan->not_null = list_nth(in, 5);
	plan->types = list_nth(in, 6);
	plan->index_names = list_nth(in, 7);
	in = list_nth(in, 8);
	plan->sid = node_int64(linitial(in));
	plan->organised = intVal(lsecond(in)) != 0;
	plan->end = version == VERSION ? unhex(strVal(lthird(in))) : (MerBytes) {"", 0};
	return plan;
}
