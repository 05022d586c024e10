"""ADMIN commands: status, counters, verify, checkpoint."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import msgspec

from meridian import __version__
from meridian.dataplane.topology import Topology
from meridian.errors import Kind, MeridianError
from meridian.journal.core import JournalError, Reader

if TYPE_CHECKING:
    from meridian.dataplane.node import Node
    from meridian.dataplane.seat import Seat


async def run(node: Node, command: str, arguments: dict[str, Any]) -> Any:
    """Values of a command. Raises NOT_SUPPORTED for unknown ones."""
    if command == "status":
        return status(node)
    if command == "counters":
        return node.counters.as_map()
    if command == "verify":
        return await asyncio.to_thread(verify, node)
    if command == "topology":
        return change_topology(node, arguments)
    if command == "selfcheck":
        return msgspec.to_builtins(await node.selfcheck.check())
    if command == "checkpoint":
        return await node.housekeeping.checkpoint()
    raise MeridianError(Kind.NOT_SUPPORTED, what=f"the command {command!r}")


def change_topology(node: Node, arguments: dict[str, Any]) -> dict[str, Any]:
    """Begins a change if one is asked for; where it stands. Raises BAD_TOPOLOGY."""
    numbers = [arguments.get(name) for name in ("adjudicators", "journals")]
    if any(number is not None and type(number) is not int for number in numbers):
        raise MeridianError(Kind.BAD_TOPOLOGY, why="adjudicators and journals are numbers")
    adjudicators, journals = numbers
    now = node.topology
    if adjudicators is not None or journals is not None:
        wanted = Topology(
            now.adjudicators if adjudicators is None else adjudicators,
            now.journals if journals is None else journals,
        )
        node.reshape.want(wanted)
    return node.reshape.status()


def status(node: Node) -> dict[str, Any]:
    """What `meridian status` shows."""
    failures = [str(seat.failure) for seat in node.seats if seat.failure is not None]
    first = node.seats[0]
    files = sorted(node.storage_path.parent.glob("shard-*.db"))
    return {
        "version": __version__,
        "pid": os.getpid(),
        "cluster": node.cluster,
        "profile": node.profile,
        "adjudicators": node.topology.adjudicators,
        "topology": node.reshape.status(),
        "journals": [_journal(seat) for seat in node.seats],
        "serving": node.owned,
        "failure": "; ".join(failures),
        "epoch": first.owner.reader.epoch[0] if first.owner is not None else 0,
        "journal_n": first.last_n,
        "journal_first_n": first.trim_position().n + 1,
        "journal_bytes": node.journal_bytes(),
        "applied_tau": node.engine.applied_tau,
        "complete_tau": node.replica.complete_tau,
        "storage_horizon": node.engine.horizon,
        "storage_bytes": sum(path.stat().st_size for path in files),
        "storage_shards": len(files),
        "catalog_version": node.catalog.version,
        "catalog_versions_kept": len(node.catalog),
        "instances": node.feeds.status(),
        "gates": node.gates.status(),
        "selfcheck": node.selfcheck.status(),
        "counters": node.counters.as_map(),
    }


def _journal(seat: Seat) -> dict[str, Any]:
    """One journal and its owner."""
    owner = seat.owner
    adjudicator = None if owner is None else owner.adjudicator
    return {
        "number": seat.number,
        "serving": seat.serves and not seat.closed,
        "closed": seat.closed,
        "epoch": 0 if owner is None else owner.reader.epoch[0],
        "n": seat.last_n,
        "first_n": seat.trim_position().n + 1,
        "size_bytes": seat.journal.size_bytes(),
        "ranges": 0 if adjudicator is None else len(adjudicator.ranges.spans),
        "commits": 0 if adjudicator is None else adjudicator.commits_count,
        "promises": 0 if adjudicator is None else len(adjudicator.voter.holds),
    }


def verify(node: Node) -> dict[str, Any]:
    """Every record's checksum, every index against its table. Runs in a thread."""
    damage: list[str] = []
    records = sum(_verify_journal(node, seat, damage) for seat in node.seats)
    report = node.engine.verify(lambda: node.closing)
    damage += report.damages
    return {
        "damage": damage,
        "records": records,
        "relations": report.relations,
        "rows": report.rows,
        "notes": report.notes,
    }


def _verify_journal(node: Node, seat: Seat, damage: list[str]) -> int:
    """Counts the records that are durable now; what is appended meanwhile is not looked at."""
    last_n = seat.last_n
    start = seat.trim_position()
    reader = Reader(start)
    records = 0
    try:
        for record in seat.journal.read(start.n + 1 if start.n else 0):
            if record.n > last_n or node.closing:
                break
            reader.accept(record)
            records += 1
    except (MeridianError, JournalError) as error:
        damage.append(str(error))
        return records
    if reader.n != last_n and not node.closing:
        damage.append(f"journal {seat.number}: ends at record {reader.n}, {last_n} were written")
    return records
