"""The file backend: one writer thread, natural group commit, one fdatasync in flight.

What arrived while a sync ran is the next batch; nobody waits on a timer (facts: a linger lost in
every case). A failed write or sync poisons the writer for good: it never retries a sync, because
the kernel may have dropped the pages. The next owner reads what landed and copies the unproven
tail into a segment of its own before it appends anything (`open_writer`).
"""

from __future__ import annotations

import contextlib
import errno
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from meridian.errors import Kind, MeridianError
from meridian.journal.files import Files
from meridian.journal.record import Record, encode_all, encode_header
from meridian.journal.segments import SegmentReader, list_segments, segment_path
from meridian.limits import JOURNAL_BATCH_BYTES, JOURNAL_SEGMENT_BYTES

Durable = Callable[[list[Record]], None]
"""Called in the writer thread with the records of a batch, in order, once they are durable."""
Failed = Callable[["AppendError"], None]
"""Called once, in the writer thread; nothing is written afterwards."""

_TEMPORARY = "new.tmp"


class AppendError(Exception):
    """A write or sync failed. `nothing_written`: certainly nothing of the batch is in the file."""

    def __init__(self, error: OSError, *, nothing_written: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.nothing_written = nothing_written


class FileJournal:
    """The segments of one journal in one directory. At most one writer at a time."""

    def __init__(self, directory: Path, journal_id: int, files: Files | None = None) -> None:
        self.directory = directory
        self.journal_id = journal_id
        self.files = files or Files()
        directory.mkdir(parents=True, exist_ok=True)

    def read(self, from_n: int = 0) -> SegmentReader:
        """All records from `from_n` on. Iterating raises JOURNAL_DAMAGED, JOURNAL_TRIMMED."""
        return SegmentReader(self.directory, self.journal_id, from_n)

    def open_writer(
        self, reader: SegmentReader, tail: list[Record], durable: Durable, failed: Failed
    ) -> FileWriter:
        """A writer that follows what `reader` has read to its end.

        `tail` holds at least the records above `reader.scanned.durable_n`. Raises OSError.
        """
        scanned = reader.scanned
        assert scanned is not None, "the reader has run to its end"
        copies = [record for record in tail if record.n > scanned.durable_n]
        assert len(copies) == scanned.next_n - 1 - max(scanned.durable_n, scanned.first_n - 1)
        first_n = copies[0].n if copies else scanned.next_n
        durable_n = first_n - 1
        data = encode_all(copies, durable_n)
        fd, size_bytes = create_segment(self, first_n, data)
        try:
            self._drop_later(first_n)
        except OSError:
            self.files.close(fd)
            raise
        return FileWriter(self, fd, size_bytes, scanned.next_n, durable, failed)

    def _drop_later(self, first_n: int) -> None:
        """A segment that a failed writer had just begun; all it may hold was copied.

        Left alone it would cut the new segment short for every reader. Raises OSError.
        """
        later = [one for one in list_segments(self.directory) if one.first_n > first_n]
        for segment in reversed(later):
            self.files.unlink(segment.path)
        if later:
            self.files.fsync_dir(self.directory)

    def trim(self, before_n: int) -> int:
        """Deletes whole segments that end before `before_n`; returns how many."""
        count = 0
        for segment in list_segments(self.directory):
            if segment.before_n is None or segment.before_n > before_n:
                break
            self.files.unlink(segment.path)
            count += 1
        if count:
            self.files.fsync_dir(self.directory)
        return count

    def remove(self) -> int:
        """Deletes all segments, oldest first; returns how many. Nobody may write any more."""
        segments = list_segments(self.directory)
        for segment in segments:
            self.files.unlink(segment.path)
        if segments:
            self.files.fsync_dir(self.directory)
        return len(segments)

    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.path.stat().st_size for segment in list_segments(self.directory))


def create_segment(journal: FileJournal, first_n: int, data: bytes) -> tuple[int, int]:
    """A new segment, durable with its content and name: (fd, size). Raises OSError."""
    files = journal.files
    temporary = journal.directory / _TEMPORARY
    with contextlib.suppress(FileNotFoundError):
        files.unlink(temporary)
    content = encode_header(journal.journal_id, first_n) + data
    fd = files.create(temporary)
    try:
        write_all(files, fd, content)
        files.fdatasync(fd)
        files.rename(temporary, segment_path(journal.directory, first_n))
        files.fsync_dir(journal.directory)
    except BaseException:
        files.close(fd)
        raise
    return fd, len(content)


def write_all(files: Files, fd: int, data: bytes) -> None:
    """Loops over short writes. Raises OSError."""
    written = files.write(fd, data)
    while written < len(data):
        written += files.write(fd, memoryview(data)[written:])


