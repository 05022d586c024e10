"""Writers' rate without and during an index build, and how fast the build is beside stock's.

    python bench/index_build.py [--rows 200000] [--clients 4] [--rounds 3] [--unique] [--json]

Both servers on this machine, in turn; 4 clients update random rows all the time (pgbench). Exit
status 1 when the median of writers' rate during the build, over their rate right before and
after it, falls below one half.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import psycopg
import writers

from meridian.bench import servers

SCRIPT = r"""\set id random(1, {rows})
UPDATE built SET a = a + 1, v = :id WHERE id = :id;
"""
CREATE = "CREATE TABLE built (id int PRIMARY KEY, a int, u bigint, v int, t text)"
SELECT = "i, i % 1000, i * 7, 0, md5(i::text)"


def measure(dsn: str, script: Path, options: argparse.Namespace) -> writers.Values:
    """One build under writers, one without."""
    unique, column = ("UNIQUE", "u") if options.unique else ("", "a")
    sql = f"CREATE {unique} INDEX CONCURRENTLY built_i ON built ({column})".encode()
    with psycopg.connect(dsn, autocommit=True) as session:

        def build() -> None:
            session.execute(sql)

        began = time.monotonic()
        build()
        alone_s = time.monotonic() - began
        session.execute("DROP INDEX built_i")
        found = writers.beside(dsn, script, options.clients, build)
        session.execute("DROP INDEX built_i")
    rates = {"alone_rows_s": options.rows / alone_s, "busy_rows_s": options.rows / found["job_s"]}
    return {**rates, **found}


def main() -> None:
    """Command line."""
    parser = writers.options(__doc__, 200_000)
    parser.add_argument("--unique", action="store_true")
    options = parser.parse_args()
    with (
        servers.scratch() as directory,
        servers.ours(directory / "ours") as ours,
        servers.stock(directory) as stock,
    ):
        script = directory / "update.sql"
        script.write_text(SCRIPT.format(rows=options.rows))
        dsns = {"meridian": ours, "stock": stock}
        for dsn in dsns.values():
            writers.fill(dsn, CREATE, SELECT, options.rows)
        runs = {name: partial(measure, dsn, script, options) for name, dsn in dsns.items()}
        report = writers.compare(options.rounds, runs, as_json=options.json)
    sys.exit(0 if report["meridian"]["ratio"] >= writers.RATIO_MIN else 1)


if __name__ == "__main__":
    main()
