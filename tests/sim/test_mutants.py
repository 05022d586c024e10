"""Every broken rule is found within its number of seeds; the true cores pass the same seeds."""

from __future__ import annotations

import pytest

from meridian.sim.messages import Parts
from meridian.sim.mutants import MUTANTS, Mutant, find
from meridian.sim.run import run_seed


def failure(seed: int, parts: Parts) -> str:
    return run_seed(seed, parts).failure


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_found(mutant: Mutant) -> None:
    after = find(mutant, failure)
    assert after is not None, f"not found within {mutant.seeds} seeds"
    true = Parts(swarm=mutant.parts.swarm)
    assert run_seed(after - 1, true).failure == "", "the seed fails without the mutant too"
