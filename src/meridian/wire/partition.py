"""Who owns which keys: ranges of (storage id, k), and the map of them, a hint (design 5.8).

What an adjudicator owns is said by RELEASE and ACQUIRE records; a map that is wrong costs a retry.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

Place = tuple[int, bytes]
"""A point in the space of all keys: (storage id, k)."""

FIRST: Final[Place] = (0, b"")
LAST: Final[Place] = (1 << 63, b"")
"""Above every key."""
NOBODY: Final = -1


class Span(msgspec.Struct, array_like=True, frozen=True):
    """Keys from `lo` on and below `hi`, owned since `floor`.

    What happened to them at or below `floor` the owner does not know.
    """

    lo: Place
    hi: Place
    floor: int = 0


EVERYTHING: Final = Span(FIRST, LAST)


class Handover(msgspec.Struct, array_like=True, frozen=True):
    """Record `n` of the journal of `source` gave a range to `target` (5.8).

    `tau_m` lies above every commit and promise of the old owner.  `version`: of the map that says
    so.
    """

    source: int
    n: int
    lo: Place
    hi: Place
    target: int
    tau_m: int
    version: int
    more: tuple[tuple[Place, Place], ...] = ()
    """Further ranges that went with it, above the first one, ascending."""

    def parts(self) -> tuple[tuple[Place, Place], ...]:
        """All of its ranges, ascending."""
        return ((self.lo, self.hi), *self.more)


class Holding(msgspec.Struct, array_like=True, frozen=True):
    """All that an adjudicator owns, after a range came or went.

    `seen`: per old owner the n of its newest RELEASE that was acquired; `released`: the own newest
    one, which the new owner may not have heard of; `version`: the newest map heard of.
    """

    spans: tuple[Span, ...]
    seen: tuple[tuple[int, int], ...] = ()
    released: Handover | None = None
    version: int = 0


class PartitionMap(msgspec.Struct, frozen=True):
    """Range i goes from starts[i] to the next start and belongs to owners[i]; starts[0] is FIRST.

    A higher version is newer.
    """

    version: int
    starts: tuple[Place, ...]
    owners: tuple[int, ...]

    def owner(self, place: Place) -> int:
        """Whose key this is."""
        return self.owners[bisect_right(self.starts, place) - 1]

    def everybody(self) -> list[int]:
        """All owners, ascending."""
        return sorted(frozenset(self.owners))

    def parts(self, sid: int, keys: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
        """(owner, begin, end): `keys`, ascending, cut at the borders; one bisection per border."""
        if not keys:
            return
        at = bisect_right(self.starts, (sid, keys[0])) - 1
        begin, last = 0, (sid, keys[-1])
        while begin < len(keys):
            end = len(keys)
            if at + 1 < len(self.starts) and self.starts[at + 1] <= last:
                end = bisect_left(keys, self.starts[at + 1][1], begin)
            if end > begin:
                yield self.owners[at], begin, end
            begin, at = end, at + 1

    def moved(self, lo: Place, hi: Place, target: int) -> PartitionMap:
        """The next version: [lo, hi) belongs to `target`; neighbours of one owner become one."""
        assert FIRST <= lo < hi <= LAST
        borders = sorted({*self.starts, lo, *([hi] if hi < LAST else [])})
        starts: list[Place] = []
        owners: list[int] = []
        for place in borders:
            owner = target if lo <= place < hi else self.owner(place)
            if not owners or owners[-1] != owner:
                starts.append(place)
                owners.append(owner)
        return PartitionMap(self.version + 1, tuple(starts), tuple(owners))


def whole_map(owner: int, version: int = 1) -> PartitionMap:
    """One owner of everything."""
    return PartitionMap(version, (FIRST,), (owner,))


def map_of(spans: Sequence[Span], owner: int, version: int) -> PartitionMap:
    """The map of one owner's spans (ascending, disjoint); the rest belongs to NOBODY."""
    starts: list[Place] = [FIRST]
    owners: list[int] = [NOBODY]
    for span in spans:
        if starts[-1] == span.lo:
            owners[-1] = owner
        else:
            starts.append(span.lo)
            owners.append(owner)
        if span.hi < LAST:
            starts.append(span.hi)
            owners.append(NOBODY)
    return PartitionMap(version, tuple(starts), tuple(owners))


def covers(spans: Sequence[Span]) -> bool:
    """Whether these spans, of any owners, together hold every key."""
    reached = FIRST
    for span in sorted(spans, key=lambda one: one.lo):
        if span.lo > reached:
            return False
        reached = max(reached, span.hi)
    return reached >= LAST
