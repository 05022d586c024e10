"""One instance takes over what was found at others, when it hears of it and now and then.

It has a session only while there is something to do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import psycopg

from meridian.instance.root import Connection
from meridian.limits import CONFLICT_WINDOW_NS

CHANNEL = b"\xffstatistics"
"""The notification's; no client can name it, for it is not UTF-8."""
AT_ONCE = 20
"""Tables in one local transaction."""
SETTLE_S = 0.05
"""A commit may lead the clock a little, and others may follow."""
AGAIN_S = 1.0
"""Another look after the first, and when a table was in use."""
LOOK_S = 60.0
RETRY_S = 5.0


class Follower:
    """`connect` gives a superuser session of the instance."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._woken = asyncio.Event()
        self._since = 0
        """Everything written by transactions that began before is taken over."""

    def wake(self) -> None:
        """Something was analysed."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            heard = self._woken.is_set()
            self._woken.clear()
            if heard:
                await asyncio.sleep(SETTLE_S)
            try:
                left = await self._take()
                pause_s = AGAIN_S if heard or left else LOOK_S
            except (psycopg.Error, OSError):
                # The instance or the data plane went away; their keepers know.
                pause_s = RETRY_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause_s)

    async def _take(self) -> int:
        """Takes over what there is; how many tables are left because they are in use."""
        session = await self._connect()
        try:
            taken = AT_ONCE
            while taken >= AT_ONCE:
                cursor = await session.execute(
                    "SELECT taken, remaining, tau FROM meridian.import_statistics(%s, %s)",
                    (self._since, AT_ONCE),
                )
                row = await cursor.fetchone()
                assert row is not None
                taken, left, tau = row
            if not left:
                self._since = max(0, tau - CONFLICT_WINDOW_NS)
            return int(left)
        finally:
            await session.close()
