"""PostgreSQL processes of a data directory: is it ready, what is left over, end them all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from meridian.instance.errors import SetupError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 3.0
GIVE_UP_S = 15.0
POLL_S = 0.005


def is_ready(data: Path, pid: int) -> bool:
    """Does postmaster.pid of process `pid` say that connections are accepted?"""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def wait_ready(data: Path, postmaster: subprocess.Popen[bytes]) -> None:
    """Wait until connections are accepted. Raises SetupError when it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready(data, postmaster.pid):
        if postmaster.poll() is not None:
            raise SetupError(f"PostgreSQL ended at start (status {postmaster.returncode})")
        if time.monotonic() > deadline:
            raise SetupError(f"PostgreSQL was not ready after {START_TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)


def processes_of(data: Path) -> list[int]:
    """Live processes whose working directory is `data`: PostgreSQL's processes and no others."""

    def works_there(entry: Path) -> bool:
        return str((entry / "cwd").readlink()).removesuffix(" (deleted)") == str(data)

    return _processes(works_there)


def running(arguments: list[str]) -> list[int]:
    """Live processes whose command line contains `arguments` in a row."""
    wanted = b"\0" + b"\0".join(map(os.fsencode, arguments)) + b"\0"

    def runs_it(entry: Path) -> bool:
        return wanted in b"\0" + (entry / "cmdline").read_bytes()

    return _processes(runs_it)


def kill_leftovers(data: Path, patience_s: float = STOP_TIMEOUT_S) -> int:
    """End PostgreSQL processes that an earlier run left on `data`; the number found.

    The directory must be ours by its lock. First politely (immediate shutdown), then by force;
    a directory whose shared memory is still attached would refuse to start. Raises SetupError when
    a process survives even that.
    """
    data = Path(os.path.realpath(data))
    found = end_all(lambda: processes_of(data), signal.SIGQUIT, patience_s)
    with contextlib.suppress(OSError):
        (data / "postmaster.pid").unlink()
    return found


def forget_sockets(directory: Path, port: int) -> None:
    """Remove the socket at `port` and its lock file, which an earlier postmaster left.

    That postmaster must have ended. Its process id may be another process by now, or a zombie that
    nobody reaps (a container's first process often does not): PostgreSQL would refuse to start.
    """
    for name in (f".s.PGSQL.{port}.lock", f".s.PGSQL.{port}"):
        (directory / name).unlink(missing_ok=True)


def end_all(
    find: Callable[[], list[int]], polite: signal.Signals, patience_s: float = STOP_TIMEOUT_S
) -> int:
    """Signal what `find` finds and wait; after `patience_s`, by force. The number at first.

    Raises SetupError when a process survives even that.
    """
    left = find()
    found = len(left)
    _signal(left, polite)
    started = time.monotonic()
    while left:
        waited = time.monotonic() - started
        if waited > GIVE_UP_S:
            raise SetupError(f"processes {left} of an earlier run cannot be ended")
        if waited > patience_s:
            _signal(left, signal.SIGKILL)
        time.sleep(POLL_S * 4)
        left = find()
    return found


def _processes(matches: Callable[[Path], bool]) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if matches(entry):
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
