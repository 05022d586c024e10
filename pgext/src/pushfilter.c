/*
 * pushfilter.c
 *	  Pushed expressions at run time: values are evaluated and the filter
 *	  encoded (docs/formats.md, "Filters and aggregates").
 *
 * Encoding drives NOT down to the leaves.  What is left is monotone, so a
 * comparison that can never be true (a NULL value) may count as false, and
 * constants fold away.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/skey.h"
#include "catalog/pg_type_d.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/relcache.h"

#include "pushleaf.h"
#include "store.h"

/* Operations of the encoded filter. */
#define FILTER_AND 1
#define FILTER_OR 2
#define FILTER_NOT 3
#define FILTER_IS_NULL 4
#define FILTER_IS_NOT_NULL 5
#define FILTER_COMPARE 6
#define FILTER_IN 7

/* More values or bytes than this are not sent. */
#define MAX_FILTER_VALUES 4096
#define MAX_FILTER_BYTES (1024 * 1024)

typedef struct PushNode
{
	int			op;				/* FILTER_AND, FILTER_OR, or 0 for a leaf */
	List	   *arms;			/* of PushNode */
	Leaf		leaf;
	ExprState  *value;
} PushNode;

struct MerFilter
{
	PushNode   *root;
	AttrNumber	last_column;
};

/* ---------- compile ---------- */

/* NOT of a leaf; comparisons are total orders, so this holds for NaN too. */
static void
negate_leaf(Leaf *leaf)
{
	static const int inverse[] = {0, COMPARE_GE, COMPARE_GT, COMPARE_NE,
	COMPARE_LT, COMPARE_LE, COMPARE_EQ};

	switch (leaf->kind)
	{
		case LEAF_BOOL:
			leaf->bool_value = !leaf->bool_value;
			break;
		case LEAF_IS_NULL:
			leaf->kind = LEAF_IS_NOT_NULL;
			break;
		case LEAF_IS_NOT_NULL:
			leaf->kind = LEAF_IS_NULL;
			break;
		case LEAF_COMPARE:
			leaf->cmp = inverse[leaf->cmp];
			break;
		case LEAF_IN:
			leaf->kind = LEAF_NOT_IN;
			break;
		case LEAF_NOT_IN:
			leaf->kind = LEAF_IN;
			break;
		case LEAF_DISTINCT:
		case LEAF_BOOL_TEST:
			leaf->negated = !leaf->negated;
			break;
	}
}

typedef struct CompileContext
{
	Index		varno;
	const AttrNumber *attnums;
	PlanState  *parent;
	AttrNumber	last_column;
} CompileContext;

static PushNode *
compile(Expr *expr, bool negated, CompileContext *cx)
{
	PushNode   *node = palloc0(sizeof(PushNode));

	check_stack_depth();
	if (IsA(expr, BoolExpr))
	{
		BoolExpr   *b = (BoolExpr *) expr;
		ListCell   *lc;

		if (b->boolop == NOT_EXPR)
			return compile((Expr *) linitial(b->args), !negated, cx);
		node->op = (b->boolop == AND_EXPR) != negated ? FILTER_AND : FILTER_OR;
		foreach(lc, b->args)
			node->arms = lappend(node->arms,
								 compile((Expr *) lfirst(lc), negated, cx));
		return node;
	}
	if (!mer_match_leaf(expr, cx->varno, &node->leaf))
		elog(ERROR, "expression of type %d was not meant to be pushed down",
			 (int) nodeTag(expr));
	if (negated)
		negate_leaf(&node->leaf);
	if (node->leaf.value)
		node->value = ExecInitExpr(node->leaf.value, cx->parent);
	if (cx->attnums)
		node->leaf.attnum = cx->attnums[node->leaf.attnum - 1];
	cx->last_column = Max(cx->last_column, node->leaf.attnum);
	return node;
}

MerFilter *
mer_filter_compile(List *clauses, Index varno, const AttrNumber *attnums, PlanState *parent)
{
	CompileContext cx = {.varno = varno, .attnums = attnums, .parent = parent};
	MerFilter  *filter = palloc0(sizeof(MerFilter));

	filter->root = palloc0(sizeof(PushNode));
	filter->root->op = FILTER_AND;
	foreach_ptr(Expr, clause, clauses)
		filter->root->arms = lappend(filter->root->arms,
									 compile(clause, false, &cx));
	filter->last_column = cx.last_column;
	return filter;
}

AttrNumber
mer_filter_last_column(const MerFilter *filter)
{
	return filter->last_column;
}

/* ---------- encode ---------- */

typedef struct EncodeContext
{
	ExprContext *econtext;
	int			values;			/* so far */
	bool		exact;
} EncodeContext;

