"""Journal records and segment headers, version 1 (design section 6; journal/README.md).

A segment is a header followed by records. All integers are little-endian.

Record: length u32 (bytes after the CRC), CRC32C u32 of those bytes, kind u8, flags u8, reserved
u16, epoch number u32, epoch nonce u64, n u64, durable n u64, tau i64, txid 16 bytes, payload.

`durable_n` is the highest n known durable when the record was written. It tells a torn tail
(nothing later claims that the bad record was durable: it was never acknowledged) from damage in
the middle (a later record does).
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import NamedTuple

from google_crc32c import value as crc32c

from meridian.errors import Kind, MeridianError
from meridian.limits import JOURNAL_RECORD_BYTES

FORMAT_VERSION = 1
MAGIC = b"MERJRNL\0"

_HEADER = struct.Struct("<8sHHIQI")  # magic, version, reserved, journal id, first n, CRC32C
HEADER_SIZE_BYTES = _HEADER.size
_PREFIX = struct.Struct("<II")
PREFIX_SIZE_BYTES = _PREFIX.size
_FIXED = struct.Struct("<BBHIQQQq16s")
FIXED_SIZE_BYTES = _FIXED.size

NO_TXID = bytes(16)


class RecordKind(IntEnum):
    """Record kinds of every journal backend."""

    EPOCH = 1
    COMMIT = 2
    BODY = 3
    LEASE = 4
    SEAL = 5
    RELEASE = 6
    ADD = 7
    CLOSE = 8
    SKIP = 9
    ABORT = 10
    ACQUIRE = 11
    SHARD = 12
    ADOPT = 13


class Record(NamedTuple):
    """One record; epoch = (number, nonce)."""

    kind: int
    epoch: tuple[int, int]
    n: int
    tau: int
    txid: bytes
    payload: bytes


class SegmentHeader(NamedTuple):
    """What a segment says about itself."""

    journal_id: int
    first_n: int


class BadRecord(Exception):
    """The bytes at an offset are no record. `why` is one clause."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def encode_header(journal_id: int, first_n: int) -> bytes:
    """Header of a new segment."""
    head = _HEADER.pack(MAGIC, FORMAT_VERSION, 0, journal_id, first_n, 0)[:-4]
    return head + struct.pack("<I", crc32c(head))


def decode_header(data: bytes, path: str) -> SegmentHeader:
    """Header of a segment. Raises UNKNOWN_FORMAT, or BadRecord where it is not whole."""
    if len(data) < HEADER_SIZE_BYTES:
        raise BadRecord("segment header is cut short")
    magic, version, _, journal_id, first_n, crc = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BadRecord("segment header has a wrong magic")
    if version != FORMAT_VERSION:
        raise MeridianError(Kind.UNKNOWN_FORMAT, what=f"journal segment {path}", version=version)
    if crc32c(data[: HEADER_SIZE_BYTES - 4]) != crc:
        raise BadRecord("segment header fails its checksum")
    return SegmentHeader(journal_id, first_n)


def encode(record: Record, durable_n: int) -> bytes:
    """One record as bytes; `durable_n` < record.n."""
    assert len(record.txid) == 16 and durable_n < record.n
    fixed = _FIXED.pack(
        record.kind, 0, 0, *record.epoch, record.n, durable_n, record.tau, record.txid
    )
    body = fixed + record.payload
    assert len(body) <= JOURNAL_RECORD_BYTES
    return _PREFIX.pack(len(body), crc32c(body)) + body


def encode_all(records: list[Record], durable_n: int) -> bytes:
    """`encode` of each, in a row."""
    parts: list[bytes] = []
    pack, prefix = _FIXED.pack, _PREFIX.pack
    for kind, (number, nonce), n, tau, txid, payload in records:
        assert len(txid) == 16 and durable_n < n
        body = pack(kind, 0, 0, number, nonce, n, durable_n, tau, txid) + payload
        size_bytes = len(body)
        assert size_bytes <= JOURNAL_RECORD_BYTES
        parts += (prefix(size_bytes, crc32c(body)), body)
    return b"".join(parts)


def decode(data: bytes, offset: int) -> tuple[Record, int, int]:
    """(record, its durable_n, offset after it). Raises BadRecord."""
    if offset + PREFIX_SIZE_BYTES > len(data):
        raise BadRecord("record is cut short")
    length, crc = _PREFIX.unpack_from(data, offset)
    if length < FIXED_SIZE_BYTES or length > JOURNAL_RECORD_BYTES:
        raise BadRecord(f"record length {length} is impossible")
    begin = offset + PREFIX_SIZE_BYTES
    end = begin + length
    if end > len(data):
        raise BadRecord("record is cut short")
    body = data[begin:end]
    if crc32c(body) != crc:
        raise BadRecord("record fails its checksum")
    kind, flags, reserved, number, nonce, n, durable_n, tau, txid = _FIXED.unpack_from(body)
    if kind not in _KINDS or flags or reserved:
        raise BadRecord(f"record kind {kind} flags {flags} is unknown")
    record = Record(kind, (number, nonce), n, tau, txid, body[FIXED_SIZE_BYTES:])
    return record, durable_n, end


_KINDS = frozenset(int(kind) for kind in RecordKind)


# Kind, no flags, reserved zero: what every record has behind its prefix.
_CANDIDATE = re.compile(rb"(?=[\x01-\x0d]\x00\x00\x00)")
_N_OFFSET = PREFIX_SIZE_BYTES + 16
_RECORDS_PER_SEGMENT_MAX = 1 << 24


def later_durable_claim(data: bytes, offset: int, n: int) -> int:
    """Highest durable_n of any valid record behind the bad record `n` at `offset` (-1: none).

    It tells a torn tail from damage. Checksums are computed only where all fields are plausible.
    """
    best = -1
    for match in _CANDIDATE.finditer(data, offset + 1 + PREFIX_SIZE_BYTES):
        position = match.start() - PREFIX_SIZE_BYTES
        found = int.from_bytes(data[position + _N_OFFSET : position + _N_OFFSET + 8], "little")
        if n < found < n + _RECORDS_PER_SEGMENT_MAX:
            try:
                best = max(best, decode(data, position)[1])
            except BadRecord:
                continue
    return best
