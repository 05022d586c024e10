"""A journal as a shared stream (sim/nats.py), and owners that may contend for it.

What fences is the epoch rule of the readers, and that an owner's chain ends for good at the first
rejection and acknowledges only in order (journal/chain.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import msgspec

from meridian.adjudicator import events as ev
from meridian.journal.chain import Chain, Publish
from meridian.journal.core import EpochId, Marker, Position, make
from meridian.journal.record import Record
from meridian.sim.messages import Fetch, Parts, Records, Stored, StreamPut
from meridian.sim.nats import Ack, JetStream
from meridian.sim.owner import FETCH_RECORDS, Owner
from meridian.sim.world import MS, Node, World

WINDOW = 4
"""Messages of one owner on their way at once."""
RESEND_NS = 120 * MS


class Stream(Node):
    """Node `l<journal>`, or `l<journal>.<stream>` where three make a journal."""

    def __init__(self, world: World, number: int, index: int | None = None) -> None:
        super().__init__(world, f"l{number}" if index is None else f"l{number}.{index}")
        self.number = number
        self.index = index or 0
        self.beginning = Position()
        """Nothing is trimmed; the tau is that of its ADD."""
        self.born = self.beginning
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


class Publisher:
    """One owner's hold on one stream: its marker, what it read through it, then a chain."""

    def __init__(self, owner: Owner, target: str, stored: Callable[[list[Record]], None]) -> None:
        self.read: list[Record] = []
        self.through: int | None = None
        """Records through the own marker, once it is stored."""
        self.chain: Chain | None = None
        self._owner = owner
        self._target = target
        self._stored = stored
        # Two incarnations must never share ids: the second one's messages would be dropped.
        self._writer = owner.parts.writer_id(owner.name, owner.incarnation)
        self._numbers = 0
        self._marker: Publish | None = None
        self._generation = 0
        """Of the stream as it was read, or as it took the marker."""

    @property
    def claimed(self) -> bool:
        """The stream was read through the own marker."""
        return self.through is not None and len(self.read) >= self.through

    def poll(self) -> None:
        """Asks for what is not read yet, and again for what is not answered."""
        if self.chain is None or self.chain.broken:
            self._send(Fetch(len(self.read)))

    def resend(self) -> None:
        """What has no answer is sent again."""
        if self._marker is not None and self.through is None:
            self._put(self._marker)
        if self.chain is not None and not self.chain.broken:
            for message in self.chain.unanswered():
                self._put(message)

    def claim(self, epoch: EpochId) -> None:
        """The marker: no expectation, the stream decides who is owner."""
        self.read, self.through, self.chain = [], None, None
        marker = make(epoch, 0, Marker(self._owner.number))
        self._marker = Publish(self._numbers, None, [marker])
        self._numbers += 1
        self._put(self._marker)

    def learn(self, message: Records) -> bool:
        """Records of the stream; whether they end there, as far as the server knows."""
        if message.generation != self._generation and not self._another(message.generation):
            return False
        for index, record in enumerate(message.records, message.first):
            if index == len(self.read) + 1:
                self.read.append(record)
        if len(message.records) == FETCH_RECORDS:
            self.poll()
            return False
        return message.first + len(message.records) == len(self.read) + 1

    def _another(self, generation: int) -> bool:
        """The stream came back with less; whether its records may be taken from the beginning."""
        if generation < self._generation:
            return False
        if self.chain is not None:
            # The marker may be gone with the tail: it must be claimed again.
            self.chain.broken = True
            return False
        self._generation, self.read = generation, []
        return True

    def append(self, records: list[Record]) -> None:
        """Behind everything appended before."""
        assert self.chain is not None
        for record in records:
            self.chain.append(record)
        self._publish()

    def _publish(self) -> None:
        assert self.chain is not None
        for message in self.chain.publish():
            self._put(message)
        self._numbers = self.chain.next_number

    def hear(self, message: Stored) -> None:
        """An answer."""
        if message.writer != self._writer:
            return
        if self._marker is not None and message.number == self._marker.number:
            if self.through is None and message.accepted:
                self.through = message.records
                if message.generation != self._generation:
                    self._generation, self.read = message.generation, []
                self.chain = self._owner.parts.chain(
                    message.messages, self._numbers, WINDOW, 2_000, message.generation
                )
                self.poll_claimed()
            return
        if self.chain is None or message.number <= (self._marker.number if self._marker else -1):
            return
        if not message.accepted:
            self.chain.rejected(message.number, message.messages, message.generation)
            return
        for batch in self.chain.stored(message.number, message.messages, message.generation):
            self._stored(batch)
            if not self._owner.alive or self.chain is None:
                return
        if not self.chain.broken:
            self._publish()

    def poll_claimed(self) -> None:
        """Reads on to the own marker."""
        self._send(Fetch(len(self.read)))

    def _put(self, message: Publish) -> None:
        put = StreamPut(self._writer, *msgspec.structs.astuple(message))
        self._send(put)

    def _send(self, message: Fetch | StreamPut) -> None:
        self._owner.world.send(self._owner.name, self._target, message)


