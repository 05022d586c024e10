"""Subscribers that hold ranges of keys; those that were cut loose and come back (section 7)."""

from __future__ import annotations

import itertools
import random

import pytest

from meridian.crossbar.core import (
    Accepted,
    AddJournal,
    Beat,
    Crossbar,
    CutLoose,
    Deliver,
    Effect,
    Subscribe,
    Transaction,
)
from meridian.crossbar.cut import Cutter
from meridian.journal import core as journal
from meridian.journal.core import Position
from meridian.wire.ops import Create, Delete, Lock, Op, Put, decode_chunk, encode_chunk
from meridian.wire.ranges import Owned, Ranges, place
from tests.crossbar.test_core import EPOCH, Source

SID = 1000


def put(*keys: bytes, sid: int = SID) -> Put:
    w = b"".join(key.ljust(8)[:8] for key in keys)
    return Put(sid, 0, (1,), list(keys), w, b"", [(key,) for key in keys])


def owned(lo: bytes, hi: bytes, sid: int = SID) -> tuple[Owned, ...]:
    return (Owned(place(sid, lo), place(sid, hi)),)


def feed(source: Source, tau: int, *ops: Op) -> Accepted:
    return source.commit(tau, encode_chunk(list(ops)))


def delivered(effects: list[Effect], subscriber: int = 1) -> list[Deliver]:
    return [one for one in effects if isinstance(one, Deliver) and one.subscriber == subscriber]


def begun(*ranges: tuple[Owned, ...], buffer: int = 10**9) -> tuple[Crossbar, Source]:
    bar = Crossbar(buffer)
    bar.step(AddJournal(0, Position(EPOCH, 0, True)))
    for number, one in enumerate(ranges, 1):
        bar.step(Subscribe(number, 0, 10**9, one))
    return bar, Source(0)


def test_a_subscriber_gets_its_keys_only() -> None:
    bar, source = begun(owned(b"b", b"d"), owned(b"d", b"z"), ())
    effects = bar.step(
        feed(source, 10, put(b"a", b"b", b"c", b"d"), Delete(SID, 0, [b"x"], b"", b""))
    )
    left, right, all_ = (delivered(effects, number)[0].items for number in (1, 2, 3))
    (one,) = (decode_chunk(item.chunk) for item in left if isinstance(item, Transaction))
    assert one == [Put(SID, 0, (1,), [b"b", b"c"], b"b".ljust(8) + b"c".ljust(8), b"",
                       [(b"b",), (b"c",)])]  # fmt: skip
    (two,) = (decode_chunk(item.chunk) for item in right if isinstance(item, Transaction))
    assert [op.keys for op in two] == [[b"d"], [b"x"]]  # type: ignore[union-attr]
    assert [item.n for item in all_] == [1]


def test_what_concerns_nobody_only_moves_completeness() -> None:
    bar, source = begun(owned(b"m", b"n"))
    (one,) = delivered(bar.step(feed(source, 10, put(b"a"), Lock(SID, [b"m"], b"", b""))))
    assert (one.items, one.tau, one.positions) == ([], 10, ((0, 1),))


def test_what_concerns_all_is_not_touched() -> None:
    bar, source = begun(owned(b"", b"\xff"))
    event = feed(source, 10, put(b"a", b"b"))
    (one,) = delivered(bar.step(event))
    payload = event.records[0][1]
    assert isinstance(payload, journal.Commit)
    assert one.items[0].chunk is payload.chunk  # type: ignore[union-attr]


def test_relations_go_to_whoever_holds_a_part() -> None:
    bar, source = begun(owned(b"m", b"n"), owned(b"", b"\xff", SID + 1))
    effects = bar.step(feed(source, 10, Create(SID, 0, [(1, 1)], 0)))
    assert len(delivered(effects, 1)[0].items) == 1
    assert delivered(effects, 2)[0].items == []


def test_chunks_of_large_transactions_keep_their_places() -> None:
    """Storage counts them: one that holds nothing for it comes empty."""
    bar, source = begun(owned(b"m", b"n"))
    txid = (20).to_bytes(16, "big")
    effects = bar.step(source.write(journal.Body(0, encode_chunk([put(b"a")])), 0, txid))
    effects += bar.step(source.write(journal.Body(1, encode_chunk([put(b"m")])), 0, txid))
    effects += bar.step(source.commit(20, encode_chunk([put(b"z")]), bodies=(1, 2)))
    items = [item for one in delivered(effects) for item in one.items]
    assert [decode_chunk(one.chunk) for one in items] == [[], [put(b"m")], []]  # type: ignore[union-attr]


