"""A stream and an owner of a coded journal, as shells drive `CodedWriter` (sim/coded.py).

Nothing happens by itself: tests/journal/coded_net.py decides what arrives when.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple, Protocol
from zlib import crc32

from meridian.journal import core as journal
from meridian.journal.chain import Chain, Publish
from meridian.journal.coded import STREAMS
from meridian.journal.coded_reader import CodedReader
from meridian.journal.coded_writer import CodedWriter
from meridian.journal.core import EpochId, make
from meridian.journal.record import Record
from meridian.sim.stream import log_of

WINDOW, MESSAGE_BYTES, TAKE_BYTES = 3, 30, 60


class Kinds(NamedTuple):
    """What is under test; mutants replace one."""

    reader: type[CodedReader] = CodedReader
    writer: type[CodedWriter] = CodedWriter
    chain: type[Chain] = Chain


class Answer(NamedTuple):
    """What a stream says of one message; `place`: messages in it, through this one if stored."""

    number: int
    stored: bool
    place: int
    generation: int


class Server:
    """One stream, as JetStream has it (sim/nats.py), without time."""

    def __init__(self) -> None:
        self.messages: list[list[Record]] = []
        self.seen: dict[str, int] = {}
        self.generation = 0
        self.stalled = False

    def records(self) -> list[Record]:
        """Everything stored, void records included."""
        return [record for message in self.messages for record in message]

    def put(self, owner: str, message: Publish) -> Answer:
        """Stores a message if it is of this generation and finds its place."""
        number, length, key = message.number, len(self.messages), f"{owner}/{message.number}"
        if message.generation not in (None, self.generation):
            return Answer(number, False, length, self.generation)
        if key in self.seen:
            return Answer(number, True, self.seen[key], self.generation)
        if message.expected not in (None, length):
            return Answer(number, False, length, self.generation)
        self.messages.append(message.records)
        self.seen[key] = length + 1
        return Answer(number, True, length + 1, self.generation)

    def lose(self, count: int) -> None:
        """Comes back as a copy without the last messages: another generation."""
        del self.messages[-count:]
        self.seen = {key: at for key, at in self.seen.items() if at <= len(self.messages)}
        self.generation += 1


class World(Protocol):
    """What an owner knows of where it lives."""

    random: Random
    kinds: Kinds
    servers: list[Server]
    lag_bytes: int

    def send(self, owner: Owner, stream: int, message: Publish) -> None:
        """A message sets out."""
        ...


class Hold:
    """An owner's hold on one stream: its marker, then a chain."""

    def __init__(self) -> None:
        self.marker = Publish(-1, None, [])
        self.numbers = 0
        self.place = 0
        """Of the own marker, once it is stored."""
        self.generation = 0
        self.known = 0
        """The generation as seen before all claims, or taken note of since."""
        self.chain: Chain | None = None
        self.judged = False
        self.fenced = False
        """Read through the own marker, which is the highest there."""
        self.read: list[Record] = []


