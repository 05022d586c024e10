"""The control core in a model world: hosts die, reports lag, orders get lost, two of it at once."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from meridian.clock.tau import Interval
from meridian.control.core import (
    Change,
    Control,
    JournalsInForce,
    MapInForce,
    Policy,
    Reported,
    Tick,
)
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
    whole,
)
from meridian.limits import S
from meridian.wire.ranges import END, Range

MIB = 1 << 20
POLICY = Policy(build_ns=40 * S, pause_ns=10 * S, split_bytes=100, merge_bytes=12)


class Copy:
    def __init__(self, host: int, part: Range, ready: int) -> None:
        self.host = host
        self.range = part
        self.ready = ready


class World:
    """Keys of one byte; a shard's size is the number of rows in its range."""

    def __init__(self, seed: int, *, faults: bool = True, controls: int = 1) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.now = 1000 * S
        self.version = 1
        self.disaster = 0
        """When something was lost last."""
        self.shards = (Placed(b"", END, (1, 2)),)
        self.copies = {1: Copy(1, Range(b"", END), 0), 2: Copy(2, Range(b"", END), 0)}
        self.up = {1: True, 2: True, 3: True, 4: True, 5: True}
        self.rows: list[int] = [0] * 128
        self.controls = [Control(POLICY, n) for n in range(controls)]
        self.late: list[tuple[int, int, Any]] = []
        self.counter = 0
        self.actions: list[tuple[int, Action]] = []
        self.reads: dict[int, int] = {}

    def size(self, part: Range) -> int:
        return sum(n for i, n in enumerate(self.rows) if part.holds(bytes([i])))

    def middle(self, part: Range) -> bytes:
        total, half = 0, self.size(part) // 2
        for i, n in enumerate(self.rows):
            if part.holds(bytes([i])):
                total += n
                if total > half:
                    return bytes([i])
        return b""

    def complete(self, replica: int) -> bool:
        copy = self.copies.get(replica)
        return copy is not None and copy.ready <= self.now and self.up[copy.host]

    def serves(self, where: bytes, but: int = 0) -> bool:
        return any(
            self.complete(r) and c.range.holds(where)
            for r, c in self.copies.items() if r != but
        )  # fmt: skip

    def tick(self) -> None:
        """One second: reports go out, orders come back, some of them late or lost."""
        self.now += S
        reports: list[Any] = [HostReport(h, self.now, h % 3) for h, up in self.up.items() if up]
        for number, copy in self.copies.items():
            if self.up[copy.host]:
                ready = copy.ready <= self.now
                reports.append(
                    ReplicaReport(
                        number, copy.host, self.now, copy.range.lo, copy.range.hi, ready,
                        self.size(copy.range) if ready else 0, self.reads.get(number, 0), 0,
                        self.middle(copy.range),
                    )
                )  # fmt: skip
        for control in self.controls:
            for report in reports:
                self.send((control, Reported(report)))
            self.send((control, MapInForce(self.version, self.shards)))
        self.deliver()
        for control in self.controls:
            for action in control.step(Interval(self.now, self.now), Tick()):
                self.actions.append((self.now, action))
                assert action.reason
                self.send(action)
            control.check()

    def send(self, what: Any) -> None:
        times = 1
        if self.faults:
            if self.random.random() < 0.1:
                return
            times += self.random.random() < 0.1
        for _ in range(times):
            delay = self.random.choice([0, 0, 0, 1, 3, 20]) if self.faults else 0
            self.counter += 1
            self.late.append((self.now + delay * S, self.counter, what))

    def deliver(self) -> None:
        due = sorted((one for one in self.late if one[0] <= self.now), key=lambda one: one[:2])
        self.late = [one for one in self.late if one[0] > self.now]
        for _, _, what in due:
            if isinstance(what, tuple):
                what[0].step(Interval(self.now, self.now), what[1])
                what[0].check()
            else:
                self.perform(what)

    def perform(self, action: Action) -> None:
        match action:
            case AddReplica():
                if action.replica not in self.copies and self.up[action.host]:
                    ready = self.now + self.random.randint(1, 5) * S
                    part = Range(action.lo, action.hi)
                    self.copies[action.replica] = Copy(action.host, part, ready)
            case Publish():
                if action.version == self.version + 1 and self.now <= action.expires:
                    self.version = action.version
                    self.shards = tuple(Placed(*one) for one in action.shards)
                    assert whole(self.shards)
            case Shrink() | Remove():
                self.retire(action)

    def retire(self, action: Shrink | Remove) -> None:
        copy = self.copies.get(action.replica)
        if copy is None or not self.up[copy.host]:
            return
        if action.expires < self.now or action.map_version != self.version:
            return
        keeps = Range(action.lo, action.hi) if isinstance(action, Shrink) else Range(b"", b"")
        # What it gives up is served by others, unless a host died since this was ordered.
        for i in range(128):
            where = bytes([i])
            lost = copy.range.holds(where) and not keeps.holds(where)
            if lost and self.disaster < self.now - POLICY.fresh_ns - POLICY.order_ns:
                assert self.serves(where, but=action.replica), (action, where)
        if isinstance(action, Remove):
            del self.copies[action.replica]
        elif copy.range.covers(keeps):
            copy.range = keeps

    def settled(self) -> bool:
        return all(not control.changes for control in self.controls)


