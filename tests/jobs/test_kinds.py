"""Builds over every kind of table and key: afterwards the index answers as the table does."""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import Server
from tests.jobs.tables import Session, connect, indexes, invalid_indexes, one, verify

ROWS = 700

TABLES = {
    "hidden": "CREATE TABLE {t} (a int, b text)",
    "two columns": "CREATE TABLE {t} (a int, b text, PRIMARY KEY (b, a))",
    "generated": "CREATE TABLE {t} (a int, b text, g int GENERATED ALWAYS AS (a * 2) STORED,"
    " v int GENERATED ALWAYS AS (a * 3) VIRTUAL)",
    "policies": "CREATE TABLE {t} (a int, b text);"
    " ALTER TABLE {t} ENABLE ROW LEVEL SECURITY;"
    " ALTER TABLE {t} FORCE ROW LEVEL SECURITY",
    "lost columns": "CREATE TABLE {t} (x int, a int, y text, b text);"
    " ALTER TABLE {t} DROP COLUMN x; ALTER TABLE {t} DROP COLUMN y;"
    " ALTER TABLE {t} ADD COLUMN z int DEFAULT 7",
}
FILL = (
    "INSERT INTO {t} (a, b) SELECT nullif(i % 90, 0), nullif('b' || i, 'b13')"
    " FROM generate_series(1, {n}) i"
)
FILL_KEYED = "INSERT INTO {t} (a, b) SELECT i % 90, 'b' || i FROM generate_series(1, {n}) i"


def answers(session: Session, sql: str, *, by_index: bool) -> list[tuple[object, ...]]:
    with session.transaction():
        for setting in ("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"):
            session.execute(f"SET LOCAL {setting} = {'on' if by_index else 'off'}".encode())
        session.execute(f"SET LOCAL enable_seqscan = {'off' if by_index else 'on'}".encode())
        return sorted(session.execute(sql.encode()).fetchall(), key=repr)


def same(session: Session, table: str, *queries: str) -> None:
    assert invalid_indexes(session, table) == []
    for query in queries:
        found = answers(session, query, by_index=True)
        assert found == answers(session, query, by_index=False)
        assert found, query


@pytest.mark.parametrize("kind", TABLES)
def test_kinds_of_tables(cluster: Server, kind: str) -> None:
    table = "kind_" + kind.replace(" ", "_")
    with connect(cluster.dsn) as session:
        session.execute(TABLES[kind].format(t=table).encode())
        if kind == "policies":
            session.execute(f"CREATE POLICY all_rows ON {table} USING (true)".encode())
        fill = FILL_KEYED if kind == "two columns" else FILL
        session.execute(fill.format(t=table, n=ROWS).encode())
        session.execute(f"CREATE INDEX ON {table} (a)".encode())
        session.execute(f"CREATE UNIQUE INDEX ON {table} (b)".encode())
        session.execute(f"CREATE INDEX ON {table} (lower(b) DESC NULLS LAST, a)".encode())
        if kind == "generated":
            session.execute(f"CREATE INDEX ON {table} (g)".encode())
            same(session, table, f"SELECT a, b FROM {table} WHERE g = 24")
            with pytest.raises(psycopg.errors.FeatureNotSupported):
                session.execute(f"CREATE INDEX ON {table} (v)".encode())
        same(
            session,
            table,
            f"SELECT * FROM {table} WHERE a = 12",
            f"SELECT a FROM {table} WHERE a BETWEEN 3 AND 5",
            f"SELECT a FROM {table} WHERE b = 'b55'",
            f"SELECT a, b FROM {table} WHERE lower(b) > 'b600'",
        )


KEYS = {
    "numeric": "(i % 50)::numeric(10, 2) + 0.50",
    "float8": "i / 7.0",
    "timestamptz": "'2026-01-01'::timestamptz + i * interval '1 hour'",
    "uuid": "md5(i::text)::uuid",
    "char(8)": "'c' || i % 40",
    "varchar(20)": "'v' || i",
    "interval": "i * interval '1 day'",
    "inet": "('10.0.0.' || i % 250)::inet",
    "bytea": "decode(md5(i::text), 'hex')",
    "bool": "i % 2 = 0",
    "date": "'2026-01-01'::date + i",
}


@pytest.mark.parametrize("type_", KEYS)
def test_kinds_of_keys(cluster: Server, type_: str) -> None:
    table = "key_" + "".join(filter(str.isalnum, type_))
    with connect(cluster.dsn) as session:
        session.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, k {type_}, n int)".encode())
        session.execute(
            f"INSERT INTO {table} SELECT i, CASE WHEN i % 11 > 0 THEN {KEYS[type_]} END, i"
            f" FROM generate_series(1, {ROWS}) i".encode()
        )
        session.execute(f"CREATE INDEX ON {table} (k)".encode())
        session.execute(f"CREATE UNIQUE INDEX ON {table} (k DESC, id) INCLUDE (n)".encode())
        middle = f"(SELECT k FROM {table} WHERE id = 300)"
        same(
            session,
            table,
            f"SELECT id FROM {table} WHERE k IS NULL",
            f"SELECT id, k FROM {table} WHERE k >= {middle}",
            f"SELECT id, n, k FROM {table} WHERE k = {middle}",
        )


