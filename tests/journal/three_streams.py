"""Three streams, owners that contend for them and readers that lag, driven at random."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from zlib import crc32

from meridian.journal import core as journal
from meridian.journal.coded import STREAMS, StreamLog, StreamPosition
from meridian.journal.coded_reader import CodedReader
from meridian.journal.coded_writer import CodedWriter
from meridian.journal.core import EpochId, Reader, make
from meridian.journal.places import Place
from meridian.journal.record import Record

LEASE = 10**9


def accept(core: Reader, record: Record) -> bool:
    """Whether a journal's reader takes it; markers of adopted epochs are not told."""
    if record.epoch > core.epoch and record.kind != journal.EPOCH:
        core.accept(make(record.epoch, 0, journal.Marker(0)))
    return core.accept(record) is not None


class Stream:
    """An append-only stream; a stalled one takes and gives nothing."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        """By index; what was trimmed is None."""
        self.stalled = False

    def log(self, start: StreamPosition) -> StreamLog:
        """What a reader from `start` on makes of it."""
        log = StreamLog(start)
        for record in self.records[start.index :]:
            log.accept(record)
        return log


class Owner:
    """One epoch: claims, adopts, seals, then appends what it is asked to."""

    def __init__(
        self,
        streams: list[Stream],
        epoch: EpochId,
        random: Random,
        lag_bytes: int,
        kinds: tuple[type[CodedReader], type[CodedWriter]],
        place: Callable[[], Place],
    ) -> None:
        self.place = place
        """Where the journal begins now."""
        self.streams, self.epoch, self.random = streams, epoch, random
        self.lag_bytes = lag_bytes
        self.kinds = kinds
        self.writer: CodedWriter | None = None
        self.n = 0
        self.tau = 0
        self.expected: dict[int, int] = {}
        """Length of each stream as its chain expects it."""
        self.told: dict[int, Record] = {}
        """Records appended, by n."""
        self._start()

    def _start(self) -> None:
        fenced = [stream for stream in range(STREAMS) if self._claim(stream)]
        self.random.shuffle(fenced)
        if len(fenced) < 2:
            return
        place = self.place()
        reader = self.kinds[0](place.streams)
        history: list[Record] = []
        for stream in range(STREAMS):
            if stream in fenced or self.random.random() < 0.7:
                part = self.streams[stream].records[place.streams.streams[stream].index :]
                if stream not in fenced:
                    part = part[: self.random.randint(0, len(part))]
                reader.take(stream, part)
                history += reader.ready()
        adoption = reader.adopt(fenced)
        if adoption is None:
            return
        core = Reader(place.history)
        for record in (*history, *adoption.records):
            assert accept(core, record), record
        self.n, self.tau = core.n, core.tau
        self.writer = self.kinds[1](self.epoch, adoption, self.lag_bytes)
        for stream in fenced:
            self._open(stream)
        self._append(journal.Seal(LEASE, LEASE))

    def _claim(self, stream: int) -> bool:
        """Appends the marker unless the stream is stalled; whether it is the highest."""
        one = self.streams[stream]
        if one.stalled:
            return False
        start = self.place().streams.streams[stream]
        if one.log(start).epoch < self.epoch:
            one.records.append(make(self.epoch, 0, journal.Marker(0)))
        return one.log(start).epoch == self.epoch

    def _open(self, stream: int) -> None:
        assert self.writer is not None
        log = self.streams[stream].log(self.place().streams.streams[stream])
        if log.epoch != self.epoch:
            self.writer.fenced(stream)
        elif self.writer.opened(stream, log.position_now()):
            self.expected[stream] = len(self.streams[stream].records)

    def _append(self, payload: journal.Payload, tau: int = 0, txid: bytes = bytes(16)) -> int:
        assert self.writer is not None
        self.n += 1
        record = make(self.epoch, self.n, payload, tau, txid)
        self.told[self.n] = record
        self.writer.append(record)
        return self.n

    def work(self) -> None:
        """Appends something at random."""
        if self.writer is None or self.writer.dead:
            return
        random = self.random
        self.tau += random.randint(1, 5)
        txid = random.randbytes(16)
        bodies, crc = [], 0
        for seq in range(random.choice((0, 0, 0, 1, 3))):
            chunk = random.randbytes(random.randint(0, 40))
            bodies.append(self._append(journal.Body(seq, chunk), txid=txid))
            crc = crc32(chunk, crc)
        if bodies and random.random() < 0.3:
            return
        last = random.randbytes(random.randint(0, 20))
        crc = crc32(last, crc) if bodies else 0
        commit = journal.Commit(LEASE, 0, 0, 0, tuple(bodies), crc, last)
        self._append(commit, self.tau, txid)

    def send(self, stream: int) -> None:
        """One batch to one stream; it may be lost, wholly or behind some record."""
        writer, one = self.writer, self.streams[stream]
        if writer is None or writer.dead or writer.lanes[stream].fenced or one.stalled:
            return
        if not writer.lanes[stream].open:
            if self._claim(stream):
                self._open(stream)
            elif one.log(self.place().streams.streams[stream]).epoch > self.epoch:
                writer.fenced(stream)
            return
        batch = writer.take(stream, 50)
        if not batch:
            return
        if self.expected[stream] != len(one.records):
            writer.closed(stream)
            return
        stored = batch[: self.random.choice((len(batch), self.random.randint(0, len(batch))))]
        one.records += stored
        self.expected[stream] += len(stored)
        if len(stored) == len(batch) and self.random.random() < 0.8:
            writer.stored(stream, len(batch))
        else:
            # The answer is lost, or only a part came through.
            writer.closed(stream)

    @property
    def durable(self) -> list[Record]:
        """What may have been acknowledged."""
        end = self.writer.durable_n if self.writer else 0
        return [record for n, record in self.told.items() if n <= end]
