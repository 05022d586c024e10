"""Ranges of (sid, k): who holds what (pure; design sections 7 and 8).

A *place* is one byte string: the storage id, 8 bytes big-endian, then the key. Places of one
relation are neighbours and in the order of its keys, so a range of places covers parts of one
relation, whole ones, or several. Nothing here loops over rows: keys are sorted, two bisections cut
an op.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from meridian.wire.ops import Add, Alter, Big, Create, Delete, Drop, Op, Put

START = b""
END = b"\x80"
"""Above every place: storage ids are below 2^63."""


class Range(NamedTuple):
    """Places with lo <= place < hi."""

    lo: bytes
    hi: bytes

    def holds(self, place: bytes) -> bool:
        """Is the place inside?"""
        return self.lo <= place < self.hi

    def covers(self, other: Range) -> bool:
        """Is all of `other` inside?"""
        return self.lo <= other.lo and other.hi <= self.hi

    def meets(self, other: Range) -> bool:
        """Have they a place in common?"""
        return max(self.lo, other.lo) < min(self.hi, other.hi)


EVERYTHING = Range(START, END)


class Owned(msgspec.Struct, frozen=True, array_like=True):
    """A range that a file holds; reads there below `base` are refused: older versions are gone."""

    lo: bytes
    hi: bytes
    base: int = 0

    @property
    def range(self) -> Range:
        """Its places."""
        return Range(self.lo, self.hi)


ALL = (Owned(START, END),)


class Scanned(NamedTuple):
    """The part of a relation that an answer speaks of: lo <= k < hi, hi None = to its end."""

    lo: bytes
    hi: bytes | None


def place(sid: int, key: bytes = b"") -> bytes:
    """The place of a key, or where a relation begins."""
    return sid.to_bytes(8, "big") + key


def span(sid: int) -> Range:
    """All places of a relation."""
    return Range(place(sid), place(sid + 1) if sid < (1 << 63) - 1 else END)


def asked(sid: int, lo: bytes | None, hi: bytes | None) -> Range:
    """The places of the keys lo <= k < hi; None: from the beginning, to the end."""
    whole = span(sid)
    return Range(whole.lo + (lo or b""), whole.hi if hi is None else whole.lo + hi)


def keys_of(sid: int, part: Range) -> Scanned:
    """The keys of one relation inside a range that meets its span."""
    whole = span(sid)
    lo = part.lo[8:] if part.lo > whole.lo else b""
    return Scanned(lo, part.hi[8:] if part.hi < whole.hi else None)


def check_disjoint(owned: Sequence[Owned]) -> None:
    """Raises ValueError unless the ranges are nonempty, ascending and do not overlap."""
    last = b""
    for one in owned:
        if one.lo < last or one.lo >= one.hi or one.hi > END:
            raise ValueError("ranges overlap, are empty or are not ascending")
        last = one.hi


def cover(ranges: Iterable[Range], wanted: Range) -> bool:
    """Do the ranges together hold all of `wanted`? They may overlap."""
    at = wanted.lo
    for one in sorted(ranges):
        if one.lo > at:
            break
        at = max(at, one.hi)
    return at >= wanted.hi


def subtract(ranges: Sequence[Range], hole: Range) -> list[Range]:
    """What is left of the ranges without the hole."""
    left = []
    for one in ranges:
        for lo, hi in ((one.lo, min(one.hi, hole.lo)), (max(one.lo, hole.hi), one.hi)):
            if lo < hi:
                left.append(Range(lo, hi))
    return left


def gaps(owned: Sequence[Owned], wanted: Range) -> list[Range]:
    """The parts of `wanted` that are not owned."""
    left = [wanted]
    for one in owned:
        left = subtract(left, one.range)
    return left


def joined(owned: Iterable[Owned]) -> list[Owned]:
    """Ascending; neighbours with the same base become one."""
    result: list[Owned] = []
    for one in sorted(owned, key=lambda part: part.lo):
        if result and result[-1].hi == one.lo and result[-1].base == one.base:
            result[-1] = Owned(result[-1].lo, one.hi, one.base)
        else:
            result.append(one)
    return result


def without(owned: Sequence[Owned], hole: Range) -> list[Owned]:
    """What is left of owned ranges."""
    return [
        Owned(part.lo, part.hi, one.base) for one in owned for part in subtract([one.range], hole)
    ]


class Ranges:
    """What one file owns: ascending, disjoint ranges, each with its base."""

    def __init__(self, owned: Sequence[Owned]) -> None:
        check_disjoint(owned)
        self.owned = tuple(owned)
        self.whole = self.owned == ALL
        """Everything with no base: nothing to check on any path."""
        self._los = [one.lo for one in self.owned]

    def at(self, where: bytes) -> Owned | None:
        """The owned range that holds a place."""
        index = bisect_right(self._los, where) - 1
        if index < 0 or where >= self.owned[index].hi:
            return None
        return self.owned[index]

    def base_of(self, wanted: Range) -> int | None:
        """The highest base in a range that is owned completely; None: it is not."""
        part = self.clip(wanted, descending=False)
        return None if part is None or part[0] != wanted else part[1]

    def base_of_keys(self, sid: int, keys: Sequence[bytes]) -> int | None:
        """The same for sorted keys, one by one: gaps between them are fine."""
        start, base = 0, 0
        prefix = place(sid)
        while start < len(keys):
            one = self.at(prefix + keys[start])
            if one is None:
                return None
            base = max(base, one.base)
            end = keys_of(sid, one.range).hi
            start = len(keys) if end is None else bisect_left(keys, end, start)
        return base

    def clip(self, wanted: Range, *, descending: bool) -> tuple[Range, int] | None:
        """The owned part at the end of `wanted` where a scan begins, and its base; None: none."""
        if wanted.lo >= wanted.hi:
            return wanted, 0
        lo, hi, base = wanted.hi, wanted.lo, 0
        parts = self.base_parts(wanted)
        for one in reversed(parts) if descending else parts:
            if descending:
                if one.hi < lo:
                    break
                lo = max(one.lo, wanted.lo)
            else:
                if one.lo > hi:
                    break
                hi = min(one.hi, wanted.hi)
            base = max(base, one.base)
        part = Range(lo, wanted.hi) if descending else Range(wanted.lo, hi)
        return (part, base) if part.lo < part.hi else None

    def meets(self, wanted: Range) -> bool:
        """Is some place of it owned?"""
        return self.base_parts(wanted) != []

    def base_parts(self, wanted: Range) -> list[Owned]:
        """The owned ranges that meet `wanted`."""
        first = max(0, bisect_right(self._los, wanted.lo) - 1)
        last = bisect_left(self._los, wanted.hi)
        return [one for one in self.owned[first:last] if one.range.meets(wanted)]


def cut_ops(ops: Sequence[Op], ranges: Ranges) -> list[Op]:
    """The share of a write set that concerns these ranges, in its order.

    Rows are cut by key; what concerns a relation goes to whoever owns a part of it; the rest
    (locks, shares, checks) means nothing to storage.
    """
    return [part for op in ops for part in _cut(op, ranges)]


def _cut(op: Op, ranges: Ranges) -> Iterator[Op]:
    if not isinstance(op, (Put, Delete, Big, Create, Add, Drop, Alter)):
        return
    owned = ranges.base_parts(span(op.sid))
    if not owned:
        return
    if not isinstance(op, (Put, Delete, Big)):
        yield op
        return
    for one in owned:
        lo, hi = keys_of(op.sid, one.range)
        start = bisect_left(op.keys, lo) if lo else 0
        stop = len(op.keys) if hi is None else bisect_left(op.keys, hi)
        if start == 0 and stop == len(op.keys):
            yield op
        elif start < stop:
            yield _slice(op, start, stop)


def _slice(op: Put | Delete | Big, start: int, stop: int) -> Op:
    """Entries start to stop of an op; conflict hashes go along, they are 8 bytes each."""
    keys = op.keys[start:stop]
    if isinstance(op, Big):
        return Big(op.sid, op.attnum, keys, op.values[start:stop])
    w, i = op.w[8 * start : 8 * stop], op.i[8 * start : 8 * stop]
    if isinstance(op, Put):
        return Put(op.sid, op.flags, op.attnums, keys, w, i, op.rows[start:stop])
    return Delete(op.sid, op.flags, keys, w, i)
