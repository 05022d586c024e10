"""Cuts a chunk of a large write set into pieces that storage takes in about a millisecond each.

The pieces are what the journal keeps: replay sees the same ones. Between two of them the event
loop serves others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from meridian.limits import SLICE_BYTES, SLICE_ROWS
from meridian.wire.ops import (
    Add,
    Alter,
    Big,
    Check,
    Create,
    Delete,
    Drop,
    Lock,
    Notify,
    Op,
    Put,
    Share,
    encode_chunk,
)

_HASH_BYTES = 8
_Keyed = Put | Delete | Lock | Share | Big | Check


def slices(ops: Sequence[Op], size_bytes: int) -> list[bytes]:
    """The same ops as several chunks, schema ops first. `size_bytes`: of the chunk of `ops`."""
    schema: list[Op] = [op for op in ops if isinstance(op, (Create, Add, Drop, Alter))]
    rows = [op for op in ops if not isinstance(op, (Create, Add, Drop, Alter, Notify))]
    count = sum(len(op.keys) for op in rows)
    fitting = max(1, min(SLICE_ROWS, count * SLICE_BYTES // max(1, size_bytes)))
    pieces: list[bytes] = []
    piece, taken = schema, 0
    for op in rows:
        for part in _cut(op, fitting - taken, fitting):
            piece.append(part)
            taken += len(part.keys)
            if taken >= fitting:
                pieces.append(encode_chunk(piece))
                piece, taken = [], 0
    if piece or not pieces:
        pieces.append(encode_chunk(piece))
    return [*pieces, *_notifications(ops)]


def _notifications(ops: Sequence[Op]) -> Iterator[bytes]:
    piece: list[Op] = []
    size_bytes = 0
    for op in ops:
        if isinstance(op, Notify):
            piece.append(op)
            size_bytes += len(op.channel) + len(op.payload)
            if size_bytes >= SLICE_BYTES:
                yield encode_chunk(piece)
                piece, size_bytes = [], 0
    if piece:
        yield encode_chunk(piece)


def _cut(op: _Keyed, first: int, following: int) -> Iterator[_Keyed]:
    """Parts of one op: `first` keys, then `following` each."""
    start, end = 0, first
    while start < len(op.keys) or start == 0:
        yield _part(op, start, end)
        start, end = end, end + following


def _part(op: _Keyed, start: int, end: int) -> _Keyed:
    keys = op.keys[start:end]
    if isinstance(op, Big):
        return Big(op.sid, op.attnum, keys, op.values[start:end])
    hashed = slice(start * _HASH_BYTES, end * _HASH_BYTES)
    if isinstance(op, Check):
        return Check(op.sid, keys, op.r[hashed])
    identity = op.i[hashed]
    if isinstance(op, Put):
        rows = op.rows[start:end]
        return Put(op.sid, op.flags, op.attnums, keys, op.w[hashed], identity, rows)
    if isinstance(op, Delete):
        return Delete(op.sid, op.flags, keys, op.w[hashed], identity)
    if isinstance(op, Lock):
        return Lock(op.sid, keys, op.w[hashed], identity)
    return Share(op.sid, keys, op.r[hashed], identity)
