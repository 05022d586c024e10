"""The catalog feed of one instance: schema changes and notifications of the others.

Docs: the RFC "catalog coherence", points 5 and 6. The gateway tells which versions exist; the
extension reads and applies them. What is acknowledged is what the instance says it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import psycopg

from meridian.catalog import compaction
from meridian.gateway.aio import AsyncClient
from meridian.gateway.client import GatewayError
from meridian.instance.root import Connection
from meridian.statistics.follower import CHANNEL, Follower
from meridian.wire import frames

VERSIONS_AT_ONCE = 100
"""Catalog deltas applied in one local transaction."""
POLL_MS = 10_000
ANSWER_SLACK_S = 10.0
"""How long after its time a poll may be answered by a gateway that is busy."""
CONNECT_S = 10.0
APPLY_S = 60.0
RETRY_FIRST_S = 0.025
RETRY_LAST_S = 2.0
FAILURES_TOLD = 10
"""After so many connections in a row that failed the user is told, once."""
CONFLICTS_S = 10.0
"""How long locks may keep a delta out; the extension ends their holders after 100 ms."""
CONFLICT_PAUSE_S = 0.05
_CONFLICTS = {"40001", "40P01", "55P03", "57014"}
_GATEWAY_GONE = {"08001", "08003", "08004", "08006"}


class CannotApplyError(Exception):
    """This instance lacks a schema change and cannot take it: it must not go on serving."""


class Feeder:
    """`connect` gives a superuser session of the instance; `report` hears what is wrong."""

    def __init__(
        self,
        number: int,
        gateway: Path,
        connect: Callable[[], Awaitable[Connection]],
        report: Callable[[str], None],
    ) -> None:
        self.number = number
        self.gateway = gateway
        self.connect = connect
        self.report = report
        self.version = 0
        """What the instance has applied, as it last said."""
        self.statistics = Follower(connect)
        self._failures = 0
        """In a row."""
        self._heard = asyncio.Event()
        """The first answer of the feed since `run` is taken."""

    async def run(self) -> None:
        """Until cancelled. Raises CannotApplyError."""
        follower = asyncio.create_task(self.statistics.run())
        try:
            await self._run()
        finally:
            follower.cancel()

    async def _run(self) -> None:
        self._heard.clear()
        while True:
            try:
                await self._connected()
            except (OSError, GatewayError, psycopg.Error) as error:
                # The gateway or the instance went away; their keepers know.
                self._failures += 1
                if self._failures == FAILURES_TOLD:
                    self.report(f"the feed of instance {self.number} is broken: {error}")
                pause_s = RETRY_FIRST_S * 2 ** min(self._failures, 10)
                await asyncio.sleep(min(RETRY_LAST_S, pause_s))

    async def _connected(self) -> None:
        client = await AsyncClient.connect(self.gateway, self.number, timeout_s=CONNECT_S)
        try:
            session = await self.connect()
            try:
                await self._follow(client, session)
            finally:
                # At once: a session that hangs would not take a ROLLBACK either.
                await session.close()
        finally:
            client.close()

    async def _follow(self, client: AsyncClient, session: Connection) -> None:
        await self.catch_up(session)
        wait_ms = 0
        while True:
            async with asyncio.timeout(wait_ms / 1000 + ANSWER_SLACK_S):
                answer = await client.call(frames.CATALOG, self.number, self.version, wait_ms)
            self._failures = 0
            await self._in_time(self._take(session, answer[0]))
            self._heard.set()
            wait_ms = POLL_MS

    async def heard(self, timeout_s: float) -> None:
        """Until the feed has answered once: that notifications were lost before concerns nobody
        who comes now. Not forever: those who listen are ended later otherwise.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), timeout_s)

    async def _take(self, session: Connection, rows: list[list[Any]]) -> None:
        """Rows of the feed: [version], [0, channel, payload], or [-1]: some of those were lost."""
        before = self.version
        if any(row[0] > before for row in rows):
            await self.catch_up(session)
            if self.version == before:
                # Seen in the journal, not yet through storage: do not ask in a circle.
                await asyncio.sleep(CONFLICT_PAUSE_S)
        for row in rows:
            if row[0] == frames.FEED_LOST:
                await session.execute("SELECT meridian.end_listeners()")
            elif row[0] == frames.FEED_NOTIFICATION and row[1] == CHANNEL:
                self.statistics.wake()
            elif row[0] == frames.FEED_NOTIFICATION:
                # A transaction each: PostgreSQL tells twice the same in one transaction once.
                await session.execute("SELECT meridian.notify_here(%s, %s)", _texts(row[1:]))

    async def _in_time(self, work: Coroutine[Any, Any, None]) -> None:
        """An instance that hangs is not waited for; what was asked of it ends with it."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task}, timeout=APPLY_S)
        finally:
            if not task.done():
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
                task.cancel()
        if not task.done():
            raise CannotApplyError(f"it did not answer for {APPLY_S:.0f} s")
        task.result()

    async def begin(self, client: AsyncClient, session: Connection) -> None:
        """Before `catch_up` at a start: a new directory takes the catalog's image.

        Raises CannotApplyError where the image has passed the directory by, or where the
        directory is ahead of the journal, as after a journal was restored from a copy.
        """
        local = await self._local_version(session)
        image = await compaction.image_version(client)
        if local == 0 and image:
            version, delta = await compaction.read_image(client)
            try:
                statement = "SELECT meridian.apply_catalog_image(%s, %s)"
                await session.execute(statement, (version, delta))
            except psycopg.Error as error:
                if session.broken or is_gateway_gone(error):
                    raise
                raise CannotApplyError(f"{error.sqlstate}: {error}") from error
        elif local and not image <= local <= await compaction.newest_version(client):
            raise CannotApplyError(f"its catalog is of version {local}, which the journal has not")

    async def _local_version(self, session: Connection) -> int:
        row = await (await session.execute("SELECT meridian.catalog_version()")).fetchone()
        assert row is not None
        return int(row[0])

    async def catch_up(
        self, session: Connection, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Apply every version that the journal has; `progress` hears how many so far.

        Raises CannotApplyError, and psycopg.Error when the instance or the gateway is gone.
        """
        total = 0
        while count := await self._apply(session):
            total += count
            progress(total)
            if count < VERSIONS_AT_ONCE:
                break
        self.version = await self._local_version(session)

    async def _apply(self, session: Connection) -> int:
        """How many versions one local transaction applied; locks are waited for."""
        deadline = time.monotonic() + CONFLICTS_S
        while True:
            try:
                cursor = await session.execute(
                    "SELECT meridian.apply_pending_catalog(%s)", (VERSIONS_AT_ONCE,)
                )
                row = await cursor.fetchone()
                assert row is not None
                return int(row[0])
            except psycopg.Error as error:
                if session.broken or is_gateway_gone(error):
                    raise
                if error.sqlstate not in _CONFLICTS or time.monotonic() > deadline:
                    raise CannotApplyError(f"{error.sqlstate}: {error}") from error
            await asyncio.sleep(CONFLICT_PAUSE_S)


def is_gateway_gone(error: psycopg.Error) -> bool:
    """Did the backend lose the data plane, or not reach it?"""
    return error.sqlstate in _GATEWAY_GONE


def _texts(values: list[bytes]) -> list[str]:
    return [value.decode() for value in values]
