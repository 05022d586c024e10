"""The session that makes the steps `core` decides on.

`connect` opens a superuser session with an instance that serves now; it is opened anew when it
breaks. Register `run` as a routine of the supervisor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import psycopg

from meridian.instance.errors import SetupError
from meridian.instance.root import Connection
from meridian.jobs.core import (
    Core,
    Done,
    Effect,
    Event,
    Fail,
    Listed,
    ListJobs,
    Prune,
    Refused,
    Step,
    Stepped,
    Wait,
    Woken,
)

CHANNEL = "meridian_jobs"
LOCK_TIMEOUT_MS = 2_000
"""A step waits so long for the locks of others, and others behind it."""
RECONNECT_S = 0.2
_SETTINGS = f"""
SET lock_timeout = {LOCK_TIMEOUT_MS};
SET meridian.maintenance = on;
LISTEN {CHANNEL};
SET meridian.maintenance = off
"""


class Cluster(Protocol):
    """What a routine of the supervisor gets."""

    async def connect(self) -> Connection:
        """A superuser session (autocommit). Raises when no instance serves."""


async def run(cluster: Cluster) -> None:
    """Until cancelled."""
    await Runner(cluster.connect).run()


class Runner:
    """Keeps one session; what the core knows outlives it."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.connect = connect
        self.core = Core()

    async def run(self) -> None:
        """Until cancelled. Failures to connect are waited out."""
        event: Event = Woken(announced=True)
        while True:
            try:
                async with await self.connect() as session:
                    await session.execute(_SETTINGS)
                    while True:
                        event = await self._perform(session, self._effect(event))
            except (psycopg.Error, OSError, SetupError):
                event = Woken(announced=True)
            await asyncio.sleep(RECONNECT_S)

    def _effect(self, event: Event) -> Effect:
        (effect,) = self.core.step(time.monotonic() * 1000, event)
        return effect

    async def _perform(self, session: Connection, effect: Effect) -> Event:
        match effect:
            case ListJobs():
                cursor = await session.execute(
                    "SELECT job_id FROM meridian.jobs()"
                    " WHERE status IN ('submitted', 'processing') ORDER BY start_time, job_id"
                )
                return Listed([row[0] for row in await cursor.fetchall()])
            case Step():
                return await self._step(session, effect)
            case Fail():
                return await self._fail(session, effect)
            case Prune():
                await session.execute("SELECT meridian.jobs_prune()")
                return Done()
            case Wait():
                return await _wait(session, effect.ms / 1000)

    async def _step(self, session: Connection, step: Step) -> Event:
        began = time.monotonic()
        try:
            cursor = await session.execute(
                "SELECT next, rows_read, busy_ms FROM meridian.job_step(%s, %s, %s)",
                (step.id, step.budget, step.gate),
            )
            row = await cursor.fetchone()
        except psycopg.Error as error:
            return _refused(session, step.id, error, began)
        assert row is not None
        return Stepped(step.id, row[0], row[1], _ms_since(began), row[2])

    async def _fail(self, session: Connection, fail: Fail) -> Event:
        began = time.monotonic()
        try:
            await session.execute(
                "SELECT meridian.job_fail(%s, %s, %s, %s)",
                (fail.id, fail.sqlstate, fail.message, fail.detail),
            )
        except psycopg.Error as error:
            return _refused(session, fail.id, error, began)
        return Done()


def _refused(session: Connection, id_: str, error: psycopg.Error, began: float) -> Refused:
    """Raises the error again when the session is gone."""
    if session.broken or error.sqlstate is None:
        raise error
    message = error.diag.message_primary or str(error)
    detail = error.diag.message_detail or ""
    return Refused(id_, error.sqlstate, message, detail, _ms_since(began))


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000


async def _wait(session: Connection, seconds: float) -> Woken:
    if seconds <= 0:
        return Woken()
    async for _ in session.notifies(timeout=seconds, stop_after=1):
        return Woken(announced=True)
    return Woken()
