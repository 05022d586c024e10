"""Files that own ranges: cut feeds, refusals, subranges, shrink, rewind, import; against one file
that owns everything."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meridian.storage import Engine, RebuildNeeded, SampleRequest, ScanRequest, schema
from meridian.storage.errors import BadRequest, BelowHorizon, UnknownRelation, WrongPlace
from meridian.wire import ops
from meridian.wire.ranges import (
    ALL,
    END,
    Owned,
    Range,
    Ranges,
    cover,
    cut_ops,
    gaps,
    keys_of,
    place,
    span,
    subtract,
)
from tests.storage.feed import KEYS, SIDS, Feed, decode, gathered, partition, rows_of

SEEDS = range(12)


def build(path: Path, feed: Feed, owned: list[Owned], through: int | None = None) -> Engine:
    engine = Engine.create(path, boot_id="boot", owned=owned)
    feed.feed(engine, through)
    return engine


def taus(feed: Feed) -> list[int]:
    last = feed.tau
    return sorted({last, *(feed.random.randint(1000, last) for _ in range(6))})


def assert_same(engines: list[Engine], oracle: Engine, feed: Feed) -> None:
    for tau in taus(feed):
        for sid in SIDS:
            for descending in (False, True):
                expected = rows_of(oracle, tau, sid, descending)
                assert gathered(engines, tau, sid, descending) == expected, (tau, sid)


@pytest.mark.parametrize("seed", SEEDS)
def test_several_files_hold_what_one_holds(seed: int, tmp_path: Path) -> None:
    feed = Feed(seed)
    oracle = Engine.create(tmp_path / "all.db", boot_id="boot")
    engines = [
        Engine.create(tmp_path / f"{number}.db", boot_id="boot", owned=part)
        for number, part in enumerate(partition(feed.random, 3))
    ]
    for _ in range(6):
        for _ in range(25):
            feed.grow()
        for engine in (oracle, *engines):
            feed.feed(engine)
        assert_same(engines, oracle, feed)
        for engine in (oracle, *engines):
            assert engine.applied_tau == oracle.applied_tau
            assert engine.verify().damages == []
    for sid in SIDS:
        if oracle.known_columns(sid) is None:
            continue
        many = oracle.get(feed.tau, sid, (1,), KEYS)[1]
        found = {row[0]: row for row in decode(many)}
        for key in KEYS:
            answers = []
            for engine in engines:
                try:
                    answers.append(decode(engine.get(feed.tau, sid, (1,), [key])[1]))
                except WrongPlace:
                    assert engine.ranges.at(place(sid, key)) is None
            assert answers == [[found[key]] if key in found else []]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_file_shrinks_at_any_moment(seed: int, tmp_path: Path) -> None:
    """The split: a second file of one half appears, then the first gives that half up."""
    feed = Feed(seed)
    rng = random.Random(seed)
    oracle = Engine.create(tmp_path / "all.db", boot_id="boot")
    engines = [Engine.create(tmp_path / "0.db", boot_id="boot")]
    for step in range(1, 5):
        for _ in range(30):
            feed.grow()
        middle = rng.randrange(len(feed.items))
        feed.feed(engines[0], max(middle, engines[0].positions.get(0, 0)))
        cut = place(rng.choice(SIDS[:3]), rng.choice(KEYS))
        mine = engines[0].ranges.owned[0]
        if mine.lo < cut < mine.hi:
            engines.append(build(tmp_path / f"{step}.db", feed, [Owned(cut, mine.hi)]))
            engines[0].shrink([Owned(mine.lo, cut)])
            # Rows that are given up go in slices, between other work.
            engines[0].purge(3)
        for engine in (oracle, *engines):
            feed.feed(engine)
        assert_same(engines, oracle, feed)
        for engine in engines:
            while engine.purge(4):
                pass
            while engine.settle():
                pass
            assert engine.verify().damages == []
    assert len(engines) > 1
    engines[0].raise_floor(feed.tau)
    while engines[0].collect():
        pass
    last = engines[0].ranges.owned[0]
    assert all(
        engines[0].known_columns(sid) is None for sid in SIDS if span(sid).lo >= last.hi
    )  # fmt: skip
    while oracle.settle():
        pass
    stats = [sum(engine.stats([sid])[0].rows for engine in engines) for sid in SIDS]
    assert stats == [oracle.stats([sid])[0].rows for sid in SIDS]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_file_goes_back_to_a_tau_and_forward_again(seed: int, tmp_path: Path) -> None:
    feed = Feed(seed)
    for _ in range(120):
        feed.grow()
    engine = build(tmp_path / "new.db", feed, list(ALL))
    boundary = feed.random.choice(feed.boundaries[1:-1])
    tau = max([1000, *(item.tau for item in feed.items[:boundary])])
    engine.rewind(tau, {0: boundary})
    old = build(tmp_path / "old.db", feed, list(ALL), boundary)
    assert (engine.applied_tau, engine.positions) == (old.applied_tau, {0: boundary})
    for sid in SIDS:
        assert engine.known_columns(sid) is None or rows_of(old, tau, sid) == [
            row[: 1 + len(list(old.known_columns(sid) or ()))] for row in rows_of(engine, tau, sid)
        ]
    assert engine.verify().damages == []
    feed.feed(engine)
    whole = build(tmp_path / "whole.db", feed, list(ALL))
    assert_same([engine], whole, feed)
    while engine.settle():
        pass
    assert engine.verify().damages == []


def test_a_file_taken_back_knows_the_journals_that_it_knew(tmp_path: Path) -> None:
    """Else it would be complete past a journal that it never reads (6.7)."""
    feed = Feed(1)
    for _ in range(40):
        feed.grow()
    engine = build(tmp_path / "a.db", feed, list(ALL))
    while engine.settle():
        pass
    engine.apply([], {**engine.positions, 1: 4, 2: 0})
    boundary = feed.boundaries[len(feed.boundaries) // 2]
    engine.rewind(engine.applied_tau, {0: boundary})
    assert engine.positions == {0: boundary, 1: 0, 2: 0}
    engine.abandon()


@pytest.mark.parametrize("seed", SEEDS)
def test_two_files_become_one(seed: int, tmp_path: Path) -> None:
    """The merge: of different ages and with large transactions open, one is taken back."""
    feed = Feed(seed)
    for _ in range(150):
        feed.grow()
    left, right = partition(feed.random, 2)[:2] if seed % 2 else _halves(feed.random)
    ages = sorted(feed.random.sample(range(1, len(feed.boundaries)), 2))
    low, high = (feed.boundaries[age] for age in ages)
    older = build(tmp_path / "older.db", feed, left, low)
    newer = build(tmp_path / "newer.db", feed, right, high)
    while older.settle():
        pass
    newer.rewind(older.applied_tau, {0: low})
    newer.close()
    # It has served until now.
    older._pin()
    older.unresolved()
    older.import_ranges(tmp_path / "newer.db")
    assert older.positions == {0: low}
    feed.feed(older)
    while older.settle():
        pass
    if older.ranges.whole:
        whole = build(tmp_path / "whole.db", feed, list(ALL))
        assert_same([older], whole, feed)
    assert older.verify().damages == []
    older.close()
    again = Engine.open(tmp_path / "older.db", boot_id="boot", durable=None)
    assert again.ranges.base_of(Range(left[0].lo, left[0].hi)) == 0
    again.abandon()


def _halves(rng: random.Random) -> tuple[list[Owned], list[Owned]]:
    cut = place(rng.choice(SIDS[:3]), rng.choice(KEYS))
    return [Owned(b"", cut)], [Owned(cut, END)]


# Refusals


def small(path: Path, owned: list[Owned]) -> Engine:
    engine = Engine.create(path, boot_id="boot", owned=owned)
    rows = [(i,) for i in range(10)]
    keys = [bytes((i,)) for i in range(10)]
    entries = [(key, i) for i, key in enumerate(keys)]
    chunk: list[ops.Op] = [
        ops.Create(2000, 0, [(1, 1)], 0),
        ops.Create(2001, 1, [(1, 1)], 2000),
        ops.Put(2000, 1, (1,), keys, b"", b"", rows),
        ops.Put(2001, 1, (0, 1), keys, b"", b"", entries),
    ]
    engine.apply([(100, chunk)], {0: 1})
    return engine


def test_other_places_are_refused(tmp_path: Path) -> None:
    engine = small(tmp_path / "s.db", [Owned(place(2000, b"\3"), place(2001))])
    for keys in ([b"\2"], [b"\2", b"\3"]):
        with pytest.raises(WrongPlace):
            engine.get(100, 2000, (1,), keys)
    with pytest.raises(WrongPlace):
        engine.get(100, 2001, (1,), [b"\2"])
    assert len(decode(engine.get(100, 2000, (1,), [b"\3", b"\4", b"\x20"])[1])) == 2
    for request in (
        ScanRequest(100, 2000, cols=(1,)),
        ScanRequest(100, 2000, b"\2", b"\5", cols=(1,)),
        ScanRequest(100, 2001, cols=(1,)),
    ):
        with pytest.raises(WrongPlace):
            engine.scan(request)
        with pytest.raises(WrongPlace):
            engine.try_scan(request)
        with pytest.raises(WrongPlace):
            engine.readers.submit(request).future.result(10)
    with pytest.raises(WrongPlace):
        engine.sample(100, 2001, 3, (1,))
    assert len(decode(engine.sample(100, 2000, 100, (1,))[1])) == 7
    assert engine.try_lookup(100, b"\2", b"\5", 10, 1000, (2000, 0, 0, (1,), ())) is None
    page = engine.try_lookup(100, b"\3", b"\5", 10, 1000, (2000, 0, 0, (1,), ()))
    assert page is not None and decode(page[1]) == [[b"\3", 3], [b"\4", 4]]
    with pytest.raises(UnknownRelation):
        small(tmp_path / "t.db", [Owned(place(2000, b"\3"), END)]).get(100, 2005, (1,), [b"\2"])
    engine.close()


def test_a_scan_reports_what_it_covered(tmp_path: Path) -> None:
    owned = [Owned(place(2000, b"\2"), place(2000, b"\4")), Owned(place(2000, b"\4"), place(2001))]
    engine = small(tmp_path / "s.db", [*owned[:1], Owned(*owned[1].range, 50)])
    up = ScanRequest(100, 2000, b"\2", cols=(1,))
    assert engine.scan_part(up)[1] == (b"\2", None)
    request = ScanRequest(100, 2000, b"\3", b"\x20", cols=(1,), flags=2)
    page, scanned = engine.scan_part(request)
    assert scanned == (b"\3", b"\x20") and decode(page[1])[0] == [b"\4", 4]
    engine.shrink([Owned(place(2000, b"\2"), place(2000, b"\4"))])
    for flags in (0, 2):
        page, scanned = engine.scan_part(ScanRequest(100, 2000, b"\2", cols=(1,), flags=flags))
        assert scanned == (b"\2", b"\4")
        assert [row[1] for row in decode(page[1])] == [2, 3][flags // 2 :]
    page, scanned = engine.scan_part(ScanRequest(100, 2000, None, b"\4", cols=(1,), flags=1))
    assert scanned == (b"\2", b"\4") and [row[1] for row in decode(page[1])] == [3, 2]
    counted = ScanRequest(100, 2000, b"\2", aggs=((1, 0),))
    page, scanned = engine.scan_part(counted)
    assert decode(page[1]) == [[2]] and scanned == (b"\2", b"\4")
    job = engine.readers.submit(counted, clip=True)
    assert decode(job.future.result(10)[1]) == [[2]] and job.scanned == (b"\2", b"\4")
    with pytest.raises(WrongPlace):
        engine.scan_part(ScanRequest(100, 2000, cols=(1,)))
    with pytest.raises(WrongPlace):
        engine.scan_part(ScanRequest(100, 2000, b"\2", cols=(1,), flags=1))
    engine.close()


def test_each_range_has_its_base(tmp_path: Path) -> None:
    cut = place(2000, b"\5")
    engine = small(tmp_path / "s.db", [Owned(b"", cut), Owned(cut, END, 200)])
    engine.apply([(300, [])], {0: 2})
    assert len(decode(engine.scan(ScanRequest(150, 2000, None, b"\5", cols=(1,)))[1])) == 5
    for tau, refused in ((199, True), (200, False)):
        for read in (
            lambda tau: engine.scan(ScanRequest(tau, 2000, cols=(1,))),
            lambda tau: engine.get(tau, 2000, (1,), [b"\6"]),
            lambda tau: engine.get(tau, 2000, (1,), [b"\1", b"\6"]),
            lambda tau: engine.readers.submit(ScanRequest(tau, 2000)).future.result(10),
        ):
            if refused:
                with pytest.raises(BelowHorizon):
                    read(tau)
            else:
                read(tau)
    engine.close()


def test_joins_need_the_rows_here(tmp_path: Path) -> None:
    engine = small(tmp_path / "s.db", [Owned(place(2000, b"\2"), END)])
    join = ScanRequest(100, 2001, cols=(1,), row_sid=2000, row_cols=(1,))
    with pytest.raises(WrongPlace, match="range"):
        engine.scan_part(join)
    whole = small(tmp_path / "t.db", [Owned(place(2000), END)])
    assert len(decode(whole.scan(join)[1])) == 10
    whole.close()
    engine.close()


def test_a_long_read_keeps_its_ranges_and_a_new_file_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    engine = small(path, list(ALL))
    request = ScanRequest(100, 2000, cols=(1,))
    assert len(decode(engine.readers.submit(request).future.result(10)[1])) == 10
    engine.checkpoint(tmp_path / "cp")
    other = Engine.restore(tmp_path / "cp", tmp_path / "other.db", boot_id="boot", durable=None)
    assert other.generation != engine.generation
    other.abandon()
    # Another file takes the path while the pool of the old one lives.
    replaced = small(tmp_path / "x.db", list(ALL))
    replaced.close()
    fresh = Engine.open(path, boot_id="boot", durable=None)
    engine._db.execute("UPDATE file SET generation = x'00'").fetchall()
    with pytest.raises(WrongPlace):
        engine.readers.submit(request).future.result(10)
    fresh.abandon()
    engine.abandon()


def test_only_what_is_owned_is_given_up(tmp_path: Path) -> None:
    cut = place(2000, b"\5")
    engine = small(tmp_path / "s.db", [Owned(b"", cut, 50)])
    for owned in (
        [Owned(b"", END)],
        [Owned(cut, END)],
        [Owned(b"", cut, 10)],
        [Owned(b"", cut, 50), Owned(b"", cut, 50)],
    ):
        with pytest.raises(BadRequest):
            engine.shrink(owned)
    engine.shrink([])
    while engine.purge():
        pass
    with pytest.raises(WrongPlace):
        engine.get(100, 2000, (1,), [b"\1"])
    engine.close()


def test_files_of_format_1_own_everything(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    engine = small(path, list(ALL))
    for statement in ("DROP TABLE ranges", "DROP TABLE purge", "UPDATE file SET format = 1"):
        engine._db.execute(statement).fetchall()
    engine._db.close(True)
    engine.readers.close()
    again = Engine.open(path, boot_id="boot", durable=None)
    assert again.ranges.whole and len(rows_of(again, 100, 2000)) == 10
    assert schema.load_state(again._db).applied_tau == 100
    again.close()
    with pytest.raises(ValueError, match="overlap"):
        Engine.create(tmp_path / "t.db", boot_id="boot", owned=[*ALL, *ALL])
    assert not (tmp_path / "t.db").exists()
    with pytest.raises(RebuildNeeded):
        Engine.open(tmp_path / "t.db", boot_id="boot", durable=None)


# Pure parts

places = st.binary(min_size=0, max_size=3).map(lambda b: bytes(x % 128 for x in b[:1]) + b[1:])


@st.composite
def ranges(draw: st.DrawFn) -> list[Owned]:
    cuts = sorted(draw(st.sets(places, min_size=2, max_size=7)))
    pairs = list(pairwise(cuts))
    chosen = draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    bases = draw(st.lists(st.integers(0, 5), min_size=len(pairs), max_size=len(pairs)))
    return [Owned(*p, b) for p, take, b in zip(pairs, chosen, bases) if take]


@given(ranges(), places, places)
def test_ranges_agree_with_single_places(owned: list[Owned], a: bytes, b: bytes) -> None:
    wanted = Range(min(a, b), max(a, b) + b"\0")
    here = Ranges(owned)
    inside = [one for one in owned if one.lo <= wanted.lo < one.hi]
    assert here.at(wanted.lo) == (inside[0] if inside else None)
    left = gaps(owned, wanted)
    assert (here.base_of(wanted) is not None) == (left == [])
    assert cover([one.range for one in owned], wanted) == (left == [])
    assert here.meets(wanted) == (left != [wanted])
    up = here.clip(wanted, descending=False)
    down = here.clip(wanted, descending=True)
    assert (up is not None) == bool(inside)
    for clipped, at_begin in ((up, True), (down, False)):
        if clipped is None:
            continue
        part, base = clipped
        assert wanted.covers(part) and part.lo < part.hi
        assert (part.lo == wanted.lo) if at_begin else (part.hi == wanted.hi)
        assert here.base_of(part) == base
        end = Range(wanted.lo, part.hi + b"\0") if at_begin else None
        if end is not None and part.hi < wanted.hi:
            assert here.at(part.hi) is None
    assert subtract([wanted], wanted) == []


@given(ranges(), st.sets(st.binary(max_size=2), max_size=12))
def test_keys_and_cuts_agree(owned: list[Owned], chosen: set[bytes]) -> None:
    shifted = [Owned(place(5, one.lo), place(5, one.hi), one.base) for one in owned]
    here = Ranges(shifted)
    keys = sorted(chosen)
    homes = [here.at(place(5, key)) for key in keys]
    expected = None if None in homes else max((h.base for h in homes if h), default=0)
    assert here.base_of_keys(5, keys) == expected
    put = ops.Put(5, 0, (1,), keys, bytes(8 * len(keys)), b"", [(key,) for key in keys])
    kept = [op for op in cut_ops([put], here) if isinstance(op, ops.Put)]
    assert [key for op in kept for key in op.keys] == [k for k, h in zip(keys, homes) if h]
    assert all([row[0] for row in op.rows] == op.keys for op in kept)
    assert all(len(op.w) == 8 * len(op.keys) for op in kept)
    assert cut_ops([ops.Lock(5, keys, b"", b"")], here) == []
    assert cut_ops([ops.Drop(6)], here) == [] and (cut_ops([ops.Drop(5)], here) != []) == bool(
        owned
    )


def test_keys_of_a_range() -> None:
    assert keys_of(5, span(5)) == (b"", None)
    assert keys_of(5, Range(b"", END)) == (b"", None)
    assert keys_of(5, Range(place(5, b"a"), place(6))) == (b"a", None)
    assert keys_of(5, Range(place(4, b"z"), place(5, b"b"))) == (b"", b"b")
    assert span((1 << 63) - 1).hi == END


def test_samples_of_other_shards_are_not_refused(tmp_path: Path) -> None:
    engine = small(tmp_path / "s.db", [Owned(place(2000, b"\5"), END)])
    job = engine.readers.submit(SampleRequest(100, 2000, 100, (1,)))
    assert len(decode(job.future.result(10)[1])) == 5
    engine.close()
