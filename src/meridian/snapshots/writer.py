"""Taking a snapshot while applying goes on.

The file is copied inside one read transaction of another connection (as a checkpoint is), the copy
is made self-contained (no staged rows: the journal brings open transactions again), cut to the
ranges and taken back to the tau that are asked for, and sent in parts. The manifest goes last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import google_crc32c

from meridian.journal.core import Position
from meridian.snapshots import manifest as manifest_
from meridian.snapshots.manifest import MANIFEST_NAME, PART_BYTES, Manifest, Part
from meridian.snapshots.objects import Objects
from meridian.storage import Engine, checkpoint, schema
from meridian.storage.errors import Cancelled, Failed
from meridian.storage.selfcheck import Digest, digest
from meridian.wire.ranges import Owned

COPY_CACHE_BYTES = 8 << 20


def write(
    source: Path,
    objects: Objects,
    *,
    shard: str,
    nonce: str,
    starts: Mapping[int, Position],
    scratch: Path,
    owned: Sequence[Owned] | None = None,
    tau: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[str, Manifest]:
    """A durable snapshot of the storage file at `source`; its name and manifest.

    Blocking, for a thread. `starts`: per journal that the file knows (6.7) a place to begin
    reading, at or before what it holds now and outside of open large transactions. `owned`: only
    these ranges (a split);
    `tau`: as of an older instant. `scratch`: where the copy lies meanwhile, not there yet.
    Raises Cancelled, Failed, BadRequest, STORAGE_FAILED; then there is no snapshot of this name.
    """
    try:
        positions, summed = _copy(source, scratch, starts, owned, tau, stop)
        found = _describe(scratch)
        name = manifest_.directory_name(shard, found.applied_tau, nonce)
        parts: list[Part] = []
        for number, data in enumerate(_blocks(scratch)):
            if stop():
                raise Cancelled()
            objects.put(manifest_.part_name(name, number), data)
            parts.append(Part(len(data), google_crc32c.value(data)))
        manifest = Manifest(
            shard=shard,
            tau=found.applied_tau,
            horizon=found.horizon,
            owned=_owned(scratch),
            positions=positions,
            starts=dict(starts),
            storage_format=schema.FORMAT,
            size_bytes=sum(part.size_bytes for part in parts),
            parts=tuple(parts),
            digest=summed,
        )
        objects.put(f"{name}/{MANIFEST_NAME}", manifest_.encode(manifest))
        return name, manifest
    except OSError as error:
        raise Failed(f"snapshot: {error}") from error
    finally:
        schema.remove_file(scratch)


def _copy(
    source: Path,
    scratch: Path,
    starts: Mapping[int, Position],
    owned: Sequence[Owned] | None,
    tau: int | None,
    stop: Callable[[], bool],
) -> tuple[dict[int, int], Digest | None]:
    """A clean file of its own at `scratch`; the positions it holds, the digest of its range."""
    checkpoint.copy_file(source, scratch, stop)
    copy = Engine.open_copy(scratch, cache_bytes=COPY_CACHE_BYTES)
    try:
        begin = {journal: start.n for journal, start in starts.items()}
        assert copy.positions.keys() <= begin.keys(), "a journal without a place to begin"
        late = [j for j, n in begin.items() if n > copy.positions.get(j, 0)]
        assert not late, f"reading journal {late} would begin after what the file holds"
        if copy.unresolved() or (tau is not None and tau < copy.applied_tau):
            # Chunks of open transactions are read again, all of them: none begins before `starts`.
            copy.rewind(copy.applied_tau if tau is None else tau, begin)
        while copy.settle(5_000):
            _check(stop)
        if owned is not None:
            copy.shrink(owned)
        while copy.purge(50_000):
            _check(stop)
        positions = copy.positions
        known = copy.ranges.owned
        summed = digest(copy, copy.applied_tau, known[0].range, stop) if len(known) == 1 else None
    finally:
        copy.abandon()
    checkpoint.finish_copy(scratch)
    return positions, summed


def _check(stop: Callable[[], bool]) -> None:
    if stop():
        raise Cancelled()


def _describe(path: Path) -> schema.State:
    db = schema.connect_reader(path, cache_bytes=1 << 20)
    try:
        return schema.load_state(db)
    finally:
        db.close(True)


def _owned(path: Path) -> tuple[Owned, ...]:
    db = schema.connect_reader(path, cache_bytes=1 << 20)
    try:
        return schema.load_ranges(db).owned
    finally:
        db.close(True)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(PART_BYTES):
            yield block
