"""A replica process of a range: lanes over files that each hold a part of it.

A read is answered once every lane that holds a part of it is complete through its tau, and only
what is owned then, at or above its base (`storage/owning.py`, as the engine does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meridian.clock.tau import TAU_MAX
from meridian.control.views import ReplicaReport
from meridian.journal.core import Position, Reader
from meridian.routing import core as routing
from meridian.sim.follower import Follower
from meridian.sim.lane import Lane
from meridian.sim.messages import CountAsked, CountTold, Get, Got, Key, Page, Scan, Unread
from meridian.sim.range_checks import CHECK_LAG_NS, RangeChecks
from meridian.sim.range_snapshots import RangeSnapshots
from meridian.sim.store import Store
from meridian.sim.world import MS, S
from meridian.storage import core as st
from meridian.storage.errors import BelowHorizon, WrongPlace
from meridian.storage.owning import check_keys, scan_part
from meridian.wire.ranges import Range, Ranges, joined, place

if TYPE_CHECKING:
    from meridian.sim.fleet import Fleet
    from meridian.sim.hosts import Host

PATIENCE_NS = 1 * S
FRESH_NS = 500 * MS
"""A replica complete through this long ago serves present reads."""
REASONS = {st.TOO_OLD: routing.TOO_OLD, st.TOO_LATE: routing.BEHIND, st.TOO_MANY: routing.BEHIND}


class _Waiting:
    """A read and the lanes that it still waits for."""

    __slots__ = ("lanes", "message", "source")

    def __init__(self, source: str, message: Get | Scan, lanes: list[int]) -> None:
        self.source = source
        self.message = message
        self.lanes = lanes


class RangeReplica(Follower):
    """Node `r<number>` on a host; removed for good once its host was told so."""

    ranged = True
    poll_ns = 160 * MS

    def __init__(self, fleet: Fleet, host: Host, number: int, part: Range) -> None:
        super().__init__(
            fleet.world, f"r{number}", fleet.journals, fleet.owners, fleet.parts,
            f"replica/{number}",
        )  # fmt: skip
        self._first = fleet.world.swarm.owners
        self.fleet = fleet
        self.host = host
        self.number = number
        self.part = part
        self.removed = False
        self.stores: list[Store] = []
        """Its files; none: they are lost, or not built yet."""
        self.ranges = Ranges(())
        self.checks = RangeChecks(self)
        self._reads: dict[int, _Waiting] = {}
        self._token = 0
        self.snapshots = RangeSnapshots(self)
        self._served = 0
        self._written = 0
        self._known: dict[int, int] = {}
        """Of each journal, records through this n count as writes no more."""
        self._caught_up = False
        """It was complete when it reported last."""

    # Life

    def start(self) -> None:
        """Unless it was removed, or its host is down and will start it."""
        if self.host.alive and not self.removed and not self.alive:
            super().start()

    def on_start(self) -> None:
        """What its files hold, or what snapshots hold, and then the journals."""
        self._caught_up = False
        starts = self.starts()
        lost = self._random.random() < 0.3 or any(one.lacks(starts) for one in self.stores)
        if lost or self.checks.discard or not self.stores:
            self.stores = self.fleet.archive.build(self.part, starts)
            for store in self.stores:
                store.built = self.clock.now().latest
        self._known = {}
        for store in self.stores:
            for number, n in store.positions.items():
                self._known[number] = max(n, self._known.get(number, 0))
        self.checks.begin()
        self.world.trace("start", self.name, *(store.complete for store in self.stores))
        self._follow(starts)

    def _follow(self, starts: dict[int, Position]) -> None:
        self._reads = {}
        self.snapshots.begin()
        self._bar = self.parts.crossbar()
        self.lanes = [
            Lane(self, number, store, self._random) for number, store in enumerate(self.stores, 1)
        ]
        self._reckon()
        self.begin(starts)

    def _anew(self) -> None:
        """Its files are others now: everything is read again, and nobody waits any more."""
        starts = self.starts()
        if any(store.lacks(starts) for store in self.stores):
            # Trimmed meanwhile: what is missing is in snapshots only.
            self._again()
            return
        self.incarnation += 1
        self.checks.begin()
        self._follow(starts)

    def _reckon(self) -> None:
        owned = [one for store in self.stores for one in store.ranges.owned]
        self.ranges = self.parts.ranges(joined(owned))

    def states(self) -> list[str]:
        """Whether somebody waits for it, and whether its parts are together."""
        if len(self.lanes) > 1:
            return ["parts apart"]
        return ["reads wait" if self._reads else "following"]

    def shrink(self, part: Range) -> None:
        """Gives up everything else, running or not."""
        self.part = part
        for store in self.stores:
            store.keep(part)
        left = [store for store in self.stores if store.ranges.owned]
        gone = len(left) < len(self.stores)
        self.stores = left
        if self.alive and gone:
            self._anew()
        elif self.alive:
            self._reckon()

    def polled(self) -> bool:
        """Files that show the same tau become one."""
        for lane in self.lanes:
            lane.flush()
        if len(self.lanes) < 2 or len({lane.complete for lane in self.lanes}) > 1:
            return False
        if not self.world.healed and self._random.random() < 0.7:
            return False
        if any(lane.store.staged or not lane.core.idle for lane in self.lanes):
            return False
        first, *others = self.stores
        for store in others:
            first.take_over(store)
        self.stores = [first]
        self.world.trace("joined", self.name, len(others))
        self._anew()
        return True

    # What it says of itself

    def can_serve(self, part: Range, tau: int) -> bool:
        """Owns all of it and is complete through tau."""
        base = self.ranges.base_of(part)
        return base is not None and base <= tau <= self.complete

    def report(self, now: int) -> ReplicaReport:
        """For the control core."""
        keys = sorted(key for store in self.stores for key in store.versions)
        middle = place(*keys[len(keys) // 2]) if keys else b""
        size = sum(len(key[1]) + 16 for key in keys)
        served, self._served = self._served, 0
        written, self._written = self._written, 0
        complete = self.complete >= now - FRESH_NS
        if not self._caught_up:
            # What it reads of times before it was there is no load: a new copy would look hot.
            written = 0
        self._caught_up = complete
        return ReplicaReport(
            self.number, self.host.number, now, self.part.lo, self.part.hi, complete, size,
            served, written, middle if self.part.lo < middle < self.part.hi else b"",
        )  # fmt: skip

    # Reads

    def waiting_tau(self) -> int:
        """Of the reads that wait; else what was demanded."""
        return max((one.message.tau for one in self._reads.values()), default=self._wanted)

    def receive(self, source: str, message: Any) -> None:
        """Records, heartbeats, reads."""
        if self.heard(message):
            return
        match message:
            case CountAsked():
                self.checks.tell(source, message)
            case CountTold():
                self.checks.told(message)
            case Get() | Scan():
                self._read(source, message)

    def _places(self, message: Get | Scan) -> list[Range]:
        """What a read needs. Raises WrongPlace, BelowHorizon."""
        if isinstance(message, Scan):
            wanted = Range(message.lo, message.hi)
            descending = message.descending
            return [scan_part(self.ranges, message.tau, wanted, descending=descending, clip=True)]
        by_sid: dict[int, list[bytes]] = {}
        for sid, key in sorted(message.keys):
            by_sid.setdefault(sid, []).append(key)
        for sid, keys in by_sid.items():
            check_keys(self.ranges, message.tau, sid, keys)
        return [Range(place(*key), place(*key) + b"\0") for key in message.keys]

    def _read(self, source: str, message: Get | Scan) -> None:
        try:
            places = self._places(message)
        except (WrongPlace, BelowHorizon) as error:
            self._refuse(source, message, _reason(error))
            return
        needed = [one for one in self.lanes if any(map(one.store.ranges.meets, places))]
        if not self.parts.lanes_apart:
            needed = needed[:1]
        self._token += 1
        token = self._token
        self._reads[token] = _Waiting(source, message, [lane.number for lane in needed])
        deadline = self.clock.now().earliest + PATIENCE_NS
        for lane in needed:
            lane.step(st.Read(token, message.tau, deadline))
        if not needed:
            self._serve(self._reads.pop(token))

    def may_serve(self, lane: Lane, token: int) -> None:
        """This lane is complete through its tau; the last one lets it run."""
        waiting = self._reads.get(token)
        if waiting is not None:
            waiting.lanes.remove(lane.number)
            if not waiting.lanes:
                self._serve(self._reads.pop(token))

    def may_not_serve(self, lane: Lane, token: int, reason: int) -> None:
        """One lane's no is enough."""
        waiting = self._reads.pop(token, None)
        if waiting is not None:
            self._refuse(waiting.source, waiting.message, REASONS[reason])
            for other in self.lanes:
                if other.number in waiting.lanes and other is not lane:
                    other.step(st.CancelRead(token))

    def _refuse(self, source: str, message: Get | Scan, reason: int) -> None:
        self.world.count(f"read refused {reason}")
        self.world.send(self.name, source, Unread(message.request, reason))

    def _serve(self, read: _Waiting) -> None:
        """What it owns may have changed while the read waited."""
        message = read.message
        try:
            places = self._places(message)
        except (WrongPlace, BelowHorizon) as error:
            self._refuse(read.source, message, _reason(error))
            return
        self._served += 1
        if isinstance(message, Scan):
            self._serve_scan(read.source, message, places[0])
            return
        found = [(key, *self._value(key, message.tau)) for key in message.keys]
        if not self._rotten([(key, tau) for key, _, tau in found], message.tau):
            got = Got(message.request, tuple(value for _, value, _ in found))
            self.world.send(self.name, read.source, got)

    def _value(self, key: Key, tau: int) -> tuple[bytes | None, int]:
        where = place(*key)
        for store in self.stores:
            if store.ranges.at(where) is not None:
                return store.get(key, tau)
        return None, 0

    def _serve_scan(self, source: str, scan: Scan, part: Range) -> None:
        rows = [row for store in self.stores for row in store.scan(part, scan.tau)]
        if scan.descending:
            rows.reverse()
        count, size = 0, 0
        for key, value, _ in rows:
            count += 1
            size += row_bytes(key, value)
            if count == scan.limit or 0 < scan.page_bytes <= size:
                break
        # As the engine: a page that ends at its limit has more.
        more = count < len(rows) or count == scan.limit > 0
        rows = rows[:count]
        if not self._rotten([(key, tau) for key, _, tau in rows], scan.tau):
            page = Page(scan.request, tuple((k, v) for k, v, _ in rows), part, more)
            self.world.send(self.name, source, page)

    def _rotten(self, found: list[tuple[Key, int]], tau: int) -> bool:
        """A reader would be told a wrong value until the rot is found; not modelled further."""
        newest = max((at for _, at in found), default=0)
        assert newest <= tau < TAU_MAX
        self.world.trace("read", self.name, tau, newest)
        rotten = any(one in store.rotten for store in self.stores for one in found)
        if rotten:
            self.world.trace("rotten read", self.name)
        return rotten

    def rot(self) -> None:
        """One bit of a current value of this copy is not what it was; its disk does not notice."""
        store = self._random.choice(self.stores) if self.stores else Store(())
        rotten = store.rot(self._random, self.name)
        if rotten is not None:
            self.world.trace("rot", self.name, *rotten)

    def settled(self, tau: int) -> bool:
        """Complete through tau and, where values rot, found equal to the others since."""
        if self.complete < tau or not self.alive:
            return False
        newest = max((store.tau for store in self.stores), default=0)
        if self.world.swarm.rots and not self.checks.settled(max(newest, 1)):
            # No copy tells its digest as of less than its base, which may lie ahead of the clock.
            self.demand(max(newest, self.fleet.newest_base()) + CHECK_LAG_NS)
            return False
        for store in self.stores:
            store.forget_old_rot()
        return True

    # Snapshots

    def opened(self, number: int, start: Position) -> None:
        """One more journal is read."""
        self.snapshots.opened(number, start)

    def read_on(self, number: int, reader: Reader) -> None:
        """One more record was accepted.

        Who puts its files together, or starts again, reads the journals from their beginning: what
        it knew is no load, or every split would be followed by a merge and by the next split.
        """
        if reader.n > self._known.get(number, 0):
            self._known[number] = reader.n
            self._written += 1
        self.snapshots.read_on(number, reader)

    def snapshot(self) -> None:
        """A copy of its file goes to the object store while applying goes on."""
        if self.alive and len(self.stores) == 1:
            self.lanes[0].flush()
            self.snapshots.take(self.stores[0].copy(), self._random)


def row_bytes(key: Key, value: bytes) -> int:
    """What a row counts in a page."""
    return len(key[1]) + len(value)


def _reason(error: Exception) -> int:
    return routing.WRONG_PLACE if isinstance(error, WrongPlace) else routing.TOO_OLD
