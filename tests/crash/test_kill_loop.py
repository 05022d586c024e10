"""kill -9 of any process, or of all, under load: nothing acknowledged is lost, nothing partial."""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.crash.ledger import Client, check, set_up
from tests.crash.processes import Embedded

CLIENTS = 4
ROLES = ["everything", "data-plane", "postmaster", "backend", "supervisor"]


def _recovered(embedded: Embedded, deadline_s: float = 60) -> None:
    """Waits until the cluster answers again, starting it where its supervisor is gone."""
    import psycopg

    until = time.monotonic() + deadline_s
    while True:
        embedded.ensure_running()
        try:
            with psycopg.connect(embedded.dsn, connect_timeout=5) as connection:
                connection.execute("SELECT count(*) FROM account")
                return
        except psycopg.Error:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _round(embedded: Embedded, clients: list[Client], role: str, rng: random.Random) -> int:
    time.sleep(rng.uniform(0.8, 2.0))
    embedded.kill(role)
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, 0.6))
        if embedded.process is not None and embedded.process.poll() is None:
            embedded.kill(rng.choice(ROLES))
    _recovered(embedded)
    return sum(len(client.acknowledged) for client in clients)


def _loop(tmp_path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    embedded = Embedded(tmp_path / "data")
    embedded.start()
    set_up(embedded.dsn)
    stopping = threading.Event()
    clients = [Client(n, lambda: embedded.dsn, stopping) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        before = 0
        for number in range(rounds):
            role = ROLES[number % len(ROLES)]
            acknowledged = _round(embedded, clients, role, rng)
            assert acknowledged > before, "no commit got through between two kills"
            before = acknowledged
            print(f"round {number}: killed {role}, {acknowledged} acknowledged", flush=True)
        time.sleep(1)
    finally:
        stopping.set()
        for client in clients:
            client.join(timeout=30)
    check(embedded.dsn, clients)
    verify = embedded.run_cli("verify")
    assert verify.returncode == 0, verify.stdout + verify.stderr
    assert embedded.stop() < 5


def test_kill_loop(tmp_path) -> None:
    _loop(tmp_path, rounds=3, seed=1)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
def test_kill_loop_nightly(tmp_path, seed: int) -> None:
    _loop(tmp_path, rounds=10, seed=100 + seed)
