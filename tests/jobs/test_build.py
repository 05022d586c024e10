"""Index builds while others write the same rows: afterwards the index is the table."""

from __future__ import annotations

import random
import threading

import psycopg
import pytest

from tests.conftest import Server
from tests.jobs.tables import (
    Session,
    Writers,
    compare,
    connect,
    indexes,
    invalid_indexes,
    one,
    verify,
    wait_for,
)

ROWS = 3000


def fill(session: Session, table: str, rows: int = ROWS) -> None:
    session.execute(
        f"CREATE TABLE {table} (id int PRIMARY KEY, a int, b text, n numeric, u int)".encode()
    )
    session.execute(
        f"INSERT INTO {table} SELECT i, i %% 97, 'b' || i %% 53, i / 10.0, i"
        f" FROM generate_series(1, %s) i".encode(),
        [rows],
    )


def writes(table: str) -> object:
    """All kinds of writes, of old and new rows; column u stays unique."""

    def work(session: Session, rng: random.Random) -> None:
        id_ = rng.randrange(1, 2 * ROWS)
        kind = rng.randrange(7)
        if kind == 0:
            sql = (
                f"INSERT INTO {table} VALUES ({id_}, {rng.randrange(97)}, 'new', 1.50, {id_})"
                " ON CONFLICT DO NOTHING"
            )
        elif kind == 1:
            sql = f"DELETE FROM {table} WHERE id = {id_}"
        elif kind == 2:
            sql = f"UPDATE {table} SET a = {rng.randrange(97)} WHERE id = {id_}"
        elif kind == 3:
            sql = f"UPDATE {table} SET b = b WHERE id = {id_}"
        elif kind == 4:
            sql = (
                f"UPDATE {table} SET n = n + 0.00, b = 'x' || a"
                f" WHERE id BETWEEN {id_} AND {id_ + 5}"
            )
        elif kind == 5:
            new = rng.randrange(1, 2 * ROWS)
            sql = (
                f"UPDATE {table} SET id = {new}, u = {new} WHERE id = {id_}"
                f" AND NOT EXISTS (SELECT FROM {table} WHERE id = {new})"
            )
        else:
            sql = f"UPDATE {table} SET u = -u WHERE id = {id_}"
        session.execute(sql.encode())

    return work


BUILDS = {
    "plain": ("CREATE INDEX {i} ON {t} (a)", "a", "true"),
    "several": ("CREATE INDEX {i} ON {t} (b DESC, a) INCLUDE (n)", "b, a, n", "true"),
    "expression": ("CREATE INDEX {i} ON {t} ((a + 1))", "a + 1", "true"),
    "partial": ("CREATE INDEX {i} ON {t} (a) WHERE a < 40", "a", "a < 40"),
    "numeric": ("CREATE INDEX {i} ON {t} (n)", "n", "true"),
    "unique": ("CREATE UNIQUE INDEX {i} ON {t} (u)", "u", "true"),
    "unique include": ("CREATE UNIQUE INDEX {i} ON {t} (u) INCLUDE (b, n)", "u, b, n", "true"),
    "concurrently": ("CREATE INDEX CONCURRENTLY {i} ON {t} (b)", "b", "true"),
    "nulls not distinct": (
        "CREATE UNIQUE INDEX {i} ON {t} (u, a) NULLS NOT DISTINCT",
        "u, a",
        "true",
    ),
}


@pytest.mark.parametrize("name", BUILDS)
def test_writers_on_all_rows(cluster: Server, name: str) -> None:
    sql, columns, where = BUILDS[name]
    table = "w_" + name.replace(" ", "_")
    index = table + "_i"
    with connect(cluster.dsn) as session:
        fill(session, table)
        with Writers(cluster.dsn, 3, writes(table)) as writers:
            wait_for(lambda: writers.done > 50)
            session.execute(sql.format(i=index, t=table).encode())
            done = writers.done
            wait_for(lambda: writers.done > done + 50)
        assert writers.unexpected == []
        assert invalid_indexes(session, table) == []
        compare(session, table, index, columns, where)
        status = one(
            session, "SELECT status FROM sys.jobs WHERE object_name = %s", f"public.{index}"
        )
        assert status == "completed"
    assert cluster.directory is not None
    verify(cluster.directory)


