"""One crossbar subscription for several storage files: what the node takes for one `Replica`.

Every shard has a core and a shell of its own. A small commit goes, cut, to the shards that it
concerns; chunks of large ones go to all, whose engines cut them. Markers of completeness go to all:
a read may run once every shard is complete through its tau.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from itertools import count

from meridian.clock.clock import Clock
from meridian.crossbar import core as crossbar
from meridian.crossbar.held import Held
from meridian.dataplane.balance import Balancer
from meridian.dataplane.replica import Replica, Resume
from meridian.dataplane.shards import ShardedEngine
from meridian.errors import MeridianError
from meridian.storage.errors import Failed
from meridian.wire.ops import Create, Op, decode_chunk, encode_chunk
from meridian.wire.ranges import cut_ops, place, span

_FLUSH_S = 1.0
"""How often the positions of shards that nothing concerns are written."""


class _Feed:
    """What one shard already held when it was opened: none of it is delivered again."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        noted = int.from_bytes(replica.engine.note[:8], "big")
        self.held = Held(max(replica.engine.applied_tau, noted), replica.engine.positions)
        # A shard that no commit concerned is complete for longer than its newest commit.
        replica.core.complete_tau = self.held.tau


class _Waiting:
    """A read that waits for every shard."""

    __slots__ = ("left", "resume", "tokens")

    def __init__(self, resume: Resume, left: int) -> None:
        self.resume = resume
        self.left = left
        self.tokens: list[int] = []


