"""Catalog versions and notifications on their way to instances; reads compared, over frames."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from meridian.dataplane import feeds as module
from meridian.dataplane.node import Node
from meridian.errors import Kind, MeridianError
from meridian.gateway.connection import Connection
from meridian.gateway.requests import Requests
from meridian.journal.file import AppendError
from meridian.wire import frames
from meridian.wire.ops import KIND_INDEX, SID_CATALOG, Create, Notify, Op, Put, encode_chunk
from meridian.wire.reach import ADDITIVE, RELATIONS, Reach, encode_reach
from tests.dataplane.plane import commit, create, hashes, key, put, running
from tests.dataplane.test_node import Transport

SID = 1000


def delta(version: int, reach: Reach | None) -> Put:
    """The catalog log's row; its content is no concern of the data plane."""
    k = key(version)
    row = (b"delta", b"text", None if reach is None else encode_reach(reach))
    return Put(SID_CATALOG, 0, (1, 2, 3), [k], hashes(SID_CATALOG, [k]), b"", [row])


class Peer:
    """A client of the gateway in this event loop."""

    def __init__(self, requests: Requests, instance_id: int) -> None:
        self.transport = Transport()
        self.connection = Connection(requests, 1)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        self.found: dict[int, list[Any]] = {}
        self._last = 0
        self.send(frames.HELLO, 1, 1, instance_id)

    def send(self, kind: int, *fields: Any) -> int:
        self._last += 1
        self.connection.data_received(frames.frame((kind, self._last, *fields)))
        return self._last

    def now(self, request_id: int) -> list[Any] | None:
        """[type, fields...] if it is answered."""
        for answer in self.transport.answers():
            assert answer[1] not in self.found, "answered twice"
            self.found[answer[1]] = answer
        answer = self.found.get(request_id)
        return None if answer is None else [answer[0], *answer[2:]]

    async def wait(self, request_id: int) -> list[Any]:
        for _ in range(2000):
            answer = self.now(request_id)
            if answer is not None:
                return answer
            await asyncio.sleep(0.005)
        raise AssertionError("no answer")

    async def call(self, kind: int, *fields: Any) -> list[Any]:
        return await self.wait(self.send(kind, *fields))

    def ddl(self, version: int, reach: Reach | None, *ops: Op, catver: int = 0) -> int:
        chunk = encode_chunk([delta(version, reach), *ops])
        txid = secrets.token_bytes(16)
        return self.send(frames.COMMIT, catver, 0, txid, frames.COMMIT_HAS_SCHEMA, 0, chunk)

    def write(self, *ops: Op) -> int:
        txid = secrets.token_bytes(16)
        return self.send(frames.COMMIT, 0, 0, txid, 0, 0, encode_chunk(list(ops)))

    def poll(self, instance_id: int, applied: int, wait_ms: int = 30_000) -> int:
        return self.send(frames.CATALOG, instance_id, applied, wait_ms)

    def close(self) -> None:
        self.connection.connection_lost(None)


Work = Callable[[Node, Requests], Awaitable[None]]


def with_node(directory: Path, work: Work) -> None:
    async def run() -> None:
        async with running(directory) as node:
            await commit(node, [create(SID), create(SID + 1)], flags=frames.COMMIT_HAS_SCHEMA)
            await work(node, Requests(node))

    asyncio.run(asyncio.wait_for(run(), 60))


# Versions


def test_versions_come_as_soon_as_they_are_applied(tmp_path: Path) -> None:
    async def work(node: Node, requests: Requests) -> None:
        manager, client = Peer(requests, 0), Peer(requests, 9)
        assert await manager.call(frames.CATALOG, 1, 0, 0) == [frames.VALUES, [[-1]]]
        poll = manager.poll(1, 0)
        assert manager.now(poll) is None
        first = client.ddl(1, Reach(ADDITIVE))
        assert await manager.wait(poll) == [frames.VALUES, [[1]]]
        assert client.now(first) is None, "its answer waits for the instance"
        again = manager.poll(1, 0)
        assert await manager.wait(again) == [frames.VALUES, [[1]]], "not applied: named again"
        poll = manager.poll(1, 1)
        assert (await client.wait(first))[0] == frames.COMMITTED
        assert manager.now(poll) is None
        version = node.catalog
        assert (version.version, version.in_force(node.clock.now_ns())) == (1, 1)

    with_node(tmp_path, work)


