"""`meridian dev` from start to end, as a user sees it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.crash.processes import Embedded, descendants


@pytest.fixture
def embedded(tmp_path: Path):
    made = Embedded(tmp_path / "data")
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()


def dev(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "meridian", "dev", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_json_line_and_clean_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as shell:
        # Meant for the caller's own sessions, and no good for any other.
        for name in ("PGTZ", "PGSERVICE", "PGHOSTADDR", "PGCHANNELBINDING", "PGOPTIONS"):
            shell.setenv(name, "nonsense")
        process = dev("--dir", str(tmp_path / "d"), "--port", "0", "--json")
    assert process.stdout is not None
    facts = json.loads(process.stdout.readline())
    assert set(facts) == {"dsn", "dsns", "port", "dir", "pid", "start_ms"}
    assert facts["dsns"] == [facts["dsn"]] and facts["pid"] == process.pid
    assert facts["dir"] == str(tmp_path / "d") and f":{facts['port']}/" in facts["dsn"]
    below = descendants(process.pid)
    assert below
    connection = psycopg.connect(facts["dsn"])
    row = connection.execute("SELECT current_user, current_database()").fetchone()
    assert row == ("admin", "postgres")
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert time.monotonic() - started < 5
    connection.close()
    assert (process.returncode, rest) == (0, "")
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
    assert not (tmp_path / "d" / "run.json").exists()


def test_progress_that_cannot_be_written_ends_nothing(embedded: Embedded) -> None:
    embedded.stop()
    errors = embedded.directory.parent / f"{embedded.directory.name}.err"
    errors.unlink()
    errors.symlink_to("/dev/full")
    embedded.start()
    embedded.kill("data-plane")
    for _ in range(100):
        time.sleep(0.1)
        assert embedded.process is not None and embedded.process.poll() is None
        try:
            with psycopg.connect(embedded.dsn) as connection:
                assert connection.execute("SELECT 1 FROM sys.jobs").fetchall() == []
            return
        except psycopg.Error:
            continue
    raise AssertionError("the data plane did not come back")


def test_rows_survive_a_restart_and_the_password_stays(embedded: Embedded) -> None:
    with psycopg.connect(embedded.dsn) as connection:
        connection.execute("CREATE TABLE kept (id int PRIMARY KEY, t text)")
        connection.execute("INSERT INTO kept SELECT n, 'row ' || n FROM generate_series(1, 500) n")
    first = embedded.dsn
    assert embedded.stop() < 5
    embedded.start()
    assert embedded.dsn.rpartition("@")[0] == first.rpartition("@")[0]
    with psycopg.connect(embedded.dsn) as connection:
        row = connection.execute("SELECT count(*), max(t) FROM kept WHERE id <= 500").fetchone()
        assert row == (500, "row 99")


def test_catalog_survives_the_loss_of_postgresqls_directory(embedded: Embedded) -> None:
    """PostgreSQL's directory is a cache: the journal holds the catalog."""
    with psycopg.connect(embedded.dsn) as connection:
        connection.execute("CREATE TYPE mood AS ENUM ('well', 'unwell')")
        connection.execute("CREATE TABLE kept (id serial PRIMARY KEY, m mood, t text UNIQUE)")
        connection.execute("CREATE VIEW v AS SELECT m FROM kept")
        connection.execute("INSERT INTO kept (m) VALUES ('unwell')")
    embedded.stop()
    identity = json.loads((embedded.directory / "meridian.json").read_text())
    elsewhere = Path(os.environ["MERIDIAN_STATE_DIR"]) / identity["cluster"]
    caches = [path for path in (embedded.directory / "postgres", elsewhere) if path.exists()]
    assert len(caches) == 1
    shutil.rmtree(caches[0])
    embedded.start()
    with psycopg.connect(embedded.dsn) as connection:
        assert connection.execute("SELECT m FROM v").fetchall() == [("unwell",)]
        connection.execute("INSERT INTO kept (m, t) VALUES ('well', 'x')")
        row = connection.execute("SELECT id > 1 FROM kept WHERE m = 'well'").fetchone()
        assert row == (True,)
    with psycopg.connect(embedded.dsn) as connection:
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO kept (t) VALUES ('x')")


def test_passwords_are_required(embedded: Embedded) -> None:
    secret = (embedded.directory / "password").read_text().strip()
    assert secret in embedded.dsn
    assert stat.S_IMODE((embedded.directory / "password").stat().st_mode) == 0o600
    for wrong in ("x", ""):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(embedded.dsn.replace(secret, wrong), connect_timeout=5)
    for root in ("meridian_root", "postgres"):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(embedded.dsn.replace("//admin", f"//{root}"), connect_timeout=5)


def test_trust_needs_no_password(tmp_path: Path) -> None:
    trusting = Embedded(tmp_path / "d", "--trust")
    trusting.start()
    try:
        assert "admin@" in trusting.dsn
        with psycopg.connect(trusting.dsn) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(trusting.dsn.replace("//admin", "//meridian_root"))
    finally:
        trusting.stop()


def test_second_start_refuses(embedded: Embedded) -> None:
    process = dev("--dir", str(embedded.directory), "--port", "0")
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert embedded.process is not None
    assert f"in use by process {embedded.process.pid}" in error


def test_taken_port_is_a_clear_error(embedded: Embedded, tmp_path: Path) -> None:
    port = embedded.dsn.rpartition(":")[2].partition("/")[0]
    process = dev("--dir", str(tmp_path / "other"), "--port", port)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"port {port}" in error and "--port 0" in error and "Traceback" not in error


