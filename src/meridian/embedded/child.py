"""One process below the supervisor: its output, its end, its next try."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import Any

from meridian.embedded.logs import RotatingLog

BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 5.0
HEALTHY_AFTER_S = 1.0
FAILURES_MAX = 8
"""Starts in a row that failed or did not live; after them the supervisor gives up."""
LINE_BYTES = 64 * 1024


class Backoff:
    """How long to wait before the next start; a start that lived makes it forget."""

    def __init__(self) -> None:
        self.failures = 0

    def after(self, lived_s: float) -> float | None:
        """Seconds to wait after a life of `lived_s`, 0 for a failed start; None: give up."""
        if lived_s >= HEALTHY_AFTER_S:
            self.failures = 0
            return 0.0
        self.failures += 1
        if self.failures > FAILURES_MAX:
            return None
        return float(min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** (self.failures - 1)))


class Child:
    """A running process whose standard error goes to a log, and whose output to `on_line`."""

    def __init__(self, process: Process, readers: list[asyncio.Task[None]]) -> None:
        self.process = process
        self._readers = readers

    @staticmethod
    async def spawn(
        command: list[str], log: RotatingLog, on_line: Callable[[str], None], **options: Any
    ) -> Child:
        """Start `command`; OSError passes through."""
        process = await asyncio.create_subprocess_exec(
            *command, stdout=PIPE, stderr=PIPE, limit=LINE_BYTES, **options
        )
        assert process.stdout is not None and process.stderr is not None

        def out(line: bytes) -> None:
            log.write(line)
            on_line(line.decode(errors="replace").rstrip())

        readers = [
            asyncio.create_task(_drain(process.stdout, out)),
            asyncio.create_task(_drain(process.stderr, log.write)),
        ]
        return Child(process, readers)

    async def wait(self) -> int:
        """The exit status, after the last line of output was read.

        Grandchildren (backends of a killed postmaster) may hold the pipe a little longer.
        """
        status = await self.process.wait()
        await asyncio.wait(self._readers, timeout=1.0)
        for reader in self._readers:
            reader.cancel()
        return status

    async def end(self, number: signal.Signals, timeout_s: float) -> None:
        """Send a signal and wait; after `timeout_s`, kill."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


async def _drain(stream: asyncio.StreamReader, sink: Callable[[bytes], None]) -> None:
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # a line over the limit: what was buffered of it is dropped
            continue
        if not line:
            return
        sink(line)
