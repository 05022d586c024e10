/*
 * rewrite_plan.c
 *	  Which ALTER TABLE can be a job, and what the job has to do.
 *
 * Expressions are evaluated by the job alone, in many transactions: what would
 * be the same for all rows of one statement (now(), current_user) is evaluated
 * once, here, and what may depend on settings finds those of the session that
 * ran the statement.  A function that may read other tables is none for a job.
 */
#include "postgres.h"

#include "access/attmap.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/pathnodes.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_relation.h"
#include "parser/parse_type.h"
#include "parser/parse_utilcmd.h"
#include "rewrite/rewriteHandler.h"
#include "utils/array.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/typcache.h"

#include "rewrite.h"
#include "seqstate.h"

/* What parsing and evaluating expressions may look at. */
static const char *const kept_settings[] = {
	"search_path", "TimeZone", "DateStyle", "IntervalStyle", "bytea_output", "extra_float_digits",
	"default_text_search_config", "lc_monetary", "lc_numeric", "lc_time", "timezone_abbreviations",
	"transform_null_equals", "xmlbinary", "xmloption", "array_nulls", "quote_all_identifiers"
};

/* Volatile functions that look at nothing that a transaction could see differently. */
static const char *const volatile_allowed[] = {
	"nextval", "gen_random_uuid", "uuidv4", "uuidv7", "random", "random_normal", "clock_timestamp",
	"timeofday"
};

typedef struct Inspection
{
	MerRewritePlan *plan;
	Bitmapset  *altered;		/* columns of another type */
	int			natts;			/* before */
	bool		keeps_keys;
	bool		fits;
} Inspection;

/* ---------- expressions ---------- */

static bool
is_unfit_function(Oid function, void *context)
{
	char		volatility = func_volatile(function);
	char	   *name;

	if (volatility == PROVOLATILE_IMMUTABLE)
		return false;
	if (function >= FirstNormalObjectId)
		return true;
	if (volatility == PROVOLATILE_STABLE)
		return false;
	name = get_func_name(function);
	for (int i = 0; i < (int) lengthof(volatile_allowed); i++)
		if (strcmp(name, volatile_allowed[i]) == 0)
			return false;
	return true;
}

static bool
is_unfit(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var) && ((Var *) node)->varattno <= 0)
		return true;
	if (IsA(node, NextValueExpr) || IsA(node, SQLValueFunction) || IsA(node, Param) ||
		IsA(node, SubLink) || IsA(node, CurrentOfExpr))
		return true;
	if (check_functions_in_node(node, is_unfit_function, context))
		return true;
	return expression_tree_walker(node, is_unfit, context);
}

static bool
has_domain(Node *node, void *context)
{
	if (node == NULL)
		return false;
	return IsA(node, CoerceToDomain) || expression_tree_walker(node, has_domain, context);
}

/* Stable functions of constants are evaluated now, as a single statement would. */
static Node *
fold(Node *expr)
{
	PlannerGlobal *glob = makeNode(PlannerGlobal);
	PlannerInfo *root = makeNode(PlannerInfo);

	root->glob = glob;
	return estimate_expression_value(root, expr);
}

/* NULL: not for a job. */
static Node *
settle(Node *expr)
{
	/* Such an evaluation leaves out the checks of domains. */
	if (!has_domain(expr, NULL))
		expr = fold(expr);
	else if (contain_mutable_functions(expr))
		return NULL;
	return is_unfit(expr, NULL) ? NULL : expr;
}

/* ---------- columns of another type ---------- */

static Node *
conversion(Relation rel, AttrNumber attnum, ColumnDef *def, Form_pg_attribute target)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), attnum - 1);
	ParseState *pstate = make_parsestate(NULL);
	ParseNamespaceItem *item = addRangeTableEntryForRelation(pstate, rel, AccessShareLock, NULL,
															 false, true);
	Node	   *expr;

	addNSItemToQuery(pstate, item, false, true, true);
	if (def->raw_default)
		expr = transformExpr(pstate, copyObject(def->raw_default), EXPR_KIND_ALTER_COL_TRANSFORM);
	else
		expr = (Node *) makeVar(1, attnum, att->atttypid, att->atttypmod, att->attcollation, 0);
	expr = coerce_to_target_type(pstate, expr, exprType(expr), target->atttypid, target->atttypmod,
								 COERCION_ASSIGNMENT, COERCE_IMPLICIT_CAST, -1);
	if (expr)
		assign_expr_collations(pstate, expr);
	free_parsestate(pstate);
	return expr;
}

