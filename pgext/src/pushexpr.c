/*
 * pushexpr.c
 *	  Which boolean expressions storage can evaluate, and their encoding.
 *
 * Storage compares values of one column class with constants under SQL's
 * three-valued logic (docs/formats.md, "Filters and aggregates").  An
 * expression qualifies only if the answer is provably the same here and
 * there: bare columns, builtin comparison operators of the class, values that
 * do not depend on the row.
 *
 * Encoding drives NOT down to the leaves.  What is left is monotone, so a
 * comparison that can never be true (a NULL value) may count as false, and
 * constants fold away.
 */
#include "postgres.h"

#include "catalog/pg_opfamily_d.h"
#include "catalog/pg_type_d.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/lsyscache.h"

#include "push.h"

/* Builtin families that pg_opfamily_d.h gives no name. */
#define DATETIME_BTREE_FAM_OID 434
#define FLOAT_BTREE_FAM_OID 1970
#define NUMERIC_BTREE_FAM_OID 1988
#define TIME_BTREE_FAM_OID 1996
#define UUID_BTREE_FAM_OID 2968

/* Operations of the encoded filter. */
#define FILTER_AND 1
#define FILTER_OR 2
#define FILTER_NOT 3
#define FILTER_IS_NULL 4
#define FILTER_IS_NOT_NULL 5
#define FILTER_COMPARE 6
#define FILTER_IN 7

#define COMPARE_LT 1
#define COMPARE_LE 2
#define COMPARE_EQ 3
#define COMPARE_GE 4
#define COMPARE_GT 5
#define COMPARE_NE 6

/*
 * Storage translates a filter into one SQL statement, whose depth and number
 * of bound values are limited; wider filters stay here.
 */
#define MAX_FILTER_ARMS 128
#define MAX_FILTER_VALUES 4096
#define MAX_FILTER_BYTES (1024 * 1024)

typedef enum LeafKind
{
	LEAF_BOOL,					/* boolean column = value */
	LEAF_IS_NULL,
	LEAF_IS_NOT_NULL,
	LEAF_COMPARE,
	LEAF_DISTINCT,				/* IS DISTINCT FROM value */
	LEAF_IN,
	LEAF_NOT_IN,
	LEAF_BOOL_TEST				/* IS [NOT] TRUE/FALSE */
} LeafKind;

typedef struct Leaf
{
	LeafKind	kind;
	AttrNumber	attnum;
	int			cmp;			/* LEAF_COMPARE */
	bool		bool_value;		/* LEAF_BOOL, LEAF_BOOL_TEST */
	bool		negated;		/* LEAF_BOOL_TEST: IS NOT; LEAF_DISTINCT: IS NOT DISTINCT */
	Expr	   *value;			/* LEAF_COMPARE, LEAF_DISTINCT; the array of LEAF_IN */
	MerColumn	type;			/* of the value, or of the array's elements */
} Leaf;

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

/* ---------- recognising leaves ---------- */

/* The operator's place in the order of a builtin family, or 0. */
static int
family_compare(Oid opno, Oid family)
{
	int			strategy = get_op_opfamily_strategy(opno, family);
	Oid			negator;

	if (strategy >= COMPARE_LT && strategy <= COMPARE_GT)
		return strategy;
	negator = get_negator(opno);
	if (OidIsValid(negator) &&
		get_op_opfamily_strategy(negator, family) == COMPARE_EQ)
		return COMPARE_NE;
	return 0;
}

/*
 * The family in which storage's order of a column type is the operator's
 * order.  text_pattern_ops and the like are left out: nobody needs them under
 * C order.
 */
static Oid
column_family(Oid typid)
{
	switch (typid)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
			return INTEGER_BTREE_FAM_OID;
		case BOOLOID:
			return BOOL_BTREE_FAM_OID;
		case OIDOID:
			return OID_BTREE_FAM_OID;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return DATETIME_BTREE_FAM_OID;
		case TIMEOID:
			return TIME_BTREE_FAM_OID;
		case TEXTOID:
		case VARCHAROID:
			return TEXT_BTREE_FAM_OID;
		case BYTEAOID:
			return BYTEA_BTREE_FAM_OID;
		case UUIDOID:
			return UUID_BTREE_FAM_OID;
		case FLOAT4OID:
		case FLOAT8OID:
			return FLOAT_BTREE_FAM_OID;
		case NUMERICOID:
			return NUMERIC_BTREE_FAM_OID;
		default:
			return InvalidOid;
	}
}

