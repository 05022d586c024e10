"""A file layer that fails on demand."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from meridian.journal.files import Files


class FaultyFiles(Files):
    """Real files. `fail(name, nth)` makes the nth next call of a method raise.

    `room_bytes`: a disk of that size; what does not fit is written in part, then ENOSPC.
    `short`: every write takes at most that many bytes.
    """

    def __init__(self, *, sync: bool = False, short: int = 0) -> None:
        super().__init__(sync=sync)
        self.short = short
        self.room_bytes: int | None = None
        self.calls: dict[str, int] = {}
        self.slow: threading.Event | None = None
        """When set to an event, fdatasync waits for it."""
        self._faults: dict[str, dict[int, int]] = {}

    def fail(self, name: str, nth: int = 1, error: int = errno.EIO, times: int = 1) -> None:
        """The nth next call of `name`, and `times - 1` more, raise OSError(error)."""
        first = self.calls.get(name, 0) + nth
        self._faults.setdefault(name, {}).update(dict.fromkeys(range(first, first + times), error))

    def _call(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        error = self._faults.get(name, {}).get(self.calls[name])
        if error is not None:
            raise OSError(error, os.strerror(error))

    def create(self, path: Path) -> int:
        self._call("create")
        return super().create(path)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._call("write")
        if self.short:
            data = data[: self.short]
        if self.room_bytes is not None:
            if self.room_bytes == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[: self.room_bytes]
            self.room_bytes -= len(data)
        return super().write(fd, data)

    def fdatasync(self, fd: int) -> None:
        self._call("fdatasync")
        if self.slow is not None:
            self.slow.wait(10)
        super().fdatasync(fd)

    def truncate(self, fd: int, size_bytes: int) -> None:
        self._call("truncate")
        super().truncate(fd, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        self._call("rename")
        super().rename(source, target)

    def fsync_dir(self, path: Path) -> None:
        self._call("fsync_dir")
        super().fsync_dir(path)
