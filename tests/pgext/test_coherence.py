"""Two instances: what one changes in the catalog, and what sessions of the other see."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.pgext.instances import Pair, emptied, superuser, two_instances
from tests.pgext.test_catdelta import differences

FAIL = (
    "CREATE FUNCTION pg_temp.fail() RETURNS void LANGUAGE C"
    " AS 'meridian', 'mer_debug_fail_after_commit'"
)

Connection = psycopg.Connection[Any]
SOON_S = 5.0


@pytest.fixture(scope="module")
def dsns() -> Iterator[tuple[str, str]]:
    with two_instances() as both:
        yield both


@pytest.fixture
def pair(dsns: tuple[str, str]) -> Iterator[Pair]:
    with emptied(dsns) as both:
        yield both


def another(connection: Connection) -> Connection:
    info = connection.info
    return psycopg.connect(
        f"host={info.host} port={info.port} user={info.user} dbname={info.dbname}"
        f" password={info.password}",
        autocommit=True,
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
        rows = (
            pair[which]
            .execute("SELECT oid::int8 FROM pg_class WHERE relname ~ %s", (f"^t{number}",))
            .fetchall()
        )
        oids[which] |= {row[0] for row in rows}
    here.execute("CREATE TEMP TABLE own (a int)")
    there.execute("CREATE TEMP TABLE own (a int)")
    own = [c.execute("SELECT 'own'::regclass::oid::int8").fetchone() for c in pair]
    assert own[0] != own[1]
    assert max(oids[0]) < min(oids[1]) or max(oids[1]) < min(oids[0])
    assert min(oids[0] | oids[1]) >= 1 << 20


def test_one_statement_may_make_thousands_of_objects(pair: Pair) -> None:
    """More object ids than a range has left; in all, more than a range holds."""
    here, _there = pair
    labels = [f"'l{n}'" for n in range(6_145)]
    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        here.execute(f"CREATE TYPE many AS ENUM ({', '.join(labels)})".encode())
    here.execute("BEGIN")
    here.execute(f"CREATE TYPE many AS ENUM ({', '.join(labels[1:])})".encode())
    columns = ", ".join(f"c{n} int NOT NULL DEFAULT {n}" for n in range(1_300))
    here.execute(f"CREATE TABLE wide ({columns})".encode())
    here.execute(f"CREATE TABLE wide2 ({columns})".encode())
    here.execute("COMMIT")
    for session in pair:
        found = session.execute("SELECT 'l6144'::many > 'l6143', count(*) FROM wide2").fetchone()
        assert found == (True, 0)


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


def leaves(pair: Pair, holder: Connection, before: list[str], number: int) -> None:
    """It is idle in a transaction that has locked `t` when a schema change needs that."""
    here, there = pair
    holder.execute("BEGIN")
    holder.execute("SELECT * FROM t")
    for statement in before:
        holder.execute(statement.encode())
    started = time.monotonic()
    here.execute(f"ALTER TABLE t ADD b{number} int".encode())
    assert time.monotonic() - started < SOON_S
    assert there.execute(f"SELECT b{number} FROM t".encode()).fetchall() == []


def test_idle_in_transaction_hears_of_it_at_the_next_statement(pair: Pair) -> None:
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY); CREATE TABLE u (a int)")
    holder = another(there)
    holder.prepare_threshold = there.prepare_threshold = None
    situations = [
        [],
        ["INSERT INTO t VALUES (1)", "INSERT INTO u VALUES (1)"],
        ["SAVEPOINT s", "INSERT INTO u VALUES (1)", "SAVEPOINT s2", "SELECT * FROM u"],
        ["DECLARE c CURSOR FOR SELECT * FROM generate_series(1, 5)", "FETCH 2 FROM c"],
        ["CREATE TEMP TABLE own (a int)", "SET LOCAL work_mem = '5MB'", "LISTEN x"],
        ["SAVEPOINT s", "SELECT pg_advisory_xact_lock(7)", "CREATE TABLE half (a int)"],
    ]
    nexts = [
        "SELECT 1",
        "SELECT * FROM t",
        "COMMIT",
        "ROLLBACK TO s",
        "FETCH c",
        "COMMIT AND CHAIN",
    ]
    number = 0
    for before in situations:
        for statement in nexts:
            number += 1
            leaves(pair, holder, before, number)
            with pytest.raises(psycopg.errors.SerializationFailure) as caught:
                holder.execute(statement.encode())
            assert refused(caught.value), (before, statement)
            ended = holder.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            assert ended == (statement.startswith("COMMIT"))
            holder.execute("ROLLBACK")
            assert there.execute("SELECT count(*) FROM u").fetchone() == (0,)
            assert here.execute("SELECT pg_try_advisory_xact_lock(7)").fetchone() == (True,)
    leaves(pair, holder, [], 1000)
    holder.execute("ROLLBACK")
    assert holder.execute("SHOW work_mem").fetchone() == ("4MB",)
    leaves(pair, holder, [], 1001)
    with pytest.raises(psycopg.errors.SerializationFailure):
        holder.execute("SELECT %s::int", (1,), prepare=True)
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        holder.execute("SELECT 1")
    assert holder.execute("COMMIT").statusmessage == "ROLLBACK"
    for count in range(2):
        holder.execute("BEGIN; INSERT INTO u VALUES (5); COMMIT")
        assert here.execute("SELECT count(*) FROM u").fetchone() == (count + 1,)
    assert not differences(here, there)
    holder.close()


def altered_under(pair: Pair, statement: str) -> Connection:
    """`t` gets a column while this statement uses it; the session whose statement that ended."""
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    holder = another(there)
    thread, failed = in_background(lambda: holder.execute(statement.encode()))
    time.sleep(0.5)
    started = time.monotonic()
    here.execute("ALTER TABLE t ADD b int")
    assert time.monotonic() - started < SOON_S
    thread.join(SOON_S)
    assert len(failed) == 1 and refused(failed[0]), failed
    return holder


def test_a_running_statement_is_ended(pair: Pair) -> None:
    holder = altered_under(
        pair,
        "SELECT count(*) FROM t, LATERAL (SELECT pg_sleep(30)) s,"
        " (VALUES (1)) v UNION ALL SELECT 1 FROM pg_sleep(30)",
    )
    assert not holder.broken
    assert holder.execute("SELECT a, b FROM t").fetchall() == []
    holder.close()


def test_a_handler_does_not_keep_what_must_go(pair: Pair) -> None:
    """An error inside a block with EXCEPTION leaves the block's outside with its locks."""
    holder = altered_under(
        pair,
        "DO $$ BEGIN PERFORM count(*) FROM t; BEGIN PERFORM pg_sleep(30);"
        " EXCEPTION WHEN OTHERS THEN PERFORM pg_sleep(30); END; END $$",
    )
    assert holder.broken


