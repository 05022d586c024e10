"""No relation is local by accident, and what is refused says so."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import Server

ACCESS_METHOD = """
SELECT am.amname FROM pg_class c JOIN pg_am am ON am.oid = c.relam WHERE c.oid = %s::regclass"""


@pytest.fixture
def session(cluster: Server) -> Iterator[psycopg.Connection]:
    """Everything in one transaction that is rolled back."""
    with psycopg.connect(cluster.dsn) as opened:
        opened.execute("CREATE TABLE base (a int PRIMARY KEY, b text UNIQUE)")
        yield opened
        opened.rollback()


def access_method(session: psycopg.Connection, relation: str) -> str:
    row = session.execute(ACCESS_METHOD, [relation]).fetchone()
    assert row is not None
    return str(row[0])


def index_methods(session: psycopg.Connection, table: str) -> set[str]:
    rows = session.execute(
        "SELECT am.amname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_am am ON am.oid = c.relam WHERE i.indrelid = %s::regclass",
        [table],
    )
    return {name for (name,) in rows}


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE t (a int PRIMARY KEY, b text UNIQUE)",
        "CREATE TABLE t AS SELECT 1 AS a",
        "SELECT 1 AS a INTO t",
        "CREATE MATERIALIZED VIEW t AS SELECT 1 AS a",
        "CREATE TABLE t (LIKE base INCLUDING ALL)",
        "CREATE TABLE t () INHERITS (base)",
        "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1 AS a",
        "DO 'BEGIN CREATE TABLE t (a int); END'",
        "CREATE TABLE t (a int) USING meridian",
        "CREATE TABLE p (a int) PARTITION BY LIST (a);"
        "CREATE TABLE t PARTITION OF p FOR VALUES IN (1)",
    ],
)
@pytest.mark.parametrize("default", ["meridian", "heap"])
def test_ordinary_tables_are_ours(session: psycopg.Connection, sql: str, default: str) -> None:
    session.execute(f"SET LOCAL default_table_access_method = {default}".encode())
    session.execute(sql.encode())
    assert access_method(session, "t") == "meridian"
    assert index_methods(session, "t") <= {"btree"}


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TEMP TABLE t (a int PRIMARY KEY, b text UNIQUE)",
        "CREATE TABLE pg_temp.t (a int PRIMARY KEY, b text UNIQUE)",
        "SET LOCAL search_path = pg_temp, public; CREATE TABLE t (a int PRIMARY KEY)",
        "CREATE TEMP TABLE t AS SELECT 1 AS a; CREATE INDEX ON t (a)",
        "SELECT 1 AS a INTO TEMP t; CREATE UNIQUE INDEX ON t (a)",
        "CREATE TEMP TABLE t (LIKE base INCLUDING ALL)",
        "CREATE TEMP TABLE t (a int); ALTER TABLE t ADD PRIMARY KEY (a)",
        "CREATE TEMP TABLE t (a int); ALTER TABLE t ADD COLUMN b int UNIQUE",
        "CREATE TEMP TABLE p (a int PRIMARY KEY) PARTITION BY RANGE (a);"
        "CREATE TEMP TABLE t PARTITION OF p FOR VALUES FROM (0) TO (9)",
        "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1 AS a",
        "CREATE TEMP TABLE t (a int) USING heap",
    ],
)
@pytest.mark.parametrize("default", ["meridian", "heap"])
def test_temporary_tables_are_local(session: psycopg.Connection, sql: str, default: str) -> None:
    session.execute(f"SET LOCAL default_table_access_method = {default}".encode())
    session.execute(sql.encode())
    assert access_method(session, "t") == "heap"
    assert index_methods(session, "t") <= {"heap_btree"}
    session.execute("INSERT INTO t (a) VALUES (3)")
    assert session.execute("SELECT count(*) FROM t WHERE a > 0").fetchone() in ((1,), (2,))


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE t (a int) USING heap",
        "CREATE TEMP TABLE t (a int) USING meridian",
        "CREATE TABLE t USING heap AS SELECT 1",
        "CREATE MATERIALIZED VIEW t USING heap AS SELECT 1",
        "CREATE UNLOGGED TABLE t (a int)",
        "SELECT 1 INTO UNLOGGED t",
        "CREATE UNLOGGED SEQUENCE s",
        "CREATE TABLE t (a int, EXCLUDE USING btree (a WITH =))",
        "ALTER TABLE base ADD EXCLUDE (a WITH =)",
        "CREATE TABLE t (a int4range, PRIMARY KEY (a WITHOUT OVERLAPS))",
        "CREATE INDEX ON base USING gin (b)",
        "CREATE INDEX ON base USING gist (b)",
        "CREATE INDEX ON base USING brin (a)",
        "CREATE INDEX ON base USING hash (a)",
        "CREATE INDEX ON base USING spgist (b)",
        "CREATE TABLE t (a int) TABLESPACE pg_global",
        "CREATE INDEX ON base (a) TABLESPACE pg_global",
        "ALTER TABLE base SET TABLESPACE pg_global",
        "ALTER TABLE base SET ACCESS METHOD heap",
        "ALTER TABLE base SET UNLOGGED",
        "ALTER TABLE base SET LOGGED",
        "PREPARE TRANSACTION 'x'",
        "SET TRANSACTION SNAPSHOT '00000003-0000001B-1'",
        "SELECT pg_export_snapshot()",
        "SELECT lo_create(0)",
        "SELECT lo_from_bytea(0, 'x')",
        "ALTER DATABASE postgres RENAME TO other",
        "ALTER DATABASE postgres OWNER TO admin",
        "CREATE TEMP TABLE t (a int UNIQUE); ALTER TABLE t ALTER a TYPE text",
    ],
)
def test_refused(session: psycopg.Connection, sql: str) -> None:
    with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
        session.execute(sql.encode())
    assert caught.value.diag.message_hint


@pytest.mark.parametrize(
    "sql",
    [
        "DROP EXTENSION meridian",
        "DROP ACCESS METHOD btree",
        "DROP OPERATOR FAMILY integer_ops USING btree",
        "DROP FUNCTION pg_catalog.nextval(regclass)",
        "UPDATE meridian.relation SET sid = 1",
        "SELECT * FROM meridian.relation",
        "CREATE TABLE meridian.t (a int)",
        "CREATE TABLE sys.t (a int)",
        "CREATE TABLE pg_catalog.t (a int)",
        "UPDATE pg_am SET amname = 'x'",
        "COPY (SELECT 1) TO '/nowhere'",
        "COPY base FROM '/etc/passwd'",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "CREATE ROLE r SUPERUSER",
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'meridian', 'mer_nextval'",
        "SET meridian.maintenance = on",
        "SET allow_system_table_mods = on",
        "SET session_replication_role = replica",
        "SET SESSION AUTHORIZATION meridian_root",
        "SET ROLE meridian_root",
        "ALTER ROLE meridian_root PASSWORD 'x'",
        "GRANT meridian_root TO admin",
        "GRANT pg_execute_server_program TO admin",
    ],
)
def test_users_cannot(session: psycopg.Connection, sql: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(sql.encode())


def test_concurrently_runs_as_plain(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("CREATE TABLE plain (a int PRIMARY KEY, b text)")
        session.execute("CREATE INDEX CONCURRENTLY plain_b ON plain (b)")
        assert index_methods(session, "plain") == {"btree"}
        session.execute("DROP INDEX CONCURRENTLY plain_b")
        with session.transaction(), pytest.raises(psycopg.errors.ActiveSqlTransaction):
            session.execute("CREATE INDEX CONCURRENTLY ON plain (b)")
        session.execute("DROP TABLE plain")


def test_vacuum(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("CREATE TABLE vac (a int PRIMARY KEY)")
        session.execute("INSERT INTO vac SELECT generate_series(1, 100)")
        for sql in ("VACUUM", "VACUUM vac", "VACUUM FULL vac", "VACUUM (ANALYZE, VERBOSE) vac"):
            session.execute(sql.encode())
        row = session.execute("SELECT reltuples FROM pg_class WHERE relname = 'vac'").fetchone()
        assert row == (100,)
        with pytest.raises(psycopg.errors.UndefinedTable):
            session.execute("VACUUM nosuch")
        session.execute("DROP TABLE vac")
