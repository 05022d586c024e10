"""The cluster's directory: lock, format, password, logs, ports, restarts."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from meridian.embedded import places, supervisor
from meridian.embedded.child import BACKOFF_LAST_S, FAILURES_MAX, HEALTHY_AFTER_S, Backoff
from meridian.embedded.directory import ClusterDirectory, Running
from meridian.embedded.logs import RotatingLog
from meridian.instance.errors import SetupError
from meridian.instance.users import pg_user


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    first, second = ClusterDirectory(tmp_path / "d"), ClusterDirectory(tmp_path / "d")
    identity = first.open(None)
    with pytest.raises(SetupError, match=f"in use by process {os.getpid()}"):
        second.open(None)
    first.close()
    assert second.open(None) == identity
    second.close()


def test_identity_is_kept_and_profile_is_fixed(tmp_path: Path) -> None:
    directory = ClusterDirectory(tmp_path / "d")
    first = directory.open("dsql")
    directory.close()
    with pytest.raises(SetupError, match="made with --profile dsql"):
        ClusterDirectory(tmp_path / "d").open("standard")
    again = ClusterDirectory(tmp_path / "d")
    assert again.open(None) == first
    again.close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"format": 2, "cluster": "x", "profile": "standard"}', "format version 2"),
        ("{}", "damaged"),
        ("not json", "damaged"),
        ("[1]", "damaged"),
        ('{"format": 1}', "damaged"),
    ],
)
def test_unknown_format_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "meridian.json").write_text(text)
    with pytest.raises(SetupError, match=why):
        ClusterDirectory(tmp_path).open(None)
    assert not (tmp_path / "data").exists()


def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(SetupError, match="not empty"):
        ClusterDirectory(tmp_path).open(None)
    with pytest.raises(SetupError, match="not a directory"):
        ClusterDirectory(tmp_path / "thesis.txt").open(None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_password_is_private_and_stays(tmp_path: Path) -> None:
    directory = ClusterDirectory(tmp_path / "d")
    directory.open(None)
    password = directory.password()
    assert len(password) >= 20 and directory.password() == password
    assert mode(tmp_path / "d" / "password") == 0o600
    directory.close()


def test_run_json_counts_only_while_the_supervisor_lives(tmp_path: Path) -> None:
    directory = ClusterDirectory(tmp_path / "d")
    directory.open(None)
    running = Running(1, 2, "h", "dsn", ["dsn"], "g", "s")
    directory.announce(running)
    other = ClusterDirectory(tmp_path / "d")
    assert other.running() == running
    kept = (tmp_path / "d" / "run.json").read_bytes()
    directory.close()
    assert other.running() is None
    (tmp_path / "d" / "run.json").write_bytes(kept)
    assert other.running() is None


def test_taken_port_says_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SetupError) as error:
            places.choose_port("127.0.0.1", port)
    assert f"port {port}" in error.value.message and "--port" in error.value.hint
    assert places.choose_port("127.0.0.1", 0) > 0


def test_sockets_lie_in_a_short_private_directory() -> None:
    path = places.runtime_directory("0123456789ab", pg_user())
    try:
        assert mode(path) == 0o700
        assert len(str(path / ".s.PGSQL.65535.lock")) <= 107
    finally:
        places.remove_sockets(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user's PostgreSQL")
def test_a_strict_umask_keeps_postgresql_s_user_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = pg_user()
    state, hidden = tmp_path / "state", tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    for parent in (tmp_path, *tmp_path.parents):
        if stat.S_IMODE(parent.stat().st_mode) == 0o700:
            parent.chmod(0o711)
    monkeypatch.setenv("MERIDIAN_STATE_DIR", str(state))
    before = os.umask(0o077)
    try:
        chosen = places.postgres_directory(hidden, "c", user)
    finally:
        os.umask(before)
    assert chosen == state / "c" / "postgres" and user.can_reach(chosen)


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "/".join(["d" * 80] * 6)
    with pytest.raises(SetupError, match="longer than 400 bytes"):
        ClusterDirectory(path).open(None)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_end_the_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run.json is for other commands; what runs goes on without."""
    monkeypatch.setattr(supervisor, "ANNOUNCE_RETRY_S", 0.01)
    said: list[str] = []
    one = supervisor.Supervisor(supervisor.Options(directory=tmp_path / "d"), said.append)
    running = Running(os.getpid(), 1, "h", "dsn", ["dsn"], "g", "s")
    monkeypatch.setattr(one, "_describe", lambda: running)

    async def work() -> None:
        announcing = asyncio.ensure_future(one._keep_announcing())
        one._changed.set()
        await asyncio.sleep(0.1)
        assert not announcing.done() and "cannot be written" in said[0]
        one.directory.path.mkdir()
        await asyncio.sleep(0.1)
        assert (one.directory.path / "run.json").exists()
        announcing.cancel()

    asyncio.run(work())


def test_logs_rotate_and_keep_a_bounded_number(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "x.log", size_bytes=1000, files=3)
    for n in range(200):
        log.write(b"line %06d of the log\n" % n)
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["x.log", "x.log.1", "x.log.2"]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in files)
    assert (tmp_path / "x.log").read_text().endswith("line 000199 of the log\n")
    assert log.tail[-1] == "line 000199 of the log"


def test_a_full_disk_does_not_end_the_log(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "x.log")
    log._handle.close()
    log._handle = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    log.write(b"lost\n")
    assert log.dropped == 1 and log.tail[-1] == "lost"
    log.close()


def test_backoff_is_bounded_and_forgets() -> None:
    backoff = Backoff()
    pauses = [backoff.after(0.1) for _ in range(FAILURES_MAX + 1)]
    assert pauses[-1] is None and None not in pauses[:-1]
    assert min(p for p in pauses if p) > 0 and max(p for p in pauses if p) <= BACKOFF_LAST_S
    assert backoff.after(HEALTHY_AFTER_S) == 0
    assert backoff.after(0.1) == pauses[0]


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "meridian", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_commands_without_a_cluster_say_so(tmp_path: Path) -> None:
    for command in ("psql", "status", "verify"):
        done = run_cli(command, "--dir", str(tmp_path / "none"))
        assert done.returncode == 1
        assert "no Meridian cluster" in done.stderr and "Hint:" in done.stderr
        assert "Traceback" not in done.stderr


def test_contradicting_options_are_refused(tmp_path: Path) -> None:
    done = run_cli("dev", "--ephemeral", "--dir", str(tmp_path))
    assert done.returncode == 2 and "--ephemeral" in done.stderr
    done = run_cli("dev", "--trust", "--listen", "0.0.0.0")
    assert done.returncode == 2 and "loopback" in done.stderr


def test_help_names_every_command() -> None:
    done = run_cli("--help")
    for command in ("bench", "dev", "doctor", "psql", "sim", "status", "verify"):
        assert command in done.stdout
