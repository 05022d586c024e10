"""The node inside one event loop: checkpoints, trim, reads that wait, bounds."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from meridian.dataplane import housekeeping
from meridian.dataplane.node import Node
from meridian.dataplane.slices import slices
from meridian.errors import Kind, MeridianError
from meridian.gateway.connection import Connection
from meridian.gateway.paging import join_pages
from meridian.gateway.requests import Requests
from meridian.journal import file as file_backend
from meridian.limits import DSQL, STANDARD, S
from meridian.wire import frames
from meridian.wire.frames import COMMIT_HAS_SCHEMA
from meridian.wire.ops import Big, Create, Delete, Drop, Put, decode_chunk, encode_chunk
from tests.dataplane.plane import commit, create, delete, hashes, key, put, running, value

SID = 1000


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def table(node: Any) -> None:
    await commit(node, [create(SID)], flags=COMMIT_HAS_SCHEMA)


# Checkpoint and trim


def test_trim_behind_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments older than the window go; a restart without storage finds everything."""
    monkeypatch.setattr(file_backend, "JOURNAL_SEGMENT_BYTES", 20_000)

    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            for number in range(60):
                await commit(node, [put(SID, {number: number}, pad=1000)])
            before = node.seats[0].journal.size_bytes()
            report = await node.housekeeping.checkpoint()
            assert report["segments_trimmed"] == 0, "the conflict window is kept"
            node.clock.observe(node.clock.now().latest + 400 * S)
            for number in range(60, 70):
                await commit(node, [put(SID, {number: number}, pad=1000)])
            report = await node.housekeeping.checkpoint()
            assert report["segments_trimmed"] >= 2
            assert node.seats[0].journal.size_bytes() < before
            for number in range(70, 80):
                await commit(node, [put(SID, {number: number}, pad=1000)])
            assert len(list((tmp_path / "checkpoint").iterdir())) == 1
        shutil.rmtree(tmp_path / "storage")
        async with running(tmp_path) as node:
            assert node.seats[0].trim_position().n > 0
            assert [await value(node, SID, n) for n in range(80)] == list(range(80))
            assert (await node.admin("verify", {}))["damage"] == []
            await commit(node, [put(SID, {1: -1})])
        shutil.rmtree(tmp_path / "storage")
        shutil.rmtree(tmp_path / "checkpoint")
        with pytest.raises(MeridianError) as refusal:
            async with running(tmp_path):
                pass
        assert refusal.value.kind is Kind.JOURNAL_TRIMMED

    run(work())


def test_a_journal_without_files_is_refused_before_storage_is_touched(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            await commit(node, [put(SID, {1: 1})])
        before = generation(tmp_path)
        for segment in (tmp_path / "journal" / "0").glob("*.seg"):
            segment.unlink()
        with pytest.raises(MeridianError) as refusal:
            async with running(tmp_path):
                pass
        assert refusal.value.kind is Kind.JOURNAL_DAMAGED
        assert generation(tmp_path) == before

    run(work())


def generation(directory: Path) -> bytes:
    """Another one means that the storage file was made anew."""
    path = directory / "storage" / "shard-0.db"
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return bytes(db.execute("SELECT generation FROM file").fetchall()[0][0])
    finally:
        db.close()


def test_checkpoint_when_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "CHECKPOINT_JOURNAL_BYTES", 100_000)

    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            for number in range(300):
                await commit(node, [put(SID, {number % 5: number}, pad=3000)])
            for _ in range(600):
                if node.counters.checkpoints:
                    break
                await asyncio.sleep(0.05)
            assert node.counters.checkpoints >= 1

    run(work())


def test_failed_checkpoint_keeps_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            await commit(node, [put(SID, {1: 1})])
            await node.housekeeping.checkpoint()

            def fail(*_: object) -> None:
                raise MeridianError(Kind.STORAGE_FAILED, why="no space")

            monkeypatch.setattr(node.engine, "checkpoint", fail)
            with pytest.raises(MeridianError):
                await node.housekeeping.checkpoint()
            assert len(list((tmp_path / "checkpoint").iterdir())) == 1
        shutil.rmtree(tmp_path / "storage")
        async with running(tmp_path) as node:
            assert await value(node, SID, 1) == 1

    run(work())


