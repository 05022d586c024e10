"""Control cores in the same world as the data plane (requirement F3)."""

from __future__ import annotations

from collections import Counter

from meridian.sim import cli
from meridian.sim.run import run_seed
from meridian.sim.swarm import choose

SEEDS = (18, 69, 81, 92, 116)
"""Files and streams, hosts that never come back, two control cores, pauses of 30 s."""


def test_storage_and_owners_are_kept_in_shape_while_things_fail() -> None:
    totals: Counter[str] = Counter()
    for seed in SEEDS:
        assert choose(seed).controllers
        result = run_seed(seed)
        assert result.failure == "", (seed, result.failure)
        totals.update(result.counts)
    told = cli._steered(dict(totals))
    assert told.startswith("control: split ")
    for kind in ("split", "merge", "replace", "move", "take-over"):
        assert totals["steered " + kind] > 0, (kind, told)
    states = {name.split(" x ")[1] for name in totals if " x " in name}
    assert states & {"building", "publishing", "retiring"}


def test_the_story_tells_every_action_with_its_reason() -> None:
    story = run_seed(69, story=True).story
    actions = [line for line in story if line.split(" ")[2] == "action"]
    assert actions
    assert all(line.rstrip("')").split("'")[-1].strip() for line in actions)
    assert any("silent" in line for line in actions)


def test_runs_are_repeatable() -> None:
    assert run_seed(18).digest == run_seed(18).digest
