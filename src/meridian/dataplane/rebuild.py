"""What storage can be rebuilt from, checked before anything is thrown away (design section 8).

Storage is a cache of checkpoint and journal. `Sources` is the proof that both are there and
whole: the checkpoint reaches at least as far as the journal was trimmed, every record after that
reads with its checksum up to what an owner knew to be durable, and the storage file holds
nothing beyond it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import apsw

from meridian.dataplane import recovery, shard_files
from meridian.dataplane.recovery import JOURNAL
from meridian.errors import Kind, MeridianError
from meridian.journal.core import JournalError, Position, Reader
from meridian.journal.segments import Segment, SegmentReader, list_segments
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
    numbers = range(_journal_count(directory))
    files = {number: _files(directory, number) for number in numbers}
    storage = directory / "storage"
    stored = shard_files.existing(storage) > 0
    if not (directory / "metadata.db").exists():
        if any(files.values()) or stored or (directory / "checkpoint").exists():
            raise CannotRebuild(f"{directory / 'metadata.db'} is missing", _COPY)
        return None
    begins, name = _metadata(directory, numbers)
    restored, checkpoint_bytes = _check_checkpoint(directory, name, begins)
    held = _highest([_storage_positions(one) for one in sorted(storage.glob("shard-*.db"))])
    records = last_n = size_bytes = 0
    for number, (start, sealed) in enumerate(begins):
        path = directory / "journal" / str(number)
        segments = files[number]
        if start.closed:
            # It has ended, and the checkpoint holds all of it: its files are not needed any more.
            continue
        if not segments and (start.n or sealed or (stored and number == JOURNAL)):
            raise CannotRebuild(f"the journal {path} has no files", _COPY)
        found, number_n = _check_journal(path, number, start, report, stop)
        known_n = max(sealed, restored.get(number, 0), held.get(number, 0))
        if number_n < known_n:
            raise CannotRebuild(
                f"the journal {path} ends at record {number_n},"
                f" but records through {known_n} were written",
                _COPY,
            )
        records += found
        last_n = number_n if number == JOURNAL else last_n
        size_bytes += sum(segment.path.stat().st_size for segment in segments)
    return Sources(restored.get(JOURNAL, 0), checkpoint_bytes, records, last_n, size_bytes)


def _highest(positions: Sequence[Mapping[int, int]]) -> dict[int, int]:
    """Per journal the last record that any of the files holds."""
    numbers = sorted({number for one in positions for number in one})
    return {number: max(one.get(number, 0) for one in positions) for number in numbers}


def _journal_count(directory: Path) -> int:
    """Journals are numbered from 0, without gaps."""
    parent = directory / "journal"
    numbers = (
        [int(one.name) for one in parent.iterdir() if one.name.isdecimal()]
        if (parent.is_dir())
        else []
    )
    return max(numbers, default=JOURNAL) + 1


def _files(directory: Path, number: int) -> list[Segment]:
    path = directory / "journal" / str(number)
    return list_segments(path) if path.is_dir() else []


_COPY = "Restore it from a copy. Nothing was deleted."


def _metadata(directory: Path, numbers: range) -> tuple[list[tuple[Position, int]], str]:
    """Per journal where it begins and its last owner's SEAL; the checkpoint's name or nothing."""
    store = MetadataStore(directory / "metadata.db")
    begins: list[tuple[Position, int]] = []
    try:
        for number in numbers:
            trim = get_value(store, recovery.trim_key(number))
            start = Position() if trim is None else recovery.decode_position(trim)
            begins.append((start, int(get_value(store, recovery.sealed_key(number)) or 0)))
        return begins, (get_value(store, recovery.CHECKPOINT_KEY) or b"").decode()
    finally:
        store.close()


def _check_checkpoint(
    directory: Path, name: str, begins: list[tuple[Position, int]]
) -> tuple[dict[int, int], int]:
    """(last record in it per journal, bytes). It must hold all that was trimmed, and be readable.

    Of journals that were trimmed.
    """
    path = directory / "checkpoint" / name
    trimmed = [(number, start) for number, (start, _) in enumerate(begins) if start.n]
    if not name or not path.exists():
        for _, start in trimmed:
            raise CannotRebuild(
                f"the journal begins at record {start.n + 1} and there is no checkpoint before it",
                _COPY,
            )
        return {}, 0
    try:
        several = (path / shard_files.SET_NAME).exists()
        info = shard_files.check_set(path) if several else checkpoint.check(path)
    except RebuildNeeded as error:
        spare = f"The journal is whole without it: delete {path}, then rebuild."
        raise CannotRebuild(str(error), _COPY if trimmed else spare) from None
    for number, start in trimmed:
        last_n = info.positions.get(number, 0)
        if last_n < start.n:
            raise CannotRebuild(
                f"checkpoint {name} ends at record {last_n}, the journal begins at {start.n + 1}",
                _COPY,
            )
    return info.positions, info.size_bytes


def _check_journal(
    directory: Path,
    number: int,
    start: Position,
    report: Callable[[str], None],
    stop: Callable[[], bool],
) -> tuple[int, int]:
    """(records, last n) after `start`: checksums and order, as recovery will read them."""
    reader = Reader(start)
    segments = SegmentReader(directory, number, start.n + 1 if start.n else 0)
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


def _storage_positions(path: Path) -> dict[int, int]:
    """The last record of each journal that the storage file holds; {} if it cannot be read."""
    if not path.exists():
        return {}
    try:
        db = schema.connect_reader(path, cache_bytes=_READER_CACHE_BYTES)
        try:
            return schema.load_state(db).positions
        finally:
            db.close(True)
    except (apsw.Error, ValueError, IndexError):
        return {}