class StreamOwner(Owner):
    """Owner of a stream: takes over by a marker, reads through it, then seals and serves."""

    def __init__(self, world: World, number: int, parts: Parts, name: str = "") -> None:
        super().__init__(world, number, parts, name)
        self.beginning = Position()
        self._reset()

    def _reset(self) -> None:
        self._publisher = Publisher(self, f"l{self.number}", self._durable)
        self._epoch = (0, 0)
        self._waiting = []
        self._asked = {}
        self._timers = {}
        self._core = None

    def on_start(self) -> None:
        """Reads what is there, to know which epoch to claim."""
        self._reset()
        self._poll()
        self.after(RESEND_NS, self._resend)

    def on_crash(self) -> None:
        """Nothing is lost: the stream is elsewhere."""
        self._core = None

    def _restart_soon(self) -> None:
        """One that was fenced stays down until somebody starts it."""
        if self.alive:
            self.crash()

    # Start

    def _poll(self) -> None:
        if self._core is None:
            self._publisher.poll_claimed()
            self.after(20 * MS, self._poll)

    def _learn(self, message: Records) -> None:
        if self._core is not None:
            return
        end = self._publisher.learn(message)
        if self._publisher.claimed:
            self._begin()
        elif end and self._epoch == (0, 0):
            self._claim()

    def _claim(self) -> None:
        reader = self.parts.reader(self.beginning)
        for record in self._publisher.read:
            reader.accept(record)
        if reader.closed:
            # Nothing is written any more: only outcomes are told.
            self._replay(self.beginning, self._publisher.read)
            self._step(ev.Replayed(reader.position(), reader.epoch))
            return
        self._epoch = (reader.epoch[0] + 1, self._random.getrandbits(32))
        self._publisher.claim(self._epoch)

    def _begin(self) -> None:
        """Everything through the own marker was read."""
        publisher = self._publisher
        reader = self._replay(self.beginning, publisher.read[: publisher.through])
        if reader.epoch != self._epoch:
            self._core = None
            self.after(0, self._restart_soon)
            return
        self._step(ev.Replayed(reader.position(), self._epoch))

    # Appends

    def _resend(self) -> None:
        self._publisher.resend()
        self.after(RESEND_NS, self._resend)

    def _sync(self) -> None:
        if self._waiting:
            batch, self._waiting = self._waiting, []
            self._publisher.append(batch)
            self._buggify()

    def _durable(self, batch: list[Record]) -> None:
        if not self._buggify():
            self._step(ev.Appended(batch[-1].n))

    def trim(self, through_n: int) -> None:
        """Streams are not trimmed in this world."""

    def receive(self, source: str, message: Any) -> None:
        """As an owner, and the stream's answers."""
        match message:
            case Records():
                self._learn(message)
            case Stored():
                self._publisher.hear(message)
                chain = self._publisher.chain
                if self.alive and chain is not None and chain.broken:
                    self._step(ev.AppendFailed("fenced"))
            case _:
                super().receive(source, message)
