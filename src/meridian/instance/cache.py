"""Directories that are built once and shared: PostgreSQL's copy, the extension, the template.

Each is named by a hash of what it was made from, built aside and renamed into place, so a reader
sees all of it or nothing. A lock keeps two builders apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from meridian.instance.errors import SetupError

UNUSED_AFTER_S = 30 * 86_400
"""Entries that nobody used for this long are removed when the next one is built."""


def cache_root() -> Path:
    """MERIDIAN_CACHE_DIR; else /var/cache/meridian for root, the user's cache otherwise."""
    chosen = os.environ.get("MERIDIAN_CACHE_DIR")
    if chosen:
        return Path(chosen).resolve()
    if os.geteuid() == 0:
        return Path("/var/cache/meridian")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "meridian"


def entry(name: str, build: Callable[[Path], None]) -> Path:
    """The cache directory `name`; `build(directory)` fills it if it does not exist yet.

    Raises SetupError when the cache cannot be written; errors of `build` pass through.
    """
    root = cache_root()
    path = root / name
    if not path.is_dir():
        _make_root(root)
        with _locked(root / "lock"):
            if not path.is_dir():
                _build(root, path, build)
    with contextlib.suppress(OSError):
        os.utime(path)
    return path


def _make_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            root.chmod(0o755)
    except OSError as error:
        raise SetupError(
            f"the cache directory {root} cannot be made: {error.strerror}",
            "Name another one with MERIDIAN_CACHE_DIR.",
        ) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(root: Path, path: Path, build: Callable[[Path], None]) -> None:
    _remove_unused(root)
    aside = root / f"{path.name}.new"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o755)
    if os.geteuid() == 0:
        aside.chmod(0o755)
    try:
        build(aside)
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _remove_unused(root: Path) -> None:
    limit = time.time() - UNUSED_AFTER_S
    for old in root.iterdir():
        if old.is_dir() and old.stat().st_mtime < limit:
            shutil.rmtree(old, ignore_errors=True)
