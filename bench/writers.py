"""Writers beside a job: a table, pgbench updating random rows of it, and what the job costs them.

Not a bench of its own: `index_build.py` and `rewrite.py` measure with it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from meridian.instance import binaries

Values = dict[str, float]
Report = dict[str, Values]

RATIO_MIN = 0.5
"""Of writers' rate during a job, over their rate right before and after it."""
QUIET_S = 4.0
"""Measured before the job, and again after it."""
FILL_ROWS = 100_000
"""In one transaction."""
COMMIT = re.compile(r"(\d+) \d+ (\d+) \d+ (\d+) (\d+)")
"""A line of pgbench's log: client, number, microseconds taken, script, end (s, us)."""


class Writers:
    """pgbench in the background."""

    def __init__(self, dsn: str, script: Path, clients: int) -> None:
        self.log = script.parent / "log"
        program = binaries.find().program("pgbench")
        command = [str(program), "-n", "-M", "prepared", "-T", "3600", "-f", str(script)]
        command += ["-c", str(clients), "-j", "1", "--max-tries=100"]
        command += ["-l", f"--log-prefix={self.log}", dsn]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self) -> list[tuple[float, float]]:
        """All commits: (end, milliseconds taken), wall clock."""
        self.process.terminate()
        self.process.wait()
        commits = []
        for path in self.log.parent.glob(f"{self.log.name}.*"):
            for found in COMMIT.finditer(path.read_text()):
                taken_us, end_s, end_us = (int(found.group(n)) for n in (2, 3, 4))
                commits.append((end_s + end_us / 1e6, taken_us / 1000))
            path.unlink()
        return sorted(commits)


def between(commits: list[tuple[float, float]], since: float, until: float) -> Values:
    """Commits per second, and the 99th percentile of what they took."""
    taken = sorted(ms for end, ms in commits if since <= end < until)
    p99 = taken[int(len(taken) * 0.99)] if taken else 0.0
    return {"tps": len(taken) / (until - since), "p99_ms": p99}


def beside(dsn: str, script: Path, clients: int, job: Callable[[], None]) -> Values:
    """How long the job took under writers, and what became of them."""
    writers = Writers(dsn, script, clients)
    try:
        time.sleep(QUIET_S + 2)
        began = time.time()
        job()
        ended = time.time()
        time.sleep(QUIET_S)
    finally:
        commits = writers.stop()
    before = between(commits, began - QUIET_S, began)
    during = between(commits, began, ended)
    after = between(commits, ended, ended + QUIET_S)
    quiet = statistics.mean((before["tps"], after["tps"]))
    return {
        "job_s": ended - began,
        "writers_quiet_tps": quiet,
        "writers_during_tps": during["tps"],
        "quiet_p99_ms": before["p99_ms"],
        "during_p99_ms": during["p99_ms"],
        "ratio": during["tps"] / quiet,
    }


def fill(dsn: str, create: str, select: str, rows: int) -> None:
    """Makes a table and fills it: `select` says what row number `i` is."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(create.encode())
        table = create.split()[2]
        for first in range(1, rows + 1, FILL_ROWS):
            last = min(rows, first + FILL_ROWS - 1)
            numbers = f"generate_series({first}, {last}) i"
            session.execute(f"INSERT INTO {table} SELECT {select} FROM {numbers}".encode())
        session.execute(f"ANALYZE {table}".encode())


def options(description: str, rows: int) -> argparse.ArgumentParser:
    """The command line that both have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser


def compare(rounds: int, runs: dict[str, Callable[[], Values]], *, as_json: bool) -> Report:
    """Runs each in turn, some rounds; prints and returns the medians."""
    found: dict[str, list[Values]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
            print(name, {k: round(v, 2) for k, v in found[name][-1].items()}, file=sys.stderr)
    report = {
        name: {key: round(statistics.median(one[key] for one in some), 3) for key in some[0]}
        for name, some in found.items()
    }
    if as_json:
        print(json.dumps(report))
    else:
        for name, values in report.items():
            print(f"{name}:", *(f"{key}={value:,}" for key, value in values.items()))
    return report
