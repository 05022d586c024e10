"""What storage can be rebuilt from, checked before anything is thrown away (design section 8).

Storage is a cache of checkpoint and journal. `Sources` is the proof that both are there and
whole: the checkpoint reaches at least as far as the journal was trimmed, every record after that
reads with its checksum up to what an owner knew to be durable, and the storage file holds
nothing beyond it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import apsw

from meridian.dataplane import recovery
from meridian.dataplane.recovery import JOURNAL
from meridian.errors import Kind, MeridianError
from meridian.journal.core import JournalError, Position, Reader
from meridian.journal.segments import SegmentReader, list_segments
from meridian.metadata.identities import get_value
from meridian.metadata.ownership import DirectoryLock
from meridian.metadata.store import MetadataStore
from meridian.storage import RebuildNeeded, checkpoint, schema

_PROGRESS_S = 1.0
_STOP_RECORDS = 256
_READER_CACHE_BYTES = 1 << 20


class CannotRebuild(Exception):
    """Something would be lost; nothing was deleted. `hint` says what to do."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


class Sources(NamedTuple):
    """What a rebuild of storage starts from and what it reads."""

    checkpoint_n: int
    """Last record that lies in the checkpoint, 0 without one."""
    checkpoint_bytes: int
    records: int
    last_n: int
    """Last record of the journal."""
    size_bytes: int
    """Of the journal."""


def discard_storage(
    directory: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> Sources | None:
    """Delete the storage files below a data directory whose data plane does not run.

    None: there was nothing yet to rebuild from or to lose. Raises CannotRebuild, before anything
    was deleted; DIR_IN_USE and other MeridianError; OSError; InterruptedError once `stop()`.
    """
    if not directory.is_dir():
        return None
    lock = DirectoryLock(directory)
    try:
        sources = check(directory, report, stop)
        remove_storage(directory / "storage")
        return sources
    finally:
        lock.release()


def remove_storage(directory: Path) -> None:
    """Every main file goes before its log: without that an older state would look whole."""
    if directory.is_dir():
        for path in sorted(directory.glob("*.db")):
            schema.remove_file(path)
        shutil.rmtree(directory)


def check(
    directory: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> Sources | None:
    """Is everything that storage holds also in checkpoint and journal? Raises as above."""
    journal = directory / "journal" / str(JOURNAL)
    segments = list_segments(journal) if journal.is_dir() else []
    storage = directory / "storage" / "shard-0.db"
    if not (directory / "metadata.db").exists():
        if segments or storage.exists() or (directory / "checkpoint").exists():
            raise CannotRebuild(f"{directory / 'metadata.db'} is missing", _COPY)
        return None
    start, name, sealed = _metadata(directory)
    restored = _check_checkpoint(directory, name, start)
    if not segments and (start.n or sealed or storage.exists()):
        raise CannotRebuild(f"the journal {journal} has no files", _COPY)
    records, last_n = _check_journal(journal, start, report, stop)
    size_bytes = sum(segment.path.stat().st_size for segment in segments)
    known_n = max(sealed, restored[0], _storage_n(storage))
    if last_n < known_n:
        raise CannotRebuild(
            f"the journal ends at record {last_n}, but records through {known_n} were written",
            _COPY,
        )
    return Sources(*restored, records, last_n, size_bytes)


_COPY = "Restore it from a copy. Nothing was deleted."


def _metadata(directory: Path) -> tuple[Position, str, int]:
    """Where the journal begins, the checkpoint's name or nothing, the last owner's SEAL."""
    store = MetadataStore(directory / "metadata.db")
    try:
        trim = get_value(store, recovery.TRIM_KEY)
        start = Position() if trim is None else recovery.decode_position(trim)
        name = get_value(store, recovery.CHECKPOINT_KEY) or b""
        return start, name.decode(), int(get_value(store, recovery.SEALED_KEY) or 0)
    finally:
        store.close()


def _check_checkpoint(directory: Path, name: str, start: Position) -> tuple[int, int]:
    """(last record in it, bytes). It must hold all that was trimmed, and be readable."""
    path = directory / "checkpoint" / name
    if not name or not path.exists():
        if start.n:
            raise CannotRebuild(
                f"the journal begins at record {start.n + 1} and there is no checkpoint before it",
                _COPY,
            )
        return 0, 0
    try:
        info = checkpoint.check(path)
    except RebuildNeeded as error:
        spare = f"The journal is whole without it: delete {path}, then rebuild."
        raise CannotRebuild(str(error), _COPY if start.n else spare) from None
    last_n = info.positions.get(JOURNAL, 0)
    if last_n < start.n:
        raise CannotRebuild(
            f"checkpoint {name} ends at record {last_n}, the journal begins at {start.n + 1}",
            _COPY,
        )
    return last_n, info.size_bytes


def _check_journal(
    directory: Path, start: Position, report: Callable[[str], None], stop: Callable[[], bool]
) -> tuple[int, int]:
    """(records, last n) after `start`: checksums and order, as recovery will read them."""
    reader = Reader(start)
    segments = SegmentReader(directory, JOURNAL, start.n + 1 if start.n else 0)
    records = size_bytes = 0
    last = time.monotonic()
    try:
        for record in segments if directory.is_dir() else ():
            reader.accept(record)
            records += 1
            size_bytes += len(record.payload)
            if records % _STOP_RECORDS:
                continue
            if stop():
                raise InterruptedError
            if time.monotonic() - last >= _PROGRESS_S:
                last = time.monotonic()
                report(f"rebuild: {records} records, {size_bytes >> 20} MiB checked")
    except JournalError as error:
        raise MeridianError(
            Kind.JOURNAL_DAMAGED,
            path=directory,
            n=reader.n + 1,
            offset=segments.offset,
            why=str(error),
        ) from None
    return records, reader.n


def _storage_n(path: Path) -> int:
    """The last record that the storage file holds; 0 for a file that cannot be read."""
    if not path.exists():
        return 0
    try:
        db = schema.connect_reader(path, cache_bytes=_READER_CACHE_BYTES)
        try:
            return schema.load_state(db).positions.get(JOURNAL, 0)
        finally:
            db.close(True)
    except (apsw.Error, ValueError, IndexError):
        return 0
