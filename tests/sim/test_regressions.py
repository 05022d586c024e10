"""Seeds that failed once, and the small truths behind them (docs/bugs.md tells the stories).

A seed stops meeting its bug when the world changes; what it taught is held by a test of its own.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from meridian.sim.run import Run, run_seed
from meridian.sim.swarm import Swarm, choose
from meridian.sim.world import MS, START, Clock, Node, S, World
from meridian.wire.ranges import Owned, Ranges

SEEDS = {
    344: "clocks stayed outside of their bounds after the healing",
    346: "a confirmed checkpoint carried rot of versions replaced before its tau",
    2407: "an owner wrote on in a stream that lost its tail and was filled up by others",
    5444: "an attempt that a newer one had ended was taken for that one's end, again and again",
    5582: "a voter that was sent keys ahead was not woken to compare them again",
    2529: "a commit whose tau lies seconds ahead was not waited for in the end",
    7390: "an abort rested on a relation's use by a commit that a crash undid",
    32187: "a check for rot as of a tau below the rotten version",
    125: "after the last commit nobody asked for the tau that a check of it looks from",
    10433: "the same where what is applied lies above the newest tau that was asked for",
    522: "credit was never given back for what a file held already",
    400238: "a catalog was asked for as of a tau that no replica held any more, for ever",
    10892: "splits that were still to be done took longer than the time that every seed had",
    3139: "a doubled request was answered otherwise after a split, and the second answer was kept",
    3179: "a replaced copy went with what it held beyond its shard, which nobody else served",
    13044: "keys sent ahead below a voter's floor were asked for again and again",
    4461: "an owner that a late message fenced was not back when its ranges were looked at",
    3855: "a doubled answer of a replica without the catalog led to two questions, and so on",
    4863: "a fenced owner with nothing to write repeated a promise that nobody believed",
    10723: "the watch over orders held a replica to what it had before it shrank and crashed",
    12171: "a SEAL sent again behind adopted records of which some had not arrived was void",
    16175: "a check for rot ahead of the clock was taken for one after the rot",
    15967: "a check of a checkpoint from before the rot was taken for one of the file",
    10783: "the end read a present below the base of a copy, whose snapshot was ahead of it",
    6748: "the end asked who serves as of a tau below the base of the only copy",
    7819: "a copy with a base ahead of the clock was asked for digests below it only",
    10242: "an order meant to be too late was not, by a clock whose bounds were false",
    14132: "records read again were reported as writes: splits and merges took turns for ever",
}


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_that_failed_pass(seed: int) -> None:
    assert run_seed(seed).failure == "", SEEDS[seed]


def clocks(error: int, *, false: bool) -> tuple[World, Clock]:
    """A world whose clocks have this error and may leave it."""
    seed = next(n for n in range(500) if choose(n).false_bounds is false)
    kept: Swarm = choose(seed)
    world = World(seed, kept)
    return world, Clock(world, error, world.random("clock/test"))


def test_a_clock_that_steps_back_goes_on_at_half_the_rate() -> None:
    world, clock = clocks(50 * MS, false=False)
    for _ in range(200):
        before = clock.now()
        clock.step()
        assert clock.now() == before or clock.now().latest > before.latest
        world.now += 10 * MS
        after = clock.now()
        assert after.earliest >= before.earliest + 5 * MS
        assert after.latest >= before.latest + 5 * MS
        assert after.earliest <= world.now <= after.latest


def test_bounds_hold_again_after_the_healing() -> None:
    world, clock = clocks(50 * MS, false=True)
    for _ in range(30):
        clock.step()
        clock.now()
        world.now += 10 * MS
    clock.heal()
    world.now += 5 * S
    assert clock.now().earliest <= world.now <= clock.now().latest


def test_healing_reaches_every_node() -> None:
    world, _ = clocks(0, false=True)
    nodes = [Node(world, f"n{number}") for number in range(20)]
    for node in nodes:
        node.clock.step()
    world.heal()
    world.now = START + 10 * S
    for node in nodes:
        now = node.clock.now()
        assert now.earliest <= world.now <= now.latest


def test_a_copy_that_begins_ahead_of_the_clock_serves_its_shard() -> None:
    """Seed 6748: its snapshot came from an owner that assigned taus seconds ahead."""
    fleet = Run(6748).fleet
    assert fleet is not None and fleet.world.swarm.copies == 1
    replicas = fleet.living()
    for replica in replicas:
        replica.alive = True
        replica.ranges = Ranges([Owned(*replica.part, START)])
        replica.lanes = [SimpleNamespace(complete=START + 9 * S)]
    assert not fleet.uncovered(START + S)
    one, *_ = replicas
    for base, complete, missing in (
        (START + 8 * S, START + 9 * S, []),
        (START + 8 * S, START + 7 * S, [one.part]),  # it has not what it begins with
        (START, START + MS, [one.part]),  # it is behind
    ):
        one.ranges = Ranges([Owned(*one.part, base)])
        one.lanes = [SimpleNamespace(complete=complete)]
        assert fleet.uncovered(START + S) == missing
    one.lanes = [SimpleNamespace(complete=START + 9 * S)]
    one.ranges = Ranges([Owned(one.part.lo, one.part.lo + b"\0", START)])
    assert fleet.uncovered(START + S) == [one.part]
