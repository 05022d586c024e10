"""The modelled stream as a journal backend (`journal/interface.py`), driven in virtual time.

Every call runs the model until there is an answer.  What a real client would wait for, a retry or
an election, only moves the virtual clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from meridian.errors import Kind, MeridianError
from meridian.journal.chain import Chain, Publish
from meridian.journal.record import Record
from meridian.sim.nats import MS, JetStream, S

RETRY_NS = 100 * MS
PATIENCE_NS = 60 * S
"""An append without an answer for so long ends its writer: the outcome is unknown."""
READ_MESSAGES = 64


class AppendFailed(Exception):
    """The writer is finished.  What it was not told of may have landed (6.8)."""


class VirtualTime:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000 * S

    def wait(self, ns: int = RETRY_NS) -> None:
        """Time passes."""
        self.now += ns


class NatsJournal:
    """One process's view of a journal: several may share a stream.  `name` is used once."""

    def __init__(self, stream: JetStream, time: VirtualTime, name: str) -> None:
        if not stream.sync_always:
            raise MeridianError(
                Kind.JOURNAL_UNAVAILABLE, why="its servers do not sync always (sync_interval)"
            )
        self.stream = stream
        self.time = time
        self.name = name
        self.writers = 0
        self.known_place = 0
        """Messages that certainly exist: an answer said so."""

    def read(self, from_n: int = 0) -> NatsReader:
        """All records with n >= `from_n`; a marker without n counts as what follows it."""
        return NatsReader(self, from_n)

    def open_writer(
        self,
        reader: NatsReader,
        tail: list[Record],
        durable: Callable[[list[Record]], None],
        failed: Callable[[AppendFailed], None],
    ) -> NatsWriter:
        """A writer behind what `reader` has read to its end.

        Fenced if anything was appended since, by a deposed owner too: read again, try again.
        """
        assert reader.end_place is not None, "the reader was not run to its end"
        return NatsWriter(self, reader.end_place, reader.end_n, durable, failed)

    def trim(self, before_n: int) -> int:
        """Drops whole messages that end before `before_n`."""
        stream = self.stream
        place = stream.first
        while place <= len(stream.messages) and stream.messages[place - 1][-1].n < before_n:
            place += 1
        count = place - stream.first
        stream.purge(place)
        return count


class NatsReader:
    """One pass over the stream; `end_place` is set once it has run to the end."""

    def __init__(self, journal: NatsJournal, from_n: int, patience_ns: int = PATIENCE_NS) -> None:
        self.from_n = from_n
        self.end_place: int | None = None
        self.end_n = 0
        self._journal = journal
        self._patience_ns = patience_ns

    def __iter__(self) -> Iterator[Record]:
        place = 1
        while True:
            begin, messages = self._fetch(place)
            if begin > place:
                self._check_trimmed(messages)
                place = begin
            for record in (record for message in messages for record in message):
                self.end_n = max(self.end_n, record.n)
                if self.end_n >= self.from_n:
                    yield record
            place += len(messages)
            if not messages and place > self._journal.known_place:
                break
        self.end_place = place - 1

    def _fetch(self, place: int) -> tuple[int, list[list[Record]]]:
        """Asks until somebody answers, and again while the answer is older than what is known.

        Raises MeridianError JOURNAL_UNAVAILABLE after `patience_ns`.
        """
        journal = self._journal
        until = journal.time.now + self._patience_ns
        while True:
            found = journal.stream.read(journal.time.now, place, READ_MESSAGES)
            if found is not None and (found[1] or place > journal.known_place):
                return found
            if journal.time.now >= until:
                raise MeridianError(Kind.JOURNAL_UNAVAILABLE, why="its stream does not answer")
            journal.time.wait()

    def _check_trimmed(self, messages: list[list[Record]]) -> None:
        """The server silently begins later: nothing may be missing between."""
        first = messages[0][0].n if messages else self.from_n + 1
        if 0 < self.from_n < first:
            raise MeridianError(Kind.JOURNAL_TRIMMED, journal=0, first=first, n=self.from_n)


class Line:
    """A chain's messages to one stream and the answers to them; `stored` hears of its batches."""

    def __init__(
        self, journal: NatsJournal, place: int, stored: Callable[[list[Record]], None]
    ) -> None:
        # Ids of two chains must differ: a repetition is answered with the first one's place.
        journal.writers += 1
        self.chain = Chain(place)
        self._journal = journal
        self._key = f"{journal.name}/{journal.writers}"
        self._stored = stored

    def send(self, messages: list[Publish]) -> bool:
        """Whether anybody answered."""
        journal = self._journal
        answered = False
        for message in messages:
            key = f"{self._key}/{message.number}"
            ack = journal.stream.publish(journal.time.now, key, message.expected, message.records)
            if ack is None:
                continue
            answered = True
            if not ack.stored:
                self.chain.rejected(message.number, ack.place)
                continue
            for batch in self.chain.stored(message.number, ack.place):
                journal.known_place = max(journal.known_place, ack.place)
                self._stored(batch)
        return answered


class StreamWriter(ABC):
    """What writers over modelled streams share: n without gaps, patience, one end."""

    def __init__(self, time: VirtualTime, n: int, failed: Callable[[AppendFailed], None]) -> None:
        self.dead = False
        self.next_n = n + 1
        self._time = time
        self._failed = failed
        self._waited_ns = 0

    @property
    @abstractmethod
    def waiting_bytes(self) -> int:
        """Payload bytes that nothing has taken yet."""

    @abstractmethod
    def _queue(self, record: Record) -> None:
        """The next record, until `flush`."""

    @abstractmethod
    def _flush(self) -> None:
        """Sends what waits; returns when all is answered, or when this writer is dead."""

    def append(self, record: Record) -> None:
        """Queues a record."""
        assert record.n == self.next_n, (record.n, self.next_n)
        self.next_n += 1
        if not self.dead:
            self._queue(record)

    def extend(self, records: list[Record]) -> None:
        """Queues records that come together."""
        for record in records:
            self.append(record)

    def flush(self) -> None:
        """Sends what waits, until it is durable."""
        if not self.dead:
            self._flush()

    def close(self) -> None:
        """Writes what waits, then ends."""
        self.flush()
        self.dead = True

    def _wait(self) -> None:
        self._waited_ns += RETRY_NS
        self._time.wait()

    def _fail(self, why: str) -> None:
        self.dead = True
        self._failed(AppendFailed(why))


class NatsWriter(StreamWriter):
    """Appends through a chain; `flush` returns when all is answered."""

    def __init__(
        self,
        journal: NatsJournal,
        place: int,
        n: int,
        durable: Callable[[list[Record]], None],
        failed: Callable[[AppendFailed], None],
    ) -> None:
        super().__init__(journal.time, n, failed)
        self._line = Line(journal, place, durable)
        self._chain = self._line.chain

    @property
    def waiting_bytes(self) -> int:
        """Payload bytes that no message has taken yet."""
        return self._chain.waiting_bytes

    def _queue(self, record: Record) -> None:
        self._chain.append(record)

    def _flush(self) -> None:
        self._send(self._chain.publish())
        while not self._chain.idle and not self.dead:
            if self._chain.broken:
                self._fail("another owner appended, or this one's messages are lost")
            elif self._waited_ns > PATIENCE_NS:
                self._fail("no answer")
            else:
                again = self._chain.unanswered()
                self._wait()
                self._send(again)
                self._send(self._chain.publish())

    def _send(self, messages: list[Publish]) -> None:
        if self._line.send(messages):
            self._waited_ns = 0
