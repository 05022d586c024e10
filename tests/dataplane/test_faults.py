"""A failing disk under a running node: clear answers, nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
from pathlib import Path
from typing import Any

import pytest

from meridian.dataplane.node import Node
from meridian.errors import Kind, MeridianError
from meridian.wire.frames import COMMIT_HAS_SCHEMA, OUTCOME_ABORTED, OUTCOME_COMMITTED
from tests.dataplane.plane import commit, create, put, running, value
from tests.journal.faults import FaultyFiles

SID = 1000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meridian.dataplane.seat.OWNER_RETRY_S", 0.05)


async def commit_at_last(node: Node) -> None:
    """Key 2, once an owner takes it."""
    for _ in range(100):
        with contextlib.suppress(MeridianError):
            await commit(node, [put(SID, {2: 200})])
            return
        await asyncio.sleep(0.05)


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def status(node: Any, txid: bytes, tau: int) -> int:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    node.commits.asker.status(txid, tau, lambda outcome, _: future.set_result(outcome))
    return await future


async def filled(node: Any) -> None:
    await commit(node, [create(SID)], flags=COMMIT_HAS_SCHEMA)
    await commit(node, [put(SID, {n: n for n in range(10)})])


def test_disk_full(tmp_path: Path) -> None:
    """53100 while it lasts, reads go on, commits too once there is room again."""

    async def work() -> None:
        files = FaultyFiles()
        async with running(tmp_path, files) as node:
            await filled(node)
            files.room_bytes = 10
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [put(SID, {1: 100})])
            assert refusal.value.kind is Kind.DISK_FULL
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [put(SID, {1: 101})])
            assert refusal.value.kind is Kind.DISK_FULL
            assert await value(node, SID, 1) == 1
            await asyncio.sleep(1.2)
            assert await value(node, SID, 2) == 2
            files.room_bytes = None
            for _ in range(100):
                with contextlib.suppress(MeridianError):
                    await commit(node, [put(SID, {1: 102})])
                    break
                await asyncio.sleep(0.1)
            assert await value(node, SID, 1) == 102
            assert node.counters.owners == len(node.seats) + 1
        async with running(tmp_path) as node:
            assert await value(node, SID, 1) == 102

    run(work())


@pytest.mark.parametrize("landed", [True, False])
def test_failed_sync_is_resolved_by_reading(tmp_path: Path, landed: bool) -> None:
    """The outcome of a commit whose sync failed is what the next owner finds."""

    async def work() -> None:
        files = FaultyFiles()
        async with running(tmp_path, files) as node:
            await filled(node)
            if landed:
                files.fail("fdatasync")
            else:
                files.fail("write", error=errno.EIO)
                files.fail("truncate", error=errno.EIO)
            txid, tau = secrets.token_bytes(16), node.tau_start()
            attempt = commit(node, [put(SID, {1: 100})], tau=tau, txid=txid)
            if landed:
                assert await attempt > tau
            else:
                with pytest.raises(MeridianError) as refusal:
                    await attempt
                assert refusal.value.kind is Kind.JOURNAL_UNAVAILABLE
            expected = OUTCOME_COMMITTED if landed else OUTCOME_ABORTED
            assert await status(node, txid, tau) == expected
            assert await value(node, SID, 1) == (100 if landed else 1)
            await commit(node, [put(SID, {2: 200})])
        async with running(tmp_path) as node:
            assert await value(node, SID, 1) == (100 if landed else 1)
            assert await value(node, SID, 2) == 200
            assert await status(node, txid, tau) == expected

    run(work())


def test_disk_that_stays_dead_is_unknown(tmp_path: Path, monkeypatch: Any) -> None:
    """08007 when nobody can find out in time; never "failed"."""
    monkeypatch.setattr("meridian.dataplane.asker.COMMIT_WAIT_MS", 300)

    async def work() -> None:
        files = FaultyFiles()
        async with running(tmp_path, files) as node:
            await filled(node)
            files.fail("fdatasync", times=1000)
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [put(SID, {1: 100})])
            assert refusal.value.kind is Kind.OUTCOME_UNKNOWN
            assert await value(node, SID, 2) == 2
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [put(SID, {3: 100})])
            # Another journal hears of it by an append of its own.
            kinds = {Kind.JOURNAL_UNAVAILABLE, *([Kind.OUTCOME_UNKNOWN] * (len(node.seats) > 1))}
            assert refusal.value.kind in kinds

    run(work())


def test_many_commits_in_flight_when_the_disk_fails(tmp_path: Path) -> None:
    async def work() -> None:
        files = FaultyFiles()
        acknowledged: dict[int, int] = {}

        async def client(node: Any, number: int) -> None:
            for attempt in range(20):
                with contextlib.suppress(MeridianError):
                    await commit(node, [put(SID, {number: attempt})])
                    acknowledged[number] = attempt

        async with running(tmp_path, files) as node:
            await filled(node)
            for nth in (3, 9, 15):
                files.fail("fdatasync", nth=nth)
                files.fail("write", nth=2 * nth)
            await asyncio.gather(*(client(node, number) for number in range(50)))
            assert node.counters.owners > 2
            # No reader, no writer of ours may be left behind by a failed owner.
            await commit(node, [put(SID, {99: 99})])
        async with running(tmp_path) as node:
            for number, attempt in acknowledged.items():
                found = await value(node, SID, number)
                assert found is not None and found >= attempt

    run(work())


def test_failure_while_taking_over(tmp_path: Path) -> None:
    async def work() -> None:
        for call in ("create", "rename", "fsync_dir", "write", "fdatasync"):
            files = FaultyFiles()
            async with running(tmp_path / call, files) as node:
                await filled(node)
                files.fail("fdatasync")
                files.fail(call, nth=2 if call == "fdatasync" else 1, times=2)
                if call == "write":
                    files.fail("write", nth=2, times=2)
                with contextlib.suppress(MeridianError):
                    await commit(node, [put(SID, {1: 100})])
                await commit_at_last(node)
                assert await value(node, SID, 2) == 200, call

    run(work())


def test_one_owner_at_a_time(tmp_path: Path, monkeypatch: Any) -> None:
    """A new owner that fails at once is replaced by one owner, not by two."""

    async def work() -> None:
        files = FaultyFiles()
        async with running(tmp_path, files) as node:
            await filled(node)
            opened: list[Any] = []
            open_writer = node.seats[0].journal.open_writer

            def counted(*arguments: Any) -> Any:
                assert all(writer.poisoned is not None for writer in opened), "two writers"
                opened.append(open_writer(*arguments))
                # The marker of the first three new owners cannot be written.
                if len(opened) <= 3:
                    files.fail("write")
                return opened[-1]

            monkeypatch.setattr(node.seats[0].journal, "open_writer", counted)
            files.fail("fdatasync")
            with contextlib.suppress(MeridianError):
                await commit(node, [put(SID, {1: 100})])
            await commit_at_last(node)
            assert await value(node, SID, 2) == 200
            assert len(opened) == 4 and node.counters.owners == len(node.seats) + 4
            await asyncio.sleep(0.3)
            assert len(opened) == 4

    run(work())
