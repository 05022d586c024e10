"""Bit rot in one copy: replicas find it and rebuild it; without the checks it stays."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from meridian.sim.replica import Replica
from meridian.sim.run import run_seed
from meridian.sim.swarm import choose
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
