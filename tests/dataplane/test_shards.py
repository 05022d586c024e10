"""The data plane over several storage files: the same answers, through kills, loss and growth."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meridian.dataplane import balance, shard_files, shards
from meridian.dataplane.node import Node
from meridian.dataplane.shards import ShardedEngine
from meridian.dataplane.topology import Topology
from meridian.errors import MeridianError
from meridian.gateway.client import Client
from meridian.storage import Engine, ScanRequest, schema
from meridian.wire.frames import COMMIT_HAS_SCHEMA
from meridian.wire.ops import Drop
from tests.dataplane.plane import (
    Plane,
    commit,
    contents,
    create,
    delete,
    new_table,
    put,
    running,
    value,
)

decode = msgspec.msgpack.decode
SIDS = list(range(1000, 1006))


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 100))


def owners(node: Node) -> dict[int, list[int]]:
    engine: Any = node.engine
    return {sid: engine.numbers_in(shards.span(sid)) for sid in SIDS}


async def scan(node: Node, sid: int, tau: int = 0, **how: Any) -> Any:
    """As the gateway does it."""
    tau = tau or node.tau_start()
    await node.wait_until_ready(tau, 10_000)
    request = ScanRequest(tau, sid, **{"cols": (1,), **how})
    page = node.engine.try_scan(request)
    if page is None:
        page = await asyncio.wrap_future(node.engine.readers.submit(request).future)
    return decode(page[1])


class Model:
    """What the tables must hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tables: dict[int, dict[int, int]] = {}
        self.past: list[tuple[int, dict[int, dict[int, int]]]] = []

    async def step(self, node: Node) -> None:
        rng = self.random
        missing = [sid for sid in SIDS if sid not in self.tables]
        if missing and rng.random() < 0.3:
            await commit(node, [create(missing[0])], flags=COMMIT_HAS_SCHEMA)
            self.tables[missing[0]] = {}
            return
        ops: list[Any] = []
        tables = {sid: dict(rows) for sid, rows in self.tables.items()}
        for sid in sorted(rng.sample(list(tables), min(2, len(tables)))):
            rows = {rng.randrange(60): rng.randrange(1000) for _ in range(rng.randint(1, 5))}
            ops.append(put(sid, rows))
            tables[sid].update(rows)
            gone = [n for n in tables[sid] if n not in rows and rng.random() < 0.05]
            if gone:
                ops.append(delete(sid, gone))
                for number in gone:
                    del tables[sid][number]
        if ops:
            tau = await commit(node, ops)
            self.tables = tables
            self.past.append((tau, {sid: dict(rows) for sid, rows in tables.items()}))

    async def check(self, node: Node) -> None:
        for sid, rows in self.tables.items():
            found = await scan(node, sid)
            assert {int.from_bytes(k, "big"): v for k, v in found} == rows
            assert [k for k, _ in found] == sorted(k for k, _ in found)
            number = self.random.randrange(60)
            assert await value(node, sid, number) == rows.get(number)
            assert await scan(node, sid, cols=(), aggs=((1, 0),)) == [[len(rows)]]
        if self.past:
            tau, tables = self.random.choice(self.past[-20:])
            for sid, rows in tables.items():
                found = await scan(node, sid, tau)
                assert {int.from_bytes(k, "big"): v for k, v in found} == rows


@pytest.mark.parametrize("seed", range(3))
def test_random_work_over_four_shards_with_restarts(seed: int, tmp_path: Path) -> None:
    model = Model(seed)

    async def life(count: int, steps: int) -> None:
        async with running(tmp_path, storage_shards=count) as node:
            for _ in range(steps):
                await model.step(node)
                if model.random.random() < 0.1:
                    await model.check(node)
                if model.random.random() < 0.03:
                    await node.housekeeping.checkpoint()
            await model.check(node)
            assert (await node.admin("verify", {}))["damage"] == []

    # One file first: it grows into several, and never shrinks again.
    for count in (1, 4, 4, 2):
        run(life(count, 25))
        if model.random.random() < 0.5:
            shutil.rmtree(tmp_path / "storage")
    assert shard_files.existing(tmp_path / "storage") in (0, 4)


