"""Meridian answers as heap tables do: same SQLSTATE, same multiset, same order under ORDER BY.

One seed: `MERIDIAN_SEED=17 pytest tests/differential -k one_seed`.
"""

from __future__ import annotations

import os

import pytest

from tests.differential.programs import Program
from tests.differential.runner import differences, run_program

PROGRAMS = 100
PROGRAMS_NIGHTLY = 2_000
BATCH = 20


def _check(cluster_dsn: str, stock_dsn: str, seed: int) -> None:
    program = Program(seed)
    ours = run_program(cluster_dsn, program, f"p{seed}")
    stock = run_program(stock_dsn, program, f"p{seed}")
    story = differences(program, ours, stock)
    assert story is None, f"seed {seed} differs after:\n{story}"


@pytest.mark.parametrize("start", range(0, PROGRAMS, BATCH))
def test_programs(cluster, stock, start: int) -> None:
    for seed in range(start, start + BATCH):
        _check(cluster.dsn, stock.dsn, seed)


@pytest.mark.nightly
@pytest.mark.parametrize("start", range(PROGRAMS, PROGRAMS_NIGHTLY, BATCH))
def test_programs_nightly(cluster, stock, start: int) -> None:
    for seed in range(start, start + BATCH):
        _check(cluster.dsn, stock.dsn, seed)


@pytest.mark.skipif("MERIDIAN_SEED" not in os.environ, reason="replays one seed on request")
def test_one_seed(cluster, stock) -> None:
    _check(cluster.dsn, stock.dsn, int(os.environ["MERIDIAN_SEED"]))


def test_comparison_can_fail() -> None:
    """A wrong answer is seen: dropping one row or changing one SQLSTATE is a difference."""
    from tests.differential.runner import Outcome

    program = Program(1)
    right = [Outcome("00000", "SELECT 1", ((b"1",),))] * len(program.statements)
    fewer = [*right[:-1], Outcome("00000", "SELECT 0", ())]
    other = [*right[:-1], Outcome("23505", "", ())]
    assert differences(program, right, right) is None
    assert differences(program, fewer, right) and differences(program, other, right)
