"""Control cores with one rule broken each (control/README.md)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from meridian.clock.tau import Interval
from meridian.control.core import (
    RETIRE,
    Change,
    Control,
    Event,
    JournalsInForce,
    Policy,
)
from meridian.control.views import Action, Placed, Publish, ReplicaReport
from meridian.sim.messages import Parts
from meridian.sim.world import MS
from meridian.wire.ranges import Range

STEERED: dict[str, object] = {
    "sharded": True,
    "colocated": False,
    "checkpoints": 0,
    "adds": 0,
    "closes": 0,
    "rots": 0,
    "streams": True,
    "coded": False,
    "partitioned": True,
    "owners": 2,
    "clients": 3,
    "clock_error": 20_000,
    "false_bounds": False,
    "disturbers": 0,
    "snapshots": 6,
    "keeps": 2,
    "hosts": 4,
    "zones": 2,
    "shards": 2,
    "copies": 2,
    "controllers": 1,
    "safety_ns": 6_000 * MS,
    "deaths": 0,
    "zone_crashes": 0,
    "one_way_cuts": 0,
    "steerer_crashes": 0,
    "long_pauses": 0,
    "hot": 0.5,
    "scans": 0.1,
    "keys": 20,
    "weights": (1, 2, 2, 1, 0, 0, 0, 0, 0),
}
"""Splits, merges, moves; nothing dies for good."""
FAILING = {**STEERED, "deaths": 1, "zone_crashes": 2, "crashes": 3, "steerer_crashes": 2}


class BelievesStale(Control):
    """Takes old reports for the present state."""

    def _fresh(self, now: int, replica: int) -> ReplicaReport | None:
        return self.replicas.get(replica)

    def _dead(self, now: int, replica: int) -> bool:
        return replica not in self.replicas


class RetiresAtOnce(Control):
    """Retires old copies whether or not others serve what they give up."""

    _blind = False

    def _serving(self, now: int, replica: int, wanted: Range) -> bool:
        return self._blind or super()._serving(now, replica, wanted)

    def _drive(self, now: int, change: Change, actions: list[Action]) -> None:
        self._blind = True
        super()._drive(now, change, actions)
        self._blind = False


class RetiresWithoutMap(Control):
    """Retires what the map in force still names."""

    def _publish(self, now: int, change: Change, actions: list[Action]) -> None:
        change.phase = RETIRE


class TwoChanges(Control):
    """Begins a change of a range that is being changed."""

    def _free(self, shards: Sequence[Placed]) -> bool:
        return len(self.changes) < self.policy.changes


class MapWithHole(Control):
    """Publishes only what is new."""

    def _publish(self, now: int, change: Change, actions: list[Action]) -> None:
        super()._publish(now, change, actions)
        if actions and isinstance(actions[-1], Publish):
            table = tuple((one.lo, one.hi, one.replicas) for one in change.new)
            actions[-1] = msgspec.structs.replace(actions[-1], shards=table)


class DeadStay(Control):
    """Waits for copies that never come back."""

    def _useless(self, now: int, replica: int, wanted: Range) -> bool:
        return False


class OrphansStay(Control):
    """Leaves what no map names where it is."""

    def _orphans(self, now: int, actions: list[Action]) -> None:
        pass


class SameHost(Control):
    """Puts all copies on one host."""

    def _hosts(self, now: int, near: Sequence[int], count: int) -> list[int]:
        return super()._hosts(now, (), 1) * count


class NeverTakesOver(Control):
    """Only tells owners about heat."""

    def _last_heard(self) -> list[tuple[int, int]]:
        return []


class TakesOverAnybody(Control):
    """Takes owners for silent that report."""

    def _last_heard(self) -> list[tuple[int, int]]:
        return [(number, 0) for number, _ in super()._last_heard()]


class KnowsReportersOnly(Control):
    """Does not miss an owner that it never heard."""

    def step(self, now: Interval, event: Event) -> list[Action]:
        return [] if isinstance(event, JournalsInForce) else super().step(now, event)


def parts(control: type[Control], swarm: dict[str, object]) -> Parts:
    """A world whose control cores are of this class."""

    def make(policy: Policy, number: int) -> Control:
        return control(policy, number)

    return Parts(control=make, swarm=swarm)


MUTANTS: tuple[tuple[str, str, int, Parts], ...] = (
    ("control: believes stale reports", "F2", 40, parts(BelievesStale, FAILING)),
    ("control: retires before others serve", "F2", 40, parts(RetiresAtOnce, STEERED)),
    ("control: retires without a map", "F2", 40, parts(RetiresWithoutMap, STEERED)),
    ("control: two changes of one range", "F2", 40, parts(TwoChanges, FAILING)),
    ("control: a map with a hole", "F2", 40, parts(MapWithHole, STEERED)),
    ("control: copies that died stay", "F2", 40, parts(DeadStay, FAILING)),
    ("control: leftovers stay", "F2", 40, parts(OrphansStay, FAILING)),
    ("control: all copies on one host", "F2", 40, parts(SameHost, STEERED)),
    ("control: never takes over", "F2", 40, parts(NeverTakesOver, FAILING)),
    ("control: takes over who reports", "F2", 40, parts(TakesOverAnybody, STEERED)),
    ("control: misses only whom it heard", "F2", 60, parts(KnowsReportersOnly, FAILING)),
)
