"""Bit rot in one copy: replicas find it and rebuild it; without the checks it stays."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from meridian.sim import range_checks
from meridian.sim.replica import Replica
from meridian.sim.run import Run, run_seed
from meridian.sim.swarm import choose
from meridian.sim.world import START, S
from meridian.storage import agreement

ROTTING = list(itertools.islice((seed for seed in itertools.count() if choose(seed).rots), 24))


def first_failure(seeds: list[int]) -> str:
    """Of so many seeds, or nothing."""
    return next((failure for seed in seeds if (failure := run_seed(seed).failure)), "")


def test_rot_is_found_and_repaired() -> None:
    results = [run_seed(seed) for seed in ROTTING[:8]]
    assert [one.failure for one in results] == [""] * len(results)
    assert sum(one.counts.get("rot", 0) for one in results) > 5
    assert sum(one.counts.get("verdict", 0) for one in results) > 20


def test_copies_that_never_go_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = agreement.SelfCheck._decide

    def stay(self: agreement.SelfCheck, effects: list[Any]) -> None:
        decide(self, effects)
        effects[:] = [one for one in effects if not isinstance(one, agreement.RemoveSelf)]

    monkeypatch.setattr(agreement.SelfCheck, "_decide", stay)
    assert "does not become complete" in first_failure(ROTTING)


def test_checkpoints_that_nobody_confirmed_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rot in a checkpoint outlives the journal behind it."""

    def checkpoint(self: Replica) -> None:
        if self.alive:
            self._publish(self.store.copy())

    monkeypatch.setattr(Replica, "checkpoint", checkpoint)
    assert first_failure(
        [seed for seed in range(800) if choose(seed).rots and choose(seed).checkpoints]
    )


def test_what_copies_of_ranges_agreed_on_before_the_rot_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Completeness may run ahead of the clock: a tau does not tell when a check was made."""
    monkeypatch.setattr(range_checks, "CHECK_NS", 4 * S)
    mixes = ((seed, choose(seed)) for seed in itertools.count())
    calm = (n for n, one in mixes if one.sharded and one.rots and not one.disturbers)
    run = Run(next(seed for seed in calm if not choose(seed).controllers))
    assert run.fleet is not None
    replicas = run.fleet.living()
    rotten: list[int] = []

    def rot_after_checks() -> None:
        for replica in replicas:
            for part, _ in replica.checks._shards():
                replica.checks._part = part
                replica.checks._verdict(agreement.Agreed(0, START + 100 * S, 2))
        rotten.append(run.world.counts.get("rot", 0))
        for replica in replicas:
            if run.world.counts.get("rot", 0) == rotten[0]:
                replica.rot()

    run.world.at(START + run.swarm.safety_ns - 1, rot_after_checks)
    assert run.go().failure == ""
    assert run.world.counts["rot"] > rotten[0]


def test_checks_begin_once_the_files_of_a_start_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """New files under the bases and the completeness of those before agreed to what they lack."""
    looks: list[str] = []
    orig = range_checks.RangeChecks._look

    def look(checks: range_checks.RangeChecks) -> None:
        mine = checks.replica
        looks.append(mine.name)
        assert [id(lane.store) for lane in mine.lanes] == [id(store) for store in mine.stores]
        orig(checks)

    monkeypatch.setattr(range_checks.RangeChecks, "_look", look)
    assert Run(7819).go().failure == ""
    assert len(looks) > 100


@pytest.mark.parametrize("sharded", [False, True])
def test_what_was_agreed_on_a_checkpoint_counts_for_nothing(sharded: bool) -> None:
    """It is as of when it was taken: what rotted in the file since is not in it."""
    mixes = ((seed, choose(seed)) for seed in itertools.count())
    calm = (n for n, one in mixes if one.rots and one.sharded is sharded and not one.controllers)
    for seed in itertools.islice(calm, 4):
        run = Run(seed)
        assert run.go().failure == ""
        replica: Any = (run.replicas if run.fleet is None else run.fleet.living())[0]
        if isinstance(replica, Replica):
            replica._agreed = 0
            replica.checkpoint()
        else:
            replica.checks.agreed = {}
            replica.snapshot()
        replica.rot()
        end = run.world.now + 10 * S
        assert run.world.run(end, lambda replica=replica: replica.settled(0)), seed  # type: ignore[misc]
        run._check()
