"""Adjudicators and journals that change in number while commits go on, and across kills."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import threading
import time
from pathlib import Path

import pytest

from meridian.dataplane import topology
from meridian.dataplane.node import Node
from meridian.dataplane.topology import Topology
from meridian.errors import Kind, MeridianError
from meridian.gateway.client import Client, GatewayError
from meridian.wire import frames
from meridian.wire.frames import COMMIT_HAS_SCHEMA
from meridian.wire.partition import FIRST, LAST, NOBODY, PartitionMap, Span, covers

from .plane import Plane, commit, contents, create, new_table, put, running, value
from .test_owners import HERE, SID, THERE, outcome, run, table

# Maps


def test_what_must_move_and_the_map_that_says_so() -> None:
    rng = random.Random(7)
    for _ in range(200):
        places = [FIRST, *sorted((n, b"") for n in rng.sample(range(1, 60), 8))]
        now, wanted = (
            PartitionMap(3, tuple(places), tuple(rng.randrange(4) for _ in places))
            for _ in range(2)
        )
        found = now
        for (source, target), parts in topology.differences(now, wanted).items():
            assert all(now.owner(lo) == source != target for lo, _ in parts)
            found = topology.moved(found, parts, target)
        for place in [FIRST, *((n, b"x") for n in range(60))]:
            assert found.owner(place) == wanted.owner(place)
        assert topology.differences(found, wanted) == {}


def test_a_move_of_one_range_is_that_of_the_map() -> None:
    made = topology.first_map(Topology(3, 2))
    lo, hi = (1000, b"\x01k"), (1010, b"")
    assert topology.moved(made, [(lo, hi)], 1) == made.moved(lo, hi, 1)
    assert NOBODY not in topology.moved(made, [(FIRST, LAST)], 1).owners
    assert topology.spans_of(topology.first_map(Topology(3, 2), [0, 7]), 7) != ()


# While it works

SIDS = (SID, SID + 32, SID + 64)
"""Tables of different owners."""


async def arrived(node: Node) -> None:
    async with asyncio.timeout(60):
        while not node.reshape.done:
            await asyncio.sleep(0.02)


def owned(node: Node) -> list[Span]:
    found = [span for owner in node.owners() for span in owner.adjudicator.ranges.spans]
    return sorted(found, key=lambda span: span.lo)


def check_owners(node: Node, journals: int) -> None:
    """Every key has one owner, those of the map; as many journals as wanted."""
    spans = owned(node)
    assert covers(spans)
    assert all(a.hi <= b.lo for a, b in itertools.pairwise(spans))
    assert len(node.open_journals()) == journals
    for owner in node.owners():
        for span in owner.adjudicator.ranges.spans:
            assert node.map.owner(span.lo) == owner.number


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.nightly), 3])
def test_journals_come_and_go_while_commits_go_on(shards: int, tmp_path: Path) -> None:
    ids: dict[bytes, tuple[int, int]] = {}

    async def work() -> None:
        stopping = asyncio.Event()

        async def transfers(node: Node, number: int) -> None:
            """From one of ten rows to another: the sum stays."""
            rng = random.Random(number)
            while not stopping.is_set():
                first, second = rng.sample(range(1, 11), 2)
                sid = rng.choice(SIDS)
                txid, tau = secrets.token_bytes(16), node.tau_start()
                try:
                    was = await value(node, sid, first), await value(node, sid, second)
                    assert was[0] is not None and was[1] is not None
                    rows = {first: was[0] - 1, second: was[1] + 1}
                    ids[txid] = tau, await commit(node, [put(sid, rows)], tau=tau, txid=txid)
                except MeridianError as error:
                    if error.kind.value.sqlstate != "40001":
                        raise
                await asyncio.sleep(0.002)

        async with running(tmp_path, storage_shards=shards) as node:
            await commit(node, [create(sid) for sid in SIDS], flags=COMMIT_HAS_SCHEMA)
            rows = dict.fromkeys(range(1, 11), 100)
            await commit(node, [put(sid, rows) for sid in SIDS])
            clients = [asyncio.ensure_future(transfers(node, number)) for number in range(3)]
            for wanted in (Topology(3, 3), Topology(2, 2), Topology(5, 4), Topology(1, 1)):
                await asyncio.sleep(0.1)
                before = len(ids)
                node.reshape.want(wanted)
                await arrived(node)
                check_owners(node, wanted.journals)
                await asyncio.sleep(0.1)
                assert len(ids) > before
                assert not [one for one in clients if one.done()], clients
            stopping.set()
            await asyncio.gather(*clients)
            # A schema change needs the vote of everybody who owns anything.
            await commit(node, [create(SID + 1)], flags=COMMIT_HAS_SCHEMA)
            await check(node)
            assert [seat.closed for seat in node.seats] == [False, *([True] * 4)]
        for _ in range(2):
            async with running(tmp_path, storage_shards=shards) as node:
                check_owners(node, 1)
                assert node.topology == Topology(1, 1) and node.reshape.done
                await check(node)

    async def check(node: Node) -> None:
        for sid in SIDS:
            values = [await value(node, sid, number) or 0 for number in range(1, 11)]
            assert sum(values) == 1000
        for txid, (tau, tau_commit) in random.Random(1).sample(sorted(ids.items()), 40):
            assert await outcome(node, txid, tau) == (frames.OUTCOME_COMMITTED, tau_commit)
            with contextlib.suppress(MeridianError):
                # A late copy of the COMMIT finds it too, whoever would lead it now.
                assert await commit(node, [put(SID, {1: 0})], tau=tau, txid=txid) == tau_commit
        leaders = {tau_commit & 0xFF for _, tau_commit in ids.values()}
        assert len(leaders) > 2, leaders

    run(work())


def test_an_unknown_id_of_a_journal_that_ended_is_aborted(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path, adjudicators=3, journals=2) as node:
            await table(node)
            began = node.tau_start()
            node.reshape.want(Topology(1, 1))
            await arrived(node)
            for txid in (secrets.token_bytes(16), secrets.token_bytes(16)):
                assert await outcome(node, txid, began) == (frames.OUTCOME_ABORTED, 0)
            voted = node.counters.commits_voted
            await commit(node, [put(SID, {HERE: 1, THERE: 1})])
            assert node.counters.commits_voted == voted, "one owner has all of it"
            with pytest.raises(MeridianError) as refusal:
                node.reshape.want(Topology(1, 65))
            assert refusal.value.kind is Kind.BAD_TOPOLOGY

    run(work())


# Across kills

SECONDS = 6.0


class Writer(threading.Thread):
    """Moves amounts between rows until told to stop; knows what was acknowledged."""

    def __init__(self, plane: Plane, sid: int) -> None:
        super().__init__(daemon=True)
        self.plane = plane
        self.sid = sid
        self.stopping = threading.Event()
        self.done = 0
        self.error = ""

    def run(self) -> None:
        rng = random.Random(3)
        while not self.stopping.is_set():
            try:
                with self.plane.client() as client:
                    self._work(client, rng)
            except GatewayError as error:
                if error.sqlstate not in ("40001", "08007", "57P03"):
                    self.error = f"{error.sqlstate} {error}"
                    return
            except OSError:
                time.sleep(0.02)

    def _work(self, client: Client, rng: random.Random) -> None:
        while not self.stopping.is_set():
            tau = client.begin()
            rows = contents(client, self.sid)
            first, second = rng.sample(sorted(rows), 2)
            moved = {first: rows[first] - 1, second: rows[second] + 1}
            client.commit([put(self.sid, moved)], tau=tau, row_count=2)
            self.done += 1


def test_killed_at_any_moment_of_a_change(tmp_path: Path) -> None:
    """Each start wants another topology and is killed soon; the last one arrives."""
    rng = random.Random(11)
    choices = [("1", "1"), ("3", "2"), ("4", "4"), ("2", "1"), ("5", "3")]
    with Plane(tmp_path) as plane:
        with plane.client() as client:
            sid = new_table(client)
            client.commit([put(sid, dict.fromkeys(range(1, 13), 100))])
        writer = Writer(plane, sid)
        writer.start()
        deadline, kills = time.monotonic() + SECONDS, 0
        while time.monotonic() < deadline:
            time.sleep(rng.choice((0.02, 0.1, 0.3, 0.8)) * rng.random())
            plane.kill()
            kills += 1
            adjudicators, journals = rng.choice(choices)
            plane.options = ("--adjudicators", adjudicators, "--journals", journals)
            plane.options += ("--storage-shards", rng.choice("13"))
            plane.start()
        plane.kill()
        plane.options = ("--adjudicators", "3", "--journals", "2")
        plane.start()
        with plane.client() as client:
            until = time.monotonic() + 60
            while not client.admin("status")["topology"]["done"]:
                assert time.monotonic() < until, client.admin("status")
                time.sleep(0.05)
        writer.stopping.set()
        writer.join(60)
        assert not writer.is_alive() and writer.error == "" and writer.done > 0
        with plane.client() as client:
            assert sum(contents(client, sid).values()) == 1200
            status = client.admin("status")
            assert len([one for one in status["journals"] if not one["closed"]]) == 2
            assert client.admin("verify")["damage"] == []
        plane.stop()
        assert kills > 1
