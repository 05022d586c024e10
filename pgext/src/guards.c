/*
 * guards.c
 *	  What a statement may not say, and what it is taken to mean.
 *
 * Rows that are not temporary live in storage and nowhere else.  Guards make
 * the plain statement right (temporary tables get heap and heap_btree) and
 * refuse early, with a hint; that no relation escapes them, whatever path made
 * it, is the object access hook's promise (ddl.c).
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"

#include "meridian.h"
#include "store.h"
#include "utility.h"

#define TABLE_AM "meridian"
#define INDEX_AM "btree"
#define TEMP_TABLE_AM "heap"
#define TEMP_INDEX_AM "heap_btree"

void
mer_refuse(const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("%s is not supported", what),
			 hint ? errhint("%s", hint) : 0));
}

bool
mer_creates_temp(RangeVar *rv)
{
	Oid			namespace;

	if (rv->relpersistence == RELPERSISTENCE_TEMP)
		return true;
	if (rv->schemaname == NULL)
		namespace = RangeVarGetCreationNamespace(rv);
	else if (strcmp(rv->schemaname, "pg_temp") == 0)
		return true;
	else
		namespace = get_namespace_oid(rv->schemaname, true);
	return OidIsValid(namespace) && isAnyTempNamespace(namespace);
}

/* Of an existing relation; a missing one is left to PostgreSQL's own error. */
static bool
is_temp(RangeVar *rv)
{
	Oid			relid = RangeVarGetRelid(rv, NoLock, true);

	return OidIsValid(relid) && get_rel_persistence(relid) == RELPERSISTENCE_TEMP;
}

static void
check_tablespace(const char *name)
{
	if (name && strcmp(name, "pg_default") != 0)
		mer_refuse("TABLESPACE", "Rows live in storage, not in files of an instance.");
}

static void
check_persistence(RangeVar *rv)
{
	if (rv->relpersistence == RELPERSISTENCE_UNLOGGED)
		mer_refuse("UNLOGGED", "Every commit is durable; leave out UNLOGGED, or use TEMPORARY.");
}

/* Of a table or materialized view to be created; the result may replace NULL. */
static char *
table_access_method(char *name, bool temp)
{
	const char *wanted = temp ? TEMP_TABLE_AM : TABLE_AM;

	if (name == NULL)
		return pstrdup(wanted);
	if (strcmp(name, wanted) != 0 && OidIsValid(get_table_am_oid(name, true)))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table access method \"%s\" is not supported for %s tables", name,
						temp ? "temporary" : "ordinary"),
				 errhint("Leave out USING.")));
	return name;
}

/* Index access method of a constraint or index, likewise. */
static char *
index_access_method(char *name, bool temp)
{
	if (temp)
		return (name == NULL || strcmp(name, INDEX_AM) == 0) ? pstrdup(TEMP_INDEX_AM) : name;
	if (name == NULL || strcmp(name, TEMP_INDEX_AM) == 0)
		return pstrdup(INDEX_AM);
	if (strcmp(name, INDEX_AM) != 0 && OidIsValid(get_index_am_oid(name, true)))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("index access method \"%s\" is not supported", name),
				 errhint("Use btree; other kinds of indexes work on temporary tables only.")));
	return name;
}

static void
adapt_constraint(Constraint *constraint, bool temp)
{
	switch (constraint->contype)
	{
		case CONSTR_EXCLUSION:
			if (!temp)
				mer_refuse("EXCLUDE", "Use UNIQUE, or check in a trigger with SELECT ... FOR UPDATE.");
			constraint->access_method = index_access_method(constraint->access_method, temp);
			break;
		case CONSTR_PRIMARY:
		case CONSTR_UNIQUE:
			if (constraint->without_overlaps)
			{
				if (!temp)
					mer_refuse("WITHOUT OVERLAPS", "Check in a trigger with SELECT ... FOR UPDATE.");
				break;
			}
			check_tablespace(constraint->indexspace);
			if (temp && constraint->indexname == NULL)
				constraint->access_method = pstrdup(TEMP_INDEX_AM);
			break;
		default:
			break;
	}
}

