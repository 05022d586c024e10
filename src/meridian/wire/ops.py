"""The write set: what a transaction ships at COMMIT (docs/formats.md, "Write set")."""

from __future__ import annotations

from typing import Any

import msgspec

FRESH = 1
BLIND = 2

COMPLETE = 1
"""CREATE, ALTER: every row of the table has an entry in this index (it is not partial)."""
BUILDING = 2
"""CREATE: an index whose entries a job writes later; until ALTER says so it is not complete."""

KIND_TABLE = 0
KIND_INDEX = 1
KIND_SEQUENCE = 2

CLASS_INTEGER = 1
CLASS_BYTES = 2
CLASS_ORDERED = 3
CLASS_OPAQUE = 4

SID_CATALOG = 1
"""The catalog log: one row per catalog version."""
SID_JOBS = 3
"""Background jobs: one row per job (docs/formats.md)."""
JOB_COLUMNS = 20
SID_CATALOG_IMAGE = 4
"""Deltas merged into one: the pieces of one image (`meridian.catalog.compaction`)."""
SID_CATALOG_AUDIT = 5
"""Texts of statements whose deltas an image replaced: one row per catalog version."""
SID_STATISTICS_HEADS = 6
"""What was analysed: one row per relation or statistics object (docs/formats.md, "Statistics")."""
STATISTICS_HEAD_COLUMNS = 4
SID_STATISTICS = 7
"""What ANALYZE found: rows of PostgreSQL's catalogs of statistics."""

Rows = list[tuple[Any, ...]]


class Put(msgspec.Struct, array_like=True, tag=1):
    """New row versions; `rows` holds column values only, parallel to `keys`."""

    sid: int
    flags: int
    attnums: tuple[int, ...]
    keys: list[bytes]
    w: bytes
    i: bytes
    rows: Rows


class Delete(msgspec.Struct, array_like=True, tag=2):
    """Rows that end."""

    sid: int
    flags: int
    keys: list[bytes]
    w: bytes
    i: bytes


class Lock(msgspec.Struct, array_like=True, tag=3):
    """Keys conflict-written without a change (FOR UPDATE)."""

    sid: int
    keys: list[bytes]
    w: bytes
    i: bytes


class Share(msgspec.Struct, array_like=True, tag=4):
    """Recorded shares of row keys (`r`) and identity keys (`i`)."""

    sid: int
    keys: list[bytes]
    r: bytes
    i: bytes


class Big(msgspec.Struct, array_like=True, tag=5):
    """Values above 2,048 bytes of rows PUT in the same write set."""

    sid: int
    attnum: int
    keys: list[bytes]
    values: list[bytes]


class Create(msgspec.Struct, array_like=True, tag=6):
    """A new relation: columns are (attnum, class); flags: COMPLETE, BUILDING."""

    sid: int
    kind: int
    columns: list[tuple[int, int]]
    table_sid: int
    flags: int = 0


class Add(msgspec.Struct, array_like=True, tag=7):
    """A new column; rows without it read `default`."""

    sid: int
    attnum: int
    column_class: int
    default: Any


class Drop(msgspec.Struct, array_like=True, tag=8):
    """A relation that is gone for later transactions."""

    sid: int


class Notify(msgspec.Struct, array_like=True, tag=9):
    """NOTIFY: told to every instance once the transaction is durable; storage ignores it."""

    channel: bytes
    payload: bytes


class Check(msgspec.Struct, array_like=True, tag=10):
    """Rows that must not have been written after tau_start; nothing is recorded (index builds)."""

    sid: int
    keys: list[bytes]
    r: bytes


class Alter(msgspec.Struct, array_like=True, tag=11):
    """New flags of an index: COMPLETE once its build has ended."""

    sid: int
    flags: int


Op = Put | Delete | Lock | Share | Big | Create | Add | Drop | Notify | Check | Alter

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Op])


def encode_chunk(ops: list[Op]) -> bytes:
    """One chunk of a write set."""
    return _encoder.encode(ops)


def decode_chunk(chunk: bytes) -> list[Op]:
    """The ops of one chunk. Raises `msgspec.DecodeError` on malformed input."""
    return _decoder.decode(chunk)


_MASK = (1 << 64) - 1


def conflict_hash(sid: int, kind: int, key: bytes) -> int:
    """64-bit conflict hash of a row (kind 0) or identity (kind 1) key; twin of the extension's."""
    value = 0xCBF29CE484222325
    for byte in sid.to_bytes(8, "big") + bytes((kind,)) + key:
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    value ^= value >> 33
    value = (value * 0xFF51AFD7ED558CCD) & _MASK
    value ^= value >> 33
    value = (value * 0xC4CEB9FE1A85EC53) & _MASK
    return value ^ (value >> 33)