@pytest.mark.parametrize("seed", range(2))
def test_random_work_with_several_of_everything(seed: int, tmp_path: Path) -> None:
    model = Model(seed + 50)

    async def life() -> None:
        options = {"storage_shards": 4, "adjudicators": 3, "journals": 2}
        async with running(tmp_path, **options) as node:
            for _ in range(25):
                await model.step(node)
                if model.random.random() < 0.1:
                    await model.check(node)
                if model.random.random() < 0.05:
                    await node.housekeeping.checkpoint()
            await model.check(node)
            assert (await node.admin("verify", {}))["damage"] == []

    for _ in range(3):
        run(life())
        if model.random.random() < 0.5:
            shutil.rmtree(tmp_path / "storage")


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 2, 3))]
)
def test_random_work_while_journals_come_and_go(seed: int, tmp_path: Path) -> None:
    """Shards learn of added journals, whether they go on, are restored or made anew (4.7, 6.7)."""
    model = Model(seed + 80)
    closed: dict[int, None] = {}

    async def life(count: int) -> None:
        async with running(tmp_path, storage_shards=count) as node:
            for _ in range(3):
                node.reshape.want(Topology(*model.random.choice(((1, 1), (3, 2), (4, 4)))))
                for _ in range(model.random.randint(1, 12)):
                    try:
                        await model.step(node)
                    except MeridianError as error:
                        # A range that has just moved costs older transactions their commit.
                        if error.kind.value.sqlstate != "40001":
                            raise
                    if model.random.random() < 0.2:
                        await node.housekeeping.checkpoint()
                await model.check(node)
                async with asyncio.timeout(60):
                    while not node.reshape.done:
                        await asyncio.sleep(0.01)
            closed.update(dict.fromkeys(seat.number for seat in node.seats if seat.closed))
            await model.check(node)
            assert (await node.admin("verify", {}))["damage"] == []

    for count in (1, 3, 4):
        run(life(count))
        if model.random.random() < 0.5:
            shutil.rmtree(tmp_path / "storage")
    assert closed, "no journal ever ended"


def test_new_relations_spread_and_rows_go_to_their_shard(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path, storage_shards=4) as node:
            for sid in SIDS:
                await commit(node, [create(sid), put(sid, {1: sid})], flags=COMMIT_HAS_SCHEMA)
            homes = owners(node)
            assert all(len(home) == 1 and home[0] > 0 for home in homes.values())
            assert {home[0] for home in homes.values()} == {1, 2, 3}
            engine: Any = node.engine
            for sid, (home,) in homes.items():
                for number, one in enumerate(engine.engines):
                    assert (one.known_columns(sid) is not None) == (number == home)
            assert node.engine.stats(SIDS) == [node.engine.stats([sid])[0] for sid in SIDS]
            assert [rows for rows, _ in node.engine.stats(SIDS)] == [1] * len(SIDS)
            # A transaction over all of them is there as a whole or not at all.
            tau = await commit(node, [put(sid, {2: 2}) for sid in SIDS])
            for sid in SIDS:
                assert len(await scan(node, sid, tau)) == 2
                assert len(await scan(node, sid, tau - 1)) == 1
            await commit(node, [Drop(SIDS[0])], flags=COMMIT_HAS_SCHEMA)
            with pytest.raises(MeridianError):
                await scan(node, SIDS[0])
            files = sorted(path.name for path in (tmp_path / "storage").glob("*.db"))
            assert files == [f"shard-{n}.db" for n in range(4)]

    run(work())


@pytest.mark.parametrize("seed", range(3))
def test_relations_that_grow_are_cut_while_work_goes_on(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balance, "CUT_ROWS", 12)
    monkeypatch.setattr(balance, "SLICE_ROWS", 5)
    monkeypatch.setattr(balance, "LOOK_S", 0.01)
    # Sizes of these files say nothing: any shard may take from any other.
    monkeypatch.setattr(balance, "cut_wanted", _any_other(random.Random(seed)))
    model = Model(seed)
    spread: set[int] = set()

    async def life() -> None:
        async with running(tmp_path, storage_shards=3) as node:
            for _ in range(40):
                await model.step(node)
                if model.random.random() < 0.3:
                    await asyncio.sleep(0.03)
                if model.random.random() < 0.2:
                    await model.check(node)
                if model.random.random() < 0.05:
                    await node.housekeeping.checkpoint()
                spread.update(sid for sid, home in owners(node).items() if len(home) > 1)
            assert (await node.admin("verify", {}))["damage"] == []
            for engine in node.engine.engines:  # type: ignore[attr-defined]
                while engine.purge():
                    pass
            stats = node.engine.stats(SIDS)
            for sid, (rows, _) in zip(SIDS, stats, strict=True):
                assert rows == len(model.tables.get(sid, {}))

    for _ in range(3):
        run(life())
        if model.random.random() < 0.4:
            shutil.rmtree(tmp_path / "storage")
    assert spread


