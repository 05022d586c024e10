"""Stock pgbench unchanged: initialise, TPC-B with retries, and the sums it promises."""

from __future__ import annotations

import os
import re
import subprocess

import psycopg
import pytest

from meridian.instance import binaries

CLIENTS = 8
SUMS = """
SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
       (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(delta) FROM pgbench_history),
       (SELECT count(*) FROM pgbench_history), (SELECT count(*) FROM pgbench_accounts)
"""


def pgbench(dsn: str, *arguments: str) -> str:
    program = str(binaries.find().program("pgbench"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    done = subprocess.run(
        [program, *arguments, dsn],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(dsn: str, scale: int, seconds: int) -> int:
    """TPC-B; the number of transactions, after every sum was compared."""
    pgbench(dsn, "-i", "-q", "-s", str(scale))
    # All clients write one row of branches, and chance says who wins: seen 100 losses in a row.
    output = pgbench(dsn, "-c", str(CLIENTS), "-j", "2", "-T", str(seconds), "--max-tries=1000")
    processed = int(re.findall(r"transactions actually processed: (\d+)", output)[0])
    assert re.findall(r"number of failed transactions: (\d+)", output) == ["0"], output
    with psycopg.connect(dsn) as connection:
        row = connection.execute(SUMS).fetchone()
        connection.execute(
            "DROP TABLE pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history"
        )
    assert row is not None
    assert row[0] == row[1] == row[2] == row[3]
    assert row[4] == processed
    assert row[5] == scale * 100_000
    return processed


def test_tpcb(cluster) -> None:
    assert run(cluster.dsn, scale=1, seconds=5) > 50


@pytest.mark.nightly
def test_tpcb_nightly(cluster) -> None:
    assert run(cluster.dsn, scale=5, seconds=20) > 500
