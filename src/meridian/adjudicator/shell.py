"""The thin shell of an adjudicator: its journal's writer, its timers, its effects carried out.

One epoch of one journal. When the journal fails it is finished (`lost`); whoever made it makes
another one with a higher epoch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from meridian.adjudicator import events as ev
from meridian.clock.clock import Clock
from meridian.journal.file import AppendError
from meridian.journal.interface import Writer
from meridian.journal.record import Record

log = logging.getLogger("meridian.adjudicator")

_SPIN_NS = 1_000_000
"""Shorter timers are polled by the loop: its own timers have a resolution of 1 ms."""


class Shell:
    """Runs on the event loop's thread; only the writer's callbacks come from another.

    `writer` is set before the first step. Subclasses add what becomes of records and heartbeats.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        adjudicator: Any,
        answered: Callable[[ev.Answer], None],
        refused: Callable[[ev.Refused], None],
        lost: Callable[[str, AppendError | None], None],
    ) -> None:
        self.clock = clock
        self.adjudicator = adjudicator
        self.settled = asyncio.Event()
        """It serves, or never will (`dead`)."""
        self.dead = False
        self.failure: AppendError | None = None
        self.writer: Writer | None = None
        self._landed: deque[list[Record]] = deque()
        """Durable batches that the event loop has not looked at, filled by the writer's thread."""
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._flushing = False
        self._timers: dict[str, tuple[int, asyncio.Handle]] = {}
        self._carry_out: dict[type, Callable[[Any], None]] = {
            ev.Append: self._append,
            ev.AppendAll: self._append_all,
            ev.Answer: answered,
            ev.Refused: refused,
            ev.Heartbeat: self.heartbeat,
            ev.SetTimer: self._set_timer,
            ev.Serving: self._serve,
            ev.Gated: self.gated,
            ev.Fatal: self._fatal,
        }

    # For subclasses

    def heartbeat(self, effect: ev.Heartbeat) -> None:
        """To whoever follows this journal."""

    def gated(self, effect: ev.Gated) -> None:
        """The answer to a Gate."""

    def landed(self, batches: list[list[Record]]) -> None:
        """Records that are durable, before anybody is told of their commits."""

    # Events

    def step(self, event: ev.Event) -> None:
        """One event, its effects in order."""
        if self.dead:
            return
        for effect in self.adjudicator.step(self.clock.now(), event):
            self._carry_out[type(effect)](effect)

    def commits(self, events: list[ev.Commit]) -> None:
        """Commits that came together, under one reading of the clock."""
        if self.dead:
            return
        for effect in self.adjudicator.commits(self.clock.now(), events):
            self._carry_out[type(effect)](effect)

    def want(self, tau: int) -> None:
        """A reader waits for `tau`."""
        self.step(ev.WantHeartbeat(tau))

    def durable_in_thread(self, batch: list[Record]) -> None:
        """The writer's callback, in its thread."""
        self._landed.append(batch)
        self._loop.call_soon_threadsafe(self._durable)

    def failed_in_thread(self, error: AppendError) -> None:
        """The writer's callback, in its thread."""
        self._loop.call_soon_threadsafe(self._failed, error)

    def _durable(self) -> None:
        """All that became durable since the last look, in one go: a busy loop pays once."""
        if self.dead or not self._landed:
            return
        batches: list[list[Record]] = []
        while self._landed:
            batches.append(self._landed.popleft())
        # Storage first: who is told of a commit may read it at once.
        self.landed(batches)
        self.step(ev.Appended(batches[-1][-1].n))

    # Effects

    def _append(self, effect: ev.Append) -> None:
        assert self.writer is not None
        self.writer.append(effect.record)
        self._flush_soon()

    def _append_all(self, effect: ev.AppendAll) -> None:
        assert self.writer is not None
        self.writer.extend(effect.records)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.writer is not None and not self.dead:
            self.writer.flush()

    def _serve(self, _: ev.Serving) -> None:
        self.settled.set()

    def _set_timer(self, effect: ev.SetTimer) -> None:
        known = self._timers.pop(effect.name, None)
        if known is not None:
            known[1].cancel()
        self._arm(effect.name, effect.at)

    def _arm(self, name: str, at: int) -> None:
        delay_ns = at - self.clock.now().earliest if at else 0
        if delay_ns < _SPIN_NS:
            handle: asyncio.Handle = self._loop.call_soon(self._fire, name, at)
        else:
            handle = self._loop.call_later(delay_ns / 1e9, self._fire, name, at)
        self._timers[name] = (at, handle)

    def _fire(self, name: str, at: int) -> None:
        if self.dead:
            return
        if at and self.clock.now().earliest < at:
            self._arm(name, at)
            return
        self._timers.pop(name, None)
        self.step(ev.TimerFired(name))

    def _fatal(self, effect: ev.Fatal) -> None:
        log.error("adjudicator ended", extra={"reason": effect.reason})
        self.stop()
        self._lost(effect.reason, self.failure)

    def _failed(self, error: AppendError) -> None:
        """Let the adjudicator give its last answers, then this owner is over."""
        log.error(
            "journal write failed",
            extra={"error": str(error), "nothing_written": error.nothing_written},
        )
        self.failure = error
        self.step(ev.AppendFailed(str(error)))
        if not self.dead:
            self.stop()
            self._lost(str(error), error)

    # End

    def stop(self) -> None:
        """No more events. What was appended and not yet told stays untold."""
        self.dead = True
        self.settled.set()
        for _, handle in self._timers.values():
            handle.cancel()
        self._timers.clear()

    def close(self) -> None:
        """Writes what waits, then closes the journal. Blocks for one batch."""
        self.stop()
        if self.writer is not None:
            self.writer.close()
