"""Coded journals in the world: what one of three streams may do without anybody noticing."""

from __future__ import annotations

import msgspec
import pytest

from meridian.sim.plans import KINDS
from meridian.sim.run import Run
from meridian.sim.stream import Stream
from meridian.sim.swarm import Swarm, choose
from meridian.sim.world import MS, START, S


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
        false_bounds=False, clock_error=0,
        safety_ns=10_500 * MS, sharded=False, controllers=0, gates=0.0,
        hot=0.0, keys=20, window_keys=1 << 20, work_keys=1 << 16,
        delay=(50_000, MS), sync=(MS, 3 * MS),
        partitioned=False, weights=weights, **zero, **chances,
    )  # fmt: skip


STALL_NS = 9 * S
"""The longest election that was measured."""


class Story:
    """A run in which some streams stall for 9 s, while the clients go on."""

    def __init__(self, seed: int, stalled: list[str], *, coded: bool = True) -> None:
        one = Run(seed, swarm=quiet(seed, coded=coded))
        world = one.world
        self.lag_s = 0.0
        """The farthest that the replica's completeness lay behind the clock meanwhile."""

        def stall() -> None:
            for name in stalled:
                stream = world.nodes[name]
                assert isinstance(stream, Stream)
                stream.model.elect(world.now, (STALL_NS, STALL_NS))
            look()

        def look() -> None:
            self.lag_s = max(self.lag_s, (world.now - one.replicas[0].complete) / 1e9)
            if world.now < began + STALL_NS:
                world.at(world.now + 20 * MS, look)

        began = START + 500 * MS
        world.at(began, stall)
        self.result = one.go()
        assert self.result.failure == ""
        # Then everything is healed, and owners restart.
        healed = START + one.swarm.safety_ns
        log = [txn for client in one.clients for txn in client.log if txn.begin < healed]
        took = (min(txn.end or healed, healed) - txn.begin for txn in log)
        self.longest_s = max(took) / 1e9
        self.commits = self.result.counts["commits"]


@pytest.mark.parametrize("index", range(3))
def test_reads_and_commits_survive_one_stream_of_three_that_stalls_for_nine_seconds(
    index: int,
) -> None:
    healthy = Story(index, [])
    story = Story(index, [f"l0.{index}"])
    assert story.lag_s < 0.5 and story.longest_s < healthy.longest_s + 0.5
    assert story.commits > healthy.commits * 0.8


def test_two_stalled_streams_stall_everybody_and_lose_nothing() -> None:
    story = Story(1, ["l0.0", "l0.2"])
    assert story.longest_s > 8 and story.lag_s > 8


def test_a_journal_of_one_stream_stalls_with_it() -> None:
    story = Story(1, ["l0"], coded=False)
    assert story.longest_s > 8 and story.lag_s > 8
