"""Relations: reach of catalog versions, locks of whole relations (docs/rfcs, coherence 1, 2, 7)."""

from __future__ import annotations

import pytest

from meridian.adjudicator import relations as module
from meridian.adjudicator.events import Code, Outcome, Part
from meridian.adjudicator.footprint import BadWriteSet, footprint
from meridian.adjudicator.relations import Relations
from meridian.journal import core as journal
from meridian.wire.ops import (
    KIND_INDEX,
    KIND_TABLE,
    Create,
    Delete,
    Drop,
    Lock,
    Put,
    Share,
    encode_chunk,
)
from meridian.wire.reach import ADDITIVE, EVERYBODY, RELATIONS, Reach, encode_reach
from tests.adjudicator.driver import Driver, catalog, hashes, lock, put, share, txid, whole


def passes(driver: Driver, id_: int, chunk: bytes, start: int = 0, catver: int = 0) -> Code:
    return driver.commit(id_, chunk, start, catver=catver).code


# Reach


@pytest.mark.parametrize(
    "reach, hit, missed",
    [
        (Reach(ADDITIVE), (), (1000, 1001)),
        (Reach(RELATIONS, (1000,)), (1000,), (1001,)),
        (EVERYBODY, (1000, 1001), ()),
        (None, (1000, 1001), ()),
    ],
)
def test_reach_decides_who_is_stale_and_who_too_new(
    driver: Driver, reach: Reach | None, hit: tuple[int, ...], missed: tuple[int, ...]
) -> None:
    start = driver.now
    assert passes(driver, 1, catalog(5, reach=reach), start, 4) is Code.NONE
    for number, sid in enumerate((*hit, *missed)):
        expected = Code.CATALOG if sid in hit else Code.NONE
        chunk = put(f"k{number}", sid=sid)
        assert passes(driver, 10 + number, chunk, driver.now, 4) is expected, "stale"
        assert passes(driver, 20 + number, put(f"l{number}", sid=sid), start, 5) is expected, "new"
        assert passes(driver, 30 + number, put(f"m{number}", sid=sid), driver.now, 5) is Code.NONE


def test_a_delta_must_follow_the_last_one(driver: Driver) -> None:
    assert passes(driver, 1, catalog(5, reach=Reach(ADDITIVE)), 0, 4) is Code.NONE
    # Another instance, which has not applied version 5, makes a version 5 or 6 of its own.
    assert passes(driver, 2, catalog(5, reach=Reach(ADDITIVE)), 0, 4) is Code.CATALOG
    assert passes(driver, 3, catalog(6, reach=Reach(ADDITIVE)), 0, 4) is Code.CATALOG
    assert passes(driver, 5, catalog(5), 0, 0) is Code.CATALOG, "whoever makes it"
    assert passes(driver, 4, catalog(6, reach=Reach(ADDITIVE)), 0, 5) is Code.NONE
    assert driver.core.relations.catalog_version == 6


def test_system_relations_and_clients_without_a_version_are_not_concerned(driver: Driver) -> None:
    start = driver.now
    assert passes(driver, 1, catalog(5), start, 4) is Code.NONE
    assert passes(driver, 2, put("s", sid=2), start, 4) is Code.NONE
    assert passes(driver, 3, put("s", sid=1000), start, 0) is Code.NONE


def test_reach_survives_restart_also_in_a_large_transaction(driver: Driver) -> None:
    start = driver.now
    reach = Reach(RELATIONS, (1000,))
    driver.step(Part(txid(1), start, 0, catalog(5, reach=reach)))
    to = driver.ask(1, put("z", sid=1007), start, parts=1, catver=4)
    driver.settle()
    assert driver.outcome(to) is Outcome.COMMITTED
    other = Driver(driver.records, driver.now)
    other.sync()
    other.now += 10
    for one in (driver, other):
        assert passes(one, 2, put("a"), 0, 4) is Code.CATALOG
        assert passes(one, 3, put("b", sid=1001), 0, 4) is Code.NONE
        assert passes(one, 4, put("c"), 0, 5) is Code.NONE


def test_malformed_reaches() -> None:
    key = (5).to_bytes(8, "big")
    for attnums, row in (((1, 3), (b"", b"\x93")), ((3,), (7,)), ((3,), (b"\x92\x05\x90",))):
        chunk = encode_chunk([Put(1, 0, attnums, [key], bytes(8), b"", [row])])
        with pytest.raises(BadWriteSet):
            footprint(chunk)
    marked = encode_chunk([Put(1, 0, (3,), [key], bytes(8), b"", [("b",)])])
    assert footprint(marked).reach == EVERYBODY, "a long one travels beside"
    two = [(encode_reach(Reach(ADDITIVE)),)] * 2
    keys = [key, (6).to_bytes(8, "big")]
    chunk = encode_chunk([Put(1, 0, (3,), keys, bytes(16), b"", two)])
    assert footprint(chunk).reach == EVERYBODY


# Locks of whole relations


def delete(key: str) -> bytes:
    return encode_chunk([Delete(1000, 0, [key.encode()], hashes(key), b"")])


LOCK, SHARE = whole(), whole(share=True)
WRITES = [put("a"), delete("a")]
ROWS = [lock("a"), share("a"), share("a", identity=False)]