def test_only_what_it_gets_counts_against_its_credit() -> None:
    bar, source = begun()
    bar.step(Subscribe(1, 0, 100, owned(b"m", b"n")))
    for tau in range(1, 50):
        (one,) = delivered(bar.step(feed(source, tau, put(b"a"))))
        assert one.tau == tau


@pytest.mark.parametrize("seed", range(10))
def test_cuts_at_random(seed: int) -> None:
    rng = random.Random(seed)
    cutter = Cutter()
    for number in range(200):
        keys = sorted({rng.randbytes(2) for _ in range(rng.randint(1, 30))})
        borders = sorted({rng.randbytes(rng.randint(0, 2)) for _ in range(5)})
        mine = [
            Owned(place(SID, lo), place(SID, hi))
            for lo, hi in itertools.pairwise(borders)
            if rng.random() < 0.5
        ]
        ops = decode_chunk(cutter.cut(number, encode_chunk([put(*keys)]), Ranges(mine)))
        found = [key for op in ops for key in op.keys]  # type: ignore[union-attr]
        expected = [k for k in keys if any(one.range.holds(place(SID, k)) for one in mine)]
        assert found == expected
        for op in ops:
            assert isinstance(op, Put)
            assert [row[0] for row in op.rows] == op.keys
            assert op.w == b"".join(key.ljust(8)[:8] for key in op.keys)


# Cut loose, and back


class Journals:
    """Two journals as anybody can read them again."""

    def __init__(self) -> None:
        self.sources = [Source(0), Source(1)]
        self.records: list[list[Accepted]] = [[], []]

    def commit(self, number: int, tau: int) -> Accepted:
        event = feed(self.sources[number], tau, put(b"k%d" % (tau % 10), b"x"))
        self.records[number].append(event)
        return event

    def instance(self, buffer: int, tau: int = 0, held: dict[int, int] | None = None) -> Crossbar:
        """Another crossbar, from what somebody holds."""
        bar = Crossbar(buffer)
        for number in range(2):
            position = Position(EPOCH, (held or {}).get(number, 0), True, tau=tau)
            bar.step(AddJournal(number, position))
        return bar


def test_one_that_was_cut_loose_catches_up_elsewhere_and_comes_back() -> None:
    """From the journals, through an instance of its own, while the others go on."""
    rng = random.Random(1)
    journals = Journals()
    main = journals.instance(buffer=2_000)
    ranges = owned(b"k0", b"k5")
    main.step(Subscribe(1, 0, 300, ranges))
    main.step(Subscribe(2, 0, 10**9))
    got: list[int] = []
    quick: list[int] = []
    held, tau, loose, everything = {0: 0, 1: 0}, 0, False, []

    def take(effects: list[Effect]) -> None:
        nonlocal tau, loose
        for one in delivered(effects, 2):
            quick.extend(item.tau for item in one.items if isinstance(item, Transaction))
        for one in delivered(effects):
            got.extend(item.tau for item in one.items if isinstance(item, Transaction))
            tau = one.tau
            held.update(one.positions)
        loose = loose or any(isinstance(one, CutLoose) for one in effects)

    for at in range(1, 400):
        everything.append(at)
        take(main.step(journals.commit(rng.randrange(2), at)))
        for number in range(2):
            take(main.step(Beat(number, EPOCH, journals.sources[number].n, at)))
    assert loose and len(got) < 200
    catching = journals.instance(10**9, tau, held)
    take(catching.step(Subscribe(1, tau, 10**9, ranges)))
    for number in range(2):
        for event in journals.records[number]:
            take(catching.step(event))
        take(catching.step(Beat(number, EPOCH, journals.sources[number].n, 399)))
    assert tau == 399 >= main.forgotten_tau
    take(main.step(Subscribe(1, tau, 10**9, ranges, tuple(held.items()))))
    everything.append(400)
    take(main.step(journals.commit(0, 400)))
    take(main.step(Beat(1, EPOCH, journals.sources[1].n, 400)))
    assert quick == everything
    assert got == [one for one in everything if one % 10 < 5]


def test_one_that_lacks_chunks_that_are_gone_is_not_taken_back() -> None:
    """Its tau is recent enough, but an open transaction's chunks left the buffer."""
    bar, source = begun(())
    txid = (90).to_bytes(16, "big")
    bar.step(source.write(journal.Body(0, encode_chunk([put(b"a")])), 0, txid))
    bar.step(feed(source, 10, put(b"b")))
    assert isinstance(bar.step(Subscribe(7, 10, 100))[0], CutLoose)
    assert bar.step(Subscribe(7, 10, 100, (), ((0, 2),))) == []
    effects = bar.step(source.commit(90, encode_chunk([]), bodies=(1,)))
    assert isinstance(delivered(effects, 7)[0].items[0], Transaction)
    assert bar.step(Subscribe(8, 90, 100)) == [], "its transaction is gone too"
