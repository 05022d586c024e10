"""Shared streams (sim/nats.py) as nodes, and the journals that lie in one or in three of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from random import Random
from typing import Any

from meridian.journal import core as journal
from meridian.journal.coded import ADOPT, STREAMS, StreamLog, StreamPosition
from meridian.journal.coded_reader import CodedPosition, CodedReader
from meridian.journal.core import Position
from meridian.journal.places import UNREAD, Place, later
from meridian.journal.record import Record
from meridian.sim.messages import Fetch, Records, Stored, StreamPut, Trimmed
from meridian.sim.nats import Ack, JetStream
from meridian.sim.owner import FETCH_RECORDS
from meridian.sim.world import Node, World


class Stream(Node):
    """Node `l<journal>`, or `l<journal>.<stream>` where three make a journal."""

    def __init__(self, world: World, number: int, index: int | None = None) -> None:
        super().__init__(world, f"l{number}" if index is None else f"l{number}.{index}")
        self.number = number
        self.index = index or 0
        self.replicas: list[str] = []
        self.generation = 0
        """Grows when the stream comes back with less than it had."""
        self._random = world.random(f"stream/{self.name}")
        self.model = JetStream(world.random(f"nats/{self.name}"), world.swarm.duplicates_ns)
        self._ends: list[int] = []
        """Records through each message."""
        self._next: dict[str, int] = {}
        self._early: dict[tuple[str, int], tuple[str, StreamPut]] = {}

    def history(self) -> list[Record]:
        """Everything stored, void records included."""
        return [record for message in self.model.messages for record in message]

    # Faults

    def fail(self, kind: str) -> None:
        """One of nats.py's faults, by name."""
        swarm = self.world.swarm
        if self.world.healed:
            return
        self.world.trace(kind, self.name)
        if kind == "step_down":
            self.model.step_down(self.world.now)
        elif kind == "stop_leader":
            self.model.stop_leader(self.world.now, swarm.election)
        elif kind == "fail_all":
            self.model.fail_all(self.world.now, swarm.election)
        else:
            self.model.elect(self.world.now, swarm.election)
        # Connections are lost: what comes next need not be what was sent next.
        self._next.clear()
        self._early.clear()

    def cut(self, index: int) -> None:
        """Messages that end at or before record `index` are gone for readers."""
        place = bisect_right(self._ends, index)
        self.model.purge(place + 1)

    @property
    def first(self) -> int:
        """Index of the first record that was not cut."""
        gone = self.model.first - 1
        return (self._ends[gone - 1] if gone else 0) + 1

    def begin_of(self, place: int) -> int:
        """Records before message `place`, the first of which is 0."""
        return self._ends[place - 1] if place else 0

    def lose_tail(self, count: int) -> None:
        """The last messages are gone, as after a restore."""
        self.world.trace("lost tail", self.name, count)
        self.model.lose_tail(count)
        self._ends = self._ends[: len(self.model.messages)]
        self.generation += 1
        self._next.clear()
        self._early.clear()

    # Requests

    def receive(self, source: str, message: Any) -> None:
        """Appends of owners, reads of owners and replicas."""
        match message:
            case StreamPut():
                delay = self._random.randint(*self.world.swarm.sync)
                self.after(delay, lambda: self._take(source, message))
            case Fetch():
                self._fetch(source, message)

    def _fetch(self, source: str, message: Fetch) -> None:
        length = self.model.length(self.world.now)
        if length is None:
            return
        if message.after + 1 < self.first:
            self.world.send(self.name, source, Trimmed(self.number, self.index))
            return
        end = self._ends[length - 1] if length else 0
        first = bisect_left(self._ends, message.after + 1)
        found: list[Record] = []
        for batch in self.model.messages[first:length]:
            found += batch
            if len(found) >= 2 * FETCH_RECORDS:
                break
        begin = self._ends[first - 1] if first else 0
        wanted = found[message.after - begin :][:FETCH_RECORDS] if message.after < end else []
        self._tell(source, message.after + 1, wanted)

    def _tell(self, target: str, first: int, records: list[Record]) -> None:
        told = Records(self.number, first, records, self.index, self.generation)
        self.world.send(self.name, target, told)

    def _take(self, source: str, put: StreamPut) -> None:
        """In the order of each writer, as its connection keeps it."""
        number = self._next.get(put.writer)
        if number is None or put.number < number:
            if self._store(source, put):
                self._next[put.writer] = max(put.number + 1, number or 0)
            return
        self._early[put.writer, put.number] = (source, put)
        while (put.writer, number) in self._early:
            self._store(*self._early.pop((put.writer, number)))
            number += 1
        self._next[put.writer] = number

    def _store(self, source: str, put: StreamPut) -> bool:
        if put.generation not in (None, self.generation):
            if self.model.up(self.world.now):
                self._answer(source, put, Ack(False, len(self.model.messages)))
            return False
        before = len(self.model.messages)
        key = f"{put.writer}/{put.number}"
        ack = self.model.publish(self.world.now, key, put.expected, put.records)
        if len(self.model.messages) > before:
            first = self._ends[-1] if self._ends else 0
            self._ends.append(first + len(put.records))
            for replica in self.replicas if ack else ():
                self._tell(replica, first + 1, put.records)
        if ack is None:
            return False
        self._answer(source, put, ack)
        return ack.stored

    def _answer(self, source: str, put: StreamPut, ack: Ack) -> None:
        if not ack.stored:
            self.world.trace("rejected", put.writer, put.number)
        through = self._ends[ack.place - 1] if ack.place else 0
        told = Stored(
            put.writer, put.number, ack.stored, ack.place, through, self.index, self.generation
        )
        self.world.send(self.name, source, told)


