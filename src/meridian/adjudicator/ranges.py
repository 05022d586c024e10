"""The key ranges that one adjudicator owns, and since when (design 5.8).

Changed by RELEASE and ACQUIRE, which say all that is owned afterwards; before the first of them it
is what the adjudicator was made with.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
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

    def release(self, lo: Place, hi: Place) -> None:
        """[lo, hi) is not owned any more."""
        kept = []
        for span in self.spans:
            if span.lo < lo:
                kept.append(Span(span.lo, min(span.hi, lo), span.floor))
            if span.hi > hi:
                kept.append(Span(max(span.lo, hi), span.hi, span.floor))
        self.alone = False
        self._set(tuple(kept), self.version)

    def acquire(self, lo: Place, hi: Place, floor: int) -> None:
        """[lo, hi) is owned from here on."""
        assert hi <= LAST
        assert all(span.hi <= lo or span.lo >= hi for span in self.spans), "two owners of a range"
        self.alone = False
        added = Span(lo, hi, floor)
        self._set(tuple(sorted((*self.spans, added), key=lambda one: one.lo)), self.version)

    def hear(self, version: int) -> None:
        """A map of this version exists."""
        self.version = max(self.version, version)

    def covers(self, lo: Place, hi: Place) -> bool:
        """Whether all of [lo, hi) is owned."""
        reached = lo
        for span in self.spans:
            if span.lo <= reached:
                reached = max(reached, span.hi)
        return reached >= hi
