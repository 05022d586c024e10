"""The file layer under the journal: the few system calls it makes, so that tests can fail them."""

from __future__ import annotations

import os
from pathlib import Path


class Files:
    """System calls of the journal. `sync=False` (`--ephemeral`) makes every sync a no-op."""

    def __init__(self, *, sync: bool = True) -> None:
        self.sync = sync

    def create(self, path: Path) -> int:
        """A new file for writing; it must not exist. Raises OSError."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """May write less than all of it. Raises OSError."""
        return os.write(fd, data)

    def fdatasync(self, fd: int) -> None:
        """Content and size are durable afterwards. Raises OSError."""
        if self.sync:
            os.fdatasync(fd)

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Raises OSError."""
        os.ftruncate(fd, size_bytes)

    def size_bytes(self, fd: int) -> int:
        """Raises OSError."""
        return os.fstat(fd).st_size

    def close(self, fd: int) -> None:
        """Raises OSError."""
        os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic on the same file system. Raises OSError."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Raises OSError."""
        path.unlink()

    def fsync_dir(self, path: Path) -> None:
        """Names in the directory are durable afterwards. Raises OSError."""
        if not self.sync:
            return
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
