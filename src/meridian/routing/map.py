"""The shard map: which replicas are said to hold which range. Versioned, and only a hint (pure).

Ranges may overlap (a split under way) and leave holes (nobody is known); replicas themselves refuse
what they do not own, so that a map of any age costs time, never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from meridian.wire.ranges import EVERYTHING, Range


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """A range and its replicas, nearest first."""

    number: int
    lo: bytes
    hi: bytes
    replicas: tuple[int, ...]

    @property
    def range(self) -> Range:
        """Its places."""
        return Range(self.lo, self.hi)


class ShardMap(msgspec.Struct, frozen=True, array_like=True):
    """Shards in the order of `lo`; a higher version is newer."""

    version: int
    shards: tuple[Shard, ...]

    def replicas_of(self, wanted: Range) -> tuple[int, ...]:
        """All replicas that are said to hold the whole range; those of wide shards first."""
        found = [one for one in self.shards if one.range.covers(wanted)]
        found.sort(key=lambda one: (one.lo, one.number))
        return tuple(dict.fromkeys(replica for one in found for replica in one.replicas))

    def part_at(self, wanted: Range, *, descending: bool) -> tuple[Range, tuple[int, ...]]:
        """The part of `wanted` to ask first, and who is said to hold its beginning.

        With nobody there: the part up to the next shard. The part is as long as the longest shard
        there; others of the replicas may answer for less.
        """
        if descending:
            here = [one for one in self.shards if one.lo < wanted.hi <= one.hi]
            below = [one.hi for one in self.shards if wanted.lo < one.hi < wanted.hi]
            lo = min((one.lo for one in here), default=max(below, default=wanted.lo))
            here.sort(key=lambda one: (one.lo, one.number))
            part = Range(max(lo, wanted.lo), wanted.hi)
        else:
            here = [one for one in self.shards if one.lo <= wanted.lo < one.hi]
            above = [one.lo for one in self.shards if wanted.lo < one.lo < wanted.hi]
            hi = max((one.hi for one in here), default=min(above, default=wanted.hi))
            here.sort(key=lambda one: one.number)
            here.sort(key=lambda one: one.hi, reverse=True)
            part = Range(wanted.lo, min(hi, wanted.hi))
        return part, tuple(dict.fromkeys(r for one in here for r in one.replicas))


def single(replicas: Sequence[int], version: int = 1) -> ShardMap:
    """One shard with everything."""
    return ShardMap(version, (Shard(0, EVERYTHING.lo, EVERYTHING.hi, tuple(replicas)),))
