"""Moving the write-ahead log into the file without holding up the owner's thread.

SQLite would copy the log back inside a commit: 8 MiB at once, and longer when the disk is busy. A
thread copies most of it; the owner only adds what was written meanwhile, so that the log starts
over and stays short.
"""

from __future__ import annotations

import threading
from pathlib import Path

import apsw

PAGES_START = 512
"""Log length (16 KiB pages) at which the thread begins."""
PAGES_MAX = 8192
"""Log length at which the owner copies by itself, whatever the thread does."""


class WalCopier:
    """One per writing connection; the thread starts with the first request."""

    def __init__(self, path: Path, db: apsw.Connection) -> None:
        self._path = path
        self._wake = threading.Event()
        self._copied = False
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None
        db.set_wal_hook(self._grew)

    def close(self) -> None:
        """End the thread; the log is left as it is."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _grew(self, db: apsw.Connection, name: str, pages: int) -> int:
        """After each commit, on the owner's thread. Errors wait for the next commit."""
        if pages < PAGES_START:
            return apsw.SQLITE_OK
        if self._copied or pages >= PAGES_MAX:
            self._copied = False
            _copy(db)
        elif not self._busy:
            self._request()
        return apsw.SQLITE_OK

    def _request(self) -> None:
        self._busy = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="storage-wal", daemon=True)
            self._thread.start()
        self._wake.set()

    def _serve(self) -> None:
        db = apsw.Connection(str(self._path))
        db.execute("PRAGMA synchronous = OFF").fetchall()
        db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closed:
                break
            _copy(db)
            self._copied = True
            self._busy = False
        db.close(True)


def _copy(db: apsw.Connection) -> None:
    """Copy what no reader holds back. A full disk or a busy log is no harm: the log grows on."""
    try:
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    except apsw.Error:
        return