static MerFilterResult
give_up(EncodeContext *cx)
{
	cx->exact = false;
	return MER_FILTER_TRUE;
}

static void
put_value(StringInfo buf, const MerColumn *type, Datum value)
{
	if (type->cls == MER_ORDERED)
	{
		StringInfoData order;

		initStringInfo(&order);
		mer_order_bytes(&order, type->typid, value);
		mp_put_bin(buf, order.data, order.len);
		pfree(order.data);
	}
	else if (type->typid == BOOLOID)
		mp_put_int(buf, DatumGetBool(value) ? 1 : 0);
	else
		mer_value_put(buf, type, value, false);
}

static MerFilterResult
put_null_test(StringInfo buf, AttrNumber attnum, bool is_null)
{
	mp_put_array(buf, 2);
	mp_put_int(buf, is_null ? FILTER_IS_NULL : FILTER_IS_NOT_NULL);
	mp_put_int(buf, attnum);
	return MER_FILTER_SOME;
}

static void
put_compare_head(StringInfo buf, AttrNumber attnum, int cmp)
{
	mp_put_array(buf, 4);
	mp_put_int(buf, FILTER_COMPARE);
	mp_put_int(buf, attnum);
	mp_put_int(buf, cmp);
}

static MerFilterResult
encode_boolean(StringInfo buf, const Leaf *leaf)
{
	bool		value = leaf->bool_value;

	if (leaf->kind == LEAF_BOOL_TEST && leaf->negated)
	{
		/* IS NOT TRUE = IS NULL OR = false */
		mp_put_array(buf, 3);
		mp_put_int(buf, FILTER_OR);
		put_null_test(buf, leaf->attnum, true);
		value = !value;
	}
	put_compare_head(buf, leaf->attnum, COMPARE_EQ);
	mp_put_int(buf, value ? 1 : 0);
	return MER_FILTER_SOME;
}

static MerFilterResult
encode_compare(StringInfo buf, PushNode *node, EncodeContext *cx)
{
	const Leaf *leaf = &node->leaf;
	int			cmp = leaf->cmp;
	bool		isnull;
	Datum		value = ExecEvalExpr(node->value, cx->econtext, &isnull);

	if (leaf->kind == LEAF_DISTINCT)
	{
		if (isnull)
			return put_null_test(buf, leaf->attnum, leaf->negated);
		cmp = leaf->negated ? COMPARE_EQ : COMPARE_NE;
		if (!leaf->negated)
		{
			mp_put_array(buf, 3);
			mp_put_int(buf, FILTER_OR);
			put_null_test(buf, leaf->attnum, true);
		}
	}
	else if (isnull)
		return MER_FILTER_FALSE;
	put_compare_head(buf, leaf->attnum, cmp);
	put_value(buf, &leaf->type, value);
	cx->values++;
	return MER_FILTER_SOME;
}

/*
 * column = ANY(array): NULL elements never make it true.  column <> ALL(array)
 * with a NULL element is never true.
 */
static MerFilterResult
encode_in(StringInfo buf, PushNode *node, EncodeContext *cx)
{
	const Leaf *leaf = &node->leaf;
	bool		negated = leaf->kind == LEAF_NOT_IN;
	bool		isnull;
	Datum		value = ExecEvalExpr(node->value, cx->econtext, &isnull);
	Datum	   *elems;
	bool	   *nulls;
	int			nelems,
				count = 0;
	char		align;

	if (isnull)
		return MER_FILTER_FALSE;
	get_typlenbyvalalign(leaf->type.typid, &(int16) {0}, &(bool) {0}, &align);
	deconstruct_array(DatumGetArrayTypeP(value), leaf->type.typid,
					  leaf->type.typlen, leaf->type.typbyval, align,
					  &elems, &nulls, &nelems);
	for (int i = 0; i < nelems; i++)
		count += nulls[i] ? 0 : 1;
	if (negated && count < nelems)
		return MER_FILTER_FALSE;
	if (count == 0)
		return negated ? MER_FILTER_TRUE : MER_FILTER_FALSE;
	if (cx->values + count > MAX_FILTER_VALUES)
		return give_up(cx);
	cx->values += count;
	if (negated)
	{
		mp_put_array(buf, 2);
		mp_put_int(buf, FILTER_NOT);
	}
	mp_put_array(buf, 3);
	mp_put_int(buf, FILTER_IN);
	mp_put_int(buf, leaf->attnum);
	mp_put_array(buf, count);
	for (int i = 0; i < nelems; i++)
		if (!nulls[i])
			put_value(buf, &leaf->type, elems[i]);
	return MER_FILTER_SOME;
}

