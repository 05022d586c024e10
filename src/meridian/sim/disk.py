"""The disk of a journal: durable bytes, bytes only written, and what a crash does to them.

A crash keeps the durable bytes.  Of those written and not synced, each sector is kept or lost by
itself, and the file may end anywhere among them.  A failed sync leaves everything possible.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from meridian.journal import record as format_
from meridian.journal.core import Position, Reader
from meridian.journal.record import Record

SECTOR_BYTES = 64
"""Small, so that small records tear too."""


class Disk:
    """One append-only file in the format of the file backend."""

    def __init__(self, random: Random, reader: Callable[[Position], Reader] = Reader) -> None:
        self._random = random
        self._reader = reader
        self.data = bytearray()
        self.durable_bytes = 0
        self.durable_n = 0
        self.cut_bytes = 0
        self.born = Position()
        """Its tau is that of the ADD of its journal."""
        self.beginning = self.born
        """Everything through it was trimmed (6.7)."""
        self.trimmed: list[Record] = []
        """For the checkers only."""

    def trim(self, through_n: int) -> None:
        """Cuts durable records off the beginning, up to a position outside of open transactions."""
        reader = self._reader(self.beginning)
        offset, cut, position = 0, 0, self.beginning
        gone: list[Record] = []
        kept = 0
        while offset < self.durable_bytes:
            record, _, offset = format_.decode(bytes(self.data), offset)
            if record.n > min(through_n, self.durable_n):
                break
            reader.accept(record)
            gone.append(record)
            if reader.open_n() is None:
                cut, position, kept = offset, reader.position(), len(gone)
        self.trimmed += gone[:kept]
        del self.data[:cut]
        self.durable_bytes -= cut
        self.cut_bytes += cut
        self.beginning = position

    def history(self) -> list[Record]:
        """Every record ever durable, and what else survived."""
        return [*self.trimmed, *self.recover()]

    def write(self, records: list[Record]) -> int:
        """Appends a batch; returns the size of the file, to be passed to `synced`."""
        for record in records:
            self.data += format_.encode(record, self.durable_n)
        return self.cut_bytes + len(self.data)

    def synced(self, size_bytes: int, n: int) -> None:
        """Everything through `size_bytes` is durable."""
        self.durable_bytes = max(self.durable_bytes, size_bytes - self.cut_bytes)
        self.durable_n = max(self.durable_n, n)

    def crash(self) -> None:
        """Tears what was not synced."""
        random = self._random
        end = random.randint(self.durable_bytes, len(self.data))
        keep = random.choice((0.0, 0.5, 0.9, 1.0))
        del self.data[end:]
        for start in range(self.durable_bytes, end, SECTOR_BYTES):
            if random.random() >= keep:
                stop = min(start + SECTOR_BYTES, end)
                self.data[start:stop] = bytes(stop - start)

    def recover(self) -> list[Record]:
        """What a new owner reads; a torn tail is cut, what is left is made durable."""
        data = bytes(self.data)
        records: list[Record] = []
        offset = 0
        claim = 0
        first = self.beginning.n + 1
        while offset < len(data):
            try:
                record, durable_n, offset_after = format_.decode(data, offset)
            except format_.BadRecord:
                claim = max(claim, format_.later_durable_claim(data, offset, first + len(records)))
                assert claim < first + len(records), "a durable record is damaged"
                break
            assert record.n == first + len(records), (record.n, first, len(records))
            claim = max(claim, durable_n)
            records.append(record)
            offset = offset_after
        assert offset >= self.durable_bytes, "durable bytes were cut"
        del self.data[offset:]
        self.durable_bytes = offset
        self.durable_n = self.beginning.n + len(records)
        return records