def calm(world: World, ticks: int = 250) -> None:
    """Nothing fails any more: everything is served, twice, and the control core is quiet."""
    world.faults = False
    for host in world.up:
        world.up[host] = True
    for _ in range(ticks):
        world.tick()
    assert world.settled()
    assert all(world.serves(bytes([i])) for i in range(128))
    assert whole(world.shards)
    for shard in world.shards:
        serving = [
            r for r in shard.replicas
            if world.complete(r) and world.copies[r].range.covers(shard.range)
        ]  # fmt: skip
        assert len(serving) >= POLICY.copies, shard
        heavy = [n for i, n in enumerate(world.rows) if shard.range.holds(bytes([i])) and n]
        assert world.size(shard.range) <= POLICY.split_bytes or len(heavy) == 1
    known = {r for shard in world.shards for r in shard.replicas}
    assert set(world.copies) == known
    before = len(world.actions)
    for _ in range(60):
        world.tick()
    assert len(world.actions) == before, world.actions[before:]


@pytest.mark.parametrize("controls", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_every_place_stays_served_whatever_happens(seed: int, controls: int) -> None:
    world = World(seed, controls=controls)
    rng = world.random
    starts = controls
    for _ in range(250):
        spot = rng.randrange(128)
        if rng.random() < 0.5:
            world.rows[spot] += rng.choice([1, 5, 20])
        if rng.random() < 0.02:
            world.rows = [n // 4 for n in world.rows]
        if rng.random() < 0.02:
            world.up[rng.choice(list(world.up))] = True
            victim = rng.choice(list(world.up))
            world.up[victim] = sum(world.up.values()) < 4
            world.disaster = world.now
        if rng.random() < 0.01:
            # A host that lost its disk.
            gone = rng.choice(list(world.up))
            left = {r: c for r, c in world.copies.items() if c.host != gone}
            if all(any(c.range.holds(bytes([i])) for c in left.values()) for i in range(128)):
                world.copies = left
                world.disaster = world.now
        if rng.random() < 0.02:
            # The control core starts anew and knows nothing.
            starts += 1
            world.controls[rng.randrange(controls)] = Control(POLICY, starts)
        world.tick()
    calm(world)


def kinds(world: World) -> list[str]:
    return [type(action).__name__ for _, action in world.actions]


def test_a_big_shard_is_split_in_the_middle_and_the_old_copies_shrink_last() -> None:
    world = World(1, faults=False)
    world.rows = [2] * 128
    for _ in range(20):
        world.tick()
    order = kinds(world)
    assert order[:5] == ["AddReplica", "AddReplica", "Publish", "Shrink", "Shrink"]
    first = next(a for _, a in world.actions if isinstance(a, AddReplica))
    assert first.lo == bytes([64]) and "split: 0 MiB" in first.reason
    assert {c.host for r, c in world.copies.items() if r > 255} <= {3, 4, 5, 1, 2}
    calm(world)
    assert len(world.shards) >= 3


def test_small_cold_neighbours_are_merged_and_it_does_not_swing() -> None:
    world = World(2, faults=False)
    world.rows = [2] * 128
    calm(world)
    assert len(world.shards) >= 3
    sizes = [world.size(s.range) for s in world.shards]
    assert all(size > POLICY.merge_bytes for size in sizes)
    world.rows = [0] * 128
    calm(world, 500)
    assert len(world.shards) == 1
    # Between the two bounds nothing happens at all.
    world.rows = [0] * 127 + [50]
    before = len(world.actions)
    for _ in range(100):
        world.tick()
    assert len(world.actions) == before


def test_a_lost_copy_is_made_anew_in_another_zone() -> None:
    world = World(3, faults=False)
    for _ in range(5):
        world.tick()
    world.up[2] = False
    for _ in range(40):
        world.tick()
    adds = [a for _, a in world.actions if isinstance(a, AddReplica)]
    assert len(adds) == 1 and "silent" in adds[0].reason
    # Host 1 lies in zone 1, 4 as well: 3 or 5 it is.
    assert adds[0].host in (3, 5)
    assert len(world.shards[0].replicas) == 2 and 2 not in world.shards[0].replicas


def test_what_a_replaced_copy_holds_beyond_its_shard_others_serve_first() -> None:
    """Its order to shrink was lost, and the shard that it holds beside its own lags."""
    world = World(3, faults=False)
    half = b"\x40"
    world.shards = (Placed(b"", half, (1, 2)), Placed(half, END, (3, 4)))
    parts = {1: Range(b"", END), 2: Range(b"", half), 3: Range(half, END), 4: Range(half, END)}
    world.copies = {number: Copy(number, part, 0) for number, part in parts.items()}
    world.tick()
    world.up[1] = False
    while world.version == 1:
        world.tick()
    world.up[1] = True
    world.copies[3].ready = world.copies[4].ready = world.now + 60 * S
    for _ in range(59):
        world.tick()
    assert 1 in world.copies
    for _ in range(120):
        world.tick()
    assert 1 not in world.copies and world.settled()


def test_many_readers_get_one_more_copy() -> None:
    world = World(4, faults=False)
    world.reads = {1: 15_000, 2: 15_000}
    policy = Policy(split_ops_per_s=1_000_000)
    world.controls = [Control(policy)]
    for _ in range(12):
        world.tick()
    assert len(world.shards[0].replicas) == 3
    assert "reads/s" in world.actions[0][1].reason


def test_short_spikes_change_nothing() -> None:
    world = World(5, faults=False)
    for i in range(60):
        world.rows = [3] * 128 if i % 3 else [0] * 128
        world.tick()
    assert world.actions == []


def test_few_changes_at_once() -> None:
    world = World(6, faults=False)
    world.rows = [3] * 128
    most = 0
    for _ in range(200):
        world.tick()
        most = max(most, len(world.controls[0].changes))
    assert most == POLICY.changes


def test_a_build_that_never_ends_is_given_up() -> None:
    control = Control(POLICY)
    now = 1000 * S
    shard = Placed(b"", END, (1, 2))
    control.step(Interval(now, now), MapInForce(1, (shard,)))
    actions: list[Action] = []
    for _ in range(100):
        now += S
        for replica in (1, 2):
            report = ReplicaReport(replica, replica, now, b"", END, True, 500, 0, 0, b"\x20")
            control.step(Interval(now, now), Reported(report))
        for host in (1, 2, 3, 4):
            control.step(Interval(now, now), Reported(HostReport(host, now)))
        actions += control.step(Interval(now, now), Tick())
        if any(isinstance(one, Remove) for one in actions):
            break
    assert not any(isinstance(one, (Publish, Shrink)) for one in actions)
    assert {one.replica for one in actions if isinstance(one, Remove)} == {256, 512}
    repeats = [one for one in actions if isinstance(one, AddReplica)]
    assert 2 < len(repeats) < 20 and len({one.replica for one in repeats}) == 2


def owners(control: Control, now: int, commits: dict[int, int], silent: int = -1) -> list[Action]:
    actions: list[Action] = []
    for _ in range(6):
        now += S
        for host in (1, 2, 3):
            control.step(Interval(now, now), Reported(HostReport(host, now)))
        for number, rate in commits.items():
            if number != silent:
                report = AdjudicatorReport(number, 1 + number, now, rate, b"\x10")
                control.step(Interval(now, now), Reported(report))
        actions += control.step(Interval(now, now), Tick())
    return actions


def test_builds_that_take_longer_than_was_allowed_get_more_time() -> None:
    """Each begins with nothing: with the same time for all of them none would ever end."""
    builder, other = Control(POLICY), Control(POLICY, 1)
    now = 1000 * S
    shard = Placed(b"", END, (1, 2))
    ready: dict[int, ReplicaReport] = {}
    actions: list[Action] = []
    for _ in range(400):
        now += S
        reports: list[Report] = [HostReport(host, now) for host in (1, 2, 3, 4)]
        reports += [ReplicaReport(r, r, now, b"", END, True, 500, 0, 0, b"\x20") for r in (1, 2)]
        reports += [
            msgspec.structs.replace(one, at=now, complete=one.at <= now) for one in ready.values()
        ]
        for control in (builder, other):
            control.step(Interval(now, now), MapInForce(1, (shard,)))
            for report in reports:
                control.step(Interval(now, now), Reported(report))
        done = builder.step(Interval(now, now), Tick())
        # The other control core begins nothing, and takes away nothing that is being built.
        other.changes = [Change("busy", "", (shard,), (shard,), (), now, 10_000 * S, "retire")]
        assert not [one for one in other.step(Interval(now, now), Tick()) if type(one) is Remove]
        for one in done:
            if isinstance(one, AddReplica):
                at = now + 150 * S
                ready[one.replica] = ReplicaReport(one.replica, one.host, at, one.lo, one.hi, False)
            elif isinstance(one, Remove):
                del ready[one.replica]
        actions += done
        if any(isinstance(one, Publish) for one in actions):
            break
    assert isinstance(actions[-1], Publish)
    assert len([one for one in actions if isinstance(one, Remove)]) == 4


def test_a_silent_owner_is_taken_over_once_by_another_host() -> None:
    control = Control(POLICY)
    assert owners(control, 100 * S, {0: 10, 1: 10}) == []
    actions = owners(control, 106 * S, {0: 10, 1: 10}, silent=1)
    assert [(a.adjudicator, a.host) for a in actions if isinstance(a, TakeOver)] == [(1, 3)]
    assert "silent" in actions[0].reason


def test_a_new_control_core_takes_over_a_journal_whose_owner_it_never_heard() -> None:
    control = Control(POLICY)
    control.step(Interval(100 * S, 100 * S), JournalsInForce((0, 2)))
    actions = owners(control, 100 * S, {0: 10, 1: 10}, silent=1)
    assert [a.adjudicator for a in actions if isinstance(a, TakeOver)] == [2]
    control.step(Interval(107 * S, 107 * S), JournalsInForce((0,)))
    assert not owners(control, 120 * S, {0: 10}), "a journal that is gone needs no owner"


def test_a_journal_that_has_ended_needs_an_owner_who_gets_no_keys() -> None:
    control = Control(POLICY)
    control.step(Interval(100 * S, 100 * S), JournalsInForce((0, 1, 2), ended=(2,)))
    actions = owners(control, 100 * S, {0: 50_000, 1: 10, 2: 0})
    assert [(a.source, a.target) for a in actions if isinstance(a, MoveKeys)] == [(0, 1)]
    actions = owners(control, 106 * S, {0: 10, 1: 10, 2: 0}, silent=2)
    assert [a.adjudicator for a in actions if isinstance(a, TakeOver)] == [2]


def test_two_control_cores_in_step_do_not_take_over_in_step_for_ever() -> None:
    cores = [Control(POLICY, number) for number in (0, 1)]
    ordered: list[list[int]] = [[], []]
    for second in range(100, 160):
        now = Interval(second * S, second * S)
        for control, times in zip(cores, ordered, strict=True):
            control.step(now, JournalsInForce((0,)))
            control.step(now, Reported(HostReport(1, second * S)))
            if any(isinstance(one, TakeOver) for one in control.step(now, Tick())):
                times.append(second)
    assert len(ordered[0]) > 4 and len(ordered[1]) > 4
    apart = [time for time in ordered[0] if time not in ordered[1]]
    assert len(apart) > 2


def test_keys_move_from_a_hot_owner_to_a_cold_one() -> None:
    control = Control(POLICY)
    actions = owners(control, 100 * S, {0: 50_000, 1: 10, 2: 40_000})
    assert [(a.source, a.target, a.at) for a in actions if isinstance(a, MoveKeys)] == [
        (0, 1, b"\x10")
    ]
    assert owners(Control(POLICY), 100 * S, {0: 50_000, 1: 20_000}) == []
