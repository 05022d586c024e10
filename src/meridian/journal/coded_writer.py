"""Writes a journal to its three streams (design sections 6.4, 6.5).

One `CodedWriter` is one epoch.  The shell claims each stream (appends the marker, reads back
through it), then says `opened`; sends what `take` gives, in order, and tells `stored` in order.
"""

from __future__ import annotations

from collections import deque

import msgspec

from meridian.journal import core as journal
from meridian.journal.coded import STREAMS, StreamPosition, adopted, shards_of
from meridian.journal.coded_reader import Adoption
from meridian.journal.core import EpochId, Seal, payload_of
from meridian.journal.record import Record

LAG_BYTES = 8 * 1024 * 1024
"""Records kept for a stream that lags; beyond it what both others hold is left out there."""


class Lane:
    """One stream as its writer sees it."""

    __slots__ = ("fenced", "n", "next", "open", "sent", "skips")

    def __init__(self) -> None:
        self.open = False
        self.fenced = False
        """A higher marker is there: nothing of this epoch is valid in it any more."""
        self.n = 0
        """Valid in the stream through here, in this epoch; 0 before the SEAL."""
        self.next = 0
        """Next n to send; 0: what was adopted and the SEAL come first."""
        self.sent: deque[Record] = deque()
        self.skips: list[tuple[int, int]] = []

    def holds(self, first: int, last: int) -> bool:
        """Whether all of this range lies in the stream itself."""
        return self.n >= last and not any(a <= last and first <= b for a, b in self.skips)


