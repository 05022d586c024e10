"""Another number of adjudicators and journals, while the cluster works (design 4.7, 5.8).

In steps, each of which is found done or not in the journals, so that whoever begins again goes on
where a crash left it: journals are added (ADD, a record of journal 0), ranges go to their new
owners (RELEASE, ACQUIRE; one pair of records per old and new owner), journals that have none left
are closed (CLOSE). Numbers of journals are never used again: a closed one keeps its outcomes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from meridian.adjudicator import events as ev
from meridian.clock.tau import ASSIGNER_MASK
from meridian.dataplane import topology
from meridian.dataplane.topology import Range, Topology
from meridian.errors import Kind, MeridianError
from meridian.limits import OWNER_RETRY_S, SERVING_WAIT_S
from meridian.wire.partition import NOBODY

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

log = logging.getLogger("meridian.reshape")

_ASK_S = 0.1
"""Between two orders of the same thing, until its effect is heard."""


class Reshape:
    """One per node, on the event loop's thread; one step at a time."""

    def __init__(self, node: Node, *, done: bool) -> None:
        self.node = node
        self.done = done
        self.step = ""
        """What it is doing, for people."""
        self.moves = 0
        """Hand-overs since the start of the process."""
        self._wanted = asyncio.Event()
        self._moved: dict[int, asyncio.Future[None]] = {}
        """By the version of the map that says so."""
        self._moving = asyncio.Lock()
        if not done:
            self._wanted.set()

    def want(self, wanted: Topology) -> None:
        """Begin. Raises BAD_TOPOLOGY, JOURNAL_NUMBERS_SPENT."""
        wanted.check()
        self._check_numbers(wanted)
        if wanted == self.node.topology and self.done:
            return
        topology.want(self.node.store, wanted, done=False)
        self.node.topology = wanted
        self.done = False
        self._wanted.set()

    def _check_numbers(self, wanted: Topology) -> None:
        missing = wanted.journals - len(self.node.open_journals())
        left = self.numbers_left()
        if missing > left:
            most = ASSIGNER_MASK + 1
            raise MeridianError(Kind.JOURNAL_NUMBERS_SPENT, left=left, most=most, missing=missing)

    def numbers_left(self) -> int:
        """How many journals can still be added: a tau has room for so many assigners (4.1)."""
        return ASSIGNER_MASK + 1 - len(self.node.seats)

    def check_start(self) -> None:
        """Can there be as many journals as are wanted? Raises JOURNAL_NUMBERS_SPENT.

        Then what there is is wanted from now on, so the next start does not fail for it.
        """
        wanted = self.node.topology
        try:
            self._check_numbers(wanted)
        except MeridianError:
            have = Topology(wanted.adjudicators, len(self.node.open_journals()))
            topology.want(self.node.store, have, done=False)
            raise

    def status(self) -> dict[str, Any]:
        """For `meridian status`."""
        wanted = self.node.topology
        return {
            "adjudicators": wanted.adjudicators,
            "journals": wanted.journals,
            "done": self.done,
            "step": self.step,
            "journal_numbers_left": self.numbers_left(),
        }

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            wanted = self.node.topology
            try:
                await self._go(wanted)
            except (TimeoutError, MeridianError, OSError) as error:
                # An owner ended in the middle, or its disk is full: what was done is done.
                log.warning("topology: tried again", extra={"error": str(error), "at": self.step})
                self._wanted.set()
                await asyncio.sleep(OWNER_RETRY_S)

    async def _go(self, wanted: Topology) -> None:
        node = self.node
        self.step = "waits for all owners"
        await self._settled()
        for _ in range(wanted.journals - len(node.open_journals())):
            number = len(node.seats)
            self.step = f"adds journal {number}"
            await node.add_journal(number)
        numbers = node.open_journals()
        kept, given_up = numbers[: wanted.journals], numbers[wanted.journals :]
        target = topology.first_map(wanted, kept)
        while moves := topology.differences(node.map, target):
            (source, to), parts = next(iter(moves.items()))
            self.step = f"moves {len(parts)} ranges from journal {source} to {to}"
            await self.move(source, to, parts)
        for number in given_up:
            self.step = f"closes journal {number}"
            await self._close(number)
        if wanted == node.topology:
            topology.want(node.store, wanted, done=True)
            self.done, self.step = True, ""
            log.info("topology", extra=self.status())

    async def _settled(self) -> None:
        """No range is on its way, and everybody serves."""
        node = self.node

        def moving() -> bool:
            return NOBODY in node.map.owners or any(
                owner.dead or not owner.adjudicator.serving or owner.adjudicator.ranges.pending
                for owner in node.owners()
            )

        async with asyncio.timeout(SERVING_WAIT_S):
            while moving():  # noqa: ASYNC110 - heard of in many places
                await asyncio.sleep(_ASK_S)

    # Ranges

    async def move(self, source: int, target: int, parts: Sequence[Range]) -> None:
        """The owner of `source` gives ranges of its own to that of `target`; done when they have
        been acquired. Raises TimeoutError: they may have been, or may be later.
        """
        async with self._moving:
            await self._settled()
            node = self.node
            (lo, hi), more = parts[0], tuple(parts[1:])
            before = node.map
            # From here on commits go to the new owner, which lets them wait until it has acquired.
            node.map = topology.moved(before, parts, target)
            node.commits.map_changed()
            version = node.map.version
            order = ev.Move(lo, hi, target, version, more)
            done = self._moved[version] = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(SERVING_WAIT_S):
                    while not done.done():
                        node.step(source, order)
                        await asyncio.wait({done}, timeout=_ASK_S)
            finally:
                del self._moved[version]
                if not done.done():
                    # What the owners say, whatever that is by now.
                    node.read_map()
            self.moves += 1

    def moved(self, effect: ev.Moved) -> None:
        """The Moved effect of an owner."""
        waiting = self._moved.get(effect.handover.version)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def unmoved(self, effect: ev.Unmoved) -> None:
        """It did not happen and never will: the map is read anew."""
        waiting = self._moved.get(effect.version)
        if waiting is not None and not waiting.done():
            self.node.read_map()
            waiting.set_result(None)

    async def _close(self, number: int) -> None:
        """CLOSE: undecided transactions that name it are aborted for good."""
        await self._settled()
        async with asyncio.timeout(SERVING_WAIT_S):
            while not self.node.seats[number].closed:
                self.node.step(number, ev.CloseJournal())
                await asyncio.sleep(_ASK_S)