@pytest.mark.parametrize(
    "one, other, excluded",
    [
        *[(LOCK, write, True) for write in WRITES],
        *[(SHARE, write, True) for write in WRITES],
        *[(LOCK, row, True) for row in ROWS],
        *[(SHARE, row, False) for row in ROWS],
        (LOCK, LOCK, True),
        (LOCK, SHARE, True),
        (SHARE, SHARE, False),
        (LOCK, put("a", sid=1001), False),
        (SHARE, put("a", sid=1001), False),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_relation_locks_in_either_order(
    driver: Driver, one: bytes, other: bytes, excluded: bool, swapped: bool
) -> None:
    """As PostgreSQL's EXCLUSIVE and SHARE; what was committed before tau_start never counts."""
    first, second = (other, one) if swapped else (one, other)
    start = driver.now
    assert passes(driver, 1, first, start) is Code.NONE
    restarted = Driver(driver.records, driver.now)
    restarted.sync()
    expected = Code.CONFLICT if excluded else Code.NONE
    for other_driver in (driver, restarted):
        assert passes(other_driver, 2, second, start) is expected
        assert passes(other_driver, 3, second, other_driver.now) is Code.NONE


def test_a_relation_lock_among_row_locks_in_one_op() -> None:
    rows = [b"", b"a"]
    for op in (Lock(1000, rows, bytes(16), b""), Share(1000, rows, bytes(16), b"")):
        print_ = footprint(encode_chunk([op]))
        assert print_.row_locked == (1000,)
        assert (print_.locked or print_.shared) == (1000,)
    only = footprint(encode_chunk([Lock(1000, [b""], bytes(8), b"")]))
    assert only.row_locked == () and only.locked == (1000,)
    many = [b"k%05d" % n for n in range(70_000)]
    for count in (1, 16, 70_000):
        keys = many[:count]
        print_ = footprint(encode_chunk([Share(7, keys, bytes(8 * count), b"")]))
        assert print_.row_locked == (7,) and not print_.shared and not print_.locked
        with_lock = [b"", *keys]
        print_ = footprint(encode_chunk([Share(7, with_lock, bytes(8 * count + 8), b"")]))
        assert print_.row_locked == print_.shared == (7,)


def test_relation_lock_of_a_large_transaction(driver: Driver) -> None:
    start = driver.now
    driver.step(Part(txid(1), start, 0, LOCK))
    assert passes(driver, 2, put("b"), start) is Code.NONE
    to = driver.ask(1, put("x", sid=1001), start, parts=1)
    driver.settle()
    assert driver.answers[to].code is Code.CONFLICT
    start = driver.now
    driver.step(Part(txid(3), start, 0, SHARE))
    to = driver.ask(3, put("x", sid=1001), start, parts=1)
    driver.settle()
    assert driver.answers[to].code is Code.NONE
    assert passes(driver, 4, put("c"), start) is Code.CONFLICT


# DDL against earlier writers


@pytest.mark.parametrize("how", ["index", "rewrite", "validate"])
@pytest.mark.parametrize("writer_first", [True, False])
def test_ddl_against_an_earlier_writer(driver: Driver, how: str, writer_first: bool) -> None:
    """Whoever commits second is refused: a writer that DDL has not seen never slips in."""
    start = driver.now
    ops = {
        "index": [Create(2000, KIND_INDEX, [(0, 2)], 1000)],
        "rewrite": [Create(2001, KIND_TABLE, [(1, 1)], 0), Drop(1000)],
        "validate": [Share(1000, [b""], hashes("rel"), b"")],
    }[how]
    ddl = catalog(1, *ops, reach=Reach(RELATIONS, (1000,)))
    if writer_first:
        assert passes(driver, 1, put("a"), start) is Code.NONE
        assert passes(driver, 2, ddl, start) in (Code.CATALOG, Code.CONFLICT)
        assert passes(driver, 3, ddl, driver.now) is Code.NONE
    else:
        assert passes(driver, 1, ddl, start) is Code.NONE
        assert passes(driver, 2, put("a"), start) is Code.CATALOG


def test_rows_that_are_only_locked_do_not_stop_an_index_build(driver: Driver) -> None:
    start = driver.now
    assert passes(driver, 1, share("a"), start) is Code.NONE
    index = encode_chunk([Create(2000, KIND_INDEX, [(0, 2)], 1000)])
    assert passes(driver, 2, index, start) is Code.NONE


# Bounds


def test_bookkeeping_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRUNE_AT", 50)
    relations = Relations()
    for number in range(1, 2000):
        tau = number * 10
        print_ = footprint(catalog(number, reach=Reach(RELATIONS, (1000 + number,))))
        write = footprint(put("a", sid=5000 + number))
        relations.record(tau, (print_, write), floor=max(0, tau - 200))
        assert len(relations._changed) <= 102 and len(relations._written) <= 102
    assert relations._base[1] > 1800
    old, fresh = 1800 * 10, 1999 * 10
    # Within the window nothing is forgotten; who lags behind what is gets a false abort.
    assert relations.stale(fresh - 15, 1999, [footprint(put("a", sid=2999))])
    assert not relations.stale(fresh, 1999, [footprint(put("a", sid=2999))])
    assert not relations.stale(fresh, 1999, [footprint(put("a", sid=4000))])
    assert relations.stale(old, 1000, [footprint(put("a", sid=4000))])


def test_a_trimmed_start_knows_the_version(driver: Driver) -> None:
    assert passes(driver, 1, catalog(5, reach=Reach(RELATIONS, (1000,))), 0, 4) is Code.NONE
    reader = journal.Reader()
    for record in driver.records:
        reader.accept(record)
    other = Driver([], driver.now, reader.position())
    other.sync()
    other.now += 10
    assert passes(other, 2, put("a"), 0, 4) is Code.CATALOG
    assert passes(other, 3, catalog(5), 0, 5) is Code.CATALOG
    assert passes(other, 4, catalog(6), 0, 5) is Code.NONE
