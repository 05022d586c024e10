"""Shared by the tests of jobs: sessions, writers, comparison of an index with its table."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

Session = psycopg.Connection[tuple[Any, ...]]


def connect(dsn: str) -> Session:
    """An autocommit session in which every table's index is built by a job."""
    session = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
    session.execute("SET meridian.index_job_rows = 0")
    return session


def one(session: Session, sql: str, *values: object) -> Any:
    """The single value of a query."""
    row = session.execute(sql.encode(), values or None).fetchone()
    assert row is not None
    return row[0]


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)
    return value


def invalid_indexes(session: Session, table: str) -> list[str]:
    """Indexes of a table that queries may not use."""
    rows = session.execute(
        "SELECT indexrelid::regclass::text FROM pg_index"
        " WHERE indrelid = %s::regclass AND NOT indisvalid ORDER BY 1",
        [table],
    ).fetchall()
    return [row[0] for row in rows]


def indexes(session: Session, table: str) -> list[str]:
    """Names of all indexes of a table."""
    rows = session.execute(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = %s::regclass ORDER BY 1",
        [table],
    ).fetchall()
    return [row[0] for row in rows]


def compare(session: Session, table: str, index: str, columns: str, where: str = "true") -> int:
    """Asserts that an index-only scan of `index` shows what the table holds; how many rows."""
    query = f"SELECT {columns} FROM {table} WHERE {where}"
    with session.transaction():
        session.execute("SET LOCAL meridian.enable_pushdown = off")
        session.execute("SET LOCAL enable_indexscan = off")
        session.execute("SET LOCAL enable_indexonlyscan = off")
        session.execute("SET LOCAL enable_bitmapscan = off")
        rows = session.execute(query.encode()).fetchall()
        session.execute("SET LOCAL enable_seqscan = off")
        session.execute("SET LOCAL enable_indexonlyscan = on")
        session.execute("SET LOCAL enable_indexscan = on")
        ordered = f"{query} ORDER BY {columns}"
        plan = session.execute(f"EXPLAIN (COSTS OFF) {ordered}".encode()).fetchall()
        assert any(f"using {index} on" in line for (line,) in plan), plan
        entries = session.execute(ordered.encode()).fetchall()
    assert sorted(rows, key=repr) == sorted(entries, key=repr)
    return len(rows)


def verify(directory: Path) -> None:
    """`meridian verify` of a running cluster: storage is sound, every index complete."""
    done = subprocess.run(
        [sys.executable, "-m", "meridian", "verify", "--dir", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Writers:
    """Threads that run `work(session, rng)` until told to stop, through everything retryable."""

    def __init__(
        self,
        dsn: str,
        number: int,
        work: Callable[[Session, random.Random], None],
        allowed: tuple[str, ...] = ("40001",),
    ) -> None:
        self.dsn = dsn
        self.work = work
        self.allowed = allowed
        self.done = 0
        self.refused: dict[str, int] = {}
        self.unexpected: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(number)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        while not self._stop.is_set():
            try:
                with psycopg.connect(self.dsn, autocommit=True, connect_timeout=10) as session:
                    self._session(session, rng)
            except psycopg.OperationalError:
                time.sleep(0.05)

    def _session(self, session: Session, rng: random.Random) -> None:
        while not self._stop.is_set():
            try:
                self.work(session, rng)
                with self._lock:
                    self.done += 1
            except psycopg.Error as error:
                state = error.sqlstate or ""
                if session.closed or state.startswith(("08", "57")) or not state:
                    raise psycopg.OperationalError(str(error)) from error
                with self._lock:
                    self.refused[state] = self.refused.get(state, 0) + 1
                    if state not in self.allowed:
                        self.unexpected.append(f"{state} {error}")