bool
mer_push_is_equality(Oid op, Oid typid)
{
	Oid			family = column_family(typid);

	return OidIsValid(family) && family_compare(op, family) == COMPARE_EQ;
}

/* May a value of type right be compared with a column of type left as it is? */
static bool
types_compare(Oid family, Oid left, Oid right)
{
	if (family == INTEGER_BTREE_FAM_OID || family == FLOAT_BTREE_FAM_OID)
		return true;			/* all widths widen without loss */
	return left == right;
}

static MerClass
var_class(const Var *var)
{
	return mer_column_class(getBaseType(var->vartype), var->varcollid);
}

Var *
mer_push_column(Expr *expr, Index varno)
{
	Var		   *var;

	while (expr && IsA(expr, RelabelType))
		expr = ((RelabelType *) expr)->arg;
	if (expr == NULL || !IsA(expr, Var))
		return NULL;
	var = (Var *) expr;
	if (var->varno != varno || var->varlevelsup != 0 || var->varattno <= 0)
		return NULL;
	return var;
}

/*
 * Columns of other range table entries are allowed: in the clauses of a
 * parameterised path they become Params before execution.
 */
static bool
names_this_row(Node *node, void *varno)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
		return ((Var *) node)->varno == *(Index *) varno;
	if (IsA(node, PlaceHolderVar) || IsA(node, CurrentOfExpr) || IsA(node, Aggref))
		return true;
	return expression_tree_walker(node, names_this_row, varno);
}

static bool
value_is_constant(Expr *expr, Index varno)
{
	return !names_this_row((Node *) expr, &varno) &&
		!contain_volatile_functions((Node *) expr) &&
		!contain_subplans((Node *) expr);
}

static void
init_value_type(MerColumn *col, Oid typid, MerClass cls)
{
	memset(col, 0, sizeof(*col));
	col->typid = typid;
	col->cls = cls;
	get_typlenbyval(typid, &col->typlen, &col->typbyval);
}

/*
 * Recognise "column op value" (either way round) where op belongs to the
 * column's order; fills attnum, value and type, and returns the comparison.
 */
static int
match_comparison(Oid opno, Oid collation, Expr *left, Expr *right, Index varno,
				 bool right_is_array, Leaf *leaf)
{
	Var		   *var = mer_push_column(left, varno);
	Oid			family,
				typid,
				ltype,
				rtype;
	MerClass	cls;
	int			cmp;

	if (var == NULL && !right_is_array)
	{
		var = mer_push_column(right, varno);
		right = left;
		opno = get_commutator(opno);
	}
	if (var == NULL || !OidIsValid(opno) || !value_is_constant(right, varno))
		return 0;
	typid = getBaseType(var->vartype);
	cls = var_class(var);
	family = column_family(typid);
	if (cls == MER_OPAQUE || !OidIsValid(family))
		return 0;
	cmp = family_compare(opno, family);
	if (cmp == 0)
		return 0;

	/* The operator must see the column as what it is stored as. */
	op_input_types(opno, &ltype, &rtype);
	if (typid == VARCHAROID)
		typid = TEXTOID;
	if (ltype != typid || !types_compare(family, ltype, rtype))
		return 0;
	if (family == TEXT_BTREE_FAM_OID &&
		mer_column_class(ltype, collation) != MER_BYTES)
		return 0;
	leaf->attnum = var->varattno;
	leaf->value = right;
	init_value_type(&leaf->type, rtype, cls);
	return cmp;
}

static bool
match_array(ScalarArrayOpExpr *expr, Index varno, Leaf *leaf)
{
	int			cmp = match_comparison(expr->opno, expr->inputcollid,
									   linitial(expr->args), lsecond(expr->args),
									   varno, true, leaf);

	if (cmp == COMPARE_EQ && expr->useOr)
		leaf->kind = LEAF_IN;
	else if (cmp == COMPARE_NE && !expr->useOr)
		leaf->kind = LEAF_NOT_IN;
	else
		return false;
	return true;
}

static bool
match_boolean_test(BooleanTest *test, Index varno, Leaf *leaf)
{
	Var		   *var = mer_push_column(test->arg, varno);

	if (var == NULL || getBaseType(var->vartype) != BOOLOID)
		return false;
	leaf->attnum = var->varattno;
	switch (test->booltesttype)
	{
		case IS_UNKNOWN:
			leaf->kind = LEAF_IS_NULL;
			return true;
		case IS_NOT_UNKNOWN:
			leaf->kind = LEAF_IS_NOT_NULL;
			return true;
		default:
			leaf->kind = LEAF_BOOL_TEST;
			leaf->bool_value = test->booltesttype == IS_TRUE ||
				test->booltesttype == IS_NOT_TRUE;
			leaf->negated = test->booltesttype == IS_NOT_TRUE ||
				test->booltesttype == IS_NOT_FALSE;
			return true;
	}
}