static MerFilterResult
encode_leaf(StringInfo buf, PushNode *node, EncodeContext *cx)
{
	switch (node->leaf.kind)
	{
		case LEAF_IS_NULL:
			return put_null_test(buf, node->leaf.attnum, true);
		case LEAF_IS_NOT_NULL:
			return put_null_test(buf, node->leaf.attnum, false);
		case LEAF_BOOL:
		case LEAF_BOOL_TEST:
			return encode_boolean(buf, &node->leaf);
		case LEAF_COMPARE:
		case LEAF_DISTINCT:
			return encode_compare(buf, node, cx);
		case LEAF_IN:
		case LEAF_NOT_IN:
			return encode_in(buf, node, cx);
	}
	pg_unreachable();
}

static MerFilterResult
encode(StringInfo buf, PushNode *node, EncodeContext *cx)
{
	MerFilterResult absorbing;
	StringInfoData arms;
	int			count = 0;

	if (node->op == 0)
		return encode_leaf(buf, node, cx);

	/* TRUE ends an OR, FALSE ends an AND; the other one is left out. */
	absorbing = node->op == FILTER_OR ? MER_FILTER_TRUE : MER_FILTER_FALSE;
	initStringInfo(&arms);
	foreach_ptr(PushNode, arm, node->arms)
	{
		MerFilterResult result = encode(&arms, arm, cx);

		if (result == absorbing)
			return absorbing;
		if (result == MER_FILTER_SOME)
			count++;
	}
	if (count == 0)
		return node->op == FILTER_OR ? MER_FILTER_FALSE : MER_FILTER_TRUE;
	if (count > 1)
	{
		mp_put_array(buf, count + 1);
		mp_put_int(buf, node->op);
	}
	appendBinaryStringInfo(buf, arms.data, arms.len);
	return MER_FILTER_SOME;
}

MerFilterResult
mer_filter_encode(MerFilter *filter, ExprContext *econtext, StringInfo buf, bool *exact)
{
	EncodeContext cx = {.econtext = econtext, .exact = true};
	MemoryContext old = MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);
	MerFilterResult result = encode(buf, filter->root, &cx);

	MemoryContextSwitchTo(old);
	if (result == MER_FILTER_SOME && buf->len > MAX_FILTER_BYTES)
	{
		resetStringInfo(buf);
		result = give_up(&cx);
	}
	*exact = cx.exact;
	return result;
}

/* ---------- the range of row keys ---------- */

/* The scan key "index column op value" of a comparison; false if there is none. */
static bool
make_scan_key(PushNode *node, MerRel *mrel, ExprContext *econtext, ScanKey key)
{
	const Leaf *leaf = &node->leaf;

	if (node->op != 0 || leaf->kind != LEAF_COMPARE || leaf->cmp == COMPARE_NE)
		return false;
	for (int i = 0; i < mrel->nkeys; i++)
	{
		bool		isnull;

		if (mrel->keys[i].attnum != leaf->attnum)
			continue;
		memset(key, 0, sizeof(ScanKeyData));
		key->sk_attno = i + 1;
		key->sk_strategy = leaf->cmp;
		key->sk_subtype = leaf->type.typid;
		key->sk_collation = mrel->keys[i].collation;
		key->sk_argument = ExecEvalExpr(node->value, econtext, &isnull);
		return !isnull;
	}
	return false;
}

/*
 * Where the rows lie that pass the filter, by its conditions on the leading
 * columns of the key the table is organised by.
 */
bool
mer_filter_bound(MerFilter *filter, ExprContext *econtext, MerScanSpec *spec)
{
	MerRel	   *mrel = mer_rel(spec->table);
	MemoryContext old;
	ScanKeyData *keys;
	MerRanges	ranges;
	Oid			pkey = mrel->organised ? RelationGetPrimaryKeyIndex(spec->table, false) :
		InvalidOid;
	int			nkeys = 0;

	spec->lo = spec->hi = NULL;
	if (!OidIsValid(pkey))
		return true;
	old = MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);
	keys = palloc(sizeof(ScanKeyData) * (list_length(filter->root->arms) + 1));
	foreach_ptr(PushNode, arm, filter->root->arms)
		if (make_scan_key(arm, mrel, econtext, &keys[nkeys]))
			nkeys++;
	ranges.n = 1;
	if (nkeys > 0)
	{
		Relation	index = relation_open(pkey, AccessShareLock);

		mer_index_ranges(&ranges, index, keys, nkeys);
		relation_close(index, AccessShareLock);
	}
	if (nkeys > 0 && ranges.n > 0)
	{
		spec->lo = ranges.ranges[0].lo.data;
		spec->lo_len = ranges.ranges[0].lo.len;
		spec->hi = ranges.ranges[ranges.n - 1].hi.data;
		spec->hi_len = ranges.ranges[ranges.n - 1].hi.len;
	}
	MemoryContextSwitchTo(old);
	return ranges.n > 0;
}
