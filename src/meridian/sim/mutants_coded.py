"""Coded journals with one rule of sections 6.2, 6.4 and 6.5 broken each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meridian.adjudicator import events as ev
from meridian.adjudicator.core import Adjudicator
from meridian.clock.tau import Interval
from meridian.journal.chain import Chain
from meridian.journal.coded import SHARD, STREAMS, Segment, StreamPosition, body_of, shard_of
from meridian.journal.coded_reader import Adoption, CodedPosition, CodedReader
from meridian.journal.coded_writer import CodedWriter
from meridian.journal.core import Reader
from meridian.journal.record import Record
from meridian.sim.messages import Parts
from meridian.sim.plans import KINDS
from meridian.sim.world import MS

CODED: dict[str, object] = {"streams": True, "coded": True, "colocated": False}
"""Swarm of these mutants' seeds."""


class OneCopy(CodedReader):
    """Delivers what it finds once."""

    def _next(self, goal: Segment | None) -> Record | None:
        self._covers[self.epoch] = 1 << 62
        return super()._next(goal)


class OneSeal(CodedReader):
    """Believes a SEAL that it finds once."""

    def _proven(self, copies: list[Segment]) -> bool:
        return True


class AnyShards(CodedReader):
    """Combines shards of whatever epoch.  Too rare in the world: tests/journal/test_coded.py."""

    def _next(self, goal: Segment | None) -> Record | None:
        record = super()._next(goal)
        n = self.n + 1
        copies = [s.records[n] for log in self.logs for s in log.segments if n in s.records]
        shards = {shard_of(one).index: one for one in copies if one.kind == SHARD}
        if record is not None or len(shards) < 2:
            return record
        first = next(iter(shards.values()))
        whole = body_of(one._replace(epoch=first.epoch) for one in shards.values())
        return whole or first._replace(kind=3, payload=b"\x01\x93\x00\xc4\x00\x00")


class DropsFoundOnce(CodedReader):
    """Takes over without what is on one fenced stream only."""

    def _adopt_once_found(self, out: list[Record]) -> bool:
        return True


class LowerSeal(CodedReader):
    """Takes over from the last SEAL that is durable for certain, not from the highest."""

    def adopt(self, fenced: Sequence[int]) -> Adoption | None:
        if any(one.epoch > self.epoch for log in self.logs for one in log.segments):
            return Adoption(self.n, self.epoch, ())
        return super().adopt(fenced)


class FencesOne(CodedReader):
    """Takes over with one stream that is fenced and one that is not."""

    def adopt(self, fenced: Sequence[int]) -> Adoption | None:
        other = next(stream for stream in range(STREAMS) if stream != fenced[0])
        return super().adopt((fenced[0], other))


class DurableOnOne(CodedWriter):
    """Durable = valid on one stream."""

    def stored(self, stream: int, count: int) -> None:
        super().stored(stream, count)
        self.durable_n = max(lane.n for lane in self.lanes)


class CommitFirst(CodedWriter):
    """The commit record does not wait for its bodies."""

    def _release(self) -> None:
        durable, self.durable_n = self.durable_n, 1 << 62
        super()._release()
        self.durable_n = durable


class SkipsFreely(CodedWriter):
    """Leaves out in one stream what only one other holds."""

    def _drop(self) -> None:
        while len(self._kept) > 1:
            self._kept.pop(next(iter(self._kept)))

    def _skippable(self, stream: int, first: int) -> bool:
        return True


class NoAdoption(CodedWriter):
    """Seals without making durable what it adopted."""

    def __init__(self, epoch: tuple[int, int], adoption: Adoption, lag_bytes: int) -> None:
        end = adoption.base + len(adoption.records)
        super().__init__(epoch, Adoption(end, adoption.prior, ()), lag_bytes)


class TrustsOldAnswers(CodedWriter):
    """Believes that a stream still holds what it once said."""

    def _open(self, stream: int, end: StreamPosition) -> bool:
        before = self.lanes[stream].n
        open_ = super()._open(stream, end)
        lane = self.lanes[stream]
        if before > lane.n:
            lane.n, lane.next = before, before + 1
        return open_


