"""What must hold of storage in ranges, whatever its topology went through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from meridian.sim.client import Txn
from meridian.sim.messages import Key
from meridian.sim.routed import Scanned
from meridian.sim.store import Store
from meridian.sim.world import SimulationError
from meridian.wire.ranges import Owned, place

if TYPE_CHECKING:
    from meridian.sim.shard_replica import RangeReplica

Versions = list[tuple[int, bytes | None]]


def check_replicas(truth: Store, replicas: Sequence[RangeReplica]) -> None:
    """Every replica holds, of its ranges and from their bases on, what the journals hold."""
    for replica in replicas:
        for store in replica.stores:
            for part in store.ranges.owned:
                _check_part(truth, store, part, replica.name)
            held = [key for key in store.versions if store.ranges.at(place(*key)) is None]
            if held:
                raise SimulationError(f"{replica.name} holds {held[0]}, which is not its own")


def _check_part(truth: Store, store: Store, part: Owned, name: str) -> None:
    for key in sorted(truth.versions.keys() | store.versions.keys()):
        if part.range.holds(place(*key)):
            expected, found = (_since(one, key, part.base) for one in (truth, store))
            if expected != found:
                raise SimulationError(
                    f"{name} does not hold what the journals hold: {key} is {found!r},"
                    f" must be {expected!r} from {part.base} on"
                )


def _since(store: Store, key: Key, base: int) -> Versions:
    """The value as of the base, and every version after it."""
    taus, values = store.versions.get(key, ([], []))
    later = [(tau, value) for tau, value in zip(taus, values, strict=True) if tau > base]
    return [(0, store.get(key, base)[0]), *later]


def check_scans(truth: Store, log: Sequence[Txn]) -> int:
    """Every scan told the rows as of its tau, in order, all of them or a beginning; how many."""
    scans = [(txn.name, scan) for txn in log for scan in txn.scans]
    for name, scan in scans:
        check_scan(truth, name, scan)
    return len(scans)


def check_scan(truth: Store, name: bytes, scan: Scanned) -> None:
    """One of them."""
    expected = [(key, value) for key, value, _ in truth.scan(scan.wanted, scan.tau)]
    if scan.descending:
        expected.reverse()
    told = list(scan.rows)
    whole = told == expected[: len(told)] and (scan.more or len(told) == len(expected))
    if not whole:
        missing = [row for row in expected if row not in told]
        wrong = [row for row in told if row not in expected]
        raise SimulationError(
            f"scan: {name!r} was told {len(told)} rows of {len(expected)} as of {scan.tau};"
            f" missing {missing[:1]}, wrong {wrong[:1]}"
        )
