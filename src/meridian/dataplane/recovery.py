"""From what is on disk to a state that may serve (design sections 5, 6 and 8).

The journal is read once from its beginning (what was trimmed lies in `start`): every accepted
record rebuilds the adjudicator's window, those that storage lacks go through the crossbar. A
storage file that cannot be trusted, is ahead of the journal, or is too old for it is discarded
and rebuilt from the checkpoint, or from nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.events import Replay
from meridian.clock.clock import Clock
from meridian.crossbar import core as crossbar
from meridian.dataplane.replica import Replica
from meridian.errors import Kind, MeridianError
from meridian.journal.core import Commit, JournalError, Payload, Position, Reader
from meridian.journal.file import FileJournal
from meridian.journal.record import Record
from meridian.journal.segments import SegmentReader
from meridian.limits import CROSSBAR_CREDIT_BYTES
from meridian.storage import Engine, RebuildNeeded

log = logging.getLogger("meridian.recovery")

JOURNAL = 0
SUBSCRIBER = 1
_BATCH_BYTES = 4 << 20
_TAIL_BYTES = 8 << 20
"""Records read between two looks at which of them are proven durable."""
_RECORD_BYTES = 200
"""About what a record takes in memory beside its payload."""
_PROGRESS_S = 1.0
TRIM_KEY = f"trim/{JOURNAL}"
"""Metadata: where the journal begins."""
SEALED_KEY = f"sealed/{JOURNAL}"
"""Metadata: n of the last owner's SEAL, durable for certain."""
CHECKPOINT_KEY = "checkpoint/0"
"""Metadata: name of the directory of the last whole checkpoint."""
encode_position = msgspec.msgpack.Encoder().encode
decode_position = msgspec.msgpack.Decoder(Position).decode


class Recovered(NamedTuple):
    """Everything an owner starts from."""

    adjudicator: Adjudicator
    merge: crossbar.Crossbar
    reader: Reader
    segments: SegmentReader
    tail: list[Record]
    """Records that no later one proves durable."""
    boundaries: list[Position]
    """Where each segment begins, unless inside an open transaction: possible trim points."""
    catalog: list[tuple[int, int]]
    """Catalog versions in the journal and their taus, in order."""


def open_storage(
    path: Path, checkpoint: Path | None, boot: str, start: Position, *, trusted: bool
) -> Engine:
    """The storage file, else the checkpoint, else an empty one.

    Raises JOURNAL_TRIMMED when what is left cannot be completed from the journal.
    """
    reason = "it is ahead of the journal"
    if trusted:
        try:
            engine = Engine.open(path, boot_id=boot, durable=None)
            if engine.positions.get(JOURNAL, 0) >= start.n:
                return engine
            engine.abandon()
            reason = "the journal begins after it"
        except RebuildNeeded as refusal:
            reason = str(refusal)
    if path.exists():
        log.warning("storage is rebuilt", extra={"reason": reason})
    engine = _restore(path, checkpoint, boot)
    position = engine.positions.get(JOURNAL, 0)
    if position < start.n:
        engine.abandon()
        raise MeridianError(
            Kind.JOURNAL_TRIMMED, journal=JOURNAL, first=start.n + 1, n=position + 1
        )
    return engine


def _restore(path: Path, checkpoint: Path | None, boot: str) -> Engine:
    if checkpoint is not None:
        try:
            return Engine.restore(checkpoint, path, boot_id=boot, durable=None)
        except RebuildNeeded as error:
            log.error("checkpoint cannot be used", extra={"error": str(error)})
    path.parent.mkdir(parents=True, exist_ok=True)
    return Engine.create(path, boot_id=boot)


