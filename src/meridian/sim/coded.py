"""A coded journal: three streams, and owners that take it over and write it (6.4, 6.5)."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

from meridian.adjudicator import events as ev
from meridian.journal import core as journal
from meridian.journal.coded import ADOPT, STREAMS, StreamLog
from meridian.journal.coded_reader import CodedReader, with_markers
from meridian.journal.coded_writer import CodedWriter
from meridian.journal.core import Marker, Position, make
from meridian.journal.record import Record
from meridian.sim.messages import Parts, Records, Stored
from meridian.sim.owner import Owner
from meridian.sim.stream import RESEND_NS, Publisher, Stream
from meridian.sim.world import MS, World

PEEK_NS = 60 * MS
"""How long a new owner looks for the highest epoch before it claims a higher one."""
POLL_NS = 20 * MS
LANE_RECORDS = 16
"""Records on their way to one stream; more wait, and may be skipped there."""


class CodedJournal:
    """The three streams of one journal."""

    def __init__(self, world: World, number: int, replicas: list[str], born: Position) -> None:
        self.number = number
        self.born = self.beginning = born
        self.streams = [Stream(world, number, index) for index in range(STREAMS)]
        for stream in self.streams:
            stream.replicas = replicas

    def history(self) -> list[Record]:
        """Everything durable, as one stream."""
        reader = CodedReader()
        for index, stream in enumerate(self.streams):
            reader.take(index, stream.history())
        return reader.ready()

    def lose_tail(self, random: Random) -> None:
        """One stream comes back with less, but not less than both others hold."""
        stream = random.choice(self.streams)
        others = [_log(one.history()) for one in self.streams if one is not stream]
        count = 0
        for message in reversed(stream.model.messages):
            if not all(_held(log, record) for log in others for record in message):
                break
            count += 1
        if count:
            stream.lose_tail(random.randint(1, count))


def _log(records: list[Record]) -> StreamLog:
    log = StreamLog()
    for record in records:
        log.accept(record)
    return log


def _held(log: StreamLog, record: Record) -> bool:
    """Whether a stream holds what this record of another one says."""
    if record.kind == journal.EPOCH:
        return log.epoch >= record.epoch
    segment = log.segment(record.epoch)
    if segment is None:
        return False
    if record.kind in (ADOPT, journal.SEAL):
        return True
    return record.n in segment.records


class CodedOwner(Owner):
    """Claims three streams, begins once it has two of them, writes to all it has."""

    def __init__(self, world: World, number: int, parts: Parts, name: str = "") -> None:
        super().__init__(world, number, parts, name)
        self.beginning = Position()
        self._reset()

    def _reset(self) -> None:
        self._publishers = [
            Publisher(self, f"l{self.number}.{index}", partial(self._stored, index))
            for index in range(STREAMS)
        ]
        self._epoch = (0, 0)
        self._judged: set[int] = set()
        """Streams read through the own marker."""
        self._fenced: list[int] = []
        """Those where it is the highest."""
        self._writer: CodedWriter | None = None
        self._durable_n = 0
        self._waiting = []
        self._asked = {}
        self._timers = {}
        self._core = None

    def on_start(self) -> None:
        """Looks for the highest epoch, then claims the next."""
        self._reset()
        self._poll()
        self.after(PEEK_NS, self._claim)
        self.after(RESEND_NS, self._resend)

    def on_crash(self) -> None:
        """Nothing is lost: the streams are elsewhere."""
        self._core = None

    def _restart_soon(self) -> None:
        """One that was fenced stays down until somebody starts it."""
        if self.alive:
            self.crash()

    def trim(self, through_n: int) -> None:
        """Streams are not trimmed in this world."""

    # Take-over

    def _poll(self) -> None:
        for index, publisher in enumerate(self._publishers):
            if index not in self._judged:
                publisher.poll_claimed()
        self.after(POLL_NS, self._poll)

    def _resend(self) -> None:
        for publisher in self._publishers:
            publisher.resend()
        self.after(RESEND_NS, self._resend)

    def _claim(self) -> None:
        logs = [_log(publisher.read) for publisher in self._publishers]
        if self._closed():
            return
        number = 1 + max(log.epoch[0] for log in logs)
        self._epoch = (number, self._random.getrandbits(32))
        for publisher in self._publishers:
            publisher.claim(self._epoch)

    def _closed(self) -> bool:
        """A journal that ended: nothing is claimed any more, outcomes are told."""
        reader = self.parts.coded_reader()
        for index, publisher in enumerate(self._publishers):
            reader.take(index, publisher.read)
        history = reader.ready()
        if not any(record.kind == journal.CLOSE for record in history):
            return False
        logical = self._replay(self.beginning, history)
        self._step(ev.Replayed(logical.position(), logical.epoch))
        return True

    def _judge(self, index: int) -> None:
        """The stream was read through the own marker: whose is it?"""
        publisher = self._publishers[index]
        log = _log(publisher.read[: publisher.through])
        self._judged.add(index)
        if log.epoch == self._epoch:
            self._fenced.append(index)
            if self._writer is not None and not self._writer.opened(index, log.position_now()):
                self.world.trace("left out", self.name, index)
            self._pump()
        elif self._writer is not None:
            self._writer.fenced(index)
            self._check_dead()
        elif len(self._judged) - len(self._fenced) >= 2:
            self.after(0, self._restart_soon)

    def _begin(self) -> None:
        """Two streams are fenced: history is what they hold (6.5)."""
        reader = self.parts.coded_reader()
        for index, publisher in enumerate(self._publishers):
            end = publisher.through if index in self._fenced else None
            reader.take(index, publisher.read[:end])
        history = reader.ready()
        adoption = reader.adopt(self._fenced)
        if adoption is None:
            # A body that committed is on the third stream too, which is not read that far.
            return
        found = [*history, *with_markers(adoption.records)]
        if any(record.kind == journal.CLOSE for record in found):
            self.after(0, self._restart_soon)
        self.world.trace("adopted", self.name, adoption.base, len(adoption.records))
        self._writer = self.parts.coded_writer(self._epoch, adoption, self.world.swarm.lag_bytes)
        for index in self._fenced:
            publisher = self._publishers[index]
            self._writer.opened(index, _log(publisher.read[: publisher.through]).position_now())
        logical = self._replay(self.beginning, [*found, make(self._epoch, 0, Marker(self.number))])
        self._step(ev.Replayed(logical.position(), self._epoch))

    # Appends

    def _sync(self) -> None:
        batch, self._waiting = self._waiting, []
        assert self._writer is not None
        for record in batch:
            self._writer.append(record)
        self._pump()

    def _pump(self) -> None:
        writer = self._writer
        if writer is None:
            return
        for index, lane in enumerate(writer.lanes):
            if lane.open and len(lane.sent) < LANE_RECORDS:
                batch = writer.take(index, 500)
                if batch:
                    self._publishers[index].append(batch)
                    if self._buggify() or self._dies_sealing(index, batch):
                        return

    def _dies_sealing(self, index: int, batch: list[Record]) -> bool:
        """An owner whose SEAL is on one stream only, and that stream stalls: a buggified moment."""
        world = self.world
        sealing = any(record.kind == journal.SEAL for record in batch)
        if world.healed or not sealing or self._random.random() > world.swarm.dies_sealing:
            return False
        stream = world.nodes[f"l{self.number}.{index}"]
        assert isinstance(stream, Stream)
        world.at(world.now + self._random.randint(5 * MS, 60 * MS), lambda: stream.fail("elect"))
        self._restart_soon()
        return True

    def _stored(self, index: int, batch: list[Record]) -> None:
        writer = self._writer
        if writer is None or not writer.lanes[index].open:
            return
        writer.stored(index, len(batch))
        if self._buggify():
            return
        if writer.durable_n > self._durable_n:
            self._durable_n = writer.durable_n
            self._step(ev.Appended(self._durable_n))
        if self.alive:
            self._pump()

    def _broken(self, index: int) -> None:
        """Fenced, or the stream lost something: its marker tells."""
        if self._writer is not None:
            if self._writer.lanes[index].fenced:
                # Given up, even if the higher marker is gone with a lost tail.
                return
            self._writer.closed(index)
        self._judged.discard(index)
        if index in self._fenced:
            self._fenced.remove(index)
        self._publishers[index].claim(self._epoch)

    def _check_dead(self) -> None:
        if self._writer is not None and self._writer.dead:
            self._step(ev.AppendFailed("fenced"))

    def receive(self, source: str, message: Any) -> None:
        """As an owner, and the streams' answers."""
        match message:
            case Records():
                self._publishers[message.stream].learn(message)
                self._look(message.stream)
            case Stored():
                self._publishers[message.stream].hear(message)
                self._look(message.stream)
            case _:
                super().receive(source, message)

    def _look(self, index: int) -> None:
        publisher = self._publishers[index]
        if not self.alive or self._epoch == (0, 0):
            return
        if publisher.chain is not None and publisher.chain.broken:
            self._broken(index)
        elif index not in self._judged and publisher.claimed:
            self._judge(index)
        if self.alive and self._writer is None and len(self._fenced) >= self.parts.coded_fences:
            self._begin()
