"""The adjudicator: decides commits and writes its journal (design sections 4-6)."""

from __future__ import annotations

from meridian.adjudicator.events import Effect, Event
from meridian.clock.tau import Interval


class Adjudicator:
    """One adjudicator with the journal it writes.  Feed Replay..., Replayed, then anything."""

    def __init__(self, number: int) -> None:
        self.number = number

    def step(self, now: Interval, event: Event) -> list[Effect]:
        """What to do about one event, in order."""
        raise NotImplementedError
