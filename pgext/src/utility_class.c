/*
 * utility_class.c
 *	  The class of every utility statement, as data.
 *
 * One row per node tag that PostgreSQL 18's ProcessUtility can be handed; a tag
 * without a row is refused.  Notes are hints to users for refused statements,
 * and the reasons of the class for all others.  docs/sql.md is made from this.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "utility.h"

#define ROW(tag, statement, cls, guard, note) \
	{T_##tag, #tag, statement, cls, guard, note}

static const MerUtilityRow utility_rows[] = {
	/* transactions and sessions */
	ROW(TransactionStmt, "BEGIN, COMMIT, ROLLBACK, SAVEPOINT", MER_LOCAL, mer_guard_transaction,
		"PREPARE TRANSACTION and its kin are refused: a transaction ends with its session"),
	ROW(VariableSetStmt, "SET, RESET", MER_LOCAL, mer_guard_set,
		"SERIALIZABLE and SET TRANSACTION SNAPSHOT are refused"),
	ROW(VariableShowStmt, "SHOW", MER_LOCAL, NULL, "reads a setting"),
	ROW(DiscardStmt, "DISCARD", MER_LOCAL, NULL, "session state only"),
	ROW(ConstraintsSetStmt, "SET CONSTRAINTS", MER_LOCAL, NULL, "when checks run in this transaction"),
	ROW(PrepareStmt, "PREPARE", MER_LOCAL, NULL, "session state only"),
	ROW(ExecuteStmt, "EXECUTE", MER_LOCAL, NULL, "runs a prepared statement"),
	ROW(DeallocateStmt, "DEALLOCATE", MER_LOCAL, NULL, "session state only"),
	ROW(DeclareCursorStmt, "DECLARE", MER_LOCAL, NULL, "session state only"),
	ROW(FetchStmt, "FETCH, MOVE", MER_LOCAL, NULL, "session state only"),
	ROW(ClosePortalStmt, "CLOSE", MER_LOCAL, NULL, "session state only"),
	ROW(ExplainStmt, "EXPLAIN", MER_LOCAL, mer_guard_explain, "what it runs is classed by itself"),
	ROW(DoStmt, "DO", MER_LOCAL, NULL, "what it runs is classed by itself"),
	ROW(CallStmt, "CALL", MER_LOCAL, NULL, "what it runs is classed by itself"),
	ROW(LoadStmt, "LOAD", MER_REFUSED, NULL, "Libraries are loaded by the operator."),

	/* rows */
	ROW(CopyStmt, "COPY", MER_REPLICATED, NULL, "rows; server files and programs need privileges no user has"),
	ROW(TruncateStmt, "TRUNCATE", MER_REPLICATED, NULL, "gives the table a new storage id"),
	ROW(RefreshMatViewStmt, "REFRESH MATERIALIZED VIEW", MER_REPLICATED, mer_guard_refresh,
		"gives the view a new storage id; CONCURRENTLY runs as without it"),

	/* tables, indexes, sequences, views */
	ROW(CreateStmt, "CREATE TABLE", MER_REPLICATED, mer_guard_create_table,
		"temporary tables are local to the session; UNLOGGED, TABLESPACE, EXCLUDE and other access methods are refused"),
	ROW(CreateTableAsStmt, "CREATE TABLE AS, SELECT INTO, CREATE MATERIALIZED VIEW", MER_REPLICATED,
		mer_guard_create_table_as, "like CREATE TABLE"),
	ROW(AlterTableStmt, "ALTER TABLE, INDEX, VIEW, SEQUENCE", MER_REPLICATED, mer_guard_alter_table,
		"SET ACCESS METHOD, SET TABLESPACE, SET LOGGED, SET UNLOGGED and EXCLUDE are refused"),
	ROW(IndexStmt, "CREATE INDEX", MER_REPLICATED, mer_guard_index,
		"btree only, on tables that are not temporary; CONCURRENTLY runs as without it"),
	ROW(CreateSeqStmt, "CREATE SEQUENCE", MER_REPLICATED, mer_guard_sequence,
		"the definition is catalog, the state is in storage"),
	ROW(AlterSeqStmt, "ALTER SEQUENCE", MER_REPLICATED, NULL, "gives the sequence a new storage id"),
	ROW(ViewStmt, "CREATE VIEW", MER_REPLICATED, NULL, "catalog"),
	ROW(DropStmt, "DROP", MER_REPLICATED, mer_guard_drop, "CONCURRENTLY runs as without it"),
	ROW(RenameStmt, "ALTER ... RENAME", MER_REPLICATED, mer_guard_rename, "databases keep their names"),
	ROW(AlterObjectSchemaStmt, "ALTER ... SET SCHEMA", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterObjectDependsStmt, "ALTER ... DEPENDS ON EXTENSION", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterOwnerStmt, "ALTER ... OWNER TO", MER_REPLICATED, mer_guard_owner, "databases keep their owner"),
	ROW(CommentStmt, "COMMENT", MER_REPLICATED, NULL, "catalog"),
	ROW(CreateStatsStmt, "CREATE STATISTICS", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterStatsStmt, "ALTER STATISTICS", MER_REPLICATED, NULL, "catalog"),
	ROW(CreateSchemaStmt, "CREATE SCHEMA", MER_REPLICATED, NULL, "catalog; its elements are classed by themselves"),
	ROW(CreateTrigStmt, "CREATE TRIGGER", MER_REPLICATED, NULL, "catalog"),
	ROW(RuleStmt, "CREATE RULE", MER_REPLICATED, NULL, "catalog"),
	ROW(CreatePolicyStmt, "CREATE POLICY", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterPolicyStmt, "ALTER POLICY", MER_REPLICATED, NULL, "catalog"),

	/* types, functions, operators, text search */
	ROW(DefineStmt, "CREATE AGGREGATE, OPERATOR, TYPE, TEXT SEARCH, COLLATION", MER_REPLICATED, NULL, "catalog"),
	ROW(CompositeTypeStmt, "CREATE TYPE AS", MER_REPLICATED, NULL, "catalog"),
	ROW(CreateEnumStmt, "CREATE TYPE AS ENUM", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterEnumStmt, "ALTER TYPE ... VALUE", MER_REPLICATED, NULL, "catalog"),
	ROW(CreateRangeStmt, "CREATE TYPE AS RANGE", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterTypeStmt, "ALTER TYPE SET", MER_REPLICATED, NULL, "catalog"),
	ROW(CreateDomainStmt, "CREATE DOMAIN", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterDomainStmt, "ALTER DOMAIN", MER_REPLICATED, mer_guard_alter_domain,
		"catalog; new checks read the rows, so they come first in their transaction"),
	ROW(CreateFunctionStmt, "CREATE FUNCTION, PROCEDURE", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterFunctionStmt, "ALTER FUNCTION", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterOperatorStmt, "ALTER OPERATOR", MER_REPLICATED, NULL, "catalog"),
	ROW(CreateCastStmt, "CREATE CAST", MER_REPLICATED, NULL, "catalog"),
	ROW(CreateConversionStmt, "CREATE CONVERSION", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterCollationStmt, "ALTER COLLATION", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterTSDictionaryStmt, "ALTER TEXT SEARCH DICTIONARY", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterTSConfigurationStmt, "ALTER TEXT SEARCH CONFIGURATION", MER_REPLICATED, NULL, "catalog"),
	ROW(CreateTransformStmt, "CREATE TRANSFORM", MER_REPLICATED, NULL, "catalog"),
	ROW(CreateOpClassStmt, "CREATE OPERATOR CLASS", MER_REFUSED, NULL,
		"Keys are ordered by the operator classes that come with the server."),
	ROW(CreateOpFamilyStmt, "CREATE OPERATOR FAMILY", MER_REFUSED, NULL,
		"Keys are ordered by the operator classes that come with the server."),
	ROW(AlterOpFamilyStmt, "ALTER OPERATOR FAMILY", MER_REFUSED, NULL,
		"Keys are ordered by the operator classes that come with the server."),
	ROW(CreatePLangStmt, "CREATE LANGUAGE", MER_REFUSED, NULL, "Use sql or plpgsql."),

	/* roles and privileges */
	ROW(CreateRoleStmt, "CREATE ROLE, USER", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterRoleStmt, "ALTER ROLE, GROUP", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterRoleSetStmt, "ALTER ROLE SET", MER_REPLICATED, NULL, "catalog"),
	ROW(DropRoleStmt, "DROP ROLE", MER_REPLICATED, NULL, "catalog"),
	ROW(GrantStmt, "GRANT, REVOKE", MER_REPLICATED, NULL, "catalog"),
	ROW(GrantRoleStmt, "GRANT, REVOKE of roles", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterDefaultPrivilegesStmt, "ALTER DEFAULT PRIVILEGES", MER_REPLICATED, NULL, "catalog"),
	ROW(ReassignOwnedStmt, "REASSIGN OWNED", MER_REPLICATED, NULL, "catalog"),
	ROW(DropOwnedStmt, "DROP OWNED", MER_REPLICATED, NULL, "catalog and storage"),
	ROW(SecLabelStmt, "SECURITY LABEL", MER_REFUSED, NULL, "No label provider is loaded."),

	/* locks, messages, maintenance */
	ROW(LockStmt, "LOCK TABLE", MER_REPLICATED, NULL,
		"waits for sessions of its own instance; those of others are met at COMMIT"),
	ROW(NotifyStmt, "NOTIFY", MER_REPLICATED, NULL, "comes with the commit, to the sessions of all instances"),
	ROW(ListenStmt, "LISTEN", MER_LOCAL, NULL, "hears the sessions of all instances"),
	ROW(UnlistenStmt, "UNLISTEN", MER_LOCAL, NULL, "session state only"),
	ROW(VacuumStmt, "VACUUM, ANALYZE", MER_NOOP, mer_guard_vacuum,
		"old row versions go by time alone; ANALYZE, also as VACUUM ANALYZE, runs, for all instances"),
	ROW(ReindexStmt, "REINDEX", MER_REFUSED, NULL,
		"Index entries are part of each commit and need no rebuild; meridian verify checks them."),
	ROW(ClusterStmt, "CLUSTER", MER_REFUSED, NULL, "Rows are always kept in the order of the primary key."),
	ROW(CheckPointStmt, "CHECKPOINT", MER_LOCAL, NULL, "of this instance's own files, with the privilege to"),

	/* databases, instances, the world outside */
	ROW(CreatedbStmt, "CREATE DATABASE", MER_REFUSED, NULL, "A cluster has one database, postgres; use schemas."),
	ROW(DropdbStmt, "DROP DATABASE", MER_REFUSED, NULL, "A cluster has one database, postgres."),
	ROW(AlterDatabaseStmt, "ALTER DATABASE", MER_REFUSED, NULL, "Only ALTER DATABASE ... SET is supported."),
	ROW(AlterDatabaseRefreshCollStmt, "ALTER DATABASE REFRESH COLLATION VERSION", MER_REFUSED, NULL,
		"Collations come with the server and have no versions."),
	ROW(AlterDatabaseSetStmt, "ALTER DATABASE SET", MER_REPLICATED, NULL, "catalog"),
	ROW(AlterSystemStmt, "ALTER SYSTEM", MER_REFUSED, NULL, "Use SET, ALTER ROLE ... SET or ALTER DATABASE ... SET."),
	ROW(CreateTableSpaceStmt, "CREATE TABLESPACE", MER_REFUSED, NULL, "Rows live in storage, not in files of an instance."),
	ROW(DropTableSpaceStmt, "DROP TABLESPACE", MER_REFUSED, NULL, "Rows live in storage, not in files of an instance."),
	ROW(AlterTableSpaceOptionsStmt, "ALTER TABLESPACE", MER_REFUSED, NULL,
		"Rows live in storage, not in files of an instance."),
	ROW(AlterTableMoveAllStmt, "ALTER ... ALL IN TABLESPACE", MER_REFUSED, NULL,
		"Rows live in storage, not in files of an instance."),
	ROW(CreateExtensionStmt, "CREATE EXTENSION", MER_REFUSED, mer_guard_extension, "Only plpgsql is provided."),
	ROW(AlterExtensionStmt, "ALTER EXTENSION", MER_REFUSED, NULL, "Extensions are changed by the operator."),
	ROW(AlterExtensionContentsStmt, "ALTER EXTENSION ADD, DROP", MER_REFUSED, NULL,
		"Extensions are changed by the operator."),
	ROW(CreateAmStmt, "CREATE ACCESS METHOD", MER_REFUSED, NULL, "Tables use meridian and indexes btree."),
	ROW(CreateEventTrigStmt, "CREATE EVENT TRIGGER", MER_REFUSED, NULL, "Use triggers on tables."),
	ROW(AlterEventTrigStmt, "ALTER EVENT TRIGGER", MER_REFUSED, NULL, "Use triggers on tables."),
	ROW(CreateForeignTableStmt, "CREATE FOREIGN TABLE", MER_REFUSED, NULL, "Foreign data is not supported."),
	ROW(CreateFdwStmt, "CREATE FOREIGN DATA WRAPPER", MER_REFUSED, NULL, "Foreign data is not supported."),
	ROW(AlterFdwStmt, "ALTER FOREIGN DATA WRAPPER", MER_REFUSED, NULL, "Foreign data is not supported."),
	ROW(CreateForeignServerStmt, "CREATE SERVER", MER_REFUSED, NULL, "Foreign data is not supported."),
	ROW(AlterForeignServerStmt, "ALTER SERVER", MER_REFUSED, NULL, "Foreign data is not supported."),
	ROW(CreateUserMappingStmt, "CREATE USER MAPPING", MER_REFUSED, NULL, "Foreign data is not supported."),
	ROW(AlterUserMappingStmt, "ALTER USER MAPPING", MER_REFUSED, NULL, "Foreign data is not supported."),
	ROW(DropUserMappingStmt, "DROP USER MAPPING", MER_REFUSED, NULL, "Foreign data is not supported."),
	ROW(ImportForeignSchemaStmt, "IMPORT FOREIGN SCHEMA", MER_REFUSED, NULL, "Foreign data is not supported."),
	ROW(CreatePublicationStmt, "CREATE PUBLICATION", MER_REFUSED, NULL, "Logical replication is not supported."),
	ROW(AlterPublicationStmt, "ALTER PUBLICATION", MER_REFUSED, NULL, "Logical replication is not supported."),
	ROW(CreateSubscriptionStmt, "CREATE SUBSCRIPTION", MER_REFUSED, NULL, "Logical replication is not supported."),
	ROW(AlterSubscriptionStmt, "ALTER SUBSCRIPTION", MER_REFUSED, NULL, "Logical replication is not supported."),
	ROW(DropSubscriptionStmt, "DROP SUBSCRIPTION", MER_REFUSED, NULL, "Logical replication is not supported."),
};

/* NULL: no row, so the statement is refused. */
const MerUtilityRow *
mer_utility_row(NodeTag tag)
{
	for (int i = 0; i < lengthof(utility_rows); i++)
		if (utility_rows[i].tag == tag)
			return &utility_rows[i];
	return NULL;
}

const char *
mer_utility_class_name(MerUtilityClass cls)
{
	switch (cls)
	{
		case MER_REFUSED:
			return "refused";
		case MER_REPLICATED:
			return "replicated";
		case MER_LOCAL:
			return "local";
		case MER_NOOP:
			return "no-op";
	}
	pg_unreachable();
}

PG_FUNCTION_INFO_V1(mer_utility_classes);

Datum
mer_utility_classes(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < lengthof(utility_rows); i++)
	{
		const MerUtilityRow *row = &utility_rows[i];
		Datum		values[4];
		bool		nulls[4] = {false};

		values[0] = CStringGetTextDatum(row->node_tag);
		values[1] = CStringGetTextDatum(row->statement);
		values[2] = CStringGetTextDatum(mer_utility_class_name(row->cls));
		values[3] = CStringGetTextDatum(row->note);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