class CodedWriter:
    """Durable = valid on two streams.  Nothing is sent before the SEAL was appended.

    Answers in the order of a chain (`chain.py`) behind what was read through the own marker are as
    good as reading back; why, and what the shell owes, is in journal/README.md.
    """

    def __init__(self, epoch: EpochId, adoption: Adoption, lag_bytes: int = LAG_BYTES) -> None:
        self.epoch = epoch
        self.lanes = [Lane() for _ in range(STREAMS)]
        self.durable_n = 0
        self._lag_bytes = lag_bytes
        self._adoption = adoption
        self._end = adoption.base + len(adoption.records)
        """Newest n that may be sent."""
        self._seal_n = self._end + 1
        self._prologue: list[Record] = []
        self._kept: dict[int, list[Record]] = {}
        """What a stream may still lack, by n, as each stream gets it."""
        self._kept_bytes = 0
        self._held: deque[Record] = deque()
        """A commit record whose bodies are not durable, and what follows it."""
        self._returned: dict[int, StreamPosition | None] = {}
        """Streams of which a higher marker may be gone, and their ends once they are read."""

    @property
    def dead(self) -> bool:
        """Two streams have a higher marker: this epoch can make nothing durable any more."""
        return sum(lane.fenced for lane in self.lanes) >= 2

    # In

    def append(self, record: Record) -> None:
        """The next record of the journal, the SEAL first."""
        assert record.epoch == self.epoch
        assert record.n == self._end + len(self._held) + 1, (record.n, self._end)
        if not self._prologue:
            self._begin(record)
        else:
            self._held.append(record)
            self._release()

    def _begin(self, record: Record) -> None:
        seal = payload_of(record)
        assert isinstance(seal, Seal)
        found = self._adoption
        seal = msgspec.structs.replace(seal, base=found.base, prior=found.prior)
        self._prologue = [adopted(self.epoch, one) for one in found.records]
        self._prologue.append(journal.make(self.epoch, record.n, seal))
        self._end = record.n

    def _release(self) -> None:
        """A commit record follows bodies that are valid on two (6.4)."""
        while self._held:
            record = self._held[0]
            if record.kind == journal.COMMIT:
                commit = payload_of(record)
                assert isinstance(commit, journal.Commit)
                if commit.bodies and commit.bodies[-1] > self.durable_n:
                    return
            self._held.popleft()
            self._end = record.n
            self._kept[record.n] = self._copies(record)
            self._kept_bytes += _size(self._kept[record.n])

    @staticmethod
    def _copies(record: Record) -> list[Record]:
        return shards_of(record) if record.kind == journal.BODY else [record] * STREAMS

    # Streams

    def opened(self, stream: int, end: StreamPosition) -> bool:
        """The stream was read to its end: that is all it holds, whatever was told before.

        False: it lacks what only one other stream holds and must stay out of this epoch; or it has
        come back (`returned`) and opens with another one.
        """
        if list(self._returned) == [stream]:
            self._returned[stream] = end
            return False
        # Two were claimed since the last one came back: neither had lost a marker that counts.
        returned, self._returned = self._returned, {}
        for other, position in returned.items():
            if other != stream and position is not None:
                self._open(other, position)
        return self._open(stream, end)

    def returned(self, stream: int, end: StreamPosition) -> list[int]:
        """As `opened`, but of another generation than was known before all claims.

        With a tail a higher marker may be gone, by which another owner took over: then both others
        had it by then.  So nothing is sent here before one of them, claimed again from now on, is
        opened.  Returns those to claim.
        """
        others = [n for n, lane in enumerate(self.lanes) if n != stream and not lane.fenced]
        for other in others:
            self.closed(other)
        self._returned[stream] = end
        return others

    def _open(self, stream: int, end: StreamPosition) -> bool:
        lane = self.lanes[stream]
        assert not lane.fenced and end.epoch == self.epoch
        lane.sent.clear()
        lane.n = end.n if end.sealed else 0
        lane.skips = [(a, min(b, lane.n)) for a, b in lane.skips if a <= lane.n]
        lane.next = lane.n + 1 if end.sealed else 0
        lane.open = self._skippable(stream, max(lane.next, self._seal_n + 1))
        # It may hold what no answer told of; nothing more need come to make that durable.
        self._count()
        return lane.open

    def closed(self, stream: int) -> None:
        """What became of the appends under way is not known: read the stream to its end."""
        self.lanes[stream].open = False
        if stream in self._returned:
            self._returned[stream] = None

    def fenced(self, stream: int) -> None:
        """A higher marker lies in the stream.  What it holds of this epoch stays valid."""
        lane = self.lanes[stream]
        lane.fenced, lane.open = True, False
        self._returned.pop(stream, None)

    def _skippable(self, stream: int, first: int) -> bool:
        """Whether all that is not kept any more, from `first` on, is held by both others."""
        last = self._oldest_kept() - 1
        others = [lane for number, lane in enumerate(self.lanes) if number != stream]
        return last < first or all(lane.holds(first, last) for lane in others)

    def _oldest_kept(self) -> int:
        return next(iter(self._kept), self._end + 1)

    def take(self, stream: int, size_bytes: int) -> list[Record]:
        """What to append to a stream next, about `size_bytes` of it; empty: nothing."""
        lane = self.lanes[stream]
        if not lane.open or not self._prologue:
            return []
        batch: list[Record] = []
        if lane.next == 0:
            batch += self._prologue
            lane.next = self._seal_n + 1
        oldest = self._oldest_kept()
        if lane.next < oldest:
            if not self._skippable(stream, lane.next):
                lane.open = False
                return []
            batch.append(journal.make(self.epoch, oldest - 1, journal.Skip(lane.next)))
            lane.skips.append((lane.next, oldest - 1))
            lane.next = oldest
        taken = 0
        while lane.next <= self._end and taken < size_bytes:
            record = self._kept[lane.next][stream]
            batch.append(record)
            taken += len(record.payload)
            lane.next += 1
        lane.sent += batch
        return batch

    def stored(self, stream: int, count: int) -> None:
        """The oldest `count` records on their way are in the stream, behind no higher marker."""
        lane = self.lanes[stream]
        assert count <= len(lane.sent)
        for _ in range(count):
            record = lane.sent.popleft()
            if record.n >= self._seal_n:
                assert record.n > lane.n
                lane.n = record.n
        self._count()

    def _count(self) -> None:
        """What is valid on two streams is durable."""
        self.durable_n = max(self.durable_n, sorted(lane.n for lane in self.lanes)[1])
        self._release()
        self._drop()

    def _drop(self) -> None:
        """Forgets what every stream holds, and, of too much, what two hold."""
        low, middle, _ = sorted(lane.n for lane in self.lanes)
        while self._kept:
            n = next(iter(self._kept))
            if n > low and (n > middle or self._kept_bytes <= self._lag_bytes):
                return
            self._kept_bytes -= _size(self._kept.pop(n))


def _size(copies: list[Record]) -> int:
    return max(len(record.payload) for record in copies)
