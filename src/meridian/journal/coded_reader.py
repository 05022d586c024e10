"""Reads a journal from its three streams, and takes it over (design sections 6.4, 6.5).

What comes out is the journal as one stream: markers, SEALs, and every record once, in order of n.

A record is delivered when it is durable for certain: two valid copies; one copy and a heartbeat of
its epoch at or above its n; one copy and a SKIP of it in another stream; or a later SEAL that is
durable covers it.  A SEAL itself needs the same.  A body needs two shards.

Why a SEAL found once proves nothing: its writer may have died before the second copy, and the next
owner, who fenced the two other streams, knows nothing of what it adopted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from meridian.journal import core as journal
from meridian.journal.coded import (
    SHARD,
    STREAMS,
    Segment,
    StreamLog,
    StreamPosition,
    body_of,
    check_same,
)
from meridian.journal.core import EpochId, JournalError, payload_of
from meridian.journal.record import Record

COVERS = 16
"""Epochs whose heartbeats are remembered."""


class CodedPosition(msgspec.Struct, array_like=True, frozen=True):
    """Where a reader of three streams stands (6.7): through n of `epoch`, and in each stream."""

    epoch: EpochId = journal.NO_EPOCH
    n: int = 0
    streams: tuple[StreamPosition, ...] = (StreamPosition(),) * STREAMS


class Adoption(msgspec.Struct, frozen=True):
    """What a new owner found: the SEAL's `base` and `prior`, and what it must make durable."""

    base: int
    prior: EpochId
    records: tuple[Record, ...]


def with_markers(records: Iterable[Record]) -> list[Record]:
    """Each SEAL behind the marker of its epoch, as in a journal of one stream."""
    out: list[Record] = []
    for record in records:
        if record.kind == journal.SEAL:
            out.append(journal.make(record.epoch, 0, journal.Marker(0)))
        out.append(record)
    return out


