"""`meridian dev --query-hosts N`: instances are equals, and each comes and goes by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from meridian.gateway.client import Client
from meridian.wire.ops import SID_CATALOG, Put, conflict_hash
from tests.crash.processes import Embedded, dev_command

DEADLINE_S = 30.0
Connection = psycopg.Connection[Any]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Embedded]:
    made = Embedded(tmp_path / "data", "--query-hosts", "2")
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()


def eventually(work: Callable[[], Any]) -> Any:
    """Its result, once it neither fails in the database nor in an assertion."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return work()
        except (psycopg.Error, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def ask(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def running(cluster: Embedded) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((cluster.directory / "run.json").read_text())
    return facts


def test_instances_are_equals(pair: Embedded) -> None:
    one, two = pair.dsns
    assert one != two and pair.dsn == one
    for number, dsn in enumerate(pair.dsns, 1):
        assert ask(dsn, "SHOW meridian.instance_id") == [(str(number),)]
        assert ask(dsn, "SHOW meridian.instances") == [("2",)]
    ask(one, "CREATE TABLE t (id int PRIMARY KEY, v text)")
    eventually(lambda: ask(two, "INSERT INTO t VALUES (1, 'two')"))
    ask(two, "CREATE TABLE u (id serial PRIMARY KEY)")
    eventually(lambda: ask(one, "INSERT INTO u DEFAULT VALUES"))
    assert ask(one, "SELECT id, v FROM t") == [(1, "two")]
    assert ask(two, "SELECT count(*) FROM u") == [(1,)]


def test_commands_know_all_instances(pair: Embedded) -> None:
    status = json.loads(pair.run_cli("status", "--json").stdout)
    assert [one["state"] for one in status["instances"]] == ["serving", "serving"]
    ports = [one["port"] for one in status["instances"]]
    assert [f":{port}/" in dsn for port, dsn in zip(ports, pair.dsns, strict=True)] == [True, True]
    sql = "SHOW meridian.instance_id"
    assert pair.run_cli("psql", "--query-host", "2", "-XAtc", sql).stdout == "2\n"
    assert pair.run_cli("psql", "-XAtc", sql).stdout == "1\n"
    wrong = pair.run_cli("psql", "--query-host", "3", "-XAtc", sql)
    assert wrong.returncode == 2 and "query hosts 1 to 2" in wrong.stderr
    assert "instances:\n  number 1, " in pair.run_cli("status").stdout


def test_one_dies_and_the_others_go_on(pair: Embedded) -> None:
    one, two = pair.dsns
    ask(one, "CREATE TABLE t (id int PRIMARY KEY)")
    eventually(lambda: ask(two, "INSERT INTO t VALUES (0)"))
    before = [pair.postmaster(1), pair.postmaster(2)]
    with psycopg.connect(two, autocommit=True) as session:
        os.kill(before[0], signal.SIGKILL)
        for number in range(1, 200):
            session.execute("INSERT INTO t VALUES (%s)", (number,))
    assert eventually(lambda: ask(one, "SELECT count(*) FROM t")) == [(200,)]
    assert pair.postmaster(2) == before[1] and pair.postmaster(1) != before[0]
    eventually(lambda: _states(pair, ["serving", "serving"]))


def _states(cluster: Embedded, wanted: list[str]) -> None:
    assert [one["state"] for one in running(cluster)["instances"]] == wanted


def test_the_data_plane_restarts_without_the_instances(pair: Embedded) -> None:
    one, two = pair.dsns
    ask(one, "CREATE TABLE t (id int PRIMARY KEY)")
    before = [pair.postmaster(1), pair.postmaster(2)]
    pair.kill("data-plane")
    eventually(lambda: ask(two, "INSERT INTO t VALUES (1)"))
    ask(two, "ALTER TABLE t ADD COLUMN late int DEFAULT 7")
    assert eventually(lambda: ask(one, "SELECT id, late FROM t")) == [(1, 7)]
    assert [pair.postmaster(1), pair.postmaster(2)] == before


def test_another_number_of_instances(tmp_path: Path) -> None:
    """Fewer, then more than ever: what the others missed is brought to them."""
    cluster = Embedded(tmp_path / "data", "--query-hosts", "2")
    for hosts in (2, 1, 3):
        cluster.options = ("--query-hosts", str(hosts))
        cluster.start()
        assert len(cluster.dsns) == hosts
        ask(cluster.dsns[0], f"CREATE TABLE t{hosts} (id int PRIMARY KEY)")
        for dsn in cluster.dsns:
            eventually(lambda dsn=dsn: ask(dsn, f"SELECT FROM t{hosts}"))
        if hosts > 1:
            ask(cluster.dsns[-1], "SELECT FROM t2")
        cluster.stop()


@pytest.mark.parametrize("by_hand", [False, True])
def test_all_caches_can_go(pair: Embedded, by_hand: bool) -> None:
    one, two = pair.dsns
    ask(one, "CREATE TABLE t (id int PRIMARY KEY, v text UNIQUE)")
    eventually(lambda: ask(two, "INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 300) g"))
    ask(two, "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 42'")
    pair.stop()
    if by_hand:
        for path in instance_directories(pair):
            shutil.rmtree(path)
        shutil.rmtree(pair.directory / "data" / "storage")
    else:
        pair.options = (*pair.options, "--rebuild")
    pair.start()
    for dsn in pair.dsns:
        assert ask(dsn, "SELECT count(DISTINCT v), f() FROM t") == [(300, 42)]
    assert pair.run_cli("verify").returncode == 0


def instance_directories(cluster: Embedded) -> list[Path]:
    identity = json.loads((cluster.directory / "meridian.json").read_text())
    elsewhere = Path(os.environ["MERIDIAN_STATE_DIR"]) / identity["cluster"]
    roots = [root / "postgres" for root in (cluster.directory, elsewhere)]
    found = [data for root in roots if root.is_dir() for data in root.iterdir()]
    assert len(found) == 2
    return found


def test_an_instance_that_cannot_apply_does_not_serve(pair: Embedded) -> None:
    """A delta that no instance can read: both stay away with clear words, nothing is made up."""
    one, _ = pair.dsns
    ask(one, "CREATE TABLE t (id int)")
    with Client(running(pair)["gateway_socket"]) as client:
        last = client.scan(SID_CATALOG, []).rows[-1][0]
        key = (int.from_bytes(last, "big") + 1).to_bytes(8, "big")
        written = conflict_hash(SID_CATALOG, 0, key).to_bytes(8, "little")
        put = Put(SID_CATALOG, 0, (1, 2), [key], written, b"", [(b"nonsense", b"")])
        client.commit([put], flags=1)
    assert pair.process is not None
    assert pair.process.wait(60) == 1
    said = pair.errors()
    assert "cannot apply" in said and "made anew" in said and "stays down" in said
    assert said.count("made anew") == 2
    assert "cannot be brought up to date" in said and "Traceback" not in said


def test_a_broken_directory_is_made_anew(pair: Embedded) -> None:
    ask(pair.dsns[0], "CREATE TABLE t (id int PRIMARY KEY)")
    pair.stop()
    for data in instance_directories(pair):
        (data / "global" / "pg_control").write_bytes(b"\0" * 8192)
    pair.start()
    for dsn in pair.dsns:
        assert ask(dsn, "SELECT count(*) FROM t") == [(0,)]
    assert pair.errors().count("made anew") == 2


def test_ports_follow_each_other(tmp_path: Path) -> None:
    """The second port is taken, so the second instance takes the third."""
    with socket.socket() as taken:
        base = _below_a_taken_one(taken)
        command = dev_command(tmp_path / "d", "--query-hosts", "2", "--json", port=base)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        process.terminate()
        assert process.wait(30) == 0
    ports = [int(dsn.rpartition(":")[2].partition("/")[0]) for dsn in facts["dsns"]]
    assert ports[0] == facts["port"] == base and ports[1] > base + 1
    assert len(facts["start_ms"]) == 2


def _below_a_taken_one(taken: socket.socket) -> int:
    """A free port; `taken` holds the next one."""
    for port in range(21000, 28000, 7):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                taken.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue
    pytest.skip("no two free ports in a row")
