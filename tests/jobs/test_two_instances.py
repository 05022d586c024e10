"""Index builds on a table that two instances write: all of them maintain the index in time."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import psycopg

from tests.crash.processes import Embedded
from tests.jobs.tables import (
    Session,
    Writers,
    compare,
    connect,
    indexes,
    invalid_indexes,
    one,
    wait_for,
)

ROWS = 10_000


def work(session: Session, rng: random.Random) -> None:
    id_ = rng.randrange(1, ROWS)
    session.execute(
        rng.choice(
            [
                "UPDATE k SET a = a + 1 WHERE id = %s",
                "UPDATE k SET b = b || '.' WHERE id = %s",
                "DELETE FROM k WHERE id = %s",
                "INSERT INTO k VALUES (%s, 1, 'n') ON CONFLICT DO NOTHING",
            ]
        ),
        [id_],
    )


def create(session: Session, sql: str) -> None:
    """A schema change may lose against writers elsewhere; it says so with 40001."""
    for _ in range(20):
        try:
            session.execute(sql.encode())
            return
        except psycopg.errors.SerializationFailure:
            continue
    raise AssertionError(sql)


def test_writers_on_both_instances(tmp_path: Path) -> None:
    embedded = Embedded(tmp_path / "data", "--query-hosts", "2")
    embedded.start()
    first, second = embedded.dsns
    try:
        with connect(first) as session:
            session.execute("CREATE TABLE k (id int PRIMARY KEY, a int, b text)")
            session.execute(
                f"INSERT INTO k SELECT i, i % 100, 'r' FROM generate_series(1, {ROWS}) i".encode()
            )
        with (
            connect(first) as session,
            Writers(first, 2, work) as here,
            Writers(second, 2, work) as there,
        ):
            done = there.done
            wait_for(lambda: there.done > done + 50)
            create(session, "CREATE INDEX k_a ON k (a)")
            create(session, "CREATE UNIQUE INDEX k_u ON k (id, a)")
            with connect(second) as other:
                other.execute("SET meridian.index_job_rows = 0")
                create(other, "CREATE INDEX k_b ON k (b) WHERE a > 10")
                assert indexes(other, "k") == ["k_a", "k_b", "k_pkey", "k_u"]
                assert invalid_indexes(other, "k") == []
            done = there.done
            wait_for(lambda: there.done > done + 50)
        assert here.unexpected + there.unexpected == []
        for dsn in embedded.dsns:
            with connect(dsn) as session:
                compare(session, "k", "k_a", "a")
                compare(session, "k", "k_u", "id, a")
                compare(session, "k", "k_b", "b", "a > 10")
        print("refused", here.refused, there.refused)
        verify = embedded.run_cli("verify")
        assert verify.returncode == 0, verify.stdout + verify.stderr
    finally:
        embedded.stop()


def test_the_other_instance_goes_on_with_the_build(tmp_path: Path) -> None:
    """The instance that ordered the job, and whose sessions make its steps, is killed."""
    embedded = Embedded(tmp_path / "data", "--query-hosts", "2")
    embedded.start()
    first, second = embedded.dsns
    try:
        with connect(second) as session:
            session.execute("CREATE TABLE k (id int PRIMARY KEY, a int, b text)")
            session.execute("INSERT INTO k SELECT i, i, 'r' FROM generate_series(1, 40000) i")
        with connect(first) as session, connect(second) as other:
            thread = threading.Thread(target=_execute, args=[session, "CREATE INDEX k_a ON k (a)"])
            thread.start()
            wait_for(lambda: one(other, "SELECT coalesce(max(rows_done), 0) FROM sys.jobs") > 0)
            os.kill(embedded.postmaster(1), signal.SIGKILL)
            thread.join(30)
            job = one(other, "SELECT max(job_id) FROM sys.jobs")
            other.execute(f"CALL sys.wait_for_job('{job}')".encode())
            compare(other, "k", "k_a", "a")
        verify = embedded.run_cli("verify")
        assert verify.returncode == 0, verify.stdout + verify.stderr
    finally:
        embedded.stop()


def _execute(session: Session, sql: str) -> None:
    try:
        session.execute(sql.encode())
    except psycopg.Error:
        return