class CodedReader:
    """Feed `take` and `cover` in any order, collect with `ready`."""

    def __init__(self, position: CodedPosition | None = None) -> None:
        start = position or CodedPosition()
        self.epoch = start.epoch
        """Of the last SEAL delivered."""
        self.n = start.n
        """Delivered through here."""
        self.logs = [StreamLog(one) for one in start.streams]
        self._covers: dict[EpochId, int] = {}
        self._trusted: tuple[StreamLog, ...] = ()

    def position(self) -> CodedPosition:
        """From where another reader can go on."""
        return CodedPosition(self.epoch, self.n, tuple(log.position() for log in self.logs))

    @property
    def buffered_bytes(self) -> int:
        """What waits for its second copy: read no further ahead while it is large."""
        return max(log.buffered_bytes for log in self.logs)

    def take(self, stream: int, records: Iterable[Record]) -> None:
        """The next records of one stream."""
        log = self.logs[stream]
        for record in records:
            log.accept(record)

    def cover(self, epoch: EpochId, n: int) -> None:
        """A heartbeat of the owner: everything through n of its epoch is durable (4.6)."""
        if epoch >= self.epoch:
            self._covers[epoch] = max(n, self._covers.get(epoch, 0))
            if len(self._covers) > COVERS:
                del self._covers[min(self._covers)]

    def ready(self) -> list[Record]:
        """The records that can be delivered now.  Raises JournalError on damage."""
        out: list[Record] = []
        while self._advance(out):
            pass
        if out:
            for log in self.logs:
                log.forget(self.epoch, self.n)
            self._covers = {e: n for e, n in self._covers.items() if e >= self.epoch}
        return out

    # One step

    def _advance(self, out: list[Record]) -> bool:
        goal = self._goal()
        if goal is not None and self.n >= goal.base:
            self._seal(goal, out)
            return True
        if goal is not None and goal.prior != self.epoch:
            raise JournalError(f"the SEAL of epoch {goal.epoch} forgets that of {self.epoch}")
        record = self._next(goal)
        if record is None:
            return False
        self.n = record.n
        out.append(record)
        return True

    def _goal(self) -> Segment | None:
        """The next SEAL of history that is known to be one."""
        found: dict[EpochId, list[Segment]] = {}
        for log in self.logs:
            for one in log.segments:
                if one.epoch > self.epoch:
                    found.setdefault(one.epoch, []).append(one)
        for epoch in sorted(found, reverse=True):
            if self._proven(found[epoch]):
                return self._first_of_chain(epoch, found)
        return None

    def _proven(self, copies: list[Segment]) -> bool:
        seals = [one.seal for one in copies if one.seal is not None]
        check_same(seals)
        if len(seals) > 1 or any(log.segment(copies[0].epoch) for log in self._trusted):
            return True
        return self._covers.get(copies[0].epoch, 0) >= seals[0].n

    def _first_of_chain(
        self, epoch: EpochId, found: dict[EpochId, list[Segment]]
    ) -> Segment | None:
        """A durable SEAL proves those before it, back to the one that was delivered."""
        segment = found[epoch][0]
        while segment.prior > self.epoch:
            if segment.prior not in found:
                return None
            segment = found[segment.prior][0]
        return segment

    def _seal(self, goal: Segment, out: list[Record]) -> None:
        """What the SEAL adopted, its marker, and the SEAL."""
        seal = goal.seal
        assert seal is not None
        known = goal.prior == self.epoch or any(
            one.kind == journal.SEAL and one.epoch == self.epoch for one in goal.adopted.values()
        )
        if self.n >= seal.n or not known:
            raise JournalError(f"record {seal.n}: SEAL forgets record {self.n} of {self.epoch}")
        out += with_markers(goal.adopted[n] for n in range(self.n + 1, seal.n))
        out += with_markers((seal,))
        self.epoch, self.n = seal.epoch, seal.n

    def _next(self, goal: Segment | None) -> Record | None:
        """Record n + 1 of the epoch in force, if it is durable for certain."""
        n = self.n + 1
        segments = [s for log in self.logs if (s := log.segment(self.epoch)) is not None]
        copies = [one.records[n] for one in segments if n in one.records]
        if not copies:
            return None
        if copies[0].kind == SHARD:
            return body_of(copies)
        check_same(copies)
        durable = len(copies) > 1 or self._covers.get(self.epoch, 0) >= n
        if goal is not None and n <= goal.base:
            durable = True
        if durable or any(one.skipped(n) for one in segments):
            return copies[0]
        return None

    # Take-over

    def adopt(self, fenced: Sequence[int]) -> Adoption | None:
        """History as a new owner finds it (6.5), its marker read on the streams `fenced`.

        None: a body that committed is on one of them only, and the third is not read far enough.
        Call `ready` first; afterwards the reader stands at the end of history.
        """
        assert len(set(fenced)) >= 2, "two of three must be fenced"
        base, prior = self.n, self.epoch
        out: list[Record] = []
        self._trusted = tuple(self.logs[stream] for stream in fenced)
        try:
            while self._advance(out):
                pass
            complete = self._goal() is None and self._adopt_once_found(out)
        finally:
            self._trusted = ()
        if not complete:
            self.n, self.epoch = base, prior
            return None
        records = tuple(record for record in out if record.kind != journal.EPOCH)
        assert [record.n for record in records] == list(range(base + 1, self.n + 1))
        return Adoption(base, prior, records)

    def _adopt_once_found(self, out: list[Record]) -> bool:
        """Behind the highest SEAL: records on any fenced stream, up to the first gap."""
        segments = [s for log in self.logs if (s := log.segment(self.epoch)) is not None]
        run: dict[int, list[Record]] = {}
        n = self.n + 1
        while any(s is not None and n in s.records for s in self._fenced_segments()):
            run[n] = [one.records[n] for one in segments if n in one.records]
            n += 1
        named = _bodies_named(copies[0] for copies in run.values())
        for n, copies in run.items():
            record: Record | None = copies[0]
            if copies[0].kind != SHARD:
                check_same(copies)
            elif n in named:
                record = body_of(copies)
            else:
                # Its epoch is over and it has no commit record: it will never have one (6.3).
                record = journal.make(self.epoch, n, journal.Skip(n))
            if record is None:
                return False
            self.n = n
            out.append(record)
        return True

    def _fenced_segments(self) -> list[Segment | None]:
        return [log.segment(self.epoch) for log in self._trusted]


def _bodies_named(records: Iterable[Record]) -> set[int]:
    """Bodies that a commit record among these names."""
    commits = [payload_of(one) for one in records if one.kind == journal.COMMIT]
    return {n for one in commits if isinstance(one, journal.Commit) for n in one.bodies}