class ShardedReplica:
    """`Replica` over the shards of a ShardedEngine."""

    def __init__(self, engine: ShardedEngine, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock
        self.took: Callable[[int], None] = lambda size_bytes: None
        self.want: Callable[[int], None] = lambda tau: None
        self.advanced: Callable[[], None] = lambda: None
        self.failed: Callable[[Exception], None] = lambda error: None
        self._feeds = [_Feed(Replica(one, clock)) for one in engine.engines]
        self._replicas = [one.replica for one in self._feeds]
        for replica in self._replicas:
            replica.took = self._took
            replica.want = self._want
            replica.advanced = self._advanced
            replica.failed = self._failed
        self._parts_bytes = 0
        self._taken_bytes = 0
        self._owed: deque[tuple[int, int]] = deque()
        """Deliveries not acknowledged yet: (parts delivered until then, bytes of the delivery)."""
        self._reads: dict[int, _Waiting] = {}
        self._tokens = count(1)
        self._flush_at = 0.0
        engine.complete = lambda: self.complete_tau
        self._balancer = Balancer(engine)
        engine.work = self._balance

    # State

    @property
    def complete_tau(self) -> int:
        """All shards hold every commit through this tau."""
        return min(replica.core.complete_tau for replica in self._replicas)

    @property
    def idle(self) -> bool:
        """Everything delivered is in."""
        return all(replica.idle for replica in self._replicas)

    def furthest(self, journal: int) -> int:
        """The last record of a journal of which some shard may hold anything."""
        return max(replica.furthest(journal) for replica in self._replicas)

    @property
    def backlog_bytes(self) -> int:
        """Delivered, not yet in; the shard that is furthest behind."""
        return max(replica.backlog_bytes for replica in self._replicas)

    @property
    def failing(self) -> Failed | None:
        """Why some shard cannot write now."""
        return next((r.failing for r in self._replicas if r.failing is not None), None)

    # In

    def feed(self, delivered: crossbar.Deliver) -> None:
        """Takes a delivery; a small one is in before this returns."""
        self.take(delivered)
        self.pump()
        # What concerns no shard is no work, and may have waited for another journal.
        self.advanced()

    def take(self, delivered: crossbar.Deliver) -> None:
        """Queues a delivery: each shard its share, all the marker."""
        shares: list[list[crossbar.Item]] = [[] for _ in self._feeds]
        total = 0
        for item in delivered.items:
            total += 0 if isinstance(item, crossbar.Dropped) else len(item.chunk)
            self._share(item, shares)
        before = self._parts_bytes
        for feed, items in zip(self._feeds, shares, strict=True):
            self._parts_bytes += sum(
                len(item.chunk) for item in items if not isinstance(item, crossbar.Dropped)
            )
            self._deliver(feed, delivered, items)
        if total:
            self._owed.append((self._parts_bytes, total))
            if self._parts_bytes == before:
                self._acknowledge()

    def _share(self, item: crossbar.Item, shares: list[list[crossbar.Item]]) -> None:
        """Appends to every shard's list what it must hear of an item."""
        if isinstance(item, crossbar.Dropped):
            for number in range(len(shares)):
                self._add(number, item, shares)
            return
        ops = decode_chunk(item.chunk)
        for op in ops:
            if isinstance(op, Create):
                self.engine.assign(op)
        large = isinstance(item, crossbar.Body) or bool(item.bodies)
        for number in range(len(shares)) if large else self._concerned(ops):
            chunk = item.chunk
            if not large:
                part = cut_ops(ops, self.engine.engines[number].ranges)
                if not part:
                    continue
                if len(part) != len(ops) or any(map(_is_not, part, ops)):
                    chunk = encode_chunk(part)
            self._add(number, _with_chunk(item, chunk), shares)

    def _concerned(self, ops: list[Op]) -> list[int]:
        """Shards that own something of a write set, ascending."""
        numbers: dict[int, None] = {}
        for op in ops:
            sid = getattr(op, "sid", None)
            if sid is None:
                continue
            keys = getattr(op, "keys", None)
            if keys:
                first, last = (self.engine.number_at(place(sid, k)) for k in (keys[0], keys[-1]))
                if first == last and len(self.engine.numbers_in(span(sid))) == 1:
                    numbers[first] = None
                    continue
            numbers.update(dict.fromkeys(self.engine.numbers_in(span(sid))))
        return sorted(numbers)

    def _add(self, number: int, item: crossbar.Item, shares: list[list[crossbar.Item]]) -> None:
        """Unless the shard's file held it when it was opened."""
        wanted = self._feeds[number].held.filtered(item)
        if wanted is not None:
            shares[number].append(wanted)

    def _deliver(
        self, feed: _Feed, delivered: crossbar.Deliver, items: list[crossbar.Item]
    ) -> None:
        """Completeness and positions of a shard never go back behind what its file held."""
        tau, positions = feed.held.bounds(delivered.tau, delivered.positions)
        feed.replica.take(crossbar.Deliver(delivered.subscriber, items, tau, positions))

    def pump(self) -> None:
        """Works for about one slice per shard, then lets others run."""
        for replica in self._replicas:
            replica.pump()

    def drain(self) -> None:
        """All work at once (recovery). Raises what storage raises."""
        for replica in self._replicas:
            replica.drain()
        self.flush()

    def stop(self) -> None:
        """Nothing is applied from here on; whoever waits is told."""
        self._balancer.close()
        with contextlib.suppress(Failed):
            self.flush()
        for replica in self._replicas:
            replica.stop()

    def _took(self, size_bytes: int) -> None:
        self._taken_bytes += size_bytes
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Credit for deliveries of which about all parts are in."""
        size_bytes = 0
        while self._owed and self._owed[0][0] <= self._taken_bytes:
            size_bytes += self._owed.popleft()[1]
        if size_bytes:
            self.took(size_bytes)

    def _want(self, tau: int) -> None:
        self.want(tau)

    def _advanced(self) -> None:
        self.advanced()

    def _failed(self, error: Exception) -> None:
        self.failed(error)

    # Reads

    def read(self, tau: int, timeout_ms: int, resume: Resume) -> int:
        """Calls `resume` once reads at tau may run on every shard, or with an error."""
        token = next(self._tokens)
        waiting = self._reads[token] = _Waiting(resume, len(self._replicas))

        def done(error: MeridianError | None) -> None:
            waiting.left -= 1
            if token in self._reads and (error is not None or waiting.left == 0):
                self.cancel_read(token)
                resume(error)

        for replica in self._replicas:
            if token in self._reads:
                waiting.tokens.append(replica.read(tau, timeout_ms, done))
        return token

    def cancel_read(self, token: int) -> None:
        """Never calls back."""
        waiting = self._reads.pop(token, None)
        if waiting is not None:
            for replica, one in zip(self._replicas, waiting.tokens, strict=False):
                replica.cancel_read(one)

    # Background

    def _balance(self) -> bool:
        """A slice of moving keys, while all shards stand at the same tau."""
        taus = [replica.core.complete_tau for replica in self._replicas]
        if not self.idle or min(taus) != max(taus) or self.failing is not None:
            return False
        return self._balancer.step(taus[0])

    def settle(self) -> bool:
        """One slice of turning provisional numbers into taus. False: nothing to do."""
        if time.monotonic() >= self._flush_at:
            self.flush()
        return any(replica.settle() for replica in self._replicas)

    def flush(self) -> None:
        """Positions of shards that no commit concerned: else the journal could not be trimmed."""
        self._flush_at = time.monotonic() + _FLUSH_S
        for replica in self._replicas:
            written = replica.engine.positions
            known = replica.core.positions
            if replica.idle and any(n > written.get(j, -1) for j, n in known.items()):
                complete = replica.core.complete_tau.to_bytes(8, "big")
                replica.engine.apply([], known, complete)


def _is_not(part: Op, op: Op) -> bool:
    return part is not op


def _with_chunk(
    item: crossbar.Transaction | crossbar.Body, chunk: bytes
) -> crossbar.Transaction | crossbar.Body:
    if chunk is item.chunk or isinstance(item, crossbar.Body):
        return item
    return crossbar.Transaction(
        item.tau, item.journal, item.n, item.txid, item.flags, item.bodies, chunk
    )