static bool
add_column(Inspection *in, AttrNumber attnum, MerRewriteKind kind, Node *expr)
{
	MerRewriteColumn *column = palloc0(sizeof(MerRewriteColumn));

	column->attnum = attnum;
	column->kind = kind;
	column->expr = expr ? settle(expr) : NULL;
	in->plan->columns = lappend(in->plan->columns, column);
	return column->expr != NULL;
}

static bool
plan_altered(Inspection *in, Relation rel)
{
	foreach_node(AlterTableCmd, cmd, in->plan->stmt->cmds)
	{
		AttrNumber	attnum;

		if (cmd->subtype != AT_AlterColumnType)
			continue;
		attnum = get_attnum(RelationGetRelid(rel), cmd->name);
		if (attnum <= 0 || TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attgenerated ||
			!add_column(in, attnum, MER_FROM_OLD,
						conversion(rel, attnum, castNode(ColumnDef, cmd->def),
								   TupleDescAttr(in->plan->desc, attnum - 1))))
			return false;
	}
	return true;
}

/* ---------- the catalog as it would be ---------- */

static void
number_from(MerRewriteColumn *column, Oid sequence)
{
	FormData_pg_sequence params;

	mer_seq_parameters(sequence, &params);
	column->kind = MER_NUMBER;
	column->expr = NULL;
	column->next = params.seqstart;
	column->increment = params.seqincrement;
	column->min = params.seqmin;
	column->max = params.seqmax;
}

/* The sequence that the statement makes for a column of its own. */
static Oid
own_sequence(Relation rel, AttrNumber attnum, Node *expr)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), attnum - 1);
	Oid			table;
	int32		column;
	Oid			sequence;
	FuncExpr   *call;

	if (att->attidentity)
		return getIdentitySequence(rel, attnum, false);
	/* serial: nextval('name'), and int4() or int2() around it */
	expr = strip_implicit_coercions(expr);
	if (!IsA(expr, FuncExpr))
		return InvalidOid;
	call = (FuncExpr *) expr;
	if (list_length(call->args) != 1 || !IsA(linitial(call->args), Const) ||
		strcmp(get_func_name(call->funcid), "nextval") != 0)
		return InvalidOid;
	sequence = DatumGetObjectId(((Const *) linitial(call->args))->constvalue);
	return sequenceIsOwned(sequence, DEPENDENCY_AUTO, &table, &column) &&
		table == RelationGetRelid(rel) && column == attnum ? sequence : InvalidOid;
}

static bool
inspect_added(Inspection *in, Relation rel, AttrNumber attnum)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), attnum - 1);
	Node	   *expr;
	Oid			sequence;

	if (att->attgenerated)
		return add_column(in, attnum, MER_FROM_NEW, build_generation_expression(rel, attnum));
	expr = build_column_default(rel, attnum);
	/* A domain may refuse NULL. */
	if (expr == NULL)
		return !DomainHasConstraints(att->atttypid);
	sequence = own_sequence(rel, attnum, expr);
	if (!OidIsValid(sequence))
		return add_column(in, attnum, MER_ONCE, expr);
	(void) add_column(in, attnum, MER_NUMBER, NULL);
	number_from(llast(in->plan->columns), sequence);
	return true;
}

static bool
concerns_new_columns(const Inspection *in, Node *expr)
{
	Bitmapset  *used = NULL;
	int			i = -1;

	pull_varattnos(expr, 1, &used);
	while ((i = bms_next_member(used, i)) >= 0)
	{
		AttrNumber	attnum = i + FirstLowInvalidHeapAttributeNumber;

		if (attnum <= 0 || attnum > in->natts || bms_is_member(attnum, in->altered))
			return true;
	}
	return false;
}

static bool
inspect_checks(Inspection *in, Relation rel)
{
	TupleConstr *constr = RelationGetDescr(rel)->constr;

	for (int i = 0; constr && i < constr->num_check; i++)
	{
		Node	   *expr = stringToNode(constr->check[i].ccbin);
		MerRewriteCheck *check;

		if (!constr->check[i].ccvalid || !constr->check[i].ccenforced ||
			!concerns_new_columns(in, expr))
			continue;
		/* What is right when a row is written may be wrong when the job looks at it. */
		if (contain_mutable_functions(expr))
			return false;
		check = palloc(sizeof(MerRewriteCheck));
		check->name = pstrdup(constr->check[i].ccname);
		check->expr = settle(expr);
		if (check->expr == NULL)
			return false;
		in->plan->checks = lappend(in->plan->checks, check);
	}
	return true;
}