def test_a_killed_supervisor_leaves_nothing_that_blocks(embedded: Embedded) -> None:
    with psycopg.connect(embedded.dsn) as connection:
        connection.execute("CREATE TABLE kept (id int PRIMARY KEY)")
        connection.execute("INSERT INTO kept VALUES (1)")
    embedded.kill("supervisor")
    embedded.start()
    with psycopg.connect(embedded.dsn) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1,)


def test_the_port_is_free_again_after_a_kill(embedded: Embedded, tmp_path: Path) -> None:
    """Processes that are about to end still hold it: they are waited for."""
    embedded.stop()
    port = embedded.dsn.rpartition(":")[2].partition("/")[0]
    again = Embedded(embedded.directory)
    for _ in range(3):
        process = dev("--dir", str(embedded.directory), "--port", port, "--json")
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline(), process.stderr.read()
        process.kill()
        process.communicate()
    again.start()
    again.stop()


def test_a_lock_file_of_a_process_id_that_lives_on_blocks_nothing(embedded: Embedded) -> None:
    """A zombie that nobody reaps keeps its id, and ids are given to others."""
    running = json.loads((embedded.directory / "run.json").read_text())
    port = embedded.dsn.rpartition(":")[2].partition("/")[0]
    lock = Path(running["socket_directory"]) / f".s.PGSQL.{port}.lock"
    user, lines = lock.owner(), lock.read_text().splitlines(keepends=True)
    embedded.kill("everything")
    other = subprocess.Popen(["sleep", "60"], user=user if os.geteuid() == 0 else None)
    try:
        # The postmaster may have got to remove it, told of its parent's end.
        lock.write_text("".join([f"{other.pid}\n", *lines[1:]]))
        again = Embedded(embedded.directory, "--port", port)
        again.start()
        assert again.dsn == embedded.dsn
        again.stop()
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("role", ["data-plane", "postmaster", "backend"])
def test_what_dies_comes_back(embedded: Embedded, role: str) -> None:
    connection = psycopg.connect(embedded.dsn, autocommit=True)
    connection.execute("CREATE TABLE kept (id int PRIMARY KEY)")
    victims = embedded.processes(role)
    assert victims
    embedded.kill(role)
    connection.close()
    deadline = time.monotonic() + 30
    while True:
        try:
            with psycopg.connect(embedded.dsn, connect_timeout=5) as connection:
                connection.execute("INSERT INTO kept VALUES (1) ON CONFLICT DO NOTHING")
                break
        except psycopg.Error:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert not set(victims) & set(embedded.processes(role))


def test_status_psql_and_verify(embedded: Embedded) -> None:
    status = embedded.run_cli("status", "--json")
    facts = json.loads(status.stdout)
    assert status.returncode == 0 and facts["running"] and facts["data_plane"]["serving"]
    psql = embedded.run_cli("psql", "-XAtc", "SELECT 6 * 7")
    assert psql.stdout == "42\n"
    running = embedded.run_cli("verify")
    assert running.returncode == 0 and running.stdout.startswith("0 damaged")
    embedded.stop()
    assert embedded.run_cli("status").returncode == 1
    offline = embedded.run_cli("verify", "--json")
    assert offline.returncode == 0 and json.loads(offline.stdout)["damage"] == []


def test_verify_lists_damage(embedded: Embedded) -> None:
    """A byte turned over inside the journal: found, listed, status 1; a start refuses."""
    with psycopg.connect(embedded.dsn) as connection:
        connection.execute("CREATE TABLE kept (id int PRIMARY KEY, t text)")
    with psycopg.connect(embedded.dsn, autocommit=True) as connection:
        for n in range(20):
            connection.execute("INSERT INTO kept VALUES (%s, %s)", (n, "needle" * 20))
    segments = sorted((embedded.directory / "data").rglob("*"), key=lambda path: path.name)
    hit = [
        p for p in segments if "journal" in str(p) and p.is_file() and b"needle" in p.read_bytes()
    ]
    assert hit
    raw = hit[0].read_bytes()
    at = raw.index(b"needle")
    hit[0].write_bytes(raw[:at] + b"N" + raw[at + 1 :])
    running = embedded.run_cli("verify")
    assert running.returncode == 1 and "record" in running.stdout, running.stdout + running.stderr
    embedded.stop()
    process = dev("--dir", str(embedded.directory), "--port", "0")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and "record" in error and "damaged" in error


def test_ephemeral_leaves_nothing(tmp_path: Path) -> None:
    process = dev("--ephemeral", "--port", "0", "--json")
    assert process.stdout is not None
    directory = Path(json.loads(process.stdout.readline())["dir"])
    assert directory.is_dir()
    process.terminate()
    assert process.wait(10) == 0
    process.communicate()
    assert not directory.exists()


@pytest.mark.parametrize("name", ['with space\'s "quote"', "x" * 120])
def test_odd_directories(tmp_path: Path, name: str) -> None:
    odd = Embedded(tmp_path / name)
    odd.start()
    try:
        with psycopg.connect(odd.dsn) as connection:
            connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
        assert odd.run_cli("psql", "-XAtc", "SELECT count(*) FROM t").stdout == "0\n"
    finally:
        odd.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has such directories")
def test_a_directory_only_root_can_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    hidden = Embedded(closed / "data")
    hidden.start()
    try:
        with psycopg.connect(hidden.dsn) as connection:
            connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
        assert not (closed / "data" / "postgres").exists()
    finally:
        hidden.stop()
