"""Somebody who reshapes the shards at random, by the rules of `control/views.py`: build, publish,
retire. Two of them know nothing of each other, and both know little for certain.

Orders also come that contradict the map, are of another map or too late: performers refuse them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from meridian.control.views import (
    Action,
    AddReplica,
    Publish,
    Remove,
    ReplicaReport,
    Shrink,
)
from meridian.routing.map import ShardMap
from meridian.sim.messages import AskShards, Order, Ordered, Said, TheseShards
from meridian.sim.world import MS, Node, S, World
from meridian.wire.ranges import Range, subtract

if TYPE_CHECKING:
    from meridian.sim.fleet import Fleet

TICK_NS = 100 * MS
ORDER_NS = 1 * S
"""How long an order to give something up holds."""
MARGIN_NS = 2 * S
"""After this a map that was offered cannot come into force, whatever the clocks say."""
BUILD_NS = 4 * S
SHARDS_MAX = 6
COPIES_MAX = 3
KINDS = ("split", "split", "overlap", "merge", "merge", "move", "move", "copy", "drop")

Table = tuple[tuple[bytes, bytes, tuple[int, ...]], ...]


class Reshaping(msgspec.Struct):
    """A change under way."""

    kind: str
    shards: Table
    """The map that is wanted."""
    version: int
    builds: tuple[AddReplica, ...]
    since: int
    taken: list[int] = []
    """Builds that a host has taken on."""
    offered_until: int = 0
    over: bool = False
    """In force, or given up: what nobody needs goes."""


class Disturber(Node):
    """Node `z<number>`; it forgets everything when it crashes."""

    def __init__(self, world: World, number: int, fleet: Fleet) -> None:
        super().__init__(world, f"z{number}")
        self._fleet = fleet
        self._low = 200 + number
        self._random = world.random(f"disturber/{number}")
        self._map: ShardMap | None = None
        self._reports: dict[int, ReplicaReport] = {}
        self._change: Reshaping | None = None
        self._mapped: dict[int, None] = {}
        """Replicas that some map named."""
        self._leftovers: dict[int, int] = {}
        """Replicas to be retired, and since when."""
        self._action = 0
        self._named = 0
        world.controllers.append(self.name)

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return self._change is None

    def states(self) -> list[str]:
        """How far its change is."""
        return ["reshaping" if self._change is not None else "idle"]

    def on_start(self) -> None:
        """Knows nothing; what it had begun is left as it was."""
        self._map = None
        self._change = None
        self._leftovers = {}
        self._tick()

    def receive(self, source: str, message: Any) -> None:
        """Maps, reports, answers."""
        match message:
            case TheseShards():
                if self._map is None or message.map.version >= self._map.version:
                    self._map = message.map
                    for shard in message.map.shards:
                        self._mapped.update(dict.fromkeys(shard.replicas))
            case Said() if isinstance(message.report, ReplicaReport):
                self._reports[message.report.replica] = message.report
            case Ordered() if self._change is not None and message.ok:
                done = [one for one in self._change.builds if one.action == message.action]
                self._change.taken += [one.replica for one in done]

    def _tick(self) -> None:
        self._send("p", AskShards(0, in_force=True))
        if self._map is not None:
            if self._change is not None:
                self._drive(self._change, self._map)
            elif not self.world.healed and self._random.random() < 0.3:
                self._begin(self._map)
            self._retire(self._map)
            if not self.world.healed and self._random.random() < 0.1:
                self._nonsense(self._map)
        self.after(TICK_NS, self._tick)

    def _send(self, target: str, message: Any) -> None:
        self.world.send(self.name, target, message)

    def _order(self, host: int, action: Action) -> None:
        self._send(f"h{host}", Order(action))

    def _number(self) -> int:
        self._action += 1
        return self._action

    def _new(self) -> int:
        """Its own numbers: another incarnation never uses one again."""
        self._named += 1
        return self._named << 8 | self._low

    # A change

    def _begin(self, map_: ShardMap) -> None:
        random = self._random
        kind = random.choice(KINDS)
        shards = [(one.lo, one.hi, one.replicas) for one in map_.shards]
        wanted: list[tuple[int, Range]] = []
        at = random.randrange(len(shards))
        lo, hi, replicas = shards[at]
        cuts = [one for one in self._fleet.places() if lo < one < hi]
        count = min(len(replicas), len(self._fleet.hosts))

        def built(part: Range, number: int = count) -> tuple[int, ...]:
            names = [self._new() for _ in range(number)]
            wanted.extend((name, part) for name in names)
            return tuple(names)

        if kind in ("split", "overlap") and cuts and len(shards) < SHARDS_MAX:
            cut = random.choice(cuts)
            upper = (cut, hi, built(Range(cut, hi)))
            # With an overlap the old copies are named for all of it a while longer.
            lower = (lo, hi if kind == "overlap" else cut, replicas)
            shards[at : at + 1] = [lower, upper]
        elif kind == "merge" and at + 1 < len(shards) and shards[at + 1][0] == hi:
            part = Range(lo, shards[at + 1][1])
            shards[at : at + 2] = [(*part, built(part))]
        elif kind == "move" or (kind == "copy" and len(replicas) < COPIES_MAX):
            kept = replicas[1:] if kind == "move" else replicas
            shards[at] = (lo, hi, (*kept, *built(Range(lo, hi), 1)))
        elif kind == "drop" and len(replicas) > (2 if self.world.swarm.rots else 1):
            shards[at] = (lo, hi, replicas[1:])
        else:
            self._tidy_overlap(shards)
            kind = "tidy"
        table = tuple(shards)
        if table == tuple((one.lo, one.hi, one.replicas) for one in map_.shards):
            return
        hosts = self._fleet.hosts
        first = random.randrange(len(hosts))
        builds = tuple(
            AddReplica(self._number(), name, hosts[(first + n) % len(hosts)].number, *part, kind)
            for n, (name, part) in enumerate(wanted)
        )
        now = self.clock.now().earliest
        self._change = Reshaping(kind, table, map_.version + 1, builds, now)
        self.world.trace("reshape", self.name, kind, map_.version + 1)

    @staticmethod
    def _tidy_overlap(shards: list[tuple[bytes, bytes, tuple[int, ...]]]) -> None:
        """A shard that reaches into the next one ends where that begins."""
        for at, (lo, hi, replicas) in enumerate(shards[:-1]):
            following = shards[at + 1]
            if lo < following[0] < hi <= following[1]:
                shards[at] = (lo, following[0], replicas)
                return

    def _drive(self, change: Reshaping, map_: ShardMap) -> None:
        now = self.clock.now()
        told = tuple((one.lo, one.hi, one.replicas) for one in map_.shards)
        if told == change.shards and map_.version == change.version:
            self._end(change)
            return
        offered = change.offered_until > 0
        until = change.offered_until + MARGIN_NS if offered else change.since + BUILD_NS
        if map_.version >= change.version or now.earliest > until:
            # Somebody else's map came first, or hosts or the metadata node are silent.
            self._end(change)
            return
        missing = [one for one in change.builds if one.replica not in change.taken]
        for build in missing:
            if self._random.random() < 0.4:
                self._order(build.host, build)
        if missing or offered:
            return
        ready = all(self._complete(one) for one in change.builds)
        # A map is only a hint: it may be too early.
        if ready or self._random.random() < self.world.swarm.hasty:
            self._publish(change, now.latest)

    def _complete(self, build: AddReplica) -> bool:
        report = self._reports.get(build.replica)
        wanted = Range(build.lo, build.hi)
        return report is not None and report.complete and report.range.covers(wanted)

    def _publish(self, change: Reshaping, now: int) -> None:
        change.offered_until = now + ORDER_NS
        publish = Publish(
            self._number(), change.shards, change.version, change.offered_until, change.kind
        )
        for _ in range(2):
            self._send("p", Order(publish))

    def _end(self, change: Reshaping) -> None:
        """What a map does not name goes, old copies or new ones."""
        self._change = None
        now = self.clock.now().earliest
        # Not what others may be building: a map of theirs may still name it.
        self._leftovers.update({one.replica: now for one in change.builds})
        self._leftovers.update(dict.fromkeys(self._mapped, now))

    # Orders to give something up

    def _retire(self, map_: ShardMap) -> None:
        """By what the map in force says; tried a few times."""
        now = self.clock.now()
        for replica, since in list(self._leftovers.items()):
            report = self._reports.get(replica)
            if now.earliest > since + 3 * S:
                del self._leftovers[replica]
            elif report is not None and self._random.random() < 0.2:
                action = self._reduction(map_, report, map_.version, now.latest + ORDER_NS)
                if action is not None and self._others_serve(map_, report, action):
                    self._order(report.host, action)

    def _reduction(
        self, map_: ShardMap, report: ReplicaReport, version: int, expires: int
    ) -> Action | None:
        """What the map does not give to a replica."""
        named = [one.range for one in map_.shards if report.replica in one.replicas]
        number, why = self._number(), "it is not in the map"
        if not named:
            mine = self._change is not None and any(
                one.replica == report.replica for one in self._change.builds
            )
            return None if mine else Remove(number, report.replica, version, expires, why)
        part = Range(min(one.lo for one in named), max(one.hi for one in named))
        if part.covers(report.range):
            return None
        return Shrink(number, report.replica, *part, version, expires, why)

    def _others_serve(self, map_: ShardMap, report: ReplicaReport, action: Action) -> bool:
        """Others are complete for what it gives up; sometimes nobody looks."""
        if self._random.random() < self.world.swarm.hasty:
            return True
        keeps = [Range(action.lo, action.hi)] if isinstance(action, Shrink) else []
        left = [report.range]
        for part in keeps:
            left = subtract(left, part)
        now = self.clock.now().earliest
        for shard in map_.shards:
            for number in shard.replicas:
                other = self._reports.get(number)
                if number != report.replica and other and other.complete and other.at > now - S:
                    left = subtract(left, other.range)
        return not left

    def _nonsense(self, map_: ShardMap) -> None:
        """Of another map than the one in force, or too late, or against the map: refused."""
        random = self._random
        shard = random.choice(map_.shards)
        replica = random.choice(shard.replicas)
        report = self._reports.get(replica)
        if report is None:
            return
        now = self.clock.now()
        number, version = self._number(), map_.version
        expires = now.latest + ORDER_NS
        if random.random() < 0.5:
            version += random.choice((-1, 50))
        else:
            # Too late by every clock, also by those whose bounds are false.
            expires = now.earliest - MARGIN_NS - S
        action: Action = Remove(number, replica, version, expires, "nonsense")
        cuts = [one for one in self._fleet.places() if shard.lo < one < shard.hi]
        if cuts and random.random() < 0.5:
            part = shard.lo, random.choice(cuts)
            action = Shrink(number, replica, *part, version, expires, "nonsense")
        self._order(report.host, action)