class AnyGeneration(Chain):
    """Goes on in a stream that came back with less and was filled up again by others."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.generation = None

    def _compare(self, generation: int) -> None:
        pass


class ForgetsSeal(CodedReader):
    """Positions do not say which SEAL is the highest, in history and in each stream."""

    def position(self) -> CodedPosition:
        streams = tuple(StreamPosition(one.index) for one in super().position().streams)
        return CodedPosition(n=self.n, streams=streams)


class TrimsInside(Reader):
    """Takes a place inside an open large transaction for one where reading may begin."""

    def open_n(self) -> int | None:
        return None


class CoversUndurable(Adjudicator):
    """Heartbeats name a record that is not durable."""

    def step(self, now: Interval, event: ev.Event) -> list[ev.Effect]:
        return [
            ev.Heartbeat(one.epoch, self.ledger.n, one.tau)
            if isinstance(one, ev.Heartbeat)
            else one
            for one in super().step(now, event)
        ]


def _parts(**parts: object) -> Parts:
    return Parts(swarm=CODED, **parts)  # type: ignore[arg-type]


def _large(trimmed: int | None = None, **parts: object) -> Parts:
    """With many large transactions; with so many checkpoints."""
    weights = tuple({"read": 1, "update": 1, "large": 6}.get(kind, 0) for kind in KINDS)
    swarm = {**CODED, "weights": weights}
    if trimmed is not None:
        swarm |= {"checkpoints": trimmed, **PLAIN}
    return Parts(swarm=swarm, **parts)  # type: ignore[arg-type]


PLAIN: dict[str, object] = {"sharded": False, "controllers": 0}


def _shrinking(**parts: object) -> Parts:
    """With streams that lose their tails, and many take-overs."""
    lost = {"lost_tails": 12, "takeovers": 30, "elections": 0, "dies_sealing": 0.3}
    return Parts(swarm={**CODED, **PLAIN, **lost, "delay": (MS, MS)}, **parts)  # type: ignore[arg-type]


def _lagging(**parts: object) -> Parts:
    """With streams that lose their tails and others that lag, of one journal."""
    zero = dict.fromkeys(("moves", "adds", "closes", "rots", "crashes"), 0)
    lost = {"lost_tails": 12, "takeovers": 12, "elections": 12, "election": (100 * MS, 600 * MS)}
    lag = {"lag_bytes": 300, "crash_at_append": 0.0, "dies_sealing": 0.0}
    one = {"partitioned": False, "owners": 1, **zero, **lag}
    return Parts(swarm={**CODED, **PLAIN, **one, **lost}, **parts)  # type: ignore[arg-type]


def _trimming(**parts: object) -> Parts:
    """With checkpoints, and many large transactions."""
    return _large(trimmed=8, **parts)


CODED_MUTANTS: tuple[tuple[str, str, int, Parts], ...] = (
    ("coded: delivers one copy", "6.5", 100, _parts(coded_reader=OneCopy)),
    ("coded: believes one SEAL", "6.5", 100, _parts(coded_reader=OneSeal)),
    ("coded: drops what it finds once", "6.5", 100, _parts(coded_reader=DropsFoundOnce)),
    ("coded: starts from a lower SEAL", "6.5", 100, _parts(coded_reader=LowerSeal)),
    ("coded: fences one stream", "6.5", 100, _parts(coded_reader=FencesOne, coded_fences=1)),
    ("coded: durable on one stream", "6.4", 100, _parts(coded_writer=DurableOnOne)),
    ("coded: commit before its bodies", "6.4", 400, _large(coded_writer=CommitFirst)),
    ("coded: skips what one other holds", "6.2", 100, _parts(coded_writer=SkipsFreely)),
    ("coded: seals what it has not copied", "6.5", 200, _parts(coded_writer=NoAdoption)),
    ("coded: trusts a stream that lost", "6.4", 100, _lagging(coded_writer=TrustsOldAnswers)),
    ("coded: trusts a stream filled up again", "6.4", 400, _shrinking(chain=AnyGeneration)),
    ("coded: trim without the highest SEAL", "6.7", 100, _trimming(coded_reader=ForgetsSeal)),
    ("coded: trim in an open transaction", "6.7", 200, _trimming(reader=TrimsInside)),
    ("coded: heartbeat names what is not durable", "4.6", 400, _parts(adjudicator=CoversUndurable)),
)
