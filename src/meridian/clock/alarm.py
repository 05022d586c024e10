"""A timer of a shell: wakes up once the clock has certainly passed a tau."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meridian.clock.clock import Clock


class Alarm:
    """At most one time is set; a later call replaces an earlier one."""

    def __init__(self, clock: Clock, fire: Callable[[], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at: int) -> None:
        """Calls `fire` once the clock's earliest reaches `at` (a tau)."""
        self.cancel()
        delay_s = max(0, at - self._clock.now().earliest) / 1e9
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._due, at)

    def cancel(self) -> None:
        """Nothing fires any more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self, at: int) -> None:
        self._handle = None
        if self._clock.now().earliest < at:
            self.set(at)
        else:
            self._fire()
