"""The disk of a journal: durable bytes, bytes only written, and what a crash does to them.

A crash keeps the durable bytes.  Of those written and not synced, each sector is kept or lost by
itself, and the file may end anywhere among them.  A failed sync leaves everything possible.
"""

from __future__ import annotations

from random import Random

from meridian.journal import record as format_
from meridian.journal.record import Record

SECTOR_BYTES = 64
"""Small, so that small records tear too."""


class Disk:
    """One append-only file in the format of the file backend."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.data = bytearray()
        self.durable_bytes = 0
        self.durable_n = 0

    def write(self, records: list[Record]) -> int:
        """Appends a batch; returns the size of the file, to be passed to `synced`."""
        for record in records:
            self.data += format_.encode(record, self.durable_n)
        return len(self.data)

    def synced(self, size_bytes: int, n: int) -> None:
        """Everything through `size_bytes` is durable."""
        self.durable_bytes = max(self.durable_bytes, size_bytes)
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
        while offset < len(data):
            try:
                record, durable_n, offset_after = format_.decode(data, offset)
            except format_.BadRecord:
                claim = max(claim, format_.later_durable_claim(data, offset, len(records) + 1))
                assert claim <= len(records), "a durable record is damaged"
                break
            assert record.n == len(records) + 1, (record.n, len(records))
            claim = max(claim, durable_n)
            records.append(record)
            offset = offset_after
        assert offset >= self.durable_bytes, "durable bytes were cut"
        del self.data[offset:]
        self.durable_bytes = offset
        self.durable_n = len(records)
        return records