@pytest.mark.skipif("MERIDIAN_STORAGE_SHARDS" in os.environ, reason="speaks to the one engine")
def test_chunk_read_again_after_its_end(tmp_path: Path) -> None:
    """The position lags behind; the transaction was discarded and settled meanwhile."""

    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            engine, txid = node.engine, b"t" * 16
            for seq in range(2):
                engine.stage(txid, seq, [put(SID, {seq: seq})], {})
            engine.discard(txid, {})
            while engine.settle():
                pass
            engine.stage(txid, 1, [put(SID, {1: 1})], {})
            assert engine.unresolved() == []
            with pytest.raises(MeridianError):
                engine.resolve(txid, 2, node.clock.now_ns() + S, {})
            assert await value(node, SID, 1) is None

    run(work())


def test_another_boot_distrusts_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage does not sync: what a machine's crash left of it is rebuilt (design section 8)."""

    async def work() -> None:
        node = Node(tmp_path, profile="standard", limits=STANDARD)
        await node.start()
        await table(node)
        await commit(node, [put(SID, {1: 1})])
        # The machine goes down: nothing is closed.
        node.closing = True
        node.seats[0].owner.stop()
        node.engine.abandon()
        node._lock.release()
        monkeypatch.setattr("meridian.dataplane.node.boot_id", lambda: "another boot")
        said: list[str] = []
        async with running(tmp_path, report=said.append) as again:
            assert again.engine.positions[0] >= 3
            assert await value(again, SID, 1) == 1

    run(work())


# Time


def test_reads_on_an_idle_system_append_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            await commit(node, [put(SID, {1: 1})])
            await value(node, SID, 1)
            written = node.journal_bytes_written()
            for _ in range(100):
                assert node.ready(node.tau_start()), "a read waited"
            assert node.journal_bytes_written() == written

    run(work())


def test_tau_in_the_future_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            ahead = node.clock.now().latest + 5 * S
            with pytest.raises(MeridianError) as refusal:
                node.ready(ahead)
            assert refusal.value.kind is Kind.TAU_IN_FUTURE
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [put(SID, {1: 1})], tau=ahead)
            assert refusal.value.kind is Kind.TAU_IN_FUTURE

    run(work())


def test_a_read_slightly_ahead_waits_for_the_clock(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            ahead = node.clock.now().latest + S // 5
            assert not node.ready(ahead)
            await node.wait_until_ready(ahead, 5000)
            assert node.clock.now().earliest >= ahead

    run(work())


def test_old_transactions_are_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            tau = node.tau_start()
            node.clock.observe(tau + 301 * S)
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [put(SID, {1: 1})], tau=tau)
            assert refusal.value.kind is Kind.TXN_AGE_LIMIT

    run(work())


# Limits


def test_limits_of_the_profile(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path, limits=DSQL) as node:
            await table(node)
            await commit(node, [put(SID, {n: n for n in range(3000)})])
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [put(SID, {n: n for n in range(3001)})])
            assert refusal.value.for_profile("dsql")[1:3] == (
                "54000",
                "transaction row limit exceeded",
            )
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [put(SID, {n: n for n in range(11)}, pad=1 << 20)])
            assert refusal.value.for_profile("dsql")[1:4] == (
                "54000",
                "transaction size limit 10mb exceeded",
                "Current transaction size 12mb > 10mb",
            )

    run(work())


