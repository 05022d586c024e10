"""The shell around storage's core: performs its work on the engine, a slice at a time.

Everything runs on the event loop's thread. One piece of work takes about a millisecond (chunks of
large commits are cut accordingly), and after a few milliseconds others run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

from meridian.clock.alarm import Alarm
from meridian.clock.clock import Clock
from meridian.crossbar import core as crossbar
from meridian.errors import Kind, MeridianError
from meridian.storage import core
from meridian.storage.errors import Failed
from meridian.storage.shell import perform

if TYPE_CHECKING:
    from meridian.storage.engine import Engine

_SLICE_NS = 3_000_000
"""Work done in one go on the event loop."""
_SETTLE_ROWS = 250
_RETRY_S = 1.0

log = logging.getLogger("meridian.replica")

Resume = Callable[[MeridianError | None], None]
_REFUSALS = {
    core.TOO_OLD: Kind.SNAPSHOT_TOO_OLD,
    core.TOO_LATE: Kind.WAIT_TIMEOUT,
    core.TOO_MANY: Kind.TOO_MANY_REQUESTS,
}


class Replica:
    """One engine and its core. The callbacks are set by whoever feeds it."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock
        self.core = core.Core(engine.applied_tau, engine.horizon, engine.positions)
        self.took: Callable[[int], None] = lambda size_bytes: None
        """So many bytes of what was delivered are in."""
        self.want: Callable[[int], None] = lambda tau: None
        """A read waits for completeness through tau."""
        self.advanced: Callable[[], None] = lambda: None
        """Something was applied."""
        self.failed: Callable[[Exception], None] = lambda error: None
        """Storage failed; nothing more is applied."""
        self.failing: Failed | None = None
        """Why storage cannot write now."""
        self._work: core.Work | None = None
        self._reads: dict[int, Resume] = {}
        self._tokens = count(1)
        self._scheduled = False
        self._pumping = False
        self._stopped = False
        self._alarm = Alarm(clock, self._fire)

    @property
    def complete_tau(self) -> int:
        """Storage holds every commit through this tau."""
        return self.core.complete_tau

    @property
    def idle(self) -> bool:
        """Everything delivered is in."""
        return self.core.idle

    def furthest(self, journal: int) -> int:
        """The last record of a journal of which storage may hold anything."""
        return self.engine.positions.get(journal, 0)

    @property
    def backlog_bytes(self) -> int:
        """Delivered, not yet in."""
        return self.core.backlog_bytes

    # In

    def feed(self, delivered: crossbar.Deliver) -> None:
        """Takes a delivery; a small one is in before this returns."""
        self.take(delivered)
        self.pump()

    def take(self, delivered: crossbar.Deliver) -> None:
        """Queues a delivery."""
        items = tuple(map(_item, delivered.items))
        self._step(core.Delivered(items, delivered.tau, delivered.positions))

    def pump(self) -> None:
        """Works for about one slice, then lets others run."""
        if self._pumping or self._stopped or self._scheduled or self._work is None:
            return
        self._pumping = True
        deadline_ns = time.monotonic_ns() + _SLICE_NS
        try:
            while self._work is not None:
                if time.monotonic_ns() >= deadline_ns:
                    self._later()
                    break
                self._perform()
        except Exception as error:
            if isinstance(error, Failed) and not self.engine.broken:
                # Disk full and the like: rolled back. What waits is durable in the journal.
                # Nothing more is committed meanwhile, and reads stay at `complete_tau`: what is
                # durable but not applied has not been acknowledged.
                if self.failing is None:
                    log.warning("storage cannot write, trying again: %s", error)
                self.failing = error
                self._later(_RETRY_S)
            else:
                self._stopped = True
                self.failed(error)
        finally:
            self._pumping = False
        self.advanced()

    def _later(self, delay_s: float = 0.0) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(delay_s, self._resume)

    def _resume(self) -> None:
        self._scheduled = False
        self.pump()

    def drain(self) -> None:
        """All work at once (recovery). Raises what storage raises."""
        while self._work is not None and not self._stopped:
            self._perform()

    def stop(self) -> None:
        """Nothing is applied from here on; whoever waits is told."""
        self._stopped = True
        waiting, self._reads = self._reads, {}
        for resume in waiting.values():
            resume(MeridianError(Kind.SHUTTING_DOWN))

    def _perform(self) -> None:
        """The piece of work under way."""
        assert self._work is not None
        perform(self.engine, self._work)
        self._work = None
        self.failing = None
        self._step(core.Performed())

    # Reads

    def read(self, tau: int, timeout_ms: int, resume: Resume) -> int:
        """Calls `resume` once reads at tau may run, or with an error; returns a token."""
        token = next(self._tokens)
        self._reads[token] = resume
        deadline = self.clock.now().earliest + timeout_ms * 1_000_000
        self._step(core.Read(token, tau, deadline))
        return token

    def cancel_read(self, token: int) -> None:
        """Never calls back."""
        if self._reads.pop(token, None) is not None:
            self._step(core.CancelRead(token))

    def _answer(self, token: int, error: MeridianError | None) -> None:
        resume = self._reads.pop(token, None)
        if resume is not None:
            resume(error)

    # The core

    def _step(self, event: core.Event) -> None:
        for effect in self.core.step(self.clock.now(), event):
            if isinstance(effect, core.Work):
                assert self._work is None
                self._work = effect
            elif isinstance(effect, core.Serve):
                self._answer(effect.token, None)
            elif isinstance(effect, core.Refuse):
                kind = _REFUSALS[effect.reason]
                self._answer(effect.token, MeridianError(kind))
            elif isinstance(effect, core.Want):
                self.want(effect.tau)
            elif isinstance(effect, core.Took):
                self.took(effect.size_bytes)
            elif isinstance(effect, core.RaiseFloor):
                # The next one is higher: a full disk only delays collection.
                with contextlib.suppress(Failed):
                    self.engine.raise_floor(effect.floor)
            else:
                self._alarm.set(effect.at)

    def _fire(self) -> None:
        if not self._stopped:
            self._step(core.TimerFired())

    # Background

    def flush(self) -> None:
        """The file's positions are those of its commits: there is nothing to write."""

    def settle(self) -> bool:
        """One slice of turning provisional numbers into taus. False: nothing to do."""
        return not self._stopped and self.engine.settle(_SETTLE_ROWS)


def _item(item: crossbar.Item) -> core.Item:
    if isinstance(item, crossbar.Transaction):
        bodies = len(item.bodies)
        return core.Committed(item.tau, item.journal, item.n, item.txid, bodies, item.chunk)
    if isinstance(item, crossbar.Body):
        return core.Chunk(item.txid, item.journal, item.n, item.seq, item.chunk)
    return core.Dropped(item.txid, item.journal, item.n)
