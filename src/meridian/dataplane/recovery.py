"""From what is on disk to a state that may serve (design sections 5, 6 and 8).

Each journal is read once from its beginning (what was trimmed lies in its start): every accepted
record rebuilds its adjudicator's window, those that storage lacks go through the crossbar. A
storage file that cannot be trusted, is ahead of a journal, or is too old for one is discarded
and rebuilt from the checkpoint, or from nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.events import Replay
from meridian.clock.clock import Clock
from meridian.clock.tau import ASSIGNER_MASK
from meridian.crossbar import core as crossbar
from meridian.dataplane.merge import Merge
from meridian.errors import Kind, MeridianError
from meridian.journal.core import Commit, JournalError, Payload, Position, Reader
from meridian.journal.file import FileJournal
from meridian.journal.record import Record
from meridian.journal.segments import SegmentReader, list_segments
from meridian.metadata.identities import get_value
from meridian.metadata.store import MetadataStore
from meridian.storage import Engine, RebuildNeeded
from meridian.wire.partition import Span

log = logging.getLogger("meridian.recovery")

JOURNAL = 0
"""The first journal; it says which others exist (design section 4.7)."""
_BATCH_BYTES = 4 << 20
_TAIL_BYTES = 8 << 20
"""Records read between two looks at which of them are proven durable."""
_RECORD_BYTES = 200
"""About what a record takes in memory beside its payload."""
_PROGRESS_S = 1.0
CACHE_BYTES = 256 << 20
"""Of the only storage file; several have Engine's default each."""
CHECKPOINT_KEY = "checkpoint/0"
"""Metadata: name of the directory of the last whole checkpoint."""
encode_position = msgspec.msgpack.Encoder().encode
decode_position = msgspec.msgpack.Decoder(Position).decode


def journals_with_records(directory: Path) -> list[int]:
    """Numbers of the journals that have segments in this directory of theirs, ascending."""
    if not directory.is_dir():
        return []
    numbers = [int(one.name) for one in directory.iterdir() if one.name.isdecimal()]
    return sorted(number for number in numbers if list_segments(directory / str(number)))


def retired_journals(store: MetadataStore) -> list[int]:
    """Numbers of those that have ended and whose files are gone or about to go, ascending."""
    trims = ((number, get_value(store, trim_key(number))) for number in range(ASSIGNER_MASK + 1))
    return [number for number, trim in trims if trim is not None and decode_position(trim).closed]


def trim_key(journal: int) -> str:
    """Metadata: where the journal begins."""
    return f"trim/{journal}"


def sealed_key(journal: int) -> str:
    """Metadata: n of its last owner's SEAL, durable for certain."""
    return f"sealed/{journal}"


def open_storage(
    path: Path, checkpoint: Path | None, boot: str, starts: Sequence[Position], *, trusted: bool
) -> Engine:
    """The storage file, else the checkpoint, else an empty one.

    Raises JOURNAL_TRIMMED when what is left cannot be completed from the journal.
    """
    reason = "it is ahead of the journal"
    if trusted:
        try:
            engine = Engine.open(path, boot_id=boot, durable=None, cache_bytes=CACHE_BYTES)
            if missing(engine.positions, starts) is None:
                return engine
            engine.abandon()
            reason = "the journal begins after it"
        except RebuildNeeded as refusal:
            reason = str(refusal)
    if path.exists():
        log.warning("storage is rebuilt", extra={"reason": reason})
    engine = _restore(path, checkpoint, boot)
    refusal_or_none = missing(engine.positions, starts)
    if refusal_or_none is not None:
        engine.abandon()
        raise refusal_or_none
    return engine


def missing(positions: Mapping[int, int], starts: Sequence[Position]) -> MeridianError | None:
    """Which journal begins after what storage holds; `starts` by number."""
    for number, start in enumerate(starts):
        position = positions.get(number, 0)
        if position < start.n:
            return MeridianError(
                Kind.JOURNAL_TRIMMED, journal=number, first=start.n + 1, n=position + 1
            )
    return None


def _restore(path: Path, checkpoint: Path | None, boot: str) -> Engine:
    if checkpoint is not None:
        try:
            return Engine.restore(
                checkpoint, path, boot_id=boot, durable=None, cache_bytes=CACHE_BYTES
            )
        except RebuildNeeded as error:
            log.error("checkpoint cannot be used", extra={"error": str(error)})
    path.parent.mkdir(parents=True, exist_ok=True)
    return Engine.create(path, boot_id=boot, cache_bytes=CACHE_BYTES)