@pytest.mark.parametrize(
    "op",
    [
        Put(SID, 0, (1, 2), [b"b", b"a"], bytes(16), b"", [(1, b""), (2, b"")]),
        Put(SID, 0, (1, 2), [b"a"], bytes(8), b"", [(1,)]),
        Put(SID, 0, (1, 9), [b"a"], bytes(8), b"", [(1, b"")]),
        Put(SID, 0, (1, 2), [b"a"], bytes(7), b"", [(1, b"")]),
        Put(SID, 0, (1, 2), [b"a"], bytes(8), b"", [(1 << 63, b"")]),
        Put(SID, 0, (1, 2), [b"a"], bytes(8), b"", [(1.5, b"")]),
        Put(4711, 0, (1, 2), [b"a"], bytes(8), b"", [(1, b"")]),
        Delete(4711, 0, [b"a"], bytes(8), b""),
        Big(SID, 9, [b"a"], [b"x"]),
        Drop(4711),
        Create(SID, 0, [(1, 1)], 0),
    ],
)
def test_bad_write_sets_never_reach_the_journal(tmp_path: Path, op: Any) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [op])
            assert refusal.value.kind in (Kind.BAD_WRITE_SET, Kind.SCHEMA_CHANGED)
            await commit(node, [put(SID, {1: 1})])
            assert await value(node, SID, 1) == 1

    run(work())


# Slices


def test_slices_hold_the_same_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meridian.dataplane.slices.SLICE_ROWS", 7)
    rows = {n: n for n in range(50)}
    keys = [key(n) for n in range(100, 120)]
    ops = [
        put(SID, rows),
        Delete(SID, 0, keys, hashes(SID, keys), b"i" * 8),
        create(2000),
        Put(2000, 0, (1,), [b"x"], b"h" * 8, b"i" * 16, [(1,)]),
        Big(2000, 1, keys, [bytes([n]) * 3000 for n in range(20)]),
    ]
    chunk = encode_chunk(ops)
    pieces = [decode_chunk(piece) for piece in slices(ops, len(chunk))]
    assert len(pieces) > 10
    assert isinstance(pieces[0][0], Create)
    flat = [op for piece in pieces for op in piece]
    puts = [op for op in flat if isinstance(op, Put) and op.sid == SID]
    assert [one for op in puts for one in op.keys] == ops[0].keys
    assert b"".join(op.w for op in puts) == ops[0].w
    assert [one for op in puts for one in op.rows] == ops[0].rows
    deletes = [op for op in flat if isinstance(op, Delete)]
    assert [one for op in deletes for one in op.keys] == keys
    assert b"".join(op.i for op in deletes) == b"i" * 8
    assert b"".join(op.w for op in deletes) == hashes(SID, keys)
    bigs = [op for op in flat if isinstance(op, Big)]
    assert [one for op in bigs for one in op.values] == ops[4].values


def test_join_pages() -> None:
    pages = [[], [1], list(range(20)), list(range(70_000))]
    joined = join_pages([msgspec.msgpack.encode(page) for page in pages])
    assert msgspec.msgpack.decode(joined) == [one for page in pages for one in page]


# Connections


class Transport:
    """A client that reads only when told."""

    def __init__(self) -> None:
        self.written = b""
        self.unread_bytes = 0
        self.aborted = False
        self.paused = 0
        self.reads = True

    def write(self, data: bytes) -> None:
        self.written += data
        self.unread_bytes += 0 if self.reads else len(data)

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    def set_write_buffer_limits(self, high: int) -> None:
        assert high > 0

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.paused -= 1

    def abort(self) -> None:
        self.aborted = True

    def answers(self) -> list[list[Any]]:
        found, data = [], self.written
        while data:
            size = int.from_bytes(data[:4], "little")
            found.append(msgspec.msgpack.decode(data[4 : 4 + size]))
            data = data[4 + size :]
        self.written = b""
        return found


def connect(node: Any) -> tuple[Connection, Transport]:
    transport = Transport()
    connection = Connection(Requests(node), 1)
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.data_received(frames.frame((frames.HELLO, 1, 1, 1, 1)))
    assert transport.answers()[0][:4] == [frames.WELCOME, 1, 1, "standard"]
    return connection, transport


