"""The control core: health, heat and size in; splits, merges, replicas, moves, take-overs out.

Pure (design section 3). Everything it knows may be old, and nothing it orders can lose data or give
a wrong answer: replicas refuse what they do not own, owners fence, the map is compared and set by
version, and storage is a cache of snapshot and journal. A bad order costs time only.

A change has three steps, each begun only on fresh reports of the one before: *build* (new replicas
come from snapshot and journal), *publish* (a map with them, without the old ones), *retire* (the
old ones shrink or go). Until the map is in force a change can be abandoned at no cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from meridian.clock.tau import Interval
from meridian.control.views import (
    Action,
    AddReplica,
    AdjudicatorReport,
    HostReport,
    MoveKeys,
    Placed,
    Publish,
    Remove,
    ReplicaReport,
    Report,
    Shrink,
    TakeOver,
)
from meridian.limits import S
from meridian.wire.ranges import Range, subtract

MIB = 1 << 20


class Policy(msgspec.Struct, frozen=True):
    """When to act. Merging needs much less than splitting leaves: nothing swings."""

    copies: int = 2
    """Replicas of a shard."""
    copies_max: int = 5
    split_bytes: int = 256 * MIB
    """A shard of this size is restored within a second or two."""
    split_ops_per_s: int = 20_000
    merge_bytes: int = 32 * MIB
    """Of both neighbours together: an eighth of what splits."""
    merge_ops_per_s: int = 1_000
    read_heavy_per_s: int = 10_000
    """Reads of a shard, per copy, that ask for one more copy while it hardly writes."""
    move_commits_per_s: int = 20_000
    uneven: int = 4
    """An owner with so many times the commits of another one gives keys to it."""
    sustain: int = 3
    """Ticks in a row that must show a reason before anything is done about it."""
    changes: int = 2
    """Changes at once; one per shard, one build per host."""
    fresh_ns: int = 5 * S
    """Older reports count for nothing."""
    dead_ns: int = 15 * S
    """A replica or host silent for so long is replaced."""
    owner_ns: int = 3 * S
    """An owner silent for so long is taken over; being wrong costs an epoch."""
    build_ns: int = 600 * S
    """A build that takes longer is given up; the next ones have twice the time."""
    build_max_ns: int = 4800 * S
    """But not more than this."""
    order_ns: int = 5 * S
    """Orders to give something up are void after this."""
    pause_ns: int = 60 * S
    """After a change its range is left alone."""


# Events


class Tick(msgspec.Struct, frozen=True):
    """Time to think; every second or so."""


class Reported(msgspec.Struct, frozen=True):
    """Somebody's report. It may be late, doubled, out of order."""

    report: Report


class MapInForce(msgspec.Struct, frozen=True):
    """What the metadata store says: the map of this version is the one."""

    version: int
    shards: tuple[Placed, ...]


class JournalsInForce(msgspec.Struct, frozen=True):
    """What the metadata store says: each of these journals needs an owner.

    `ended`: those that have ended or are about to (4.7). Their owners end them and tell outcomes
    (5.6), but keys are of no use there.
    """

    journals: tuple[int, ...]
    ended: tuple[int, ...] = ()


Event = Tick | Reported | MapInForce | JournalsInForce

BUILD, PUBLISH, RETIRE = "build", "publish", "retire"


class Change(msgspec.Struct):
    """A change under way: shards `old` of the map become `new`."""

    kind: str
    reason: str
    old: tuple[Placed, ...]
    new: tuple[Placed, ...]
    builds: tuple[AddReplica, ...]
    since: int
    build_ns: int
    """How long it may take."""
    phase: str = BUILD
    version: int = 0
    """Of the map that has the new shards, once it was offered."""

    def range(self) -> Range:
        """Everything it touches."""
        return Range(min(one.lo for one in self.old), max(one.hi for one in self.old))


