"""Key ranges that move to idle adjudicators while commits go on."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from meridian.control.core import Policy
from meridian.dataplane import heat, topology
from meridian.dataplane.topology import Topology
from meridian.errors import MeridianError
from meridian.limits import MS
from meridian.wire.ranges import place

from .plane import commit, key, put, running, value
from .test_owners import SID, run, table
from .test_reshape import check_owners

ROWS = 60
FIRST_ROW = 100
"""From here on all keys have one owner at first."""


def test_the_middle_of_hot_keys() -> None:
    keys = [(SID, key(n)) for n in range(100)]
    assert heat.hot_middle(keys) == place(SID, key(50))
    assert heat.hot_middle([]) == b""
    one = [(SID, key(5))] * 99
    assert heat.hot_middle(one) == b"", "one hot key cannot be cut"
    assert heat.hot_middle(one + [(SID, key(6))] * 20) == place(SID, key(6))
    assert heat.hot_middle(sorted([*one, (SID, key(6))])) == b""


def test_what_an_owner_has_from_a_place_on() -> None:
    made = topology.first_map(Topology(3, 2))
    at = (SID, key(FIRST_ROW))
    found = topology.moved(made, heat.owned_from(made, 0, at), 1)
    for sid in range(SID - 3, SID + 200):
        for number in (0, 5, 99, 100, 200):
            one = (sid, key(number))
            assert found.owner(one) == (1 if one >= at else made.owner(one))


def test_skewed_load_ends_balanced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows in one owner's ranges; in the end all three have a share; sums agree."""
    policy = Policy(move_commits_per_s=10, uneven=2, sustain=2, pause_ns=200 * MS)
    monkeypatch.setattr(heat, "POLICY", policy)
    monkeypatch.setattr(heat, "LOOK_S", 0.2)
    rows = range(FIRST_ROW, FIRST_ROW + ROWS)

    async def work() -> None:
        done = {"commits": 0, "conflicts": 0}
        stopping = asyncio.Event()
        async with running(tmp_path, adjudicators=3, journals=3) as node:
            await table(node)
            await commit(node, [put(SID, dict.fromkeys(rows, 100))])
            assert {node.map.owner((SID, key(row))) for row in rows} == {0}

            async def client(number: int) -> None:
                rng = random.Random(number)
                while not stopping.is_set():
                    first, second = rng.sample(rows, 2)
                    tau = node.tau_start()
                    was = await value(node, SID, first), await value(node, SID, second)
                    assert was[0] is not None and was[1] is not None
                    try:
                        moved = {first: was[0] - 1, second: was[1] + 1}
                        await commit(node, [put(SID, moved)], tau=tau)
                        done["commits"] += 1
                    except MeridianError as error:
                        assert error.kind.value.sqlstate == "40001", error
                        done["conflicts"] += 1

            clients = [asyncio.ensure_future(client(number)) for number in range(6)]

            def shares() -> list[int]:
                owners = [node.map.owner((SID, key(row))) for row in rows]
                return [owners.count(number) for number in range(3)]

            async with asyncio.timeout(60):
                while min(shares()) < ROWS // 8 or node.counters.heat_moves < 2:
                    assert not [one for one in clients if one.done()], clients
                    await asyncio.sleep(0.1)
            stopping.set()
            await asyncio.gather(*clients)
            assert node.counters.heat_moves >= 2 and done["commits"] > 50
            async with asyncio.timeout(20):
                while any(owner.adjudicator.ranges.pending for owner in node.owners()):
                    await asyncio.sleep(0.05)
            check_owners(node, 3)
            found = [await value(node, SID, row) or 0 for row in rows]
            assert sum(found) == 100 * ROWS
            kept = node.map
        async with running(tmp_path) as node:
            assert node.map.owners == kept.owners and node.map.starts == kept.starts
            found = [await value(node, SID, row) or 0 for row in rows]
            assert sum(found) == 100 * ROWS
            assert (await node.admin("verify", {}))["damage"] == []

    run(work())
