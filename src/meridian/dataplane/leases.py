"""Leases of row ids, storage ids and OIDs: large durable blocks, handed out from memory."""

from __future__ import annotations

import asyncio

from meridian.errors import Kind, MeridianError
from meridian.metadata.identities import LEASES, lease
from meridian.metadata.store import MetadataStore


class Leases:
    """A block is leased by compare-and-set before any number of it is handed out.

    A kill loses the rest of a block; no number is ever handed out twice.
    """

    def __init__(self, store: MetadataStore) -> None:
        self._store = store
        self._left: dict[int, tuple[int, int]] = {}
        self._locks = {kind: asyncio.Lock() for kind in LEASES}

    def take_now(self, kind: int, count: int) -> tuple[int, int] | None:
        """(first, count) from memory; None: a new block is needed. Raises PROTOCOL_VIOLATION."""
        if kind not in LEASES:
            raise MeridianError(Kind.PROTOCOL_VIOLATION, why=f"unknown lease kind {kind}")
        first, left = self._left.get(kind, (0, 0))
        if left == 0:
            return None
        # Fewer than asked for is a valid answer; the block's rest is not thrown away.
        granted = min(count, left, LEASES[kind].granted)
        self._left[kind] = (first + granted, left - granted)
        return first, granted

    async def take(self, kind: int, count: int) -> tuple[int, int]:
        """Like `take_now`, with a new block where needed. Raises LEASE_EXHAUSTED, DISK_FULL."""
        async with self._locks[kind]:
            taken = self.take_now(kind, count)
            if taken is not None:
                return taken
            space = LEASES[kind]
            block = max(min(count, space.granted), space.block)
            loop = asyncio.get_running_loop()
            self._left[kind] = await loop.run_in_executor(None, lease, self._store, kind, block)
            taken = self.take_now(kind, count)
            assert taken is not None
            return taken
