"""Locks of rows, and keys that must be unique, over two instances."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from meridian.embedded.directory import ClusterDirectory
from meridian.gateway.client import Client
from meridian.wire import frames
from tests.crash.processes import Embedded
from tests.locks.conftest import Connect, Session
from tests.locks.races import race, rows, state

CONFLICT = "40001"
LOCKS = ["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"]
EXCLUDES = {
    ("UPDATE", "UPDATE"),
    ("UPDATE", "NO KEY UPDATE"),
    ("UPDATE", "SHARE"),
    ("UPDATE", "KEY SHARE"),
    ("NO KEY UPDATE", "NO KEY UPDATE"),
    ("NO KEY UPDATE", "SHARE"),
}
"""PostgreSQL's table, one half."""
WORK = {
    "UPDATE t SET v = v + 1 WHERE id = 1": "NO KEY UPDATE",
    "UPDATE t SET k = k + 100 WHERE id = 1": "UPDATE",
    "UPDATE t SET id = id + 100 WHERE id = 1": "UPDATE",
    "DELETE FROM t WHERE id = 1": "UPDATE",
}


def exclude(one: str, other: str) -> bool:
    return (one, other) in EXCLUDES or (other, one) in EXCLUDES


@pytest.fixture(params=["PRIMARY KEY", "UNIQUE"])
def pair(connect: Connect, request: pytest.FixtureRequest) -> Iterator[tuple[Session, Session]]:
    """Rows kept by their primary key, or by hidden ids."""
    one, other = connect(0), connect(1)
    one.execute("DROP TABLE IF EXISTS t, snapshot_taken")
    one.execute("CREATE TABLE snapshot_taken (a int)")
    one.execute(f"CREATE TABLE t (id int {request.param}, k int UNIQUE, v int)".encode())
    one.execute("INSERT INTO t SELECT g, g, 0 FROM generate_series(1, 5) g")
    yield one, other
    for session in (one, other):
        session.execute("ROLLBACK")


@pytest.mark.parametrize("option", ["", "NOWAIT", "SKIP LOCKED"])
def test_locks_exclude_as_in_postgresql(pair: tuple[Session, Session], option: str) -> None:
    for mine, yours in itertools.product(LOCKS, LOCKS):
        outcome = race(
            pair[0],
            f"SELECT * FROM t WHERE id = 1 FOR {mine} {option}",
            pair[1],
            f"SELECT * FROM t WHERE id = 1 FOR {yours} {option}",
        )
        expected = CONFLICT if exclude(mine, yours) else None
        assert outcome == (None, expected), (mine, yours)


@pytest.mark.parametrize("work", WORK)
def test_locks_against_writes(pair: tuple[Session, Session], work: str) -> None:
    one, other = pair
    for mine in LOCKS:
        expected = CONFLICT if exclude(mine, WORK[work]) else None
        lock = f"SELECT * FROM t WHERE id = 1 FOR {mine}"
        assert race(one, lock, other, work) == (None, expected), mine
        one.execute("DELETE FROM t; INSERT INTO t SELECT g, g, 0 FROM generate_series(1, 5) g")
        assert race(one, work, other, lock) == (None, expected), mine
        one.execute("DELETE FROM t; INSERT INTO t SELECT g, g, 0 FROM generate_series(1, 5) g")


def test_locks_of_other_rows_do_not_meet(pair: tuple[Session, Session]) -> None:
    lock = "SELECT * FROM t WHERE id = {} FOR UPDATE"
    assert race(pair[0], lock.format(1), pair[1], lock.format(2)) == (None, None)


def test_write_skew_is_prevented_where_asked(pair: tuple[Session, Session]) -> None:
    one, other = pair
    read = "SELECT v FROM t WHERE id IN (1, 2) FOR SHARE; UPDATE t SET v = v + 1 WHERE id = {}"
    assert race(one, read.format(1), other, read.format(2)) == (None, CONFLICT)
    assert rows(one, "SELECT sum(v) FROM t") == [(1,)]


@pytest.mark.parametrize("column", ["id", "k"])
def test_one_of_two_new_duplicates_wins(pair: tuple[Session, Session], column: str) -> None:
    one, other = pair
    values = {"id": ("(50, 51, 0)", "(50, 52, 0)"), "k": ("(51, 50, 0)", "(52, 50, 0)")}[column]
    insert = "INSERT INTO t VALUES {}"
    assert race(one, insert.format(values[0]), other, insert.format(values[1])) == (None, CONFLICT)
    move = f"UPDATE t SET {column} = 60 WHERE id = {{}}"
    assert race(one, move.format(1), other, move.format(2)) == (None, CONFLICT)
    again = insert.format(values[0]) + f" ON CONFLICT ({column}) DO UPDATE SET v = 7"
    assert race(
        one,
        again.replace("50", "70").replace("51", "71"),
        other,
        again.replace("50", "70").replace("51", "72"),
    ) == (None, CONFLICT)
    assert rows(one, f"SELECT {column} FROM t GROUP BY 1 HAVING count(*) > 1") == []


def test_freed_keys_may_be_taken_again(pair: tuple[Session, Session]) -> None:
    one, other = pair
    assert race(one, "DELETE FROM t WHERE id = 1", other, "INSERT INTO t VALUES (77, 77, 0)") == (
        None,
        None,
    )
    other.execute("INSERT INTO t VALUES (1, 1, 9)")
    assert rows(one, "SELECT v FROM t WHERE k = 1") == [(9,)]
    swap = "UPDATE t SET k = -k WHERE id = 2; UPDATE t SET k = 2 WHERE id = 3"
    assert race(one, swap, other, "UPDATE t SET k = 2 WHERE id = 4 AND false") == (None, None)


def test_duplicates_of_rows_that_nobody_remembers(tmp_path: Path) -> None:
    """The adjudicator's window begins after the row: storage is asked."""
    embedded = Embedded(tmp_path / "data", "--query-hosts", "2")
    embedded.start()
    try:
        with psycopg.connect(embedded.dsn, autocommit=True) as session:
            session.execute("CREATE TABLE old (id int PRIMARY KEY, k int UNIQUE)")
            session.execute("INSERT INTO old VALUES (1, 1)")
        running = ClusterDirectory(tmp_path / "data").running()
        assert running is not None
        with Client(running.gateway_socket) as client:
            client.call(frames.ADMIN, "checkpoint", {})
        embedded.kill("data-plane")
        with connected(embedded) as session:
            assert state(session, "INSERT INTO old VALUES (1, 2)") == "23505"
            assert state(session, "INSERT INTO old VALUES (2, 1)") == "23505"
            assert state(session, "INSERT INTO old VALUES (2, 2)") is None
    finally:
        embedded.stop()


def connected(embedded: Embedded) -> Session:
    """A session once the data plane serves again."""
    for _ in range(300):
        try:
            session = psycopg.connect(embedded.dsn, autocommit=True)
            session.execute("SELECT count(*) FROM old")
            return session
        except psycopg.Error:
            threading.Event().wait(0.1)
    raise AssertionError("the data plane does not come back")
