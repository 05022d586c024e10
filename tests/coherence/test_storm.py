"""Schema changes under load over two instances: no wrong result, no lost write, few 40001."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.coherence.storm import Plan, Storm
from tests.crash.processes import Embedded

INSTANCES = int(os.environ.get("MERIDIAN_STORM_INSTANCES", "2"))
ROLES = ["data-plane", "postmaster", "backend", "postmaster", "everything"]


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Embedded]:
    running = Embedded(tmp_path / "data", "--query-hosts", str(INSTANCES))
    running.start()
    yield running
    if running.process is not None and running.process.poll() is None:
        running.stop()


def reckon(storm: Storm, embedded: Embedded) -> None:
    print("\n" + storm.report(), flush=True)
    for dsn in embedded.dsns:
        assert storm.differences(dsn) == []
    verify = embedded.run_cli("verify")
    print("  verify:", verify.stdout.strip().splitlines()[-1], flush=True)
    assert verify.returncode == 0, verify.stdout + verify.stderr
    assert storm.ddl.done


def calm_storm(embedded: Embedded, plan: Plan) -> Storm:
    storm = Storm(lambda: embedded.dsns, plan)
    storm.run()
    reckon(storm, embedded)
    return storm


def test_storm(embedded: Embedded) -> None:
    storm = calm_storm(embedded, Plan(before_s=3, during_s=15, after_s=3, interval_s=0.5))
    with psycopg.connect(embedded.dsn, autocommit=True) as session:
        for tampering in TAMPERING:
            session.execute(tampering.encode())
            assert storm.differences(embedded.dsn), f"not noticed: {tampering}"


TAMPERING = [
    "UPDATE account SET balance = balance + 1 WHERE id = 1",
    "UPDATE account SET balance = balance - 1 WHERE id = 1;"
    "DELETE FROM child WHERE id = (SELECT min(id) FROM child)",
    "DELETE FROM ledger WHERE (writer, seq) = (SELECT writer, min(seq) FROM ledger GROUP BY 1"
    " LIMIT 1)",
    "INSERT INTO ledger VALUES (0, 999999, 'never')",
]
"""The reckoning must be able to fail."""


@pytest.mark.nightly
def test_storm_of_a_minute(embedded: Embedded) -> None:
    storm = calm_storm(embedded, Plan(before_s=15, during_s=60, after_s=15, interval_s=2))
    before, during, after = storm.rates()
    assert during > before / 4 and after > before / 2


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
def test_storm_with_kills(embedded: Embedded, seed: int) -> None:
    """kill -9 of any process, or of all, with DDL under way."""
    rng = random.Random(seed)
    storm = Storm(lambda: embedded.dsns, Plan(3, 60, 5, 1), kills=True)

    def kill(seconds: float) -> None:
        end = time.monotonic() + seconds
        for role in ROLES * 10:
            time.sleep(rng.uniform(2, 6))
            if time.monotonic() > end:
                break
            print(f"kill -9 {role}", flush=True)
            embedded.kill(role)
            embedded.recover("ledger")

    storm.run(kill)
    embedded.recover("ledger")
    reckon(storm, embedded)
