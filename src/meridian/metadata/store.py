"""The metadata store on SQLite: key, value, revision; every change is a compare-and-set.

The interface is that of a replicated key-value bucket, so that a distributed one can take its
place. A change is durable (fsync) when `put` returns, except in an ephemeral store.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from meridian.errors import Kind, MeridianError

FORMAT_VERSION = 1
"""Format of the whole data directory; kept under the key `format`."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL
) WITHOUT ROWID
"""


class Entry(NamedTuple):
    """A value and the revision to compare with."""

    value: bytes
    revision: int


class MetadataStore:
    """One store; safe to use from several threads.

    Raises BAD_METADATA when the file is damaged, UNKNOWN_FORMAT for another format version.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._db = apsw.Connection(str(path))
            self._db.set_busy_timeout(5_000)
            self._db.execute("PRAGMA journal_mode=DELETE")
            self._db.execute(f"PRAGMA synchronous={'EXTRA' if sync else 'OFF'}")
            self._db.execute(_SCHEMA)
        except apsw.Error as error:
            raise MeridianError(Kind.BAD_METADATA, path=path, why=str(error)) from None
        self._check_format()

    def _check_format(self) -> None:
        entry = self.get("format")
        if entry is None:
            if self.keys():
                raise MeridianError(Kind.BAD_METADATA, path=self.path, why="it has no format")
            self.put("format", str(FORMAT_VERSION).encode(), 0)
        elif entry.value != str(FORMAT_VERSION).encode():
            version = entry.value.decode("utf-8", "replace")
            self.close()
            raise MeridianError(
                Kind.UNKNOWN_FORMAT, what=f"data directory {self.path.parent}", version=version
            )

    def get(self, key: str) -> Entry | None:
        """The current value of a key, None if there is none."""
        with self._lock:
            row = self._one("SELECT value, revision FROM entry WHERE key = ?", (key,))
        return None if row is None else Entry(bytes(row[0]), int(row[1]))

    def keys(self, prefix: str = "") -> list[str]:
        """Keys that begin with `prefix`, ascending."""
        with self._lock:
            rows = self._db.execute("SELECT key FROM entry ORDER BY key").fetchall()
        return [key for row in rows if (key := str(row[0])).startswith(prefix)]

    def put(self, key: str, value: bytes, revision: int) -> int | None:
        """Sets the value if the key's revision is `revision` (0: no such key).

        Returns the new revision, None when somebody else was first.
        """
        with self._lock:
            if revision == 0:
                row = self._one(
                    "INSERT INTO entry VALUES (?, ?, 1) ON CONFLICT DO NOTHING RETURNING revision",
                    (key, value),
                )
            else:
                row = self._one(
                    "UPDATE entry SET value = ?, revision = revision + 1"
                    " WHERE key = ? AND revision = ? RETURNING revision",
                    (value, key, revision),
                )
        return None if row is None else int(row[0])

    def _one(self, sql: str, bindings: tuple[Any, ...]) -> tuple[Any, ...] | None:
        try:
            rows = self._db.execute(sql, bindings).fetchall()
        except apsw.FullError:
            raise MeridianError(Kind.DISK_FULL) from None
        except apsw.Error as error:
            raise MeridianError(Kind.BAD_METADATA, path=self.path, why=str(error)) from None
        return rows[0] if rows else None

    def close(self) -> None:
        """Idempotent."""
        with self._lock, contextlib.suppress(apsw.Error):
            self._db.close()
