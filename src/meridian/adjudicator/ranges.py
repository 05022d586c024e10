"""The key ranges that one adjudicator owns, and since when (design 5.8).

Changed by RELEASE and ACQUIRE, which say all that is owned afterwards; before the first of them it
is what the adjudicator was made with.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

from meridian.wire.partition import (
    EVERYTHING,
    LAST,
    Handover,
    Holding,
    PartitionMap,
    Place,
    Span,
    map_of,
)

Part = tuple[Place, Place]
"""[lo, hi)."""


class Ranges:
    """Invariant: spans ascend and do not overlap; only one RELEASE is not known to be acquired."""

    def __init__(
        self, number: int, spans: tuple[Span, ...] = (EVERYTHING,), version: int = 1
    ) -> None:
        self.number = number
        self.alone = spans == (EVERYTHING,)
        """It has always owned everything: every commit is in its journal."""
        self.seen: dict[int, int] = {}
        self.released: Handover | None = None
        self.pending = False
        """`released` is not known to be acquired."""
        self._set(spans, version)

    def _set(self, spans: tuple[Span, ...], version: int) -> None:
        assert all(span.lo < span.hi for span in spans)
        assert all(a.hi <= b.lo for a, b in pairwise(spans))
        self.spans = spans
        self.version = version
        self._los = [span.lo for span in spans]
        self.map: PartitionMap = map_of(spans, self.number, version)

    def load(self, holding: Holding) -> None:
        """What a record of the own journal says."""
        self.alone = False
        self.seen = dict(holding.seen)
        self.released = holding.released
        self.pending = holding.released is not None
        self._set(holding.spans, holding.version)

    def holding(self) -> Holding:
        """What the next record must say."""
        return Holding(self.spans, tuple(sorted(self.seen.items())), self.released, self.version)

    def _at(self, place: Place) -> Span | None:
        at = bisect_right(self._los, place) - 1
        return self.spans[at] if at >= 0 and place < self.spans[at].hi else None

    def floor(self, bounds: Iterable[tuple[int, bytes, bytes]]) -> int | None:
        """The highest floor of the ranges that hold these keys; None if one is not owned."""
        floor = 0
        for sid, first, last in bounds:
            span = self._at((sid, first))
            while span is not None and (sid, last) >= span.hi:
                # Two own ranges side by side.
                floor = max(floor, span.floor)
                span = self._at(span.hi)
            if span is None:
                return None
            floor = max(floor, span.floor)
        return floor

    @property
    def floor_max(self) -> int:
        """What concerns whole relations may not have begun below it."""
        return max((span.floor for span in self.spans), default=0)

    def release(self, parts: Sequence[Part]) -> None:
        """These ranges, ascending, are not owned any more."""
        kept: list[Span] = []
        at = 0
        for span in self.spans:
            lo = span.lo
            while at < len(parts) and parts[at][1] <= lo:
                at += 1
            inside = at
            while inside < len(parts) and parts[inside][0] < span.hi:
                if lo < parts[inside][0]:
                    kept.append(Span(lo, parts[inside][0], span.floor))
                lo = max(lo, min(parts[inside][1], span.hi))
                inside += 1
            if lo < span.hi:
                kept.append(Span(lo, span.hi, span.floor))
        self.alone = False
        self._set(tuple(kept), self.version)

    def acquire(self, parts: Sequence[Part], floor: int) -> None:
        """These ranges are owned from here on."""
        assert all(lo < hi <= LAST for lo, hi in parts)
        self.alone = False
        added = [Span(lo, hi, floor) for lo, hi in parts]
        spans = sorted((*self.spans, *added), key=lambda one: one.lo)
        assert all(a.hi <= b.lo for a, b in pairwise(spans)), "two owners of a range"
        self._set(tuple(spans), self.version)

    def hear(self, version: int) -> None:
        """A map of this version exists."""
        self.version = max(self.version, version)

    def meets(self, parts: Sequence[Part]) -> bool:
        """Whether some of these ranges is owned, in part at least."""
        return any(span.lo < hi and lo < span.hi for lo, hi in parts for span in self.spans)

    def covers(self, parts: Sequence[Part]) -> bool:
        """Whether all of these ranges, ascending, are owned."""
        at = 0
        for lo, hi in parts:
            reached = lo
            while at < len(self.spans) and self.spans[at].hi <= reached:
                at += 1
            inside = at
            while inside < len(self.spans) and self.spans[inside].lo <= reached < hi:
                reached = max(reached, self.spans[inside].hi)
                inside += 1
            if reached < hi:
                return False
        return True
