"""Checkpoints: a fsynced, consistent copy of a replica file with its positions (design section 8).

A checkpoint is a directory: `storage.db` (a clean file) and `manifest.json`, written
last. The copy is taken inside one read transaction of its own connection, so that writers go on;
they only cannot recycle the write-ahead log past it. It may hold staged rows of open large
transactions: their chunks then need not be read again.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import apsw
import msgspec

from meridian.storage import schema
from meridian.storage.errors import Cancelled, Failed, RebuildNeeded
from meridian.storage.sql import fetch

STORAGE_NAME = "storage.db"
MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
STEP_PAGES = 256
"""4 MiB between two looks at `stop`; the GIL is released inside a step."""
CACHE_BYTES = 8 << 20
CRC_BLOCK_BYTES = 1 << 20


class CheckpointInfo(msgspec.Struct, frozen=True):
    """What a checkpoint holds: commits through `applied_tau`, records through `positions`."""

    version: int
    applied_tau: int
    horizon: int
    positions: dict[int, int]
    note: bytes
    size_bytes: int
    generation: bytes
    crc: int | None = None
    """CRC-32 of the file; None in manifests written before it was kept."""


def write(
    source: Path, target_dir: Path, stop: Callable[[], bool] = lambda: False
) -> CheckpointInfo:
    """Copy the file at `source` into the new directory `target_dir`; blocking, for a thread.

    Raises Cancelled once `stop()` says so, Failed on I/O errors; then no manifest exists.
    """
    target_dir.mkdir(parents=True, exist_ok=False)
    target = target_dir / STORAGE_NAME
    try:
        _copy_file(source, target, stop)
        info = _finish(target)
        write_durably(target_dir / MANIFEST_NAME, msgspec.json.encode(info))
        fsync_dir(target_dir)
        fsync_dir(target_dir.parent)
        return info
    except (apsw.Error, OSError) as error:
        raise Failed(f"checkpoint: {error}") from error


def copy_file(source: Path, target: Path, stop: Callable[[], bool] = lambda: False) -> None:
    """A consistent copy of a file that is being written; not durable. Raises Cancelled, Failed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy_file(source, target, stop)
    except (apsw.Error, OSError) as error:
        raise Failed(f"copy: {error}") from error


def finish_copy(target: Path) -> None:
    """One clean file without a log, not synced. Raises Failed."""
    try:
        copy = apsw.Connection(str(target))
        try:
            copy.execute("PRAGMA synchronous = OFF").fetchall()
            copy.execute("PRAGMA journal_mode = DELETE").fetchall()
            copy.execute("UPDATE file SET clean = 1").fetchall()
        finally:
            copy.close(True)
    except apsw.Error as error:
        raise Failed(f"copy: {error}") from error


def _copy_file(source: Path, target: Path, stop: Callable[[], bool]) -> None:
    reader = schema.connect_reader(source, cache_bytes=CACHE_BYTES)
    try:
        _copy(reader, target, stop)
    finally:
        reader.close(True)


def _copy(reader: apsw.Connection, target: Path, stop: Callable[[], bool]) -> None:
    reader.execute("BEGIN")
    # The first read pins the snapshot that all steps copy.
    reader.execute("SELECT 1 FROM state").fetchall()
    copy = apsw.Connection(str(target))
    try:
        with copy.backup("main", reader, "main") as backup:
            while not backup.done:
                if stop():
                    raise Cancelled()
                backup.step(STEP_PAGES)
        reader.execute("ROLLBACK")
    finally:
        copy.close(True)


def _finish(target: Path) -> CheckpointInfo:
    """Mark the copy clean, make it one durable file, and read back what it says of itself."""
    copy = apsw.Connection(str(target))
    try:
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()
        copy.execute("PRAGMA synchronous = FULL").fetchall()
        copy.execute("UPDATE file SET clean = 1").fetchall()
        state = schema.load_state(copy)
        generation = fetch(copy, "SELECT generation FROM file")[0][0]
    finally:
        copy.close(True)
    _fsync_file(target)
    return CheckpointInfo(
        MANIFEST_VERSION,
        state.applied_tau,
        state.horizon,
        state.positions,
        state.note,
        target.stat().st_size,
        generation,
        _crc(target),
    )


def read_manifest(checkpoint_dir: Path) -> CheckpointInfo:
    """What a checkpoint holds. Raises RebuildNeeded for one that is incomplete or unknown."""
    try:
        info = msgspec.json.decode(
            (checkpoint_dir / MANIFEST_NAME).read_bytes(), type=CheckpointInfo
        )
        size_bytes = (checkpoint_dir / STORAGE_NAME).stat().st_size
    except (OSError, msgspec.MsgspecError) as error:
        raise RebuildNeeded(f"checkpoint {checkpoint_dir.name}: {error}") from error
    if info.version != MANIFEST_VERSION:
        raise RebuildNeeded(f"checkpoint version {info.version} is not known")
    if size_bytes != info.size_bytes:
        raise RebuildNeeded(f"checkpoint {checkpoint_dir.name} is not whole")
    return info


def check(checkpoint_dir: Path) -> CheckpointInfo:
    """`read_manifest`, and the file is what it says, with a sound structure. Raises RebuildNeeded.

    Reads all pages; changes nothing.
    """
    info = read_manifest(checkpoint_dir)
    _check_crc(checkpoint_dir, info)
    path = checkpoint_dir / STORAGE_NAME
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    try:
        db = apsw.Connection(f"{path.absolute().as_uri()}?immutable=1", flags=flags)
        try:
            state = schema.load_state(db)
            generation = fetch(db, "SELECT generation FROM file")[0][0]
            faults = [str(row[0]) for row in fetch(db, "PRAGMA quick_check(1)")]
        finally:
            db.close(True)
    except (apsw.Error, IndexError, msgspec.MsgspecError) as error:
        raise RebuildNeeded(f"checkpoint {checkpoint_dir.name} is damaged: {error}") from error
    if faults != ["ok"]:
        raise RebuildNeeded(f"checkpoint {checkpoint_dir.name} is damaged: {faults[0]}")
    if (state.positions, state.applied_tau, generation) != (
        info.positions,
        info.applied_tau,
        info.generation,
    ):
        raise RebuildNeeded(f"checkpoint {checkpoint_dir.name} is not the one of its manifest")
    return info


def restore(checkpoint_dir: Path, path: Path) -> CheckpointInfo:
    """Copy a checkpoint to `path`, replacing what is there. Raises RebuildNeeded, Failed."""
    info = read_manifest(checkpoint_dir)
    _check_crc(checkpoint_dir, info)
    schema.remove_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".restoring")
    try:
        shutil.copyfile(checkpoint_dir / STORAGE_NAME, partial)
        schema.renew_generation(partial)
        _fsync_file(partial)
        partial.replace(path)
        fsync_dir(path.parent)
    except OSError as error:
        raise Failed(f"restore: {error}") from error
    except apsw.Error as error:
        raise RebuildNeeded(f"checkpoint {checkpoint_dir.name} is damaged: {error}") from error
    return info


def write_durably(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _check_crc(checkpoint_dir: Path, info: CheckpointInfo) -> None:
    try:
        if info.crc is not None and _crc(checkpoint_dir / STORAGE_NAME) != info.crc:
            raise RebuildNeeded(f"checkpoint {checkpoint_dir.name} is damaged: wrong checksum")
    except OSError as error:
        raise RebuildNeeded(f"checkpoint {checkpoint_dir.name}: {error}") from error


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(CRC_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
