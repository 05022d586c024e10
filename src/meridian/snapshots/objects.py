"""The object store: a directory, or whatever `obstore` can reach (S3, GCS, Azure).

A directory is made durable by hand: the library renames whole files into place but does not sync
them, and a snapshot lets the journal behind it go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import obstore
from obstore.store import LocalStore, MemoryStore, from_url

from meridian.errors import Kind, MeridianError


class Entry(NamedTuple):
    """One object: `modified_s` is its store's clock, seconds since 1970."""

    name: str
    size_bytes: int
    modified_s: float


def _nothing(name: str) -> None:
    return


class Objects:
    """Objects by name; any thread. Raises STORAGE_FAILED on I/O errors."""

    def __init__(self, store: Any, sync: Callable[[str], None] = _nothing) -> None:
        self._store = store
        self._sync = sync

    def put(self, name: str, data: bytes) -> None:
        """Write an object whole; durable once this returns."""
        try:
            obstore.put(self._store, name, data)
            self._sync(name)
        except Exception as error:
            raise _failed("put", name, error) from error

    def get(self, name: str) -> bytes:
        """All of an object. Raises KeyError."""
        try:
            return bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            raise KeyError(name) from None
        except Exception as error:
            raise _failed("get", name, error) from error

    def list(self, prefix: str) -> list[Entry]:
        """All objects below a directory name, by name."""
        try:
            found = [
                Entry(one["path"], one["size"], one["last_modified"].timestamp())
                for batch in obstore.list(self._store, prefix=prefix)
                for one in batch
            ]
        except FileNotFoundError:
            return []
        except Exception as error:
            raise _failed("list", prefix, error) from error
        return sorted(found)

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects, in this order; absent ones are fine."""
        for name in names:
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError:
                continue
            except Exception as error:
                raise _failed("delete", name, error) from error


def _failed(what: str, name: str, error: Exception) -> MeridianError:
    return MeridianError(Kind.STORAGE_FAILED, why=f"object store: {what} {name}: {error}")


def open_objects(where: str | Path) -> Objects:
    """A store by URL (`s3://bucket/prefix`, `gs://`, `az://`, `memory://`), or a directory.

    Credentials come from the environment, as `obstore` reads them. Raises ValueError.
    """
    if isinstance(where, str) and where.startswith("memory:"):
        return Objects(MemoryStore())
    if isinstance(where, str) and "://" in where and not where.startswith("file://"):
        try:
            return Objects(from_url(where))
        except Exception as error:
            raise ValueError(f"object store {where}: {error}") from error
    root = Path(str(where).removeprefix("file://"))
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Objects(LocalStore(root), lambda name: _sync_file(root, name))


def _sync_file(root: Path, name: str) -> None:
    """The file, then every directory from it up to the root."""
    path = root / name
    _fsync(path, os.O_RDWR)
    while path != root:
        path = path.parent
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
