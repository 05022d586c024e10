"""The partition map, and ranges that move while commits go on (design section 5.8)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from random import Random
from typing import Any

from meridian.adjudicator import events as ev
from meridian.control.views import MoveKeys
from meridian.sim.messages import AskMap, Change, Changed, Order, Ordered, ThisMap
from meridian.sim.plans import SID_FIRST
from meridian.sim.world import MS, Node, World
from meridian.wire.ops import SID_CATALOG
from meridian.wire.partition import FIRST, LAST, PartitionMap, Place, Span, whole_map

ASK_NS = 100 * MS


def borders(random: Random, seed: int, sids: int) -> list[Place]:
    """Places where the world's keys lie dense, ascending."""
    names = [b"", b"%d.5" % seed, b"%dk1" % seed, b"%dk2" % seed, b"c", b"cz", b"p", b"q"]
    places = [(SID_FIRST + number, name) for number in range(sids) for name in names]
    places += [(SID_CATALOG, bytes(7) + b"\3"), (2, b"")]
    return sorted(random.sample(places, random.randint(3, 8)))


def first_map(random: Random, seed: int, owners: int, sids: int) -> PartitionMap:
    """Who owns what in the beginning."""
    map_ = whole_map(random.randrange(owners), 0)
    places = borders(random, seed, sids)
    for number, place in enumerate(places):
        map_ = map_.moved(place, LAST, number % owners)
    return PartitionMap(1, map_.starts, map_.owners)


def spans_of(map_: PartitionMap, owner: int) -> tuple[Span, ...]:
    """What one adjudicator is made with."""
    ends = [*map_.starts[1:], LAST]
    rows = zip(map_.starts, ends, map_.owners, strict=True)
    return tuple(Span(lo, hi) for lo, hi, whose in rows if whose == owner)


