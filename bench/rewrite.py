"""Writers' rate and p99 without and during a rewrite of their table, with a job and in one commit.

    python bench/rewrite.py [--rows 100000] [--clients 4] [--rounds 3] [--json]

Clients update random rows all the time (pgbench) while a column becomes a bigint. Stock PostgreSQL
and the rewrite in one commit keep them out for as long as they take. Exit status 1 when the median
of writers' rate during the job, over their rate right before and after it, falls below one half.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import psycopg
import writers

from meridian.bench import servers

SCRIPT = r"""\set id random(1, {rows})
UPDATE written SET v = v + 1 WHERE id = :id;
"""
CREATE = "CREATE TABLE written (id int PRIMARY KEY, a int, v int, t text)"
SELECT = "i, i % 1000, 0, md5(i::text)"


def measure(dsn: str, setting: str, script: Path, options: argparse.Namespace) -> writers.Values:
    """From int to bigint under writers, and back without them."""
    with psycopg.connect(dsn, autocommit=True) as session:
        if setting:
            session.execute(setting.encode())
        found = writers.beside(dsn, script, options.clients, partial(alter, session, "bigint"))
        alter(session, "int")
    return {"rows_s": options.rows / found["job_s"], **found}


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
    options = writers.options(__doc__, 100_000).parse_args()
    with (
        servers.scratch() as directory,
        servers.ours(directory / "ours") as ours,
        servers.stock(directory) as stock,
    ):
        script = directory / "update.sql"
        script.write_text(SCRIPT.format(rows=options.rows))
        for dsn in (ours, stock):
            writers.fill(dsn, CREATE, SELECT, options.rows)
            with psycopg.connect(dsn, autocommit=True) as session:
                session.execute("CREATE INDEX ON written (a)")
        settings = {
            "job": (ours, "SET meridian.rewrite_online_rows = 0"),
            "one commit": (ours, "SET meridian.rewrite_online_rows = 2000000000"),
            "stock": (stock, ""),
        }
        runs = {
            name: partial(measure, dsn, setting, script, options)
            for name, (dsn, setting) in settings.items()
        }
        report = writers.compare(options.rounds, runs, as_json=options.json)
    sys.exit(0 if report["job"]["ratio"] >= writers.RATIO_MIN else 1)


if __name__ == "__main__":
    main()