class Reading:
    """One journal, read from its beginning to its end: everything its next owner starts from."""

    def __init__(
        self, journal: FileJournal, start: Position, spans: tuple[Span, ...], clock: Clock
    ) -> None:
        self.number = journal.journal_id
        self.journal = journal
        self.start = start
        self.reader = Reader(start)
        self.adjudicator = Adjudicator(self.number, start, spans=spans)
        self.segments: SegmentReader = journal.read(start.n + 1 if start.n else 0)
        self.tail: list[Record] = []
        """Records that no later one proves durable."""
        self.boundaries: list[Position] = []
        """Where each segment begins, unless inside an open transaction: possible trim points."""
        self.catalog: list[tuple[int, int]] = []
        """Catalog versions in the journal and their taus, in order."""
        self.ended = False
        self.promised = 0
        """Its next owner assigns no tau at or below this one."""
        self._clock = clock
        self._tail_bytes = 0
        self._records = iter(self.segments)

    def position(self) -> Position:
        """Where its next owner begins."""
        position = self.reader.position()
        return msgspec.structs.replace(position, tau=max(position.tau, self.promised))

    def read_some(self, progress: Progress) -> list[tuple[Record, Payload]]:
        """The next accepted records. Raises JOURNAL_DAMAGED, UNKNOWN_FORMAT, JOURNAL_TRIMMED."""
        accepted: list[tuple[Record, Payload]] = []
        size_bytes = 0
        now = self._clock.now()
        try:
            for record in self._records:
                self._remember(record)
                payload = self.reader.accept(record)
                if payload is not None:
                    self.adjudicator.step(now, Replay(record, payload))
                    if isinstance(payload, Commit) and payload.catalog:
                        self.catalog.append((payload.catalog, record.tau))
                    accepted.append((record, payload))
                size_bytes += len(record.payload) + _RECORD_BYTES
                progress.count(len(record.payload))
                if size_bytes >= _BATCH_BYTES:
                    return accepted
        except JournalError as error:
            raise MeridianError(
                Kind.JOURNAL_DAMAGED,
                path=self.journal.directory,
                n=self.reader.n + 1,
                offset=self.segments.offset,
                why=str(error),
            ) from None
        self._end(progress.report)
        return accepted

    def _remember(self, record: Record) -> None:
        if record.n in self.segments.firsts and self.reader.open_n() is None:
            self.boundaries.append(self.reader.position())
        self.tail.append(record)
        self._tail_bytes += len(record.payload) + _RECORD_BYTES
        if self._tail_bytes > _TAIL_BYTES:
            self.tail = [one for one in self.tail if one.n > self.segments.durable_n]
            self._tail_bytes = 0

    def _end(self, report: Callable[[str], None]) -> None:
        self.ended = True
        scanned = self.segments.scanned
        assert scanned is not None
        if scanned.torn is not None:
            torn = scanned.torn
            text = (
                f"journal {torn.path.name}: torn tail cut at offset {torn.offset}, record {torn.n}"
                f" ({torn.size_bytes} bytes, {torn.why})"
            )
            log.warning(text)
            report(text)
        self.tail = [one for one in self.tail if one.n > scanned.durable_n]


async def read_journals(
    readings: Sequence[Reading], merge: Merge, clock: Clock, report: Callable[[str], None]
) -> None:
    """Reads journals to their ends, side by side: what one holds waits for what others do not.

    One that has ended does not hold up the others: its next owner is made here, so it is known
    where that will go on.  Raises JOURNAL_DAMAGED, UNKNOWN_FORMAT, JOURNAL_TRIMMED.
    """
    progress = Progress(report)
    alive = list(readings)
    while alive:
        one = min(alive, key=lambda reading: reading.reader.tau)
        merge.take(crossbar.Accepted(one.number, one.read_some(progress)))
        if one.ended:
            alive.remove(one)
            clock.observe(one.reader.tau)
            if len(readings) > 1:
                promise(one, merge, clock)
        await asyncio.sleep(0)
    progress.end()


class Progress:
    """A line per second while journals are read."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.records = 0
        self.size_bytes = 0
        self.started = self.last = time.monotonic()

    def count(self, size_bytes: int) -> None:
        """One more record."""
        self.records += 1
        self.size_bytes += size_bytes
        if self.records % 256:
            return
        now = time.monotonic()
        if now - self.last >= _PROGRESS_S:
            self.last = now
            self.report(f"recovery: {self.records} records, {self.size_bytes >> 20} MiB read")

    def end(self) -> None:
        seconds = time.monotonic() - self.started
        log.info("journal read", extra={"records": self.records, "seconds": round(seconds, 3)})


def promise(reading: Reading, merge: Merge, clock: Clock) -> None:
    """The next owner of this journal goes on above the clock of now."""
    reader = reading.reader
    if not reader.closed:
        now = clock.now().latest
        reading.promised = max(reader.lease, reader.tau, reading.promised, now)
        merge.take(crossbar.Beat(reading.number, reader.epoch, reader.n, reading.promised))


def discard_open(engine: Engine, readings: Mapping[int, Reading]) -> None:
    """Forgets large transactions whose epochs are over: bodies and commit must share one (6.3).

    Everything that was read is in, so the positions move past their chunks.
    """
    positions = {number: reading.reader.n for number, reading in readings.items()}
    for txid in engine.unresolved():
        engine.discard(txid, positions)
