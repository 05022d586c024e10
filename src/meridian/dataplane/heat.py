"""Key ranges go where there is less to do: the control core decides, this feeds and obeys it.

Per owner it knows how many commits took part in its keys lately and a few of those keys; the
control core says when the upper part of what a busy owner has shall go to the idlest one, at most
once per pause. A wrong order costs the transactions that began before it a 40001.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from meridian.adjudicator.cut import Cut
from meridian.control.core import Control, Policy, Reported, Tick
from meridian.control.views import AdjudicatorReport, MoveKeys
from meridian.dataplane.topology import Range
from meridian.errors import MeridianError
from meridian.limits import S
from meridian.wire.partition import LAST, PartitionMap, Place
from meridian.wire.ranges import place

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

log = logging.getLogger("meridian.heat")

SAMPLES = 512
"""Keys of one owner that are remembered, the latest ones."""
LOOK_S = 1.0
POLICY: Final = Policy(move_commits_per_s=500, uneven=2, sustain=5, pause_ns=15 * S)
"""In one process a move costs two syncs and two records of some 100 KB."""
_SHARE = 10
"""A cut that leaves less than one part in this many on one side is not worth it."""


class _Owner:
    __slots__ = ("commits", "keys")

    def __init__(self) -> None:
        self.commits = 0
        self.keys: deque[Place] = deque(maxlen=SAMPLES)


class Heat:
    """One per node, on the event loop's thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.policy = POLICY
        self.look_s = LOOK_S
        self._owners: dict[int, _Owner] = {}

    def count(self, found: Cut) -> None:
        """A write set is about to be decided."""
        for number, part in found.parts.items():
            one = self._owners.get(number)
            if one is None:
                one = self._owners[number] = _Owner()
            one.commits += 1
            if part.bounds:
                sid, first, _ = part.bounds[one.commits % len(part.bounds)]
                one.keys.append((sid, first))

    async def run(self) -> None:
        """Until cancelled."""
        control = Control(self.policy)
        looked = time.monotonic()
        while True:
            await asyncio.sleep(self.look_s)
            now = time.monotonic()
            seconds, looked = now - looked, now
            if len(self.node.open_journals()) < 2 or not self.node.reshape.done:
                self._owners.clear()
                continue
            for order in self._decide(control, seconds):
                try:
                    await self._move(order)
                except (TimeoutError, MeridianError, OSError) as error:
                    # It is only a matter of balance; the next look decides anew.
                    log.warning("ranges stay", extra={"error": str(error)})

    def _decide(self, control: Control, seconds: float) -> list[MoveKeys]:
        clock = self.node.clock.now()
        for number in self.node.open_journals():
            one = self._owners.get(number) or _Owner()
            rate = int(one.commits / max(seconds, 0.001))
            middle = hot_middle(sorted(one.keys))
            report = AdjudicatorReport(number, 0, clock.latest, rate, middle)
            control.step(clock, Reported(report))
            one.commits = 0
        return [one for one in control.step(clock, Tick()) if isinstance(one, MoveKeys)]

    async def _move(self, order: MoveKeys) -> None:
        at = int.from_bytes(order.at[:8], "big"), order.at[8:]
        parts = owned_from(self.node.map, order.source, at)
        if not parts:
            return
        log.info(
            "ranges move",
            extra={"from": order.source, "to": order.target, "why": order.reason},
        )
        await self.node.reshape.move(order.source, order.target, parts)
        self.node.counters.heat_moves += 1
        # What was seen so far is of the owners of then.
        self._owners.clear()


def hot_middle(keys: list[Place]) -> bytes:
    """A place that has about half of these keys (ascending) below it; empty: there is none."""
    if not keys:
        return b""
    middle = keys[len(keys) // 2]
    below = sum(key < middle for key in keys)
    above = [key for key in keys if key > middle]
    if below * _SHARE < len(keys) and above:
        # One key is hot: the cut goes behind it.
        middle, below = above[0], len(keys) - len(above)
    if min(below, len(keys) - below) * _SHARE < len(keys):
        return b""
    return place(*middle)


def owned_from(map_: PartitionMap, owner: int, at: Place) -> list[Range]:
    """The ranges of an owner from a place on, ascending."""
    ends = [*map_.starts[1:], LAST]
    rows = zip(map_.starts, ends, map_.owners, strict=True)
    return [(max(lo, at), hi) for lo, hi, whose in rows if whose == owner and hi > at]
