"""A statement whose job ends while it is being cancelled says what is true."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Server
from tests.crash.processes import Embedded
from tests.jobs.tables import Session, one, wait_for
from tests.jobs.test_rewrite import HIDDEN, make

LOCKS = (
    "SELECT pid FROM pg_locks WHERE relation = 'r'::regclass AND NOT granted"
    " AND mode = '{}' ORDER BY waitstart"
)
SWITCH, CANCEL = "AccessExclusiveLock", "ShareRowExclusiveLock"


class Altering(threading.Thread):
    """ALTER TABLE in a session that goes on to be used."""

    def __init__(self, dsn: str, timeout_ms: int) -> None:
        super().__init__()
        self.error: psycopg.Error | None = None
        self.session: Session = psycopg.connect(dsn, autocommit=True)
        self.session.execute("SET meridian.rewrite_online_rows = 100")
        self.session.execute(f"SET statement_timeout = {timeout_ms}".encode())
        self.pid = self.session.info.backend_pid
        self.start()

    def run(self) -> None:
        try:
            self.session.execute("ALTER TABLE r ALTER a TYPE bigint")
        except psycopg.Error as error:
            self.error = error


def waits(session: Session, mode: str, pid: int | None = None) -> bool:
    """Does somebody (`pid`) wait for this lock of the table?"""
    pids = [row[0] for row in session.execute(LOCKS.format(mode).encode()).fetchall()]
    return bool(pids) and (pid is None or pid in pids)


def race(cluster: Server, session: Session, reader: Session, timeout_ms: int) -> Altering | None:
    """The job's last step, behind a reader's lock, and behind it the cancel; then the reader ends.

    None: it came otherwise.
    """
    make(session)
    altering = Altering(cluster.dsn, timeout_ms)
    query = HIDDEN + " AND relname LIKE 'marks%'"
    wait_for(lambda: one(session, query) == 1)
    with reader.transaction():
        reader.execute("SELECT FROM r LIMIT 1")
        while altering.is_alive() and not waits(session, SWITCH):
            time.sleep(0.005)
        if not timeout_ms:
            session.execute(f"SELECT pg_cancel_backend({altering.pid})".encode())
        while altering.is_alive() and not waits(session, CANCEL, altering.pid):
            time.sleep(0.005)
        came = altering.is_alive() and waits(session, SWITCH)
    altering.join(30)
    assert not altering.is_alive()
    return altering if came else None


def has_happened(session: Session) -> bool:
    kind = "SELECT atttypid = 'int8'::regtype FROM pg_attribute WHERE attname = 'a'"
    return bool(one(session, kind + " AND attrelid = 'r'::regclass"))


@pytest.mark.parametrize("timeout_ms", [0, 1500])
def test_a_job_that_ends_while_it_is_cancelled(cluster: Server, timeout_ms: int) -> None:
    with (
        psycopg.connect(cluster.dsn, autocommit=True) as session,
        psycopg.connect(cluster.dsn, autocommit=True) as reader,
    ):
        for _ in range(8):
            altering = race(cluster, session, reader, timeout_ms)
            if altering is not None:
                break
        assert altering is not None, "the race did not come about"
        assert altering.error is None, altering.error
        assert has_happened(session)
        # Nothing of the cancel is left for what comes next, even if another one finds it idle.
        altering.session.execute("SET statement_timeout = 0")
        session.execute(f"SELECT pg_cancel_backend({altering.pid})".encode())
        time.sleep(0.1)
        assert one(altering.session, "SELECT count(*) FROM r") > 0
        altering.session.close()


def test_a_second_cancel_ends_the_wait_and_says_that_the_job_may_go_on(cluster: Server) -> None:
    """Another session's lock is in the way of the cancel."""
    with (
        psycopg.connect(cluster.dsn, autocommit=True) as session,
        psycopg.connect(cluster.dsn, autocommit=True) as holder,
    ):
        make(session)
        altering = Altering(cluster.dsn, 0)
        with holder.transaction():
            wait_for(lambda: one(session, HIDDEN + " AND relname LIKE 'marks%'") == 1)
            holder.execute("LOCK TABLE r IN ROW EXCLUSIVE MODE")
            session.execute(f"SELECT pg_cancel_backend({altering.pid})".encode())
            wait_for(lambda: waits(session, CANCEL, altering.pid))
            session.execute(f"SELECT pg_cancel_backend({altering.pid})".encode())
            altering.join(10)
            assert not altering.is_alive()
        assert altering.error is not None
        assert altering.error.sqlstate == "57014"
        assert "may go on" in str(altering.error)
        assert one(altering.session, "SELECT 1") == 1
        wait_for(lambda: has_happened(session))
        altering.session.close()


@pytest.mark.nightly
def test_cancelled_from_an_instance_that_does_not_make_the_steps(tmp_path: Path) -> None:
    """The cancel commits beside the job's steps: it loses against some, and tries again."""
    embedded = Embedded(tmp_path / "data", "--query-hosts", "2")
    embedded.start()
    try:
        for dsn in embedded.dsns:
            with psycopg.connect(dsn, autocommit=True) as session:
                make(session)
                status = ""
                for ms in (150, 250, 350, 450, 550):
                    session.execute(f"SET statement_timeout = {ms}".encode())
                    try:
                        session.execute("ALTER TABLE r ALTER t TYPE int USING t::int")
                        status = "completed"
                    except psycopg.errors.QueryCanceled as error:
                        assert "due to statement timeout" in str(error)
                        status = "cancelled"
                    session.execute("SET statement_timeout = 0")
                    query = "SELECT status FROM sys.jobs ORDER BY start_time DESC LIMIT 1"
                    assert one(session, query) == status
                    if status == "completed":
                        break
    finally:
        embedded.stop()
