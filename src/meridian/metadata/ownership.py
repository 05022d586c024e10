"""One owner per data directory: a kernel lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from meridian.errors import Kind, MeridianError

LOCK_NAME = "dataplane.lock"


class DirectoryLock:
    """Held until `release` or the end of the process. Raises DIR_IN_USE."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK_NAME
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise MeridianError(Kind.DIR_IN_USE, path=directory, pid=holder) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """The file stays; only the lock goes."""
        os.close(self._fd)


def boot_id() -> str:
    """Changes with every boot of the machine. Raises OSError where /proc is missing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