static void
adapt_elements(List *elements, bool temp)
{
	foreach_ptr(Node, element, elements)
	{
		if (IsA(element, Constraint))
			adapt_constraint((Constraint *) element, temp);
		else if (IsA(element, ColumnDef))
			adapt_elements(((ColumnDef *) element)->constraints, temp);
	}
}

bool
mer_guard_create_table(Node *node, const MerGuardContext *context)
{
	CreateStmt *stmt = (CreateStmt *) node;
	bool		temp;

	check_persistence(stmt->relation);
	check_tablespace(stmt->tablespacename);
	temp = mer_creates_temp(stmt->relation);

	/* A partitioned table has no rows of its own; its partitions come here too. */
	if (stmt->partspec == NULL || stmt->accessMethod != NULL)
		stmt->accessMethod = table_access_method(stmt->accessMethod, temp);
	adapt_elements(stmt->tableElts, temp);
	adapt_elements(stmt->constraints, temp);
	return true;
}

bool
mer_guard_create_table_as(Node *node, const MerGuardContext *context)
{
	IntoClause *into = ((CreateTableAsStmt *) node)->into;

	check_persistence(into->rel);
	check_tablespace(into->tableSpaceName);
	into->accessMethod = table_access_method(into->accessMethod, mer_creates_temp(into->rel));
	return true;
}

bool
mer_guard_index(Node *node, const MerGuardContext *context)
{
	IndexStmt  *stmt = (IndexStmt *) node;
	bool		temp = is_temp(stmt->relation);

	if (stmt->concurrent)
	{
		PreventInTransactionBlock(context->top_level, "CREATE INDEX CONCURRENTLY");
		stmt->concurrent = false;
	}
	check_tablespace(stmt->tableSpace);
	if (!temp && stmt->excludeOpNames != NIL)
		mer_refuse("EXCLUDE", "Use UNIQUE, or check in a trigger with SELECT ... FOR UPDATE.");
	if (!temp && stmt->iswithoutoverlaps)
		mer_refuse("WITHOUT OVERLAPS", "Check in a trigger with SELECT ... FOR UPDATE.");
	stmt->accessMethod = index_access_method(stmt->accessMethod, temp);
	return true;
}

static void
adapt_alter_command(AlterTableCmd *cmd, bool temp, const MerGuardContext *context)
{
	switch (cmd->subtype)
	{
		case AT_AddColumn:
		case AT_AddConstraint:
			adapt_elements(list_make1(cmd->def), temp);
			break;
		case AT_SetAccessMethod:
			mer_refuse("SET ACCESS METHOD", "Every table is stored by the access method meridian.");
			break;
		case AT_SetTableSpace:
			check_tablespace(cmd->name);
			break;
		case AT_SetLogged:
		case AT_SetUnLogged:
			mer_refuse("SET LOGGED and SET UNLOGGED", "Every commit is durable.");
			break;
		case AT_DetachPartition:
			if (((PartitionCmd *) cmd->def)->concurrent)
			{
				PreventInTransactionBlock(context->top_level, "ALTER TABLE ... DETACH CONCURRENTLY");
				((PartitionCmd *) cmd->def)->concurrent = false;
			}
			break;
		default:
			break;
	}
}

bool
mer_guard_alter_table(Node *node, const MerGuardContext *context)
{
	AlterTableStmt *stmt = (AlterTableStmt *) node;
	bool		temp = is_temp(stmt->relation);

	foreach_node(AlterTableCmd, cmd, stmt->cmds)
		adapt_alter_command(cmd, temp, context);
	return true;
}

/*
 * Which tables a domain's new constraint is checked on is PostgreSQL's secret;
 * with tau_start taken by the statement itself, under its locks, none of them
 * can have changed.
 */
bool
mer_guard_alter_domain(Node *node, const MerGuardContext *context)
{
	AlterDomainStmt *stmt = (AlterDomainStmt *) node;
	bool		validates = stmt->subtype == 'C' || stmt->subtype == 'V' || stmt->subtype == 'O';

	if (validates && mer_txn.tau != 0)
		mer_refuse("checking rows for ALTER DOMAIN after the transaction has read or written",
				   "Make it the first statement of its transaction.");
	return true;
}

