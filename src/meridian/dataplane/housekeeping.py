"""Background work: settling, garbage collection, checkpoints, trim."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from typing import TYPE_CHECKING, Any

from meridian.limits import GC_HORIZON_NS

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

log = logging.getLogger("meridian.housekeeping")

_IDLE_S = 0.05
_FLOOR_S = 5.0
_SLICE_ROWS = 500
_SHARE = 3
"""Background slices take at most one part in this many of the event loop."""


class Housekeeping:
    """One per node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._floor_at = time.monotonic()
        self._checkpointing = asyncio.Lock()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            started = time.monotonic()
            busy = self._slice()
            spent = time.monotonic() - started
            await asyncio.sleep(max(0.001, spent * (_SHARE - 1)) if busy else _IDLE_S)

    def _slice(self) -> bool:
        """One piece of work; False: nothing to do now."""
        engine = self.node.engine
        if not self.node.applier.idle:
            return False
        if engine.settle(_SLICE_ROWS):
            return True
        self._raise_floor()
        return engine.collect(_SLICE_ROWS)

    def _raise_floor(self) -> None:
        """Versions older than the longest transaction may go (C6)."""
        now = time.monotonic()
        engine = self.node.engine
        if now - self._floor_at < _FLOOR_S:
            return
        self._floor_at = now
        self.node.commits.expire()
        floor = self.node.clock.now().earliest - GC_HORIZON_NS
        # Nothing ended after the newest commit: an idle system writes nothing.
        if engine.horizon < min(floor, engine.applied_tau):
            engine.raise_floor(floor)

    async def checkpoint(self) -> dict[str, Any]:
        """A durable copy of storage; the journal behind it may be trimmed then."""
        async with self._checkpointing:
            return await self._checkpoint()

    async def _checkpoint(self) -> dict[str, Any]:
        node = self.node
        started = time.monotonic()
        parent = node.checkpoint_path.parent
        fresh = parent / "fresh"
        parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        info = await asyncio.to_thread(node.engine.checkpoint, fresh)
        log.info("checkpoint", extra={"seconds": round(time.monotonic() - started, 3)})
        return {"info": str(info)}