def test_one_hot_row_does_not_hold_up_a_build(cluster: Server) -> None:
    def hot(session: Session, rng: random.Random) -> None:
        session.execute("UPDATE hot SET b = b || '.' WHERE id = 10")

    with connect(cluster.dsn) as session:
        fill(session, "hot", 300)
        with Writers(cluster.dsn, 4, hot) as writers:
            wait_for(lambda: writers.done > 20)
            session.execute("SET statement_timeout = '20s'")
            session.execute("CREATE INDEX hot_a ON hot (a)")
            session.execute("CREATE UNIQUE INDEX hot_u ON hot (u)")
        compare(session, "hot", "hot_a", "a")
        compare(session, "hot", "hot_u", "u")
        assert writers.unexpected == []


def test_a_row_that_is_always_locked_does_not_hold_up_a_build(cluster: Server) -> None:
    """FOR UPDATE counts as a write of the row, and leaves no entry."""

    def lock(session: Session, rng: random.Random) -> None:
        with session.transaction():
            session.execute("SELECT FROM locked WHERE id BETWEEN 10 AND 30 FOR UPDATE")

    with connect(cluster.dsn) as session:
        fill(session, "locked", 300)
        with Writers(cluster.dsn, 4, lock) as writers:
            wait_for(lambda: writers.done > 20)
            session.execute("SET statement_timeout = '30s'")
            session.execute("CREATE INDEX locked_a ON locked (a)")
            session.execute("CREATE UNIQUE INDEX locked_u ON locked (u)")
        compare(session, "locked", "locked_a", "a")
        assert writers.unexpected == []


def test_two_builds_at_once(cluster: Server) -> None:
    with connect(cluster.dsn) as session, connect(cluster.dsn) as other:
        fill(session, "two")
        with Writers(cluster.dsn, 2, writes("two")) as writers:
            thread = threading.Thread(target=other.execute, args=["CREATE INDEX two_a ON two (a)"])
            thread.start()
            session.execute("CREATE INDEX two_b ON two (b)")
            thread.join()
        assert writers.unexpected == []
        compare(session, "two", "two_a", "a")
        compare(session, "two", "two_b", "b")


def test_partitioned_table(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        session.execute(
            "CREATE TABLE parts (id int, a int, PRIMARY KEY (id)) PARTITION BY RANGE (id)"
        )
        for n in range(3):
            session.execute(
                f"CREATE TABLE parts_{n} PARTITION OF parts FOR VALUES"
                f" FROM ({n * 1000}) TO ({n * 1000 + 1000})".encode()
            )
        session.execute("INSERT INTO parts SELECT i, i % 7 FROM generate_series(0, 2999) i")
        session.execute("CREATE INDEX parts_a ON parts (a)")
        assert invalid_indexes(session, "parts") == []
        for n in range(3):
            assert invalid_indexes(session, f"parts_{n}") == []
            compare(session, f"parts_{n}", f"parts_{n}_a_idx", "a")
        assert (
            one(session, "SELECT rows_done FROM sys.jobs WHERE object_name = 'public.parts_a'")
            == 3000
        )


def test_small_tables_and_transaction_blocks_need_no_job(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        fill(session, "blocks", 50)
        before = one(session, "SELECT count(*) FROM sys.jobs")
        session.execute("CREATE TABLE empty (id int PRIMARY KEY, a int)")
        session.execute("CREATE INDEX ON empty (a)")
        with session.transaction():
            session.execute("CREATE INDEX blocks_a ON blocks (a)")
        session.execute("SET meridian.index_job_rows = 50")
        session.execute("CREATE INDEX blocks_b ON blocks (b)")
        session.execute("CREATE INDEX IF NOT EXISTS blocks_b ON blocks (b)")
        session.execute(
            "DO $$BEGIN SET LOCAL meridian.index_job_rows = 0;"
            " EXECUTE 'CREATE INDEX blocks_n ON blocks (n)'; END$$"
        )
        assert one(session, "SELECT count(*) FROM sys.jobs") == before
        for index, column in (("blocks_a", "a"), ("blocks_b", "b"), ("blocks_n", "n")):
            compare(session, "blocks", index, column)


def test_a_rewrite_meanwhile_builds_the_index(cluster: Server) -> None:
    with connect(cluster.dsn) as session, connect(cluster.dsn) as other:
        fill(session, "rewritten")
        job = one(session, "CREATE INDEX ASYNC ON rewritten (a)")
        other.execute("ALTER TABLE rewritten ALTER n TYPE float8")
        session.execute(f"CALL sys.wait_for_job('{job}')".encode())
        assert invalid_indexes(session, "rewritten") == []
        compare(session, "rewritten", "rewritten_a_idx", "a")


def test_truncate_meanwhile(cluster: Server) -> None:
    with connect(cluster.dsn) as session, connect(cluster.dsn) as other:
        fill(session, "truncated")
        job = one(session, "CREATE INDEX ASYNC ON truncated (a)")
        other.execute("TRUNCATE truncated")
        other.execute("INSERT INTO truncated (id, a) VALUES (1, 1)")
        session.execute(f"CALL sys.wait_for_job('{job}')".encode())
        assert compare(session, "truncated", "truncated_a_idx", "a") == 1


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE INDEX ASYNC ON said (a)",
        "create unique index async on said (u)",
        "CREATE INDEX said_x ON said (b) WITH (async)",
        "CREATE INDEX said_y ON said (b) WITH (async = true)",
    ],
)
def test_async_returns_the_id_of_the_job(cluster: Server, sql: str) -> None:
    with connect(cluster.dsn) as session:
        session.execute("DROP TABLE IF EXISTS said")
        fill(session, "said")
        notices: list[str | None] = []
        session.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        job = one(session, sql)
        assert notices == [f"job_id {job}"]
        assert len(job) == 26
        session.execute(f"CALL sys.wait_for_job('{job}')".encode())
        assert one(session, "SELECT status FROM sys.jobs WHERE job_id = %s", job) == "completed"
        assert len(indexes(session, "said")) == 2
        assert "async" not in indexes(session, "said")


