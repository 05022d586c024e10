"""LOCK TABLE among instances: what should have excluded each other does not both commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.locks.conftest import Connect, Session

WRITERS_OUT = ["SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE"]
WRITERS_BY = ["ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE"]

SCHEMA = """
DROP TABLE IF EXISTS held, parted, parent, child, bystander CASCADE;
CREATE TABLE held (a int PRIMARY KEY);
CREATE TABLE bystander (a int PRIMARY KEY);
CREATE TABLE parted (a int PRIMARY KEY) PARTITION BY LIST (a);
CREATE TABLE part1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE part2 PARTITION OF parted FOR VALUES IN (2) PARTITION BY LIST (a);
CREATE TABLE part2a PARTITION OF part2 FOR VALUES IN (2);
CREATE TABLE parent (a int PRIMARY KEY);
CREATE TABLE child () INHERITS (parent);
CREATE VIEW look AS SELECT held.a FROM held WHERE a IN (SELECT a FROM parent);
CREATE VIEW look_again AS SELECT * FROM look;
"""


@pytest.fixture
def pair(connect: Connect) -> Iterator[tuple[Session, Session]]:
    one, other = connect(0), connect(1)
    one.execute(SCHEMA)
    yield one, other
    for session in (one, other):
        session.execute("ROLLBACK")


def lock(session: Session, what: str, mode: str, option: str = "") -> None:
    session.execute("BEGIN")
    session.execute("SELECT count(*) FROM bystander")
    session.execute(f"LOCK TABLE {what} IN {mode} MODE {option}".encode())


def commits(session: Session) -> bool:
    try:
        session.execute("COMMIT")
    except psycopg.errors.SerializationFailure:
        return False
    return True


@pytest.mark.parametrize("mode", WRITERS_OUT)
def test_a_writer_that_comes_first_fails_the_lock(pair: tuple[Session, Session], mode: str) -> None:
    locker, writer = pair
    lock(locker, "held", mode)
    writer.execute("INSERT INTO held VALUES (1)")
    assert not commits(locker)


@pytest.mark.parametrize("mode", WRITERS_OUT)
def test_a_lock_that_comes_first_fails_the_writer(pair: tuple[Session, Session], mode: str) -> None:
    locker, writer = pair
    writer.execute("BEGIN")
    writer.execute("INSERT INTO held VALUES (1)")
    lock(locker, "held", mode, "NOWAIT")
    assert commits(locker) and not commits(writer)
    writer.execute("INSERT INTO held VALUES (1)")


@pytest.mark.parametrize("mode", WRITERS_BY)
def test_weaker_modes_let_writers_by(pair: tuple[Session, Session], mode: str) -> None:
    locker, writer = pair
    lock(locker, "held", mode)
    writer.execute("INSERT INTO held VALUES (1)")
    assert commits(locker)
    writer.execute("BEGIN")
    writer.execute("INSERT INTO held VALUES (2)")
    lock(locker, "held", mode)
    assert commits(locker) and commits(writer)


@pytest.mark.parametrize(
    ("mine", "yours", "both"),
    [
        ("SHARE UPDATE EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", False),
        ("SHARE UPDATE EXCLUSIVE", "SHARE", False),
        ("SHARE", "SHARE UPDATE EXCLUSIVE", False),
        ("SHARE", "SHARE ROW EXCLUSIVE", False),
        ("SHARE ROW EXCLUSIVE", "SHARE ROW EXCLUSIVE", False),
        ("EXCLUSIVE", "SHARE", False),
        ("ROW EXCLUSIVE", "ROW EXCLUSIVE", True),
        ("SHARE", "SHARE", True),
        ("ACCESS EXCLUSIVE", "EXCLUSIVE", False),
    ],
)
def test_lockers_among_themselves(
    pair: tuple[Session, Session], mine: str, yours: str, both: bool
) -> None:
    one, other = pair
    lock(one, "held", mine)
    lock(other, "held", yours)
    assert commits(one)
    assert commits(other) is both


@pytest.mark.parametrize(
    ("locked", "written", "met"),
    [
        ("parted", "parted VALUES (2)", True),
        ("part2", "parted VALUES (2)", True),
        ("part1", "parted VALUES (2)", False),
        ("parent", "child VALUES (1)", True),
        ("ONLY parent", "child VALUES (1)", False),
        ("look", "held VALUES (1)", True),
        ("look", "child VALUES (1)", True),
        ("look_again", "held VALUES (1)", True),
        ("held, part1", "parted VALUES (1)", True),
        ("held", "bystander VALUES (1)", False),
    ],
)
def test_what_is_locked(
    pair: tuple[Session, Session], locked: str, written: str, met: bool
) -> None:
    locker, writer = pair
    lock(locker, locked, "SHARE")
    writer.execute(f"INSERT INTO {written}".encode())
    assert commits(locker) is not met


def test_readers_are_not_disturbed(pair: tuple[Session, Session]) -> None:
    locker, reader = pair
    lock(locker, "held", "ACCESS EXCLUSIVE")
    assert reader.execute("SELECT count(*) FROM held").fetchone() == (0,)
    assert commits(locker)


def test_a_lock_taken_first_keeps_writers_of_other_instances_out(
    pair: tuple[Session, Session],
) -> None:
    locker, writer = pair
    locker.execute("BEGIN")
    writer.execute("INSERT INTO held VALUES (1)")
    locker.execute("LOCK TABLE held")
    assert locker.execute("SELECT count(*) FROM held").fetchone() == (1,)
    with pytest.raises(psycopg.errors.SerializationFailure):
        writer.execute("INSERT INTO held VALUES (2)")
    locker.execute("INSERT INTO held VALUES (3)")
    assert commits(locker)
    writer.execute("INSERT INTO held VALUES (2)")


def test_a_rolled_back_lock_keeps_nobody_out(pair: tuple[Session, Session]) -> None:
    locker, writer = pair
    locker.execute("BEGIN")
    locker.execute("LOCK TABLE held")
    locker.execute("ROLLBACK")
    started = time.monotonic()
    writer.execute("INSERT INTO held VALUES (2)")
    assert time.monotonic() - started < 1.5


def test_a_lock_gets_through_under_steady_writers(
    pair: tuple[Session, Session], connect: Connect
) -> None:
    """Their commits wait for it, and go on afterwards."""
    locker, _ = pair
    stop = threading.Event()
    refused = []

    def write(session: Session, number: int) -> None:
        while not stop.is_set():
            number += 2
            try:
                session.execute("INSERT INTO held VALUES (%s)", [number])
            except psycopg.errors.SerializationFailure as error:
                refused.append(error)

    writers = [threading.Thread(target=write, args=(connect(n % 2), n)) for n in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(5):
            time.sleep(0.1)
            locker.execute("BEGIN")
            locker.execute("LOCK TABLE bystander, parted IN SHARE ROW EXCLUSIVE MODE")
            locker.execute("LOCK TABLE held IN EXCLUSIVE MODE")
            before = locker.execute("SELECT count(*) FROM held").fetchone()
            time.sleep(0.1)
            assert locker.execute("SELECT count(*) FROM held").fetchone() == before
            locker.execute("INSERT INTO bystander SELECT count(*) FROM held")
            assert commits(locker)
    finally:
        stop.set()
        for writer in writers:
            writer.join(30)
    assert len(refused) <= 10


def test_new_and_temporary_tables_need_nothing(pair: tuple[Session, Session]) -> None:
    locker, _ = pair
    locker.execute("BEGIN")
    locker.execute("CREATE TEMP TABLE mine (a int)")
    locker.execute("LOCK TABLE mine IN SHARE MODE")
    locker.execute("ROLLBACK")
    locker.execute("BEGIN")
    locker.execute("CREATE TABLE brand_new (a int)")
    locker.execute("LOCK TABLE brand_new IN SHARE MODE")
    assert commits(locker)
    locker.execute("DROP TABLE brand_new")
