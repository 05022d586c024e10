"""Damaged storage is found in the background and made anew."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

import apsw
import pytest

from meridian.dataplane import selfcheck
from meridian.dataplane.node import Node
from meridian.dataplane.selfcheck import Found, remember, remembered
from meridian.gateway.client import GatewayError
from meridian.wire import frames
from meridian.wire.frames import COMMIT_HAS_SCHEMA
from meridian.wire.ops import Delete, Put

from .plane import Plane, commit, contents, create, delete, hashes, key, new_table, put, running
from .test_owners import SID, part, run

MARK = b"the value that rots, byte by byte"


def marked(sid: int, numbers: range) -> Put:
    keys = [key(number) for number in numbers]
    rows = [(number, MARK) for number in numbers]
    return Put(sid, 0, (1, 2), keys, hashes(sid, keys), b"", rows)


def rot(directory: Path, count: int = 1) -> int:
    """Changes one byte of so many values, wherever SQLite has them now; how many it found."""
    done = 0
    for path in sorted((directory / "storage").iterdir()):
        data = path.read_bytes()
        at = data.find(MARK)
        while at >= 0 and done < count:
            with path.open("r+b") as file:
                file.seek(at + 4)
                file.write(b"X")
            done += 1
            at = data.find(MARK, at + 1)
    return done


async def checked(node: Node) -> list[str]:
    return (await asyncio.wait_for(node.selfcheck.check(), 60)).damages


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("source", ["journal", "checkpoint"])
def test_a_rotten_value_is_found_and_healed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int, source: str
) -> None:
    async def work() -> None:
        async with running(tmp_path, storage_shards=shards) as node:
            await commit(node, [create(SID), create(SID + 1)], flags=COMMIT_HAS_SCHEMA)
            await commit(node, [marked(SID, range(50))])
            if source == "checkpoint":
                await node.housekeeping.checkpoint()
                # As if it had been trimmed: only the checkpoint has them.
                monkeypatch.setattr(selfcheck, "_with_journal", lambda *_: None)
            assert await checked(node) == []
            assert node.selfcheck.last is not None and node.selfcheck.last.versions >= 50
            assert rot(tmp_path) == 1
            found = await checked(node)
            assert len(found) == 1 and f"relation {SID}" in found[0] and source in found[0]
            assert node.fatal.done() and remembered(node.store).heal
        async with running(tmp_path) as node:
            assert node.counters.storage_healed == 1 and not remembered(node.store).heal
            assert await checked(node) == [] and not node.fatal.done()
            assert remembered(node.store) == Found(False, [])
        files = [path.read_bytes() for path in (tmp_path / "storage").glob("*")]
        assert sum(data.count(MARK) for data in files) >= 50

    run(work())


@pytest.mark.parametrize("load", ["none", "requests", "scans"])
def test_a_pass_waits_for_a_pause_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str
) -> None:
    monkeypatch.setattr(selfcheck, "LOOK_S", 0.3)
    share = 0.5 if load == "scans" else 0.1
    monkeypatch.setattr(time, "process_time", lambda: share * time.monotonic())

    async def work() -> None:
        async with running(tmp_path) as node:
            node.selfcheck.every_s = 60 if load == "none" else 1.5
            started = time.monotonic()
            waiting = asyncio.create_task(node.selfcheck._idle())
            while not waiting.done():
                if load == "requests":
                    node.counters.gets += 100
                await asyncio.sleep(0.02)
            assert time.monotonic() - started < 20
            if load != "none":
                assert time.monotonic() - started >= 1.5

    run(work())


def test_what_changes_is_not_taken_for_damage(tmp_path: Path) -> None:
    """Updates, deletes, keys written twice in one transaction, large ones, columns, drops."""

    async def work() -> None:
        async with running(tmp_path, storage_shards=4, adjudicators=3, journals=2) as node:
            await commit(node, [create(SID), create(SID + 32)], flags=COMMIT_HAS_SCHEMA)
            await commit(node, [put(SID, {n: n for n in range(100)}, pad=3_000)])
            await node.housekeeping.checkpoint()
            await commit(node, [put(SID, {n: 2 * n for n in range(50)})])
            await commit(node, [delete(SID, range(10))])
            await commit(node, [put(SID, {5: 1}), put(SID, {5: 2})])
            gone: list[Put | Delete] = [put(SID, {6: 1}), delete(SID, [6])]
            await commit(node, list(gone))
            txid, tau = secrets.token_bytes(16), node.tau_start()
            await part(node, txid, 0, [put(SID + 32, dict.fromkeys(range(1000, 3000), 1))], tau)
            await part(node, txid, 1, [put(SID + 32, dict.fromkeys(range(10, 1000), 2))], tau)
            rows = [put(SID + 32, dict.fromkeys(range(10), 3))]
            await commit(node, list(rows), tau=tau, txid=txid, flags=frames.COMMIT_HAS_PARTS)
            for _ in range(2):
                assert await checked(node) == []
                await node.housekeeping.checkpoint()
                await asyncio.sleep(0.3)

    run(work())


def test_what_is_in_the_journal_too_is_not_made_anew_again_and_again(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path, storage_shards=1) as node:
            await commit(node, [create(SID)], flags=COMMIT_HAS_SCHEMA)
            await commit(node, [marked(SID, range(50))])
            line = f"shard 0: relation {SID}: a version differs from the journal's: 00"
            remember(node.store, Found(False, [line]))
            assert rot(tmp_path) == 1
            assert len(await checked(node)) == 1
            assert not node.fatal.done() and node.counters.storage_damages == 1

    run(work())


def test_a_damaged_checkpoint_is_replaced(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path, storage_shards=1) as node:
            await commit(node, [create(SID)], flags=COMMIT_HAS_SCHEMA)
            await commit(node, [marked(SID, range(50))])
            await node.housekeeping.checkpoint()
            path = node.checkpoint_path()
            assert path is not None
            with (path / "storage.db").open("r+b") as file:
                file.seek(20_000)
                file.write(b"XXXX")
            assert await checked(node) == [] and node.checkpoint_path() != path
            assert await checked(node) == []
            assert node.selfcheck.last is not None and node.selfcheck.last.checkpoint == "sound"

    run(work())


def test_an_index_that_lost_an_entry_is_healed_by_the_process(tmp_path: Path) -> None:
    """The data plane ends by itself and the next one has it right."""
    with Plane(tmp_path) as plane:
        with plane.client() as client:
            sid = new_table(client)
            client.commit([put(sid, {n: n for n in range(200)})])
        plane.stop()
        # A row that was there is gone from the file: its counter is wrong.
        for path in sorted((plane.directory / "storage").glob("shard-*.db")):
            db = apsw.Connection(str(path))
            tables = [row[0] for row in db.execute("SELECT name FROM sqlite_schema")]
            if f"r{sid}" in tables:
                db.execute(f"DELETE FROM r{sid} WHERE k = ?", (key(7),))
            db.close()
        plane.start()
        with plane.client() as client:
            assert len(contents(client, sid)) == 199
            assert client.admin("status")["selfcheck"]["damages"] == 0
            with pytest.raises((OSError, GatewayError)):
                client.admin("selfcheck")
                # The answer may come before the end does.
                for _ in range(400):
                    client.admin("status")
                    time.sleep(0.05)
        assert plane.process is not None and plane.process.wait(20) == 3
        plane.start()
        assert any("made anew" in line for line in plane.lines)
        with plane.client() as client:
            assert len(contents(client, sid)) == 200
            assert client.admin("selfcheck")["damages"] == []
            assert client.admin("status")["counters"]["storage_healed"] == 1
