"""The benchmark harness: its arithmetic, and one short real comparison."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from meridian.bench import harness


def test_summary_is_the_median_of_the_pairs_ratios() -> None:
    pairs = [(10.0, 100.0), (30.0, 100.0), (40.0, 50.0)]
    found = harness.summary("x", "rows/s", pairs)
    assert found["ratio"] == 0.3 and found["spread"] == [0.1, 0.8]
    assert found["ours"] == 30 and found["stock"] == 100 and found["rounds"] == 3


def test_unknown_name_lists_the_known_ones() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meridian", "bench", "nonsense"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    for name in ("point-read", "update", "load", "scan-agg"):
        assert name in done.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["point-read", "update", "load", "scan-agg"])
def test_comparison(name: str) -> None:
    command = [sys.executable, "-m", "meridian", "bench", name, "--json", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--seconds", "2"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert found["name"] == name and found["ours"] > 0 and found["stock"] > 0
    assert found["spread"][0] <= found["ratio"] <= found["spread"][1]
