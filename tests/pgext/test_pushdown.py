"""Pushed down == not pushed down == heap table: rows, errors, aggregates (design section 8).

One seed: `MERIDIAN_SEED=17 pytest tests/pgext/test_pushdown.py -k one_seed`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest

from tests.pgext.pushdown_queries import Queries

SEEDS = 40
SEEDS_NIGHTLY = 1_000
BATCH = 10
ROWS = 60
QUERIES = 25
METHODS = [
    f"enable_{name}"
    for name in (
        "hashjoin",
        "mergejoin",
        "nestloop",
        "indexscan",
        "seqscan",
        "indexonlyscan",
        "bitmapscan",
        "hashagg",
        "material",
    )
]

Answer = tuple[str, list[tuple[bytes | None, ...]]]


@pytest.fixture
def connection(cluster) -> Iterator[psycopg.Connection]:
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        yield connection
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            connection.execute("ROLLBACK")
        connection.execute("DROP SCHEMA IF EXISTS pushdown CASCADE")


def ask(connection: psycopg.Connection, sql: str) -> Answer:
    """SQLSTATE and the sorted rows as text."""
    result = connection.pgconn.exec_(sql.encode())
    if result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
        state = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) or b"?????"
        return state.decode(), []
    rows = [
        tuple(result.get_value(row, column) for column in range(result.nfields))
        for row in range(result.ntuples)
    ]
    return "00000", sorted(rows, key=lambda row: [(v is None, v or b"") for v in row])


def setup(connection: psycopg.Connection, queries: Queries) -> None:
    """The same rows in a table of ours with an index (pushdown.t) and in a heap (pg_temp.t)."""
    connection.execute("DROP SCHEMA IF EXISTS pushdown CASCADE")
    connection.execute("DROP TABLE IF EXISTS pg_temp.t")
    connection.execute("CREATE SCHEMA pushdown")
    values = ", ".join(queries.rows(1, ROWS))
    for create, name in (("TABLE", "pushdown.t"), ("TEMP TABLE", "pg_temp.t")):
        connection.execute(f"CREATE {create} {name} ({queries.schema()})")
        connection.execute(f"INSERT INTO {name} VALUES {values}")
    connection.execute(f"CREATE INDEX ON pushdown.t ({queries.columns[1].name}, id)")
    kind = (
        "SELECT a.amname FROM pg_am a JOIN pg_class c ON c.relam = a.oid WHERE c.oid = %s::regclass"
    )
    assert connection.execute(kind, ["pg_temp.t"]).fetchone() == ("heap",)
    assert connection.execute(kind, ["pushdown.t"]).fetchone() != ("heap",)


def compare(connection: psycopg.Connection, sql: str, queries: Queries) -> None:
    """Ask all three ways, each time with another taste for plans; a data change is undone."""
    answers = {}
    methods = queries.rng.sample(METHODS, queries.rng.choice([0, 0, 2, 4]))
    for way, path, pushed in (
        ("heap", "pg_temp", "on"),
        ("local", "pushdown, pg_temp", "off"),
        ("pushed", "pushdown, pg_temp", "on"),
    ):
        connection.execute(f"SET search_path = {path}; SET meridian.enable_pushdown = {pushed}")
        in_transaction = connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        if in_transaction:
            connection.execute("SAVEPOINT q")
        connection.execute("; ".join(f"SET {method} = off" for method in methods))
        answers[way] = ask(connection, sql)
        if in_transaction:
            connection.execute("ROLLBACK TO q; RELEASE q")
        connection.execute("; ".join(f"SET {method} = on" for method in methods))
    for way in ("local", "pushed"):
        assert answers[way] == answers["heap"], (
            f"seed {queries.seed}, {way} differs from heap, without {methods}: {sql}"
        )


def pushed_parts(connection: psycopg.Connection, sql: str) -> set[str]:
    """Which kinds of pushdown the plan uses."""
    connection.execute("SET search_path = pushdown, pg_temp; SET meridian.enable_pushdown = on")
    plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {sql}").fetchall())
    return {
        part for part in ("Storage Filter", "Storage Columns", "Storage Aggregates") if part in plan
    }


def run_seed(connection: psycopg.Connection, seed: int) -> list[set[str]]:
    """One schema: committed rows, then over this transaction's own writes, then after them."""
    queries = Queries(seed)
    setup(connection, queries)
    seen = []
    for _ in range(QUERIES):
        sql = queries.grouped() if queries.rng.random() < 0.5 else queries.plain()
        compare(connection, sql, queries)
        seen.append(pushed_parts(connection, sql))
    connection.execute("BEGIN")
    for change in (queries.change(), queries.change()):
        compare(connection, change, queries)
    fresh = ", ".join(queries.rows(1000, 10))
    for path in ("pushdown", "pg_temp"):
        connection.execute(f"DELETE FROM {path}.t WHERE id % 4 = 0")
        connection.execute(f"INSERT INTO {path}.t VALUES {fresh}")
    for _ in range(QUERIES // 2):
        sql = queries.grouped() if queries.rng.random() < 0.5 else queries.plain()
        compare(connection, sql, queries)
    connection.execute("COMMIT")
    for _ in range(3):
        compare(connection, queries.grouped(), queries)
    return seen


@pytest.mark.parametrize("start", range(0, SEEDS, BATCH))
def test_pushed_equals_heap(connection, start: int) -> None:
    seen = [parts for seed in range(start, start + BATCH) for parts in run_seed(connection, seed)]
    for part in ("Storage Filter", "Storage Columns", "Storage Aggregates"):
        count = sum(part in parts for parts in seen)
        assert count >= len(seen) // 20, f"{part} in only {count} of {len(seen)} plans"


@pytest.mark.nightly
@pytest.mark.parametrize("start", range(SEEDS, SEEDS_NIGHTLY, BATCH))
def test_pushed_equals_heap_nightly(connection, start: int) -> None:
    for seed in range(start, start + BATCH):
        run_seed(connection, seed)


@pytest.mark.skipif("MERIDIAN_SEED" not in os.environ, reason="replays one seed on request")
def test_one_seed(connection) -> None:
    run_seed(connection, int(os.environ["MERIDIAN_SEED"]))


def test_generic_plan_parameters(connection) -> None:
    """A generic plan evaluates its parameters at each execution, NULLs and arrays included."""
    connection.execute(
        "CREATE SCHEMA pushdown; SET search_path = pushdown;"
        " CREATE TABLE t (id int PRIMARY KEY, a int, b text)"
    )
    connection.execute("INSERT INTO t SELECT i, i % 7, 'x' || i % 3 FROM generate_series(1, 200) i")
    connection.execute("SET plan_cache_mode = force_generic_plan")
    connection.execute(
        "PREPARE q (int, int[], text) AS SELECT count(*), sum(a) FROM t"
        " WHERE a > $1 AND id = ANY ($2) OR b = $3"
    )

    def run(arguments: str) -> tuple[int, int | None]:
        return connection.execute(f"EXECUTE q({arguments})").fetchone()

    assert run("3, '{1,2,4,5,6,NULL}', 'none'") == (3, 15)
    assert run("NULL, '{1,2}', NULL") == (0, None)
    assert run("0, NULL, 'x1'")[0] == 67
    assert run("0, '{}', 'x0'")[0] == 66


def test_explain_says_what_storage_does(connection) -> None:
    connection.execute(
        "CREATE SCHEMA pushdown; SET search_path = pushdown;"
        " CREATE TABLE t (id int PRIMARY KEY, a int, b text)"
    )
    connection.execute("INSERT INTO t SELECT i, i % 7, 'x' FROM generate_series(1, 100) i")

    def plan(sql: str) -> str:
        return "\n".join(row[0] for row in connection.execute(sql).fetchall())

    scan = plan("EXPLAIN (ANALYZE, COSTS OFF) SELECT b FROM t WHERE a = 3 AND b LIKE '%x%'")
    assert "Custom Scan (Meridian Scan)" in scan and "Storage Filter: (a = 3)" in scan
    assert "Storage Columns: a, b" in scan and "rows=14 bytes=" in scan
    groups = plan("EXPLAIN (ANALYZE, COSTS OFF) SELECT a, count(*) FROM t WHERE id < 50 GROUP BY a")
    assert "Custom Scan (Meridian Aggregate)" in groups and "Storage Aggregates: count(*)" in groups
    assert "round trips=1 rows=7" in groups


def test_key_lookup_is_never_a_full_scan(connection) -> None:
    """Also on tables that nobody has analysed, when empty, small or big."""
    connection.execute(
        "CREATE SCHEMA pushdown; SET search_path = pushdown;"
        " CREATE TABLE t (id int PRIMARY KEY, a int, b text);"
        " CREATE INDEX t_a ON t (a)"
    )
    for rows in (0, 1, 2, 30, 3000):
        connection.execute(
            "INSERT INTO t SELECT i, i, 'x' FROM generate_series((SELECT coalesce(max(id), 0) + 1"
            f" FROM t), {rows}) i"
        )
        connection.execute("SET meridian.statistics_ttl = 0")
        for condition in ("id = 7", "id = 7 AND b = 'x'", "id = ANY ('{1,2}')", "a = 7"):
            for sql in (f"SELECT * FROM t WHERE {condition}", f"DELETE FROM t WHERE {condition}"):
                plan = "\n".join(r[0] for r in connection.execute(f"EXPLAIN {sql}").fetchall())
                assert "Index" in plan, f"{rows} rows, {condition}:\n{plan}"
        if rows == 2:
            connection.execute("ANALYZE t")
    connection.execute("ANALYZE t")
    either = "\n".join(
        r[0]
        for r in connection.execute(
            "EXPLAIN ANALYZE SELECT * FROM t WHERE id = 7 OR a = 9"
        ).fetchall()
    )
    assert "BitmapOr" in either and "rows=2.00" in either
    assert "Bitmap" not in str(
        connection.execute("EXPLAIN SELECT * FROM t WHERE a = 9 AND b = 'x'").fetchall()
    )
    connection.execute(
        "SET plan_cache_mode = force_generic_plan;"
        " CREATE TABLE e (id int PRIMARY KEY, a int); CREATE INDEX ON e (a);"
        " CREATE TABLE h (id int, a int); CREATE UNIQUE INDEX ON h (id)"
    )
    for number, condition in enumerate(
        [
            "e WHERE id = ANY ($1)",
            "h WHERE id = ANY ($1)",
            "e WHERE id = $1[1]",
            "e WHERE a = $1[1]",
        ]
    ):
        connection.execute(f"PREPARE p{number} (int[]) AS SELECT * FROM {condition}")
        plan = connection.execute(f"EXPLAIN EXECUTE p{number}('{{1}}')").fetchall()
        assert "Index" in str(plan) or "Bitmap" in str(plan), f"{condition}: {plan}"


def test_analyze_counts_and_samples(connection) -> None:
    connection.execute(
        "CREATE SCHEMA pushdown; SET search_path = pushdown;"
        " CREATE TABLE t (id int PRIMARY KEY, a int, b text)"
    )
    connection.execute("INSERT INTO t SELECT i, i % 10, NULL FROM generate_series(1, 5000) i")
    connection.execute("ANALYZE t")
    tuples = connection.execute("SELECT reltuples FROM pg_class WHERE oid = 't'::regclass")
    assert tuples.fetchone()[0] == pytest.approx(5000, rel=0.02)
    rows = connection.execute(
        "SELECT attname, null_frac, n_distinct FROM pg_stats"
        " WHERE schemaname = 'pushdown' ORDER BY attname"
    ).fetchall()
    assert [row[0] for row in rows] == ["a", "b", "id"]
    assert rows[0][2] == 10 and rows[1][1] == 1 and rows[2][2] == -1


def test_batched_join(connection) -> None:
    """A join on a whole primary key asks once per batch of outer rows and sees own writes."""
    connection.execute(
        "CREATE SCHEMA pushdown; SET search_path = pushdown;"
        " CREATE TABLE p (a int, b text, v numeric, PRIMARY KEY (a, b));"
        " CREATE TABLE c (id int PRIMARY KEY, a int, b text)"
    )
    connection.execute(
        "INSERT INTO p SELECT i, 'k' || i % 3, i / 2.0 FROM generate_series(1, 3000) i"
    )
    connection.execute(
        "INSERT INTO c SELECT i, nullif(i * 7 % 3500, 70), 'k' || i * 7 % 3"
        " FROM generate_series(1, 900) i"
    )
    connection.execute("ANALYZE p; ANALYZE c")
    sql = "SELECT c.id, p.v FROM c JOIN p ON p.a = c.a AND p.b = c.b WHERE p.v > 20 AND c.id <> 5"
    others = "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_nestloop = off"

    def both() -> tuple[Answer, Answer]:
        connection.execute("SET meridian.enable_pushdown = on;" + others)
        pushed = ask(connection, sql)
        connection.execute("SET meridian.enable_pushdown = off; RESET enable_hashjoin")
        return pushed, ask(connection, sql)

    connection.execute(others)
    plan = "\n".join(r[0] for r in connection.execute(f"EXPLAIN ANALYZE {sql}").fetchall())
    assert "Meridian Join" in plan and "Storage Key: c.a, c.b" in plan
    join = plan[plan.index("Meridian Join") :]
    assert int(join[join.index("round trips=") + 12 :].split()[0]) <= 7
    pushed, local = both()
    assert pushed == local and len(pushed[1]) > 400
    connection.execute(
        "BEGIN; UPDATE p SET v = 1 WHERE a % 5 = 0; DELETE FROM p WHERE a % 4 = 0;"
        " INSERT INTO p SELECT i, 'k' || i % 3, 99"
        " FROM generate_series(3001, 3400) i"
    )
    pushed, local = both()
    assert pushed == local and len(pushed[1]) > 300
    connection.execute("ROLLBACK")
    connection.execute("SET meridian.enable_pushdown = on")


JOINS = [
    "SELECT c.id, p.v, p.b FROM c LEFT JOIN p ON p.a = c.a AND p.b = c.b",
    "SELECT c.id, p.v FROM c LEFT JOIN p ON p.a = c.a AND p.b = c.b AND p.v > 30 AND c.id > 9",
    "SELECT c.id FROM c LEFT JOIN p ON p.a = c.a AND p.b = c.b WHERE p.v IS NULL OR p.v > 90",
    "SELECT c.id FROM c LEFT JOIN p ON p.a = c.a AND p.b = c.b WHERE p.a IS NULL",
    "SELECT c.id, s.one FROM c LEFT JOIN (SELECT a, b, 1 AS one FROM p) s"
    " ON s.a = c.a AND s.b = c.b",
    "SELECT c.id FROM c WHERE EXISTS (SELECT FROM p WHERE p.a = c.a AND p.b = c.b AND p.v > 7)",
    "SELECT c.id FROM c WHERE NOT EXISTS (SELECT FROM p WHERE p.a = c.a AND p.b = c.b AND v < 60)",
    "SELECT c.id, p.v, q.v FROM c JOIN p ON p.a = c.a AND p.b = c.b"
    " LEFT JOIN p q ON q.a = c.id AND q.b = c.b WHERE p.v > q.v OR q.v IS NULL",
    "SELECT c.id, (SELECT sum(p.v) FROM c d JOIN p ON p.a = d.a AND p.b = d.b"
    " WHERE d.id < c.id) FROM c WHERE c.id < 20",
    "SELECT count(*), sum(p.v) FROM c JOIN p ON p.a = c.a AND p.b = c.b GROUP BY c.b",
    "SELECT c.id, p.v FROM c JOIN p ON p.a = c.a AND p.b = c.b ORDER BY c.id LIMIT 20",
]


def test_batched_join_kinds(connection) -> None:
    """Left, semi and anti joins, join conditions and filters, over own writes, too."""
    connection.execute(
        "CREATE SCHEMA pushdown; SET search_path = pushdown;"
        " CREATE TABLE p (a int, b text, v int, PRIMARY KEY (a, b));"
        " CREATE TABLE c (id int PRIMARY KEY, a int, b text)"
    )
    connection.execute(
        "INSERT INTO p SELECT i, 'k' || i % 3, i % 100 FROM generate_series(1, 400) i"
    )
    connection.execute(
        "INSERT INTO c SELECT i, nullif(i * 7 % 500, 70), 'k' || i * 7 % 500 % 3"
        " FROM generate_series(1, 300) i"
    )
    used = 0
    for own_writes in (False, True):
        if own_writes:
            connection.execute("BEGIN")
            connection.execute("UPDATE p SET v = 1 WHERE a % 5 = 0")
            connection.execute("DELETE FROM p WHERE a % 4 = 0")
        for sql in JOINS:
            connection.execute(
                "SET meridian.enable_pushdown = on; SET enable_hashjoin = off;"
                " SET enable_mergejoin = off; SET enable_nestloop = off"
            )
            pushed = ask(connection, sql)
            plan = connection.execute(f"EXPLAIN {sql}").fetchall()
            used += any("Meridian Join" in row[0] for row in plan)
            connection.execute("SET meridian.enable_pushdown = off; SET enable_hashjoin = on")
            assert ask(connection, sql) == pushed, sql
    assert used >= 2 * len(JOINS) - 4


def test_analyze_of_partitions_and_own_writes(connection) -> None:
    """Each partition is sampled; a table filled in the same transaction is read as it stands."""
    connection.execute(
        "CREATE SCHEMA pushdown; SET search_path = pushdown;"
        " CREATE TABLE t (id int, k int) PARTITION BY LIST (k);"
        " CREATE TABLE t0 PARTITION OF t FOR VALUES IN (0);"
        " CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1);"
        " CREATE TABLE t2 PARTITION OF t DEFAULT"
    )
    connection.execute("INSERT INTO t SELECT i, i % 5 FROM generate_series(1, 1000) i")
    connection.execute("ANALYZE t")
    sizes = "SELECT relname, reltuples FROM pg_class WHERE relnamespace = 'pushdown'::regnamespace"
    found = dict(connection.execute(sizes).fetchall())
    assert found == {"t": 1000, "t0": 200, "t1": 200, "t2": 600}
    connection.execute(
        "BEGIN; CREATE TABLE own AS SELECT i FROM generate_series(1, 70) i; ANALYZE own"
    )
    assert dict(connection.execute(sizes).fetchall())["own"] == 70
    connection.execute("ROLLBACK; BEGIN; DELETE FROM t WHERE id <= 500; ANALYZE t0")
    assert dict(connection.execute(sizes).fetchall())["t0"] == 100
    connection.execute("ROLLBACK; TRUNCATE t; ANALYZE t")
    assert dict(connection.execute(sizes).fetchall())["t0"] == 0