def test_empty_after_its_time_and_cancelled(tmp_path: Path) -> None:
    async def work(node: Node, requests: Requests) -> None:
        manager = Peer(requests, 0)
        await manager.call(frames.CATALOG, 1, 0, 0)
        assert await manager.call(frames.CATALOG, 1, 0, 30) == [frames.VALUES, []]
        poll = manager.poll(1, 0)
        manager.send(frames.CANCEL, poll)
        assert (await manager.wait(poll))[2] == "57014"
        older, newer = manager.poll(1, 0), manager.poll(1, 0)
        assert await manager.wait(older) == [frames.VALUES, []]
        assert manager.now(newer) is None
        manager.close()
        assert not node.feeds.status()[0]["live"]
        bad = Peer(requests, 0)
        assert (await bad.call(frames.CATALOG, 0, 0, 0))[2] == "08P01"

    with_node(tmp_path, work)


def test_ddl_waits_for_live_instances_but_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CATALOG_ACK_MS", 300)

    async def work(node: Node, requests: Requests) -> None:
        one, two, client = Peer(requests, 0), Peer(requests, 0), Peer(requests, 1)
        one.poll(1, 0)
        two.poll(2, 0)
        loop = asyncio.get_running_loop()
        # Instance 2 never applies it: its own does not count, the other delays for a bounded time.
        started = loop.time()
        assert (await client.wait(client.ddl(1, None)))[0] == frames.COMMITTED
        assert 0.25 < loop.time() - started < 5
        assert node.counters.catalog_waits_expired == 1
        # An instance whose connection ends does not delay.
        ddl = client.ddl(2, None)
        await asyncio.sleep(0.05)
        assert client.now(ddl) is None
        two.close()
        assert (await client.wait(ddl))[0] == frames.COMMITTED
        assert node.counters.catalog_waits_expired == 1
        shown = node.feeds.status()
        assert [(row["instance"], row["lag"], row["live"]) for row in shown] == [
            (1, 2, True),
            (2, 2, False),
        ]

    with_node(tmp_path, work)


def test_reads_are_compared_by_reach(tmp_path: Path) -> None:
    async def work(node: Node, requests: Requests) -> None:
        client = Peer(requests, 1)
        await client.wait(client.write(put(SID, {1: 1}), put(SID + 1, {1: 1})))
        await client.wait(client.ddl(1, Reach(ADDITIVE)))
        old = node.clock.now_ns()
        await client.wait(client.ddl(2, Reach(RELATIONS, (SID,))))
        new = node.clock.now_ns()

        def get(catver: int, tau: int, sid: int) -> int:
            return client.send(frames.GET, catver, tau, sid, [1], [key(1)])

        def scan(catver: int, tau: int, sid: int, row_sid: int = 0, aggs: Any = None) -> int:
            fields = (b"", None, 0, [], None, 0, 0, row_sid, [], None, None, aggs)
            return client.send(frames.SCAN, catver, tau, sid, *fields)

        def lookup(catver: int, tau: int, sid: int) -> int:
            fields = (key(0), key(9), 0, [1], None, 0, 0, 0, [], None, None, None)
            return client.send(frames.SCAN, catver, tau, sid, *fields)

        def sample(catver: int, tau: int, sid: int) -> int:
            return client.send(frames.SAMPLE, catver, tau, sid, 5, [1])

        for read in (get, scan, lookup, sample):
            stale = await client.wait(read(1, new, SID + 1))
            assert stale[1:3] == [21, "40001"] and stale[4] == f"catalog 2 {new}"
            too_new = await client.wait(read(2, old, SID))
            assert too_new[1:3] == [21, "40001"] and too_new[4] == f"catalog 1 {old}"
            for catver, tau, sid in (
                (2, old, SID + 1),
                (1, old, SID),
                (2, new, SID),
                (0, old, SID),
            ):
                assert (await client.wait(read(catver, tau, sid)))[0] == frames.RESULT
        # tau 0 and BEGIN: the tau assigned comes back with the refusal.
        for request in (get(1, 0, SID), client.send(frames.BEGIN, 1)):
            answer = await client.wait(request)
            word, version, tau = answer[4].split()
            assert (word, version) == ("catalog", "2") and int(tau) >= new
            assert (await client.wait(get(2, int(tau), SID)))[0] == frames.RESULT
        assert (await client.wait(scan(2, old, SID + 1, row_sid=SID)))[2] == "40001"

    with_node(tmp_path, work)


