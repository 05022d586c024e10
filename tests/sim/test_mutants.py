"""Every broken rule is found; the true cores pass the same seeds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from meridian.sim import cli
from meridian.sim.messages import Parts
from meridian.sim.mutants import MUTANTS, Mutant, find
from meridian.sim.run import run_seed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulation.md"


def failure(seed: int, parts: Parts) -> str:
    return run_seed(seed, parts).failure


def rows() -> list[tuple[str, str, int, int]]:
    """(name, rule, found after, within) of the table in the docs."""
    begin, end = (PAGE.read_text().index(marker) for marker in cli.MARKERS)
    lines = PAGE.read_text()[begin:end].splitlines()[3:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(name, rule, int(after), int(within)) for name, rule, after, within in cells]


RECORDED = {name: after for name, _, after, _ in rows()}


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    expected = [(mutant.name, mutant.rule, mutant.seeds) for mutant in MUTANTS]
    assert [(name, rule, within) for name, rule, _, within in rows()] == expected, (
        "run: meridian sim mutants --write docs/simulation.md"
    )
    assert all(0 < after <= within for _, _, after, within in rows())


def test_the_command_runs_those_that_are_named() -> None:
    done = CliRunner().invoke(cli.sim, ["mutants", "decides copies", "uses a tau"])
    assert done.exit_code == 0, done.output
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()[2:]] == [
        "| uses a tau twice",
        "| frame: decides copies",
    ]
    for wrong in (["uses a tau", "nonsense"], ["uses a tau", "--write", str(PAGE)]):
        assert CliRunner().invoke(cli.sim, ["mutants", *wrong]).exit_code == 2


def test_every_rule_of_sections_4_to_7_has_a_mutant_or_a_reason() -> None:
    """The rules are numbered in the design; those without a mutant are in the docs with theirs."""
    have = {rule.strip() for mutant in MUTANTS for rule in mutant.rule.split(",")}
    page = PAGE.read_text()
    excused = set(re.findall(r"^\| (\d\.\d) \|", page, re.M))
    rules = {f"4.{n}" for n in range(1, 8)} | {f"5.{n}" for n in range(1, 10)}
    rules |= {f"6.{n}" for n in range(1, 9)}
    assert rules - have - excused == set()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_found(mutant: Mutant) -> None:
    """By the seed of the table; by another one within the bound if the world has changed since."""
    seed = RECORDED.get(mutant.name, 1) - 1
    if not failure(seed, mutant.parts):
        after = find(mutant, failure)
        assert after is not None, f"not found within {mutant.seeds} seeds"
        seed = after - 1
    true = Parts(swarm=mutant.parts.swarm)
    assert run_seed(seed, true).failure == "", "the seed fails without the mutant too"
