"""The data plane's process: its command line, and a run of it alone for offline work."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from meridian.embedded import places
from meridian.embedded.directory import ClusterDirectory, Identity
from meridian.instance import processes
from meridian.instance.errors import SetupError
from meridian.instance.users import PgUser, die_with_parent, pg_user

OnLine = Callable[[str], None]
READY = "ready"
STOP_TIMEOUT_S = 10.0


def command(
    directory: ClusterDirectory,
    identity: Identity,
    socket: Path,
    user: PgUser,
    *,
    ephemeral: bool,
    adjudicators: int | None = None,
    journals: int | None = None,
    storage_shards: int = 0,
) -> list[str]:
    """The command line. Backends of `user` may open the socket."""
    words = [sys.executable, *_marks(directory)]
    words += ["--socket", str(socket), "--profile", identity.profile]
    words += ["--log", str(directory.log / "data-plane.log")]
    words += ["--socket-owner", f"{user.uid}:{user.gid}"]
    words += ["--adjudicators", str(adjudicators)] if adjudicators else []
    words += ["--journals", str(journals)] if journals else []
    words += ["--storage-shards", str(storage_shards)] if storage_shards else []
    return [*words, "--ephemeral"] if ephemeral else words


def _marks(directory: ClusterDirectory) -> list[str]:
    """The part of the command line by which a data plane of this directory is known."""
    return ["-m", "meridian.dataplane", "--dir", str(directory.data)]


def kill_leftovers(directory: ClusterDirectory) -> int:
    """End a data plane whose supervisor was killed; the number found. The lock must be ours."""
    return processes.end_all(lambda: processes.running(_marks(directory)), signal.SIGKILL)


@contextlib.contextmanager
def alone(directory: ClusterDirectory, report: Callable[[str], None]) -> Iterator[Path]:
    """Run the data plane without PostgreSQL; its socket. The directory is locked meanwhile.

    Raises SetupError when the directory is in use or the data plane does not start.
    """
    identity = directory.open(None)
    user = pg_user()
    sockets = places.runtime_directory(identity.cluster, user)
    kill_leftovers(directory)
    words = command(directory, identity, sockets / "gateway", user, ephemeral=False)
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent(signal.SIGKILL),
    )
    try:
        _await_ready(process, report)
        yield sockets / "gateway"
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        places.remove_sockets(sockets)
        directory.close()


def _await_ready(process: subprocess.Popen[str], report: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == READY:
            return
        report(line.rstrip())
    raise SetupError(f"the data plane ended at start (status {process.wait()})")