def test_a_waiting_read_is_compared_with_what_came_meanwhile(tmp_path: Path) -> None:
    async def work(node: Node, requests: Requests) -> None:
        client = Peer(requests, 1)
        await client.wait(client.ddl(1, None))
        if len(node.seats) > 1:
            return  # Votes come first: it is not decided before the reads come.
        # Decided, not durable: nobody knows of it yet, and reads at its tau or later wait for it.
        ddl = client.ddl(2, Reach(ADDITIVE))
        ahead = node.clock.now().latest + 100_000_000
        many = [key(n) for n in range(600)]
        reads = [
            client.send(frames.GET, 1, ahead, SID, [1], [key(1)]),
            client.send(frames.GET, 1, ahead, SID, [1], many),
            client.send(frames.SAMPLE, 1, ahead, SID, 5, [1]),
        ]
        assert node.catalog.version == 1
        assert (await client.wait(ddl))[1] < ahead
        for read in reads:
            assert (await client.wait(read))[4] == f"catalog 2 {ahead}"

    with_node(tmp_path, work)


def test_history_survives_restart_and_the_loss_of_storage(tmp_path: Path) -> None:
    taus: list[int] = []

    async def work(node: Node, requests: Requests) -> None:
        client = Peer(requests, 1)
        for version, reach in enumerate((Reach(ADDITIVE), Reach(RELATIONS, (SID,)), None), 1):
            taus.append((await client.wait(client.ddl(version, reach)))[1])

    with_node(tmp_path, work)

    async def again() -> None:
        async with running(tmp_path) as node:
            catalog = node.catalog
            catalog.check()
            assert (catalog.version, catalog.tau, len(catalog)) == (3, taus[2], 3)
            catalog.compare(1, taus[0] - 1, (SID,))
            catalog.compare(2, taus[1] - 1, (SID + 1,))
            for catver, tau in ((2, taus[1] - 1), (3, taus[2] - 1), (2, taus[2])):
                with pytest.raises(MeridianError):
                    catalog.compare(catver, tau, (SID,))
            assert not catalog.unread

    for gone in ("", "storage"):
        if gone:
            shutil.rmtree(tmp_path / gone)
        asyncio.run(asyncio.wait_for(again(), 60))


# Notifications


def test_notifications_reach_every_instance_in_the_order_of_commits(tmp_path: Path) -> None:
    async def work(node: Node, requests: Requests) -> None:
        one, two, client = Peer(requests, 0), Peer(requests, 0), Peer(requests, 1)
        await one.call(frames.CATALOG, 1, 0, 0)
        await two.call(frames.CATALOG, 2, 0, 0)
        polls = one.poll(1, 0), two.poll(2, 0)
        commits = [
            client.write(put(SID, {n: n}), Notify(b"c", b"%d" % n), Notify(b"d", b""))
            for n in range(20)
        ]
        taus: dict[int, int] = {}
        for n, request in enumerate(commits):
            kind, taus[n] = await client.wait(request)
            assert kind == frames.COMMITTED
        ordered = sorted(range(20), key=taus.__getitem__)
        assert len(node.seats) > 1 or ordered == list(range(20))
        expected = [row for n in ordered for row in ([0, b"c", b"%d" % n], [0, b"d", b""])]
        for peer, poll, number in ((one, polls[0], 1), (two, polls[1], 2)):
            rows = (await peer.wait(poll))[1]
            while len(rows) < 40:
                rows += (await peer.call(frames.CATALOG, number, 0, 1000))[1]
            assert rows == expected
        # Alone, without any row.
        poll = one.poll(1, 0)
        await client.wait(client.write(Notify(b"alone", b"x" * 7999)))
        assert (await one.wait(poll))[1] == [[0, b"alone", b"x" * 7999]]

    with_node(tmp_path, work)


def test_an_aborted_transaction_notifies_nobody(tmp_path: Path) -> None:
    async def work(node: Node, requests: Requests) -> None:
        manager, client = Peer(requests, 0), Peer(requests, 1)
        await manager.call(frames.CATALOG, 1, 0, 0)
        tau = node.tau_start()
        await client.wait(client.write(put(SID, {1: 1})))
        chunk = encode_chunk([put(SID, {1: 2}), Notify(b"c", b"aborted")])
        lost = client.send(frames.COMMIT, 0, tau, secrets.token_bytes(16), 0, 0, chunk)
        assert (await client.wait(lost))[2] == "40001"
        bad = client.write(put(SID, {2: 2}), Notify(b"", b"no channel"))
        assert (await client.wait(bad))[2] == "08P01"
        await client.wait(client.write(Notify(b"c", b"committed")))
        assert (await manager.call(frames.CATALOG, 1, 0, 0))[1] == [[0, b"c", b"committed"]]

    with_node(tmp_path, work)


