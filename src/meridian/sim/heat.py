"""What an owner of the world does, for control cores: commits a second, and a middle of their keys.

As `dataplane/heat.py` counts, by the world's time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from meridian.dataplane.heat import SAMPLES, hot_middle
from meridian.sim.world import S
from meridian.wire.partition import Place, Span


class Heat:
    """Of one owner; only ratios matter."""

    def __init__(self) -> None:
        self._places: deque[Place] = deque(maxlen=SAMPLES)
        self._second = 0
        self._count = 0
        self._before = 0

    def _turn(self, now: int) -> None:
        second = now // S
        if second != self._second:
            self._before = self._count if second == self._second + 1 else 0
            self._second, self._count = second, 0

    def committed(self, now: int) -> None:
        """One commit just now."""
        self._turn(now)
        self._count += 1

    def touched(self, place: Place) -> None:
        """A key of a commit."""
        self._places.append(place)

    def per_s(self, now: int) -> int:
        """Commits in this second, and in the one before as far as it counts."""
        self._turn(now)
        return self._count + self._before * (S - now % S) // S

    def middle(self, spans: Sequence[Span]) -> bytes:
        """A place amid the keys that are its own by now; empty: there is none."""
        return hot_middle(
            sorted(one for one in self._places if any(s.lo < one < s.hi for s in spans))
        )
