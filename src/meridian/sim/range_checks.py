"""Self-checks of a replica of a range: shard by shard with those who hold the same places."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from meridian.journal.core import Position
from meridian.sim.messages import CountAsked, CountTold
from meridian.sim.store import Store
from meridian.sim.world import MS, S
from meridian.storage import agreement
from meridian.storage.agreement import SelfCheck
from meridian.wire.ranges import Range

if TYPE_CHECKING:
    from meridian.sim.shard_replica import RangeReplica

CHECK_NS = 200 * MS
CHECK_LAG_NS = 100 * MS
"""Digests are as of a little while ago, which the other replicas have as well."""


class RangeChecks:
    """One check at a time, each of one shard of some map; snapshots wait for theirs."""

    def __init__(self, replica: RangeReplica) -> None:
        self.replica = replica
        self.discard = False
        """A majority says that this copy is wrong: it is built anew."""
        self.agreed: dict[Range, int] = {}
        """Found equal to others as of this tau, after the healing: nothing rots since."""
        self._began_healed = False
        self._core = SelfCheck(replica.number, patience_ns=S)
        self._part = replica.part
        self._turn = 0
        self._publishing: tuple[Store, dict[int, Position]] | None = None
        self._tried = False
        self._checked: Store | None = None
        """The copy for a snapshot that the check under way is of; None: it is of the files."""

    def begin(self) -> None:
        """A new process."""
        self.discard = False
        self._publishing = None
        if self.replica.world.swarm.rots:
            # Once its files are there: what it held before tells nothing of these.
            self.replica.after(0, self._look)

    def settled(self, newest: int) -> bool:
        """Every shard that it holds a part of was found equal to the others after the healing.

        `newest`: the tau of the last commit that it applied, which may have rotted.  When a check
        was made its tau does not tell: completeness may run ahead of the clock.
        """
        shards = self._shards()
        return all(self.agreed.get(part, 0) >= newest for part, peers in shards if peers)

    def _shards(self) -> list[tuple[Range, tuple[int, ...]]]:
        """What it shares with others, as a map says that may be old."""
        mine = self.replica
        shards = []
        for one in mine.fleet.some_map().shards:
            part = Range(max(one.lo, mine.part.lo), min(one.hi, mine.part.hi))
            if part.lo < part.hi:
                shards.append((part, tuple(n for n in one.replicas if n != mine.number)))
        return shards

    def confirm(self, copy: Store, starts: dict[int, Position]) -> None:
        """Rot in a snapshot would outlive the journals: a second copy says that it is sound."""
        if self._publishing is None:
            self._publishing, self._tried = (copy, starts), False

    def _look(self) -> None:
        mine = self.replica
        shards = [one for one in self._shards() if one[1]]
        tau = mine.complete - CHECK_LAG_NS
        if self._publishing is not None and self._tried:
            # Nobody confirmed it: the next one will do.
            self._publishing = None
        if self._core.busy:
            self._judge(agreement.TimerFired())
        elif shards:
            self._turn += 1
            self._part, peers = shards[self._turn % len(shards)]
            self._checked = None
            if self._publishing is not None:
                copy = self._publishing[0]
                held = Range(copy.ranges.owned[0].lo, copy.ranges.owned[-1].hi)
                able = [others for part, others in shards if part.covers(held)]
                self._tried = True
                if able:
                    self._part, peers, tau = held, able[0], copy.complete
                    self._checked = copy
            self._began_healed = mine.world.healed
            self._judge(agreement.Due(tau, peers))
        mine.after(CHECK_NS, self._look)

    def told(self, message: CountTold) -> None:
        """Somebody's digest."""
        counted = (message.number, message.replica, message.built, 0, message.content)
        self._judge(agreement.Counted(*counted))

    def tell(self, source: str, asked: CountAsked) -> None:
        """Somebody asks for the digest of a range."""
        mine = self.replica
        part = Range(asked.lo, asked.hi)
        able = mine.can_serve(part, asked.tau)
        content = digest(mine.stores, part, asked.tau) if able else None
        told = CountTold(asked.number, mine.number, _built(mine.stores), content)
        mine.world.send(mine.name, source, told)

    def _judge(self, event: agreement.Event) -> None:
        mine = self.replica
        for effect in self._core.step(mine.clock.now(), event):
            match effect:
                case agreement.Count() if effect.replica == mine.number:
                    self._judge(self._counted(effect))
                case agreement.Count():
                    asked = CountAsked(effect.number, effect.tau, *self._part)
                    if f"r{effect.replica}" in mine.world.nodes:
                        mine.world.send(mine.name, f"r{effect.replica}", asked)
                case agreement.SetTimer():
                    delay = max(effect.at - mine.clock.now().earliest, 1_000)
                    mine.after(delay, lambda: self._judge(agreement.TimerFired()))
                case _:
                    self._verdict(effect)

    def _counted(self, count: agreement.Count) -> agreement.Counted:
        """The own digest; of a snapshot that waits, that of the copy."""
        mine = self.replica
        content = None
        if self._checked is not None:
            content = digest([self._checked], self._part, count.tau)
        elif mine.can_serve(self._part, count.tau):
            content = digest(mine.stores, self._part, count.tau)
        built = _built(mine.stores)
        return agreement.Counted(count.number, count.replica, built, 0, content)

    def _verdict(self, verdict: agreement.Effect) -> None:
        mine = self.replica
        mine.world.trace("verdict", mine.name, type(verdict).__name__, *self._part)
        publishing, self._publishing = self._publishing, None
        if isinstance(verdict, agreement.Agreed):
            if self._checked is None:
                if self._began_healed:
                    before = self.agreed.get(self._part, 0)
                    self.agreed[self._part] = max(before, verdict.tau)
            # A copy is as of when it was taken: the files may have rotted since.
            elif publishing is not None and self._checked is publishing[0]:
                mine.fleet.archive.write(mine, *publishing)
        elif isinstance(verdict, agreement.RemoveSelf):
            self.discard = True
            self.agreed = {}
            mine.crash()
            mine.start()


def digest(stores: list[Store], part: Range, tau: int) -> int:
    """Of everything in a range as of tau, whichever file holds it."""
    rows = [row for store in stores for row in store.scan(part, tau)]
    return crc32(repr(rows).encode())


def _built(stores: list[Store]) -> int:
    return max((store.built for store in stores), default=0)
