"""Where sockets and PostgreSQL's directory may lie, and whether a port is free."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from pathlib import Path

from meridian.instance.errors import SetupError
from meridian.instance.users import PgUser

SOCKET_PATH_BYTES = 100
"""Unix socket paths over 107 bytes fail; the rest is for PostgreSQL's file name."""
PORT_TRIES = 20
"""Ports looked at per instance."""


def runtime_directory(cluster: str, user: PgUser) -> Path:
    """A short directory for this cluster's sockets that only PostgreSQL's user and we can enter.

    Raises SetupError when none can be made safely.
    """
    path = runtime_root() / cluster
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or path.lstat().st_uid not in (os.geteuid(), user.uid):
            raise SetupError(f"{path} belongs to another user", "Remove it.")
    path.mkdir(mode=0o700, exist_ok=True)
    user.own(path)
    path.chmod(0o700)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise SetupError(
            f"{path} is too long for a socket's path", "Set XDG_RUNTIME_DIR to a short path."
        )
    return path


def runtime_root() -> Path:
    """/run/meridian for root; $XDG_RUNTIME_DIR/meridian; else a directory of ours in /tmp."""
    uid = os.geteuid()
    base = "/run" if uid == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    candidates = [Path(base) / "meridian"] if base and len(base) < 60 else []
    for path in (*candidates, Path(f"/tmp/meridian-{uid}")):
        with contextlib.suppress(OSError):
            path.mkdir(mode=0o711 if uid == 0 else 0o700, exist_ok=True)
            found = path.lstat()
            if found.st_uid == uid and not path.is_symlink() and os.access(path, os.W_OK):
                path.chmod(0o711 if uid == 0 else 0o700)
                return path
    raise SetupError(
        "no directory for sockets could be made in /run, $XDG_RUNTIME_DIR or /tmp",
        "Set XDG_RUNTIME_DIR to a directory of yours with a short path.",
    )


def remove_sockets(directory: Path) -> None:
    """Remove what `runtime_directory` made, with its contents."""
    shutil.rmtree(directory, ignore_errors=True)


def elsewhere(cluster: str) -> Path:
    """The place outside DIR that root uses when PostgreSQL's user cannot reach DIR."""
    return Path(os.environ.get("MERIDIAN_STATE_DIR", "/var/lib/meridian")) / cluster


def postgres_directory(directory: Path, cluster: str, user: PgUser) -> Path:
    """Where `user` may make data directories, one per instance: DIR/postgres.

    Below /var/lib/meridian (MERIDIAN_STATE_DIR) when that user cannot reach DIR. Raises SetupError.
    """
    outside = elsewhere(cluster)
    if user.can_reach(directory):
        chosen = directory / "postgres"
        if outside.is_dir() and not user.is_self:
            shutil.rmtree(outside, ignore_errors=True)
    elif os.geteuid() == 0:
        chosen = outside / "postgres"
        outside.mkdir(parents=True, exist_ok=True)
        for one in (outside.parent, outside):
            # Whatever the umask is.
            one.chmod(0o711)
    else:
        raise SetupError(f"{directory} cannot be entered by user {user.name}")
    chosen.mkdir(mode=0o700, exist_ok=True)
    user.own(chosen)
    return chosen


def postgres_instances(directory: Path, cluster: str) -> list[Path]:
    """Every data directory that an instance of this cluster may have used, in DIR or outside."""
    roots = (directory / "postgres", elsewhere(cluster) / "postgres")
    return sorted({data for root in roots if root.is_dir() for data in root.iterdir()})


def choose_ports(host: str, port: int, count: int) -> list[int]:
    """`port` and the next free ones above it; any free ones for 0.

    Raises SetupError with a hint when `port` is taken or no more are free.
    """
    with contextlib.ExitStack() as held:
        # All are held until the last is chosen, so that none is chosen twice.
        chosen = [_bound(held, host, port)]
        for number in range(1, PORT_TRIES * count):
            if len(chosen) == count:
                break
            with contextlib.suppress(SetupError, OverflowError):
                chosen.append(_bound(held, host, port + number if port else 0))
        if len(chosen) < count:
            raise SetupError(
                f"fewer than {count} ports from {port} on are free on {host}",
                "Choose another with --port, or --port 0 for any free ones.",
            )
        return chosen


def choose_port(host: str, port: int) -> int:
    """`port` if it is free, or a free one for 0. Raises SetupError with a hint when taken."""
    return choose_ports(host, port, 1)[0]


def _bound(held: contextlib.ExitStack, host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except OSError as error:
        raise SetupError(
            f"port {port} on {host} cannot be used: {error.strerror}",
            "Choose another with --port, or --port 0 for any free one.",
        ) from None
    chosen: int = probe.getsockname()[1]
    return chosen
