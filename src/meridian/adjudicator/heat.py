"""What an adjudicator does, for the control core: commits a second, and a middle of their keys."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from meridian.limits import S
from meridian.wire.partition import Place, Span

PLACES = 256
"""Places remembered; what moved away is forgotten with time."""


class Heat:
    """Pure. Whoever feeds it may sample: only ratios matter."""

    def __init__(self) -> None:
        self._places: deque[Place] = deque(maxlen=PLACES)
        self._second = 0
        self._now_count = 0
        self._before_count = 0

    def _turn(self, now: int) -> None:
        second = now // S
        if second == self._second:
            return
        self._before_count = self._now_count if second == self._second + 1 else 0
        self._second, self._now_count = second, 0

    def committed(self, now: int, count: int = 1) -> None:
        """So many commits just now (ns)."""
        self._turn(now)
        self._now_count += count

    def touched(self, places: Iterable[Place]) -> None:
        """Keys of commits."""
        self._places.extend(places)

    def per_s(self, now: int) -> int:
        """Commits in the last second: of this one, and of the one before as far as it counts."""
        self._turn(now)
        rest = S - now % S
        return self._now_count + self._before_count * rest // S

    def middle(self, spans: Sequence[Span]) -> Place | None:
        """A place with about half of the commits above it, inside of a span and not its start."""
        inside = sorted(
            one for one in self._places if any(span.lo < one < span.hi for span in spans)
        )
        return inside[len(inside) // 2] if inside else None
