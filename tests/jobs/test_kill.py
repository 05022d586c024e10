"""kill -9 of anything in the middle of a build: it goes on where it was, and nothing is missing."""

from __future__ import annotations

import random
import socket
import threading
from pathlib import Path

import psycopg
import pytest

from tests.crash.processes import Embedded
from tests.jobs.tables import (
    Session,
    Writers,
    compare,
    connect,
    invalid_indexes,
    one,
    wait_for,
)

ROWS = 30_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def work(session: Session, rng: random.Random) -> None:
    id_ = rng.randrange(1, ROWS)
    kind = rng.randrange(4)
    if kind == 0:
        session.execute("UPDATE k SET a = %s WHERE id = %s", [rng.randrange(100), id_])
    elif kind == 1:
        session.execute("UPDATE k SET b = b || '.' WHERE id = %s", [id_])
    elif kind == 2:
        session.execute("DELETE FROM k WHERE id = %s", [id_])
    else:
        session.execute("INSERT INTO k VALUES (%s, 1, 'n') ON CONFLICT DO NOTHING", [id_])


class Wreck:
    """A cluster with one filled table, and a job that is looked at through all kills."""

    def __init__(self, directory: Path) -> None:
        self.embedded = Embedded(directory, "--port", str(free_port()))
        self.embedded.start()
        with connect(self.embedded.dsn) as session:
            session.execute("CREATE TABLE k (id int PRIMARY KEY, a int, b text)")
            session.execute(
                f"INSERT INTO k SELECT i, i % 100, 'r' FROM generate_series(1, {ROWS}) i".encode()
            )

    def job(self) -> tuple[str, int] | None:
        """Status and rows done of the only job, once somebody answers."""
        try:
            # On a fixed port a start may find the killed server's socket still held.
            self.embedded.ensure_running()
        except AssertionError:
            return None
        try:
            with psycopg.connect(self.embedded.dsn, connect_timeout=5) as session:
                return session.execute("SELECT status, rows_done FROM sys.jobs").fetchone()
        except psycopg.Error:
            return None

    def in_the_middle(self, least: int) -> bool:
        job = self.job()
        return job is not None and job[1] > least

    def check(self, index: str, columns: str) -> None:
        with connect(self.embedded.dsn) as session:
            assert invalid_indexes(session, "k") == []
            compare(session, "k", index, columns)
        verify = self.embedded.run_cli("verify")
        assert verify.returncode == 0, verify.stdout + verify.stderr


@pytest.mark.parametrize("unique", [False, True])
def test_killed_again_and_again(tmp_path: Path, unique: bool) -> None:
    wreck = Wreck(tmp_path / "data")
    kind, columns = ("UNIQUE", "id, a") if unique else ("", "a, id")
    try:
        with Writers(wreck.embedded.dsn, 2, work) as writers:
            with connect(wreck.embedded.dsn) as session:
                one(session, f"CREATE {kind} INDEX ASYNC ON k ({columns})")
            seen = 0
            killed = []
            for role in ("data-plane", "postmaster", "backend", "supervisor", "everything"):
                wait_for(lambda: wreck.in_the_middle(seen), 60)
                job = wreck.job()
                if job is not None and job[0] == "completed":
                    break
                seen = job[1] if job is not None else seen
                wreck.embedded.kill(role)
                killed.append(role)
            wait_for(lambda: (wreck.job() or ("",))[0] == "completed", 60)
            assert len(killed) >= 3, killed
        assert writers.unexpected == []
        index = "k_id_a_idx" if unique else "k_a_id_idx"
        wreck.check(index, columns)
        rows = wreck.job()
        assert rows is not None and rows[1] < 2 * ROWS, "it began anew"
    finally:
        wreck.embedded.stop()


def test_create_index_outlives_the_data_plane(tmp_path: Path) -> None:
    """The statement itself waits on, and returns once its job is done."""
    wreck = Wreck(tmp_path / "data")
    try:
        with connect(wreck.embedded.dsn) as session:
            thread = threading.Thread(target=session.execute, args=["CREATE INDEX k_b ON k (b, a)"])
            thread.start()
            wait_for(lambda: wreck.in_the_middle(0), 60)
            wreck.embedded.kill("data-plane")
            thread.join(60)
            assert not thread.is_alive()
        wreck.check("k_b", "b, a")
    finally:
        wreck.embedded.stop()


def test_a_killed_session_leaves_its_build_to_the_runner(tmp_path: Path) -> None:
    wreck = Wreck(tmp_path / "data")
    try:
        with connect(wreck.embedded.dsn) as session, connect(wreck.embedded.dsn) as other:
            thread = threading.Thread(target=_execute, args=[session, "CREATE INDEX k_a ON k (a)"])
            thread.start()
            wait_for(lambda: wreck.in_the_middle(0), 60)
            other.execute("SELECT pg_terminate_backend(%s)", [session.info.backend_pid])
            thread.join(30)
            wait_for(lambda: (wreck.job() or ("",))[0] == "completed", 60)
        wreck.check("k_a", "a")
    finally:
        wreck.embedded.stop()


def _execute(session: Session, sql: str) -> None:
    try:
        session.execute(sql.encode())
    except psycopg.Error:
        return
