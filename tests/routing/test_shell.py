"""Reads over engines that own random ranges, against one engine that owns everything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from meridian.clock.clock import Clock
from meridian.errors import Kind, MeridianError
from meridian.routing.map import Shard, ShardMap
from meridian.routing.shell import Reads
from meridian.storage import Engine, SampleRequest, ScanRequest
from meridian.storage.types import Page
from meridian.wire import ops
from meridian.wire.ranges import END, EVERYTHING, Owned, Scanned, place
from tests.storage.feed import decode

TABLE, INDEX = 2000, 2001
ROWS = 300
TAU = 1000


def key(i: int) -> bytes:
    return b"k%05d" % i


class Local:
    """An engine as a replica, with faults."""

    def __init__(self, engine: Engine, rng: random.Random) -> None:
        self.engine = engine
        self.random = rng
        self.faults = 0.0
        self.delay = 0.0
        self.calls = 0

    async def _pass(self) -> None:
        self.calls += 1
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.random.random() < self.faults:
            await asyncio.sleep(0)
            if self.random.random() < 0.5:
                raise OSError("gone")
            raise MeridianError(self.random.choice([Kind.WAIT_TIMEOUT, Kind.NOT_READY]))

    async def get(
        self, tau: int, sid: int, cols: tuple[int, ...], keys: Sequence[bytes], where: Any
    ) -> Page:
        await self._pass()
        return self.engine.get_filtered(tau, sid, cols, keys, where)

    async def scan(self, request: ScanRequest) -> tuple[Page, Scanned]:
        await self._pass()
        return self.engine.scan_part(request)

    async def sample(self, request: SampleRequest) -> Page:
        await self._pass()
        return self.engine.scan(request)

    async def stats(self, sids: Sequence[int]) -> Sequence[tuple[int, int]]:
        return self.engine.stats(sids)


def write(engine: Engine, rng: random.Random) -> None:
    keys = [key(i) for i in range(ROWS)]
    values = [(i, rng.choice([None, b"a", b"b", b"c"]), rng.randrange(-9, 9)) for i in range(ROWS)]
    order = list(range(ROWS))
    rng.shuffle(order)
    entries = sorted((b"e%05d" % order[i], key(i), values[i][2]) for i in range(ROWS))
    chunk: list[ops.Op] = [
        ops.Create(TABLE, 0, [(1, 1), (2, 2), (3, 1)], 0),
        ops.Create(INDEX, 1, [(1, 1)], TABLE),
        ops.Put(TABLE, 1, (1, 2, 3), keys, b"", b"", values),
        ops.Put(INDEX, 1, (0, 1), [e[0] for e in entries], b"", b"", [e[1:] for e in entries]),
        ops.Create(2002, 0, [(1, 1)], 0),
    ]
    engine.apply([(TAU, chunk)], {0: 1})


class World:
    def __init__(self, seed: int, path: Path, *, copies: int = 2, pieces: int = 4) -> None:
        self.random = random.Random(seed)
        self.oracle = Engine.create(path / "all.db", boot_id="boot")
        write(self.oracle, random.Random(seed))
        cuts = [place(TABLE, key(self.random.randrange(ROWS))) for _ in range(pieces)]
        cuts += [place(INDEX, b"e%05d" % self.random.randrange(ROWS)) for _ in range(pieces)]
        borders = sorted({b"", END, *cuts})
        owned: list[list[Owned]] = [[] for _ in range(4)]
        shards = []
        for number, (lo, hi) in enumerate(pairwise(borders)):
            replicas = tuple(self.random.sample(range(4), copies))
            for replica in replicas:
                owned[replica].append(Owned(lo, hi))
            shards.append(Shard(number, lo, hi, replicas))
        self.clients = {}
        for number, part in enumerate(owned):
            engine = Engine.create(path / f"{number}.db", boot_id="boot", owned=part)
            write(engine, random.Random(seed))
            self.clients[number] = Local(engine, self.random)
        self.map = ShardMap(2, tuple(shards))

    def reads(self, **how: Any) -> Reads:
        return Reads(self.map, self.clients, Clock(), **how)

    def close(self) -> None:
        for client in self.clients.values():
            client.engine.abandon()
        self.oracle.abandon()


async def everything(reads: Callable[[ScanRequest], Any], request: ScanRequest) -> list[Any]:
    """All pages, as a client continues them."""
    import msgspec

    rows: list[Any] = []
    while True:
        answer = reads(request)
        more, page = await answer if isinstance(answer, Coroutine) else answer
        found = decode(page)
        rows += found
        if not more:
            return rows
        assert found, "an empty page cannot be continued"
        if request.flags & 1:
            request = msgspec.structs.replace(request, hi=found[-1][0])
        else:
            request = msgspec.structs.replace(request, lo=found[-1][0], flags=request.flags | 2)


def random_scan(rng: random.Random) -> ScanRequest:
    indexed = rng.random() < 0.5
    sid = INDEX if indexed else TABLE
    name = (
        (lambda: b"e%05d" % rng.randrange(ROWS)) if indexed else (lambda: key(rng.randrange(ROWS)))
    )
    lo, hi = sorted([name(), name()])
    join = indexed and rng.random() < 0.7
    return ScanRequest(
        TAU, sid,
        lo=rng.choice([None, lo]),
        hi=rng.choice([None, hi]),
        flags=rng.choice([0, 1, 2]),
        cols=rng.choice([(), (1,)]),
        filter=rng.choice([None, [6, 1, 2, 100]]),
        limit=rng.choice([0, 0, 1, 7, 50]),
        page_bytes=rng.choice([0, 0, 400]),
        row_sid=TABLE if join else 0,
        row_cols=(3, 2) if join else (),
        row_filter=rng.choice([None, [6, 3, 1, 0], [6, 2, 3, b"zz"]]) if join else None,
    )  # fmt: skip


@pytest.mark.parametrize(("seed", "faults"), [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0.15), (5, 0.15)])
def test_reads_over_shards_equal_reads_of_one(seed: int, faults: float, tmp_path: Path) -> None:
    world = World(seed, tmp_path)
    for client in world.clients.values():
        client.faults = faults

    async def run() -> None:
        reads = world.reads()
        for _ in range(30):
            request = random_scan(world.random)
            expected = await everything(world.oracle.scan, request)
            assert await everything(reads.scan, request) == expected, request
            if request.limit:
                first = decode((await reads.scan(request))[1])
                assert len(first) <= request.limit and first == expected[: len(first)]
        for _ in range(20):
            keys = sorted({key(world.random.randrange(ROWS + 9)) for _ in range(30)})
            where = world.random.choice([None, [6, 3, 1, 0]])
            _, page = await reads.get(TAU, TABLE, (1, 2), keys, where)
            assert page_rows(page) == page_rows(
                world.oracle.get_filtered(TAU, TABLE, (1, 2), keys, where)[1]
            )
        for _ in range(30):
            await check_groups(world, reads)
        await asyncio.sleep(0)
        assert not reads._waiting and not reads._pages and not reads._errors
        reads.close()

    asyncio.run(run())
    world.close()


def page_rows(page: bytes) -> list[Any]:
    rows: list[Any] = decode(page)
    return rows


async def check_groups(world: World, reads: Reads) -> None:
    rng = world.random
    group = rng.choice([None, (2,), (2, 3)])
    aggs = tuple(rng.sample([(1, 0), (2, 2), (3, 1), (4, 2), (5, 3), (6, 1)], rng.randint(1, 4)))
    lo, hi = sorted([key(rng.randrange(ROWS)), key(rng.randrange(ROWS))])
    where = rng.choice([None, [6, 3, 5, 0], [6, 1, 5, 5000]])
    limit = rng.choice([0, 2, 100])
    request = ScanRequest(TAU, TABLE, lo, hi, group=group, aggs=aggs, filter=where, limit=limit)
    more, page = world.oracle.scan(request)
    found = await reads.scan(request)
    # With more groups than the limit the answer is discarded: each shard may have fewer.
    assert found[0] == more or (limit and group)
    if not found[0] and not more:
        order = lambda row: [(value is None, value) for value in row]  # noqa: E731
        assert sorted(decode(found[1]), key=order) == sorted(decode(page), key=order)


def test_grouped_joins_over_shards_are_left_to_the_query_processor(tmp_path: Path) -> None:
    world = World(3, tmp_path)

    async def run() -> None:
        reads = world.reads()
        request = ScanRequest(TAU, INDEX, row_sid=TABLE, aggs=((1, 0),))
        assert await reads.scan(request) == (True, b"\x90")
        reads.close()

    asyncio.run(run())
    world.close()


def test_joins_on_one_shard_are_one_question(tmp_path: Path) -> None:
    world = World(1, tmp_path)
    client = Local(world.oracle, world.random)

    async def run() -> None:
        one = ShardMap(1, (Shard(0, *EVERYTHING, (9,)),))
        reads = Reads(one, {9: client}, Clock())
        request = ScanRequest(TAU, INDEX, b"e00001", b"e00009", row_sid=TABLE, row_cols=(1,))
        assert len(decode((await reads.scan(request))[1])) == 8 and client.calls == 1
        count = ScanRequest(TAU, INDEX, row_sid=TABLE, aggs=((1, 0),))
        assert decode((await reads.scan(count))[1]) == [[ROWS]] and client.calls == 2
        reads.close()

    asyncio.run(run())
    world.close()


def test_samples_and_estimates_cover_all_shards(tmp_path: Path) -> None:
    world = World(4, tmp_path, copies=1)

    async def run() -> None:
        reads = world.reads()
        (rows, size_bytes), (none, _) = await reads.stats([TABLE, 2002])
        assert rows == ROWS and size_bytes > 0 and none == 0
        _, page = await reads.sample(SampleRequest(TAU, TABLE, ROWS * 2, (1,)))
        assert [row[0] for row in decode(page)] == [key(i) for i in range(ROWS)]
        counts = [
            len(decode((await reads.sample(SampleRequest(TAU, TABLE, 60)))[1])) for _ in range(30)
        ]
        assert 40 < sum(counts) / 30 < 90
        reads.close()

    asyncio.run(run())
    world.close()


def test_a_slow_replica_is_hedged_and_a_dead_one_replaced(tmp_path: Path) -> None:
    world = World(5, tmp_path)
    world.clients[0].delay = 20.0
    world.clients[1].faults = 1.0

    async def run() -> None:
        reads = world.reads()
        loop = asyncio.get_running_loop()
        started = loop.time()
        asked = 0
        for shard in world.map.shards:
            if not set(shard.replicas) <= {0, 1}:
                lo = shard.lo[8:] if shard.lo[:8] == place(TABLE) else b""
                await reads.get(TAU, TABLE, (1,), [max(lo, key(0))]) if lo else None
                asked += bool(lo)
        assert asked and loop.time() - started < 5
        assert reads.core.hedges or reads.core.retries
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                world.clients[2].delay = world.clients[3].delay = 20.0
                await reads.scan(ScanRequest(TAU, TABLE))
        await asyncio.sleep(0)
        assert not reads._waiting and not reads.core._reads
        reads.close()

    asyncio.run(run())
    world.close()


def test_a_stale_map_costs_time_only(tmp_path: Path) -> None:
    world = World(6, tmp_path)
    fetched = []

    async def fetch() -> ShardMap:
        fetched.append(1)
        if len(fetched) < 3:
            raise OSError("control plane is away")
        return world.map

    async def run() -> None:
        stale = ShardMap(1, (Shard(0, *EVERYTHING, (0,)),))
        reads = Reads(stale, world.clients, Clock(), fetch_map=fetch)
        expected = await everything(world.oracle.scan, ScanRequest(TAU, TABLE, cols=(1, 2)))
        assert await everything(reads.scan, ScanRequest(TAU, TABLE, cols=(1, 2))) == expected
        assert len(fetched) == 3 and reads.map.version == 2
        lost = Reads(stale, {}, Clock())
        with pytest.raises(MeridianError) as caught:
            await lost.get(TAU, TABLE, (1,), [key(1)], timeout_ms=50)
        assert caught.value.kind == Kind.WRONG_PLACE
        waiting = asyncio.ensure_future(lost.get(TAU, TABLE, (1,), [key(1)]))
        await asyncio.sleep(0.01)
        lost.close()
        with pytest.raises(MeridianError) as caught:
            await waiting
        assert caught.value.kind == Kind.SHUTTING_DOWN
        reads.close()

    asyncio.run(run())
    world.close()


def test_bad_requests_are_not_retried(tmp_path: Path) -> None:
    world = World(2, tmp_path)

    async def run() -> None:
        reads = world.reads()
        for request, kind in (
            (ScanRequest(TAU, TABLE, cols=(77,)), Kind.BAD_REQUEST),
            (ScanRequest(TAU, 2009), Kind.SCHEMA_CHANGED),
        ):
            with pytest.raises(MeridianError) as caught:
                await reads.scan(request)
            assert caught.value.kind == kind
        assert reads.core.retries == 0
        assert await reads.get(TAU, TABLE, (1,), []) == (False, b"\x90")
        empty = ScanRequest(TAU, TABLE, b"b", b"a")
        assert await reads.scan(empty) == (False, b"\x90")
        reads.close()

    asyncio.run(run())
    world.close()
