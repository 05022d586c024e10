"""Writers' rate and p99 without and during a rewrite of their table, with a job and in one commit.

    python bench/rewrite.py [--rows 100000] [--clients 4] [--rounds 3] [--json]

Clients update random rows all the time (pgbench) while a column becomes a bigint. Stock PostgreSQL
and the rewrite in one commit keep them out for as long as they take. Exit status 1 when the median
of writers' rate during the job, over their rate right before and after it, falls below one half.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psycopg

from meridian.bench import servers
from meridian.instance import binaries

RATIO_MIN = 0.5
QUIET_S = 4.0
"""Measured before the rewrite, and again after it."""
COMMIT = re.compile(r"(\d+) \d+ (\d+) \d+ (\d+) (\d+)")
"""A line of pgbench's log: client, number, microseconds taken, script, end (s, us)."""
SCRIPT = r"""\set id random(1, {rows})
UPDATE written SET v = v + 1 WHERE id = :id;
"""


class Writers:
    """pgbench in the background; `commits` holds (end, milliseconds taken), wall clock."""

    def __init__(self, dsn: str, script: Path, clients: int, log: Path) -> None:
        self.log = log
        program = binaries.find().program("pgbench")
        command = [str(program), "-n", "-M", "prepared", "-T", "3600", "-f", str(script)]
        command += ["-c", str(clients), "-j", "1", "--max-tries=100", "-l", f"--log-prefix={log}"]
        self.process = subprocess.Popen(
            [*command, dsn], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self) -> list[tuple[float, float]]:
        self.process.terminate()
        self.process.wait()
        commits = []
        for path in self.log.parent.glob(f"{self.log.name}.*"):
            for found in COMMIT.finditer(path.read_text()):
                taken_us, end_s, end_us = (int(found.group(n)) for n in (2, 3, 4))
                commits.append((end_s + end_us / 1e6, taken_us / 1000))
            path.unlink()
        return sorted(commits)


def between(commits: list[tuple[float, float]], since: float, until: float) -> dict[str, float]:
    """Commits per second, and the 99th percentile of what they took."""
    taken = sorted(ms for end, ms in commits if since <= end < until)
    p99 = taken[int(len(taken) * 0.99)] if taken else 0.0
    return {"tps": len(taken) / (until - since), "p99_ms": p99}


def fill(dsn: str, rows: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("CREATE TABLE written (id int PRIMARY KEY, a int, v int, t text)")
        for first in range(1, rows + 1, 100_000):
            last = min(rows, first + 99_999)
            session.execute(
                "INSERT INTO written SELECT i, i % 1000, 0, md5(i::text)"
                f" FROM generate_series({first}, {last}) i".encode()
            )
        session.execute("CREATE INDEX ON written (a)")
        session.execute("ANALYZE written")


def measure(dsn: str, setting: str, script: Path, options: argparse.Namespace) -> dict[str, float]:
    """There and back: int to bigint to int, once each under writers."""
    with psycopg.connect(dsn, autocommit=True) as session:
        if setting:
            session.execute(setting.encode())
        writers = Writers(dsn, script, options.clients, script.parent / "log")
        try:
            time.sleep(QUIET_S + 2)
            began = time.time()
            alter(session, "bigint")
            ended = time.time()
            time.sleep(QUIET_S)
        finally:
            commits = writers.stop()
        alter(session, "int")
    before = between(commits, began - QUIET_S, began)
    during = between(commits, began, ended)
    after = between(commits, ended, ended + QUIET_S)
    quiet = statistics.mean((before["tps"], after["tps"]))
    return {
        "rewrite_s": ended - began,
        "rows_s": options.rows / (ended - began),
        "writers_quiet_tps": quiet,
        "writers_during_tps": during["tps"],
        "quiet_p99_ms": before["p99_ms"],
        "during_p99_ms": during["p99_ms"],
        "ratio": during["tps"] / quiet,
    }


def alter(session: psycopg.Connection, kind: str) -> None:
    for _ in range(20):
        try:
            session.execute(f"ALTER TABLE written ALTER v TYPE {kind}".encode())
            return
        except psycopg.errors.SerializationFailure:
            continue
    raise AssertionError("the rewrite lost 20 times")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"job": [], "one commit": [], "stock": []}
    with (
        servers.scratch() as directory,
        servers.ours(directory / "ours") as ours,
        servers.stock(directory) as stock,
    ):
        script = directory / "update.sql"
        script.write_text(SCRIPT.format(rows=options.rows))
        runs = {
            "job": (ours, "SET meridian.rewrite_online_rows = 0"),
            "one commit": (ours, "SET meridian.rewrite_online_rows = 2000000000"),
            "stock": (stock, ""),
        }
        for dsn in (ours, stock):
            fill(dsn, options.rows)
        for _ in range(options.rounds):
            for name, (dsn, setting) in runs.items():
                found[name].append(measure(dsn, setting, script, options))
                print(name, {k: round(v, 2) for k, v in found[name][-1].items()}, file=sys.stderr)
    report = {
        name: {key: round(statistics.median(r[key] for r in rounds), 3) for key in rounds[0]}
        for name, rounds in found.items()
    }
    if options.json:
        print(json.dumps(report))
    else:
        for name, values in report.items():
            print(f"{name}:", *(f"{key}={value:,}" for key, value in values.items()))
    sys.exit(0 if report["job"]["ratio"] >= RATIO_MIN else 1)


if __name__ == "__main__":
    main()