async def read_journal(
    journal: FileJournal,
    start: Position,
    replica: Replica,
    clock: Clock,
    report: Callable[[str], None],
) -> Recovered:
    """Reads the whole journal. Raises JOURNAL_DAMAGED, UNKNOWN_FORMAT, JOURNAL_TRIMMED.

    Storage then holds every commit of the journal.
    """
    reader = Reader(start)
    adjudicator = Adjudicator(JOURNAL, start)
    merge = crossbar.Crossbar()
    replay = _Replay(replica, merge, reader)
    segments = journal.read(start.n + 1 if start.n else 0)
    tail: list[Record] = []
    tail_bytes = 0
    boundaries: list[Position] = []
    catalog: list[tuple[int, int]] = []
    progress = _Progress(report)
    now = clock.now()
    try:
        for record in segments:
            if record.n in segments.firsts and reader.open_n() is None:
                boundaries.append(reader.position())
            tail.append(record)
            tail_bytes += len(record.payload) + _RECORD_BYTES
            if tail_bytes > _TAIL_BYTES:
                tail = [one for one in tail if one.n > segments.durable_n]
                tail_bytes = 0
            payload = reader.accept(record)
            if payload is not None:
                adjudicator.step(now, Replay(record, payload))
                if isinstance(payload, Commit) and payload.catalog:
                    catalog.append((payload.catalog, record.tau))
                replay.add(record, payload)
            if progress.count(len(record.payload)):
                await asyncio.sleep(0)
    except JournalError as error:
        raise MeridianError(
            Kind.JOURNAL_DAMAGED,
            path=journal.directory,
            n=reader.n + 1,
            offset=segments.offset,
            why=str(error),
        ) from None
    replay.finish()
    progress.end()
    scanned = segments.scanned
    assert scanned is not None
    if scanned.torn is not None:
        torn = scanned.torn
        text = (
            f"journal {torn.path.name}: torn tail cut at offset {torn.offset}, record {torn.n}"
            f" ({torn.size_bytes} bytes, {torn.why})"
        )
        log.warning(text)
        report(text)
    tail = [one for one in tail if one.n > scanned.durable_n]
    return Recovered(adjudicator, merge, reader, segments, tail, boundaries, catalog)


class _Replay:
    """Feeds storage from the first record that it lacks."""

    def __init__(self, replica: Replica, merge: crossbar.Crossbar, reader: Reader) -> None:
        self.replica = replica
        self.merge = merge
        self.reader = reader
        self.batch: list[tuple[Record, Payload]] = []
        self.size_bytes = 0
        engine = replica.engine
        self.from_n = engine.positions.get(JOURNAL, 0)
        self.taken_bytes = 0
        replica.took = self._took
        # What storage holds lies at or below its applied tau and its position.
        begin = Position(n=max(self.from_n, reader.n), tau=engine.applied_tau)
        merge.step(crossbar.AddJournal(JOURNAL, begin))
        merge.step(crossbar.Subscribe(SUBSCRIBER, engine.applied_tau, CROSSBAR_CREDIT_BYTES))

    def add(self, record: Record, payload: Payload) -> None:
        """An accepted record; the reader stands on it."""
        if record.n <= self.from_n:
            return
        self.batch.append((record, payload))
        self.size_bytes += len(record.payload)
        if self.size_bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        batch, self.batch, self.size_bytes = self.batch, [], 0
        pending = list(self.merge.step(crossbar.Accepted(JOURNAL, batch)))
        while pending:
            effect = pending.pop(0)
            assert isinstance(effect, crossbar.Deliver), effect
            self.replica.take(effect)
            self.replica.drain()
            size_bytes, self.taken_bytes = self.taken_bytes, 0
            if size_bytes:
                pending += self.merge.step(crossbar.Credit(SUBSCRIBER, size_bytes))

    def _took(self, size_bytes: int) -> None:
        self.taken_bytes += size_bytes

    def finish(self) -> None:
        """The rest; the crossbar then stands where the reader stands."""
        self._flush()
        for txid in self.replica.engine.unresolved():
            # Its epoch is over: bodies and commit record must share one (6.3). Everything that
            # was read is in, so the position moves past its chunks with it.
            self.replica.engine.discard(txid, {JOURNAL: self.reader.n})


class _Progress:
    """A line per second while the journal is read."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.records = 0
        self.size_bytes = 0
        self.started = self.last = time.monotonic()

    def count(self, size_bytes: int) -> bool:
        """True now and then: let the loop run."""
        self.records += 1
        self.size_bytes += size_bytes
        if self.records % 256:
            return False
        now = time.monotonic()
        if now - self.last >= _PROGRESS_S:
            self.last = now
            self.report(f"recovery: {self.records} records, {self.size_bytes >> 20} MiB read")
        return True

    def end(self) -> None:
        seconds = time.monotonic() - self.started
        log.info("journal read", extra={"records": self.records, "seconds": round(seconds, 3)})