def test_large_transactions_notify_once(tmp_path: Path) -> None:
    async def work(node: Node, requests: Requests) -> None:
        manager, client = Peer(requests, 0), Peer(requests, 1)
        await manager.call(frames.CATALOG, 1, 0, 0)
        txid, tau = secrets.token_bytes(16), node.tau_start()
        notes: list[Op] = [Notify(b"c", b"%d" % n + b"x" * 2000) for n in range(100)]
        first = encode_chunk([put(SID, {n: n for n in range(2000)}), *notes[:60]])
        client.send(frames.PART, txid, 0, first, tau)
        last = encode_chunk([put(SID, {n: n for n in range(2000, 2100)}), *notes[60:]])
        fields = (0, tau, txid, frames.COMMIT_HAS_PARTS, 2100, last)
        assert (await client.wait(client.send(frames.COMMIT, *fields)))[0] == frames.COMMITTED
        # Sent again, as after a lost answer.
        await client.wait(client.send(frames.COMMIT, *fields))
        rows = (await manager.call(frames.CATALOG, 1, 0, 0))[1]
        assert [row[2] for row in rows] == [b"%d" % n + b"x" * 2000 for n in range(100)]
        assert (await manager.call(frames.CATALOG, 1, 0, 0))[1] == []

    with_node(tmp_path, work)


def test_an_answer_that_was_lost_is_sent_again(tmp_path: Path) -> None:
    async def work(node: Node, requests: Requests) -> None:
        client, manager = Peer(requests, 1), Peer(requests, 0)
        await manager.call(frames.CATALOG, 1, 0, 0)
        await manager.call(frames.CATALOG, 1, 0, 0)
        await client.wait(client.write(Notify(b"c", b"1")))
        assert (await manager.call(frames.CATALOG, 1, 0, 0))[1] == [[0, b"c", b"1"]]
        manager.close()
        await client.wait(client.write(Notify(b"c", b"2")))
        manager = Peer(requests, 0)
        both = [[0, b"c", b"1"], [0, b"c", b"2"]]
        assert (await manager.call(frames.CATALOG, 1, 0, 0))[1] == both
        assert (await manager.call(frames.CATALOG, 1, 0, 0))[1] == []

    with_node(tmp_path, work)


def test_what_is_lost_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEED_NOTIFICATIONS", 5)
    monkeypatch.setattr(module, "FEED_LAPSE_MS", 200)

    async def work(node: Node, requests: Requests) -> None:
        client, manager = Peer(requests, 1), Peer(requests, 0)
        assert (await manager.call(frames.CATALOG, 1, 0, 0))[1] == [[-1]]
        notes: list[Op] = [Notify(b"c", b"%d" % n) for n in range(8)]
        await client.wait(client.write(*notes))
        rows = (await manager.call(frames.CATALOG, 1, 0, 0))[1]
        assert rows == [[-1], [0, b"c", b"6"], [0, b"c", b"7"]], "told, then what came later"
        assert node.counters.notifications_lost == 1
        assert (await manager.call(frames.CATALOG, 1, 0, 0))[1] == []
        # It does not ask for long: forgotten, and told so when it returns.
        await asyncio.sleep(0.3)
        await client.wait(client.write(Notify(b"c", b"missed")))
        assert node.feeds.status() == []
        assert (await manager.call(frames.CATALOG, 1, 0, 0))[1] == [[-1]]
        # A transaction whose outcome nobody knows.
        final_error = MeridianError(Kind.OUTCOME_UNKNOWN)
        node.commits._told(b"t" * 16, [(b"c", b"?")], lambda _: None, final_error)
        assert (await manager.call(frames.CATALOG, 1, 0, 0))[1] == [[-1]]

    with_node(tmp_path, work)


def test_instances_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INSTANCES", 3)

    async def work(node: Node, requests: Requests) -> None:
        manager = Peer(requests, 0)
        for number in (1, 2, 3):
            assert (await manager.call(frames.CATALOG, number, 0, 0))[0] == frames.VALUES
        assert (await manager.call(frames.CATALOG, 4, 0, 0))[2] == "53300"

    with_node(tmp_path, work)


# Gates


def gated(peer: Peer, txid: bytes, *sids: int, hold_ms: int = 10_000) -> int:
    return peer.send(frames.GATE, txid, list(sids), hold_ms)