bool
mer_guard_sequence(Node *node, const MerGuardContext *context)
{
	check_persistence(((CreateSeqStmt *) node)->sequence);
	return true;
}

bool
mer_guard_drop(Node *node, const MerGuardContext *context)
{
	DropStmt   *stmt = (DropStmt *) node;

	if (stmt->concurrent)
	{
		PreventInTransactionBlock(context->top_level, "DROP INDEX CONCURRENTLY");
		stmt->concurrent = false;
	}
	return true;
}

bool
mer_guard_refresh(Node *node, const MerGuardContext *context)
{
	((RefreshMatViewStmt *) node)->concurrent = false;
	return true;
}

/* EXPLAIN ANALYZE creates a table without asking the utility hook again. */
bool
mer_guard_explain(Node *node, const MerGuardContext *context)
{
	Query	   *query = castNode(Query, ((ExplainStmt *) node)->query);

	if (query->commandType == CMD_UTILITY && IsA(query->utilityStmt, CreateTableAsStmt))
		(void) mer_guard_create_table_as(query->utilityStmt, context);
	return true;
}

/* Dumps ask for plpgsql IF NOT EXISTS, and have it. */
bool
mer_guard_extension(Node *node, const MerGuardContext *context)
{
	return OidIsValid(get_extension_oid(((CreateExtensionStmt *) node)->extname, true));
}

bool
mer_guard_rename(Node *node, const MerGuardContext *context)
{
	RenameStmt *stmt = (RenameStmt *) node;

	if (stmt->renameType == OBJECT_DATABASE)
		mer_refuse("ALTER DATABASE ... RENAME", "A cluster has one database, postgres.");
	return true;
}

bool
mer_guard_owner(Node *node, const MerGuardContext *context)
{
	AlterOwnerStmt *stmt = (AlterOwnerStmt *) node;

	if (stmt->objectType == OBJECT_DATABASE)
		mer_refuse("ALTER DATABASE ... OWNER TO", "The database belongs to admin.");
	return true;
}

bool
mer_guard_set(Node *node, const MerGuardContext *context)
{
	VariableSetStmt *stmt = (VariableSetStmt *) node;

	if (stmt->kind == VAR_SET_MULTI && strcmp(stmt->name, "TRANSACTION SNAPSHOT") == 0)
		mer_refuse("SET TRANSACTION SNAPSHOT", "Each transaction reads as of its own start.");
	return true;
}

bool
mer_guard_transaction(Node *node, const MerGuardContext *context)
{
	switch (((TransactionStmt *) node)->kind)
	{
		case TRANS_STMT_PREPARE:
		case TRANS_STMT_COMMIT_PREPARED:
		case TRANS_STMT_ROLLBACK_PREPARED:
			mer_refuse("PREPARE TRANSACTION", "A transaction ends with its session.");
			break;
		default:
			break;
	}
	return true;
}

/* VACUUM does nothing, VACUUM ANALYZE analyzes; both insist that the tables exist. */
bool
mer_guard_vacuum(Node *node, const MerGuardContext *context)
{
	VacuumStmt *stmt = (VacuumStmt *) node;
	List	   *kept = NIL;
	bool		analyze = !stmt->is_vacuumcmd;

	mer_rel_stats_forget();		/* sizes as of now */
	if (analyze)
		return true;
	PreventInTransactionBlock(context->top_level, "VACUUM");
	foreach_node(VacuumRelation, rel, stmt->rels)
	{
		if (rel->relation)
			(void) RangeVarGetRelid(rel->relation, NoLock, false);
	}
	foreach_node(DefElem, option, stmt->options)
	{
		if (strcmp(option->defname, "analyze") == 0)
			analyze = defGetBoolean(option);
		else if (strcmp(option->defname, "verbose") == 0)
			kept = lappend(kept, option);
	}
	stmt->is_vacuumcmd = false;
	stmt->options = kept;
	return analyze;
}