class FileWriter:
    """Appends records; numbers must be contiguous. `append` and `close` are for one thread."""

    def __init__(
        self,
        journal: FileJournal,
        fd: int,
        size_bytes: int,
        next_n: int,
        durable: Durable,
        failed: Failed,
    ) -> None:
        self._journal = journal
        self._files = journal.files
        self._fd = fd
        self._size_bytes = size_bytes
        self._first_n = next_n
        self._next_n = next_n
        self._durable_n = next_n - 1
        self._durable = durable
        self._failed = failed
        self._queue: queue.SimpleQueue[list[Record] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: list[Record] = []
        self._waiting_bytes = 0
        self._in_flight = False
        self.poisoned: AppendError | None = None
        self.segment_firsts: set[int] = set()
        """First n of the segments this writer has begun, added before they are durable."""
        self.bytes_written = 0
        self.batches = 0
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """Payload bytes not yet handed to the disk."""
        return self._waiting_bytes

    def append(self, record: Record) -> None:
        """Queues a record for the next batch."""
        self.extend([record])

    def extend(self, records: list[Record]) -> None:
        """Queues records for the next batch."""
        size_bytes = 0
        for next_n, record in enumerate(records, self._next_n):
            assert record.n == next_n, (record.n, next_n)
            size_bytes += len(record.payload)
        self._next_n += len(records)
        with self._lock:
            self._waiting += records
            self._waiting_bytes += size_bytes

    def flush(self) -> None:
        """Starts a batch if none is under way; call it after a round of appends."""
        with self._lock:
            if not self._in_flight and self._waiting and self.poisoned is None:
                self._in_flight = True
                self._queue.put(self._take())

    def _take(self) -> list[Record]:
        """Up to JOURNAL_BATCH_BYTES of what waits, at least one record; holds the lock."""
        batch = self._waiting
        if self._waiting_bytes <= JOURNAL_BATCH_BYTES:
            self._waiting, self._waiting_bytes = [], 0
            return batch
        size_bytes = count = 0
        while count < len(batch) and (count == 0 or size_bytes < JOURNAL_BATCH_BYTES):
            size_bytes += len(batch[count].payload)
            count += 1
        self._waiting = batch[count:]
        self._waiting_bytes -= size_bytes
        return batch[:count]

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            following: list[Record] | None = batch
            while following is not None:
                batch = following
                if not self._write(batch):
                    return
                with self._lock:
                    following = self._take() if self._waiting else None
                    self._in_flight = following is not None
                self._durable(batch)

    def _write(self, batch: list[Record]) -> bool:
        data = encode_all(batch, self._durable_n)
        synced = False
        try:
            if self._size_bytes + len(data) > JOURNAL_SEGMENT_BYTES and self._durable_n + 1 > (
                self._first_n
            ):
                self._roll(batch[0].n)
            write_all(self._files, self._fd, data)
            synced = True
            self._files.fdatasync(self._fd)
        except OSError as error:
            self._poison(error, nothing_written=not synced and self._undo())
            return False
        self._size_bytes += len(data)
        self._durable_n = batch[-1].n
        self.bytes_written += len(data)
        self.batches += 1
        return True

    def _roll(self, first_n: int) -> None:
        fd, self._size_bytes = create_segment(self._journal, first_n, b"")
        self._files.close(self._fd)
        self._fd = fd
        self._first_n = first_n
        self.segment_firsts.add(first_n)

    def _undo(self) -> bool:
        """Cuts a partly written batch off; True when it is certain that nothing is left of it."""
        try:
            self._files.truncate(self._fd, self._size_bytes)
            self._files.fdatasync(self._fd)
            return self._files.size_bytes(self._fd) == self._size_bytes
        except OSError:
            return False

    def _poison(self, error: OSError, *, nothing_written: bool) -> None:
        failure = AppendError(error, nothing_written=nothing_written)
        self.poisoned = failure
        with contextlib.suppress(OSError):
            self._files.close(self._fd)
        self._failed(failure)

    def close(self) -> None:
        """Writes what waits, then ends the thread and closes the file."""
        self.flush()
        self._queue.put(None)
        self._thread.join()
        if self.poisoned is None:
            self._files.close(self._fd)


def segment_error(error: OSError) -> MeridianError:
    """What a client is told when the journal could certainly not be written."""
    if error.errno in _FULL:
        return MeridianError(Kind.DISK_FULL)
    return MeridianError(Kind.JOURNAL_UNAVAILABLE, why=str(error))


_FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})
"""EFBIG is RLIMIT_FSIZE (SIGXFSZ is ignored by Python)."""
