/*
 * seqplan.c
 *	  Statements that read a sequence, or draw from one without calling nextval.
 *
 * An identity column's default is a node of its own that draws from PostgreSQL's
 * local sequence file, and SELECT ... FROM a sequence reads that file.  Both are
 * replaced by calls of our functions, before planning; COPY FROM prepares its
 * defaults without the planner and is driven from here.
 */
#include "postgres.h"

#include "access/sequence.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/copy.h"
#include "commands/copyfrom_internal.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/planner.h"
#include "parser/parse_relation.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "seqstate.h"
#include "utility.h"

static planner_hook_type prev_planner = NULL;

/* Functions of ours are never dropped: their ids hold for the backend's life. */
static Oid
function_oid(const char *name, int nargs, const Oid *args, Oid *cache)
{
	if (!OidIsValid(*cache))
		*cache = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(name),
								 PointerGetDatum(buildoidvector(args, nargs)),
								 ObjectIdGetDatum(get_namespace_oid("meridian", false)));
	if (!OidIsValid(*cache))
		elog(ERROR, "function meridian.%s is missing", name);
	return *cache;
}

static Expr *
oid_const(Oid value)
{
	return (Expr *) makeConst(OIDOID, -1, InvalidOid, sizeof(Oid), ObjectIdGetDatum(value),
							  false, true);
}

/* identity_nextval(seqid), as the column's type; the sequence's bounds fit it. */
Expr *
mer_identity_expr(Oid seqid, Oid typid)
{
	static Oid	identity_nextval = InvalidOid;
	const Oid	types[2] = {OIDOID, INTERNALOID};
	Expr	   *call;

	call = (Expr *) makeFuncExpr(function_oid("identity_nextval", 2, types, &identity_nextval),
								 INT8OID,
								 list_make2(oid_const(seqid),
											makeNullConst(INTERNALOID, -1, InvalidOid)),
								 InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
	if (typid == INT8OID)
		return call;
	return (Expr *) makeFuncExpr(typid == INT4OID ? F_INT4_INT8 : F_INT2_INT8, typid,
								 list_make1(call), InvalidOid, InvalidOid, COERCE_IMPLICIT_CAST);
}

static bool
is_stored(Oid relid)
{
	return get_rel_persistence(relid) != RELPERSISTENCE_TEMP;
}

static Node *
replace_identity(Node *node, void *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, NextValueExpr))
	{
		NextValueExpr *next = (NextValueExpr *) node;

		return is_stored(next->seqid) ? (Node *) mer_identity_expr(next->seqid, next->typeId) : node;
	}
	if (IsA(node, Query))
		return (Node *) query_tree_mutator((Query *) node, replace_identity, context, 0);
	return expression_tree_mutator(node, replace_identity, context);
}

/* SELECT last_value, log_cnt, is_called FROM sequence_row(relid) */
static Query *
sequence_query(Oid relid)
{
	static Oid	sequence_row = InvalidOid;
	const Oid	types[1] = {REGCLASSOID};
	const char *const names[3] = {"last_value", "log_cnt", "is_called"};
	const Oid	column_types[3] = {INT8OID, INT8OID, BOOLOID};
	Query	   *query = makeNode(Query);
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	RangeTblFunction *function = makeNode(RangeTblFunction);
	RangeTblRef *ref = makeNode(RangeTblRef);
	FuncExpr   *call;

	call = makeFuncExpr(function_oid("sequence_row", 1, types, &sequence_row), RECORDOID,
						list_make1(makeConst(REGCLASSOID, -1, InvalidOid, sizeof(Oid),
											 ObjectIdGetDatum(relid), false, true)),
						InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
	call->funcretset = true;
	function->funcexpr = (Node *) call;
	function->funccolcount = 3;
	rte->rtekind = RTE_FUNCTION;
	rte->functions = list_make1(function);
	rte->eref = makeAlias("sequence_row", NIL);
	rte->inFromCl = true;

	query->commandType = CMD_SELECT;
	query->canSetTag = true;
	query->rtable = list_make1(rte);
	ref->rtindex = 1;
	query->jointree = makeFromExpr(list_make1(ref), NULL);
	for (int i = 0; i < 3; i++)
	{
		Var		   *var = makeVar(1, i + 1, column_types[i], -1, InvalidOid, 0);

		rte->eref->colnames = lappend(rte->eref->colnames, makeString(pstrdup(names[i])));
		query->targetList = lappend(query->targetList,
									makeTargetEntry((Expr *) var, i + 1, pstrdup(names[i]), false));
	}
	return query;
}

/*
 * The range table entry becomes a subquery that keeps the relation's id and
 * permission entry, as an expanded view does.
 */
static void
replace_sequence(RangeTblEntry *rte)
{
	rte->rtekind = RTE_SUBQUERY;
	rte->subquery = sequence_query(rte->relid);
	rte->security_barrier = false;
	rte->tablesample = NULL;
	rte->inh = false;
}

static bool
is_locked(const Query *query, int rtindex)
{
	foreach_node(RowMarkClause, mark, query->rowMarks)
	{
		if (mark->rti == rtindex)
			return true;
	}
	return false;
}

/* Replaces sequences in range tables; true as soon as an identity default is seen. */
static bool
walk(Node *node, bool *identity)
{
	if (node == NULL)
		return false;
	if (IsA(node, NextValueExpr))
	{
		*identity = true;
		return false;
	}
	if (IsA(node, Query))
	{
		Query	   *query = (Query *) node;
		int			rtindex = 0;

		foreach_node(RangeTblEntry, rte, query->rtable)
		{
			rtindex++;
			/* Locking rows of a sequence, or writing them, has errors of its own. */
			if (rte->rtekind == RTE_RELATION && rte->relkind == RELKIND_SEQUENCE &&
				rtindex != query->resultRelation && !is_locked(query, rtindex) &&
				is_stored(rte->relid))
				replace_sequence(rte);
		}
		return query_tree_walker(query, walk, identity, 0);
	}
	return expression_tree_walker(node, walk, identity);
}

static PlannedStmt *
plan(Query *parse, const char *query_string, int cursor_options, ParamListInfo params)
{
	bool		identity = false;

	(void) walk((Node *) parse, &identity);
	if (identity)
		parse = castNode(Query, replace_identity((Node *) parse, NULL));
	if (prev_planner)
		return prev_planner(parse, query_string, cursor_options, params);
	return standard_planner(parse, query_string, cursor_options, params);
}

PG_FUNCTION_INFO_V1(mer_sequence_row);

/* Privileges were checked on the range table entry that this call stands for. */
Datum
mer_sequence_row(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Relation	seq = sequence_open(PG_GETARG_OID(0), AccessShareLock);
	Datum		values[3];
	bool		nulls[3] = {false, false, false};
	int64		last;
	bool		is_called;

	mer_seq_state(seq, &last, &is_called);
	sequence_close(seq, AccessShareLock);
	InitMaterializedSRF(fcinfo, 0);
	values[0] = Int64GetDatum(last);
	values[1] = Int64GetDatum(0);
	values[2] = BoolGetDatum(is_called);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	return (Datum) 0;
}

/* ---------- COPY FROM into a table with an identity column ---------- */

static bool
has_stored_identity(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		return false;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && att->attidentity != '\0')
			return true;
	}
	return false;
}

