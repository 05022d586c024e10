"""Every row of the class table of utility statements, run once as an ordinary user."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import Server

NOT_SUPPORTED = "0A000"
PRIVILEGE = "42501"


@dataclasses.dataclass(frozen=True)
class Case:
    """`sql` after `setup`; `state` is the SQLSTATE it must end with, None when it must work."""

    sql: str
    setup: str = ""
    state: str | None = None
    autocommit: bool = False


REFUSED = {
    "LoadStmt": "LOAD 'plpgsql'",
    "CreateOpClassStmt": "CREATE OPERATOR CLASS oc FOR TYPE int4 USING btree AS STORAGE int4",
    "CreateOpFamilyStmt": "CREATE OPERATOR FAMILY of USING btree",
    "AlterOpFamilyStmt": "ALTER OPERATOR FAMILY fa USING btree ADD OPERATOR 1 < (int4, int4)",
    "CreatePLangStmt": "CREATE LANGUAGE plx HANDLER plpgsql_call_handler",
    "SecLabelStmt": "SECURITY LABEL ON TABLE base IS 'x'",
    "ReindexStmt": "REINDEX TABLE base",
    "ClusterStmt": "CLUSTER base",
    "CreatedbStmt": "CREATE DATABASE other",
    "DropdbStmt": "DROP DATABASE other",
    "AlterDatabaseStmt": "ALTER DATABASE postgres CONNECTION LIMIT 5",
    "AlterDatabaseRefreshCollStmt": "ALTER DATABASE postgres REFRESH COLLATION VERSION",
    "AlterSystemStmt": "ALTER SYSTEM SET work_mem = '1MB'",
    "CreateTableSpaceStmt": "CREATE TABLESPACE ts LOCATION '/nowhere'",
    "DropTableSpaceStmt": "DROP TABLESPACE ts",
    "AlterTableSpaceOptionsStmt": "ALTER TABLESPACE pg_default SET (seq_page_cost = 1)",
    "AlterTableMoveAllStmt": "ALTER TABLE ALL IN TABLESPACE pg_default SET TABLESPACE pg_default",
    "CreateExtensionStmt": "CREATE EXTENSION vector",
    "AlterExtensionStmt": "ALTER EXTENSION plpgsql UPDATE",
    "AlterExtensionContentsStmt": "ALTER EXTENSION plpgsql ADD TABLE base",
    "CreateAmStmt": "CREATE ACCESS METHOD am TYPE INDEX HANDLER bthandler",
    "CreateEventTrigStmt": "CREATE EVENT TRIGGER et ON ddl_command_end EXECUTE FUNCTION f()",
    "AlterEventTrigStmt": "ALTER EVENT TRIGGER et DISABLE",
    "CreateForeignTableStmt": "CREATE FOREIGN TABLE ft (a int) SERVER s",
    "CreateFdwStmt": "CREATE FOREIGN DATA WRAPPER w",
    "AlterFdwStmt": "ALTER FOREIGN DATA WRAPPER w OPTIONS (a 'b')",
    "CreateForeignServerStmt": "CREATE SERVER s FOREIGN DATA WRAPPER w",
    "AlterForeignServerStmt": "ALTER SERVER s VERSION '1'",
    "CreateUserMappingStmt": "CREATE USER MAPPING FOR admin SERVER s",
    "AlterUserMappingStmt": "ALTER USER MAPPING FOR admin SERVER s OPTIONS (a 'b')",
    "DropUserMappingStmt": "DROP USER MAPPING FOR admin SERVER s",
    "ImportForeignSchemaStmt": "IMPORT FOREIGN SCHEMA a FROM SERVER s INTO public",
    "CreatePublicationStmt": "CREATE PUBLICATION p FOR ALL TABLES",
    "AlterPublicationStmt": "ALTER PUBLICATION p ADD TABLE base",
    "CreateSubscriptionStmt": "CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p",
    "AlterSubscriptionStmt": "ALTER SUBSCRIPTION s DISABLE",
    "DropSubscriptionStmt": "DROP SUBSCRIPTION s",
}

FUNCTION = (
    "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';"
    "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
)
CONFIGURATION = "CREATE TEXT SEARCH CONFIGURATION tsc (COPY = simple);"
DICTIONARY = "CREATE TEXT SEARCH DICTIONARY tsd (TEMPLATE = simple);"

ACCEPTED = {
    "TransactionStmt": Case("SAVEPOINT a; ROLLBACK TO a; RELEASE a"),
    "VariableSetStmt": Case("SET work_mem = '4MB'; RESET work_mem; SET LOCAL search_path = public"),
    "VariableShowStmt": Case("SHOW transaction_isolation"),
    "DiscardStmt": Case("DISCARD ALL", autocommit=True),
    "ConstraintsSetStmt": Case("SET CONSTRAINTS ALL DEFERRED"),
    "PrepareStmt": Case("PREPARE p1 AS SELECT 1; DEALLOCATE p1"),
    "ExecuteStmt": Case("EXECUTE p1; DEALLOCATE p1", "PREPARE p1 AS SELECT 1;"),
    "DeallocateStmt": Case("DEALLOCATE p1", "PREPARE p1 AS SELECT 1;"),
    "DeclareCursorStmt": Case("DECLARE c CURSOR FOR SELECT * FROM base"),
    "FetchStmt": Case("FETCH 1 FROM c; MOVE 1 FROM c", "DECLARE c CURSOR FOR SELECT * FROM base;"),
    "ClosePortalStmt": Case("CLOSE c", "DECLARE c CURSOR FOR SELECT * FROM base;"),
    "ExplainStmt": Case("EXPLAIN SELECT * FROM base"),
    "DoStmt": Case("DO 'BEGIN CREATE TABLE in_do (a int PRIMARY KEY); END'"),
    "CallStmt": Case("CALL p()", "CREATE PROCEDURE p() LANGUAGE sql AS 'SELECT 1';"),
    "CopyStmt": Case("COPY base TO STDOUT"),
    "TruncateStmt": Case("TRUNCATE base"),
    "RefreshMatViewStmt": Case(
        "REFRESH MATERIALIZED VIEW mv", "CREATE MATERIALIZED VIEW mv AS SELECT * FROM base;"
    ),
    "CreateStmt": Case("CREATE TABLE t (a int PRIMARY KEY, b text UNIQUE)"),
    "CreateTableAsStmt": Case("CREATE TABLE t AS SELECT * FROM base"),
    "AlterTableStmt": Case("ALTER TABLE base ADD COLUMN n int DEFAULT 7"),
    "IndexStmt": Case("CREATE INDEX ON base (b)"),
    "CreateSeqStmt": Case("CREATE SEQUENCE s"),
    "AlterSeqStmt": Case("ALTER SEQUENCE s RESTART 5", "CREATE SEQUENCE s;"),
    "ViewStmt": Case("CREATE VIEW v AS SELECT * FROM base"),
    "DropStmt": Case("DROP TABLE base"),
    "RenameStmt": Case("ALTER TABLE base RENAME TO base2"),
    "AlterObjectSchemaStmt": Case("ALTER TABLE base SET SCHEMA other", "CREATE SCHEMA other;"),
    "AlterObjectDependsStmt": Case("ALTER FUNCTION one() DEPENDS ON EXTENSION plpgsql", FUNCTION),
    "AlterOwnerStmt": Case("ALTER TABLE base OWNER TO admin"),
    "CommentStmt": Case("COMMENT ON TABLE base IS 'x'"),
    "CreateStatsStmt": Case("CREATE STATISTICS st ON a, b FROM base"),
    "AlterStatsStmt": Case(
        "ALTER STATISTICS st SET STATISTICS 10", "CREATE STATISTICS st ON a, b FROM base;"
    ),
    "CreateSchemaStmt": Case("CREATE SCHEMA other CREATE TABLE inside (a int PRIMARY KEY)"),
    "CreateTrigStmt": Case(
        "CREATE TRIGGER tr BEFORE INSERT ON base FOR EACH ROW EXECUTE FUNCTION touch()", FUNCTION
    ),
    "RuleStmt": Case("CREATE RULE r AS ON DELETE TO base DO INSTEAD NOTHING"),
    "CreatePolicyStmt": Case("CREATE POLICY po ON base USING (a > 0)"),
    "AlterPolicyStmt": Case("ALTER POLICY po ON base USING (a > 1)", "CREATE POLICY po ON base;"),
    "DefineStmt": Case("CREATE AGGREGATE agg (int) (SFUNC = int4pl, STYPE = int4)"),
    "CompositeTypeStmt": Case("CREATE TYPE ct AS (a int, b text)"),
    "CreateEnumStmt": Case("CREATE TYPE en AS ENUM ('a', 'b')"),
    "AlterEnumStmt": Case("ALTER TYPE en ADD VALUE 'c'", "CREATE TYPE en AS ENUM ('a', 'b');"),
    "CreateRangeStmt": Case("CREATE TYPE ra AS RANGE (SUBTYPE = int4)"),
    "AlterTypeStmt": Case("ALTER TYPE ra SET (STORAGE = plain)", "", "42704"),
    "CreateDomainStmt": Case("CREATE DOMAIN d AS int CHECK (VALUE > 0)"),
    "AlterDomainStmt": Case("ALTER DOMAIN d SET NOT NULL", "CREATE DOMAIN d AS int;"),
    "CreateFunctionStmt": Case(FUNCTION),
    "AlterFunctionStmt": Case("ALTER FUNCTION one() IMMUTABLE", FUNCTION),
    "AlterOperatorStmt": Case(
        "ALTER OPERATOR === (int, int) SET (RESTRICT = eqsel)",
        "CREATE OPERATOR === (FUNCTION = int4eq, LEFTARG = int, RIGHTARG = int);",
    ),
    "CreateCastStmt": Case(
        "CREATE CAST (ct AS int) WITH FUNCTION toint(ct)",
        "CREATE TYPE ct AS (a int);"
        "CREATE FUNCTION toint(ct) RETURNS int LANGUAGE sql AS 'SELECT 1';",
    ),
    "CreateConversionStmt": Case(
        "CREATE CONVERSION cv FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8"
    ),
    "AlterCollationStmt": Case(
        "ALTER COLLATION co REFRESH VERSION", 'CREATE COLLATION co FROM "C";'
    ),
    "AlterTSDictionaryStmt": Case("ALTER TEXT SEARCH DICTIONARY tsd (ACCEPT = false)", DICTIONARY),
    "AlterTSConfigurationStmt": Case(
        "ALTER TEXT SEARCH CONFIGURATION tsc DROP MAPPING FOR word", CONFIGURATION
    ),
    "CreateTransformStmt": Case(
        "CREATE TRANSFORM FOR int LANGUAGE sql (FROM SQL WITH FUNCTION one())", FUNCTION, PRIVILEGE
    ),
    "CreateRoleStmt": Case("CREATE ROLE r1"),
    "AlterRoleStmt": Case("ALTER ROLE r1 CONNECTION LIMIT 3", "CREATE ROLE r1;"),
    "AlterRoleSetStmt": Case("ALTER ROLE r1 SET work_mem = '2MB'", "CREATE ROLE r1;"),
    "DropRoleStmt": Case("DROP ROLE r1", "CREATE ROLE r1;"),
    "GrantStmt": Case("GRANT SELECT ON base TO r1", "CREATE ROLE r1;"),
    "GrantRoleStmt": Case("GRANT r1 TO r2", "CREATE ROLE r1; CREATE ROLE r2;"),
    "AlterDefaultPrivilegesStmt": Case("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC"),
    "ReassignOwnedStmt": Case(
        "REASSIGN OWNED BY r1 TO admin", "CREATE ROLE r1; GRANT r1 TO admin;"
    ),
    "DropOwnedStmt": Case("DROP OWNED BY r1", "CREATE ROLE r1; GRANT r1 TO admin;"),
    "LockStmt": Case("LOCK TABLE base IN SHARE MODE"),
    "NotifyStmt": Case("NOTIFY channel, 'x'"),
    "ListenStmt": Case("LISTEN channel; UNLISTEN channel"),
    "UnlistenStmt": Case("UNLISTEN *"),
    "VacuumStmt": Case("VACUUM FULL base", autocommit=True),
    "CheckPointStmt": Case("CHECKPOINT", "", PRIVILEGE),
    "AlterDatabaseSetStmt": Case("ALTER DATABASE postgres SET work_mem = '4MB'"),
}


@pytest.fixture
def connection(cluster: Server) -> Iterator[psycopg.Connection]:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("CREATE TABLE base (a int PRIMARY KEY, b text)")
        session.execute("INSERT INTO base SELECT i, 'x' || i FROM generate_series(1, 5) i")
        yield session
        session.execute("ROLLBACK")
        session.execute("DROP TABLE base")


def outcome(session: psycopg.Connection, sql: str) -> str | None:
    """The SQLSTATE the statement ends with, None for success."""
    try:
        if sql.startswith("COPY"):
            with session.cursor().copy(sql.encode()) as copy:
                for _ in copy:
                    pass
        else:
            session.execute(sql.encode())
    except psycopg.Error as error:
        return error.sqlstate
    return None


def test_every_row_has_a_case(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn) as session:
        rows = session.execute("SELECT node_tag, class FROM sys.statements").fetchall()
    classes: dict[str, str] = dict(rows)
    assert len(classes) == len(rows)
    assert set(classes) == set(REFUSED) | set(ACCEPTED)
    assert {tag for tag, name in classes.items() if name == "refused"} == set(REFUSED)


@pytest.mark.parametrize("tag", REFUSED)
def test_refused(connection: psycopg.Connection, tag: str) -> None:
    with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
        connection.execute(REFUSED[tag].encode())
    assert caught.value.diag.message_hint


@pytest.mark.parametrize("tag", ACCEPTED)
def test_accepted(connection: psycopg.Connection, tag: str) -> None:
    case = ACCEPTED[tag]
    if case.autocommit:
        assert outcome(connection, case.sql) == case.state
        return
    connection.execute("BEGIN")
    if case.setup:
        connection.execute(case.setup.encode())
    assert outcome(connection, case.sql) == case.state
    connection.execute("ROLLBACK")


def test_nothing_is_right_for_one_instance_only(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn) as session:
        classes = session.execute("SELECT DISTINCT class FROM sys.statements").fetchall()
    assert {name for (name,) in classes} == {"replicated", "local", "no-op", "refused"}
