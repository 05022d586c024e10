"""Several adjudicators and journals in one data plane."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from meridian.adjudicator.cut import cut
from meridian.dataplane import topology
from meridian.dataplane.node import Node
from meridian.dataplane.topology import Settled, Topology
from meridian.errors import Kind, MeridianError
from meridian.journal.core import Commit, Reader
from meridian.journal.file import AppendError
from meridian.metadata.store import MetadataStore
from meridian.wire import frames
from meridian.wire.frames import COMMIT_HAS_SCHEMA
from meridian.wire.ops import Lock, Notify, Op, encode_chunk
from meridian.wire.partition import FIRST, NOBODY, covers
from meridian.wire.votes import Ask, Vote

from .plane import commit, create, hashes, key, put, running, value

SID = 1000
HERE, THERE = 1, 5
"""Keys of two owners, by the first map."""


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 120))


def two(directory: Path, **options: Any) -> Any:
    return running(directory, adjudicators=3, journals=2, **options)


async def table(node: Node) -> None:
    await commit(node, [create(SID)], flags=COMMIT_HAS_SCHEMA)


async def outcome(node: Node, txid: bytes, tau: int) -> tuple[int, int]:
    future: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    node.commits.asker.status(txid, tau, lambda *told: future.set_result(told))
    return await asyncio.wait_for(future, 20)


def commits(node: Node, number: int) -> list[bytes]:
    """Ids of the commits in a journal."""
    seat = node.seats[number]
    reader, found = Reader(), []
    for record in seat.journal.read():
        if isinstance(reader.accept(record), Commit):
            found.append(record.txid)
    return found


# The first map


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
@pytest.mark.parametrize("journals", [1, 2, 3, 5])
def test_the_first_map_gives_every_key_to_one_owner(shards: int, journals: int) -> None:
    made = topology.first_map(Topology(shards, journals))
    assert made.starts[0] == FIRST and list(made.starts) == sorted(set(made.starts))
    owners = [(number, topology.spans_of(made, number)) for number in range(journals)]
    assert covers([span for _, spans in owners for span in spans])
    assert made.everybody() == list(range(min(shards, journals)))
    assert topology.joined(1, owners) == made


def test_small_keys_of_a_relation_have_several_owners() -> None:
    """Of the encodings that the query processor uses: integers, text, hidden ids."""
    made = topology.first_map(Topology(3, 2))
    numbers = [
        b"\x01" + (number + (1 << 63)).to_bytes(8, "big") for number in (-5, 1, 3, 9, 10, 16)
    ]
    assert [made.owner((SID, one)) for one in numbers] == [0, 0, 1, 1, 0, 0]
    texts = [b"\x01" + text + bytes(2) for text in (b"a", b"mm", b"oz", b"p", b"z")]
    assert [made.owner((SID, one)) for one in texts] == [0, 1, 1, 0, 0]
    assert [made.owner((SID, key(number))) for number in (1, 3, 9, 10)] == [0, 1, 1, 0]
    assert made.owner((SID + 32, numbers[1])) == 1 and made.owner((SID + 32, numbers[2])) == 0


def test_a_gap_in_the_map_is_nobody_s() -> None:
    made = topology.first_map(Topology(3, 2))
    found = topology.joined(2, [(0, topology.spans_of(made, 0))])
    assert found.owner((SID, key(HERE))) == 0 and found.owner((SID, key(THERE))) == NOBODY


def test_a_table_and_its_indexes_are_loaded_into_one_owner_s_ranges() -> None:
    made = topology.first_map(Topology(3, 2))
    chunk = encode_chunk([put(SID + n, dict.fromkeys(range(100, 2000), 0)) for n in range(8)])
    assert len(cut(chunk, made).parts) == 1


# What a directory was made with


def test_a_directory_remembers_what_it_was_made_with_and_what_is_wanted(tmp_path: Path) -> None:
    store = MetadataStore(tmp_path / "metadata.db")
    made = Topology(3, 2)
    assert topology.settle(store, 3, 2, used=False) == Settled(made, made, True)
    assert topology.settle(store, None, None, used=True) == Settled(made, made, True)
    assert topology.settle(store, 3, None, used=True) == Settled(made, made, True)
    wanted = Topology(3, 5)
    assert topology.settle(store, None, 5, used=True) == Settled(made, wanted, False)
    assert topology.settle(store, None, None, used=True) == Settled(made, wanted, False)
    topology.want(store, wanted, done=True)
    assert topology.settle(store, None, 5, used=True) == Settled(made, wanted, True)
    # On the way back it has not arrived either.
    assert topology.settle(store, 3, 2, used=True) == Settled(made, made, False)


def test_a_directory_of_before_has_one_of_each(tmp_path: Path) -> None:
    store = MetadataStore(tmp_path / "metadata.db")
    found = topology.settle(store, 3, 2, used=True)
    assert found == Settled(Topology(1, 1), Topology(3, 2), False)
    for wanted in ((65, 1), (1, 65), (-1, 1)):
        with pytest.raises(MeridianError, match="must be 1 to 64"):
            topology.settle(MetadataStore(tmp_path / f"{wanted}.db"), *wanted, used=False)


# Commits


def test_each_transaction_is_in_one_journal_whole(tmp_path: Path) -> None:
    async def work() -> None:
        async with two(tmp_path) as node:
            await table(node)
            await commit(node, [put(SID, {HERE: 1})])
            await commit(node, [put(SID, {THERE: 1})])
            before = [len(commits(node, number)) for number in (0, 1)]
            assert before[1] == 1
            await commit(node, [put(SID, {HERE: 2, THERE: 2})])
            assert [len(commits(node, number)) for number in (0, 1)] == [before[0] + 1, 1]
            assert await value(node, SID, HERE) == await value(node, SID, THERE) == 2
            assert node.counters.commits_voted == 3
            for seat in node.seats:
                assert seat.owner is not None and not seat.owner.adjudicator.voter.holds

    run(work())


def test_conflicts_are_found_whoever_owns_the_key(tmp_path: Path) -> None:
    async def work() -> None:
        async with two(tmp_path) as node:
            await table(node)
            for first, second in (
                ({HERE: 1, THERE: 1}, {THERE: 2}),
                ({HERE: 3, THERE: 3}, {HERE: 4}),
                ({THERE: 5}, {HERE: 6, THERE: 6}),
                ({HERE: 7}, {HERE: 8, THERE: 8}),
            ):
                tau = node.tau_start()
                await commit(node, [put(SID, first)], tau=tau)
                with pytest.raises(MeridianError) as refusal:
                    await commit(node, [put(SID, second)], tau=tau)
                assert refusal.value.kind is Kind.CONFLICT
            tau = node.tau_start()
            await commit(node, [put(SID, {THERE: 9})], tau=tau)
            lock = Lock(SID, [b""], hashes(SID, [b""]), b"")
            with pytest.raises(MeridianError):
                await commit(node, [lock, put(SID, {HERE: 9})], tau=tau)

    run(work())


def test_many_at_once_lose_no_update(tmp_path: Path) -> None:
    """Increments of two rows of two owners: as many as there were commits, on both."""

    async def work() -> None:
        async with two(tmp_path) as node:
            await table(node)
            await commit(node, [put(SID, {HERE: 0, THERE: 0})])
            done = 0

            async def client(number: int) -> None:
                nonlocal done
                for _ in range(15):
                    tau = node.tau_start()
                    await node.wait_until_ready(tau, 10_000)
                    found = [_read(node, tau, one) for one in (HERE, THERE)]
                    try:
                        rows = {HERE: found[0] + 1, THERE: found[1] + 1}
                        await commit(node, [put(SID, rows)], tau=tau)
                        done += 1
                    except MeridianError as error:
                        assert error.kind in (Kind.CONFLICT, Kind.TAU_BELOW_FLOOR), error

            await asyncio.gather(*(client(number) for number in range(8)))
            assert done >= 15
            assert await value(node, SID, HERE) == await value(node, SID, THERE) == done

    run(work())


def _read(node: Node, tau: int, number: int) -> int:
    import msgspec

    rows = msgspec.msgpack.decode(node.engine.get(tau, SID, (1,), [key(number)])[1])
    found: int = rows[0][1]
    return found


def test_large_transactions_over_two_owners(tmp_path: Path) -> None:
    async def work() -> None:
        async with two(tmp_path) as node:
            await table(node)
            txid = secrets.token_bytes(16)
            tau = node.tau_start()
            await part(node, txid, 0, [put(SID, {n: n for n in range(1_000)})], tau)
            await part(node, txid, 1, [put(SID, {n: n for n in range(1_000, 2_000)})], tau)
            rows: list[Op] = [put(SID, {n: n for n in range(2_000, 2_500)})]
            await commit(node, rows, tau=tau, txid=txid, flags=frames.COMMIT_HAS_PARTS)
            assert await value(node, SID, THERE) == THERE and await value(node, SID, 2_400) == 2_400
            assert node.counters.commits_voted == 3 and node.counters.commits_large == 1
            assert (await outcome(node, txid, tau))[0] == frames.OUTCOME_COMMITTED

    run(work())


async def part(node: Node, txid: bytes, seq: int, ops: list[Op], tau: int) -> None:
    done: asyncio.Future[MeridianError | None] = asyncio.get_running_loop().create_future()
    node.commits.large.part(txid, seq, encode_chunk(ops), tau, done.set_result)
    error = await asyncio.wait_for(done, 20)
    if error is not None:
        raise error


async def half(node: Node, txid: bytes, tau: int, chunks: int, first: Op) -> None:
    """Chunks of a transaction that the owner of SID leads; the other one owns most keys."""
    await part(node, txid, 0, [first], tau)
    for seq in range(1, chunks):
        numbers = range(seq * 20_000, (seq + 1) * 20_000)
        await part(node, txid, seq, [put(SID + 32, dict.fromkeys(numbers, 0))], tau)


async def two_tables(node: Node) -> None:
    await commit(node, [create(SID), create(SID + 32)], flags=COMMIT_HAS_SCHEMA)
    assert node.map.owner((SID, key(100))) != node.map.owner((SID + 32, key(100)))


def voters(node: Node) -> list[Any]:
    return [seat.owner.adjudicator.voter for seat in node.seats if seat.owner is not None]


def test_a_voter_holds_more_keys_than_one_question_names(tmp_path: Path) -> None:
    first = put(SID, dict.fromkeys(range(100, 200), 0))

    async def work() -> None:
        async with two(tmp_path) as node:
            await two_tables(node)
            for conflict in (None, 70_000):
                txid, tau = secrets.token_bytes(16), node.tau_start()
                await half(node, txid, tau, 6, first)
                assert sum(len(one._sent) for one in voters(node)) == 1
                if conflict is not None:
                    # Found among the keys that were compared before it came.
                    await commit(node, [put(SID + 32, {conflict: 1})])
                done = commit(node, [first], tau=tau, txid=txid, flags=frames.COMMIT_HAS_PARTS)
                if conflict is None:
                    tau_commit = await done
                    assert await value(node, SID + 32, 119_999) == 0
                    assert await outcome(node, txid, tau) == (1, tau_commit)
                    # What began before it and writes one of its keys is refused.
                    for number in (20_000, 119_999):
                        with pytest.raises(MeridianError) as refusal:
                            await commit(node, [put(SID + 32, {number: 1})], tau=tau)
                        assert refusal.value.kind is Kind.CONFLICT
                else:
                    with pytest.raises(MeridianError) as refusal:
                        await done
                    assert refusal.value.kind is Kind.CONFLICT
                await asyncio.sleep(0.05)
                assert not any(one._sent or len(one.holds) for one in voters(node))
            assert node.counters.commits_large == 1

    run(work())


def test_keys_sent_ahead_are_lost_with_their_voter(tmp_path: Path) -> None:
    """The client is told to try again (40001), and nothing of it stays anywhere."""
    first = put(SID, dict.fromkeys(range(100, 200), 0))

    async def work() -> None:
        async with two(tmp_path) as node:
            await two_tables(node)
            txid, tau = secrets.token_bytes(16), node.tau_start()
            await half(node, txid, tau, 3, first)
            voter = node.map.owner((SID + 32, key(20_000)))
            owner = node.seats[voter].owner
            assert owner is not None
            owner._failed(AppendError(OSError("gone"), nothing_written=True))
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [first], tau=tau, txid=txid, flags=frames.COMMIT_HAS_PARTS)
            assert refusal.value.kind is Kind.TXN_ABORTED
            while not node.owned:
                await asyncio.sleep(0.02)
            await commit(node, [put(SID, {150: 1}), put(SID + 32, {20_000: 1})])
            assert (await outcome(node, txid, tau))[0] == frames.OUTCOME_ABORTED

    run(work())


def test_too_many_keys_of_others_are_refused_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meridian.dataplane.cutting.AHEAD_KEYS", 65_536)
    first = put(SID, dict.fromkeys(range(100, 200), 0))

    async def work() -> None:
        async with two(tmp_path) as node:
            await two_tables(node)
            txid, tau = secrets.token_bytes(16), node.tau_start()
            with pytest.raises(MeridianError) as refusal:
                await half(node, txid, tau, 10, first)
            assert refusal.value.kind is Kind.KEYS_ELSEWHERE
            assert not any(one._sent for one in voters(node))
            with pytest.raises(MeridianError) as refusal:
                await commit(node, [first], tau=tau, txid=txid, flags=frames.COMMIT_HAS_PARTS)
            assert refusal.value.kind is Kind.KEYS_ELSEWHERE
            await commit(node, [put(SID, {150: 1})], tau=tau)
            assert (await outcome(node, txid, tau))[0] == frames.OUTCOME_ABORTED

    run(work())


# Outcomes


def test_a_resent_commit_gets_its_first_outcome(tmp_path: Path) -> None:
    async def work() -> None:
        ids = {}
        async with two(tmp_path) as node:
            await table(node)
            for rows in ({HERE: 1}, {THERE: 1}, {HERE: 2, THERE: 2}):
                txid, tau = secrets.token_bytes(16), node.tau_start()
                tau_commit = await commit(node, [put(SID, rows)], tau=tau, txid=txid)
                ids[txid] = tau, tau_commit, rows
        for _ in range(2):
            async with two(tmp_path) as node:
                counts = [len(commits(node, number)) for number in (0, 1)]
                for txid, (tau, tau_commit, rows) in ids.items():
                    assert await commit(node, [put(SID, rows)], tau=tau, txid=txid) == tau_commit
                    told = await outcome(node, txid, tau)
                    assert told == (frames.OUTCOME_COMMITTED, tau_commit)
                assert [len(commits(node, number)) for number in (0, 1)] == counts

    run(work())


def test_an_unknown_id_is_aborted_under_every_name(tmp_path: Path) -> None:
    """Whoever its COMMIT would name as leader, it can never commit."""

    async def work() -> None:
        for rows in ({HERE: 1}, {THERE: 1}, {HERE: 2, THERE: 2}):
            directory = tmp_path / str(len(rows) + next(iter(rows)))
            async with two(directory) as node:
                await table(node)
                txid, tau = secrets.token_bytes(16), node.tau_start()
                assert (await outcome(node, txid, tau))[0] == frames.OUTCOME_ABORTED
                with pytest.raises(MeridianError) as refusal:
                    await commit(node, [put(SID, rows)], tau=tau, txid=txid)
                assert refusal.value.kind is Kind.TXN_ABORTED
            async with two(directory) as node:
                with pytest.raises(MeridianError) as refusal:
                    await commit(node, [put(SID, rows)], tau=tau, txid=txid)
                assert refusal.value.kind is Kind.TXN_ABORTED

    run(work())


def test_a_refused_commit_that_was_committed_before_says_so(tmp_path: Path) -> None:
    async def work() -> None:
        async with two(tmp_path) as node:
            await table(node)
            txid, tau = secrets.token_bytes(16), node.tau_start()
            first = await commit(node, [put(SID, {THERE: 1})], tau=tau, txid=txid)
            done: asyncio.Future[int | MeridianError] = asyncio.get_running_loop().create_future()
            too_many = node.limits.txn_rows + 1
            node.commits.commit(txid, tau, 0, 0, too_many, b"\x90", done.set_result)
            assert await done == first

    run(work())


# Failures


def test_lost_messages_cost_attempts_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with two(tmp_path) as node:
            await table(node)
            lost = {Ask: 2, Vote: 2}
            tell = node.tell

            def lossy(number: int, message: Any) -> None:
                if lost.get(type(message), 0):
                    lost[type(message)] -= 1
                else:
                    tell(number, message)

            monkeypatch.setattr(node, "tell", lossy)
            await commit(node, [put(SID, {HERE: 1, THERE: 1})])
            assert await value(node, SID, THERE) == 1
            assert node.counters.attempts_again >= 4 and not any(lost.values())

    run(work())


@pytest.mark.parametrize("number", [0, 1])
def test_one_journal_fails_and_comes_back(tmp_path: Path, number: int) -> None:
    async def work() -> None:
        async with two(tmp_path) as node:
            await table(node)
            await commit(node, [put(SID, {HERE: 1, THERE: 1})])
            epochs = [seat.owner.epoch[0] for seat in node.seats if seat.owner is not None]
            owner = node.seats[number].owner
            assert owner is not None
            owner._failed(AppendError(OSError("gone"), nothing_written=False))
            for _ in range(100):
                try:
                    await commit(node, [put(SID, {HERE: 2, THERE: 2})])
                    break
                except MeridianError:
                    await asyncio.sleep(0.05)
            assert await value(node, SID, HERE) == await value(node, SID, THERE) == 2
            after = [seat.owner.epoch[0] for seat in node.seats if seat.owner is not None]
            assert [b - a for a, b in zip(epochs, after, strict=True)] == [
                int(one == number) for one in (0, 1)
            ]
        async with two(tmp_path) as node:
            assert await value(node, SID, HERE) == await value(node, SID, THERE) == 2

    run(work())


def test_storage_is_rebuilt_from_all_journals(tmp_path: Path) -> None:
    async def work() -> None:
        async with two(tmp_path) as node:
            await table(node)
            for number in range(200):
                await commit(node, [put(SID, {number % 10: number})])
        shutil.rmtree(tmp_path / "storage")
        async with two(tmp_path) as node:
            for number in range(10):
                assert await value(node, SID, number) == 190 + number

    run(work())


def test_an_idle_journal_holds_nobody_up(tmp_path: Path) -> None:
    """More journals than ranges: those without any beat, and only beat."""

    async def work() -> None:
        for _ in range(2):
            async with running(tmp_path, adjudicators=2, journals=4) as node:
                assert node.map.everybody() == [0, 1]
                if node.engine.known_columns(SID) is None:
                    await table(node)
                for number in range(10):
                    await commit(node, [put(SID, {number: number, number + 8: number})])
                assert await value(node, SID, 9) == 9
                assert not commits(node, 2) and not commits(node, 3)

    run(work())


@pytest.mark.parametrize("shards", [1, 3])
def test_what_no_shard_holds_is_answered_too(tmp_path: Path, shards: int) -> None:
    """A commit of notifications only: complete once the other journal has said so far."""

    async def work() -> None:
        async with two(tmp_path, storage_shards=shards) as node:
            # The other journal's lease runs out: it must write before it can say anything.
            await asyncio.sleep(1.8)
            await asyncio.wait_for(commit(node, [Notify(b"c", b"x")]), 5)

    run(work())


def test_a_directory_that_lost_a_journal_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with two(tmp_path) as node:
            await table(node)
            await commit(node, [put(SID, {HERE: 1, THERE: 1})])
        shutil.rmtree(tmp_path / "journal" / "1")
        with pytest.raises(MeridianError) as refusal:
            async with two(tmp_path):
                pass
        assert refusal.value.kind is Kind.JOURNAL_DAMAGED

    run(work())
