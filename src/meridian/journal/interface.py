"""What every journal backend offers; tests/journal/conformance.py holds them to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from meridian.journal.record import Record


class RecordReader(Protocol):
    """One pass over the records of a journal from some n on, in order."""

    def __iter__(self) -> Iterator[Record]:
        """Raises MeridianError: JOURNAL_DAMAGED, JOURNAL_TRIMMED, UNKNOWN_FORMAT."""
        ...


class Writer(Protocol):
    """Appends records with contiguous n; told once they are durable, or once that it failed."""

    @property
    def waiting_bytes(self) -> int:
        """Payload bytes that no batch has taken yet."""
        ...

    def append(self, record: Record) -> None:
        """Queues a record."""
        ...

    def extend(self, records: list[Record]) -> None:
        """Queues records that come together."""
        ...

    def flush(self) -> None:
        """Starts a batch if none is under way."""
        ...

    def close(self) -> None:
        """Writes what waits, then ends."""
        ...


class Journal(Protocol):
    """One journal. `Any` stands for the backend's own reader, run to its end."""

    def read(self, from_n: int = 0) -> RecordReader:
        """Records from `from_n` on."""
        ...

    def open_writer(
        self,
        reader: Any,
        tail: list[Record],
        durable: Callable[[list[Record]], None],
        failed: Callable[[Any], None],
    ) -> Writer:
        """Follows what `reader` has read to its end; `tail` holds its last, unproven records."""
        ...

    def trim(self, before_n: int) -> int:
        """Drops whole segments that end before `before_n`."""
        ...
