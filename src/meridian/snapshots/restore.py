"""From an object store back to a storage file, and which snapshot to take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw

from meridian.snapshots import manifest as manifest_
from meridian.snapshots.errors import SnapshotUnusable
from meridian.snapshots.manifest import MANIFEST_NAME, Manifest
from meridian.snapshots.objects import Objects
from meridian.storage import schema
from meridian.storage.errors import Cancelled, Failed

FETCHES = 4
"""Parts on the way at once: they bound the memory to so many parts."""


def read_manifest(objects: Objects, name: str) -> Manifest:
    """The manifest of a snapshot. Raises SnapshotUnusable, STORAGE_FAILED."""
    try:
        return manifest_.decode(objects.get(f"{name}/{MANIFEST_NAME}"))
    except KeyError:
        raise SnapshotUnusable(f"snapshot {name} is not whole") from None
    except SnapshotUnusable as error:
        raise SnapshotUnusable(f"snapshot {name}: {error}") from error


def newest(objects: Objects, shard: str) -> Iterator[tuple[str, Manifest | SnapshotUnusable]]:
    """Snapshots of a shard from the newest on, each with its manifest or what is wrong with it.

    What was never finished has no manifest and is not among them.
    """
    entries = objects.list(shard)
    names = [e.name.rpartition("/")[0] for e in entries if e.name.endswith(f"/{MANIFEST_NAME}")]
    for name in reversed(names):
        try:
            yield name, read_manifest(objects, name)
        except SnapshotUnusable as error:
            yield name, error


def restore(
    objects: Objects,
    name: str,
    path: Path,
    *,
    history: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Manifest:
    """Make the storage file at `path` from a snapshot, replacing what is there; then `Engine.open`.

    `history` False: reads below the snapshot's tau are refused. A digest that another copy
    confirmed speaks for what is visible at that tau, not for versions replaced before: after rot
    they may be wrong, and a self-check below that tau would remove the rebuilt copy again.

    Blocking, for a thread. The file counts as clean. Raises SnapshotUnusable (a part is missing or
    damaged: take another snapshot), Cancelled, Failed, STORAGE_FAILED; then `path` has no file.
    """
    manifest = read_manifest(objects, name)
    if manifest.storage_format not in schema.FORMATS:
        raise SnapshotUnusable(f"storage format {manifest.storage_format} is not known")
    schema.remove_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".restoring")
    try:
        _fetch(objects, name, manifest, partial, stop)
        schema.renew_generation(partial)
        if not history:
            schema.raise_horizon(partial, manifest.tau)
        partial.replace(path)
    except OSError as error:
        raise Failed(f"restore: {error}") from error
    except apsw.Error as error:
        raise SnapshotUnusable(f"snapshot {name} is damaged: {error}") from error
    finally:
        schema.remove_file(partial)
    return manifest


def _fetch(
    objects: Objects, name: str, manifest: Manifest, target: Path, stop: Callable[[], bool]
) -> None:
    """All parts into the file, a few at a time, each with its checksum."""
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def one(number: int, offset: int) -> None:
        if stop():
            raise Cancelled()
        part = manifest.parts[number]
        try:
            data = objects.get(manifest_.part_name(name, number))
        except KeyError:
            raise SnapshotUnusable(f"snapshot {name} lacks part {number}") from None
        if not manifest_.intact(part, data):
            raise SnapshotUnusable(f"snapshot {name}: part {number} is damaged")
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:] if done else data, offset + done)

    try:
        with ThreadPoolExecutor(FETCHES, thread_name_prefix="snapshot") as pool:
            offset, jobs = 0, []
            for number, part in enumerate(manifest.parts):
                jobs.append(pool.submit(one, number, offset))
                offset += part.size_bytes
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                for job in jobs:
                    job.cancel()
                raise
    finally:
        os.close(descriptor)
