"""The router's core over model replicas that move ranges, lag, die and lose messages."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from meridian.clock.tau import Interval
from meridian.limits import MS, S
from meridian.routing import core
from meridian.routing.core import (
    Abandon,
    Answered,
    Ask,
    Cancel,
    Done,
    Fail,
    MapChanged,
    Refused,
    Router,
    Send,
    SetTimer,
    TimerFired,
    WantMap,
)
from meridian.routing.map import Shard, ShardMap, single
from meridian.wire.ranges import END, EVERYTHING, Range, subtract

ROWS = [bytes((a, b)) for a in range(8) for b in range(6)]


class World:
    """Replicas with ranges that move; the map lags behind."""

    def __init__(self, seed: int, *, broken: bool = True) -> None:
        self.random = random.Random(seed)
        self.broken = broken
        self.now = 1_000_000
        cuts = sorted({b"", END, *self.random.sample(ROWS, 3)})
        self.owned: dict[int, list[Range]] = {r: [] for r in range(6)}
        for lo, hi in pairwise(cuts):
            for replica in self.random.sample(range(6), 2):
                self.owned[replica].append(Range(lo, hi))
        self.version = 1
        self.router = Router(self.map(), attempt_ns=S if broken else 0)
        self.dead: set[int] = set()
        self.queue: list[tuple[int, int, Any]] = []
        self.counter = 0
        self.timer = 0
        self.live: dict[int, Send] = {}
        self.pages: dict[int, list[bytes]] = {}
        self.asks: dict[int, Ask] = {}
        self.results: dict[int, Any] = {}
        self.maps_wanted = 0

    def map(self) -> ShardMap:
        """A true map of this moment, by pieces between all borders."""
        borders = sorted({b"", END, *(x for rs in self.owned.values() for r in rs for x in r)})
        shards = []
        for number, (lo, hi) in enumerate(pairwise(borders)):
            held = [r for r, rs in self.owned.items() if any(o.covers(Range(lo, hi)) for o in rs)]
            if held:
                shards.append(Shard(number, lo, hi, tuple(held)))
        return ShardMap(self.version, tuple(shards))

    def after(self, delay: int, what: Any) -> None:
        self.counter += 1
        self.queue.append((self.now + delay, self.counter, what))

    def step(self, event: core.Event) -> None:
        for effect in self.router.step(Interval(self.now, self.now), event):
            match effect:
                case Send():
                    self.live[effect.attempt] = effect
                    if not self.broken or self.random.random() > 0.05:
                        slow = self.random.random() < 0.1
                        self.after(self.random.randint(0, (300 if slow else 3) * MS), effect)
                case Abandon():
                    del self.live[effect.attempt]
                case Done() | Fail():
                    assert effect.token not in self.results, "answered twice"
                    self.results[effect.token] = effect
                    self.judge(effect)
                case WantMap():
                    self.maps_wanted += 1
                    if not self.broken or self.random.random() > 0.3:
                        self.after(self.random.randint(0, 50 * MS), "map")
                case SetTimer():
                    self.timer = effect.at
        self.router.check()

    def perform(self, send: Send) -> None:
        """What the replica says now."""
        if send.attempt not in self.live or send.replica in self.dead:
            if send.attempt in self.live and self.random.random() < 0.7:
                self.reply(send, core.DEAD)
            return
        if self.broken and self.random.random() < 0.05:
            self.reply(send, core.BEHIND)
            return
        ask = self.asks[send.token]
        at = send.part.lo
        for one in sorted(self.owned[send.replica]):
            if one.lo <= at:
                at = max(at, one.hi)
        if ask.keys:
            keys = ask.keys[send.start : send.stop]
            assert keys and all(send.part.holds(key) for key in keys)
            if not all(any(o.holds(k) for o in self.owned[send.replica]) for k in keys):
                self.reply(send, core.WRONG_PLACE)
                return
            rows, scanned, more = [k for k in ROWS if k in keys], send.part, False
        else:
            scanned = Range(send.part.lo, min(at, send.part.hi))
            if ask.descending:
                at = send.part.hi
                for one in sorted(self.owned[send.replica], reverse=True):
                    if one.hi >= at:
                        at = min(at, one.lo)
                scanned = Range(max(at, send.part.lo), send.part.hi)
            if scanned.lo >= scanned.hi:
                self.reply(send, core.WRONG_PLACE)
                return
            rows = [k for k in (reversed(ROWS) if ask.descending else ROWS) if scanned.holds(k)]
            size = min(x for x in (send.limit, send.page_bytes // 10, 1000) if x)
            more = len(rows) > size or (0 < send.limit <= len(rows))
            rows = rows[: max(1, size)]
        self.pages[send.attempt] = rows
        del self.live[send.attempt]
        self.step(Answered(send.attempt, scanned, more, len(rows), 10 * len(rows)))

    def reply(self, send: Send, reason: int) -> None:
        if send.attempt in self.live:
            del self.live[send.attempt]
            self.step(Refused(send.attempt, reason))

    def judge(self, effect: Done | Fail) -> None:
        ask = self.asks[effect.token]
        if isinstance(effect, Fail):
            assert self.broken and self.now >= ask.deadline
            return
        rows = [row for attempt in effect.attempts for row in self.pages[attempt]]
        order = list(reversed(ROWS)) if ask.descending else ROWS
        expected = [k for k in order if ask.wanted.holds(k) and (not ask.keys or k in ask.keys)]
        if effect.more:
            assert rows == expected[: len(rows)] and rows
            assert not ask.keys
        else:
            assert rows == expected
        if ask.limit:
            assert len(rows) <= ask.limit

    def run(self, until: int) -> None:
        while True:
            nearest = min((one[0] for one in self.queue), default=until)
            if self.timer and self.timer <= nearest:
                nearest = self.timer
            if nearest >= until:
                self.now = until
                return
            self.now = max(self.now, nearest)
            if self.timer and self.timer <= self.now:
                self.timer = 0
                self.step(TimerFired())
                continue
            self.queue.sort(key=lambda one: one[:2])
            what = self.queue.pop(0)[2]
            if isinstance(what, Send):
                self.perform(what)
            elif what == "map":
                self.version += 1
                self.step(MapChanged(self.map()))

    def ask(self, token: int, timeout: int = 20 * S) -> None:
        rng = self.random
        lo, hi = sorted(rng.sample([b"", *ROWS, END], 2))
        keys = tuple(sorted(rng.sample(ROWS, rng.randint(1, 8)))) if rng.random() < 0.3 else ()
        if keys:
            lo, hi = keys[0], keys[-1] + b"\0"
        limit = rng.choice([0, 0, 1, 5]) if not keys else 0
        page = rng.choice([0, 30, 1000]) if not keys else 0
        ask = Ask(
            token, Range(lo, hi), self.now + timeout, not keys and rng.random() < 0.5, keys, limit,
            page,
        )  # fmt: skip
        self.asks[token] = ask
        self.step(ask)

    def move(self) -> None:
        """A range appears elsewhere, then goes from where it was; never fewer than one copy."""
        rng = self.random
        lo, hi = sorted(rng.sample([b"", *ROWS, END], 2))
        target = rng.choice([one for one in range(6) if one not in self.dead])
        part = Range(lo, hi)
        self.owned[target] = [*subtract(self.owned[target], part), part]
        for replica in range(6):
            if replica != target and replica not in self.dead and rng.random() < 0.5:
                self.owned[replica] = subtract(self.owned[replica], part)

    def kill(self) -> None:
        """One at a time, and only if everything has a living copy elsewhere."""
        self.dead.clear()
        one = self.random.randrange(6)
        left = [EVERYTHING]
        for replica, ranges in self.owned.items():
            if replica != one:
                for owned in ranges:
                    left = subtract(left, owned)
        if not left:
            self.dead.add(one)


@pytest.mark.parametrize("seed", range(60))
def test_reads_are_complete_whatever_moves(seed: int) -> None:
    world = World(seed)
    token = 0
    for _ in range(60):
        for _ in range(world.random.randint(0, 4)):
            token += 1
            world.ask(token)
        if world.random.random() < 0.2:
            world.move()
        if world.random.random() < 0.1:
            world.kill()
        if world.random.random() < 0.05 and token:
            victim = world.random.randint(1, token)
            if victim not in world.results:
                world.results[victim] = None
                world.step(Cancel(victim))
        world.run(world.now + world.random.randint(0, 20 * MS))
    world.dead.clear()
    world.run(world.now + 25 * S)
    assert len(world.results) == token
    assert not world.live and not world.router._reads and not world.router._attempts
    failed = [one for one in world.results.values() if isinstance(one, Fail)]
    assert len(failed) <= token // 20


def test_without_faults_everything_is_answered_without_a_map() -> None:
    world = World(7, broken=False)
    for token in range(1, 200):
        world.ask(token)
        world.run(world.now + MS)
    world.run(world.now + 5 * S)
    assert len(world.results) == 199
    assert all(isinstance(one, Done) for one in world.results.values())
    assert world.maps_wanted == 0


def at(now: int) -> Interval:
    return Interval(now, now)


def two() -> Router:
    return Router(single([1, 2]))


def sends(effects: list[core.Effect]) -> list[Send]:
    return [one for one in effects if isinstance(one, Send)]


ASK = Ask(1, Range(b"\1", b"\2"), 100 * S)


def test_the_second_replica_is_asked_after_a_while_and_the_first_answer_wins() -> None:
    router = two()
    (first,) = sends(router.step(at(0), ASK))
    assert router.step(at(core.HEDGE_START_NS - 1), TimerFired())[0].__class__ is SetTimer
    (second,) = sends(router.step(at(core.HEDGE_START_NS), TimerFired()))
    assert (first.replica, second.replica) == (1, 2)
    effects = router.step(
        at(core.HEDGE_START_NS), Answered(second.attempt, ASK.wanted, False, 1, 9)
    )
    assert Abandon(first.attempt) in effects and Done(1, (second.attempt,), False) in effects
    late = router.step(at(core.HEDGE_START_NS), Answered(first.attempt, ASK.wanted, False, 1, 9))
    assert late == []


def test_hedges_are_bounded_by_a_budget() -> None:
    router = two()
    now = 0
    for token in range(1, 2000):
        now += 2 * core.HEDGE_MAX_NS
        (first,) = sends(router.step(at(now), Ask(token, Range(b"\1", b"\2"), now + 9 * S)))
        for second in sends(router.step(at(now + core.HEDGE_MAX_NS), TimerFired())):
            router.step(at(now), Refused(second.attempt, core.DEAD))
        router.step(at(now), Answered(first.attempt, Range(b"\1", b"\2"), False, 1, 9))
    assert router.hedges <= core.HEDGE_CREDIT + 2000 // core.HEDGE_EVERY + 1
    assert router.hedges > core.HEDGE_CREDIT


def test_the_delay_learns_what_answers_take() -> None:
    router = two()
    rng = random.Random(1)
    now = 0
    for token in range(1, 20_000):
        now += S
        (send,) = sends(router.step(at(now), Ask(token, Range(b"\1", b"\2"), now + 9 * S)))
        router.step(
            at(now + rng.randint(0, 100 * MS)), Answered(send.attempt, ASK.wanted, False, 1, 9)
        )
    assert 85 * MS < router.hedge_ns < 100 * MS


def test_refusals_go_on_to_the_next_replica_then_pause_and_want_a_map() -> None:
    router = two()
    (first,) = sends(router.step(at(0), ASK))
    effects = router.step(at(0), Refused(first.attempt, core.WRONG_PLACE))
    (second,) = sends(effects)
    assert second.replica == 2 and WantMap(1) in effects
    effects = router.step(at(0), Refused(second.attempt, core.WRONG_PLACE))
    assert sends(effects) == [] and WantMap(1) not in effects
    (third,) = sends(router.step(at(core.PAUSE_MIN_NS), TimerFired()))
    (fourth,) = sends(router.step(at(core.PAUSE_MIN_NS), Refused(third.attempt, core.DEAD)))
    router.step(at(core.PAUSE_MIN_NS), Refused(fourth.attempt, core.DEAD))
    (other,) = sends(router.step(at(core.PAUSE_MIN_NS), MapChanged(single([3], 2))))
    assert other.replica == 3


def test_old_maps_are_ignored_and_a_hole_waits_for_a_map() -> None:
    router = Router(ShardMap(5, (Shard(0, b"", b"\1", (1,)),)))
    effects = router.step(at(0), ASK)
    assert sends(effects) == [] and WantMap(5) in effects
    assert router.step(at(0), MapChanged(single([9], 4))) == []
    (send,) = sends(router.step(at(0), MapChanged(single([9], 6))))
    assert send.replica == 9
    wide = Ask(2, Range(b"\0", b"\2"), 100 * S)
    router = Router(ShardMap(5, (Shard(0, b"", b"\1", (1,)), Shard(1, b"\1\1", END, (2,)))))
    asked = sends(router.step(at(0), wide))
    assert [one.part for one in asked] == [Range(b"\0", b"\1"), Range(b"\1\1", b"\2")]


def test_reads_end_at_their_deadline_with_the_last_reason() -> None:
    router = two()
    (first,) = sends(router.step(at(0), Ask(1, ASK.wanted, 50 * MS)))
    (second,) = sends(router.step(at(0), Refused(first.attempt, core.BEHIND)))
    router.step(at(0), Refused(second.attempt, core.BEHIND))
    effects = router.step(at(50 * MS), TimerFired())
    assert Fail(1, second.attempt, core.BEHIND) in effects
    router = Router(ShardMap(1, ()))
    router.step(at(0), Ask(1, ASK.wanted, 50 * MS))
    assert Fail(1, 0, core.DEAD) in router.step(at(50 * MS), TimerFired())


def test_what_all_would_refuse_is_final() -> None:
    router = two()
    (first,) = sends(router.step(at(0), ASK))
    assert Fail(1, first.attempt, core.FINAL) in router.step(
        at(0), Refused(first.attempt, core.FINAL)
    )
    (first,) = sends(router.step(at(0), ASK))
    (second,) = sends(router.step(at(0), Refused(first.attempt, core.TOO_OLD)))
    effects = router.step(at(0), Refused(second.attempt, core.TOO_OLD))
    assert Fail(1, second.attempt, core.TOO_OLD) in effects


def test_a_replica_that_failed_is_asked_last_for_a_while() -> None:
    router = two()
    (first,) = sends(router.step(at(0), ASK))
    (second,) = sends(router.step(at(0), Refused(first.attempt, core.DEAD)))
    router.step(at(0), Answered(second.attempt, ASK.wanted, False, 0, 0))
    assert sends(router.step(at(MS), ASK))[0].replica == 2
    router.step(at(MS), Cancel(1))
    assert sends(router.step(at(2 * S), ASK))[0].replica == 1
