"""kill -9 of anything in the middle of a rewrite, and two instances that both write."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import psycopg
import pytest

from tests.crash.processes import Embedded
from tests.jobs.tables import Session, Writers, compare, connect, one, wait_for
from tests.jobs.test_kill import free_port

ROWS = 30_000
FEWER = 6_000
ALTER = "ALTER TABLE k ALTER a TYPE bigint, ADD s bigserial, ADD w uuid DEFAULT gen_random_uuid()"


RANDOM = random.Random(5)
"""Writers of two instances would do the same with numbers of their own."""


def work(session: Session, rng: random.Random) -> None:
    """Each row says twice what it is: as a number that is rewritten, and as text."""
    id_, a = rng.randrange(1, ROWS + 500), rng.randrange(100_000)
    session.execute(
        rng.choice(
            [
                "UPDATE k SET a = %(a)s, said = %(a)s::int::text WHERE id = %(id)s",
                "DELETE FROM k WHERE id = %(id)s",
                "INSERT INTO k (id, a, said) VALUES (%(id)s, %(a)s, %(a)s::int::text)"
                " ON CONFLICT (id) DO UPDATE SET a = excluded.a, said = excluded.said",
            ]
        ),
        {"id": id_, "a": a},
    )


def fill(dsn: str, rows: int = ROWS) -> None:
    with connect(dsn) as session:
        session.execute("CREATE TABLE k (id int PRIMARY KEY, a int, said text)")
        session.execute("CREATE INDEX k_a ON k (a)")
        session.execute(
            f"INSERT INTO k SELECT i, i % 100, i % 100 FROM generate_series(1, {rows}) i".encode()
        )


def check(dsn: str) -> None:
    """The new shape, every row as its writer left it, index and sequence with it."""
    with connect(dsn) as session:
        assert one(session, "SELECT pg_typeof(a)::text FROM k LIMIT 1") == "bigint"
        assert one(session, "SELECT count(*) FROM k WHERE a::text <> said") == 0
        compare(session, "k", "k_a", "a")
        rows = one(session, "SELECT count(*) FROM k WHERE s IS NOT NULL AND w IS NOT NULL")
        assert one(session, "SELECT count(DISTINCT s) FROM k") == rows
        assert one(session, "SELECT count(DISTINCT w) FROM k") == rows
        assert one(session, "SELECT count(*) FROM k") == rows
        highest = one(session, "SELECT max(s) FROM k")
        assert one(session, "SELECT nextval('k_s_seq')") > highest
        hidden = "SELECT count(*) FROM pg_class WHERE relnamespace = 'pg_meridian'::regnamespace"
        assert one(session, hidden) == 0


class Wreck:
    """A cluster, and a job that is looked at through all kills."""

    def __init__(self, directory: Path) -> None:
        self.embedded = Embedded(directory, "--port", str(free_port()))
        self.embedded.start()
        fill(self.embedded.dsn)

    def job(self) -> tuple[str, int]:
        """Status and rows done of the only job; nothing while nobody answers."""
        try:
            self.embedded.ensure_running()
            with psycopg.connect(self.embedded.dsn, connect_timeout=5) as session:
                row = session.execute("SELECT status, rows_done FROM sys.jobs").fetchone()
                return row or ("", 0)
        except (AssertionError, psycopg.Error):
            return "", 0

    def ended(self) -> bool:
        return self.job()[0] in ("completed", "failed", "cancelled")


def alter(dsn: str) -> threading.Thread:
    """The statement in a session that may be lost."""

    def run() -> None:
        for _ in range(50):
            try:
                with psycopg.connect(dsn, autocommit=True) as session:
                    session.execute("SET meridian.rewrite_online_rows = 100")
                    session.execute(ALTER)
                return
            except psycopg.errors.SerializationFailure:
                continue
            except psycopg.Error:
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.nightly
def test_killed_again_and_again(tmp_path: Path) -> None:
    wreck = Wreck(tmp_path / "data")
    try:
        with Writers(wreck.embedded.dsn, 2, work) as writers:
            alter(wreck.embedded.dsn)
            seen, killed = 0, []
            for role in ("backend", "data-plane", "postmaster", "everything", "supervisor"):
                wait_for(lambda: wreck.ended() or wreck.job()[1] > seen, 60)
                if wreck.ended():
                    break
                seen = wreck.job()[1]
                wreck.embedded.kill(role)
                killed.append(role)
            wait_for(wreck.ended, 60)
            assert len(killed) >= 3, killed
        assert writers.unexpected == []
        status, rows = wreck.job()
        assert status == "completed"
        assert rows < 2 * ROWS, "it began anew"
        check(wreck.embedded.dsn)
        verify = wreck.embedded.run_cli("verify")
        assert verify.returncode == 0, verify.stdout + verify.stderr
    finally:
        wreck.embedded.stop()


class Timed:
    """How long each transaction of a writer took, by when it began."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, float]] = []

    def work(self, session: Session, rng: random.Random) -> None:
        began = time.monotonic()
        work(session, RANDOM)
        self.taken.append((began, time.monotonic() - began))

    def p99_ms(self, since: float, until: float) -> float:
        taken = sorted(took for began, took in self.taken if since <= began < until)
        return 1000 * taken[int(len(taken) * 0.99)] if taken else 0.0


@pytest.mark.parametrize("kill", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_writers_on_both_instances(tmp_path: Path, kill: bool) -> None:
    embedded = Embedded(tmp_path / "data", "--query-hosts", "2")
    embedded.start()
    first, second = embedded.dsns
    timed = Timed()
    try:
        fill(first, ROWS if kill else FEWER)
        with Writers(first, 2, timed.work) as here, Writers(second, 2, timed.work) as there:
            wait_for(lambda: here.done > 100 and there.done > 100)
            began = time.monotonic()
            thread = alter(first)
            if kill:
                with connect(second) as other:
                    query = "SELECT coalesce(max(rows_done), 0) FROM sys.jobs"
                    wait_for(lambda: one(other, query) > 0)
                    os.kill(embedded.postmaster(1), signal.SIGKILL)
            thread.join(60)
            with connect(second) as other:
                query = "SELECT count(*) FROM sys.jobs WHERE status = 'completed'"
                wait_for(lambda: one(other, query) == 1, 60)
            ended = time.monotonic()
            done = there.done
            wait_for(lambda: there.done > done + 100)
        assert here.unexpected + there.unexpected == []
        print(
            f"p99 of writers: {timed.p99_ms(0, began):.0f} ms before,"
            f" {timed.p99_ms(began, ended):.0f} ms in {ended - began:.1f} s of rewrite; refused",
            {key: here.refused.get(key, 0) + there.refused.get(key, 0) for key in ("40001",)},
        )
        for dsn in embedded.dsns:
            check(dsn)
        verify = embedded.run_cli("verify")
        assert verify.returncode == 0, verify.stdout + verify.stderr
    finally:
        embedded.stop()
