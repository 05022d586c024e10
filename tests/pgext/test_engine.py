"""The engine inside the extension against stock PostgreSQL: scripts, random programs, conflicts.

More seeds: `MERIDIAN_ENGINE_SEEDS=0:2000 pytest tests/pgext/test_engine.py -k random`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Server
from tests.pgext.engine_random import Program

SCRIPTS = sorted((Path(__file__).parent / "engine_sql").glob("*.sql"))
FIRST, LAST = map(int, os.environ.get("MERIDIAN_ENGINE_SEEDS", "0:40").split(":"))
BATCH = 10


def plain(value: bytes | None) -> float | bytes | None:
    """1 and 1.0, 0 and -0 are ties of an ORDER BY."""
    try:
        return value if value is None else float(value) + 0.0
    except ValueError:
        return value


def answer(session: psycopg.Connection, sql: str) -> tuple[str, list[str]]:
    """SQLSTATE, command tag and rows, sorted where the statement does not say their order."""
    result = session.pgconn.exec_(sql.encode())
    if result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
        state = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) or b"?"
        return state.decode(), []
    rows = [
        repr([plain(result.get_value(row, column)) for column in range(result.nfields)])
        for row in range(result.ntuples)
    ]
    ordered = " order by " in sql or sql.startswith("fetch")
    return (result.command_status or b"").decode(), rows if ordered else sorted(rows)


def same(ours: Server, stock: Server, schema: str, statements: list[str]) -> None:
    with (
        psycopg.connect(ours.dsn, autocommit=True) as a,
        psycopg.connect(stock.dsn, autocommit=True) as b,
    ):
        for session in (a, b):
            session.execute(f"create schema {schema}".encode())
            session.execute(f"set search_path = {schema}".encode())
        for number, sql in enumerate(statements):
            got, expected = answer(a, sql), answer(b, sql)
            if sql.startswith("update") and "23505" in (got[0], expected[0]) and got != expected:
                break  # which row comes first decides; ours come in key order
            assert (number, sql, got) == (number, sql, expected)
        for session in (a, b):
            session.execute("rollback")
            session.execute(f"drop schema {schema} cascade".encode())


@pytest.mark.parametrize("start", range(FIRST, LAST, BATCH))
def test_random(cluster: Server, stock: Server, start: int) -> None:
    for seed in range(start, min(start + BATCH, LAST)):
        same(cluster, stock, f"engine_{seed}", Program(seed).statements())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script(cluster: Server, stock: Server, script: Path) -> None:
    statements = [part.strip() for part in script.read_text().split(";\n") if part.strip()]
    same(cluster, stock, f"script_{script.stem}", statements)


Sessions = Callable[[], psycopg.Connection]


@pytest.fixture
def sessions(cluster: Server) -> Iterator[Sessions]:
    opened: list[psycopg.Connection] = []

    def connect() -> psycopg.Connection:
        opened.append(psycopg.connect(cluster.dsn))
        return opened[-1]

    with psycopg.connect(cluster.dsn, autocommit=True) as setup:
        setup.execute("create table parent (id int primary key, v int)")
        setup.execute("create table child (id int primary key, p int references parent (id))")
        setup.execute("create table plain (id int primary key, v int)")
        setup.execute("insert into parent select g, g from generate_series(1, 9) g")
        yield connect
        for session in opened:
            session.close()
        setup.execute("drop table child, parent, plain")


def commit(session: psycopg.Connection) -> str:
    try:
        session.commit()
    except psycopg.Error as error:
        return error.sqlstate or "?"
    return "ok"


CONFLICTS = [
    ("insert into child values (1, 1)", "delete from parent where id = 1", "40001"),
    ("delete from parent where id = 2", "insert into child values (1, 2)", "40001"),
    ("insert into child values (1, 3)", "update parent set v = 0 where id = 3", "ok"),
    ("insert into child values (1, 4)", "update parent set id = 40 where id = 4", "40001"),
    ("insert into parent values (50, 1)", "insert into parent values (50, 2)", "40001"),
    ("update parent set v = 1 where id = 5", "update parent set v = 2 where id = 5", "40001"),
    ("update parent set v = 1 where id = 5", "update parent set v = 2 where id = 6", "ok"),
    (
        "select * from parent where id = 6 for update",
        "select * from parent where id = 6 for update",
        "40001",
    ),
    (
        "select * from parent where id = 6 for share",
        "select * from parent where id = 6 for share",
        "ok",
    ),
    (
        "select * from parent where id = 6 for share",
        "update parent set v = 0 where id = 6",
        "40001",
    ),
    (
        "select * from parent where id = 7 for no key update",
        "insert into child values (1, 7)",
        "ok",
    ),
    ("insert into plain values (1, 1)", "create index on plain (v)", "40001"),
]


@pytest.mark.parametrize(("first", "second", "outcome"), CONFLICTS)
def test_conflict(sessions: Sessions, first: str, second: str, outcome: str) -> None:
    """Both transactions start before either commits; the second to commit gets `outcome`."""
    a, b = sessions(), sessions()
    b.execute("select count(*) from plain")
    a.execute(first)
    if "create index" in second:
        assert commit(a) == "ok"
        b.execute(second)
    else:
        b.execute(second)
        assert commit(a) == "ok"
    assert commit(b) == outcome


def test_rolled_back_writes_are_not_shipped(sessions: Sessions) -> None:
    a, b = sessions(), sessions()
    a.execute("savepoint s")
    a.execute("update parent set v = 1 where id = 8")
    a.execute("rollback to s")
    b.execute("update parent set v = 2 where id = 8")
    assert commit(b) == "ok" and commit(a) == "ok"


def test_values_at_the_limit(cluster: Server) -> None:
    """8 MiB is the largest column of `standard`; INCLUDE columns may be big, too."""
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("create table big (id int primary key, a int, v text)")
        session.execute("create index on big (a) include (v)")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="column size"):
            session.execute("insert into big values (1, 1, repeat('x', 8 * 1024 * 1024 + 1))")
        session.execute("insert into big values (1, 1, repeat('y', 5000))")
        session.execute("set enable_seqscan = off")
        assert session.execute("select length(v) from big where a = 1").fetchone() == (5000,)
        session.execute("update big set v = v || 'z', id = 2")
        assert session.execute("select id, right(v, 2) from big").fetchall() == [(2, "yz")]
        session.execute("drop table big")
