"""Two instances: what one changes in the catalog, and what sessions of the other see."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.pgext.instances import two_instances
from tests.pgext.test_catdelta import differences

Connection = psycopg.Connection[Any]
Pair = tuple[Connection, Connection]
SOON_S = 5.0


@pytest.fixture(scope="module")
def dsns() -> Iterator[tuple[str, str]]:
    with two_instances() as both:
        yield both


@pytest.fixture
def pair(dsns: tuple[str, str]) -> Iterator[Pair]:
    here, there = (psycopg.connect(dsn, autocommit=True) for dsn in dsns)
    with here, there:
        here.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        yield here, there


def another(connection: Connection) -> Connection:
    info = connection.info
    return psycopg.connect(
        f"host={info.host} port={info.port} user={info.user} dbname={info.dbname}"
        f" password={info.password}", autocommit=True
    )


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, failed


def refused(error: BaseException) -> bool:
    return isinstance(error, psycopg.Error) and error.sqlstate == "40001" and "OC001" in str(error)


def test_what_one_makes_the_other_has(pair: Pair) -> None:
    here, there = pair
    for number in range(20):
        maker, user = (here, there) if number % 2 else (there, here)
        maker.execute(f"CREATE TABLE t{number} (a int PRIMARY KEY, b text UNIQUE)".encode())
        user.execute(f"INSERT INTO t{number} VALUES (1, 'x')".encode())
        user.execute(f"ALTER TABLE t{number} ADD c int DEFAULT 7".encode())
        assert maker.execute(f"SELECT * FROM t{number}".encode()).fetchall() == [(1, "x", 7)]
    assert not differences(here, there)


def test_object_ids_come_from_ranges_of_their_own(pair: Pair) -> None:
    here, there = pair
    oids: dict[int, set[int]] = {0: set(), 1: set()}
    for number in range(10):
        which = number % 2
        pair[which].execute(f"CREATE TABLE t{number} (a serial PRIMARY KEY)".encode())
        rows = pair[which].execute(
            "SELECT oid::int8 FROM pg_class WHERE relname ~ %s", (f"^t{number}",)
        ).fetchall()
        oids[which] |= {row[0] for row in rows}
    here.execute("CREATE TEMP TABLE own (a int)")
    there.execute("CREATE TEMP TABLE own (a int)")
    own = [c.execute("SELECT 'own'::regclass::oid::int8").fetchone() for c in pair]
    assert own[0] != own[1]
    assert max(oids[0]) < min(oids[1]) or max(oids[1]) < min(oids[0])
    assert min(oids[0] | oids[1]) >= 1 << 20


def test_what_adds_or_grants_disturbs_nobody(pair: Pair) -> None:
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    there.execute("BEGIN")
    there.execute("INSERT INTO t VALUES (1)")
    assert there.execute("SELECT count(*) FROM t").fetchone() == (1,)
    started = time.monotonic()
    here.execute("GRANT SELECT ON t TO PUBLIC")
    here.execute("CREATE TABLE u (a int)")
    here.execute("COMMENT ON TABLE t IS 'x'")
    here.execute("ANALYZE t")
    assert time.monotonic() - started < SOON_S
    assert there.execute("SELECT count(*) FROM t").fetchone() == (1,)
    there.execute("COMMIT")
    assert here.execute("SELECT a FROM t").fetchall() == [(1,)]


def test_another_table_disturbs_nobody(pair: Pair) -> None:
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    here.execute("CREATE TABLE u (a int PRIMARY KEY)")
    there.execute("BEGIN")
    there.execute("INSERT INTO t VALUES (1)")
    assert there.execute("SELECT count(*) FROM t").fetchone() == (1,)
    here.execute("ALTER TABLE u ADD b int")
    there.execute("INSERT INTO t VALUES (2)")
    with pytest.raises(psycopg.errors.SerializationFailure) as caught:
        there.execute("SELECT * FROM u")
    assert refused(caught.value)
    there.execute("ROLLBACK")
    there.execute("INSERT INTO u VALUES (1, 2)")


def test_idle_in_transaction_loses_its_connection(pair: Pair) -> None:
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    holder = another(there)
    holder.execute("BEGIN")
    holder.execute("SELECT * FROM t")
    started = time.monotonic()
    here.execute("ALTER TABLE t ADD b int")
    assert time.monotonic() - started < SOON_S
    with pytest.raises(psycopg.Error) as caught:
        holder.execute("SELECT * FROM t")
    assert refused(caught.value), caught.value
    assert holder.broken
    assert there.execute("SELECT a, b FROM t").fetchall() == []


def test_a_running_statement_is_ended(pair: Pair) -> None:
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    holder = another(there)
    thread, failed = in_background(
        lambda: holder.execute("SELECT count(*) FROM t, LATERAL (SELECT pg_sleep(30)) s,"
                               " (VALUES (1)) v UNION ALL SELECT 1 FROM pg_sleep(30)")
    )
    time.sleep(0.5)
    started = time.monotonic()
    here.execute("ALTER TABLE t ADD b int")
    assert time.monotonic() - started < SOON_S
    thread.join(SOON_S)
    assert len(failed) == 1 and refused(failed[0]), failed
    assert not holder.broken
    assert holder.execute("SELECT a, b FROM t").fetchall() == []
    holder.close()


def test_a_handler_does_not_keep_what_must_go(pair: Pair) -> None:
    """An error inside a block with EXCEPTION leaves the block's outside with its locks."""
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    holder = another(there)
    thread, failed = in_background(lambda: holder.execute(
        "DO $$ BEGIN PERFORM count(*) FROM t; BEGIN PERFORM pg_sleep(30);"
        " EXCEPTION WHEN OTHERS THEN PERFORM pg_sleep(30); END; END $$"
    ))
    time.sleep(0.5)
    started = time.monotonic()
    here.execute("ALTER TABLE t ADD b int")
    assert time.monotonic() - started < SOON_S
    thread.join(SOON_S)
    assert len(failed) == 1 and refused(failed[0]), failed
    assert holder.broken


