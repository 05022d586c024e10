"""How fast a lost shard comes back: `bench/storage_restore.py [--mb N] [--commits N] [--json]`.

A shard of `--mb` MB is snapshotted to a directory and restored from it, then so many small commits
of the journal are applied. Numbers of one noisy machine: compare them with each other.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from meridian.journal.core import Position
from meridian.snapshots import open_objects, restore, write
from meridian.storage import Engine, ScanRequest
from meridian.wire import ops

SID = 2000
ROWS = 4_000
ROW_BYTES = 250


def filled(path: Path, size_bytes: int) -> Engine:
    """A shard of about this size."""
    engine = Engine.create(path, boot_id="bench")
    engine.apply([(256, [ops.Create(SID, 0, [(1, 1), (2, 2)], 0)])], {0: 1})
    n = 1
    while path.stat().st_size < size_bytes:
        first = n * ROWS
        keys = [i.to_bytes(8, "big") for i in range(first, first + ROWS)]
        rows = [(i, os.urandom(ROW_BYTES)) for i in range(ROWS)]
        n += 1
        put = ops.Put(SID, ops.FRESH, (1, 2), keys, b"", b"", rows)
        engine.apply([(n * 256, [put])], {0: n})
        engine._db.wal_checkpoint()
    return engine


def main() -> None:
    """Snapshot, restore, journal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--commits", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        engine = filled(root / "shard.db", arguments.mb * 1_000_000)
        objects = open_objects(root / "objects")
        n = engine.positions[0]
        at = {0: Position(n=n, tau=engine.applied_tau)}
        started = time.perf_counter()
        snapshot, manifest = write(
            engine.path, objects, shard="s", nonce="0", starts=at, scratch=root / "scratch.db"
        )
        taken = time.perf_counter()
        restore(objects, snapshot, root / "copy.db")
        copy = Engine.open(root / "copy.db", boot_id="bench", durable=None)
        restored = time.perf_counter()
        copy.scan(ScanRequest(copy.applied_tau, SID, aggs=((1, 0),)))
        first_read = time.perf_counter()
        for start in range(0, arguments.commits, 256):
            group = []
            for i in range(start, min(start + 256, arguments.commits)):
                put = ops.Put(SID, 0, (1, 2), [i.to_bytes(8, "big")], b"", b"", [(i, b"x" * 100)])
                group.append(((n + 1 + i) * 256, [put]))
            copy.apply(group, {0: n + 1 + i})
        applied = time.perf_counter()
        size_mb = manifest.size_bytes / 1e6
        report = {
            "size_mb": round(size_mb),
            "snapshot_s": round(taken - started, 3),
            "snapshot_mb_per_s": round(size_mb / (taken - started)),
            "restore_s": round(restored - taken, 3),
            "restore_mb_per_s": round(size_mb / (restored - taken)),
            "first_count_s": round(first_read - restored, 3),
            "commits_per_s": round(arguments.commits / (applied - first_read)),
        }
        copy.abandon()
        engine.abandon()
    lines = "\n".join(f"{name:20} {value}" for name, value in report.items())
    print(json.dumps(report) if arguments.json else lines)


if __name__ == "__main__":
    main()