static bool
inspect_columns(Inspection *in, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		bool		is_new = i >= in->natts;

		if (att->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
			return false;
		if (is_new && !att->attisdropped && !inspect_added(in, rel, i + 1))
			return false;
		if (att->attnotnull && (is_new || bms_is_member(i + 1, in->altered)))
			in->plan->not_null = lappend_int(in->plan->not_null, i + 1);
	}
	return true;
}

/* Of those indexes that have entries of their own. */
static bool
inspect_indexes(Inspection *in, Relation rel)
{
	int			natts = RelationGetDescr(rel)->natts;
	AttrMap    *same = make_attrmap(natts);
	Oid			pkey = RelationGetPrimaryKeyIndex(rel, true);

	for (int i = 0; i < natts; i++)
		same->attnums[i] = i + 1;
	foreach_oid(oid, RelationGetIndexList(rel))
	{
		Relation	index;
		IndexStmt  *stmt;
		Oid			constraint;

		if (oid == pkey && in->plan->organised)
			continue;
		index = index_open(oid, AccessShareLock);
		if (!index->rd_index->indisvalid || !index->rd_index->indimmediate)
			return false;
		stmt = generateClonedIndexStmt(makeRangeVar(NULL, "rows", -1), index, same, &constraint);
		stmt->primary = stmt->isconstraint = false;
		stmt->idxcomment = NULL;
		in->plan->indexes = lappend(in->plan->indexes, stmt);
		in->plan->index_names = lappend(in->plan->index_names,
										makeString(pstrdup(RelationGetRelationName(index))));
		index_close(index, NoLock);
	}
	return true;
}

static void
inspect(Oid relid, void *arg)
{
	Inspection *in = arg;
	Relation	rel = table_open(relid, NoLock);

	in->plan->desc = CreateTupleDescCopy(RelationGetDescr(rel));
	in->fits = inspect_columns(in, rel) && inspect_checks(in, rel) && inspect_indexes(in, rel);
	table_close(rel, NoLock);
}

/* ---------- which tables ---------- */

static bool
has_relatives(Oid relid)
{
	return get_rel_relispartition(relid) || has_superclass(relid) ||
		find_inheritance_children(relid, NoLock) != NIL;
}

static bool
concerns(HeapTuple constraint, TupleDesc desc, AttrNumber keys, Bitmapset *columns)
{
	bool		isnull;
	Datum		value = heap_getattr(constraint, keys, desc, &isnull);
	ArrayType  *array = isnull ? NULL : DatumGetArrayTypeP(value);

	for (int i = 0; array && i < ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array)); i++)
		if (bms_is_member(((int16 *) ARR_DATA_PTR(array))[i], columns))
			return true;
	return false;
}