def test_quoted_async_is_a_name(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        fill(session, "quoted")
        session.execute('CREATE INDEX "async" ON quoted (a)')
        assert indexes(session, "quoted") == ["async", "quoted_pkey"]


def test_async_inside_a_transaction_starts_at_its_commit(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        fill(session, "inside", 200)
        with session.transaction():
            session.execute(
                "INSERT INTO inside (id, a) SELECT i, i FROM generate_series(501, 600) i"
            )
            job = one(session, "CREATE INDEX ASYNC ON inside (a)")
            session.execute(
                "INSERT INTO inside (id, a) SELECT i, i FROM generate_series(601, 700) i"
            )
            session.execute("UPDATE inside SET b = 'z' WHERE id < 10")
        session.execute(f"CALL sys.wait_for_job('{job}')".encode())
        assert compare(session, "inside", "inside_a_idx", "a") == 400
        with session.transaction(force_rollback=True):
            gone = one(session, "CREATE INDEX ASYNC ON inside (b)")
        with pytest.raises(psycopg.errors.UndefinedObject):
            session.execute(f"CALL sys.wait_for_job('{gone}')".encode())


def test_an_older_snapshot_never_sees_half_an_index(cluster: Server) -> None:
    """One from before the index, one from its build, both used once it is valid."""
    with (
        connect(cluster.dsn) as session,
        psycopg.connect(cluster.dsn) as holder,
        psycopg.connect(cluster.dsn) as before,
        psycopg.connect(cluster.dsn) as during,
    ):
        fill(session, "old")
        session.execute("CREATE TABLE elsewhere (id int PRIMARY KEY)")
        before.execute("SELECT count(*) FROM elsewhere")
        holder.execute("LOCK TABLE old IN SHARE MODE")
        job = one(session, "CREATE INDEX ASYNC ON old (a)")
        during.execute("SELECT count(*) FROM elsewhere")
        holder.rollback()
        session.execute(f"CALL sys.wait_for_job('{job}')".encode())
        for transaction in (before, during):
            try:
                transaction.execute("SET LOCAL enable_seqscan = off")
                row = transaction.execute("SELECT count(*) FROM old WHERE a = 5").fetchone()
                assert row == (31,)
            except psycopg.errors.SerializationFailure:
                pass
        session.execute("SET enable_seqscan = off")
        assert one(session, "SELECT count(*) FROM old WHERE a = 5") == 31