def test_ddl_in_progress_gives_way(pair: Pair) -> None:
    """Both instances change one row of a catalog, or make objects of one name."""
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    for sql in ("GRANT SELECT ON t TO PUBLIC", "CREATE TABLE same (a int)",
                "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'"):
        holder = another(there)
        holder.execute("BEGIN")
        holder.execute(sql.encode())
        started = time.monotonic()
        here.execute(sql.encode())
        assert time.monotonic() - started < SOON_S
        with pytest.raises(psycopg.Error) as caught:
            holder.execute("COMMIT")
        assert caught.value.sqlstate == "40001", caught.value
        holder.close()
    assert not differences(here, there)


def test_ddl_on_what_changed_under_it_is_refused(pair: Pair) -> None:
    """No lock protects a schema or a function from a change that comes from elsewhere."""
    here, there = pair
    here.execute("CREATE SCHEMA s")
    there.execute("BEGIN")
    there.execute("CREATE TABLE s.t (a int)")
    here.execute("DROP SCHEMA s")
    with pytest.raises(psycopg.errors.SerializationFailure) as caught:
        there.execute("COMMIT")
    assert refused(caught.value)
    assert not differences(here, there)


def test_both_change_the_schema_all_the_time(pair: Pair) -> None:
    counts = [0, 0]
    stopped = time.monotonic() + 6
    errors: list[str] = []

    def work(which: int) -> None:
        connection = another(pair[which])
        number = 0
        while time.monotonic() < stopped:
            number += 1
            try:
                connection.execute(f"CREATE TABLE w{which}_{number} (a int PRIMARY KEY)".encode())
                connection.execute(f"ALTER TABLE w{which}_{number} ADD b int".encode())
                counts[which] += 1
            except psycopg.errors.SerializationFailure as error:
                errors.append(str(error))
        connection.close()

    running = [in_background(lambda which=which: work(which)) for which in (0, 1)]  # type: ignore[misc]
    for thread, _ in running:
        thread.join()
    assert not running[0][1] and not running[1][1], running
    assert min(counts) > 3, (counts, errors[:3])
    assert not differences(*pair)