/* Columns of the table, or those that point to it. */
static bool
concerns_foreign_key(Oid relid, Bitmapset *columns)
{
	Relation	pg_constraint = table_open(ConstraintRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(pg_constraint, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	bool		found = false;

	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_constraint con = (Form_pg_constraint) GETSTRUCT(tuple);

		if (con->contype != CONSTRAINT_FOREIGN)
			continue;
		found = (con->conrelid == relid &&
				 concerns(tuple, RelationGetDescr(pg_constraint), Anum_pg_constraint_conkey, columns)) ||
			(con->confrelid == relid &&
			 concerns(tuple, RelationGetDescr(pg_constraint), Anum_pg_constraint_confkey, columns));
	}
	systable_endscan(scan);
	table_close(pg_constraint, AccessShareLock);
	return found;
}

static Bitmapset *
altered_columns(Oid relid, const AlterTableStmt *stmt)
{
	Bitmapset  *altered = NULL;

	foreach_node(AlterTableCmd, cmd, stmt->cmds)
	{
		AttrNumber	attnum = cmd->subtype == AT_AlterColumnType ? get_attnum(relid, cmd->name) : 0;

		if (attnum > 0)
			altered = bms_add_member(altered, attnum);
	}
	return altered;
}

/* A foreign key of a column whose type changes would be checked again, row by row. */
bool
mer_rewrite_fits(Oid relid, const AlterTableStmt *stmt)
{
	return get_rel_relkind(relid) == RELKIND_RELATION && mer_relmap_sid(relid, true) != 0 &&
		!has_relatives(relid) && !concerns_foreign_key(relid, altered_columns(relid, stmt));
}

/* ---------- which statements ---------- */

static bool
may_add(const ColumnDef *def)
{
	foreach_node(Constraint, con, def->constraints)
	{
		if (con->contype == CONSTR_PRIMARY || con->contype == CONSTR_UNIQUE ||
			con->contype == CONSTR_EXCLUSION || con->contype == CONSTR_FOREIGN)
			return false;
	}
	return true;
}

/* Types that change, and columns that are added. */
bool
mer_rewrite_is_candidate(const AlterTableStmt *stmt)
{
	foreach_node(AlterTableCmd, cmd, stmt->cmds)
	{
		if (cmd->subtype != AT_AlterColumnType &&
			(cmd->subtype != AT_AddColumn || !may_add(castNode(ColumnDef, cmd->def))))
			return false;
	}
	return stmt->objtype == OBJECT_TABLE;
}

static bool
is_integer(Oid type)
{
	type = OidIsValid(type) ? getBaseType(type) : InvalidOid;
	return type == INT2OID || type == INT4OID || type == INT8OID;
}

/*
 * Whether new rows have the keys of the old ones, as keys of the primary key.
 * An integer of another width is encoded alike; no other type's is.
 */
static bool
keeps_keys(Relation rel, const AlterTableStmt *stmt)
{
	Bitmapset  *key;

	if (!mer_relmap_organised(RelationGetRelid(rel)))
		return false;
	key = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_PRIMARY_KEY);
	foreach_node(AlterTableCmd, cmd, stmt->cmds)
	{
		AttrNumber	attnum;
		ColumnDef  *def = (ColumnDef *) cmd->def;

		if (cmd->subtype != AT_AlterColumnType)
			continue;
		attnum = get_attnum(RelationGetRelid(rel), cmd->name);
		if (!bms_is_member(attnum - FirstLowInvalidHeapAttributeNumber, key))
			continue;
		if (attnum <= 0 || def->raw_default || def->collClause ||
			!is_integer(TupleDescAttr(RelationGetDescr(rel), attnum - 1)->atttypid) ||
			!is_integer(LookupTypeNameOid(NULL, def->typeName, true)))
			return false;
	}
	return true;
}

static List *
settings_now(void)
{
	List	   *settings = NIL;

	for (int i = 0; i < (int) lengthof(kept_settings); i++)
	{
		const char *value = GetConfigOption(kept_settings[i], true, false);

		if (value)
			settings = list_concat(settings, list_make2(makeString(pstrdup(kept_settings[i])),
														makeString(pstrdup(value))));
	}
	return settings;
}

static List *
types_of(Relation rel)
{
	List	   *types = NIL;

	for (int i = 0; i < RelationGetDescr(rel)->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

		types = lappend_oid(types, att->attisdropped ? InvalidOid : att->atttypid);
	}
	return types;
}

static AlterTableStmt *
qualified(Oid relid, AlterTableStmt *stmt)
{
	stmt = copyObject(stmt);
	stmt->relation->schemaname = get_namespace_name(get_rel_namespace(relid));
	stmt->relation->relname = get_rel_name(relid);
	return stmt;
}

MerRewritePlan *
mer_rewrite_plan(Oid relid, AlterTableStmt *stmt)
{
	MerRewritePlan *plan = palloc0(sizeof(MerRewritePlan));
	Inspection	in = {.plan = plan};
	Relation	rel;
	bool		fits;

	if (!mer_rewrite_fits(relid, stmt))
		return NULL;
	rel = table_open(relid, NoLock);
	plan->stmt = qualified(relid, stmt);
	plan->settings = settings_now();
	plan->types = types_of(rel);
	plan->sid = mer_relmap_sid(relid, false);
	plan->organised = keeps_keys(rel, stmt);
	in.natts = RelationGetDescr(rel)->natts;
	in.altered = altered_columns(relid, stmt);
	table_close(rel, NoLock);
	if (!mer_rewrite_try(relid, plan->stmt, inspect, &in) || !in.fits)
		return NULL;
	rel = table_open(relid, NoLock);
	fits = plan_altered(&in, rel);
	table_close(rel, NoLock);
	return fits ? plan : NULL;
}
