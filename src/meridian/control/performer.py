"""What a host does with orders about its replicas (pure): the rules of `views.py`.

Orders may be lost, doubled, late and out of order, and may come from several control cores. What a
performer holds (`replicas`, `ended`) lies on its disk; what it waits for does not.
"""

from __future__ import annotations

import msgspec

from meridian.clock.tau import Interval
from meridian.control.views import Action, AddReplica, Remove, Shrink
from meridian.limits import S
from meridian.wire.ranges import Range

PATIENCE_NS = 1 * S
"""What the metadata store answers later than this says nothing about now."""
WAITING_MAX = 256
REPLICAS_MAX = 1_024
ENDED_MAX = 100_000
"""Numbers of replicas that ended; none comes back. The oldest are forgotten."""

# Events


class Do(msgspec.Struct, frozen=True):
    """An order; the answer goes to `source`."""

    source: str
    action: Action


class InForce(msgspec.Struct, frozen=True):
    """The metadata store's answer to AskMap `request`: this map is in force."""

    request: int
    version: int


Event = Do | InForce

# Effects


class AskMap(msgspec.Struct, frozen=True):
    """Ask the metadata store for the map in force, not a cache. Answer with InForce."""

    request: int


class Build(msgspec.Struct, frozen=True):
    """Make this replica from snapshot and journal."""

    replica: int
    part: Range


class Keep(msgspec.Struct, frozen=True):
    """The replica gives up what is not in `part`."""

    replica: int
    part: Range


class End(msgspec.Struct, frozen=True):
    """The replica and its file go."""

    replica: int


class Answer(msgspec.Struct, frozen=True):
    """Tell `to`: the action was performed, now or before, or was refused."""

    to: str
    action: int
    ok: bool


Effect = AskMap | Build | Keep | End | Answer


class Performer:
    """One per host."""

    def __init__(self, host: int, replicas: dict[int, Range], ended: dict[int, None]) -> None:
        self.host = host
        self.replicas = replicas
        """What runs here, with the range that it owns."""
        self.ended = ended
        self._waiting: dict[int, tuple[Do, int]] = {}
        self._request = 0

    def step(self, now: Interval, event: Event) -> list[Effect]:
        """React to one event."""
        effects = self._give_up(now)
        if isinstance(event, InForce):
            do, _ = self._waiting.pop(event.request, (None, 0))
            if do is not None:
                effects += self._checked(now, do, event.version)
        elif isinstance(event.action, AddReplica):
            effects += self._add(event, event.action)
        elif isinstance(event.action, Shrink | Remove):
            effects += self._reduce(now, event, event.action)
        else:
            effects.append(Answer(event.source, event.action.action, False))
        return effects

    def check(self) -> None:
        """Invariants between steps."""
        assert not self.replicas.keys() & self.ended.keys()
        assert len(self.replicas) <= REPLICAS_MAX
        assert len(self._waiting) <= WAITING_MAX

    def _give_up(self, now: Interval) -> list[Effect]:
        late = [n for n, (_, at) in self._waiting.items() if at < now.earliest - PATIENCE_NS]
        gone = [self._waiting.pop(request)[0] for request in late]
        return [Answer(do.source, do.action.action, False) for do in gone]

    def _add(self, do: Do, action: AddReplica) -> list[Effect]:
        wanted = Range(action.lo, action.hi)
        held = self.replicas.get(action.replica)
        if held is not None:
            # Built before, and shrunk since perhaps; another range is a number used twice.
            return [Answer(do.source, action.action, wanted.covers(held))]
        refused = action.host != self.host or action.replica in self.ended
        if refused or wanted.lo >= wanted.hi or len(self.replicas) >= REPLICAS_MAX:
            return [Answer(do.source, action.action, False)]
        self.replicas[action.replica] = wanted
        return [Build(action.replica, wanted), Answer(do.source, action.action, True)]

    def _reduce(self, now: Interval, do: Do, action: Shrink | Remove) -> list[Effect]:
        """Only while its map is in force: the metadata store is asked first."""
        done = self._done(action)
        if done is not None:
            return [Answer(do.source, action.action, done)]
        if now.latest > action.expires or len(self._waiting) >= WAITING_MAX:
            return [Answer(do.source, action.action, False)]
        self._request += 1
        self._waiting[self._request] = (do, now.earliest)
        return [AskMap(self._request)]

    def _done(self, action: Shrink | Remove) -> bool | None:
        """Whether it was performed before or can never be; None: it is to be performed."""
        held = self.replicas.get(action.replica)
        if isinstance(action, Remove):
            return True if action.replica in self.ended else None
        keeps = Range(action.lo, action.hi)
        if held is None or not held.meets(keeps):
            return False
        return True if keeps.covers(held) else None

    def _checked(self, now: Interval, do: Do, version: int) -> list[Effect]:
        """The map in force is known; meanwhile time has passed, and other orders came."""
        action = do.action
        assert isinstance(action, Shrink | Remove)
        done = self._done(action)
        if done is None and (now.latest > action.expires or version != action.map_version):
            done = False
        if done is not None:
            return [Answer(do.source, action.action, done)]
        return [*self._perform(action), Answer(do.source, action.action, True)]

    def _perform(self, action: Shrink | Remove) -> list[Effect]:
        if isinstance(action, Shrink):
            held = self.replicas[action.replica]
            keeps = Range(max(action.lo, held.lo), min(action.hi, held.hi))
            self.replicas[action.replica] = keeps
            return [Keep(action.replica, keeps)]
        here = self.replicas.pop(action.replica, None)
        self.ended[action.replica] = None
        while len(self.ended) > ENDED_MAX:
            del self.ended[next(iter(self.ended))]
        return [End(action.replica)] if here is not None else []
