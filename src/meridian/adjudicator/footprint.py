"""What an adjudicator needs of a write set: hashes and relations, never rows (docs/formats.md).

Rows and keys stay undecoded; a chunk of many rows costs little more than its hashes.
"""

from __future__ import annotations

from array import array
from typing import Any

import msgspec

from meridian.adjudicator.ops import (
    Check,
    Create,
    Delete,
    Lock,
    Others,
    Put,
    Share,
)
from meridian.wire.ops import BUILDING, KIND_INDEX, SID_CATALOG, Add, Drop
from meridian.wire.reach import COLUMN_REACH, EVERYBODY, Reach, decode_reach

_Raw = msgspec.Raw
_Op = Put[_Raw] | Delete[_Raw] | Lock[_Raw] | Share[_Raw] | Check[_Raw] | Others
_KeyLock = Lock[_Raw] | Share[_Raw]
_SchemaOp = Create | Add | Drop
_decode = msgspec.msgpack.Decoder(list[_Op]).decode
_ZERO = bytes(8)


class BadWriteSet(ValueError):
    """The chunk is no write set; the message is one clause."""


class Schema(msgspec.Struct, frozen=True):
    """What a write set does to relations.

    `touched`: relations whose users need a newer catalog afterwards.  `read`: relations whose rows
    the statement read to build something new (an index of an existing table, the copy behind a
    rewrite): a row written after tau_start would be missing there (section 9, "Coherence").
    """

    touched: tuple[int, ...]
    read: tuple[int, ...]


NO_SCHEMA = Schema((), ())


class Footprint(msgspec.Struct, frozen=True):
    """Conflict hashes (little-endian uint64 strings) and relations of one chunk.

    `sids` are the relations whose rows change or are locked, without sid 1; `catalog_version` is
    the version that the catalog log gets, 0 without one.  `checks` are compared with writes as
    shares are, but not recorded: whoever writes such a row later does what the checker did
    (section 9, "Index builds").  `written`, `row_locked`: those of `sids` whose rows change, or are
    only locked or shared; `locked`, `shared`: those locked or shared as a whole (a LOCK or SHARE of
    the key b"").  `reach`: whom the catalog version concerns, None without one.
    """

    writes: bytes
    shares: bytes
    checks: bytes
    sids: tuple[int, ...]
    schema: Schema
    catalog_version: int
    written: tuple[int, ...] = ()
    row_locked: tuple[int, ...] = ()
    locked: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()
    reach: Reach | None = None


def footprint(chunk: bytes) -> Footprint:
    """The footprint of a chunk.  Raises BadWriteSet."""
    try:
        ops = _decode(chunk)
    except msgspec.DecodeError as error:
        raise BadWriteSet(str(error)) from error
    if len(ops) == 1:
        # Nearly all transactions of one table without indexes; the rest below is the rule.
        op = ops[0]
        if isinstance(op, Put) and op.sid != SID_CATALOG and not op.i and not len(op.w) % 8:
            sids = (op.sid,)
            return Footprint(op.w, b"", b"", sids, NO_SCHEMA, 0, sids)
    writes: list[bytes] = []
    shares: list[bytes] = []
    checks: list[bytes] = []
    written: dict[int, None] = {}
    locks: list[_KeyLock] = []
    schema_ops: list[_SchemaOp] = []
    catalog_version, reach = 0, None
    for op in ops:
        # Rows first: nearly all ops are.
        if isinstance(op, (Put, Delete)):
            writes += (op.w, dense(op.i))
            if op.sid != SID_CATALOG:
                written[op.sid] = None
            elif isinstance(op, Put):
                catalog_version = _version_of(op.keys)
                reach = _reach_of(op)
        elif isinstance(op, Lock):
            writes += (op.w, dense(op.i))
            locks.append(op)
        elif isinstance(op, Share):
            shares += (dense(op.r), dense(op.i))
            locks.append(op)
        elif isinstance(op, Check):
            checks.append(op.r)
        elif isinstance(op, (Create, Add, Drop)):
            schema_ops.append(op)
    used = written
    if locks:
        used = {**written, **{op.sid: None for op in locks if op.sid != SID_CATALOG}}
    write_bytes, share_bytes, check_bytes = map(b"".join, (writes, shares, checks))
    if len(write_bytes) % 8 or len(share_bytes) % 8 or len(check_bytes) % 8:
        raise BadWriteSet("a string of hashes is no multiple of 8 bytes long")
    schema = _schema(schema_ops) if schema_ops else NO_SCHEMA
    return Footprint(
        write_bytes,
        share_bytes,
        check_bytes,
        tuple(used),
        schema,
        catalog_version,
        tuple(written),
        *(_locks(locks) if locks else NO_LOCKS),
        reach,
    )


