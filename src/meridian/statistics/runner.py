"""Orders ANALYZE for the tables that `core` names, one at a time.

Register `run` as a routine of the supervisor.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Protocol

import psycopg

from meridian.gateway.aio import AsyncClient
from meridian.gateway.client import GatewayError
from meridian.instance.errors import SetupError
from meridian.instance.root import Connection
from meridian.limits import STATS_SIDS
from meridian.statistics.core import LOOK_S, REST, Core, Table
from meridian.wire import frames
from meridian.wire.ops import SID_STATISTICS_HEADS

CONNECT_S = 10.0
COLUMN_ROWS = 4
PAGE_BYTES = 1024 * 1024
CLASS_RELATION = 1259
"""OID of pg_class."""
_SETTINGS = "SET lock_timeout = '1s'; SET statement_timeout = '60s'"
_TABLES = """
SELECT c.oid::int8, r.sid, pg_catalog.format('%I.%I', n.nspname, c.relname)
FROM meridian.relation r JOIN pg_catalog.pg_class c ON c.oid = r.relid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND NOT EXISTS (
    SELECT FROM pg_catalog.unnest(c.reloptions) o WHERE o ~* '^autovacuum_enabled=(f|of|n|0)')
ORDER BY c.oid
"""


class Cluster(Protocol):
    """What a routine of the supervisor gets."""

    @property
    def gateway(self) -> Path:
        """The gateway's socket."""

    async def connect(self) -> Connection:
        """A superuser session (autocommit). Raises when no instance serves."""


async def run(cluster: Cluster, look_s: float = LOOK_S) -> None:
    """Until cancelled. `look_s`: the pause before the first look, and the shortest after."""
    core = Core()
    pause_s = look_s
    while True:
        await asyncio.sleep(pause_s)
        began = time.monotonic()
        try:
            async with await cluster.connect() as session:
                await session.execute(_SETTINGS)
                await look(core, session, cluster.gateway)
                pause_s = max(look_s, REST * (time.monotonic() - began))
                await analyse(core, session)
        except (psycopg.Error, OSError, GatewayError, SetupError):
            # Instances come and go; nothing here is urgent.
            pause_s = look_s


async def look(core: Core, session: Connection, gateway: Path) -> None:
    """How many rows the tables have, and had when they were analysed."""
    rows = await (await session.execute(_TABLES)).fetchall()
    client = await AsyncClient.connect(gateway, timeout_s=CONNECT_S)
    try:
        counts = await _counts(client, [sid for _, sid, _ in rows])
        heads = await _heads(client)
    finally:
        client.close()
    tables = (Table(oid, name, count) for (oid, _, name), count in zip(rows, counts, strict=True))
    core.look(time.monotonic(), tables, heads)


async def _counts(client: AsyncClient, sids: list[int]) -> list[int]:
    counts: list[int] = []
    for at in range(0, len(sids), STATS_SIDS):
        (values,) = await client.call(frames.STATS, sids[at : at + STATS_SIDS])
        counts += [rows for rows, _ in values]
    return counts


async def _heads(client: AsyncClient) -> dict[int, int]:
    heads: dict[int, int] = {}
    tau, lo, flags, more = 0, b"", 0, True
    while more:
        bounds: tuple[Any, ...] = (lo, None, flags, [COLUMN_ROWS], None, 0, PAGE_BYTES)
        tau, more, page = await client.call(
            frames.SCAN, 0, tau, SID_STATISTICS_HEADS, *bounds, 0, [], None, None, None
        )
        heads.update(_head(key, rows) for key, rows in page if _class(key) == CLASS_RELATION)
        if more:
            lo, flags = page[-1][0], frames.SCAN_LO_EXCLUSIVE
    return heads


def _class(key: bytes) -> int:
    return int.from_bytes(key[:4], "big")


def _head(key: bytes, rows: int) -> tuple[int, int]:
    return int.from_bytes(key[4:], "big"), rows


async def analyse(core: Core, session: Connection) -> None:
    """All that is due, with rests in between. Raises psycopg.Error when the session is gone."""
    while (table := core.next()) is not None:
        began = time.monotonic()
        try:
            await session.execute(f"ANALYZE {table.name}".encode())
        except psycopg.Error:
            if session.broken:
                raise
            core.failed(time.monotonic(), table)
        await asyncio.sleep(core.pause_s(time.monotonic() - began))
