"""A journal as a shared stream, and owners that may contend for it (facts of the NATS backend).

The stream takes messages from any owner.  An owner chains its messages: each names how many must
lie before it.  A chain alone does not fence: after an interloper's message fills the place of a
rejected one, later messages of the old owner match again and are stored.  What fences is the epoch
rule of the readers, and that an owner stops for good at the first rejection and acknowledges only
in order.
"""

from __future__ import annotations

from typing import Any

from meridian.adjudicator import events as ev
from meridian.journal.core import Marker, Position, make
from meridian.journal.record import Record
from meridian.sim.messages import Fetch, Parts, Records, Stored, StreamPut
from meridian.sim.owner import FETCH_RECORDS, Owner
from meridian.sim.world import MS, Node, World

WINDOW = 4
"""Messages of one owner on their way at once."""
RESEND_NS = 120 * MS


class Stream(Node):
    """Node `l<number>`: never fails, may pause."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, f"l{number}")
        self.number = number
        self.beginning = Position()
        """Nothing is trimmed; the tau is that of its ADD."""
        self.born = self.beginning
        self.replicas: list[str] = []
        self._random = world.random(f"stream/{number}")
        self._messages = 0
        self._records: list[Record] = []
        self._next: dict[str, int] = {}
        self._early: dict[tuple[str, int], tuple[str, StreamPut]] = {}
        self._told: dict[tuple[str, int], Stored] = {}

    def history(self) -> list[Record]:
        """Everything stored, void records included."""
        return self._records

    def receive(self, source: str, message: Any) -> None:
        """Appends of owners, reads of owners and replicas."""
        match message:
            case StreamPut():
                delay = self._random.randint(*self.world.swarm.sync)
                self.after(delay, lambda: self._take(source, message))
            case Fetch():
                self._fetch(source, message)

    def _fetch(self, source: str, message: Fetch) -> None:
        wanted = self._records[message.after : message.after + FETCH_RECORDS]
        self.world.send(self.name, source, Records(self.number, message.after + 1, wanted))

    def _take(self, source: str, put: StreamPut) -> None:
        """In the order of each writer; a repeated message gets its first answer."""
        told = self._told.get((put.writer, put.number))
        if told is not None:
            self.world.send(self.name, source, told)
            return
        self._early[put.writer, put.number] = (source, put)
        number = self._next.setdefault(put.writer, 0)
        while (put.writer, number) in self._early:
            self._store(*self._early.pop((put.writer, number)))
            number += 1
        self._next[put.writer] = number

    def _store(self, source: str, put: StreamPut) -> None:
        accepted = put.expected is None or put.expected == self._messages
        if accepted:
            self._messages += 1
            first = len(self._records) + 1
            self._records += put.records
            for replica in self.replicas:
                records = Records(self.number, first, put.records)
                self.world.send(self.name, replica, records)
        else:
            self.world.trace("rejected", put.writer, put.number)
        told = Stored(put.writer, put.number, accepted, self._messages, len(self._records))
        self._told[put.writer, put.number] = told
        self.world.send(self.name, source, told)


class StreamOwner(Owner):
    """Owner of a stream: takes over by a marker, reads through it, then seals and serves."""

    def __init__(self, world: World, number: int, parts: Parts, name: str = "") -> None:
        super().__init__(world, number, parts, name)
        self._stream = f"l{number}"
        self.beginning = Position()
        self._reset()

    def _reset(self) -> None:
        self._writer = f"{self.name}.{self.incarnation}"
        self._read: list[Record] = []
        self._through: int | None = None
        self._epoch = (0, 0)
        self._sent = 0
        self._tail = 0
        self._flying: list[StreamPut] = []
        self._results: dict[int, Stored] = {}
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
            self.world.send(self.name, self._stream, Fetch(len(self._read)))
            self.after(20 * MS, self._poll)

    def _learn(self, message: Records) -> None:
        if self._core is not None:
            return
        for index, record in enumerate(message.records, message.first):
            if index == len(self._read) + 1:
                self._read.append(record)
        if len(message.records) == FETCH_RECORDS:
            return
        if not self._flying and self._through is None and message.first == len(self._read) + 1:
            self._claim()
        elif self._through is not None and len(self._read) >= self._through:
            self._begin()

    def _claim(self) -> None:
        """The marker: no expectation, the stream decides who is owner."""
        reader = self.parts.reader(self.beginning)
        for record in self._read:
            reader.accept(record)
        if reader.closed:
            # Nothing is written any more: only outcomes are told.
            self._replay(self.beginning, self._read)
            self._step(ev.Replayed(reader.position(), reader.epoch))
            return
        self._epoch = (reader.epoch[0] + 1, self._random.getrandbits(32))
        self._put([make(self._epoch, 0, Marker(self.number))], None)

    def _begin(self) -> None:
        """Everything through the own marker was read."""
        assert self._through is not None
        reader = self._replay(self.beginning, self._read[: self._through])
        if reader.epoch != self._epoch:
            self.after(0, self._restart_soon)
            return
        self._step(ev.Replayed(reader.position(), self._epoch))

    # Appends

    def _put(self, records: list[Record], expected: int | None) -> None:
        put = StreamPut(self._writer, self._sent, expected, records)
        self._sent += 1
        self._flying.append(put)
        self.world.send(self.name, self._stream, put)

    def _resend(self) -> None:
        for put in self._flying:
            if put.number not in self._results:
                self.world.send(self.name, self._stream, put)
        self.after(RESEND_NS, self._resend)

    def _sync(self) -> None:
        if not self._waiting or len(self._flying) >= WINDOW:
            return
        batch, self._waiting = self._waiting, []
        self._put(batch, self._tail)
        self._tail += 1
        self._buggify()
        self._sync()

    def _stored(self, message: Stored) -> None:
        if message.writer != self._writer:
            return
        self._results[message.number] = message
        while self._flying and self._flying[0].number in self._results:
            put = self._flying.pop(0)
            result = self._results[put.number]
            if self._through is None:
                self._through, self._tail = result.records, result.messages
            elif not result.accepted:
                self._step(ev.AppendFailed("fenced"))
                return
            elif not self._buggify():
                self._step(ev.Appended(put.records[-1].n))
            if not self.alive:
                return
        self._sync()

    def trim(self, through_n: int) -> None:
        """Streams are not trimmed in this world."""

    def receive(self, source: str, message: Any) -> None:
        """As an owner, and the stream's answers."""
        match message:
            case Records():
                self._learn(message)
            case Stored():
                self._stored(message)
            case _:
                super().receive(source, message)
