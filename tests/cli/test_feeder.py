"""The feed of an instance, with a gateway and an instance made of a few lines."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest

from meridian.embedded import feeder
from meridian.embedded.feeder import CannotApplyError, Feeder


class Cursor:
    def __init__(self, value: int) -> None:
        self.value = value

    async def fetchone(self) -> tuple[int]:
        return (self.value,)


class Session:
    """An instance that applies what `newest` says, if `failure` lets it."""

    broken = False

    def __init__(self) -> None:
        self.version = 0
        self.newest = 0
        self.failures: list[Exception | None] = []
        self.told: list[tuple[str, ...]] = []
        self.hangs = False

    async def execute(self, sql: str, arguments: Any = ()) -> Cursor:
        if self.hangs:
            await asyncio.Event().wait()
        if "apply_pending" in sql:
            failure = self.failures.pop(0) if self.failures else None
            if failure is not None:
                raise failure
            applied = min(arguments[0], self.newest - self.version)
            self.version += applied
            return Cursor(applied)
        if "notify_here" in sql or "end_listeners" in sql:
            self.told.append(tuple(arguments) or ("ended",))
        return Cursor(self.version)


def made() -> tuple[Feeder, Session]:
    async def connect() -> Any:
        raise AssertionError("not used")

    return Feeder(1, Path("/nonexistent"), connect, lambda _: None), Session()


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_everything_pending_is_applied() -> None:
    fed, session = made()
    session.newest = 3 * feeder.VERSIONS_AT_ONCE + 7
    heard: list[int] = []
    run(fed.catch_up(session, heard.append))
    assert fed.version == session.version == session.newest
    assert heard == [100, 200, 300, 307]


def test_lock_conflicts_are_waited_for_and_nothing_else() -> None:
    fed, session = made()
    session.newest = 1
    session.failures = [
        psycopg.errors.LockNotAvailable(),
        psycopg.errors.SerializationFailure(),
        None,
    ]
    run(fed.catch_up(session))
    assert fed.version == 1
    session.failures = [psycopg.errors.DataCorrupted("hole")]
    with pytest.raises(CannotApplyError, match="XX001: hole"):
        run(fed.catch_up(session))
    session.failures = [psycopg.errors.ConnectionFailure("no gateway")]
    with pytest.raises(psycopg.OperationalError, match="no gateway"):
        run(fed.catch_up(session))


def test_conflicts_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "CONFLICTS_S", 0.2)
    fed, session = made()
    session.failures = [psycopg.errors.LockNotAvailable("busy")] * 100
    with pytest.raises(CannotApplyError, match="55P03: busy"):
        run(fed.catch_up(session))


def test_an_instance_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "APPLY_S", 0.1)
    fed, session = made()
    session.hangs = True
    with pytest.raises(CannotApplyError, match="did not answer"):
        run(fed._in_time(fed._take(session, [[1]])))


def test_rows_of_the_feed() -> None:
    fed, session = made()
    session.newest = 2
    rows = [[-1], [1], [2], [0, b"news", "gr\u00fc\u00df".encode()], [0, b"news", b""]]
    run(fed._take(session, rows))
    assert fed.version == 2
    assert session.told == [("ended",), ("news", "gr\u00fc\u00df"), ("news", "")]
