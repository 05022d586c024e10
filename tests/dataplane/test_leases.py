"""Ranges of row ids, storage ids and OIDs: disjoint, persistent, and their end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meridian.dataplane.leases import Leases
from meridian.errors import Kind, MeridianError
from meridian.metadata.identities import LEASES, set_value
from meridian.metadata.store import MetadataStore
from meridian.wire.frames import LEASE_OID, LEASE_ROW, LEASE_SID


def take(leases: Leases, kind: int, count: int) -> range:
    first, granted = leases.take_now(kind, count) or asyncio.run(leases.take(kind, count))
    assert 1 <= granted <= count
    return range(first, first + granted)


@pytest.mark.parametrize("kind", [LEASE_ROW, LEASE_SID, LEASE_OID])
def test_ranges_are_disjoint_also_after_a_restart(tmp_path: Path, kind: int) -> None:
    """Instances ask in any order; the data plane may be killed at any moment."""
    ends: list[int] = []
    for _ in range(3):
        store = MetadataStore(tmp_path / "metadata.db")
        leases = Leases(store)
        for count in (1, 7, 8192, 5000, 1 << 20, 3):
            taken = take(leases, kind, count)
            assert not ends or taken.start >= ends[-1]
            ends.append(taken.stop)
        store.close()
    assert ends[0] > LEASES[kind].first


def test_askers_at_the_same_time_get_different_ranges(tmp_path: Path) -> None:
    leases = Leases(MetadataStore(tmp_path / "metadata.db"))

    async def work() -> list[tuple[int, int]]:
        return await asyncio.gather(*(leases.take(LEASE_OID, 5000) for _ in range(8)))

    taken = asyncio.run(work())
    numbers = [number for first, count in taken for number in range(first, first + count)]
    assert len(numbers) == len(set(numbers))


def test_oids_begin_above_every_template_and_are_given_sparingly(tmp_path: Path) -> None:
    leases = Leases(MetadataStore(tmp_path / "metadata.db"))
    taken = take(leases, LEASE_OID, 1 << 20)
    assert taken.start >= 1_000_000 and len(taken) == 8192


def test_the_last_oids_are_given_out_then_it_is_said(tmp_path: Path) -> None:
    store = MetadataStore(tmp_path / "metadata.db")
    set_value(store, f"lease/{LEASE_OID}", str((1 << 32) - 10).encode())
    leases = Leases(store)
    assert list(take(leases, LEASE_OID, 8)) == list(range((1 << 32) - 10, (1 << 32) - 2))
    assert list(take(leases, LEASE_OID, 8)) == [(1 << 32) - 2, (1 << 32) - 1]
    for _ in range(2):
        with pytest.raises(MeridianError) as refusal:
            take(leases, LEASE_OID, 1)
        assert refusal.value.kind is Kind.LEASE_EXHAUSTED
        _, sqlstate, message, _, hint = refusal.value.for_profile("standard")
        assert sqlstate == "54000" and "object id (OID)" in message and "4294967295" in message
        assert "Dump" in hint
    assert take(leases, LEASE_SID, 1)
