"""The extension's own write buffer, encoder and commit frames, loaded without a server.

The library is compiled at first use from pgext/src and kept in the cache by the hash of its
sources, as the extension is.  `sim/writes.py` has the interface, and the twin in Python.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from meridian.instance import binaries, cache, extension
from meridian.instance.errors import SetupError
from meridian.sim.writes import NEVER, PythonWrites, Writes

FILES = (
    "common", "encode", "frames", "locks", "msgpack", "proto", "rowcheck", "serverless", "undo",
    "writebuf", "writelib",
)  # fmt: skip
CHOICE = "MERIDIAN_SIM_WRITES"
"""Environment: `python` or `c` instead of whichever is there."""
DECLARATIONS = """
int merw_begin(int64_t tau);
int merw_write(int64_t sid, int flags, const char *key, uint32_t klen, const char *values,
               const uint32_t *lens, const int16_t *attnums, int nvalues, uint32_t cid);
int merw_lock(int64_t sid, const char *key, uint32_t klen, int mode);
int merw_check(int64_t sid, const char *key, uint32_t klen);
int merw_schema(const char *op, uint32_t len);
int merw_savepoint(uint32_t id);
int merw_rollback(uint32_t id);
int merw_release(uint32_t id);
int merw_visible(int64_t sid, const char *key, uint32_t klen, uint64_t cid_limit,
                 const char **row, uint32_t *len);
int64_t merw_size(void);
int merw_commit(const char *txid, int64_t catver, uint64_t chunk_bytes);
int merw_status(const char *txid, int64_t tau);
const char *merw_sent(uint64_t *len);
int merw_answer(const char *frames, uint64_t len, uint64_t step, int64_t *value);
uint64_t merw_hash(int64_t sid, int kind, const char *key, uint32_t len);
const char *merw_why(void);
"""
DELETE = 32


class Unavailable(Exception):
    """The library cannot be had on this machine; the message says why."""


def _compile(sources: list[Path], include: Path, target: Path) -> None:
    flags = [*extension.FLAGS, "-D_GNU_SOURCE", "-I", str(include), "-shared"]
    command = [*extension.compiler(), *flags, *map(str, sources), "-o", str(target / "writes.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or done.stderr:
        raise SetupError(f"compiling the write buffer failed:\n{done.stderr.strip()}")


def library() -> Path:
    """The compiled library, from the cache or made now. Raises SetupError."""
    directory = extension.source_directory() / "src"
    sources = [directory / f"{name}.c" for name in FILES]
    install = binaries.find()
    digest = hashlib.sha256(f"{install.version} {platform.machine()}".encode())
    digest.update(" ".join([*extension.compiler(), *extension.FLAGS]).encode())
    for path in (*sources, *sorted(directory.glob("*.h"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    name = f"writes-{digest.hexdigest()[:16]}"
    include = install.includedir_server
    return cache.entry(name, lambda target: _compile(sources, include, target)) / "writes.so"


@lru_cache(maxsize=1)
def _load() -> tuple[Any, Any]:
    try:
        import cffi
    except ImportError:
        raise Unavailable("the package cffi is not installed") from None
    try:
        path = library()
    except (SetupError, OSError) as error:
        raise Unavailable(str(error).splitlines()[0]) from None
    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    return ffi, ffi.dlopen(str(path))


class CWrites:
    """See `Writes`.  All objects share the one transaction of the library."""

    def __init__(self) -> None:
        self._ffi, self._lib = _load()
        self._row = self._ffi.new("const char **")
        self._len = self._ffi.new("uint32_t *")
        self._long = self._ffi.new("uint64_t *")
        self._value = self._ffi.new("int64_t *")
        self._attnums: dict[tuple[int, ...], Any] = {}

    def _done(self, result: int) -> int:
        if result < 0:
            raise ValueError(self._ffi.string(self._lib.merw_why()).decode())
        return result

    def begin(self, tau: int) -> None:
        """See `Writes`."""
        self._done(self._lib.merw_begin(tau))

    def put(
        self,
        sid: int,
        key: bytes,
        values: Sequence[bytes],
        attnums: Sequence[int] = (1,),
        flags: int = 0,
        cid: int = 0,
    ) -> None:
        """See `Writes`."""
        shape = self._attnums.get(tuple(attnums))
        if shape is None:
            shape = self._attnums[tuple(attnums)] = self._ffi.new("int16_t[]", list(attnums))
        lens = self._ffi.new("uint32_t[]", [len(value) for value in values])
        data = b"".join(values)
        self._done(
            self._lib.merw_write(sid, flags, key, len(key), data, lens, shape, len(values), cid)
        )

    def delete(self, sid: int, key: bytes, flags: int = 0, cid: int = 0) -> None:
        """See `Writes`."""
        null = self._ffi.NULL
        self._done(
            self._lib.merw_write(sid, flags | DELETE, key, len(key), null, null, null, 0, cid)
        )

    def lock(self, sid: int, key: bytes, mode: int) -> None:
        """See `Writes`."""
        self._done(self._lib.merw_lock(sid, key, len(key), mode))

    def check(self, sid: int, key: bytes) -> None:
        """See `Writes`."""
        self._done(self._lib.merw_check(sid, key, len(key)))

    def schema(self, op: bytes) -> None:
        """See `Writes`."""
        self._done(self._lib.merw_schema(op, len(op)))

    def savepoint(self, number: int) -> None:
        """See `Writes`."""
        self._done(self._lib.merw_savepoint(number))

    def rollback(self, number: int) -> None:
        """See `Writes`."""
        self._done(self._lib.merw_rollback(number))

    def release(self, number: int) -> None:
        """See `Writes`."""
        self._done(self._lib.merw_release(number))

    def visible(self, sid: int, key: bytes, below: int = NEVER) -> bytes | bool:
        """See `Writes`."""
        found = self._lib.merw_visible(sid, key, len(key), below, self._row, self._len)
        if found == 1:
            return bytes(self._ffi.buffer(self._row[0], self._len[0]))
        return bool(found == 0)

    def size(self) -> int:
        """See `Writes`."""
        return int(self._lib.merw_size())

    def _sent(self) -> bytes:
        data = self._lib.merw_sent(self._long)
        return bytes(self._ffi.buffer(data, self._long[0]))

    def commit(self, txid: bytes, catver: int, chunk_bytes: int) -> bytes:
        """See `Writes`."""
        self._done(self._lib.merw_commit(txid, catver, chunk_bytes))
        return self._sent()

    def status(self, txid: bytes, tau: int) -> bytes:
        """See `Writes`."""
        self._done(self._lib.merw_status(txid, tau))
        return self._sent()

    def answer(self, frames: bytes, step: int) -> tuple[int, int]:
        """See `Writes`."""
        kind = self._done(self._lib.merw_answer(frames, len(frames), step, self._value))
        return kind, int(self._value[0])

    def hash(self, sid: int, kind: int, key: bytes) -> int:
        """A conflict hash."""
        return int(self._lib.merw_hash(sid, kind, key, len(key)))


@lru_cache(maxsize=1)
def default_writes() -> tuple[Writes, str]:
    """The extension's code, or where it cannot be had its twin, and a line that says which."""
    wish = os.environ.get(CHOICE, "")
    if wish == "python":
        return PythonWrites(), f"query processors write with the twin in Python ({CHOICE})"
    try:
        return CWrites(), "query processors write with the extension's own code"
    except Unavailable as error:
        if wish == "c":
            raise
        return PythonWrites(), f"query processors write with the twin in Python: {error}"
