"""LISTEN/NOTIFY, LOCK TABLE and advisory locks on one instance (on two: tests/locks)."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import Server

Pair = tuple[psycopg.Connection, psycopg.Connection]


@pytest.fixture
def pair(cluster: Server) -> Iterator[Pair]:
    with (
        psycopg.connect(cluster.dsn, autocommit=True) as one,
        psycopg.connect(cluster.dsn, autocommit=True) as other,
    ):
        one.execute("CREATE TABLE held (a int PRIMARY KEY)")
        yield one, other
        one.execute("ROLLBACK")
        other.execute("ROLLBACK")
        one.execute("DROP TABLE held")


def heard(session: psycopg.Connection) -> list[str]:
    return [note.payload for note in session.notifies(timeout=0.5, stop_after=3)]


def test_notify_comes_with_the_commit(pair: Pair) -> None:
    listener, sender = pair
    listener.execute("LISTEN news")
    sender.execute("BEGIN")
    sender.execute("INSERT INTO held VALUES (1)")
    sender.execute("NOTIFY news, 'kept'")
    assert heard(listener) == []
    sender.execute("COMMIT")
    assert heard(listener) == ["kept"]
    assert listener.execute("SELECT a FROM held").fetchall() == [(1,)]
    sender.execute("BEGIN")
    sender.execute("SELECT pg_notify('news', 'dropped')")
    sender.execute("ROLLBACK")
    assert heard(listener) == []


def test_lock_table_keeps_writers_out(pair: Pair) -> None:
    holder, writer = pair
    holder.execute("BEGIN")
    holder.execute("LOCK TABLE held IN SHARE MODE")
    writer.execute("SET lock_timeout = '100ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        writer.execute("INSERT INTO held VALUES (1)")
    assert writer.execute("SELECT count(*) FROM held").fetchone() == (0,)
    holder.execute("COMMIT")
    writer.execute("INSERT INTO held VALUES (1)")


def test_a_lock_taken_first_sees_what_it_waited_for(pair: Pair) -> None:
    holder, late = pair
    holder.execute("BEGIN")
    holder.execute("LOCK TABLE held")
    holder.execute("INSERT INTO held VALUES (1)")
    late.execute("BEGIN")
    late.execute("SELECT 1")
    holder.execute("COMMIT")
    late.execute("LOCK TABLE held")
    assert late.execute("SELECT count(*) FROM held").fetchone() == (1,)


def test_advisory_locks(pair: Pair) -> None:
    holder, other = pair
    holder.execute("SELECT pg_advisory_lock(7)")
    assert other.execute("SELECT pg_try_advisory_lock(7)").fetchone() == (False,)
    holder.execute("SELECT pg_advisory_unlock(7)")
    assert other.execute("SELECT pg_try_advisory_xact_lock(7)").fetchone() == (True,)