def _any_other(rng: random.Random) -> Any:
    def choose(sizes: Any, rows: Any, bound: int) -> Any:
        large = [shard for shard, count in enumerate(rows) if count > bound]
        if not large:
            return None
        source = rng.choice(large)
        return source, rng.choice([shard for shard in (1, 2) if shard != source])

    return choose


def test_one_shard_is_one_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MERIDIAN_STORAGE_SHARDS", raising=False)

    async def work() -> None:
        async with running(tmp_path) as node:
            assert type(node.engine) is Engine
        async with running(tmp_path, storage_shards=3) as node:
            assert type(node.engine) is ShardedEngine

    run(work())


def test_a_lost_file_means_all_are_rebuilt(tmp_path: Path) -> None:
    async def fill() -> None:
        async with running(tmp_path, storage_shards=4) as node:
            for sid in SIDS:
                await commit(node, [create(sid), put(sid, {1: sid})], flags=COMMIT_HAS_SCHEMA)
            await node.housekeeping.checkpoint()
            for sid in SIDS:
                await commit(node, [put(sid, {2: sid})])

    async def look() -> None:
        async with running(tmp_path, storage_shards=4) as node:
            for sid in SIDS:
                assert [await value(node, sid, n) for n in (1, 2)] == [sid, sid]
            assert (await node.admin("verify", {}))["damage"] == []

    run(fill())
    for gone in ("shard-2.db", "shard-0.db", "shard-3.db"):
        schema.remove_file(tmp_path / "storage" / gone)
        run(look())
    half = next((tmp_path / "checkpoint").glob("*/shard-1"))
    shutil.rmtree(half)
    run(look())
    shutil.rmtree(tmp_path / "storage")
    # The checkpoint is not whole, but the journal was never trimmed.
    run(look())


def test_two_owners_after_a_crash_become_one(tmp_path: Path) -> None:
    whole = shards.span(1000)
    engines = [
        Engine.create(tmp_path / "0.db", boot_id="b"),
        Engine.create(tmp_path / "1.db", boot_id="b", owned=[shards.Owned(*whole)]),
    ]
    shard_files.settle_owners(engines)
    assert not engines[0].ranges.meets(whole) and engines[1].ranges.meets(whole)
    assert engines[0].ranges.base_of(shards.span(999)) == 0
    for engine in engines:
        engine.abandon()


def test_kills_with_large_commits_under_way(tmp_path: Path) -> None:
    with Plane(tmp_path, "--storage-shards", "3") as plane:
        client = plane.client()
        sids = [new_table(client) for _ in range(4)]
        expected: dict[int, dict[int, int]] = {sid: {} for sid in sids}
        rng = random.Random(4)
        for round_ in range(3):
            for sid in sids:
                rows = {rng.randrange(10_000): round_ for _ in range(200)}
                client.commit([put(sid, rows)], row_count=len(rows))
                expected[sid].update(rows)
            large = dict.fromkeys(range(20000, 23000), round_ + 100)
            chunks = [
                [put(sids[0], {n: large[n] for n in sorted(large)[i::3]}, pad=300)]
                for i in range(3)
            ]
            _send_large(client, sids, chunks)
            expected[sids[0]].update(large)
            # One that never ends: its chunks must vanish.
            _begin_large(client, sids[1])
            plane.kill()
            plane.start()
            client = plane.client()
            for sid in sids:
                assert contents(client, sid) == expected[sid], (round_, sid)
        assert client.admin("verify")["damage"] == []


def _send_large(client: Client, sids: list[int], chunks: list[list[Any]]) -> None:
    import secrets

    from meridian.wire import frames
    from meridian.wire.ops import encode_chunk

    txid = secrets.token_bytes(16)
    for seq, ops in enumerate(chunks[:-1]):
        client.send(frames.PART, txid, seq, encode_chunk(ops), 0)
    client.call(frames.COMMIT, 0, 0, txid, 2, 3000, encode_chunk(chunks[-1]))


def _begin_large(client: Client, sid: int) -> None:
    import secrets

    from meridian.wire import frames
    from meridian.wire.ops import encode_chunk

    rows = dict.fromkeys(range(50000, 50500), -1)
    client.send(frames.PART, secrets.token_bytes(16), 0, encode_chunk([put(sid, rows)]), 0)
    client.begin()