def test_ddl_in_progress_gives_way(pair: Pair) -> None:
    """Both instances change one row of a catalog, or make objects of one name."""
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    for sql in (
        "GRANT SELECT ON t TO PUBLIC",
        "CREATE TABLE same (a int)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ):
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


def test_what_an_instance_believes_a_table_lacks(pair: Pair) -> None:
    """ANALYZE resets flags in place, where it runs: no trigger, rule or index is left."""
    here, there = pair
    here.execute("CREATE TABLE t (a int, b int)")
    here.execute(
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.b = 7; RETURN NEW; END $$"
    )
    for cleaner, maker in (pair, (there, here)):
        maker.execute("CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()")
        maker.execute("CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING")
        maker.execute("CREATE INDEX i ON t (a)")
        maker.execute("DROP TRIGGER g ON t; DROP RULE r ON t; DROP INDEX i")
        cleaner.execute("ANALYZE t")
        maker.execute("CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()")
        maker.execute("CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING")
        maker.execute("CREATE INDEX i ON t (a)")
        for session in pair:
            session.execute("INSERT INTO t VALUES (1, 1)")
            session.execute("DELETE FROM t")
        rows = cleaner.execute("SELECT b FROM t WHERE a = 1").fetchall()
        assert rows and set(rows) == {(7,)}
        maker.execute("DROP TRIGGER g ON t; DROP RULE r ON t; DROP INDEX i")
        maker.execute("TRUNCATE t")


def test_a_session_forgets_statistics_and_names_of_constraints(pair: Pair) -> None:
    """Only their own catalogs have rows of them; the table's description has them, too."""
    here, there = pair
    here.execute("CREATE TABLE t (a int, b int, CONSTRAINT k CHECK (a > 0))")
    here.execute("CREATE STATISTICS x ON a, b FROM t")
    there.execute("SELECT count(*) FROM t WHERE a = 1 AND b = 1")
    here.execute("DROP STATISTICS x")
    there.execute("SELECT count(*) FROM t WHERE a = 1 AND b = 1")
    with pytest.raises(psycopg.errors.CheckViolation, match='"k"'):
        there.execute("INSERT INTO t VALUES (-1)")
    here.execute("ALTER TABLE t RENAME CONSTRAINT k TO l")
    with pytest.raises(psycopg.errors.CheckViolation, match='"l"'):
        there.execute("INSERT INTO t VALUES (-1)")


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


@contextlib.contextmanager
def lagging(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """The instance cannot apply anything while this lasts, or until the session ends."""
    with superuser(dsn) as holder:
        holder.execute("BEGIN")
        holder.execute("LOCK TABLE meridian.state IN SHARE UPDATE EXCLUSIVE MODE")
        yield holder


def test_the_first_statement_waits_for_its_instance(pair: Pair, dsns: tuple[str, str]) -> None:
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    there.execute("SELECT * FROM t")
    for change, sql in (
        ("CREATE TABLE other (a int)", "SELECT count(*) FROM t"),
        ("ALTER TABLE other ADD b int", "SELECT count(*) FROM t WHERE a = 1"),
        ("ALTER TABLE other ADD c int", "INSERT INTO t VALUES (1)"),
        ("ALTER TABLE other ADD d int", "UPDATE t SET a = 2"),
        ("ALTER TABLE other ADD e int", "SELECT count(*), max(a) FROM t"),
    ):
        with lagging(dsns[1]) as holder:
            maker, failed = in_background(lambda change=change: another(here).execute(change))
            time.sleep(0.3)
            reader, errors = in_background(lambda sql=sql: there.execute(sql))
            time.sleep(0.3)
            assert reader.is_alive(), sql
            holder.execute("COMMIT")
            reader.join(SOON_S)
            maker.join(SOON_S)
            assert not errors and not failed, (sql, errors, failed)
    assert there.execute("SELECT a FROM t").fetchall() == [(2,)]


def test_an_instance_that_does_not_catch_up_answers_nothing(
    pair: Pair, dsns: tuple[str, str]
) -> None:
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    with lagging(dsns[1]):
        here.execute("CREATE TABLE later (a int)")
        for sql in ("SELECT * FROM t", "UPDATE t SET a = 1"):
            with pytest.raises(psycopg.errors.SerializationFailure) as caught:
                there.execute(sql.encode())
            assert refused(caught.value)
        # Nor can it make a version of its own in the place of the one it lacks.
        there.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            there.execute("CREATE TABLE other (a int)")
    assert there.execute("SELECT * FROM t").fetchall() == []
    assert not differences(here, there)


def test_what_is_global_ends_the_statement_that_waited(pair: Pair, dsns: tuple[str, str]) -> None:
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    here.execute("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    there.execute("SELECT f() FROM t")
    with lagging(dsns[1]) as holder:
        maker, failed = in_background(
            lambda: another(here).execute(
                "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'"
            )
        )
        time.sleep(0.3)
        reader, errors = in_background(lambda: there.execute("SELECT f() FROM t"))
        time.sleep(0.3)
        holder.execute("COMMIT")
        reader.join(SOON_S)
        maker.join(SOON_S)
    assert not failed and len(errors) == 1 and refused(errors[0]), (failed, errors)
    there.execute("INSERT INTO t VALUES (1)")
    assert there.execute("SELECT f() FROM t").fetchall() == [(2,)]


def test_who_waits_for_apply_does_not_keep_it_waiting(pair: Pair, dsns: tuple[str, str]) -> None:
    """The statement has its table locked, whose change it waits for."""
    here, there = pair
    here.execute("CREATE TABLE t (a int PRIMARY KEY)")
    there.execute("SELECT * FROM t")
    with lagging(dsns[1]) as holder:
        maker, failed = in_background(lambda: another(here).execute("ALTER TABLE t ADD b int"))
        time.sleep(0.3)
        reader, errors = in_background(lambda: there.execute("SELECT * FROM t"))
        time.sleep(0.3)
        started = time.monotonic()
        holder.execute("COMMIT")
        reader.join(SOON_S)
        assert time.monotonic() - started < 0.5
        maker.join(SOON_S)
    assert not failed and len(errors) == 1 and refused(errors[0]), (failed, errors)


def test_a_plan_without_requests_is_no_way_around(pair: Pair) -> None:
    """As of its tau_start there are rows that today's catalog says cannot be."""
    here, there = pair
    here.execute("CREATE TABLE other (a int)")
    here.execute("CREATE TABLE t (a int PRIMARY KEY, b int)")
    here.execute("INSERT INTO t VALUES (1, NULL)")
    here.execute("CREATE TABLE p (a int) PARTITION BY LIST (a)")
    here.execute("CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1)")
    here.execute("INSERT INTO p VALUES (1)")
    for change, sql in (
        (
            ["UPDATE t SET b = 1", "ALTER TABLE t ALTER b SET NOT NULL"],
            "SELECT count(*) FROM t WHERE b IS NULL",
        ),
        (["ALTER TABLE p DETACH PARTITION p_1"], "SELECT count(*) FROM p"),
    ):
        for reader in (here, there):
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM other")
        changer = another(here)
        for statement in change:
            changer.execute(statement.encode())
        changer.close()
        for reader in (here, there):
            with pytest.raises(psycopg.errors.SerializationFailure) as caught:
                reader.execute(sql.encode())
            assert refused(caught.value)
            reader.execute("ROLLBACK")
            assert reader.execute(sql.encode()).fetchone() == (0,)


def test_a_local_failure_after_the_commit_is_repaired(pair: Pair, dsns: tuple[str, str]) -> None:
    """The journal has the schema change, the catalog of the instance that made it does not."""
    here, there = pair
    with superuser(dsns[0]) as maker:
        maker.execute("SET meridian.maintenance = on")
        maker.execute(FAIL)
        maker.execute("RESET meridian.maintenance")
        maker.execute("SELECT pg_temp.fail()")
        maker.execute("SET ROLE admin")
        with pytest.raises(psycopg.Error) as caught:
            maker.execute("CREATE TABLE public.t (a int PRIMARY KEY)")
        assert caught.value.sqlstate == "08007", caught.value
    deadline = time.monotonic() + SOON_S
    while not here.execute("SELECT FROM pg_class WHERE relname = 't'").fetchall():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    here.execute("INSERT INTO t VALUES (1)")
    assert there.execute("SELECT * FROM t").fetchall() == [(1,)]
    here.execute("CREATE TABLE u (a int)")
    assert not differences(here, there)


def test_more_objects_than_a_range_has_numbers(pair: Pair) -> None:
    here, there = pair
    labels = ", ".join(f"'l{n}'" for n in range(9000))
    with pytest.raises(psycopg.errors.ProgramLimitExceeded) as caught:
        here.execute(f"CREATE TYPE many AS ENUM ({labels})".encode())
    assert caught.value.diag.message_hint
    for number in range(3):
        here.execute(f"CREATE TABLE t{number} (a serial PRIMARY KEY)".encode())
        there.execute(f"CREATE TABLE u{number} (a serial PRIMARY KEY)".encode())
    assert not differences(here, there)


class Writers:
    """Sessions that insert rows all the time, one at each instance; 40001 is tried again."""

    def __init__(self, pair: Pair, sql: str) -> None:
        self.stopped = threading.Event()
        self.written = [0, 0]
        self.retried = [0, 0]
        self.running = [
            in_background(lambda which=which: self._write(which, another(pair[which]), sql))
            for which in (0, 1)
        ]

    def _write(self, which: int, session: Connection, sql: str) -> None:
        with session:
            number = 0
            while not self.stopped.is_set():
                number += 1
                try:
                    session.execute(sql.format(a=2 * number + which).encode())
                    self.written[which] += 1
                except psycopg.errors.SerializationFailure:
                    self.retried[which] += 1

    def stop(self) -> None:
        self.stopped.set()
        for thread, failed in self.running:
            thread.join()
            assert not failed, failed


def test_validation_gets_through_under_writers(pair: Pair) -> None:
    """What it says of all rows is true for those, too, that were written meanwhile."""
    here, there = pair
    here.execute("CREATE TABLE parent (a int PRIMARY KEY)")
    here.execute("INSERT INTO parent VALUES (1)")
    here.execute("CREATE TABLE t (a int PRIMARY KEY, b int, c int DEFAULT 1, d int DEFAULT 1)")
    writers = Writers(pair, "INSERT INTO t (a, b) VALUES ({a}, {a})")
    tried = []
    for number, sql in enumerate(
        (
            "ALTER TABLE t ADD CONSTRAINT k CHECK (a > 0)",
            "ALTER TABLE t ALTER b SET NOT NULL",
            "ALTER TABLE t ADD UNIQUE (b)",
            "ALTER TABLE t ALTER b TYPE bigint",
            "ALTER TABLE t ADD FOREIGN KEY (c) REFERENCES parent",
            "CREATE INDEX ON t (c)",
            "ALTER TABLE t ADD e float8 DEFAULT random()",
            "ALTER TABLE t ADD CONSTRAINT l CHECK (c > 0) NOT VALID",
            "ALTER TABLE t VALIDATE CONSTRAINT l",
        )
    ):
        time.sleep(0.3)
        for attempt in range(1, 20):
            try:
                pair[number % 2].execute(sql.encode())
                break
            except psycopg.errors.SerializationFailure:
                continue
        tried.append(attempt)
    time.sleep(0.3)
    writers.stop()
    print(f"attempts {tried}, rows {writers.written}, tried again {writers.retried}")
    assert max(tried) <= 3, tried
    assert min(writers.written) > 50, writers.written
    for session in pair:
        assert (
            session.execute(
                "SELECT count(*), count(DISTINCT b), count(e) FROM t WHERE a > 0 AND b IS NOT NULL"
            ).fetchone()
            == (sum(writers.written),) * 3
        )
    assert not differences(here, there)