class Owner:
    """One epoch, as the shells drive it (sim/coded.py)."""

    def __init__(self, net: World, name: str, epoch: EpochId, seen: Sequence[int]) -> None:
        self.net, self.name, self.epoch = net, name, epoch
        self.holds = [Hold() for _ in range(STREAMS)]
        self.writer: CodedWriter | None = None
        self.told: dict[int, Record] = {}
        self.durable_n = 0
        self.n = 0
        for stream in seen:
            self.holds[stream].known = net.servers[stream].generation
        for stream in range(STREAMS):
            self.claim(stream)

    @property
    def dead(self) -> bool:
        """Nothing of it can become durable any more, as far as it knows."""
        if self.writer is not None:
            return self.writer.dead
        return sum(hold.judged and not hold.fenced for hold in self.holds) >= 2

    # One stream

    def claim(self, stream: int) -> None:
        """A marker, wherever it comes to stand."""
        hold = self.holds[stream]
        hold.marker = Publish(hold.numbers, None, [make(self.epoch, 0, journal.Marker(0))])
        hold.numbers += 1
        hold.place, hold.chain = 0, None
        hold.judged = hold.fenced = False
        self._send(stream, hold.marker)

    def hear(self, stream: int, answer: Answer) -> None:
        """An answer, of whichever chain."""
        hold, writer = self.holds[stream], self.writer
        if answer.number == hold.marker.number:
            if not hold.place and answer.stored:
                hold.place, hold.generation = answer.place, answer.generation
                hold.chain = self.net.kinds.chain(
                    answer.place, hold.numbers, WINDOW, MESSAGE_BYTES, answer.generation
                )
            return
        if hold.chain is None or answer.number < hold.marker.number:
            return
        if answer.stored:
            for batch in hold.chain.stored(answer.number, answer.place, answer.generation):
                if writer is not None and writer.lanes[stream].open:
                    writer.stored(stream, len(batch))
        else:
            hold.chain.rejected(answer.number, answer.place, answer.generation)
        self._publish(stream)
        self._look(stream)

    def _look(self, stream: int) -> None:
        hold, writer = self.holds[stream], self.writer
        if hold.chain is not None and hold.chain.broken:
            if writer is not None:
                if writer.lanes[stream].fenced:
                    return
                writer.closed(stream)
            self.claim(stream)

    def judge(self, stream: int) -> None:
        """Reads through the own marker."""
        hold, server = self.holds[stream], self.net.servers[stream]
        if hold.judged or not hold.place or server.stalled:
            return
        if server.generation != hold.generation:
            self.claim(stream)
            return
        hold.judged = True
        hold.read = [one for message in server.messages[: hold.place] for one in message]
        log = log_of(hold.read)
        hold.fenced = log.epoch == self.epoch
        if self.writer is None:
            return
        if not hold.fenced:
            self.writer.fenced(stream)
        elif hold.generation == hold.known:
            self.writer.opened(stream, log.position_now())
        else:
            hold.known = hold.generation
            for other in self.writer.returned(stream, log.position_now()):
                self.claim(other)

    # All streams

    def begin(self) -> None:
        """History is what two streams hold."""
        fenced = [stream for stream in range(STREAMS) if self.holds[stream].fenced]
        if self.writer is not None or len(fenced) < 2:
            return
        reader = self.net.kinds.reader()
        for stream, hold in enumerate(self.holds):
            part = hold.read
            if stream not in fenced:
                part = self.net.servers[stream].records()
                part = part[: self.net.random.randint(0, len(part))]
            reader.take(stream, part)
        reader.ready()
        adoption = reader.adopt(fenced)
        if adoption is None:
            return
        self.n = adoption.base + len(adoption.records)
        self.writer = self.net.kinds.writer(self.epoch, adoption, self.net.lag_bytes)
        for stream in fenced:
            self.holds[stream].known = self.holds[stream].generation
            log = log_of(self.holds[stream].read)
            self.writer.opened(stream, log.position_now())
        self.append(journal.Seal(0, 0))

    def append(self, payload: journal.Payload, txid: bytes = bytes(16)) -> int:
        """The next record."""
        assert self.writer is not None
        self.n += 1
        self.told[self.n] = make(self.epoch, self.n, payload, 0, txid)
        self.writer.append(self.told[self.n])
        return self.n

    def work(self) -> None:
        """A small record, or a transaction with bodies that may never commit."""
        random, bodies, crc = self.net.random, [], 0
        if self.writer is None or self.dead:
            return
        txid = random.randbytes(16)
        for seq in range(random.choice((0, 0, 1, 2))):
            chunk = random.randbytes(random.randint(0, 6))
            bodies.append(self.append(journal.Body(seq, chunk), txid))
            crc = crc32(chunk, crc)
        if not bodies:
            self.append(journal.Lease(random.getrandbits(40)))
        elif random.random() < 0.7:
            self.append(journal.Commit(0, 0, 0, 0, tuple(bodies), crc, b""), txid)

    def pump(self, stream: int, *, again: bool) -> None:
        """Sends what a stream lacks, and once more what has no answer."""
        hold, writer = self.holds[stream], self.writer
        if not hold.place:
            if again:
                self._send(stream, hold.marker)
            return
        if hold.chain is None or hold.chain.broken:
            return
        if again:
            for message in hold.chain.unanswered():
                self._send(stream, message)
        if writer is not None and writer.lanes[stream].open and not hold.chain.waiting_bytes:
            for record in writer.take(stream, TAKE_BYTES):
                hold.chain.append(record)
            self._publish(stream)

    def _publish(self, stream: int) -> None:
        hold = self.holds[stream]
        assert hold.chain is not None
        for message in hold.chain.publish():
            self._send(stream, message)
        hold.numbers = max(hold.numbers, hold.chain.next_number)

    def _send(self, stream: int, message: Publish) -> None:
        self.net.send(self, stream, message)