def test_big_values(cluster: Server) -> None:
    """Beside their rows in storage, in the table, in an entry, and in a key."""
    with connect(cluster.dsn) as session:
        session.execute("CREATE TABLE large (id int PRIMARY KEY, a int, t text, k text)")
        session.execute(
            "INSERT INTO large SELECT i, i % 5, repeat(md5(i::text), 300 * (i % 3)),"
            " repeat('k', 2500) || i FROM generate_series(1, 300) i"
        )
        session.execute("CREATE INDEX ON large (a) INCLUDE (t)")
        session.execute("CREATE UNIQUE INDEX ON large (k)")
        same(
            session,
            "large",
            "SELECT a, md5(t) FROM large WHERE a = 3",
            "SELECT id FROM large WHERE k = repeat('k', 2500) || 77",
        )


def test_materialized_view(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        session.execute(
            "CREATE MATERIALIZED VIEW mv AS SELECT i, i % 9 AS a FROM generate_series(1, 500) i"
        )
        session.execute("CREATE INDEX ON mv (a)")
        same(session, "mv", "SELECT i FROM mv WHERE a = 4")
        job = one(session, "CREATE INDEX ASYNC ON mv (i)")
        try:
            session.execute("REFRESH MATERIALIZED VIEW mv")
        except psycopg.errors.SerializationFailure:
            session.execute("REFRESH MATERIALIZED VIEW mv")
        session.execute(f"CALL sys.wait_for_job('{job}')".encode())
        same(session, "mv", "SELECT a FROM mv WHERE i = 44")


def test_partitions_of_partitions(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        session.execute("CREATE TABLE pp (a int, b int, c text) PARTITION BY RANGE (a)")
        session.execute(
            "CREATE TABLE pp_1 PARTITION OF pp FOR VALUES FROM (0) TO (10) PARTITION BY LIST (b)"
        )
        session.execute("CREATE TABLE pp_1_0 PARTITION OF pp_1 FOR VALUES IN (0)")
        session.execute("CREATE TABLE pp_1_d PARTITION OF pp_1 DEFAULT")
        session.execute("CREATE TABLE pp_2 (c text, b int, gone int, a int)")
        session.execute("ALTER TABLE pp_2 DROP COLUMN gone")
        session.execute("ALTER TABLE pp ATTACH PARTITION pp_2 FOR VALUES FROM (10) TO (20)")
        session.execute("CREATE INDEX pp_1_0_ready ON pp_1_0 (c)")
        session.execute(
            "INSERT INTO pp SELECT i % 20, i % 3, 'c' || i FROM generate_series(1, 900) i"
        )
        session.execute("CREATE INDEX pp_c ON pp (c)")
        session.execute("CREATE UNIQUE INDEX pp_u ON pp (a, b, c)")
        for table in ("pp", "pp_1", "pp_1_0", "pp_1_d", "pp_2"):
            assert invalid_indexes(session, table) == []
            assert len(indexes(session, table)) == 2
        same(
            session,
            "pp",
            "SELECT a, b FROM pp WHERE c > 'c7'",
            "SELECT c FROM pp WHERE a = 3 AND b = 0",
            "SELECT c FROM pp WHERE a = 13",
        )


def test_a_function_of_the_owner_that_is_hidden_from_the_runner(cluster: Server) -> None:
    """Unqualified names in an index's function are found, or not, as in a plain CREATE INDEX."""
    with connect(cluster.dsn) as session:
        session.execute("CREATE SCHEMA far")
        session.execute(
            "CREATE FUNCTION far.inner_one(int) RETURNS int IMMUTABLE"
            " LANGUAGE sql AS 'SELECT $1 + 1'"
        )
        session.execute(
            "CREATE FUNCTION far.outer_one(int) RETURNS int IMMUTABLE"
            " LANGUAGE plpgsql AS 'BEGIN RETURN inner_one($1); END'"
        )
        session.execute("CREATE TABLE far.t (a int)")
        session.execute("INSERT INTO far.t SELECT generate_series(1, 200)")
        session.execute("SET search_path = far")
        with pytest.raises(psycopg.errors.UndefinedFunction):
            session.execute("CREATE INDEX ON far.t (far.outer_one(a))")
        session.execute("CREATE INDEX ON far.t (far.inner_one(a))")
        same(session, "far.t", "SELECT a FROM far.t WHERE far.inner_one(a) = 77")


def test_storage_is_sound_after_all_that(cluster: Server) -> None:
    assert cluster.directory is not None
    verify(cluster.directory)
