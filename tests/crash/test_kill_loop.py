"""kill -9 of any process, or of all, under load: nothing acknowledged is lost, nothing partial."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from tests.catalog.instances import differences, root, settle
from tests.crash import schema_changes
from tests.crash.ledger import Client, check, set_up
from tests.crash.processes import Embedded
from tests.crash.schema_changes import SchemaClient

CLIENTS = 4
ROLES = ["everything", "data-plane", "postmaster", "backend", "supervisor"]
ROLES_OF_TWO = [
    "everything",
    "postmaster",
    "data-plane",
    "other postmaster",
    "backend",
    "supervisor",
]


def _round(
    embedded: Embedded, clients: list[Client], roles: list[str], number: int, rng: random.Random
) -> int:
    time.sleep(rng.uniform(0.8, 2.0))
    embedded.kill(roles[number % len(roles)])
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, 0.6))
        if embedded.process is not None and embedded.process.poll() is None:
            embedded.kill(rng.choice(roles))
    embedded.recover("account")
    return sum(len(client.acknowledged) for client in clients)


def _loop(tmp_path: Path, rounds: int, seed: int, hosts: int = 1) -> None:
    rng = random.Random(seed)
    embedded = Embedded(tmp_path / "data", "--query-hosts", str(hosts))
    embedded.start()
    set_up(embedded.dsn)
    stopping = threading.Event()
    clients = [Client(n, lambda n=n: embedded.dsns[n % hosts], stopping) for n in range(CLIENTS)]
    schema = SchemaClient(lambda: embedded.dsns, stopping, seed)
    threads: list[threading.Thread] = [*clients, *([schema] if hosts > 1 else [])]
    for thread in threads:
        thread.start()
    roles = ROLES if hosts == 1 else ROLES_OF_TWO
    try:
        before = 0
        for number in range(rounds):
            acknowledged = _round(embedded, clients, roles, number, rng)
            assert acknowledged > before, "no commit got through between two kills"
            before = acknowledged
            print(
                f"round {number}: killed {roles[number % len(roles)]}, {acknowledged} commits,"
                f" {schema.done} schema changes, {schema.refused} refused",
                flush=True,
            )
        time.sleep(1)
    finally:
        stopping.set()
        for thread in threads:
            thread.join(timeout=30)
    embedded.recover("account")
    for dsn in embedded.dsns:
        check(dsn, clients)
    if hosts > 1:
        assert schema.done > rounds
        schema_changes.check(embedded.dsns, schema)
        with root(embedded, 1) as one, root(embedded, 2) as two:
            settle((one, two))
            assert differences(one, two) == {}
    verify = embedded.run_cli("verify")
    assert verify.returncode == 0, verify.stdout + verify.stderr
    assert embedded.stop() < 5


def test_kill_loop(tmp_path: Path) -> None:
    _loop(tmp_path, rounds=3, seed=1)


def test_kill_loop_of_two_instances(tmp_path: Path) -> None:
    _loop(tmp_path, rounds=4, seed=2, hosts=2)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
def test_kill_loop_nightly(tmp_path: Path, seed: int) -> None:
    _loop(tmp_path, rounds=10, seed=100 + seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
def test_kill_loop_of_two_instances_nightly(tmp_path: Path, seed: int) -> None:
    _loop(tmp_path, rounds=10, seed=200 + seed, hosts=2)
