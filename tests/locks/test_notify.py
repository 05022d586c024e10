"""NOTIFY from any instance to the sessions of all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.crash.processes import Embedded
from tests.locks.conftest import Connect, Session


def heard(session: Session, count: int, timeout_s: float = 10) -> list[tuple[str, str]]:
    """The next notifications; one more than `count` would be a surprise."""
    notes = list(session.notifies(timeout=timeout_s, stop_after=count)) if count else []
    notes += session.notifies(timeout=0.3)
    return [(note.channel, note.payload) for note in notes]


@pytest.fixture
def listeners(connect: Connect) -> list[Session]:
    sessions = [connect(0), connect(1)]
    for session in sessions:
        session.execute("LISTEN news")
    return sessions


def test_every_instance_hears_what_was_committed(
    connect: Connect, listeners: list[Session]
) -> None:
    for sender in (connect(0), connect(1)):
        sender.execute("BEGIN")
        sender.execute("NOTIFY news, 'one'")
        sender.execute("SELECT pg_notify('news', 'two'), pg_notify('other', 'x')")
        assert [heard(session, 0) for session in listeners] == [[], []]
        sender.execute("COMMIT")
        expected = [("news", "one"), ("news", "two")]
        assert [heard(session, 2) for session in listeners] == [expected, expected]


def test_what_was_rolled_back_is_not_heard(connect: Connect, listeners: list[Session]) -> None:
    sender = connect(1)
    sender.execute("BEGIN")
    sender.execute("NOTIFY news, 'gone'")
    sender.execute("ROLLBACK")
    sender.execute("BEGIN")
    sender.execute("NOTIFY news, 'kept'")
    sender.execute("SAVEPOINT a")
    sender.execute("NOTIFY news, 'gone too'")
    sender.execute("ROLLBACK TO a")
    sender.execute("NOTIFY news, 'gone too'")
    sender.execute("SAVEPOINT b")
    sender.execute("NOTIFY news, 'inner'")
    sender.execute("RELEASE b")
    sender.execute("COMMIT")
    expected = [("news", "kept"), ("news", "gone too"), ("news", "inner")]
    assert [heard(session, 3) for session in listeners] == [expected, expected]


def test_a_refused_transaction_notifies_nobody(connect: Connect, listeners: list[Session]) -> None:
    one, other = connect(0), connect(1)
    one.execute("DROP TABLE IF EXISTS told")
    one.execute("CREATE TABLE told (id int PRIMARY KEY, n int)")
    one.execute("INSERT INTO told VALUES (1, 0)")
    other.execute("BEGIN")
    other.execute("UPDATE told SET n = n + 1")
    other.execute("NOTIFY news, 'refused'")
    one.execute("UPDATE told SET n = n + 1")
    with pytest.raises(psycopg.errors.SerializationFailure):
        other.execute("COMMIT")
    one.execute("NOTIFY news, 'after'")
    assert [heard(session, 1) for session in listeners] == [[("news", "after")]] * 2
    one.execute("DROP TABLE told")


def test_twice_the_same_is_once_in_a_transaction(
    connect: Connect, listeners: list[Session]
) -> None:
    sender = connect(0)
    with sender.transaction():
        for payload in ("a", "b", "a"):
            sender.execute("SELECT pg_notify('news', %s)", [payload])
        with sender.transaction():
            sender.execute("NOTIFY news, 'b'")
    sender.execute("NOTIFY news, 'a'")
    expected = [("news", "a"), ("news", "b"), ("news", "a")]
    assert [heard(session, 3) for session in listeners] == [expected, expected]


def test_the_sender_hears_itself_and_order_is_that_of_commits(connect: Connect) -> None:
    one, other = connect(0), connect(1)
    one.execute("LISTEN news")
    for n in range(20):
        (one if n % 2 else other).execute(f"NOTIFY news, '{n}'".encode())
    assert heard(one, 20) == [("news", str(n)) for n in range(20)]


def test_a_reader_may_notify(connect: Connect, listeners: list[Session]) -> None:
    sender = connect(1)
    sender.execute("BEGIN READ ONLY")
    sender.execute("SELECT count(*) FROM pg_class")
    sender.execute("NOTIFY news")
    sender.execute("COMMIT")
    assert [heard(session, 1) for session in listeners] == [[("news", "")]] * 2


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT pg_notify('', 'x')", "channel name cannot be empty"),
        ("SELECT pg_notify(NULL, 'x')", "channel name cannot be empty"),
        ("SELECT pg_notify(repeat('c', 64), 'x')", "channel name too long"),
        ("SELECT pg_notify('c', repeat('x', 8000))", "payload string too long"),
    ],
)
def test_limits_are_postgresqls(connect: Connect, sql: str, message: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
        connect().execute(sql.encode())


def test_the_largest_payload_arrives(connect: Connect, listeners: list[Session]) -> None:
    connect(1).execute("SELECT pg_notify('news', repeat('ä', 3999) || 'x')")
    assert [heard(session, 1) for session in listeners] == [[("news", "ä" * 3999 + "x")]] * 2


def test_large_transactions_notify_too(connect: Connect, listeners: list[Session]) -> None:
    """Write sets that travel in several parts, with rows and with notifications."""
    sender = connect(0)
    sender.execute("CREATE TABLE bulk (id int PRIMARY KEY, filler text)")
    with sender.transaction():
        sender.execute("NOTIFY news, 'first'")
        sender.execute(
            "INSERT INTO bulk SELECT g, repeat('x', 500) FROM generate_series(1, 9000) g"
        )
        sender.execute("NOTIFY news, 'last'")
    expected = [("news", "first"), ("news", "last")]
    assert [heard(session, 2, timeout_s=30) for session in listeners] == [expected, expected]
    with sender.transaction():
        sender.execute(
            "SELECT pg_notify('news', g || repeat('y', 7000)) FROM generate_series(1, 400) g"
        )
    for session in listeners:
        notes = heard(session, 400, timeout_s=30)
        assert [payload.rstrip("y") for _, payload in notes] == [str(g) for g in range(1, 401)]
    sender.execute("DROP TABLE bulk")


def test_unlisten(connect: Connect, listeners: list[Session]) -> None:
    listeners[0].execute("UNLISTEN news")
    connect(0).execute("NOTIFY news, 'x'")
    assert heard(listeners[1], 1) == [("news", "x")]
    assert heard(listeners[0], 0) == []


def test_users_cannot_deliver_by_hand(connect: Connect) -> None:
    for call in ("notify_here('a', 'b')", "end_listeners()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connect().execute(f"SELECT meridian.{call}".encode())


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Embedded]:
    running = Embedded(tmp_path / "data", "--query-hosts", "2")
    running.start()
    yield running
    running.stop()


def test_who_comes_first_stays(embedded: Embedded) -> None:
    """A new instance has missed nothing that its first listeners could have heard."""
    listeners = [psycopg.connect(dsn, autocommit=True) for dsn in embedded.dsns]
    for listener in listeners:
        listener.execute("LISTEN news")
    time.sleep(1)
    listeners[0].execute("NOTIFY news, 'x'")
    for listener in listeners:
        assert heard(listener, 1) == [("news", "x")]
        listener.close()


def test_who_may_have_missed_something_is_told(embedded: Embedded) -> None:
    """The data plane dies: what it had not passed on is gone, so listeners lose their session."""
    with psycopg.connect(embedded.dsn, autocommit=True) as listener:
        bystander = psycopg.connect(embedded.dsn, autocommit=True)
        listener.execute("LISTEN news")
        embedded.kill("data-plane")
        deadline = time.monotonic() + 60
        with pytest.raises(psycopg.OperationalError) as caught:
            while time.monotonic() < deadline:
                list(listener.notifies(timeout=0.2))
                listener.execute("SELECT 1")
        assert caught.value.sqlstate == "57P01" or listener.closed
        assert bystander.execute("SELECT 1").fetchone() == (1,)
        bystander.close()
    with psycopg.connect(embedded.dsn, autocommit=True) as listener:
        listener.execute("LISTEN news")
        with psycopg.connect(embedded.dsn, autocommit=True) as sender:
            sender.execute("NOTIFY news, 'again'")
        assert heard(listener, 1, timeout_s=30) == [("news", "again")]
