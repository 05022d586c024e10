"""Logs of the processes below the supervisor: one file each, rotated by size."""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path

from meridian.limits import LOG_FILE_BYTES, LOG_FILES

TAIL_LINES = 40


class RotatingLog:
    """Appends lines to `path`; keeps `files` old ones; remembers the last lines for errors.

    A full disk must not end the supervisor: lines that cannot be written are dropped and counted.
    """

    def __init__(
        self, path: Path, size_bytes: int = LOG_FILE_BYTES, files: int = LOG_FILES
    ) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.files = files
        self.dropped = 0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._handle = open(path, "ab", buffering=0)  # noqa: SIM115
        path.chmod(0o600)

    def write(self, line: bytes) -> None:
        """Append one line, with its newline."""
        self.tail.append(line.decode(errors="replace").rstrip())
        try:
            if self._handle.tell() + len(line) > self.size_bytes:
                self._rotate()
            self._handle.write(line)
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        """Close the file."""
        self._handle.close()

    def _rotate(self) -> None:
        self._handle.close()
        for number in range(self.files - 1, 0, -1):
            newer = self._numbered(number - 1)
            with contextlib.suppress(FileNotFoundError):
                newer.rename(self._numbered(number))
        self._handle = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self.path.chmod(0o600)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path