def test_ddl_behind_a_gate_passes_a_steady_writer(tmp_path: Path) -> None:
    async def work(node: Node, requests: Requests) -> None:
        ddl, writer = Peer(requests, 1), Peer(requests, 2)
        txid = secrets.token_bytes(16)
        node.seats[0].owner.adjudicator.ledger.lead = 30_000_000  # type: ignore[union-attr]
        first = writer.write(put(SID, {0: 0}))
        last = (await ddl.wait(gated(ddl, txid, SID)))[1][0]
        begin = (await ddl.call(frames.BEGIN, 0))[1]
        assert begin > last == (await writer.wait(first))[1], (
            "tau_start lies above what was decided"
        )
        held = [writer.write(put(SID, {n: n})) for n in range(1, 6)]
        free = writer.write(put(SID + 1, {1: 1}))
        assert (await writer.wait(free))[0] == frames.COMMITTED
        await asyncio.sleep(0.1)
        assert not any(writer.now(one) for one in held)
        shown = await node.admin("status", {})
        assert shown["gates"] == {"open": 1, "held": 5, "held_since_start": 5}
        index = Create(2000, KIND_INDEX, [(0, 2)], SID)
        chunk = encode_chunk([index, delta(1, Reach(RELATIONS, (SID,)))])
        commit_ = ddl.send(frames.COMMIT, 0, begin, txid, frames.COMMIT_HAS_SCHEMA, 0, chunk)
        assert (await ddl.wait(commit_))[0] == frames.COMMITTED
        for one in held:
            refusal = await writer.wait(one)
            assert refusal[1:3] == [21, "40001"] and refusal[4].startswith("catalog 0 ")
        assert (await writer.wait(writer.write(put(SID, {7: 7}))))[0] == frames.COMMITTED
        assert node.counters.gates == 1

    with_node(tmp_path, work)


def test_a_gate_ends_with_its_owner(tmp_path: Path) -> None:
    async def work(node: Node, requests: Requests) -> None:
        writer = Peer(requests, 2)
        for how in ("connection", "rollback", "next", "cancel"):
            ddl, txid = Peer(requests, 1), secrets.token_bytes(16)
            await ddl.wait(gated(ddl, txid, SID))
            held = writer.write(put(SID, {1: 1}))
            await asyncio.sleep(0.05)
            assert writer.now(held) is None, how
            if how == "connection":
                ddl.close()
            elif how == "rollback":
                await ddl.wait(gated(ddl, txid, hold_ms=0))
            elif how == "next":
                await ddl.wait(gated(ddl, secrets.token_bytes(16), SID + 1))
            else:
                # A gate that is cancelled while its answer waits for the clock.
                node.seats[0].owner.adjudicator.ledger.lead = 50_000_000  # type: ignore[union-attr]
                busy = writer.write(put(SID + 1, {1: 1}))
                asked = gated(ddl, txid, SID + 1)
                await asyncio.sleep(0.01)
                ddl.send(frames.CANCEL, asked)
                assert (await ddl.wait(asked))[2] == "57014"
                await writer.wait(busy)
            assert (await writer.wait(held))[0] == frames.COMMITTED, how
            ddl.close()
            assert len(node.seats[0].owner.adjudicator.gates) == 0  # type: ignore[union-attr]

    with_node(tmp_path, work)


def test_gates_are_refused_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meridian.adjudicator.gates.GATE_HOLD_MS", 100)

    async def work(node: Node, requests: Requests) -> None:
        one, two, writer = Peer(requests, 1), Peer(requests, 2), Peer(requests, 3)
        await one.wait(gated(one, b"1" * 16, SID))
        assert (await two.wait(gated(two, b"2" * 16, SID, SID + 1)))[1:3] == [21, "40001"]
        assert (await two.wait(gated(two, b"2" * 16, SID + 1)))[0] == frames.VALUES
        assert (await two.wait(gated(two, b"short", SID)))[2] == "08P01"
        assert (await two.wait(gated(two, b"2" * 16, SID, hold_ms=-1)))[2] == "08P01"
        late = await writer.wait(writer.write(put(SID, {1: 1})))
        assert late[2] == "40001" and "held" in late[4]
        assert node.counters.gate_timeouts == 1

    with_node(tmp_path, work)


def test_held_commits_survive_a_failed_journal(tmp_path: Path) -> None:
    """The owner fails, gates are gone, and whoever waited is decided by the next one."""

    async def work(node: Node, requests: Requests) -> None:
        ddl, writer = Peer(requests, 1), Peer(requests, 2)
        await ddl.wait(gated(ddl, b"1" * 16, SID))
        held = writer.write(put(SID, {1: 1}))
        await asyncio.sleep(0.02)
        assert node.seats[0].owner is not None
        node.seats[0].owner._failed(AppendError(OSError("gone"), nothing_written=True))
        told = await writer.wait(held)
        if len(node.seats) == 1:
            assert told[0] == frames.COMMITTED
        else:
            # What began before the next owner's lease is refused (design section 5.7).
            assert told[2] == "40001"
        assert node.counters.owners == len(node.seats) + 1

    with_node(tmp_path, work)
