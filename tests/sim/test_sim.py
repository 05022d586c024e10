"""The world itself: seeds pass, runs repeat exactly, failures can be replayed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meridian.sim import cli
from meridian.sim.mutants import MUTANTS
from meridian.sim.run import run_seed
from meridian.sim.swarm import choose

SEEDS = 300
REPEATED = 40
PROCESSES = 2
SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.timeout(1200)
def test_seeds_pass() -> None:
    """One process per core, as `make nightly` does with 20,000."""
    each = SEEDS // PROCESSES
    command = [sys.executable, "-m", "meridian", "sim", "run", "--once", "--seeds", str(each)]
    running = [
        subprocess.Popen(
            [*command, "--start", str(10_000 + number * each)],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    told = [process.communicate()[0] for process in running]
    for text in told:
        print(text)
        assert text.splitlines()[-1] == f"{each} seeds, 0 failures", text
        for what in ("over several owners", "faults: ", "events, ", "crash "):
            assert what in text


def test_seeds_repeat_exactly() -> None:
    out, progress = io.StringIO(), io.StringIO()
    failures = cli.run(REPEATED, 1000, out=out, progress=progress)
    assert failures == 0, out.getvalue()
    assert out.getvalue().splitlines()[-1] == f"{REPEATED} seeds, 0 failures"


def test_runs_do_not_depend_on_the_hash_seed() -> None:
    code = "from meridian.sim.run import run_seed; print([run_seed(s).digest for s in (1, 2, 3)])"
    digests = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert digests[0] == digests[1]


def test_another_seed_is_another_run() -> None:
    assert run_seed(1).digest != run_seed(2).digest
    assert choose(1) != choose(2)


def test_a_failing_seed_says_how_to_replay_it_and_does() -> None:
    mutant = next(m for m in MUTANTS if m.name == "checks conflicts with an upper bound")
    out = io.StringIO()
    failures = cli.run(20, 0, parts=mutant.parts, out=out, progress=io.StringIO())
    assert failures > 0
    lines = out.getvalue().splitlines()
    replay = next(line for line in lines if line.startswith("replay: "))
    seed = int(replay.split("--start ")[1].split()[0])
    again = io.StringIO()
    assert cli.run(1, seed, parts=mutant.parts, out=again, progress=io.StringIO()) == 1
    first = next(line for line in lines if line.startswith(f"seed {seed}: "))
    assert first in again.getvalue().splitlines()


def test_faults_of_every_kind_happen() -> None:
    counts: dict[str, int] = {}
    for seed in range(40):
        for name, count in run_seed(seed).counts.items():
            counts[name] = counts.get(name, 0) + count
    for name in (
        "commits",
        "aborts",
        "false aborts",
        "unknown",
        "crash",
        "torn",
        "sync failed",
        "pause",
        "dropped",
        "expired",
        "moved",
        "cross committed",
        "cross aborted",
        "retry held",
        "retry place",
        "retry epoch",
        "crash x holding",
        "crash x leading",
        "crash x appending",
    ):
        assert counts.get(name, 0) > 0, name
