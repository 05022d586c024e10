"""The storage files of several shards on disk: opened, restored and checkpointed as one.

A hole between them, or one that cannot be trusted, means that all are made anew from the checkpoint
and the journals.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from meridian.dataplane import recovery
from meridian.journal.core import Position
from meridian.storage import Engine, RebuildNeeded, checkpoint, schema
from meridian.storage.checkpoint import CheckpointInfo
from meridian.storage.errors import Failed
from meridian.wire.ranges import ALL, EVERYTHING, Range, cover, without

log = logging.getLogger("meridian.shards")

SHARDS_MAX = 64
SET_NAME = "set.json"
SET_VERSION = 1


class SetInfo(msgspec.Struct, frozen=True):
    """`set.json` of a checkpoint, written last: so many shards, in `shard-<n>`."""

    version: int
    shards: int


def shard_path(directory: Path, number: int) -> Path:
    """The file of a shard."""
    return directory / f"shard-{number}.db"


def existing(directory: Path) -> int:
    """How many shards there are: the highest number in a file name, and one."""
    numbers = [int(path.stem.removeprefix("shard-")) for path in directory.glob("shard-*.db")]
    return max(numbers, default=-1) + 1


def checkpoint_shards(path: Path | None) -> int:
    """How many shards a checkpoint has; 0: it is one of a single file, or none."""
    if path is None or not (path / SET_NAME).exists():
        return 0
    info = msgspec.json.decode((path / SET_NAME).read_bytes(), type=SetInfo)
    if info.version != SET_VERSION:
        raise RebuildNeeded(f"checkpoint set version {info.version} is not known")
    return info.shards


def found(directory: Path, path: Path | None) -> int:
    """Shards that are there, as files or in the checkpoint."""
    try:
        return max(existing(directory), checkpoint_shards(path))
    except (RebuildNeeded, msgspec.MsgspecError, OSError):
        # Opening it will say what is wrong.
        return 2


def together(infos: Sequence[CheckpointInfo]) -> CheckpointInfo:
    """What a set of checkpoints holds in all: as far as the one that is furthest behind."""
    journals = sorted({journal for info in infos for journal in info.positions})
    return CheckpointInfo(
        version=infos[0].version,
        applied_tau=min(info.applied_tau for info in infos),
        horizon=max(info.horizon for info in infos),
        positions={j: min(info.positions.get(j, 0) for info in infos) for j in journals},
        note=infos[0].note,
        size_bytes=sum(info.size_bytes for info in infos),
        generation=infos[0].generation,
    )


def seal_set(target_dir: Path, infos: Sequence[CheckpointInfo]) -> CheckpointInfo:
    """Checkpoints of all shards, in `shard-<n>`, are one set from here on. Raises OSError."""
    info = SetInfo(SET_VERSION, len(infos))
    checkpoint.write_durably(target_dir / SET_NAME, msgspec.json.encode(info))
    checkpoint.fsync_dir(target_dir)
    checkpoint.fsync_dir(target_dir.parent)
    return together(infos)


def check_set(path: Path) -> CheckpointInfo:
    """`checkpoint.check` of every shard of a set. Raises RebuildNeeded."""
    count = checkpoint_shards(path)
    return together([checkpoint.check(path / f"shard-{number}") for number in range(count)])


def open_files(
    directory: Path,
    checkpoint_dir: Path | None,
    boot: str,
    starts: Sequence[Position],
    *,
    trusted: bool,
    count: int,
) -> list[Engine]:
    """The storage files, else those of the checkpoint, else empty ones; at least `count`.

    Raises JOURNAL_TRIMMED when what is left cannot be completed from the journal, Failed.
    """
    assert 1 <= count <= SHARDS_MAX
    reason = "they are ahead of the journal"
    if trusted:
        try:
            engines = _open_all(directory, boot)
            if recovery.missing(held(engines), starts) is None:
                return _complete(directory, engines, boot, count)
            _abandon(engines)
            reason = "a journal begins after them"
        except RebuildNeeded as refusal:
            reason = str(refusal)
    log.warning("storage is rebuilt", extra={"reason": reason})
    engines = _restore(directory, checkpoint_dir, boot)
    missing = recovery.missing(held(engines), starts)
    if missing is not None:
        _abandon(engines)
        raise missing
    return _complete(directory, engines, boot, count)


def held(engines: Sequence[Engine]) -> dict[int, int]:
    """Per journal, the last record that all of them hold."""
    several = [engine.positions for engine in engines]
    journals = sorted({journal for one in several for journal in one})
    return {journal: min(one.get(journal, 0) for one in several) for journal in journals}


def _abandon(engines: Sequence[Engine]) -> None:
    for engine in engines:
        engine.abandon()


def _open_all(directory: Path, boot: str) -> list[Engine]:
    """All files, none missing, that together own everything. Raises RebuildNeeded, Failed."""
    engines: list[Engine] = []
    try:
        for number in range(max(1, existing(directory))):
            engines.append(Engine.open(shard_path(directory, number), boot_id=boot, durable=None))
        _check_cover(engines)
    except (RebuildNeeded, Failed):
        _abandon(engines)
        raise
    return engines


def _check_cover(engines: Sequence[Engine]) -> None:
    ranges = [one.range for engine in engines for one in engine.ranges.owned]
    if not cover(ranges, EVERYTHING):
        raise RebuildNeeded("the storage files do not hold everything together")


def _restore(directory: Path, path: Path | None, boot: str) -> list[Engine]:
    """From a checkpoint of one file or of several, or from nothing."""
    for number in range(existing(directory)):
        schema.remove_file(shard_path(directory, number))
    directory.mkdir(parents=True, exist_ok=True)
    if path is not None:
        engines: list[Engine] = []
        try:
            parts = [path / f"shard-{n}" for n in range(checkpoint_shards(path))] or [path]
            for number, part in enumerate(parts):
                target = shard_path(directory, number)
                engines.append(Engine.restore(part, target, boot_id=boot, durable=None))
            _check_cover(engines)
            return engines
        except (RebuildNeeded, msgspec.MsgspecError) as error:
            _abandon(engines)
            log.error("checkpoint cannot be used", extra={"error": str(error)})
            for number in range(existing(directory)):
                schema.remove_file(shard_path(directory, number))
    return [Engine.create(shard_path(directory, 0), boot_id=boot, owned=ALL)]


def _complete(directory: Path, engines: list[Engine], boot: str, count: int) -> list[Engine]:
    """Empty files up to the number wanted, and one owner for every place."""
    base = min(engine.applied_tau for engine in engines)
    positions = held(engines)
    while len(engines) < count:
        path = shard_path(directory, len(engines))
        engine = Engine.create(path, boot_id=boot, base_tau=base, owned=())
        engine.apply([], positions)
        engines.append(engine)
    settle_owners(engines)
    return engines


def settle_owners(engines: Sequence[Engine]) -> None:
    """Where a crash left two owners of a place, the later shard keeps it: it was given to it."""
    taken: list[Range] = []
    for engine in reversed(engines):
        owned = list(engine.ranges.owned)
        for part in taken:
            owned = without(owned, part)
        if owned != list(engine.ranges.owned):
            engine.shrink(owned)
        taken += [one.range for one in owned]
