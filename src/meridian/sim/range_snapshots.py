"""What a replica of a range sends to the object store, and where reading goes on behind it."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from meridian.journal.core import Position, Reader
from meridian.sim.store import Store
from meridian.wire.ranges import Range

if TYPE_CHECKING:
    from meridian.sim.shard_replica import RangeReplica

PARTS = 0.35
"""How many snapshots are of a part of the range only, as for a split."""


class RangeSnapshots:
    """Of one replica."""

    def __init__(self, replica: RangeReplica) -> None:
        self.replica = replica
        self._begins: dict[int, list[Position]] = {}
        """Per journal, places outside of open transactions, ascending (6.7)."""

    def begin(self) -> None:
        """The journals are read anew."""
        self._begins = {}

    def opened(self, number: int, start: Position) -> None:
        """A journal is read from its beginning."""
        self._begins[number] = [start]

    def read_on(self, number: int, reader: Reader) -> None:
        """One more record of a journal was accepted."""
        if reader.open_n() is None:
            self._begins[number].append(reader.position())

    def take(self, copy: Store, random: Random) -> None:
        """Sends a copy of the file; where values rot, once a second copy has confirmed it."""
        mine = self.replica
        # Membership goes with them (6.7): a journal that was heard of and cannot be read yet
        # begins with its first record.
        known = dict.fromkeys([*self._begins, *sorted(copy.positions)])
        starts = {j: self._begin_of(j, copy.positions.get(j, 0)) for j in known}
        if not mine.parts.snapshot_members:
            starts = {j: start for j, start in starts.items() if start.n}
        # Chunks of open transactions are read again, all of them.
        copy.staged = {}
        copy.positions = {journal: start.n for journal, start in starts.items()}
        cuts = [one for one in mine.fleet.places() if mine.part.lo < one < mine.part.hi]
        if cuts and random.random() < PARTS:
            cut = random.choice(cuts)
            copy.keep(random.choice((Range(mine.part.lo, cut), Range(cut, mine.part.hi))))
        if mine.world.swarm.rots:
            mine.checks.confirm(copy, starts)
        else:
            mine.fleet.archive.write(mine, copy, starts)

    def _begin_of(self, journal: int, n: int) -> Position:
        """The last place that is in the file already."""
        found = self._begins.get(journal)
        if found is None:
            assert n == 0, "more is in the file than was read"
            return Position()
        held = [one for one in found if one.n <= n]
        self._begins[journal] = [held[-1], *(one for one in found if one.n > n)]
        return held[-1]
