"""A coded journal over three modelled streams as a journal backend (`journal/interface.py`).

As in `nats_journal.py` every call runs until there is an answer, and waiting moves the virtual
clock.  What differs from a backend of one stream: an owner appends its marker, with n = 0, and then
its SEAL before anything else; `CodedJournalWriter.found` is what the marker found in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from meridian.errors import Kind, MeridianError
from meridian.journal import core
from meridian.journal.chain import MESSAGE_BYTES
from meridian.journal.coded import STREAMS, StreamLog
from meridian.journal.coded_reader import CodedReader, with_markers
from meridian.journal.coded_writer import CodedWriter
from meridian.journal.core import EpochId, Reader
from meridian.journal.places import Place, Places, later
from meridian.journal.record import Record
from meridian.sim.nats import JetStream
from meridian.sim.nats_journal import (
    PATIENCE_NS,
    AppendFailed,
    Line,
    NatsJournal,
    NatsReader,
    StreamWriter,
    VirtualTime,
)


class ThreeStreams:
    """What all processes share: the streams, and where reading them begins (6.7)."""

    def __init__(self, streams: Sequence[JetStream]) -> None:
        assert len(streams) == STREAMS
        self.streams = streams
        self.place = Place()


class CodedJournal:
    """One process's view of a coded journal.  `name` is used once."""

    def __init__(self, shared: ThreeStreams, time: VirtualTime, name: str) -> None:
        self.shared = shared
        self.time = time
        self.single = [
            NatsJournal(stream, time, f"{name}/{index}")
            for index, stream in enumerate(shared.streams)
        ]

    def read(self, from_n: int = 0) -> CodedJournalReader:
        """All records with n >= `from_n` that are durable for certain."""
        return CodedJournalReader(self, from_n)

    def open_writer(
        self,
        reader: CodedJournalReader,
        tail: list[Record],
        durable: Callable[[list[Record]], None],
        failed: Callable[[AppendFailed], None],
    ) -> CodedJournalWriter:
        """A writer behind what `reader` has read to its end; its first record is its marker."""
        assert reader.ended, "the reader was not run to its end"
        return CodedJournalWriter(self, reader.end_n, durable, failed)

    def trim(self, before_n: int) -> int:
        """Drops whole messages behind which reading can begin; how many."""
        history, places = Reader(self.shared.place.history), Places()
        for reader, records in self.walk():
            for record in records:
                accepted = history.accept(record)
                assert accepted is not None, record
            places.note(history, reader.position(), (0,) * STREAMS)
        place = places.newest(before_n - 1)
        if place is None:
            return 0
        self.shared.place = later(self.shared.place, place)
        starts = self.shared.place.streams.streams
        pairs = zip(self.shared.streams, starts, strict=True)
        return sum(_cut(stream, start.index) for stream, start in pairs)

    def walk(self) -> Iterator[tuple[CodedReader, list[Record]]]:
        """Reads the streams side by side: after each step the reader, and what it delivers.

        Raises MeridianError JOURNAL_UNAVAILABLE if fewer than two streams answer.
        """
        reader = CodedReader(self.shared.place.streams)
        parts: list[list[Record]] = []
        silent = 0
        for index in range(STREAMS):
            try:
                parts.append(self.stream_records(index, PATIENCE_NS)[0])
            except MeridianError as error:
                silent += 1
                if error.kind is not Kind.JOURNAL_UNAVAILABLE or silent > 1:
                    raise
                parts.append([])
        for step in range(max(map(len, parts))):
            for index, part in enumerate(parts):
                reader.take(index, part[step : step + 1])
            yield reader, reader.ready()

    def stream_records(self, index: int, patience_ns: int) -> tuple[list[Record], int]:
        """What one stream holds from where reading begins, and its length in messages."""
        single = self.single[index]
        reader = NatsReader(single, 0, patience_ns)
        records = list(reader)
        assert reader.end_place is not None
        gone = sum(map(len, single.stream.messages[: single.stream.first - 1]))
        return records[self.shared.place.streams.streams[index].index - gone :], reader.end_place


def _cut(stream: JetStream, through: int) -> int:
    """Drops messages that end at or before record `through`; how many."""
    place, first = 1, stream.first
    while place <= len(stream.messages) and len(stream.messages[place - 1]) <= through:
        through -= len(stream.messages[place - 1])
        place += 1
    stream.purge(place)
    return stream.first - first


class CodedJournalReader:
    """One pass over the journal; `ended` once it has run to the end."""

    def __init__(self, journal: CodedJournal, from_n: int) -> None:
        self.from_n = from_n
        self.ended = False
        self.end_n = 0
        self._journal = journal

    def __iter__(self) -> Iterator[Record]:
        begins = self._journal.shared.place.history.n
        if 0 < self.from_n <= begins:
            raise MeridianError(Kind.JOURNAL_TRIMMED, journal=0, first=begins + 1, n=self.from_n)
        self.end_n = begins
        for _, records in self._journal.walk():
            for record in records:
                self.end_n = max(self.end_n, record.n)
                if self.end_n >= self.from_n:
                    yield record
        self.ended = True