class Mapper(Node):
    """Node `d`: holds the map and has one range moved at a time; it outlives its crashes.

    The map is a hint: now and then it is published before the range has moved, or long after.
    """

    def __init__(
        self,
        world: World,
        map_: PartitionMap,
        owners: Callable[[int], list[str]],
        sids: int,
        routes: list[int],
    ) -> None:
        super().__init__(world, "d")
        self.map = map_
        """What query processors are told."""
        self._true = map_
        self.moves = 0
        """Ranges that moved."""
        self._owners = owners
        self._sids = sids
        self._random = world.random("moves")
        self._plan: tuple[int, ev.Move, PartitionMap] | None = None
        self._wanted = 0
        self._routes = routes
        """Journals that take commits, as far as is known; shared with the run."""
        self._draining: list[int] = []

    @property
    def idle(self) -> bool:
        """Nothing moves, and whoever shall own nothing does not."""
        return self._plan is None and self._wanted == 0 and not self._owed()

    def drain(self, number: int) -> None:
        """Everything that `number` owns goes to others: its journal shall end."""
        self._draining.append(number)

    def _owed(self) -> list[int]:
        """Ranges of the map whose owners shall own nothing."""
        return [at for at, owner in enumerate(self._true.owners) if owner in self._draining]

    def move(self) -> None:
        """Some range shall move, once the last one has."""
        self._wanted += 1

    def move_at(self, place: Place) -> None:
        """The range around this key shall move at once, if nothing else does."""
        if self._plan is None and not self._wanted and self.alive and not self.world.healed:
            self._wanted = 1
            self._choose(place)
            self._command()

    def on_start(self) -> None:
        """Goes on with its plan."""
        self._ask()

    def _choose(self, place: Place | None = None) -> None:
        """A range, or its part up to or from a border."""
        map_, random = self._true, self._random
        at = random.randrange(len(map_.starts))
        if place is not None:
            at = bisect_right(map_.starts, place) - 1
        lo, source = map_.starts[at], map_.owners[at]
        hi = map_.starts[at + 1] if at + 1 < len(map_.starts) else LAST
        inside = [one for one in borders(random, self.world.seed, self._sids) if lo < one < hi]
        if inside and place is None and random.random() < 0.7:
            lo, hi = random.choice(((lo, inside[0]), (inside[0], hi)))
        others = [number for number in self._routes if number != source]
        if not others:
            self._wanted -= 1
            return
        lasting = [number for number in others if number not in self._draining]
        if lasting != others and lasting and self.world.random("moves/ending").random() < 0.8:
            # Else it may be one that is about to end: what it cannot take comes back.
            others = lasting
        target = random.choice(others)
        self._begin(lo, hi, target)
        self._wanted -= 1
        if self._plan is not None and random.random() < 0.2:
            self.map = self._plan[2]

    def _move_keys(self, action: MoveKeys) -> bool:
        """A control core's order, perhaps out of date: from a place on to the end of its range."""
        map_, lo = self._true, (int.from_bytes(action.at[:8]), action.at[8:])
        at = bisect_right(map_.starts, lo) - 1
        free = self._plan is None and not self._wanted and not self._owed()
        known = action.target in self._routes and action.target not in self._draining
        if not (free and known and map_.owners[at] == action.source and lo > map_.starts[at]):
            return False
        hi = map_.starts[at + 1] if at + 1 < len(map_.starts) else LAST
        self._begin(lo, hi, action.target)
        self.world.trace("steered move", self.name, action.reason)
        return True

    def _begin(self, lo: Place, hi: Place, target: int) -> None:
        source = self._true.owner(lo)
        assert FIRST <= lo < hi <= LAST and target != source
        moved = self._true.moved(lo, hi, target)
        more = self._more(source, hi)
        for further_lo, further_hi in more:
            moved = moved.moved(further_lo, further_hi, target)
        moved = PartitionMap(self._true.version + 1, moved.starts, moved.owners)
        self._plan = source, ev.Move(lo, hi, target, moved.version, more), moved
        self.world.trace("move", self.name, source, target, lo, hi)

    def _more(self, source: int, above: Place) -> tuple[tuple[Place, Place], ...]:
        """Further ranges of the same owner that go with it."""
        random, swarm = self.world.random("moves/more"), self.world.swarm
        ends = [*self._true.starts[1:], LAST]
        rows = zip(self._true.starts, ends, self._true.owners, strict=True)
        own = [(lo, hi) for lo, hi, owner in rows if owner == source and lo >= above]
        if not own or random.random() >= swarm.moves_more:
            return ()
        self.world.count("move of several ranges")
        return tuple(sorted(random.sample(own, random.randint(1, min(3, len(own))))))

    def _ask(self) -> None:
        if self.world.healed:
            self._wanted = 0
        owed = self._owed()
        if self._plan is None and owed:
            self._wanted += 1
            self._choose(self._true.starts[owed[0]])
        elif self._plan is None and self._wanted:
            self._choose()
        self._command()
        self.after(ASK_NS, self._ask)

    def _command(self) -> None:
        if self._plan is not None:
            source, event, _ = self._plan
            for owner in self._owners(source):
                self.world.send(self.name, owner, Change(event))

    def receive(self, source: str, message: Any) -> None:
        """Questions for the map; moves that are done."""
        if isinstance(message, AskMap):
            self.world.send(self.name, source, ThisMap(self.map))
            return
        if isinstance(message, Order):
            assert isinstance(message.action, MoveKeys)
            ok = self._move_keys(message.action)
            self.world.send(self.name, source, Ordered(message.action.action, ok))
            return
        assert isinstance(message, Changed)
        moved = message.effect
        if isinstance(moved, ev.Unmoved):
            self._take_back(moved.version)
        if self._plan is None or not isinstance(moved, ev.Moved):
            return
        _, event, map_ = self._plan
        handover = moved.handover
        if (handover.lo, handover.hi, handover.version) != (event.lo, event.hi, event.version):
            return
        self._plan = None
        self._true = map_
        self.moves += 1
        self.world.trace("moved", self.name, event.target)
        late = self._random.choice((0, 0, self._random.randint(0, 500 * MS)))
        self.world.at(self.world.now + late, lambda: self._publish(map_))

    def _take_back(self, version: int) -> None:
        """The move of this version never happens; a map that said so is replaced."""
        if self._plan is None or self._plan[1].version != version:
            return
        self._plan = None
        self._true = PartitionMap(version + 1, self._true.starts, self._true.owners)
        self.world.trace("unmoved", self.name, version)
        self._publish(self._true)

    def _publish(self, map_: PartitionMap) -> None:
        if map_.version > self.map.version:
            self.map = map_
