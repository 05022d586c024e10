"""A disk that fills up while something changes hands between storage files: nothing gets lost."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from pathlib import Path
from typing import Any

import apsw
import pytest

from meridian.clock.clock import Clock
from meridian.dataplane import balance, replica
from meridian.dataplane.node import Node
from meridian.dataplane.shard_files import shard_path
from meridian.dataplane.shards import ShardedEngine, files_of, open_set
from meridian.errors import Kind, MeridianError
from meridian.storage import Engine, schema
from meridian.storage.errors import Failed
from meridian.wire.frames import COMMIT_HAS_SCHEMA, OUTCOME_COMMITTED, OUTCOME_UNKNOWN
from tests.dataplane.plane import commit, create, put, running, value

SID = 1000
ROWS = 300


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "_RETRY_S", 0.05)
    monkeypatch.setattr("meridian.dataplane.housekeeping._RETRY_S", 0.3)
    monkeypatch.setattr("meridian.dataplane.shard_feed._FLUSH_S", 0.05)
    monkeypatch.setattr(balance, "LOOK_S", 0.05)


class FullDisk:
    """Transactions of the chosen storage files fail at COMMIT, as where the disk is full.

    `spare`: so many still succeed.
    """

    def __init__(self) -> None:
        self.full: set[Path] = set()
        self.spare = 0
        self.failed = 0

    def watch(self, node: Node) -> None:
        for engine in getattr(node.engine, "engines", [node.engine]):
            self._watch(engine)

    def _watch(self, engine: Engine) -> None:
        execute = engine._execute

        def limited(sql: str, *rest: Any) -> Any:
            if sql == "COMMIT" and engine.path in self.full:
                if self.spare <= 0:
                    self.failed += 1
                    raise apsw.FullError("database or disk is full")
                self.spare -= 1
            return execute(sql, *rest)

        engine._execute = limited  # type: ignore[assignment]


async def until_written(node: Node, sid: int, number: int, wanted: int) -> None:
    for _ in range(200):
        with contextlib.suppress(MeridianError):
            await commit(node, [put(sid, {number: wanted})])
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the disk has room again, but nothing is written")


@pytest.mark.parametrize("spare", [0, 1])
def test_a_table_is_made_while_the_disk_is_full(spare: int, tmp_path: Path) -> None:
    """Its home cannot be written. Whether it was made is found out, and then it is there."""

    async def work() -> None:
        disk = FullDisk()
        async with running(tmp_path, storage_shards=4) as node:
            await commit(node, [create(SID)], flags=COMMIT_HAS_SCHEMA)
            several: Any = node.engine
            disk.watch(node)
            disk.full = {one.path for one in several.engines}
            disk.spare = spare
            making = asyncio.ensure_future(
                commit(node, [create(SID + 1), put(SID + 1, {1: 11})], flags=COMMIT_HAS_SCHEMA)
            )
            await asyncio.sleep(0.3)
            assert disk.failed
            disk.full = set()
            await making
            if not node.fatal.done():
                assert await value(node, SID + 1, 1) == 11
                await until_written(node, SID + 1, 2, 22)
                assert (await node.admin("verify", {}))["damage"] == []
        async with running(tmp_path, storage_shards=4) as node:
            assert await value(node, SID + 1, 1) == 11

    run(work())


def _to_the_last(rows: list[int]) -> tuple[int, int] | None:
    """That one a start would take for the owner of what two own."""
    source = rows.index(max(rows))
    return (source, 3) if rows[source] > ROWS // 2 and source != 3 else None


@pytest.mark.parametrize("which", ["source", "both"])
def test_the_disk_fills_up_while_a_relation_is_cut(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a slice's two halves: no commit goes to one owner only, whoever that was."""
    monkeypatch.setattr(balance, "cut_wanted", lambda _, rows, __: _to_the_last(rows))
    monkeypatch.setattr(balance, "SLICE_ROWS", 20)

    async def work() -> None:
        disk = FullDisk()
        wanted = {n: n for n in range(ROWS)}
        async with running(tmp_path, storage_shards=4) as node:
            several: Any = node.engine
            disk.watch(node)
            take_slice = Engine.take_slice

            def filling_up(target: Engine, source: Engine, *rest: Any) -> None:
                take_slice(target, source, *rest)
                if not disk.failed:
                    disk.full = {source.path} if which == "source" else {source.path, target.path}

            await commit(node, [create(SID)], flags=COMMIT_HAS_SCHEMA)
            monkeypatch.setattr(Engine, "take_slice", filling_up)
            await commit(node, [put(SID, wanted)])
            for _ in range(100):
                await asyncio.sleep(0.02)
                if disk.failed:
                    break
            assert disk.failed
            # There is room for a little.
            disk.full = {one.path for one in several.engines if one.broken}
            for number in range(0, ROWS, 3):
                with contextlib.suppress(MeridianError):
                    await commit(node, [put(SID, {number: -number})])
                    wanted[number] = -number
                if node.fatal.done():
                    break
            await asyncio.sleep(0.5)
            assert node.fatal.done() == (which == "both")
            if not node.fatal.done():
                assert (await node.admin("verify", {}))["damage"] == []
                assert {n: await value(node, SID, n) for n in range(ROWS)} == wanted
        async with running(tmp_path, storage_shards=4) as node:
            assert {n: await value(node, SID, n) for n in range(ROWS)} == wanted
            assert (await node.admin("verify", {}))["damage"] == []

    run(work())


def test_a_start_on_a_full_disk_throws_no_storage_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise apsw.FullError("database or disk is full")

    def start() -> ShardedEngine:
        return open_set(tmp_path, None, "boot", [], Clock(), trusted=True, count=2)

    start().close()
    files = [shard_path(tmp_path, number) for number in range(2)]
    found = [path.stat().st_ino for path in files]
    with monkeypatch.context() as patch:
        patch.setattr(schema, "_mark", full)
        with pytest.raises(Failed, match="full"):
            start()
    assert [path.stat().st_ino for path in files] == found
    start().close()
    assert [path.stat().st_ino for path in files] == found


async def status(node: Node, txid: bytes, tau: int) -> int:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    node.commits.asker.status(txid, tau, lambda outcome, _: future.set_result(outcome))
    return await future


@pytest.mark.parametrize("count", [1, 4])
def test_what_is_told_as_committed_is_read_while_the_disk_is_full(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads stay behind what storage lacks, so nobody is told of that, asked by id either."""
    monkeypatch.setattr("meridian.dataplane.asker.COMMIT_WAIT_MS", 300)

    async def work() -> None:
        disk = FullDisk()
        topology = {"storage_shards": count, "adjudicators": min(count, 3), "journals": 2}
        async with running(tmp_path, **topology) as node:
            await commit(node, [create(SID)], flags=COMMIT_HAS_SCHEMA)
            await commit(node, [put(SID, {1: 1})])
            disk.watch(node)
            disk.full = set(files_of(node.engine))
            txid, tau = secrets.token_bytes(16), node.tau_start()
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [put(SID, {1: 2})], txid=txid, tau=tau)
            assert refusal.value.kind is Kind.OUTCOME_UNKNOWN
            assert await status(node, txid, tau) == OUTCOME_UNKNOWN
            assert await value(node, SID, 1) == 1
            asked = asyncio.ensure_future(status(node, txid, tau))
            await asyncio.sleep(0.1)
            disk.full = set()
            assert await asked == OUTCOME_COMMITTED
            assert await value(node, SID, 1) == 2

    run(work())