class SharedJournal:
    """A journal in one stream, or coded in three."""

    def __init__(
        self, world: World, number: int, replicas: list[str], born: Position, *, coded: bool
    ) -> None:
        self.world = world
        self.number = number
        self.coded = coded
        indexes: list[int | None] = [*range(STREAMS)] if coded else [None]
        self.streams = [Stream(world, number, index) for index in indexes]
        for stream in self.streams:
            stream.replicas = replicas
        self.born = born
        start = CodedPosition(streams=(StreamPosition(),) * len(self.streams))
        self.place = Place(born, start)
        """Where reading begins: what the metadata store says."""

    @property
    def beginning(self) -> Position:
        """Everything through it was trimmed."""
        return self.place.history

    def cut(self, place: Place) -> None:
        """Everything before `place` is in a durable checkpoint (6.7)."""
        known = zip(place.generations, self.streams, strict=True)
        if place.history.n <= self.beginning.n or any(
            generation not in (UNREAD, stream.generation) for generation, stream in known
        ):
            return
        self.place = later(self.place, place)
        self.world.trace("trim", f"l{self.number}", place.history.n)
        for stream, at in zip(self.streams, self.place.streams.streams, strict=True):
            stream.cut(at.index)

    def history(self) -> list[Record]:
        """Everything durable, as one stream."""
        if not self.coded:
            return self.streams[0].history()
        reader = CodedReader()
        for index, stream in enumerate(self.streams):
            reader.take(index, stream.history())
        return reader.ready()

    def lose_tail(self, random: Random) -> None:
        """One stream comes back with less, but not less than both others hold.

        Nor less than was trimmed: reading it begins there.
        """
        stream = random.choice(self.streams)
        others = [log_of(one.history()) for one in self.streams if one is not stream]
        kept = self.place.streams.streams[stream.index].index
        messages = stream.model.messages
        count = 0
        for place in reversed(range(len(messages))):
            held = all(held_by(log, record) for log in others for record in messages[place])
            if not held or stream.begin_of(place) < kept:
                break
            count += 1
        if count:
            stream.lose_tail(random.randint(1, count))


def log_of(records: list[Record], start: StreamPosition | None = None) -> StreamLog:
    """What a reader makes of one stream's records."""
    log = StreamLog(start)
    for record in records:
        log.accept(record)
    return log


def held_by(log: StreamLog, record: Record) -> bool:
    """Whether a stream holds what this record of another one says."""
    if record.kind == journal.EPOCH:
        return log.epoch >= record.epoch
    segment = log.segment(record.epoch)
    if segment is None:
        return False
    if record.kind in (ADOPT, journal.SEAL):
        return True
    return record.n in segment.records
