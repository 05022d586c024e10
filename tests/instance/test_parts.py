"""The instance manager's parts that need no server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meridian.instance import binaries, cache, config, processes, scram, users
from meridian.instance.errors import SetupError


def test_scram_verifier_of_rfc_7677() -> None:
    """The example of RFC 7677: user, pencil."""
    import base64

    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    made = scram.verifier("pencil", salt)
    assert made == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
        "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
        "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


def test_settings_are_quoted() -> None:
    assert config.quote("a'b\\c") == "'a''b\\\\c'"


def test_bundled_postgresql_is_18() -> None:
    assert binaries.find().version.startswith("18.")


def test_wrong_pg_config_is_refused(monkeypatch, tmp_path: Path) -> None:
    fake = tmp_path / "pg_config"
    fake.write_text("#!/bin/sh\necho 'BINDIR = /x'\necho 'VERSION = PostgreSQL 17.2'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("MERIDIAN_PG_CONFIG", str(fake))
    with pytest.raises(SetupError, match=r"17\.2; version 18 is needed"):
        binaries.find()
    monkeypatch.setenv("MERIDIAN_PG_CONFIG", str(tmp_path / "none"))
    with pytest.raises(SetupError, match="no pg_config"):
        binaries.find()


def test_cache_builds_once_and_never_half(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MERIDIAN_CACHE_DIR", str(tmp_path / "c"))
    built = []

    def build(target: Path) -> None:
        built.append(target)
        (target / "file").write_text("x")

    def fail(target: Path) -> None:
        (target / "half").write_text("x")
        raise SetupError("no")

    with pytest.raises(SetupError):
        cache.entry("a", fail)
    assert cache.entry("a", build) == cache.entry("a", build)
    assert len(built) == 1
    assert sorted(p.name for p in (tmp_path / "c" / "a").iterdir()) == ["file"]


def test_unused_cache_entries_go(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MERIDIAN_CACHE_DIR", str(tmp_path))
    old = cache.entry("old", lambda path: None)
    long_ago = time.time() - cache.UNUSED_AFTER_S - 60
    os.utime(old, (long_ago, long_ago))
    cache.entry("new", lambda path: None)
    assert not old.exists()


def test_no_settings_of_the_callers_shell_reach_postgresql(monkeypatch) -> None:
    for name in ("PGDATA", "PGPORT", "PGOPTIONS", "LANG", "LC_TIME", "TZ"):
        monkeypatch.setenv(name, "x")
    clean = users.clean_environment()
    assert not {"PGDATA", "PGPORT", "PGOPTIONS", "LANG", "LC_TIME", "TZ"} & set(clean)


def test_leftovers_of_a_directory_are_found_and_ended(tmp_path: Path) -> None:
    directory = tmp_path / "data dir"
    directory.mkdir()
    stubborn = "import signal, time; signal.signal(signal.SIGQUIT, signal.SIG_IGN); time.sleep(60)"
    # A shell's background job ignores SIGQUIT, and its children inherit that.
    obedient = stubborn.replace("SIG_IGN", "SIG_DFL")
    mine = [
        subprocess.Popen([sys.executable, "-c", code], cwd=directory)
        for code in (obedient, stubborn)
    ]
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=tmp_path)
    (directory / "postmaster.pid").write_text("1\n")
    time.sleep(0.3)
    try:
        assert sorted(processes.processes_of(directory)) == sorted(p.pid for p in mine)
        # A zombie has no working directory, so reaping them is not needed to count them out.
        assert processes.kill_leftovers(directory) == 2
        assert [p.wait(5) for p in mine] == [-3, -9]
        assert other.poll() is None
        assert not (directory / "postmaster.pid").exists()
    finally:
        for process in (*mine, other):
            process.kill()
            process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop privileges")
def test_reachability_is_asked_as_the_user(tmp_path: Path) -> None:
    user = users.pg_user()
    assert user.uid != 0
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert not user.can_reach(closed)
    tmp_path.chmod(0o755)
    assert user.can_reach(Path("/"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a Linux feature")
def test_children_die_with_their_parent() -> None:
    script = (
        "import subprocess, signal, sys, time\n"
        "from meridian.instance.users import die_with_parent\n"
        "p = subprocess.Popen(['sleep', '60'], preexec_fn=die_with_parent(signal.SIGKILL))\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while _alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a Linux feature")
def test_backends_do_not_push_aside_who_wakes_them() -> None:
    ask = users.die_with_parent(signal.SIGKILL, batch=True)
    process = subprocess.Popen(["sleep", "30"], preexec_fn=ask)
    try:
        assert os.sched_getscheduler(process.pid) == os.SCHED_BATCH
    finally:
        process.kill()
        process.wait()