class Control:
    """One per cluster; a second one at the same time does no harm.

    `number` below 256, another one for each start: it keeps the replicas apart that they name.
    """

    def __init__(self, policy: Policy | None = None, number: int = 0) -> None:
        assert 0 <= number < 256
        self.number = number
        self.policy = policy or Policy()
        self.version = 0
        self.shards: tuple[Placed, ...] = ()
        self.changes: list[Change] = []
        self.hosts: dict[int, HostReport] = {}
        self.replicas: dict[int, ReplicaReport] = {}
        self.owners: dict[int, AdjudicatorReport] = {}
        self.journals: dict[int, int] | None = None
        """Since when each is known to need an owner; None: nobody has said which there are."""
        self._ended: tuple[int, ...] = ()
        """Those of them that take no keys."""
        self._streaks: dict[tuple[str, bytes | int], int] = {}
        self._quiet: list[tuple[Range, int]] = []
        """Ranges left alone until a time."""
        self._lost_since: dict[int, int] = {}
        """Since when replicas are known that no map and no change names."""
        self._asked: dict[tuple[str, int], int] = {}
        """When something was ordered last: orders are repeated, but not every tick."""
        self._build_ns = self.policy.build_ns
        """What builds need; it only grows, as one that was given up begins with nothing again."""
        self._action = 0
        self._replica = 0

    def step(self, now: Interval, event: Event) -> list[Action]:
        """React to one event. Only Tick gives actions."""
        match event:
            case Reported():
                self._hear(event.report)
            case MapInForce():
                self._map(now, event)
            case JournalsInForce():
                known = self.journals or {}
                self.journals = {n: known.get(n, now.earliest) for n in event.journals}
                self._ended = event.ended
            case Tick():
                return self._tick(now.earliest)
        return []

    def check(self) -> None:
        """Invariants between steps."""
        assert len(self.changes) <= self.policy.changes
        ranges = [change.range() for change in self.changes]
        assert not any(a.meets(b) for i, a in enumerate(ranges) for b in ranges[:i])
        for change in self.changes:
            assert _same_places(change.old, change.new), "a change loses no place"

    # What is known

    def _hear(self, report: Report) -> None:
        if isinstance(report, HostReport):
            known_host = self.hosts.get(report.host)
            if known_host is None or known_host.at < report.at:
                self.hosts[report.host] = report
        elif isinstance(report, ReplicaReport):
            known = self.replicas.get(report.replica)
            self._replica = max(self._replica, report.replica >> 8)
            if known is None or known.at < report.at:
                self.replicas[report.replica] = report
        else:
            owner = self.owners.get(report.adjudicator)
            if owner is None or owner.at < report.at:
                self.owners[report.adjudicator] = report

    def _map(self, now: Interval, event: MapInForce) -> None:
        """Another version may come from another control core: changes built on less are void."""
        if event.version <= self.version:
            return
        self.version, self.shards = event.version, event.shards
        for one in event.shards:
            self._replica = max(self._replica, *(r >> 8 for r in one.replicas), 0)
        for change in list(self.changes):
            if all(one in self.shards for one in change.new):
                change.phase = RETIRE
            elif not all(one in self.shards for one in change.old):
                self._end(now.earliest, change)
            elif change.phase == PUBLISH:
                # The map in force is not the one it offered: it offers the next version.
                change.version = 0

    def _fresh(self, now: int, replica: int) -> ReplicaReport | None:
        report = self.replicas.get(replica)
        return report if report and report.at >= now - self.policy.fresh_ns else None

    def _serving(self, now: int, replica: int, wanted: Range) -> bool:
        """As of just now it is complete and holds all of the range."""
        report = self._fresh(now, replica)
        return report is not None and report.complete and report.range.covers(wanted)

    def _dead(self, now: int, replica: int) -> bool:
        report = self.replicas.get(replica)
        return report is None or report.at < now - self.policy.dead_ns

    def _useless(self, now: int, replica: int, wanted: Range) -> bool:
        """Silent, or it does not hold what the map says (an order of an older time reached it)."""
        report = self._fresh(now, replica)
        return self._dead(now, replica) or (report is not None and not report.range.covers(wanted))

    # Each tick

    def _tick(self, now: int) -> list[Action]:
        actions: list[Action] = []
        self._quiet = [one for one in self._quiet if one[1] > now]
        for change in list(self.changes):
            self._drive(now, change, actions)
        for shard in self.shards:
            self._look_at(now, shard, actions)
        self._merge(now, actions)
        self._owners_of_journals(now, actions)
        self._orphans(now, actions)
        for shard in self.shards:
            self._tidy(now, shard, actions)
        return actions

    def _number(self) -> int:
        self._action += 1
        return self._action

    def _sustained(self, what: str, about: bytes | int, holds: bool) -> bool:
        """Did it hold for so many ticks in a row? Counts one tick."""
        key = (what, about)
        if not holds:
            self._streaks.pop(key, None)
            return False
        self._streaks[key] = self._streaks.get(key, 0) + 1
        if self._streaks[key] < self.policy.sustain:
            return False
        del self._streaks[key]
        return True

    def _again(self, now: int, what: str, about: int, every_ns: int) -> bool:
        """An order may be lost: it is repeated after a while, not at once."""
        if self._asked.get((what, about), -every_ns) > now - every_ns:
            return False
        self._asked[what, about] = now
        return True

    # Changes

    def _free(self, shards: Sequence[Placed]) -> bool:
        """May something be begun here?"""
        if len(self.changes) >= self.policy.changes:
            return False
        busy = [change.range() for change in self.changes] + [one for one, _ in self._quiet]
        return not any(one.range.meets(other) for one in shards for other in busy)

    def _begin(
        self,
        now: int,
        kind: str,
        reason: str,
        old: tuple[Placed, ...],
        new: tuple[Placed, ...],
        wanted: Sequence[tuple[int, Range, int]],
        actions: list[Action],
    ) -> None:
        """`wanted`: (replica, range, host) to build first."""
        builds = tuple(
            AddReplica(self._number(), replica, host, part.lo, part.hi, reason)
            for replica, part, host in wanted
        )
        self.changes.append(Change(kind, reason, old, new, builds, now, self._build_ns))
        for build in builds:
            self._asked["build", build.replica] = now
        actions += builds

    def _end(self, now: int, change: Change) -> None:
        self.changes.remove(change)
        self._quiet.append((change.range(), now + self.policy.pause_ns))

    def _drive(self, now: int, change: Change, actions: list[Action]) -> None:
        """The next step of a change, once the one before shows in fresh reports."""
        if change.phase == BUILD:
            missing = [
                one
                for one in change.builds
                if not self._serving(now, one.replica, Range(one.lo, one.hi))
            ]
            if not missing:
                change.phase = PUBLISH
            late = now > change.since + change.build_ns
            if late and all(self._fresh(now, one.replica) for one in change.builds):
                # They live and read: the same time would be too short for the next ones too.
                longer_ns = min(2 * change.build_ns, self.policy.build_max_ns)
                self._build_ns = max(self._build_ns, longer_ns)
            if missing and not late:
                actions += [
                    one
                    for one in missing
                    if self._fresh(now, one.replica) is None
                    and self._again(now, "build", one.replica, self.policy.dead_ns)
                ]
        if change.phase in (BUILD, PUBLISH) and self._too_late(now, change):
            for one in change.builds:
                actions.append(self._retirement(now, one.replica, None, "not built in time"))
            self._end(now, change)
            return
        if change.phase == PUBLISH:
            self._publish(now, change, actions)
        if change.phase == RETIRE:
            self._retire(now, change, actions)

    def _too_late(self, now: int, change: Change) -> bool:
        """Given up, and no map that was offered can come into force any more."""
        return now > change.since + change.build_ns + 2 * self.policy.order_ns

    def _publish(self, now: int, change: Change, actions: list[Action]) -> None:
        """One map at a time: each is the next version after the one in force."""
        if any(one.version and one is not change for one in self.changes):
            return
        if now > change.since + change.build_ns:
            return
        if change.version and not self._again(now, "map", change.version, self.policy.fresh_ns):
            return
        self._asked["map", self.version + 1] = now
        kept = [one for one in self.shards if one not in change.old]
        shards = sorted((*kept, *change.new), key=lambda one: one.lo)
        change.version = self.version + 1
        table = tuple((one.lo, one.hi, one.replicas) for one in shards)
        expires = now + self.policy.order_ns
        actions.append(Publish(self._number(), table, change.version, expires, change.reason))

    def _retire(self, now: int, change: Change, actions: list[Action]) -> None:
        """Old replicas shrink or go, each only while others serve what it gives up."""
        change.version = 0
        left = False
        stay: dict[int, Range] = {}
        for shard in change.new:
            for replica in shard.replicas:
                stay[replica] = shard.range
        for shard in change.old:
            for replica in shard.replicas:
                keeps = stay.get(replica)
                report = self.replicas.get(replica)
                if keeps is None:
                    done = self._dead(now, replica)
                else:
                    done = report is not None and keeps.covers(report.range)
                if done:
                    continue
                left = True
                # It may hold more than its shard: an order to shrink was lost.
                given = [report.range if report else shard.range]
                given = subtract(given, keeps) if keeps else given
                needed = [one for one in change.new if keeps is None or one.range != keeps]
                needed += [one for one in self.shards if any(map(one.range.meets, given))]
                others = all(
                    any(self._serving(now, r, one.range) for r in one.replicas if r != replica)
                    for one in needed
                )
                if others and self._again(now, "retire", replica, self.policy.fresh_ns):
                    actions.append(self._retirement(now, replica, keeps, change.reason))
        if not left or now > change.since + change.build_ns:
            self._end(now, change)

    def _retirement(self, now: int, replica: int, keeps: Range | None, reason: str) -> Action:
        number, expires = self._number(), now + self.policy.order_ns
        if keeps is None:
            return Remove(number, replica, self.version, expires, reason)
        return Shrink(number, replica, keeps.lo, keeps.hi, self.version, expires, reason)

    # Reasons to change a shard

    def _look_at(self, now: int, shard: Placed, actions: list[Action]) -> None:
        live = [one for one in shard.replicas if self._serving(now, one, shard.range)]
        reports = [report for one in live if (report := self._fresh(now, one)) is not None]
        dead = [one for one in shard.replicas if self._useless(now, one, shard.range)]
        size_bytes = max((one.size_bytes for one in reports), default=0)
        reads = sum(one.reads_per_s for one in reports)
        writes = max((one.writes_per_s for one in reports), default=0)
        policy = self.policy
        big = size_bytes > policy.split_bytes
        hot = reads + writes > policy.split_ops_per_s
        short = len(shard.replicas) - len(dead) < policy.copies
        lost = self._sustained("lost", shard.lo, short or bool(dead))
        split = self._sustained("split", shard.lo, (big or hot) and not dead and bool(reports))
        loved = reads > policy.read_heavy_per_s * len(shard.replicas) and writes * 10 < reads
        more = self._sustained("copy", shard.lo, loved and not dead)
        if not self._free((shard,)):
            return
        if lost:
            self._replace(now, shard, dead, actions)
        elif more and len(shard.replicas) < policy.copies_max and not big:
            reason = f"{reads} reads/s on {len(shard.replicas)} copies"
            self._add_copy(now, shard, reason, actions)
        elif split:
            why = f"{size_bytes >> 20} MiB" if big else f"{reads + writes} operations/s"
            self._split(now, shard, reports, why, actions)

    def _replace(self, now: int, shard: Placed, dead: Sequence[int], actions: list[Action]) -> None:
        """Copies that are gone for good, or were never there."""
        kept = [one for one in shard.replicas if one not in dead]
        missing = self.policy.copies - len(kept)
        reason = (
            f"{len(dead)} of {len(shard.replicas)} copies silent or elsewhere"
            if dead
            else "too few copies"
        )
        # Somebody must be named in the map while nobody is left: those that may come back.
        hosts = self._hosts(now, kept, max(0, missing))
        if missing > 0 and not hosts:
            return
        built = [(self._new_replica(), shard.range, host) for host in hosts]
        after = (*kept, *(one[0] for one in built))
        new = Placed(shard.lo, shard.hi, tuple(after))
        self._begin(now, "replace", reason, (shard,), (new,), built, actions)

    def _add_copy(self, now: int, shard: Placed, reason: str, actions: list[Action]) -> None:
        hosts = self._hosts(now, shard.replicas, 1)
        if hosts:
            replica = self._new_replica()
            new = Placed(shard.lo, shard.hi, (*shard.replicas, replica))
            built = [(replica, shard.range, hosts[0])]
            self._begin(now, "copy", reason, (shard,), (new,), built, actions)

    def _split(
        self,
        now: int,
        shard: Placed,
        reports: Sequence[ReplicaReport],
        why: str,
        actions: list[Action],
    ) -> None:
        """The upper half goes to new replicas; the old ones then shrink to the lower half."""
        middle = next((r.middle for r in reports if shard.lo < r.middle < shard.hi), b"")
        hosts = self._hosts(now, (), len(shard.replicas))
        if not middle or not hosts:
            return
        upper = Range(middle, shard.hi)
        built = [(self._new_replica(), upper, host) for host in hosts]
        new = (
            Placed(shard.lo, middle, shard.replicas),
            Placed(middle, shard.hi, tuple(one[0] for one in built)),
        )
        self._begin(now, "split", f"split: {why}", (shard,), new, built, actions)

    def _merge(self, now: int, actions: list[Action]) -> None:
        """Two small, cold neighbours become one, on new replicas."""
        for left, right in zip(self.shards, self.shards[1:], strict=False):
            reports = [
                [r for one in shard.replicas if (r := self._fresh(now, one)) and r.complete]
                for shard in (left, right)
            ]
            size_bytes = sum(max((r.size_bytes for r in part), default=0) for part in reports)
            heat = sum(r.reads_per_s + r.writes_per_s for part in reports for r in part)
            small = size_bytes < self.policy.merge_bytes and heat < self.policy.merge_ops_per_s
            known = all(reports) and left.hi == right.lo
            if not self._sustained("merge", right.lo, small and known):
                continue
            hosts = self._hosts(now, (), min(len(left.replicas), len(right.replicas)))
            if not hosts or not self._free((left, right)):
                continue
            part = Range(left.lo, right.hi)
            built = [(self._new_replica(), part, host) for host in hosts]
            new = (Placed(part.lo, part.hi, tuple(one[0] for one in built)),)
            reason = f"merge: {size_bytes >> 20} MiB, {heat} operations/s together"
            self._begin(now, "merge", reason, (left, right), new, built, actions)

    def _new_replica(self) -> int:
        self._replica += 1
        return self._replica << 8 | self.number

    def _hosts(self, now: int, near: Sequence[int], count: int) -> list[int]:
        """Up to `count` living hosts for copies beside those of `near`: other zones, few replicas.

        One build per host at a time. Fewer hosts than copies: fewer copies.
        """
        living = [one for one in self.hosts.values() if one.at >= now - self.policy.fresh_ns]
        building = [one.host for change in self.changes for one in change.builds]
        building = [] if all(one.phase != BUILD for one in self.changes) else building
        taken = [self.replicas[one].host for one in near if one in self.replicas]
        zones = [self.hosts[one].zone for one in taken if one in self.hosts]
        load: dict[int, int] = {}
        for report in self.replicas.values():
            if report.at >= now - self.policy.dead_ns:
                load[report.host] = load.get(report.host, 0) + 1 + report.size_bytes // MIB
        chosen: list[int] = []
        while len(chosen) < count:
            free = [h for h in living if h.host not in (*taken, *chosen, *building)]
            if not free:
                break
            best = min(free, key=lambda h: (zones.count(h.zone), load.get(h.host, 0), h.host))
            chosen.append(best.host)
            zones.append(best.zone)
        return chosen

    # Owners and leftovers

    def _owners_of_journals(self, now: int, actions: list[Action]) -> None:
        policy = self.policy
        for number, heard in self._last_heard():
            silent = now - heard
            if not self._sustained("owner", number, silent > policy.owner_ns):
                continue
            hosts = [h for h in self.hosts.values() if h.at >= now - policy.fresh_ns]
            report = self.owners.get(number)
            others = [h for h in hosts if report is None or h.host != report.host] or hosts
            # Two control cores in step would fence each other's owners for ever: each has its pace.
            pace_ns = 2 * policy.owner_ns + self.number % 16 * policy.owner_ns // 8
            if others and self._again(now, "owner", number, pace_ns):
                best = min(others, key=lambda h: (self._owned_by(h.host), h.host))
                reason = f"owner silent for {silent / S:.1f} s"
                actions.append(TakeOver(self._number(), number, best.host, reason))
        live = [r for r in self.owners.values() if now - r.at <= policy.owner_ns]
        if self.journals is not None:
            taking = [n for n in self.journals if n not in self._ended]
            live = [r for r in live if r.adjudicator in taking]
        if len(live) < 2:
            return
        hot = max(live, key=lambda r: (r.commits_per_s, -r.adjudicator))
        cold = min(live, key=lambda r: (r.commits_per_s, r.adjudicator))
        uneven = hot.commits_per_s > policy.move_commits_per_s
        uneven = (
            uneven and hot.commits_per_s > policy.uneven * cold.commits_per_s and bool(hot.middle)
        )
        if self._sustained("keys", hot.adjudicator, uneven) and self._again(
            now, "keys", hot.adjudicator, policy.pause_ns
        ):
            reason = f"{hot.commits_per_s} commits/s against {cold.commits_per_s}"
            actions.append(
                MoveKeys(self._number(), hot.adjudicator, cold.adjudicator, hot.middle, reason)
            )

    def _last_heard(self) -> list[tuple[int, int]]:
        """(journal, when its owner was heard last), of every journal that needs an owner.

        One that was never heard is silent since its journal is known: this control core may be new
        while the owner is gone.
        """
        if self.journals is None:
            return [(number, report.at) for number, report in sorted(self.owners.items())]
        return [
            (number, max(since, self.owners[number].at if number in self.owners else 0))
            for number, since in sorted(self.journals.items())
        ]

    def _owned_by(self, host: int) -> int:
        return len([one for one in self.owners.values() if one.host == host])

    def _orphans(self, now: int, actions: list[Action]) -> None:
        """Replicas of no map and no change: left over from what was abandoned.

        What they hold others serve; else they may be all that is left, and stay.
        """
        known = {replica for one in self.shards for replica in one.replicas}
        for change in self.changes:
            for one in (*change.old, *change.new):
                known.update(one.replicas)
        for replica, report in sorted(self.replicas.items()):
            fresh = self._fresh(now, replica) is not None
            if replica in known or not fresh or not self._covered(now, report.range):
                self._lost_since.pop(replica, None)
                continue
            # It may belong to a change of another control core: those end within half the time.
            # One that is still being built may belong to a change that waits for longer.
            since = self._lost_since.setdefault(replica, now)
            if not self.replicas[replica].complete:
                since = max(since, now - self.policy.build_ns)
                self._lost_since[replica] = since
            long = now > since + 2 * self.policy.build_ns
            if long and self._again(now, "orphan", replica, self.policy.order_ns):
                actions.append(self._retirement(now, replica, None, "it is in no map"))

    def _covered(self, now: int, part: Range) -> bool:
        """Does somebody in the map serve every shard that meets `part`?"""
        return bool(self.shards) and all(
            any(self._serving(now, replica, shard.range) for replica in shard.replicas)
            for shard in self.shards
            if shard.range.meets(part)
        )

    def _tidy(self, now: int, shard: Placed, actions: list[Action]) -> None:
        """Replicas that still hold more than their shard: the order to shrink was lost."""
        for replica in shard.replicas:
            report = self._fresh(now, replica)
            wide = report is not None and report.range != shard.range
            wide = wide and report is not None and report.range.covers(shard.range)
            others = wide and all(
                any(self._serving(now, r, one.range) for r in one.replicas if r != replica)
                for one in self.shards
                if report is not None and one.range.meets(report.range) and one != shard
            )
            changing = any(one.range().meets(shard.range) for one in self.changes)
            if self._sustained("wide", replica, bool(others) and not changing):
                reason = "it holds more than its shard"
                actions.append(self._retirement(now, replica, shard.range, reason))


def _same_places(old: Sequence[Placed], new: Sequence[Placed]) -> bool:
    def runs(shards: Sequence[Placed]) -> list[Range]:
        merged: list[Range] = []
        for one in sorted(shards, key=lambda shard: shard.lo):
            if merged and merged[-1].hi == one.lo:
                merged[-1] = Range(merged[-1].lo, one.hi)
            else:
                merged.append(one.range)
        return merged

    return runs(old) == runs(new)
