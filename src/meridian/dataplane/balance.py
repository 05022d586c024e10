"""Relations that outgrow their shard are cut: the upper half of their keys moves to another one.

Slice by slice, each of them a move of its own: while both shards are idle, complete through the
same tau and without staged rows, the target copies some keys and owns them in one transaction, then
the source shrinks. Reads and commits go on between two slices; a crash leaves two complete owners
of a slice at most (`shard_files.settle_owners`), or the rest of the move to be decided anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import NamedTuple

from meridian.control.assign import cut_wanted
from meridian.dataplane.shards import ShardedEngine
from meridian.storage import schema
from meridian.storage.sql import fetch
from meridian.wire.ranges import asked, keys_of, span

CUT_ROWS = 1_000_000
"""A relation with more rows in one shard is cut, if another shard has room."""
SLICE_ROWS = 1_000
SLICE_BYTES = 1 << 20
"""About what one slice copies at most: it holds up the event loop."""
LOOK_S = 5.0

log = logging.getLogger("meridian.balance")


class Move(NamedTuple):
    """Keys of a relation from `lo` on, up to `hi`, are on their way."""

    sid: int
    source: int
    target: int
    lo: bytes
    hi: bytes | None


def middle_key(path: Path, sid: int, lo: bytes, hi: bytes | None) -> bytes | None:
    """The middle of a relation's keys in a range; None: there is none. For a thread."""
    db = schema.connect_reader(path, cache_bytes=1 << 20)
    try:
        where = "k >= ?" if hi is None else "k >= ? AND k < ?"
        values = (lo,) if hi is None else (lo, hi)
        count = fetch(db, f"SELECT count(*) FROM r{sid} WHERE {where}", values)[0][0]
        sql = f"SELECT k FROM r{sid} WHERE {where} ORDER BY k LIMIT 1 OFFSET {count // 2}"
        found = fetch(db, sql, values)
        return found[0][0] if found and found[0][0] > lo else None
    finally:
        db.close(True)


class Balancer:
    """One per ShardedEngine; `step` is called while all shards are idle."""

    def __init__(self, shards: ShardedEngine) -> None:
        self.shards = shards
        self.moved_rows = 0
        self._move: Move | None = None
        self._deciding: asyncio.Task[None] | None = None
        self._look_at = 0.0

    def step(self, tau: int) -> bool:
        """One slice, or a look whether one is wanted. All shards are complete through `tau`."""
        if self._move is not None:
            return self._slice(self._move, tau)
        now = time.monotonic()
        if self._deciding is None and now >= self._look_at and not self.shards.frozen:
            self._look_at = now + LOOK_S
            self._look()
        return False

    def close(self) -> None:
        """No further slice."""
        self._move = None
        if self._deciding is not None:
            self._deciding.cancel()

    def _look(self) -> None:
        engines = self.shards.engines
        sizes = [engine.path.stat().st_size for engine in engines]
        largest = [engine.largest_relation() or (0, 0) for engine in engines]
        wanted = cut_wanted(sizes, [rows for _, rows in largest], CUT_ROWS)
        if wanted is not None:
            source, target = wanted
            sid = largest[source][0]
            self._deciding = asyncio.get_running_loop().create_task(
                self._decide(sid, source, target)
            )

    async def _decide(self, sid: int, source: int, target: int) -> None:
        """Where to cut is read in a thread."""
        try:
            engine = self.shards.engines[source]
            # The last of the ranges that the source has of it: the target takes the upper part.
            part = engine.ranges.base_parts(span(sid))[-1].range
            lo, hi = keys_of(sid, part)
            middle = await asyncio.to_thread(middle_key, engine.path, sid, lo, hi)
            if middle is not None:
                self._move = Move(sid, source, target, middle, hi)
                log.info("relation is cut", extra={"sid": sid, "from": source, "to": target})
        except Exception:
            # It is only a matter of balance; the next look decides anew.
            log.exception("no place to cut")
        finally:
            self._deciding = None

    def _slice(self, move: Move, tau: int) -> bool:
        source, target = (self.shards.engines[n] for n in (move.source, move.target))
        if self.shards.frozen or source.has_staged() or target.has_staged():
            return False
        if target.purge(SLICE_ROWS):
            # What it gave up before must be gone before it comes back.
            return True
        held = source.ranges.base_of(asked(move.sid, move.lo, move.hi))
        if held is None or source.known_columns(move.sid) is None:
            self._move = None
            return False
        rows, size_bytes = source.stats([move.sid])[0]
        most = SLICE_BYTES * rows // max(1, size_bytes)
        end = source.slice_end(move.sid, move.lo, move.hi, max(1, min(SLICE_ROWS, most)))
        stop = move.hi if end is None else end
        target.take_slice(source, move.sid, move.lo, stop, tau, tau.to_bytes(8, "big"))
        self.shards.give_up(source, target, asked(move.sid, move.lo, stop))
        self.moved_rows += SLICE_ROWS
        self._move = None if end is None else move._replace(lo=end)
        return True
