"""Owners that contend for shared streams: what those of one stream and of three have in common.

What fences is the epoch rule of the readers, and that an owner's chain ends for good at the first
rejection and acknowledges only in order (journal/chain.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from meridian.adjudicator import events as ev
from meridian.journal.chain import Chain, Publish
from meridian.journal.coded import StreamLog, StreamPosition
from meridian.journal.core import EpochId, Marker, Reader, make
from meridian.journal.places import Place
from meridian.journal.record import Record
from meridian.sim.messages import Fetch, Parts, Records, Stored, StreamPut, Trimmed
from meridian.sim.owner import FETCH_RECORDS, Owner
from meridian.sim.stream import SharedJournal, log_of
from meridian.sim.world import MS, World

WINDOW = 4
"""Messages of one owner on their way at once."""
RESEND_NS = 120 * MS
POLL_NS = 20 * MS


class Publisher:
    """One owner's hold on one stream: its marker, what it read through it, then a chain."""

    def __init__(
        self,
        owner: Owner,
        target: str,
        start: StreamPosition,
        stored: Callable[[list[Record]], None],
    ) -> None:
        self.start = start
        """Where reading began: what lies before may be trimmed."""
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
        return self.through is not None and self._index >= self.through

    @property
    def broken(self) -> bool:
        """The chain ended: what became of its messages is not known."""
        return self.chain is not None and self.chain.broken

    @property
    def generation(self) -> int:
        """Of the stream as it was read, or as it took the marker."""
        return self._generation

    @property
    def _index(self) -> int:
        """Of the last record read."""
        return self.start.index + len(self.read)

    def claimed_part(self) -> list[Record]:
        """What was read, through the own marker."""
        assert self.through is not None
        return self.read[: self.through - self.start.index]

    def log(self) -> StreamLog:
        """What a reader makes of what was read through the own marker."""
        return log_of(self.claimed_part(), self.start)

    def poll(self) -> None:
        """Asks for what is not read yet."""
        self._send(Fetch(self._index))

    def resend(self) -> None:
        """What has no answer is sent again."""
        if self._marker is not None and self.through is None:
            self._put(self._marker)
        if self.chain is not None and not self.chain.broken:
            for message in self.chain.unanswered():
                self._put(message)

    def claim(self, epoch: EpochId, start: StreamPosition) -> None:
        """The marker: no expectation, the stream decides who is owner."""
        self.start = start
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
            if index == self._index + 1:
                self.read.append(record)
        if len(message.records) == FETCH_RECORDS:
            self.poll()
            return False
        return message.first + len(message.records) == self._index + 1

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
                self.poll()
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

    def _put(self, message: Publish) -> None:
        put = StreamPut(self._writer, *msgspec.structs.astuple(message))
        self._send(put)

    def _send(self, message: Fetch | StreamPut) -> None:
        self._owner.world.send(self._owner.name, self._target, message)


class SharedOwner(Owner):
    """Reads from where the journal begins, claims its streams with a marker, reads through it."""

    def __init__(
        self, world: World, number: int, parts: Parts, name: str, journal: SharedJournal
    ) -> None:
        super().__init__(world, number, parts, name)
        self.journal = journal
        self._reset()

    def _reset(self) -> None:
        self._place: Place = self.journal.place
        """Where this life began to read."""
        self._publishers = [
            Publisher(self, stream.name, start, partial(self._stored, index))
            for index, (stream, start) in enumerate(
                zip(self.journal.streams, self._place.streams.streams, strict=True)
            )
        ]
        self._epoch: EpochId = (0, 0)
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
        """Nothing is lost: the streams are elsewhere."""
        self._core = None

    def _restart_soon(self) -> None:
        """One that was fenced stays down until somebody starts it."""
        if self.alive:
            self.crash()

    def trim(self, through_n: int) -> None:
        """Who publishes a checkpoint cuts the streams: their owner need not be there."""

    # What differs

    @abstractmethod
    def _unread(self) -> list[int]:
        """Streams of which more is to be read."""

    @abstractmethod
    def _look(self, index: int) -> None:
        """Something was heard from a stream."""

    @abstractmethod
    def _stored(self, index: int, batch: list[Record]) -> None:
        """Records appended to a stream are in it."""

    # Claims

    def _poll(self) -> None:
        for index in self._unread():
            self._publishers[index].poll()
        self.after(POLL_NS, self._poll)

    def _resend(self) -> None:
        for publisher in self._publishers:
            publisher.resend()
        self.after(RESEND_NS, self._resend)

    def _claim_all(self, above: int) -> None:
        """An epoch of its own, higher than any that was seen."""
        self._epoch = (above + 1, self._random.getrandbits(32))
        for index in range(len(self._publishers)):
            self._claim(index)

    def _claim(self, index: int) -> None:
        # Before it begins, all streams are read from one place.
        place = self._place if self._core is None else self.journal.place
        self._publishers[index].claim(self._epoch, place.streams.streams[index])

    def _follow(self, history: list[Record]) -> Reader:
        """The adjudicator as of the end of this history."""
        return self._replay(self._place.history, history)

    def _ended(self, history: list[Record]) -> None:
        """CLOSE is in: nothing is claimed any more, outcomes are told."""
        reader = self._follow(history)
        self._step(ev.Replayed(reader.position(), reader.epoch))

    def _trimmed(self, index: int) -> None:
        """The journal begins later by now."""
        begins = self.journal.place.streams.streams[index].index
        if begins <= self._publishers[index].start.index or index not in self._unread():
            return
        if self._core is None:
            self._restart_soon()
        else:
            self._claim(index)

    def receive(self, source: str, message: Any) -> None:
        """As an owner, and the streams' answers."""
        match message:
            case Records():
                if message.stream in self._unread():
                    self._learn(message)
                    self._look(message.stream)
            case Stored():
                self._publishers[message.stream].hear(message)
                if self.alive:
                    self._look(message.stream)
            case Trimmed():
                self._trimmed(message.stream)
            case _:
                super().receive(source, message)

    def _learn(self, message: Records) -> None:
        self._publishers[message.stream].learn(message)


class StreamOwner(SharedOwner):
    """Owner of one stream: takes over by a marker, reads through it, then seals and serves."""

    def _unread(self) -> list[int]:
        return [0] if self._core is None else []

    def _learn(self, message: Records) -> None:
        if self._publishers[0].learn(message) and self._epoch == (0, 0):
            self._choose()

    def _choose(self) -> None:
        """The end was read, as far as the server knows."""
        reader = self.parts.reader(self._place.history)
        read = self._publishers[0].read
        for record in read:
            reader.accept(record)
        if reader.closed:
            self._ended(read)
        else:
            self._claim_all(reader.epoch[0])

    def _look(self, index: int) -> None:
        publisher = self._publishers[0]
        if self._core is None and publisher.claimed:
            self._begin()
        elif publisher.broken:
            self._step(ev.AppendFailed("fenced"))

    def _begin(self) -> None:
        """Everything through the own marker was read."""
        reader = self._follow(self._publishers[0].claimed_part())
        if reader.epoch != self._epoch:
            self._core = None
            self.after(0, self._restart_soon)
            return
        self._step(ev.Replayed(reader.position(), self._epoch))

    # Appends

    def _sync(self) -> None:
        if self._waiting:
            batch, self._waiting = self._waiting, []
            self._publishers[0].append(batch)
            self._buggify()

    def _stored(self, index: int, batch: list[Record]) -> None:
        if not self._buggify():
            self._step(ev.Appended(batch[-1].n))
