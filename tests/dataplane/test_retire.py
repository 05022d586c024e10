"""A journal that has ended leaves no files once checkpoint and window cover it; numbers end."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import pytest

from meridian.dataplane import housekeeping, rebuild, reshape
from meridian.dataplane.admin import verify
from meridian.dataplane.node import Node
from meridian.dataplane.topology import Topology
from meridian.errors import Kind, MeridianError
from meridian.journal.file import FileJournal
from meridian.journal.segments import list_segments
from meridian.limits import STANDARD
from meridian.wire import frames
from meridian.wire.frames import COMMIT_HAS_SCHEMA

from .plane import commit, create, put, running, value
from .test_owners import outcome, run
from .test_reshape import SIDS, arrived, check_owners

ROWS = range(1, 11)


async def written(node: Node, ids: dict[bytes, tuple[int, int]], number: int) -> None:
    """One commit in each table."""
    for sid in SIDS:
        txid, tau = secrets.token_bytes(16), node.tau_start()
        ops = [put(sid, dict.fromkeys(ROWS, number))]
        ids[txid] = tau, await commit(node, ops, tau=tau, txid=txid)


async def check(node: Node, number: int) -> None:
    for sid in SIDS:
        assert [await value(node, sid, row) for row in ROWS] == [number] * len(ROWS)
    assert verify(node)["damage"] == []


def segments(tmp_path: Path) -> dict[int, int]:
    """Files per journal."""
    found = (tmp_path / "journal").iterdir()
    return {int(one.name): len(list_segments(one)) for one in sorted(found)}


async def reshaped(node: Node, wanted: Topology) -> None:
    node.reshape.want(wanted)
    await arrived(node)


@pytest.mark.parametrize("interrupted", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_journal_that_has_ended_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    ids: dict[bytes, tuple[int, int]] = {}

    async def work() -> None:
        async with running(tmp_path, adjudicators=3, journals=3) as node:
            await commit(node, [create(sid) for sid in SIDS], flags=COMMIT_HAS_SCHEMA)
            await written(node, ids, 1)
            assert len({tau_commit & 0xFF for _, tau_commit in ids.values()}) > 1
            await reshaped(node, Topology(1, 1))
            await written(node, ids, 2)
            await node.housekeeping.checkpoint()
            assert segments(tmp_path)[1] > 0, "the window does not cover it yet"
            monkeypatch.setattr(housekeeping, "CONFLICT_WINDOW_NS", 0)
            await retire(node)
            await check(node, 2)
            for txid, (tau, tau_commit) in ids.items():
                assert await outcome(node, txid, tau) == (frames.OUTCOME_COMMITTED, tau_commit)
        for number in (3, 4):
            async with running(tmp_path) as node:
                assert segments(tmp_path)[1] == segments(tmp_path)[2] == 0
                check_owners(node, 1)
                await check(node, number - 1)
                await outcomes(node)
                await written(node, ids, number)
        async with running(tmp_path) as node:
            await reshaped(node, Topology(2, 2))
            assert node.open_journals() == [0, 3], "numbers are not used twice"
            await written(node, ids, 5)
        # Storage is made anew from the checkpoint and the journals that are left.
        assert rebuild.check(tmp_path, lambda line: None, lambda: False) is not None
        shutil.rmtree(tmp_path / "storage")
        async with running(tmp_path) as node:
            check_owners(node, 2)
            await check(node, 5)
            await outcomes(node)

    async def retire(node: Node) -> None:
        if not interrupted:
            await node.housekeeping.checkpoint()
            return
        with monkeypatch.context() as patched:
            patched.setattr(FileJournal, "remove", lambda self: 0)
            await node.housekeeping.checkpoint()
        assert segments(tmp_path)[1] > 0

    async def outcomes(node: Node) -> None:
        """Nothing that committed is said to have been aborted."""
        for txid, (tau, tau_commit) in ids.items():
            said, at = await outcome(node, txid, tau)
            assert said == frames.OUTCOME_UNKNOWN or (said, at) == (
                frames.OUTCOME_COMMITTED,
                tau_commit,
            )

    run(work())


def test_numbers_of_journals_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reshape, "ASSIGNER_MASK", 3)
    ids: dict[bytes, tuple[int, int]] = {}

    async def work() -> None:
        async with running(tmp_path) as node:
            await commit(node, [create(sid) for sid in SIDS], flags=COMMIT_HAS_SCHEMA)
            await reshaped(node, Topology(3, 3))
            await reshaped(node, Topology(1, 1))
            assert node.reshape.status()["journal_numbers_left"] == 1
            with pytest.raises(MeridianError) as refusal:
                node.reshape.want(Topology(3, 3))
            assert refusal.value.kind is Kind.JOURNAL_NUMBERS_SPENT
            assert refusal.value.kind.sqlstate == "54000"
            assert "1 of 4 numbers" in str(refusal.value)
            assert node.reshape.done and node.topology == Topology(1, 1)
            await written(node, ids, 1)
        node = Node(tmp_path, profile="standard", limits=STANDARD, journals=3)
        with pytest.raises(MeridianError) as refusal:
            await node.start()
        await node.close()
        assert refusal.value.kind is Kind.JOURNAL_NUMBERS_SPENT
        async with running(tmp_path) as node:
            await arrived(node)
            await check(node, 1)
            await reshaped(node, Topology(2, 2))
            check_owners(node, 2)

    run(work())