def plain_writes(chunks: list[bytes]) -> tuple[bytes, list[int], dict[int, int]] | None:
    """The keys of chunks that only write rows: all hashes, how many of each chunk, and the number
    of the last chunk that writes each relation.

    None: one of them does more than that, or is malformed.
    """
    writes: list[bytes] = []
    counts: list[int] = []
    sids: dict[int, int] = {}
    try:
        for number, ops in enumerate(map(_decode, chunks)):
            size_bytes = 0
            for op in ops:
                if not isinstance(op, Put | Delete) or op.i or op.sid == SID_CATALOG:
                    return None
                writes.append(op.w)
                size_bytes += len(op.w)
                sids[op.sid] = number
            count, rest = divmod(size_bytes, 8)
            if rest:
                return None
            counts.append(count)
    except msgspec.DecodeError:
        return None
    return b"".join(writes), counts, sids


_Locks = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
NO_LOCKS: _Locks = ((), (), ())


def _locks(ops: list[_KeyLock]) -> _Locks:
    """Relations with locked rows, locked relations, shared relations."""
    rows: dict[int, None] = {}
    locked: dict[int, None] = {}
    shared: dict[int, None] = {}
    for op in ops:
        count, first_is_empty = _head(op.keys)
        if first_is_empty:
            (locked if isinstance(op, Lock) else shared)[op.sid] = None
        if count > first_is_empty:
            rows[op.sid] = None
    return tuple(rows), tuple(locked), tuple(shared)


def _head(keys: msgspec.Raw) -> tuple[int, bool]:
    """How many keys there are, and whether the first is empty; they stay undecoded."""
    data = bytes(memoryview(keys)[:8])
    if not data:
        raise BadWriteSet("keys are no array")
    head = data[0]
    if 0x90 <= head <= 0x9F:
        size_bytes, count = 1, head & 0x0F
    elif head in (0xDC, 0xDD):
        size_bytes = 3 if head == 0xDC else 5
        count = int.from_bytes(data[1:size_bytes], "big")
    else:
        raise BadWriteSet("keys are no array")
    return count, data[size_bytes : size_bytes + 2] == b"\xc4\x00"


def _reach_of(op: Put[_Raw]) -> Reach:
    """Column 3 of a row of the catalog log."""
    try:
        attnums = msgspec.msgpack.decode(op.attnums, type=list[int])
        if COLUMN_REACH not in attnums:
            return EVERYBODY
        rows = msgspec.msgpack.decode(op.rows, type=list[list[Any]])
        value = rows[0][attnums.index(COLUMN_REACH)]
        # Several versions in one transaction, or a reach that travels as a BIG op: seldom enough.
        return EVERYBODY if len(rows) != 1 or isinstance(value, str) else decode_reach(value)
    except (msgspec.DecodeError, ValueError, IndexError) as error:
        raise BadWriteSet(str(error)) from error


def dense(hashes: bytes) -> bytes:
    """Hashes without the zeros that keep them parallel to the keys."""
    if _ZERO not in hashes or len(hashes) % 8:
        return hashes
    return array("Q", filter(None, memoryview(hashes).cast("Q"))).tobytes()


def _version_of(keys: msgspec.Raw) -> int:
    """The highest catalog version among keys of sid 1 (8 bytes big-endian each)."""
    try:
        decoded = msgspec.msgpack.decode(keys, type=list[bytes])
    except msgspec.DecodeError as error:
        raise BadWriteSet(str(error)) from error
    if not decoded or len(decoded[-1]) != 8:
        raise BadWriteSet("a key of the catalog log is no version")
    return int.from_bytes(decoded[-1], "big")


def _schema(ops: list[_SchemaOp]) -> Schema:
    created = {op.sid: None for op in ops if isinstance(op, Create)}
    tables = any(op.kind != KIND_INDEX for op in ops if isinstance(op, Create))
    touched: dict[int, None] = {}
    read: dict[int, None] = {}
    for op in ops:
        if isinstance(op, Create):
            if op.table_sid and op.table_sid not in created:
                touched[op.table_sid] = None
                if not op.flags & BUILDING:
                    read[op.table_sid] = None
        elif op.sid not in created:
            touched[op.sid] = None
            # A DROP beside a new table may be the switch of a rewrite: its rows were read.
            if isinstance(op, Drop) and tables:
                read[op.sid] = None
    return Schema(tuple(touched), tuple(read))
