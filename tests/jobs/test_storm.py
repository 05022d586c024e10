"""Builds of all kinds, cancels, drops and kills in random order, under writers of two instances."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import psycopg
import pytest

from tests.crash.processes import Embedded
from tests.jobs.tables import Session, Writers, compare, connect, indexes, invalid_indexes, one

ROWS = 4000
KINDS = {
    "s_a": ("CREATE INDEX s_a ON s (a)", "a", "true"),
    "s_b": ("CREATE INDEX CONCURRENTLY s_b ON s (b, a) INCLUDE (u)", "b, a, u", "true"),
    "s_e": ("CREATE INDEX s_e ON s ((a % 10)) WHERE a > 50", "a % 10", "a > 50"),
    "s_u": ("CREATE UNIQUE INDEX s_u ON s (u)", "u", "true"),
}
PASSING = (
    psycopg.errors.SerializationFailure,
    psycopg.errors.DuplicateTable,
    psycopg.errors.UndefinedObject,
    psycopg.errors.QueryCanceled,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
)


def work(session: Session, rng: random.Random) -> None:
    id_, other = rng.randrange(1, 2 * ROWS), rng.randrange(1, 2 * ROWS)
    session.execute(
        rng.choice(
            [
                f"UPDATE s SET a = {rng.randrange(100)} WHERE id = {id_}",
                f"UPDATE s SET b = b || '.' WHERE id = {id_} AND length(b) < 20",
                f"UPDATE s SET u = {other} WHERE id = {id_} AND NOT EXISTS"
                f" (SELECT FROM s WHERE u = {other})",
                f"DELETE FROM s WHERE id = {id_}",
                f"INSERT INTO s SELECT {id_}, 1, 'n', {other} WHERE NOT EXISTS"
                f" (SELECT FROM s WHERE u = {other}) ON CONFLICT (id) DO NOTHING",
            ]
        ).encode()
    )


class Storm:
    """One thread that orders, cancels, drops and checks indexes."""

    def __init__(self, dsns: list[str], rng: random.Random) -> None:
        self.dsns = dsns
        self.rng = rng
        self.done: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    def turn(self) -> None:
        """One statement or two; whatever passes by itself is passed over."""
        try:
            with connect(self.rng.choice(self.dsns)) as session:
                session.execute("SET lock_timeout = '10s'")
                self._turn(session)
        except PASSING:
            self.count("passed over")
        except psycopg.errors.UniqueViolation:
            self.count("duplicates")
            with contextlib.suppress(psycopg.Error), connect(self.dsns[0]) as session:
                session.execute("DELETE FROM s x USING s y WHERE x.u = y.u AND x.id > y.id")
        except psycopg.OperationalError:
            self.count("lost")
            time.sleep(0.2)

    def _turn(self, session: Session) -> None:
        name = self.rng.choice(sorted(KINDS))
        sql, columns, where = KINDS[name]
        there = indexes(session, "s")
        if name in there and name not in invalid_indexes(session, "s"):
            compare(session, "s", name, columns, where)
            session.execute(f"DROP INDEX {name}".encode())
            self.count("dropped")
            return
        kind = self.rng.randrange(4)
        if kind == 0:
            job = one(
                session,
                sql.replace(" WHERE", " WITH (async) WHERE")
                if " WHERE" in sql
                else f"{sql} WITH (async)",
            )
            session.execute(f"CALL sys.cancel_job('{job}')".encode())
            self.count("cancelled")
        elif kind == 1:
            timer = threading.Timer(self.rng.uniform(0.01, 0.5), session.cancel)
            timer.start()
            try:
                session.execute(sql.encode())
            finally:
                timer.cancel()
                timer.join()
            self.count("built")
        else:
            session.execute(sql.encode())
            compare(session, "s", name, columns, where)
            self.count("built")


def ended(session: Session) -> bool:
    return (
        one(session, "SELECT count(*) FROM sys.jobs WHERE status IN ('submitted', 'processing')")
        == 0
    )


def storm(directory: Path, seconds: float, seed: int, kills: bool) -> None:
    rng = random.Random(seed)
    embedded = Embedded(directory, "--query-hosts", "2")
    embedded.start()
    try:
        with connect(embedded.dsns[0]) as session:
            session.execute("CREATE TABLE s (id int PRIMARY KEY, a int, b text, u int)")
            session.execute(
                "INSERT INTO s SELECT i, i %% 100, 'b', i FROM generate_series(1, %s) i", [ROWS]
            )
        made = Storm(embedded.dsns, rng)
        until = time.monotonic() + seconds
        allowed = ("40001", "23505", "40P01")
        with (
            Writers(embedded.dsns[0], 2, work, allowed) as here,
            Writers(embedded.dsns[1], 2, work, allowed) as there,
        ):
            while time.monotonic() < until:
                made.turn()
                if kills and rng.random() < 0.15:
                    victim = rng.choice(["data-plane", "1", "2"])
                    if victim == "data-plane":
                        embedded.kill(victim)
                    else:
                        with contextlib.suppress(AssertionError, ProcessLookupError):
                            os.kill(embedded.postmaster(int(victim)), signal.SIGKILL)
                    made.count("killed")
        print(made.done, here.done, here.refused, there.done, there.refused)
        assert here.unexpected + there.unexpected == []
        assert made.done.get("built", 0) > 0
        finish(embedded)
    finally:
        embedded.stop()


def finish(embedded: Embedded) -> None:
    """All jobs end; every index that is there is right, on both instances."""
    deadline = time.monotonic() + 60
    for dsn in embedded.dsns:
        while True:
            assert time.monotonic() < deadline
            try:
                with connect(dsn) as session:
                    if not ended(session) or invalid_indexes(session, "s"):
                        time.sleep(0.2)
                        continue
                    for name in set(indexes(session, "s")) & set(KINDS):
                        _, columns, where = KINDS[name]
                        compare(session, "s", name, columns, where)
                break
            except psycopg.OperationalError:
                time.sleep(0.2)
    verify = embedded.run_cli("verify")
    assert verify.returncode == 0, verify.stdout + verify.stderr


def test_storm(tmp_path: Path) -> None:
    storm(tmp_path / "data", 12, 1, kills=False)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(6))
def test_storm_nightly(tmp_path: Path, seed: int) -> None:
    storm(tmp_path / "data", 60, 10 + seed, kills=seed % 2 == 1)