/* INSERT on the columns that are copied, as PostgreSQL's COPY asks for. */
static void
check_copy_permissions(ParseState *pstate, Relation rel, CopyStmt *stmt)
{
	ParseNamespaceItem *item = addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock,
															 NULL, false, false);
	RTEPermissionInfo *permission = item->p_perminfo;

	permission->requiredPerms = ACL_INSERT;
	foreach_int(attnum, CopyGetAttnums(RelationGetDescr(rel), rel, stmt->attlist))
		permission->insertedCols = bms_add_member(permission->insertedCols,
												  attnum - FirstLowInvalidHeapAttributeNumber);
	ExecCheckPermissions(pstate->p_rtable, list_make1(permission), true);
	if (check_enable_rls(RelationGetRelid(rel), InvalidOid, false) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("COPY FROM not supported with row-level security"),
				 errhint("Use INSERT statements instead.")));
	if (XactReadOnly)
		PreventCommandIfReadOnly("COPY FROM");
}

static void
use_stored_identity(CopyFromState cstate)
{
	TupleDesc	desc = RelationGetDescr(cstate->rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || att->attidentity == '\0' || cstate->defexprs[i] == NULL)
			continue;
		cstate->defexprs[i] =
			ExecInitExpr(mer_identity_expr(getIdentitySequence(cstate->rel, i + 1, false),
										   att->atttypid), NULL);
	}
}

static uint64
copy_into(ParseState *pstate, Relation rel, CopyStmt *stmt)
{
	CopyFromState cstate;
	uint64		processed;
	MemoryContext old;

	check_copy_permissions(pstate, rel, stmt);
	if (stmt->filename != NULL || stmt->whereClause != NULL)
		mer_refuse("COPY of a file, or with WHERE, into a table with an identity column",
				   "Use COPY ... FROM STDIN without WHERE.");
	cstate = BeginCopyFrom(pstate, rel, NULL, NULL, false, NULL, stmt->attlist, stmt->options);
	old = MemoryContextSwitchTo(cstate->copycontext);
	use_stored_identity(cstate);
	MemoryContextSwitchTo(old);
	processed = CopyFrom(cstate);
	EndCopyFrom(cstate);
	return processed;
}

bool
mer_sequence_copy(ParseState *pstate, CopyStmt *stmt, uint64 *processed)
{
	Relation	rel;
	bool		ours;

	if (!stmt->is_from || stmt->relation == NULL)
		return false;
	rel = table_openrv(stmt->relation, RowExclusiveLock);
	ours = has_stored_identity(rel);
	if (ours)
		*processed = copy_into(pstate, rel, stmt);
	table_close(rel, NoLock);
	return ours;
}

void
mer_seqplan_init(void)
{
	prev_planner = planner_hook;
	planner_hook = plan;
}
