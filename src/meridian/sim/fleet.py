"""The sharded storage of a world: hosts, replicas of ranges, the shard map, snapshots."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from meridian.routing.map import Shard, ShardMap
from meridian.sim.archive import Archive
from meridian.sim.follower import Journal
from meridian.sim.hosts import Host
from meridian.sim.mapper import borders
from meridian.sim.messages import Parts
from meridian.sim.owner import Owner
from meridian.sim.placement import Placement
from meridian.sim.shard_replica import RangeReplica
from meridian.sim.world import MS, World
from meridian.wire.ranges import END, Range, place

FIRST_NUMBER = 255
"""Low byte of the replicas that a world begins with; control cores name others."""


class Fleet:
    """Everything that holds ranges in one world."""

    def __init__(
        self, world: World, journals: list[Journal], owners: list[Owner], parts: Parts
    ) -> None:
        self.world = world
        self.journals = journals
        self.owners = owners
        self.parts = parts
        self.names: list[str] = []
        """Replicas that owners push records to; changes while the world runs."""
        self.replicas: dict[int, RangeReplica] = {}
        self._random = world.random("fleet")
        swarm = world.swarm
        self.hosts = [
            Host(world, number, number % swarm.zones, self, parts) for number in range(swarm.hosts)
        ]
        self.placement = Placement(world, self._first_map())
        self.archive = Archive(self, parts, world.random("archive"))

    def places(self) -> list[bytes]:
        """Where shards may be cut: where the world's keys lie dense."""
        sids = max(2, self.world.swarm.owners)
        return [place(*one) for one in borders(self._random, self.world.seed, sids)]

    def _first_map(self) -> ShardMap:
        swarm, random = self.world.swarm, self._random
        count = min(swarm.shards, 4)
        cuts = sorted(random.sample(self.places(), min(count - 1, 3)))
        shards = []
        for number, (lo, hi) in enumerate(zip([b"", *cuts], [*cuts, END], strict=True)):
            hosts = random.sample(self.hosts, min(swarm.copies, len(self.hosts)))
            numbers = [(number * 8 + copy + 1) << 8 | FIRST_NUMBER for copy in range(len(hosts))]
            for host, replica in zip(hosts, numbers, strict=True):
                host.disk[replica] = Range(lo, hi)
                self._make(host, replica, Range(lo, hi))
            shards.append(Shard(number, lo, hi, tuple(numbers)))
        return ShardMap(1, tuple(shards))

    def _make(self, host: Host, number: int, part: Range) -> RangeReplica:
        replica = RangeReplica(self, host, number, part)
        self.replicas[number] = replica
        self.names.append(replica.name)
        self.world.located[replica.name] = (host.name, f"zone{host.zone}")
        return replica

    def living(self) -> list[RangeReplica]:
        """Replicas that were not removed."""
        return [replica for replica in self.replicas.values() if not replica.removed]

    def some(self, random: Random, what: Callable[[RangeReplica], None]) -> None:
        """Something befalls one of them, if there is any: hosts may be gone for good."""
        living = self.living()
        if living:
            what(random.choice(living))

    def build(self, host: Host, number: int, part: Range) -> None:
        """A new replica; fetching its snapshots takes a while."""
        replica = self._make(host, number, part)
        delay = self._random.randint(MS, 200 * MS)
        self.world.at(self.world.now + delay, replica.start)

    def end(self, number: int) -> None:
        """The replica and its file go."""
        replica = self.replicas[number]
        replica.crash()
        replica.removed = True
        replica.stores = []
        self.names.remove(replica.name)

    def some_map(self) -> ShardMap:
        """What somebody believes: the map in force or one before it."""
        return self.placement.some()

    def uncovered(self, tau: int) -> list[Range]:
        """Shards of the map in force that no living replica serves as of tau, of those it names.

        A copy may hold nothing as old as tau (see `newest_base`): then as of what it begins with.
        """
        return [
            one.range
            for one in self.placement.map.shards
            if not any(self._serves(number, one.range, tau) for number in one.replicas)
        ]

    def newest_base(self) -> int:
        """From here on reads are not below the base of any living copy."""
        owned = [one for replica in self.living() for one in replica.ranges.owned]
        return max((one.base for one in owned), default=0)

    def _serves(self, number: int, part: Range, tau: int) -> bool:
        replica = self.replicas.get(number)
        if replica is None or not replica.alive:
            return False
        base = replica.ranges.base_of(part)
        return base is not None and max(base, tau) <= replica.complete

    def nodes(self) -> list[Any]:
        """Everything that is started once, hosts before what needs them."""
        return [self.placement, *self.hosts]
