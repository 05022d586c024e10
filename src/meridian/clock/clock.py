"""The clock of one machine: an interval, monotone, also across restarts (design 4.2)."""

from __future__ import annotations

import time
from collections.abc import Callable

from meridian.clock.tau import Interval


class Clock:
    """Processes of one machine share it: max(wall, last journal tau), error 0 among themselves.

    When the wall clock steps back, it goes on at half the monotonic clock's rate until the wall
    has caught up: it never stands still, so nothing that waits for it hangs.
    """

    def __init__(
        self,
        floor: int = 0,
        *,
        error_ns: int = 0,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        assert error_ns >= 0
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._error_ns = error_ns
        self._last = floor
        self._last_monotonic = monotonic_ns()

    def now(self) -> Interval:
        """True time lies in the interval. Both ends never go back."""
        reading = self.now_ns()
        return Interval(reading - self._error_ns, reading + self._error_ns)

    def now_ns(self) -> int:
        """The middle of the interval, ns since the epoch, monotone."""
        monotonic = self._monotonic_ns()
        carried = self._last + (monotonic - self._last_monotonic) // 2
        wall = self._wall_ns()
        reading = max(wall, carried)
        self._last = reading
        self._last_monotonic = monotonic
        return reading

    @property
    def last_ns(self) -> int:
        """A lower bound of `now().earliest`, without reading the clock."""
        return self._last - self._error_ns

    def observe(self, tau: int) -> None:
        """The clock is not behind `tau` from here on (a tau of the journal)."""
        if tau > self.now_ns():
            self._last = tau
