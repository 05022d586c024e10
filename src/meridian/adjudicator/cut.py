"""Cuts a write set by key range: which owner must check which hashes (design 5.3).

Keys of an op ascend, so a border costs one bisection; no loop runs over keys.  Blind keys have no
hashes and belong to whoever takes part.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from meridian.adjudicator.footprint import BadWriteSet, Footprint, dense, footprint
from meridian.adjudicator.ops import (
    Alter,
    Check,
    Create,
    Delete,
    Lock,
    Others,
    Put,
    Share,
)
from meridian.wire.ops import SID_CATALOG, Add, Drop
from meridian.wire.partition import PartitionMap
from meridian.wire.votes import Tally

_MASK = (1 << 64) - 1
Bounds = tuple[tuple[int, bytes, bytes], ...]
"""(storage id, first key, last key) of every piece."""


_Keys = list[bytes]
_Op = Put[_Keys] | Delete[_Keys] | Lock[_Keys] | Share[_Keys] | Check[_Keys] | Others
_decode = msgspec.msgpack.Decoder(list[_Op]).decode
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Footprint).decode


class Part(msgspec.Struct, frozen=True):
    """One owner's share of a write set; its footprint names all relations of the whole."""

    footprint: Footprint
    bounds: Bounds
    tally: Tally


class Cut(msgspec.Struct, frozen=True):
    """`everywhere`: the schema changes or a relation is locked, so that every owner must vote."""

    whole: Footprint
    parts: dict[int, Part]
    everywhere: bool

    def part(self, owner: int) -> Part:
        """What this owner must check: perhaps relations only."""
        found = self.parts.get(owner)
        return found or Part(_narrowed(self.whole, b"", b"", b""), (), Tally())


class _Pieces:
    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.shares: list[bytes] = []
        self.checks: list[bytes] = []
        self.bounds: list[tuple[int, bytes, bytes]] = []

    def part(self, whole: Footprint) -> Part:
        writes, shares = b"".join(self.writes), b"".join(self.shares)
        checks = b"".join(self.checks)
        print_ = _narrowed(whole, writes, shares, checks)
        return Part(print_, tuple(self.bounds), tally(writes, shares + checks))


def _narrowed(whole: Footprint, writes: bytes, shares: bytes, checks: bytes) -> Footprint:
    return msgspec.structs.replace(whole, writes=writes, shares=shares, checks=checks)


def tally(writes: bytes, shares: bytes) -> Tally:
    """The tally of hashes written, and of those shared or checked."""
    return Tally(
        len(writes) // 8,
        sum(memoryview(writes).cast("Q")) & _MASK,
        len(shares) // 8,
        sum(memoryview(shares).cast("Q")) & _MASK,
    )


def cut(chunk: bytes, map_: PartitionMap) -> Cut:
    """Cuts one chunk.  Raises BadWriteSet, also where hashes are not parallel to keys."""
    whole = footprint(chunk)
    try:
        ops = _decode(chunk)
    except msgspec.DecodeError as error:
        raise BadWriteSet(str(error)) from error
    everywhere = False
    pieces: dict[int, _Pieces] = {}
    for op in ops:
        match op:
            case Create() | Add() | Drop() | Alter():
                everywhere = True
            case Lock() if op.keys[:1] == [b""]:
                # Rows may be locked in the same op, behind the relation.
                everywhere = True
                _deal(pieces, map_, "writes", op.sid, op.keys[1:], op.w[8:], op.i[8:])
            case Share() if op.keys[:1] == [b""]:
                everywhere = True
                _deal(pieces, map_, "shares", op.sid, op.keys[1:], op.r[8:], op.i[8:])
            case Put() | Delete() | Lock():
                everywhere = everywhere or op.sid == SID_CATALOG
                _deal(pieces, map_, "writes", op.sid, op.keys, op.w, op.i)
            case Share():
                _deal(pieces, map_, "shares", op.sid, op.keys, op.r, op.i)
            case Check():
                _deal(pieces, map_, "checks", op.sid, op.keys, op.r, b"")
            case _:
                pass
    parts = {owner: piece.part(whole) for owner, piece in sorted(pieces.items())}
    return Cut(whole, parts, everywhere)


def _deal(
    pieces: dict[int, _Pieces],
    map_: PartitionMap,
    kind: str,
    sid: int,
    keys: list[bytes],
    rows: bytes,
    identities: bytes,
) -> None:
    if not rows and not identities:
        return
    if len(rows) not in (0, 8 * len(keys)) or len(identities) not in (0, 8 * len(keys)):
        raise BadWriteSet("hashes are not parallel to keys")
    for owner, begin, end in map_.parts(sid, keys):
        piece = pieces.setdefault(owner, _Pieces())
        piece.bounds.append((sid, keys[begin], keys[end - 1]))
        hashes: list[bytes] = getattr(piece, kind)
        hashes.append(dense(rows[8 * begin : 8 * end]))
        hashes.append(dense(identities[8 * begin : 8 * end]))


def owners_of(cuts: Iterable[Cut], map_: PartitionMap) -> list[int]:
    """Who must take part, ascending, the leader first; somebody, if only blind keys are written."""
    cuts = list(cuts)
    if any(one.everywhere for one in cuts):
        return map_.everybody()
    found = {owner: None for one in cuts for owner in one.parts}
    if not found:
        sids = [sid for one in cuts for sid in one.whole.sids]
        found[map_.owner((min(sids, default=0), b""))] = None
    return sorted(found)


def pack(print_: Footprint) -> bytes:
    """A footprint for a message."""
    return _pack(print_)


def unpack(data: bytes) -> Footprint:
    """Raises msgspec.DecodeError."""
    return _unpack(data)