static bool
match_leaf(Expr *expr, Index varno, Leaf *leaf)
{
	memset(leaf, 0, sizeof(*leaf));
	if (IsA(expr, OpExpr) && list_length(((OpExpr *) expr)->args) == 2)
	{
		OpExpr	   *op = (OpExpr *) expr;

		leaf->kind = LEAF_COMPARE;
		leaf->cmp = match_comparison(op->opno, op->inputcollid, linitial(op->args),
									 lsecond(op->args), varno, false, leaf);
		return leaf->cmp != 0;
	}
	if (IsA(expr, DistinctExpr))
	{
		DistinctExpr *op = (DistinctExpr *) expr;

		leaf->kind = LEAF_DISTINCT;
		return match_comparison(op->opno, op->inputcollid, linitial(op->args),
								lsecond(op->args), varno, false, leaf) == COMPARE_EQ;
	}
	if (IsA(expr, ScalarArrayOpExpr))
		return match_array((ScalarArrayOpExpr *) expr, varno, leaf);
	if (IsA(expr, BooleanTest))
		return match_boolean_test((BooleanTest *) expr, varno, leaf);
	if (IsA(expr, NullTest))
	{
		NullTest   *test = (NullTest *) expr;
		Var		   *var = mer_push_column(test->arg, varno);

		/* IS NULL of a row value looks into the row. */
		if (var == NULL || test->argisrow || type_is_rowtype(var->vartype))
			return false;
		leaf->kind = test->nulltesttype == IS_NULL ? LEAF_IS_NULL : LEAF_IS_NOT_NULL;
		leaf->attnum = var->varattno;
		return true;
	}
	if (exprType((Node *) expr) == BOOLOID)
	{
		Var		   *var = mer_push_column(expr, varno);

		if (var == NULL || getBaseType(var->vartype) != BOOLOID)
			return false;
		leaf->kind = LEAF_BOOL;
		leaf->attnum = var->varattno;
		leaf->bool_value = true;
		return true;
	}
	return false;
}

/* ---------- planning: the part of a clause that goes out ---------- */

static Expr *extract(Expr *expr, Index varno, bool negated, bool *exact);

/*
 * Under AND (or a negated OR) an arm that cannot go out is left to the
 * executor; under OR (or a negated AND) it keeps the whole expression here.
 */
static Expr *
extract_arms(BoolExpr *expr, Index varno, bool negated, bool *exact)
{
	bool		conjunction = (expr->boolop == AND_EXPR) != negated;
	List	   *arms = NIL;
	ListCell   *lc;

	foreach(lc, expr->args)
	{
		Expr	   *arm = extract((Expr *) lfirst(lc), varno, negated, exact);

		if (arm != NULL)
			arms = lappend(arms, arm);
		else if (!conjunction)
			return NULL;
	}
	if (arms == NIL || list_length(arms) > MAX_FILTER_ARMS)
	{
		*exact = false;
		return NULL;
	}
	if (list_length(arms) == 1)
		return (Expr *) linitial(arms);
	return makeBoolExpr(expr->boolop, arms, -1);
}

static Expr *
extract(Expr *expr, Index varno, bool negated, bool *exact)
{
	Leaf		leaf;

	check_stack_depth();
	if (IsA(expr, BoolExpr))
	{
		BoolExpr   *b = (BoolExpr *) expr;
		Expr	   *arg;

		if (b->boolop != NOT_EXPR)
			return extract_arms(b, varno, negated, exact);
		arg = extract((Expr *) linitial(b->args), varno, !negated, exact);
		return arg ? makeBoolExpr(NOT_EXPR, list_make1(arg), -1) : NULL;
	}
	if (match_leaf(expr, varno, &leaf))
		return expr;
	*exact = false;
	return NULL;
}

Expr *
mer_push_extract(Expr *clause, Index varno, bool *exact)
{
	*exact = true;
	return extract(clause, varno, false, exact);
}

/* ---------- execution: compile ---------- */

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
	if (!match_leaf(expr, cx->varno, &node->leaf))
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

/* ---------- execution: encode ---------- */

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
