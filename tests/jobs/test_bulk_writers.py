"""Jobs end although sessions change thousands of rows per statement and never pause."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from itertools import count

import psycopg
import pytest

from tests.conftest import Server
from tests.jobs.tables import Session, Writers, compare, connect, one, verify, wait_for

ROWS = 4000
HIDDEN = "SELECT count(*) FROM pg_class WHERE relnamespace = 'pg_meridian'::regnamespace"


def make(session: Session) -> None:
    session.execute("DROP TABLE IF EXISTS w")
    session.execute("CREATE TABLE w (id bigint PRIMARY KEY, a int, b text)")
    session.execute(
        f"INSERT INTO w SELECT i, i, 'r' || i FROM generate_series(1, {ROWS}) i".encode()
    )


def updating(part: int) -> Callable[[Session, random.Random], None]:
    """Changes one half of the rows: the next writer does not lose against it."""

    def work(session: Session, rng: random.Random) -> None:
        session.execute("UPDATE w SET a = a + 1 WHERE id %% 2 = %s AND id <= 4000", [part])

    return work


def appending(rows: int) -> Callable[[Session, random.Random], None]:
    """Adds rows behind all others."""
    numbers = count(1)

    def work(session: Session, rng: random.Random) -> None:
        first = next(numbers) * rows + 1_000_000
        session.execute(
            "INSERT INTO w SELECT i, i %% 1000, 'n' FROM generate_series(%s, %s) i",
            [first, first + rows - 1],
        )

    return work


def ended(session: Session, sql: str, seconds: float) -> psycopg.Error | None:
    """Runs it; it ends within this time."""
    error: list[psycopg.Error] = []

    def run() -> None:
        try:
            session.execute(sql.encode())
        except psycopg.Error as raised:
            error.append(raised)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        session.cancel()
        thread.join()
        raise AssertionError(f"{sql} did not end")
    return error[0] if error else None


def test_a_rewrite_ends(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        make(session)
        session.execute("SET meridian.rewrite_online_rows = 100")
        with (
            Writers(cluster.dsn, 1, updating(0)) as even,
            Writers(cluster.dsn, 1, updating(1)) as odd,
            Writers(cluster.dsn, 1, appending(2000)) as adding,
        ):
            writers = [even, odd, adding]
            wait_for(lambda: all(w.done > 0 for w in writers))
            error = ended(session, "ALTER TABLE w ALTER a TYPE bigint", 90)
            done = [w.done for w in writers]
            print("done", done, "refused", [w.refused for w in writers])
            wait_for(lambda: all(w.done > n for w, n in zip(writers, done, strict=True)))
        assert error is None, error
        assert [w.unexpected for w in writers] == [[], [], []]
        assert one(session, HIDDEN) == 0
        assert one(session, "SELECT count(*) FROM w WHERE id > 1000000") == 2000 * adding.done
        assert one(session, "SELECT pg_typeof(a)::text FROM w LIMIT 1") == "bigint"


@pytest.mark.nightly
def test_an_index_build_ends(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        make(session)
        with (
            Writers(cluster.dsn, 1, updating(0)) as updates,
            Writers(cluster.dsn, 2, appending(2000)) as adding,
        ):
            wait_for(lambda: updates.done > 0 and adding.done > 0)
            error = ended(session, "CREATE INDEX w_a ON w (a)", 60)
            print("done", updates.done, adding.done)
        assert error is None, error
        assert updates.unexpected + adding.unexpected == []
        assert compare(session, "w", "w_a", "a") == ROWS + 2000 * adding.done
    assert cluster.directory is not None
    verify(cluster.directory)
