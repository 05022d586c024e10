"""Takes what the crossbar delivers into storage, in order, without holding up the event loop.

Two lanes: commits, and chunks of large transactions. Commits go first; a large commit waits for
the chunks before it, and what comes behind it waits for it (storage takes commits in tau order).
The position handed to storage never passes a chunk that is still waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from meridian.crossbar.core import Body, Deliver, Dropped, Transaction
from meridian.wire.ops import decode_chunk

if TYPE_CHECKING:
    from meridian.storage.engine import Engine

_SLICE_NS = 3_000_000
"""Work done in one go on the event loop."""
_GROUP_BYTES = 64 * 1024
_GROUP_COMMITS = 256
_SETTLE_ROWS = 500


class Through(msgspec.Struct, frozen=True):
    """Lane marker: everything through `tau` came before it."""

    tau: int
    positions: tuple[tuple[int, int], ...]


class Applier:
    """Applies to one engine on the event loop's thread. `failed` is called once, with the error."""

    def __init__(
        self,
        engine: Engine,
        advanced: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.engine = engine
        self.complete_tau = 0
        """Storage holds every commit through this tau."""
        self.positions: dict[int, int] = engine.positions
        self.backlog_bytes = 0
        self._advanced = advanced
        self._failed = failed
        self._commits: deque[Transaction | Dropped | Through] = deque()
        self._bodies: deque[Body] = deque()
        self._waits: deque[int] = deque()
        """For each large commit in the lane: chunks that arrived before it."""
        self._arrived = 0
        self._staged = 0
        self._scheduled = False
        self._stopped = False
        self._taking = False

    @property
    def idle(self) -> bool:
        """Nothing waits."""
        return not self._commits and not self._bodies

    def feed(self, delivered: Deliver) -> None:
        """Takes a delivery; small ones are applied before this returns."""
        if not delivered.items and self.idle and not self._stopped:
            # The common heartbeat of an idle system: nothing to queue.
            self._through(Through(delivered.tau, delivered.positions))
            return
        self.take(delivered)
        self.pump()

    def take(self, delivered: Deliver) -> None:
        """Queues a delivery."""
        for item in delivered.items:
            if isinstance(item, Body):
                self._bodies.append(item)
                self._arrived += 1
                self.backlog_bytes += len(item.chunk)
            else:
                if isinstance(item, Dropped) or item.bodies:
                    self._waits.append(self._arrived)
                self._commits.append(item)
        self._commits.append(Through(delivered.tau, delivered.positions))

    def pump(self) -> None:
        """Works for about one slice, then lets others run."""
        if self._taking or self._stopped:
            return
        self._taking = True
        deadline_ns = time.monotonic_ns() + _SLICE_NS
        try:
            while self._step():
                if time.monotonic_ns() >= deadline_ns:
                    self._later()
                    break
        except Exception as error:
            self._stopped = True
            self._failed(error)
        finally:
            self._taking = False

    def _later(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        self._scheduled = False
        self.pump()

    def drain(self) -> None:
        """Everything at once (recovery, shutdown). Raises what storage raises."""
        self._taking = True
        try:
            while self._step():
                pass
        finally:
            self._taking = False

    def stop(self) -> None:
        """Nothing is applied from here on."""
        self._stopped = True

    def _step(self) -> bool:
        """One unit of work; False: nothing to do."""
        if self._commits:
            head = self._commits[0]
            small = isinstance(head, Through) or (
                isinstance(head, Transaction) and not head.bodies
            )
            if small:
                self._group()
                return True
            if self._waits[0] <= self._staged:
                self._waits.popleft()
                self._commits.popleft()
                assert not isinstance(head, Through)
                self._large(head)
                return True
        if self._bodies:
            self._stage(self._bodies.popleft())
            return True
        return False

    def _through(self, marker: Through) -> None:
        for journal, n in marker.positions:
            self.positions[journal] = max(n, self.positions.get(journal, 0))
        if marker.tau > self.complete_tau:
            self.complete_tau = marker.tau
            self._advanced()

    def _held(self, journal: int, n: int) -> dict[int, int]:
        """The position through `n`, held back below every chunk that still waits."""
        waiting = (body.n - 1 for body in self._bodies if body.journal == journal)
        return {journal: min(waiting, default=n) if self._bodies else n}

    def _large(self, head: Transaction | Dropped) -> None:
        positions = self._held(head.journal, head.n)
        if isinstance(head, Dropped):
            self.engine.discard(head.txid, positions)
        elif head.tau > self.engine.applied_tau:
            # The last chunk is staged too, so that resolving stays O(1) whatever its size.
            last = decode_chunk(head.chunk)
            self.engine.stage(head.txid, len(head.bodies), last, {})
            self.engine.resolve(head.txid, len(head.bodies) + 1, head.tau, positions)

    def _group(self) -> None:
        """A run of small commits in one SQLite transaction, and what lies between them."""
        group: list[Transaction] = []
        markers: list[Through] = []
        size_bytes = 0
        while self._commits and len(group) < _GROUP_COMMITS and size_bytes < _GROUP_BYTES:
            head = self._commits[0]
            if isinstance(head, Through):
                markers.append(head)
            elif isinstance(head, Transaction) and not head.bodies:
                group.append(head)
                size_bytes += len(head.chunk)
            else:
                break
            self._commits.popleft()
        if group:
            commits = [(item.tau, decode_chunk(item.chunk)) for item in group]
            self.engine.apply(commits, self._held(group[-1].journal, group[-1].n))
        for marker in markers:
            self._through(marker)

    def _stage(self, body: Body) -> None:
        self.backlog_bytes -= len(body.chunk)
        position = {body.journal: body.n}
        self.engine.stage(body.txid, body.seq, decode_chunk(body.chunk), position)
        self._staged += 1
        self._advanced()

    def settle(self) -> bool:
        """One background slice: turns provisional numbers into taus. False: nothing to do."""
        return not self._stopped and self.engine.settle(_SETTLE_ROWS)
