"""pg_advisory_lock and its kin among sessions of all instances."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.locks.conftest import Connect, Session


def value(session: Session, sql: str) -> object:
    row = session.execute(sql.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("key", ["42", "4, -2", "-1, 7", "-9223372036854775808"])
def test_exclusive_and_shared(connect: Connect, key: str) -> None:
    one, other = connect(), connect()
    one.execute(f"SELECT pg_advisory_lock_shared({key})".encode())
    assert value(other, f"SELECT pg_try_advisory_lock_shared({key})") is True
    assert value(other, f"SELECT pg_try_advisory_lock({key})") is False
    assert value(one, f"SELECT pg_advisory_unlock_shared({key})") is True
    assert value(other, f"SELECT pg_try_advisory_lock({key})") is True
    assert value(one, f"SELECT pg_try_advisory_lock_shared({key})") is False
    other.execute("SELECT pg_advisory_unlock_all()")
    assert value(one, f"SELECT pg_try_advisory_xact_lock({key})") is True


def test_two_ints_are_no_bigint(connect: Connect) -> None:
    one, other = connect(), connect()
    assert value(one, "SELECT pg_try_advisory_lock(0, 5)") is True
    assert value(other, "SELECT pg_try_advisory_lock(5)") is True
    assert value(other, "SELECT pg_try_advisory_lock(0, 5)") is False
    assert value(one, "SELECT pg_try_advisory_lock(NULL)") is None


def test_counts_and_warnings(connect: Connect) -> None:
    one, other = connect(), connect()
    notices: list[str] = []
    one.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    one.execute("SELECT pg_advisory_lock(50), pg_advisory_lock(50)")
    assert value(one, "SELECT pg_advisory_unlock(50)") is True
    assert value(other, "SELECT pg_try_advisory_lock(50)") is False
    assert value(one, "SELECT pg_advisory_unlock(50)") is True
    assert value(one, "SELECT pg_advisory_unlock(50)") is False
    assert notices == ["you don't own a lock of type ExclusiveLock"]
    assert value(other, "SELECT pg_try_advisory_lock(50)") is True


def test_a_transactions_locks_end_with_it(connect: Connect) -> None:
    one, other = connect(), connect()
    for end in ("COMMIT", "ROLLBACK"):
        one.execute("BEGIN")
        one.execute("SELECT pg_advisory_xact_lock(51), pg_advisory_xact_lock_shared(52)")
        assert value(other, "SELECT pg_try_advisory_xact_lock(51)") is False
        assert value(one, "SELECT pg_advisory_unlock(51)") is False, "not by hand"
        one.execute(end.encode())
        assert value(other, "SELECT pg_try_advisory_xact_lock(51)") is True
        assert value(other, "SELECT pg_try_advisory_xact_lock(52)") is True


def test_savepoints(connect: Connect) -> None:
    one, other = connect(), connect()
    one.execute("BEGIN")
    one.execute("SAVEPOINT a")
    one.execute("SELECT pg_advisory_xact_lock(53), pg_advisory_lock(54)")
    one.execute("SAVEPOINT b")
    one.execute("SELECT pg_advisory_xact_lock(55)")
    one.execute("RELEASE b")
    one.execute("ROLLBACK TO a")
    for key, free in ((53, True), (54, False), (55, True)):
        assert value(other, f"SELECT pg_try_advisory_xact_lock({key})") is free
    one.execute("SELECT pg_advisory_xact_lock(53)")
    one.execute("ROLLBACK")
    assert value(other, "SELECT pg_try_advisory_xact_lock(53)") is True
    assert value(other, "SELECT pg_try_advisory_lock(54)") is False, "the session's"


def test_discard_all_and_the_end_of_the_session(connect: Connect) -> None:
    one, other = connect(), connect()
    one.execute("SELECT pg_advisory_lock(56), pg_advisory_lock_shared(57)")
    assert value(other, "SELECT pg_try_advisory_lock(56)") is False
    one.execute("DISCARD ALL")
    assert value(other, "SELECT pg_try_advisory_lock(56)") is True
    other.close()
    deadline = time.monotonic() + 10
    while value(one, "SELECT pg_try_advisory_lock(56)") is not True:
        assert time.monotonic() < deadline


def waits(one: Session, sql: str) -> threading.Thread:
    thread = threading.Thread(target=one.execute, args=(sql.encode(),))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    return thread


def test_who_waits_gets_it(connect: Connect) -> None:
    one, other = connect(), connect()
    one.execute("SELECT pg_advisory_lock(58)")
    thread = waits(other, "SELECT pg_advisory_lock(58)")
    one.execute("SELECT pg_advisory_unlock(58)")
    thread.join(10)
    assert not thread.is_alive()
    assert value(one, "SELECT pg_try_advisory_lock(58)") is False


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("lock_timeout", psycopg.errors.LockNotAvailable),
        ("statement_timeout", psycopg.errors.QueryCanceled),
    ],
)
def test_timeouts(connect: Connect, setting: str, error: type[psycopg.Error]) -> None:
    one, other = connect(), connect()
    one.execute("SELECT pg_advisory_lock(59)")
    other.execute(f"SET {setting} = '200ms'".encode())
    with pytest.raises(error):
        other.execute("SELECT pg_advisory_lock(59)")
    one.execute("SELECT pg_advisory_unlock(59)")
    assert value(one, "SELECT pg_try_advisory_lock(59)") is True, "nothing was left behind"
    one.execute("SELECT pg_advisory_unlock(59)")
    other.execute("SELECT pg_advisory_lock(59)")


def test_cancel(connect: Connect) -> None:
    one, other = connect(), connect()
    one.execute("SELECT pg_advisory_lock(60)")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other.execute, "SELECT pg_advisory_lock(60)")
        time.sleep(0.3)
        other.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            waiting.result(10)
    one.execute("SELECT pg_advisory_unlock(60)")
    assert value(one, "SELECT pg_try_advisory_lock(60)") is True


def test_cancels_that_race_with_the_grant(connect: Connect) -> None:
    """Granted or not, the session knows: giving back all it knows of frees the lock."""
    one, other = connect(), connect()
    canceled = 0
    for round_number in range(40):
        one.execute("SELECT pg_advisory_lock(61)")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(other.execute, "SELECT pg_advisory_lock(61)")
            time.sleep(0.002 * (round_number % 5))
            if round_number % 2:
                one.execute("SELECT pg_advisory_unlock(61)")
            other.cancel_safe()
            one.execute("SELECT pg_advisory_unlock_all()")
            try:
                waiting.result(10)
            except psycopg.errors.QueryCanceled:
                canceled += 1
        while True:
            try:
                other.execute("SELECT pg_advisory_unlock_all()")
                break
            except psycopg.errors.QueryCanceled:
                canceled += 1
        assert value(one, "SELECT pg_try_advisory_lock(61)") is True
        one.execute("SELECT pg_advisory_unlock(61)")
    assert canceled


def test_deadlock(connect: Connect) -> None:
    one, other = connect(), connect()
    one.execute("SELECT pg_advisory_lock(62)")
    other.execute("BEGIN")
    other.execute("SELECT pg_advisory_xact_lock(63)")
    thread = waits(one, "SELECT pg_advisory_lock(63)")
    with pytest.raises(psycopg.errors.DeadlockDetected):
        other.execute("SELECT pg_advisory_lock(62)")
    other.execute("ROLLBACK")
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("instances", [(0, 0), (1, 0)])
def test_deadlock_with_a_table_lock(connect: Connect, instances: tuple[int, int]) -> None:
    """One waits at the gateway, the other for PostgreSQL: someone is told, nobody waits forever."""
    one, other, third = connect(0), connect(0), connect(instances[0])
    one.execute("CREATE TABLE IF NOT EXISTS tabled (id int)")
    third.execute("SELECT pg_advisory_lock(70)")
    one.execute("BEGIN; LOCK TABLE tabled")
    other.execute("SELECT pg_advisory_lock(71)")
    table = threading.Thread(target=swallow, args=(other, "LOCK TABLE tabled"))
    other.execute("BEGIN")
    table.start()
    key = threading.Thread(target=swallow, args=(third, "SELECT pg_advisory_lock(71)"))
    key.start()
    time.sleep(0.3)
    started = time.monotonic()
    with pytest.raises(psycopg.errors.DeadlockDetected):
        one.execute("SELECT pg_advisory_lock(70)")
    assert time.monotonic() - started < 30
    one.execute("ROLLBACK")
    table.join(10)
    other.execute("ROLLBACK; SELECT pg_advisory_unlock_all()")
    key.join(10)
    assert not table.is_alive() and not key.is_alive()


def test_waits_for_both_kinds_that_end(connect: Connect) -> None:
    """Who waits long with others behind it is no deadlock."""
    one, other, third = connect(0), connect(0), connect(1)
    one.execute("CREATE TABLE IF NOT EXISTS tabled (id int)")
    third.execute("SELECT pg_advisory_lock(72)")
    one.execute("BEGIN; LOCK TABLE tabled")
    key = waits(one, "SELECT pg_advisory_lock(72)")
    table = waits(other, "BEGIN; LOCK TABLE tabled")
    time.sleep(2.5)
    assert key.is_alive() and table.is_alive()
    third.execute("SELECT pg_advisory_unlock(72)")
    key.join(10)
    one.execute("COMMIT")
    table.join(10)
    assert not key.is_alive() and not table.is_alive()


def swallow(session: Session, sql: str) -> None:
    try:
        session.execute(sql.encode())
    except psycopg.Error:
        return


def test_who_holds_what_can_be_seen(connect: Connect) -> None:
    one, other = connect(0), connect(1)
    one.execute("SELECT pg_advisory_lock(-80), pg_advisory_xact_lock_shared(1)")
    one.execute("SELECT pg_advisory_lock_shared(-3, 81)")
    thread = waits(other, "SELECT pg_advisory_lock(-80)")
    sql = (
        "SELECT key, key1, key2, mode, granted, instance FROM sys.advisory_locks"
        " WHERE pid IN (%s, %s) ORDER BY 1 NULLS LAST, granted DESC"
    )
    pids = (one.info.backend_pid, other.info.backend_pid)
    first, second, third = connect(0).execute(sql, pids).fetchall()
    assert first[:5] == (-80, None, None, "ExclusiveLock", True)
    assert second[:5] == (-80, None, None, "ExclusiveLock", False)
    assert third[:5] == (None, -3, 81, "ShareLock", True)
    assert first[5] == third[5] != second[5]
    one.execute("SELECT pg_advisory_unlock_all()")
    thread.join(10)


def test_work_under_a_lock_is_seen_by_the_next_holder(connect: Connect) -> None:
    """Counting through a lock: nobody's increment is lost, and nobody gets 40001."""
    with connect() as first:
        first.execute("DROP TABLE IF EXISTS counted")
        first.execute("CREATE TABLE counted (id int PRIMARY KEY, n int)")
        first.execute("INSERT INTO counted VALUES (1, 0)")

    def count(session: Session) -> None:
        for _ in range(10):
            session.execute("SELECT pg_advisory_lock(64)")
            with session.transaction():
                n = value(session, "SELECT n FROM counted")
                session.execute("UPDATE counted SET n = %s", [int(str(n)) + 1])
            session.execute("SELECT pg_advisory_unlock(64)")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, [connect() for _ in range(4)]))
    last = connect()
    assert value(last, "SELECT n FROM counted") == 40
    last.execute("DROP TABLE counted")