class _Lane:
    """The writer's hold on one stream: all that lies before its marker, then a chain."""

    def __init__(self, journal: CodedJournal, index: int, marker: Record) -> None:
        self.claimed = False
        self.fenced = False
        self.line: Line | None = None
        self.log = StreamLog()
        self.read: list[Record] = []
        """Through the marker, once it is `claimed`."""
        self.stored: list[Record] = []
        """What is newly in the stream, for the writer to hear."""
        self._journal = journal
        self._index = index
        self._marker = marker

    def step(self) -> None:
        """Sends what waits and what has no answer; begins again where a chain has ended."""
        if self.fenced or (self.line is None and not self._begin()):
            return
        assert self.line is not None
        chain = self.line.chain
        self.line.send([*chain.unanswered(), *chain.publish()])
        if chain.broken:
            self.line, self.claimed = None, False

    def _begin(self) -> bool:
        """Reads the stream to its end; that it was the end is proven by the marker's place."""
        try:
            self.read, place = self._journal.stream_records(self._index, 0)
        except MeridianError as error:
            if error.kind is not Kind.JOURNAL_UNAVAILABLE:
                raise
            return False
        self.log = StreamLog(self._journal.shared.place.streams.streams[self._index])
        for record in self.read:
            self.log.accept(record)
        own = self._marker.epoch
        self.fenced = self.log.epoch != own and self.log.epoch[0] >= own[0]
        if not self.fenced:
            self.line = Line(self._journal.single[self._index], place, self._hear)
            self.line.chain.append(self._marker)
        return not self.fenced

    def _hear(self, batch: list[Record]) -> None:
        if self.claimed:
            self.stored += batch
            return
        self.claimed = True
        for record in batch:
            self.read.append(record)
            self.log.accept(record)


class CodedJournalWriter(StreamWriter):
    """One owner.  Appending its marker takes the journal over; the SEAL comes next."""

    def __init__(
        self,
        journal: CodedJournal,
        n: int,
        durable: Callable[[list[Record]], None],
        failed: Callable[[AppendFailed], None],
    ) -> None:
        super().__init__(journal.time, n, failed)
        self.found: list[Record] = []
        """Behind what the reader delivered: history as the marker found it, before the SEAL."""
        self._journal = journal
        self._lanes: list[_Lane] = []
        self._coded: CodedWriter | None = None
        self._waiting: list[Record] = []
        self._untold: deque[Record] = deque()
        self._durable = durable

    @property
    def waiting_bytes(self) -> int:
        """Payload bytes that no flush has taken yet."""
        return sum(len(record.payload) for record in self._waiting)

    def append(self, record: Record) -> None:
        """Queues a record; the marker is sent at once."""
        if record.kind == core.EPOCH:
            self._claim(record)
            return
        super().append(record)

    def _queue(self, record: Record) -> None:
        self._waiting.append(record)

    def _flush(self) -> None:
        batch, self._waiting = self._waiting, []
        for record in batch:
            assert self._coded is not None, "the marker comes first"
            self._coded.append(record)
            self._untold.append(record)
        while self._untold and not self.dead:
            self._step()

    # Take-over

    def _claim(self, marker: Record) -> None:
        assert not self._lanes and marker.n == 0, "one marker, without n"
        self._lanes = [_Lane(self._journal, index, marker) for index in range(STREAMS)]
        while self._coded is None and not self.dead:
            for lane in self._lanes:
                lane.step()
            if sum(lane.fenced for lane in self._lanes) >= 2:
                self._fail("its epoch is not the highest")
            elif not self._take_over(marker.epoch):
                self._wait()

    def _take_over(self, epoch: EpochId) -> bool:
        claimed = [index for index, lane in enumerate(self._lanes) if lane.claimed]
        if len(claimed) < 2:
            return False
        place = self._journal.shared.place
        reader = CodedReader(place.streams)
        for index, lane in enumerate(self._lanes):
            reader.take(index, lane.read)
        history = reader.ready()
        adoption = reader.adopt(claimed)
        if adoption is None:
            return False
        known_n, n = self.next_n - 1, place.history.n
        for record in (*history, *with_markers(adoption.records)):
            n = max(n, record.n)
            if n > known_n:
                self.found.append(record)
        self.next_n = n + 1
        self._coded = CodedWriter(epoch, adoption)
        return True

    # Appends

    def _step(self) -> None:
        coded = self._coded
        assert coded is not None
        durable_n = coded.durable_n
        for index, lane in enumerate(self._lanes):
            self._drive(coded, index, lane)
        if coded.dead:
            self._fail("another owner took over")
        elif coded.durable_n > durable_n:
            self._waited_ns = 0
            self._tell(coded.durable_n)
        else:
            self._wait()

    def _drive(self, coded: CodedWriter, index: int, lane: _Lane) -> None:
        state = coded.lanes[index]
        if lane.claimed and not state.open and not coded.opened(index, lane.log.position_now()):
            return
        if lane.claimed and lane.line is not None and lane.line.chain.waiting_bytes == 0:
            for record in coded.take(index, MESSAGE_BYTES):
                lane.line.chain.append(record)
        lane.step()
        stored, lane.stored = lane.stored, []
        if stored:
            coded.stored(index, len(stored))
        if lane.fenced and not state.fenced:
            coded.fenced(index)
        elif not lane.claimed and state.open:
            coded.closed(index)

    def _tell(self, durable_n: int) -> None:
        batch: list[Record] = []
        while self._untold and self._untold[0].n <= durable_n:
            batch.append(self._untold.popleft())
        if batch:
            self._durable(batch)

    def _wait(self) -> None:
        super()._wait()
        if self._waited_ns > PATIENCE_NS:
            self._fail("no answer")
