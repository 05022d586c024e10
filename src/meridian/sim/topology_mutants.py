"""Cores with one rule broken each: of journals that come and go where owners vote (4.7, 5.8)."""

from __future__ import annotations

from meridian.adjudicator import events as ev
from meridian.adjudicator.core import Adjudicator
from meridian.clock.tau import Interval
from meridian.sim.messages import Parts
from meridian.sim.vote_mutants import FOCUS, parts
from meridian.wire.partition import Handover

CHANGING: dict[str, object] = {
    **FOCUS,
    "owners": 2,
    "sharded": False,
    "controllers": 0,
    "safety_ns": 5_000_000_000,
    "adds": 3,
    "closes": 2,
    "moves": 20,
    "weights": (0, 2, 1, 0, 0, 0, 0, 3, 0),
}
"""Owners that vote, journals that come and go, ranges that move, schema changes."""
CRASHING = {**CHANGING, "crashes": 6, "crash_at_append": 0.03}


class ClosesWithRanges(Adjudicator):
    """Ends its journal while keys are its own."""

    def _owns(self) -> bool:
        return False


class NeverDeclines(Adjudicator):
    """Is silent about ranges that its ended journal can never take."""

    def _released(self, now: Interval, handover: Handover) -> list[ev.Effect]:
        return [] if self.membership.closed_tau else super()._released(now, handover)


class NewcomerWithoutCatalog(Adjudicator):
    """Votes on what began under schemas that it never heard of."""

    def _released(self, now: Interval, handover: Handover) -> list[ev.Effect]:
        effects = super()._released(now, handover)
        if self._incoming is None:
            return effects
        self._incoming = None
        return self._acquire(now, handover)


class AddedWhenServing(Adjudicator):
    """Tells that a journal exists only once it serves, which may wait for that very journal."""

    def _add_journal(self, now: Interval, number: int) -> list[ev.Effect]:
        return super()._add_journal(now, number) if self.serving else []


class StaysAlone(Adjudicator):
    """Takes its keys for all there are after some went to a newcomer."""

    def _move(self, now: Interval, event: ev.Move) -> list[ev.Effect]:
        alone, effects = self.ranges.alone, super()._move(now, event)
        self.ranges.alone = alone
        return effects


def _alone(swarm: dict[str, object]) -> dict[str, object]:
    return {**swarm, "owners": 1}


MUTANTS: tuple[tuple[str, str, int, Parts], ...] = (
    ("CLOSE while ranges are owned", "4.7, 5.8", 60, parts(ClosesWithRanges, swarm=CHANGING)),
    ("silent about ranges it cannot take", "4.7, 5.8", 100, parts(NeverDeclines, swarm=CHANGING)),
    (
        "a newcomer votes without the catalog",
        "9",
        60,
        parts(NewcomerWithoutCatalog, swarm=CHANGING),
    ),
    ("ADD is told by who serves only", "4.7", 100, parts(AddedWhenServing, swarm=CRASHING)),
    ("alone after a range has gone", "5.8", 150, parts(StaysAlone, swarm=_alone(CHANGING))),
)
