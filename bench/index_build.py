"""Writers' rate without and during an index build, and how fast the build is beside stock's.

    python bench/index_build.py [--rows 200000] [--clients 4] [--rounds 3] [--unique] [--json]

Both servers on this machine, in turn; 4 clients update random rows all the time (pgbench). Exit
status 1 when the median of writers' rate during the build, over their rate right before and
after it, falls below one half.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg

from meridian.bench import servers
from meridian.instance import binaries

RATIO_MIN = 0.5
PROGRESS = re.compile(r"progress: ([0-9.]+) s, ([0-9.]+) tps")
QUIET_S = 4.0
"""Measured before the build, and again after it."""
SCRIPT = r"""\set id random(1, {rows})
UPDATE built SET a = a + 1, v = :id WHERE id = :id;
"""


class Writers:
    """pgbench in the background; `seconds` holds (end, transactions per second)."""

    def __init__(self, dsn: str, script: Path, clients: int) -> None:
        self.seconds: list[tuple[float, float]] = []
        program = binaries.find().program("pgbench")
        command = [str(program), "-n", "-M", "prepared", "-T", "3600", "-P", "1", "-f", str(script)]
        command += ["-c", str(clients), "-j", "1", "--max-tries=100", dsn]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := PROGRESS.search(line):
                self.seconds.append((time.monotonic(), float(found.group(2))))

    def rate(self, since: float, until: float) -> float:
        """Mean of the seconds that lie inside; 0 without any."""
        inside = [tps for end, tps in self.seconds if since <= end - 1 and end <= until]
        return statistics.mean(inside) if inside else 0.0

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.thread.join()


def fill(dsn: str, rows: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("CREATE TABLE built (id int PRIMARY KEY, a int, u bigint, v int, t text)")
        for first in range(1, rows + 1, 100_000):
            last = min(rows, first + 99_999)
            session.execute(
                "INSERT INTO built SELECT i, i % 1000, i * 7, 0, md5(i::text)"
                f" FROM generate_series({first}, {last}) i".encode()
            )
        session.execute("ANALYZE built")


def measure(dsn: str, script: Path, options: argparse.Namespace) -> dict[str, float]:
    """One build under writers, one without."""
    unique, column = ("UNIQUE", "u") if options.unique else ("", "a")
    sql = f"CREATE {unique} INDEX CONCURRENTLY built_i ON built ({column})".encode()
    with psycopg.connect(dsn, autocommit=True) as session:
        began = time.monotonic()
        session.execute(sql)
        alone_s = time.monotonic() - began
        session.execute("DROP INDEX built_i")
        writers = Writers(dsn, script, options.clients)
        try:
            time.sleep(QUIET_S + 2)
            began = time.monotonic()
            session.execute(sql)
            ended = time.monotonic()
            time.sleep(QUIET_S + 1)
        finally:
            writers.stop()
        before = writers.rate(began - QUIET_S - 0.5, began)
        after = writers.rate(ended, ended + QUIET_S + 1)
        during = writers.rate(began, ended)
        session.execute("DROP INDEX built_i")
    quiet = statistics.mean(rate for rate in (before, after) if rate)
    return {
        "alone_rows_s": options.rows / alone_s,
        "busy_rows_s": options.rows / (ended - began),
        "build_s": ended - began,
        "writers_quiet_tps": quiet,
        "writers_during_tps": during,
        "ratio": during / quiet,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unique", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"meridian": [], "stock": []}
    with (
        servers.scratch() as directory,
        servers.ours(directory / "ours") as ours,
        servers.stock(directory) as stock,
    ):
        script = directory / "update.sql"
        script.write_text(SCRIPT.format(rows=options.rows))
        dsns = {"meridian": ours, "stock": stock}
        for dsn in dsns.values():
            fill(dsn, options.rows)
        for _ in range(options.rounds):
            for name, dsn in dsns.items():
                found[name].append(measure(dsn, script, options))
                print(name, {k: round(v, 2) for k, v in found[name][-1].items()}, file=sys.stderr)
    report = {
        name: {key: round(statistics.median(r[key] for r in rounds), 3) for key in rounds[0]}
        for name, rounds in found.items()
    }
    if options.json:
        print(json.dumps(report))
    else:
        for name, values in report.items():
            print(name, *(f"{key}={value:,}" for key, value in values.items()))
    sys.exit(0 if report["meridian"]["ratio"] >= RATIO_MIN else 1)


if __name__ == "__main__":
    main()
