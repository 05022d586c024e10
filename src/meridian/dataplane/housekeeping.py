"""Background work: settling, garbage collection, checkpoints, trim."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from typing import TYPE_CHECKING, Any

from meridian.dataplane.recovery import CHECKPOINT_KEY, JOURNAL, encode_position, trim_key
from meridian.errors import MeridianError
from meridian.limits import CHECKPOINT_JOURNAL_BYTES, CONFLICT_WINDOW_NS
from meridian.metadata.identities import set_value
from meridian.storage.errors import Failed

if TYPE_CHECKING:
    from meridian.dataplane.node import Node
    from meridian.dataplane.seat import Seat

log = logging.getLogger("meridian.housekeeping")

_IDLE_S = 0.05
_RETRY_S = 1.0
_EXPIRE_S = 5.0
_SLICE_ROWS = 500
_CHECKPOINT_LOOK_S = 0.5
_CHECKPOINT_RETRY_S = 60.0
_SHARE = 3
"""Background slices take at most one part in this many of the event loop."""


class Housekeeping:
    """One per node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._expire_at = 0.0
        self._checkpointing = asyncio.Lock()
        self._written_at_checkpoint = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            started = time.monotonic()
            try:
                busy = self._slice()
            except Failed as error:
                log.error("storage cannot write", extra={"error": str(error)})
                if self.node.engine.broken:
                    self.node.die(str(error))
                busy = False
                await asyncio.sleep(_RETRY_S)
            spent = time.monotonic() - started
            await asyncio.sleep(max(0.001, spent * (_SHARE - 1)) if busy else _IDLE_S)

    def _slice(self) -> bool:
        """One piece of work; False: nothing to do now."""
        engine = self.node.engine
        if not self.node.replica.idle or self.node.replica.failing is not None:
            return False
        if self.node.replica.settle():
            return True
        now = time.monotonic()
        if now >= self._expire_at:
            self._expire_at = now + _EXPIRE_S
            self.node.commits.large.expire()
        return engine.collect(_SLICE_ROWS)

    # Checkpoints

    def _is_due(self) -> bool:
        """A checkpoint per so much journal, or per quarter of storage's size if that is more."""
        written = self.node.journal_bytes_written() - self._written_at_checkpoint
        if written < CHECKPOINT_JOURNAL_BYTES or self._checkpointing.locked():
            return False
        return written >= self.node.storage_path.stat().st_size // 4

    async def run_checkpoints(self) -> None:
        """Until cancelled; beside the rest, which may be busy for a long time."""
        while True:
            await asyncio.sleep(_CHECKPOINT_LOOK_S)
            if not self._is_due():
                continue
            try:
                await self.checkpoint()
            except (MeridianError, OSError) as error:
                # Not durable, not used: the journal is simply kept for longer.
                log.error("checkpoint failed", extra={"error": str(error)})
                await asyncio.sleep(_CHECKPOINT_RETRY_S)

    async def checkpoint(self) -> dict[str, Any]:
        """A durable copy of storage, then trim the journal behind it. Raises MeridianError."""
        async with self._checkpointing:
            return await self._checkpoint()

    async def _checkpoint(self) -> dict[str, Any]:
        node = self.node
        started = time.monotonic()
        written = node.journal_bytes_written()
        parent = node.directory / "checkpoint"
        node.replica.flush()
        name = f"cp-{node.engine.positions.get(JOURNAL, 0)}-{time.time_ns()}"
        parent.mkdir(parents=True, exist_ok=True)
        try:
            info = await asyncio.to_thread(
                node.engine.checkpoint, parent / name, lambda: node.closing
            )
            await asyncio.to_thread(set_value, node.store, CHECKPOINT_KEY, name.encode())
        except BaseException:
            shutil.rmtree(parent / name, ignore_errors=True)
            raise
        self._written_at_checkpoint = written
        node.counters.checkpoints += 1
        for entry in parent.iterdir():
            if entry.name != name:
                shutil.rmtree(entry, ignore_errors=True)
        segments = sum(self._trim(seat, info.positions.get(seat.number, 0)) for seat in node.seats)
        report = {
            "n": info.positions.get(JOURNAL, 0),
            "tau": info.applied_tau,
            "size_bytes": info.size_bytes,
            "segments_trimmed": segments,
            "seconds": round(time.monotonic() - started, 3),
        }
        log.info("checkpoint", extra=report)
        return report

    def _trim(self, seat: Seat, checkpoint_n: int) -> int:
        """Deletes segments that neither checkpoint nor conflict window need (6.7)."""
        oldest = self.node.clock.now().earliest - CONFLICT_WINDOW_NS
        if seat.closed and seat.closed_tau <= oldest and seat.last_n <= checkpoint_n:
            return seat.retire()
        usable = [
            boundary
            for boundary in seat.boundaries
            if boundary.n <= checkpoint_n and boundary.tau <= oldest
        ]
        if not usable:
            return 0
        start = usable[-1]
        set_value(self.node.store, trim_key(seat.number), encode_position(start))
        seat.boundaries[:] = [one for one in seat.boundaries if one.n >= start.n]
        return seat.journal.trim(start.n + 1)