def test_frames_in_any_pieces(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            await commit(node, [put(SID, {n: n for n in range(9)}), delete(SID, [50])])
            connection, transport = connect(node)
            data = b"".join(
                frames.frame((frames.GET, n + 2, 0, 0, SID, [1], [key(n)])) for n in range(9)
            )
            for size in (1, 3, 7, 50, 10_000):
                for start in range(0, len(data), size):
                    connection.data_received(data[start : start + size])
                answers = transport.answers()
                assert [answer[1] for answer in answers] == list(range(2, 11))
                assert [answer[4] for answer in answers] == [[[key(n), n]] for n in range(9)]

    run(work())


def test_cancel_of_a_waiting_read(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            connection, transport = connect(node)
            ahead = node.clock.now().latest + S // 2
            connection.data_received(frames.frame((frames.GET, 7, 0, ahead, SID, [1], [key(1)])))
            assert transport.answers() == []
            connection.data_received(frames.frame((frames.CANCEL, 0, 7)))
            answers = transport.answers()
            assert [(a[0], a[1], a[3]) for a in answers] == [(frames.ERROR, 7, "57014")]
            await asyncio.sleep(0.6)
            assert transport.answers() == [], "it was answered twice"

    run(work())


def test_slow_client_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meridian.gateway.connection.CONNECTION_STALL_MS", 50)
    monkeypatch.setattr("meridian.gateway.connection.CONNECTION_OUTPUT_BYTES", 5_000)

    async def work() -> None:
        async with running(tmp_path) as node:
            connection, transport = connect(node)
            connection.pause_writing()
            assert transport.paused == 1
            connection.resume_writing()
            assert transport.paused == 0 and not transport.aborted
            connection.pause_writing()
            await asyncio.sleep(0.2)
            assert transport.aborted
            connection, transport = connect(node)
            transport.reads = False
            for number in range(1000):
                connection.data_received(frames.frame((frames.BEGIN, number + 2, 0)))
                if transport.aborted:
                    break
            assert transport.aborted and number < 1000
            assert node.counters.connections_cut == 2

    run(work())


def test_too_many_requests(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            connection, transport = connect(node)
            ahead = node.clock.now().latest + S // 2
            for number in range(300):
                get = (frames.GET, number + 2, 0, ahead, SID, [1], [key(1)])
                connection.data_received(frames.frame(get))
            refused = transport.answers()
            assert len(refused) == 300 - 256
            assert {answer[3] for answer in refused} == {"53000"}
            await asyncio.sleep(0.6)
            assert len(transport.answers()) == 256

    run(work())


def test_request_before_hello(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            transport = Transport()
            connection = Connection(Requests(node), 1)
            connection.connection_made(transport)  # type: ignore[arg-type]
            connection.data_received(frames.frame((frames.BEGIN, 1, 0)))
            assert transport.answers()[0][3] == "08P01"

    run(work())


def test_frames_in_pieces_and_one_that_is_too_long(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            connection, transport = connect(node)
            sent = b"".join(frames.frame((frames.BEGIN, number, 0)) for number in range(2, 9))
            for byte in sent:
                connection.data_received(bytes((byte,)))
            await asyncio.sleep(0.1)
            assert sorted(answer[1] for answer in transport.answers()) == list(range(2, 9))
            begin = frames.frame((frames.BEGIN, 9, 0))
            connection.data_received(begin + b"\xff\xff\xff\x7f" + begin)
            assert transport.aborted and node.counters.connections_cut == 1

    run(work())


def test_get_of_many_keys(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as node:
            await table(node)
            await commit(node, [put(SID, {n: n for n in range(0, 6000, 2)})])
            connection, transport = connect(node)
            keys = [key(n) for n in range(6000)]
            connection.data_received(frames.frame((frames.GET, 5, 0, 0, SID, [1], keys)))
            for _ in range(100):
                await asyncio.sleep(0.01)
                if transport.written:
                    break
            answer = transport.answers()[0]
            assert answer[:2] == [frames.RESULT, 5] and answer[3] is False
            assert answer[4] == [[key(n), n] for n in range(0, 6000, 2)]

    run(work())
