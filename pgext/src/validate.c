/*
 * validate.c
 *	  ADD CHECK, ADD FOREIGN KEY and SET NOT NULL on a big table: added NOT VALID,
 *	  then validated while others go on writing.
 *
 * From the first commit on every writer keeps to the constraint, so the second
 * transaction looks at the rows as of its own start and keeps nobody out
 * (ddlcheck.c, is_validation).  If a row breaks the constraint it is dropped
 * again, and the statement fails in PostgreSQL's words.  A crash in between
 * leaves the constraint NOT VALID.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "catdelta.h"
#include "jobs.h"
#include "utility.h"

static int	online_rows = 10000;	/* GUC meridian.validate_online_rows */

/* The table whose constraints the running statement adds without a look at its rows. */
static Oid	split_table = InvalidOid;

/* ---------- before the statement ---------- */

static bool
can_split_constraint(const Constraint *con)
{
	return (con->contype == CONSTR_CHECK || con->contype == CONSTR_FOREIGN) &&
		con->is_enforced && !con->skip_validation && !con->is_no_inherit;
}

/* A column that has no such constraint yet, valid or not. */
static bool
can_split_not_null(Oid relid, const char *column)
{
	AttrNumber	attnum = get_attnum(relid, column);

	return attnum > 0 && findNotNullConstraintAttnum(relid, attnum) == NULL;
}

static bool
can_split(Oid relid, const AlterTableStmt *stmt)
{
	foreach_node(AlterTableCmd, cmd, stmt->cmds)
	{
		if (cmd->subtype == AT_SetNotNull ? !can_split_not_null(relid, cmd->name) :
			cmd->subtype != AT_AddConstraint || !can_split_constraint(castNode(Constraint, cmd->def)))
			return false;
	}
	return true;
}

static bool
is_plain_table(Oid relid)
{
	return get_rel_relkind(relid) == RELKIND_RELATION && mer_relmap_sid(relid, true) != 0 &&
		find_inheritance_children(relid, NoLock) == NIL;
}

static void
split(AlterTableCmd *cmd)
{
	Constraint *con;

	if (cmd->subtype == AT_SetNotNull)
	{
		con = makeNode(Constraint);
		con->contype = CONSTR_NOTNULL;
		con->keys = list_make1(makeString(cmd->name));
		con->is_enforced = true;
		con->location = -1;
		cmd->subtype = AT_AddConstraint;
		cmd->name = NULL;
		cmd->def = (Node *) con;
	}
	con = castNode(Constraint, cmd->def);
	con->skip_validation = true;
	con->initially_valid = false;
}

void
mer_validate_before(AlterTableStmt *stmt, bool top_level)
{
	Oid			relid;

	split_table = InvalidOid;
	if (stmt->objtype != OBJECT_TABLE || !top_level || IsInTransactionBlock(true))
		return;
	relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	if (!OidIsValid(relid) || !object_ownercheck(RelationRelationId, relid, GetUserId()) ||
		!is_plain_table(relid) || !can_split(relid, stmt) ||
		mer_job_estimated_rows(relid) <= online_rows)
		return;
	foreach_node(AlterTableCmd, cmd, stmt->cmds)
		split(cmd);
	split_table = relid;
}

/* ---------- after it ---------- */

/* Constraints of the table that this transaction has added and not validated. */
static List *
added(Oid relid)
{
	Relation	pg_constraint = table_open(ConstraintRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *oids = NIL;

	ScanKeyInit(&key, Anum_pg_constraint_conrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(pg_constraint, ConstraintRelidTypidNameIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_constraint con = (Form_pg_constraint) GETSTRUCT(tuple);

		if (!con->convalidated &&
			TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)))
			oids = lappend_oid(oids, con->oid);
	}
	systable_endscan(scan);
	table_close(pg_constraint, AccessShareLock);
	return oids;
}

/* ALTER TABLE ... VALIDATE or DROP CONSTRAINT of all of them, by whatever name they have now. */
static void
alter(Oid relid, List *constraints, AlterTableType what)
{
	AlterTableStmt *stmt = makeNode(AlterTableStmt);
	PlannedStmt *wrapper = makeNode(PlannedStmt);

	stmt->objtype = OBJECT_TABLE;
	stmt->relation = makeRangeVar(get_namespace_name(get_rel_namespace(relid)),
								  get_rel_name(relid), -1);
	if (stmt->relation->relname == NULL)
		return;
	foreach_oid(oid, constraints)
	{
		AlterTableCmd *cmd = makeNode(AlterTableCmd);

		cmd->subtype = what;
		cmd->name = get_constraint_name(oid);
		cmd->behavior = DROP_RESTRICT;
		if (cmd->name)
			stmt->cmds = lappend(stmt->cmds, cmd);
	}
	if (stmt->cmds == NIL)
		return;
	wrapper->commandType = CMD_UTILITY;
	wrapper->utilityStmt = (Node *) stmt;
	wrapper->stmt_location = wrapper->stmt_len = -1;
	ProcessUtility(wrapper, what == AT_DropConstraint ? "ALTER TABLE DROP CONSTRAINT" :
				   "ALTER TABLE VALIDATE CONSTRAINT", false, PROCESS_UTILITY_QUERY, NULL, NULL,
				   None_Receiver, NULL);
	CommandCounterIncrement();
}

static void
next_transaction(bool snapshot)
{
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
	CommitTransactionCommand();
	StartTransactionCommand();
	if (snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
}

/* The subtransaction keeps the means to take the constraints away again. */
static void
validate(Oid relid, List *constraints)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		alter(relid, constraints, AT_ValidateConstraint);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	if (error == NULL)
		return;

	/* As of now: rows and catalog as the failed look saw them are of no use. */
	next_transaction(true);
	alter(relid, constraints, AT_DropConstraint);
	next_transaction(false);
	ReThrowError(error);
}

void
mer_validate_after(PlannedStmt *pstmt, const char *text)
{
	Oid			relid = split_table;
	MemoryContext old;
	MemoryContext cxt;
	List	   *constraints;

	split_table = InvalidOid;
	if (!OidIsValid(relid))
		return;
	CommandCounterIncrement();
	cxt = AllocSetContextCreate(PortalContext ? PortalContext : MessageContext,
								"meridian validation", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(cxt);
	constraints = added(relid);
	mer_catalog_note_statement(pstmt, text);
	next_transaction(true);
	MemoryContextSwitchTo(cxt);
	validate(relid, constraints);
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
	MemoryContextSwitchTo(old);
}

void
mer_validate_forget(void)
{
	split_table = InvalidOid;
}

void
mer_validate_init(void)
{
	DefineCustomIntVariable("meridian.validate_online_rows",
							"Constraints on a table of more rows are added NOT VALID, then validated.",
							"Estimated; up to so many rows, one commit does both and keeps writers out.",
							&online_rows, 10000, 0, INT_MAX, PGC_USERSET, 0, NULL, NULL, NULL);
}
