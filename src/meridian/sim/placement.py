"""The metadata store's shard map, as a node: compare and set, and answers that may be old."""

from __future__ import annotations

from random import Random
from typing import Any

from meridian.control.views import Publish
from meridian.routing.map import Shard, ShardMap
from meridian.sim.messages import AskShards, Order, Ordered, TheseShards
from meridian.sim.world import Node, World

KEPT = 4
"""Maps that somebody may still be told."""


class Placement(Node):
    """Node `p`: one register; what it took outlives its crashes."""

    def __init__(self, world: World, first: ShardMap) -> None:
        super().__init__(world, "p")
        self._maps = [first]
        self._random: Random = world.random("placement")

    @property
    def map(self) -> ShardMap:
        """The map in force."""
        return self._maps[-1]

    def receive(self, source: str, message: Any) -> None:
        """Questions for a map, and new maps."""
        if isinstance(message, AskShards):
            self.world.send(self.name, source, TheseShards(message.request, self._told(message)))
            return
        assert isinstance(message, Order) and isinstance(message.action, Publish)
        ok = self._publish(message.action)
        self.world.send(self.name, source, Ordered(message.action.action, ok))

    def _told(self, asked: AskShards) -> ShardMap:
        """A cache in between may answer those who did not ask for the map in force."""
        return self.map if asked.in_force else self.some()

    def some(self) -> ShardMap:
        """The map in force or, until all is healed, one before it."""
        if self.world.healed or self._random.random() < 0.7:
            return self.map
        return self._random.choice(self._maps)

    def _publish(self, wanted: Publish) -> bool:
        """Compare and set. The same map again: it was taken, the answer was lost."""
        map_ = made(wanted)
        if map_ == self.map:
            return True
        if wanted.version != self.map.version + 1 or self.clock.now().latest > wanted.expires:
            return False
        self._maps = [*self._maps, map_][-KEPT:]
        self.world.trace("map", self.name, wanted.version, wanted.reason)
        return True


def made(wanted: Publish) -> ShardMap:
    """The map that a Publish asks for."""
    shards = enumerate(wanted.shards)
    return ShardMap(wanted.version, tuple(Shard(n, lo, hi, of) for n, (lo, hi, of) in shards))
