"""ADMIN commands: status, counters, verify, checkpoint."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from meridian import __version__
from meridian.errors import Kind, MeridianError
from meridian.journal.core import JournalError, Reader

if TYPE_CHECKING:
    from meridian.dataplane.node import Node


async def run(node: Node, command: str, arguments: dict[str, Any]) -> Any:
    """Values of a command. Raises NOT_SUPPORTED for unknown ones."""
    if command == "status":
        return status(node)
    if command == "counters":
        return node.counters.as_map()
    if command == "verify":
        return await asyncio.to_thread(verify, node)
    if command == "checkpoint":
        return await node.housekeeping.checkpoint()
    raise MeridianError(Kind.NOT_SUPPORTED, what=f"the command {command!r}")


def status(node: Node) -> dict[str, Any]:
    """What `meridian status` shows."""
    owner = node.owner
    reader = owner.reader if owner is not None else None
    return {
        "version": __version__,
        "pid": os.getpid(),
        "cluster": node.cluster,
        "profile": node.profile,
        "serving": owner is not None and not owner.dead,
        "failure": "" if node.failure is None else str(node.failure),
        "epoch": reader.epoch[0] if reader else 0,
        "journal_n": reader.n if reader else 0,
        "journal_first_n": node.trim_position().n + 1,
        "journal_bytes": node.journal.size_bytes(),
        "applied_tau": node.engine.applied_tau,
        "complete_tau": node.replica.complete_tau,
        "storage_horizon": node.engine.horizon,
        "storage_bytes": node.storage_path.stat().st_size,
        "catalog_version": node.catalog.version,
        "catalog_versions_kept": len(node.catalog),
        "instances": node.feeds.status(),
        "gates": node.gates.status(),
        "counters": node.counters.as_map(),
    }


def verify(node: Node) -> dict[str, Any]:
    """Every record's checksum, every index against its table. Runs in a thread."""
    damage: list[str] = []
    records = _verify_journal(node, damage)
    report = node.engine.verify(lambda: node.closing)
    damage += report.damages
    return {
        "damage": damage,
        "records": records,
        "relations": report.relations,
        "rows": report.rows,
        "notes": report.notes,
    }


def _verify_journal(node: Node, damage: list[str]) -> int:
    """Counts the records that are durable now; what is appended meanwhile is not looked at."""
    owner = node.owner
    last_n = owner.reader.n if owner is not None else 0
    start = node.trim_position()
    reader = Reader(start)
    records = 0
    try:
        for record in node.journal.read(start.n + 1 if start.n else 0):
            if record.n > last_n or node.closing:
                break
            reader.accept(record)
            records += 1
    except (MeridianError, JournalError) as error:
        damage.append(str(error))
        return records
    if reader.n != last_n and not node.closing:
        damage.append(f"journal 0: ends at record {reader.n}, {last_n} were written")
    return records
