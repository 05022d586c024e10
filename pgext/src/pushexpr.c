/*
 * pushexpr.c
 *	  Which boolean expressions storage can evaluate, and their encoding.
 *
 * Storage compares values of one column class with constants under SQL's
 * three-valued logic (docs/formats.md, "Filters and aggregates").  An
 * expression qualifies only if the answer is provably the same here and
 * there: bare columns, builtin comparison operators of the class, values that
 * do not depend on the row.  pushfilter.c encodes them.
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

#include "pushleaf.h"

/* Builtin families that pg_opfamily_d.h gives no name. */
#define DATETIME_BTREE_FAM_OID 434
#define FLOAT_BTREE_FAM_OID 1970
#define NUMERIC_BTREE_FAM_OID 1988
#define TIME_BTREE_FAM_OID 1996
#define UUID_BTREE_FAM_OID 2968

/* Wider filters stay here: storage translates a filter into one SQL statement. */
#define MAX_FILTER_ARMS 128
#define MAX_FILTER_DEPTH 50

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

bool
mer_match_leaf(Expr *expr, Index varno, Leaf *leaf)
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

static Expr *extract(Expr *expr, Index varno, bool negated, int depth, bool *exact);

/*
 * Under AND (or a negated OR) an arm that cannot go out is left to the
 * executor; under OR (or a negated AND) it keeps the whole expression here.
 */
static Expr *
extract_arms(BoolExpr *expr, Index varno, bool negated, int depth, bool *exact)
{
	bool		conjunction = (expr->boolop == AND_EXPR) != negated;
	List	   *arms = NIL;
	ListCell   *lc;

	foreach(lc, expr->args)
	{
		Expr	   *arm = extract((Expr *) lfirst(lc), varno, negated, depth, exact);

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
extract(Expr *expr, Index varno, bool negated, int depth, bool *exact)
{
	Leaf		leaf;

	if (IsA(expr, BoolExpr) && depth < MAX_FILTER_DEPTH)
	{
		BoolExpr   *b = (BoolExpr *) expr;
		Expr	   *arg;

		if (b->boolop != NOT_EXPR)
			return extract_arms(b, varno, negated, depth + 1, exact);
		arg = extract((Expr *) linitial(b->args), varno, !negated, depth + 1, exact);
		return arg ? makeBoolExpr(NOT_EXPR, list_make1(arg), -1) : NULL;
	}
	if (mer_match_leaf(expr, varno, &leaf))
		return expr;
	*exact = false;
	return NULL;
}

Expr *
mer_push_extract(Expr *clause, Index varno, bool *exact)
{
	*exact = true;
	return extract(clause, varno, false, 0, exact);
}
