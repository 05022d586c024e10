"""Keeps one process running: starts it, starts it again when it ends, ends it."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from meridian.embedded.child import Backoff, Child
from meridian.embedded.logs import RotatingLog
from meridian.instance.errors import SetupError

LAST_WORDS = 12


class HopelessError(SetupError):
    """Another try would fail in the same way."""


class Keeper(ABC):
    """One per process; a subclass says how to start and end it."""

    def __init__(self, who: str, log: Path, report: Callable[[str], None]) -> None:
        self.who = who
        self.report = report
        self.log = RotatingLog(log)
        self.child: Child | None = None
        self._began = 0.0

    @abstractmethod
    async def start(self) -> None:
        """Start the process; `child` is it. Raises SetupError."""

    async def ended(self) -> None:  # noqa: B027 - a plane has nothing to clear away
        """The process is gone, and may be started again."""

    async def keep(self) -> None:
        """Start the process again whenever it ends. Raises SetupError when hopeless."""
        backoff = Backoff()
        self._began = time.monotonic()
        while True:
            assert self.child is not None
            status = await self.child.wait()
            pause = backoff.after(time.monotonic() - self._began)
            await self.ended()
            self.report(f"{self.who} ended ({how(status)}); starting it again")
            await self._start_again(backoff, pause, status)

    async def _start_again(self, backoff: Backoff, pause: float | None, status: int) -> None:
        while pause is not None:
            await asyncio.sleep(pause)
            try:
                self._began = time.monotonic()
                await self.start()
                self.report(f"{self.who} is back after {time.monotonic() - self._began:.2f} s")
                return
            except HopelessError:
                await self.ended()
                raise
            except SetupError as error:
                await self.ended()
                self.report(str(error))
                pause = backoff.after(0.0)
        raise SetupError(self.last_words(status))

    def last_words(self, status: int) -> str:
        """How it ended, and what it said."""
        tail = self.unreported()[-LAST_WORDS:]
        words = "\n".join(["; its last words:", *tail]) if tail else ""
        return f"{self.who} ended at start ({how(status)}){words}"

    def unreported(self) -> list[str]:
        """The last lines of its log that the user has not seen."""
        return list(self.log.tail)


def how(status: int) -> str:
    """An exit status in words."""
    return f"killed by signal {-status}" if status < 0 else f"status {status}"
