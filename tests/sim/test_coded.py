"""Coded journals in the world: what one of three streams may do without anybody noticing."""

from __future__ import annotations

import msgspec
import pytest

from meridian.sim.plans import KINDS
from meridian.sim.run import SAFETY_NS, Result, Run
from meridian.sim.stream import Stream
from meridian.sim.swarm import Swarm, choose
from meridian.sim.world import MS, START


def quiet(seed: int, *, coded: bool = True) -> Swarm:
    """Nothing fails but what the test does."""
    zero = dict.fromkeys(
        (
            "crashes", "pauses", "cuts", "checkpoints", "takeovers", "elections", "lost_tails",
            "adds", "closes", "clock_steps", "rots", "moves",
        ),
        0,
    )  # fmt: skip
    chances = dict.fromkeys(
        ("drop", "double", "late", "crash_at_append", "dies_sealing", "wide"), 0.0
    )
    chances |= dict.fromkeys(("crash_at_vote", "moves_at_votes"), 0.0)
    weights = tuple(int(kind in ("read", "update", "blind", "large")) for kind in KINDS)
    return msgspec.structs.replace(
        choose(seed), streams=True, coded=coded, colocated=False, owners=1, replicas=1, clients=4,
        false_bounds=False, clock_error=0, delay=(50_000, MS), sync=(MS, 3 * MS),
        partitioned=False, weights=weights, **zero, **chances,
    )  # fmt: skip


def run(seed: int, stalled: list[str], *, coded: bool = True) -> tuple[Result, float]:
    """The result, and the longest that a transaction of the first five seconds took, in s."""
    one = Run(seed, swarm=quiet(seed, coded=coded))

    def stall() -> None:
        for name in stalled:
            stream = one.world.nodes[name]
            assert isinstance(stream, Stream)
            stream.model.elect(one.world.now, (SAFETY_NS, SAFETY_NS))

    one.world.at(START + 500 * MS, stall)
    result = one.go()
    assert result.failure == ""
    # Then everything is healed, and owners restart.
    healed = START + SAFETY_NS
    log = [txn for client in one.clients for txn in client.log if txn.begin < healed]
    return result, max(min(txn.end or healed, healed) - txn.begin for txn in log) / 1e9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("index", range(3))
def test_reads_and_commits_survive_one_stalled_stream(seed: int, index: int) -> None:
    healthy, _ = run(seed, [])
    result, longest_s = run(seed, [f"l0.{index}"])
    assert longest_s < 0.5
    assert result.counts["commits"] > healthy.counts["commits"] * 0.8


def test_two_stalled_streams_stall_everybody_and_lose_nothing() -> None:
    _, longest_s = run(1, ["l0.0", "l0.2"])
    assert longest_s > 2


def test_a_journal_of_one_stream_stalls_with_it() -> None:
    _, longest_s = run(1, ["l0"], coded=False)
    assert longest_s > 2
