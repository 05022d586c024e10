"""The listening Unix socket of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from itertools import count
from pathlib import Path

from meridian.gateway.connection import Connection
from meridian.gateway.requests import Requests

_BACKLOG = 512


def bind_socket(path: Path, *, uid: int, gid: int, mode: int) -> socket.socket:
    """A bound socket with its owner and mode set before anybody may connect.

    A left-over socket file is removed; other files are not. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} exists and is no socket")
        path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(os.fspath(path))
    finally:
        os.umask(before)
    if uid != -1 or gid != -1:
        os.chown(path, uid, gid)
    path.chmod(mode)
    return listening


class Server:
    """Accepts connections; `close` ends them all."""

    def __init__(self, requests: Requests, path: Path) -> None:
        self.requests = requests
        self.path = path
        self._numbers = count(1)
        self._server: asyncio.Server | None = None

    async def start(self, *, uid: int = -1, gid: int = -1, mode: int = 0o600) -> None:
        """Raises OSError when the socket cannot be made."""
        listening = bind_socket(self.path, uid=uid, gid=gid, mode=mode)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: Connection(self.requests, next(self._numbers)),
            sock=listening,
            backlog=_BACKLOG,
        )

    async def close(self) -> None:
        """No new connections, no old ones."""
        if self._server is not None:
            self._server.close()
        self.requests.close()
        with contextlib.suppress(OSError):
            self.path.unlink()
