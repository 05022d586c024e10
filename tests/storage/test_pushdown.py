"""Filters, aggregates and grouping in SQL against the same in Python, with three-valued logic."""

from __future__ import annotations

import itertools
import math
import random
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meridian.storage import Engine, ScanRequest, relations
from meridian.storage.errors import BadRequest, OutOfRange, StorageError, UnknownRelation
from meridian.wire import ops

decode = msgspec.msgpack.decode
TABLE, INDEX = 3000, 3001
INTEGER, BYTES, FLOAT, NUMERIC, OPAQUE, SMALL = 1, 2, 3, 4, 5, 6
CLASSES = [(INTEGER, 1), (BYTES, 2), (FLOAT, 3), (NUMERIC, 3), (OPAQUE, 4), (SMALL, 1)]
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1

INTEGERS = [None, 0, 1, -1, 7, INT_MIN, INT_MAX, INT_MIN + 1, 1 << 32, -(1 << 32) - 1]
TEXTS = [None, b"", b"\0", b"\xff", b"b", b"B", "é".encode(), "\U0001f600".encode(), b"a" * 3000]
TEXTS += [b"a" * 2999 + b"b", b"a"]
FLOATS = [None, 0.0, -0.0, 1.5, -1.5, math.inf, -math.inf, math.nan, 5e-324, 1e308]
NUMERICS = [None, (0, 0), (0, 2), (1, 0), (1, 5), (10, 1), (-1, 0), (-10, 3), (255, 0)]


def float_order(value: float) -> bytes:
    if math.isnan(value):
        return b"\xff" * 8
    bits = int.from_bytes(struct.pack(">d", value + 0.0 if value else 0.0), "big")
    bits = bits ^ (1 << 63) if not bits >> 63 else bits ^ ((1 << 64) - 1)
    return bits.to_bytes(8, "big")


def float_stored(value: float) -> bytes:
    return float_order(value) + (b"\1" if value == 0 and math.copysign(1, value) < 0 else b"\0")


def numeric_order(value: tuple[int, int]) -> bytes:
    """Any prefix-free order-preserving code will do: sign, then unary length."""
    number = value[0]
    body = bytes([1 + abs(number) // 16] * (1 + abs(number) // 16)) + bytes([1 + abs(number) % 16])
    return (
        b"\x80" + body + b"\0" if number >= 0 else b"\x7f" + bytes(255 - b for b in body) + b"\xff"
    )


def numeric_stored(value: tuple[int, int]) -> bytes:
    return numeric_order(value) + value[1].to_bytes(2, "big")


class Row:
    """A row as the model sees it: what compares, and what is stored."""

    def __init__(self, key: bytes, values: list[Any]) -> None:
        self.key = key
        self.values = dict(zip([c for c, _ in CLASSES], values, strict=True))

    def compared(self, attnum: int) -> Any:
        value = self.values[attnum]
        if value is None:
            return None
        return {FLOAT: float_order, NUMERIC: numeric_order}.get(attnum, lambda v: v)(value)

    def stored(self, attnum: int) -> Any:
        value = self.values[attnum]
        if value is None:
            return None
        return {FLOAT: float_stored, NUMERIC: numeric_stored}.get(attnum, lambda v: v)(value)


def random_row(rng: random.Random, key: bytes) -> Row:
    return Row(
        key,
        [
            rng.choice(INTEGERS),
            rng.choice(TEXTS),
            rng.choice(FLOATS),
            rng.choice(NUMERICS),
            rng.choice([None, b"", b"x" * 2500]),
            rng.choice([None, 0, 5, -3, (1 << 31) - 1, -(1 << 31)]),
        ],
    )


COMPARE = {
    1: lambda a, b: a < b,
    2: lambda a, b: a <= b,
    3: lambda a, b: a == b,
    4: lambda a, b: a >= b,
    5: lambda a, b: a > b,
    6: lambda a, b: a != b,
}


def evaluate(tree: list[Any], row: Row) -> bool | None:
    """SQL's three-valued logic."""
    op = tree[0]
    if op in (1, 2):
        parts = [evaluate(part, row) for part in tree[1:]]
        decisive = op == 2
        if decisive in parts:
            return decisive
        return None if None in parts else not decisive
    if op == 3:
        inner = evaluate(tree[1], row)
        return None if inner is None else not inner
    value = row.compared(tree[1])
    if op in (4, 5):
        return (row.values[tree[1]] is None) == (op == 4)
    if op == 6:
        return None if value is None or tree[3] is None else COMPARE[tree[2]](value, tree[3])
    if not tree[2]:
        return False
    if value is None:
        return None
    return True if value in tree[2] else None if None in tree[2] else False


def random_constant(rng: random.Random, attnum: int) -> Any:
    row = random_row(rng, b"")
    if rng.random() < 0.1 and attnum == INTEGER:
        return rng.randint(INT_MIN, INT_MAX)
    return row.compared(attnum)


def random_filter(rng: random.Random, depth: int) -> list[Any]:
    kind = rng.choice([1, 2, 3, 4, 5, 6, 6, 6, 7]) if depth else rng.choice([4, 5, 6, 6, 7])
    if kind in (1, 2):
        return [kind, *(random_filter(rng, depth - 1) for _ in range(rng.randint(0, 4)))]
    if kind == 3:
        return [kind, random_filter(rng, depth - 1)]
    if kind in (4, 5):
        return [kind, rng.choice([c for c, _ in CLASSES])]
    attnum = rng.choice([INTEGER, BYTES, FLOAT, NUMERIC, SMALL])
    if kind == 6:
        return [6, attnum, rng.randint(1, 6), random_constant(rng, attnum)]
    count = rng.choice([0, 1, 2, 5, 80])
    return [7, attnum, [random_constant(rng, attnum) for _ in range(count)]]


def load(engine: Engine, rows: list[Row], tau: int) -> None:
    """Rows of the table, and index entries keyed by (reversed key) so that the orders differ."""
    attnums = tuple(c for c, _ in CLASSES)
    values = []
    bigs: dict[int, dict[bytes, bytes]] = {}
    for row in rows:
        stored = []
        for attnum in attnums:
            value = row.stored(attnum)
            if isinstance(value, bytes) and len(value) > 2048:
                bigs.setdefault(attnum, {})[row.key] = value
                value = "b"
            stored.append(value)
        values.append(tuple(stored))
    chunk: list[ops.Op] = [
        ops.Put(TABLE, ops.FRESH, attnums, [r.key for r in rows], b"", b"", values)
    ]
    chunk += [ops.Big(TABLE, a, list(v), list(v.values())) for a, v in bigs.items()]
    entries = sorted((r.key[::-1], r) for r in rows)
    chunk.append(
        ops.Put(
            INDEX,
            ops.FRESH,
            (0, 1),
            [k for k, _ in entries],
            b"",
            b"",
            [(r.key, r.values[SMALL]) for _, r in entries],
        )
    )
    engine.apply([(tau, chunk)], {0: tau})


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = Engine.create(tmp_path / "shard.db", boot_id="boot")
    engine.apply(
        [
            (
                10,
                [
                    ops.Create(TABLE, ops.KIND_TABLE, CLASSES, 0),
                    ops.Create(INDEX, ops.KIND_INDEX, [(1, 1)], TABLE),
                ],
            )
        ],
        {0: 1},
    )
    yield engine
    engine.abandon()


def rows_for(rng: random.Random, count: int) -> list[Row]:
    return [random_row(rng, (i * 7919 % 65536).to_bytes(2, "big")) for i in range(count)]


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_filters_and_aggregates(
    engine: Engine, seed: int, crowded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if crowded:
        monkeypatch.setattr(relations.Relation, "crowded", property(lambda self: True))
    rng = random.Random(seed)
    rows = sorted(rows_for(rng, 60), key=lambda r: r.key)
    load(engine, rows, 20)
    cols = tuple(c for c, _ in CLASSES)
    for _ in range(120):
        tree = random_filter(rng, 3)
        flags = rng.choice([0, 1])
        lo, hi = sorted(rng.choice(rows).key for _ in range(2))
        kept = [r for r in rows if lo <= r.key < hi and evaluate(tree, r) is True]
        answer = [[r.key, *(r.stored(c) for c in cols)] for r in kept]
        request = ScanRequest(30, TABLE, lo, hi, flags, cols, tree)
        assert decode(engine.scan(request)[1]) == (answer[::-1] if flags else answer), tree
        check_aggregates(engine, rng, kept, request)
        check_join(engine, rows, tree)


def check_aggregates(
    engine: Engine, rng: random.Random, kept: list[Row], base: ScanRequest
) -> None:
    group = tuple(rng.sample([INTEGER, BYTES, SMALL], rng.choice([0, 1, 2])))
    aggs = ((1, 0), (2, FLOAT), (2, OPAQUE), (3, INTEGER), (4, INTEGER), (3, BYTES), (4, BYTES))
    aggs += ((5, SMALL), (6, INTEGER))
    request = msgspec.structs.replace(base, flags=0, cols=(), group=group, aggs=aggs)
    more, encoded = engine.scan(request)
    assert not more
    groups: dict[tuple[Any, ...], list[Row]] = {} if group else {(): []}
    for row in kept:
        groups.setdefault(tuple(row.values[c] for c in group), []).append(row)
    expected = [[*g, *aggregate(members)] for g, members in groups.items()]
    assert sorted(map(repr, decode(encoded))) == sorted(map(repr, expected))


def aggregate(members: list[Row]) -> list[Any]:
    def of(attnum: int) -> list[Any]:
        return [r.values[attnum] for r in members if r.values[attnum] is not None]

    integers = of(INTEGER)
    high = sum(v >> 32 for v in integers) if integers else None
    low = sum(v & 0xFFFFFFFF for v in integers) if integers else None
    if integers:
        assert (high << 32) + low == sum(integers)
    return [
        len(members),
        len(of(FLOAT)),
        len(of(OPAQUE)),
        min(integers, default=None),
        max(integers, default=None),
        min(of(BYTES), default=None),
        max(of(BYTES), default=None),
        sum(of(SMALL)) if of(SMALL) else None,
        high,
        low,
    ]


def check_join(engine: Engine, rows: list[Row], tree: list[Any]) -> None:
    request = ScanRequest(
        30, INDEX, cols=(1,), row_sid=TABLE, row_cols=(BYTES,), row_filter=tree, filter=[5, 1]
    )
    kept = [r for r in rows if r.values[SMALL] is not None and evaluate(tree, r) is True]
    expected = [
        [r.key[::-1], r.key, r.values[SMALL], r.stored(BYTES)]
        for r in sorted(kept, key=lambda r: r.key[::-1])
    ]
    assert decode(engine.scan(request)[1]) == expected


def test_pages_join_to_the_whole(engine: Engine) -> None:
    rng = random.Random(5)
    rows = sorted(rows_for(rng, 300), key=lambda r: r.key)
    load(engine, rows, 20)
    whole = [[r.key, r.stored(BYTES)] for r in rows]
    for limit, page_bytes, down in itertools.product([0, 7], [0, 1, 500, 5000], [False, True]):
        got: list[Any] = []
        lo, hi, flags = None, None, 1 if down else 0
        while True:
            request = ScanRequest(30, TABLE, lo, hi, flags, (BYTES,), None, limit, page_bytes)
            more, encoded = engine.scan(request)
            page = decode(encoded)
            assert not limit or len(page) <= limit
            assert not page_bytes or len(page) == 1 or len(encoded) <= page_bytes + 5
            got += page
            if not more:
                break
            if down:
                hi = page[-1][0]
            else:
                lo, flags = page[-1][0], 2
        assert got == (whole[::-1] if down else whole)


@pytest.mark.parametrize("crowded", [False, True])
def test_lookups_equal_scans(
    engine: Engine, crowded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if crowded:
        monkeypatch.setattr(relations.Relation, "crowded", property(lambda self: True))
    rng = random.Random(7)
    rows = sorted(rows_for(rng, 200), key=lambda r: r.key)
    for row in rows:
        row.values |= {BYTES: b"short", OPAQUE: None}
    load(engine, rows, 20)
    ended = [r.key for r in rows[::3]]
    gone = ops.Delete(TABLE, 0, ended, b"", b"")
    moved = sorted(r.key[::-1] for r in rows[1::3])
    entries = ops.Delete(INDEX, 0, moved, b"", b"")
    engine.apply([(27, [gone, entries])], {0: 27})
    answered = 0
    for _ in range(300):
        sid, row_sid, cols = rng.choice([(TABLE, 0, (SMALL, FLOAT)), (INDEX, 0, (1,))])
        row_cols: tuple[int, ...] = ()
        if sid == INDEX and rng.random() < 0.5:
            row_sid, row_cols, cols = TABLE, (SMALL,), rng.choice([(), (1,)])
        lo, hi = sorted(rng.randbytes(2) for _ in range(2))
        if rng.random() < 0.5:
            lo = rng.choice(rows).key if rng.random() < 0.8 else lo
            lo = lo[::-1] if sid == INDEX else lo
            hi = lo + b"\0"
        tau, flags, limit = rng.choice([20, 25, 30]), rng.randint(0, 3), rng.randint(1, 64)
        shape = (sid, row_sid, flags, cols, row_cols)
        page = engine.try_lookup(tau, lo, hi, limit, 1 << 20, shape)
        request = ScanRequest(tau, sid, lo, hi, flags, cols, None, limit, 0, row_sid, row_cols)
        if page is not None:
            assert page == engine.scan(request)
            answered += 1
    # Crowded relations go the long way.
    assert answered == (0 if crowded else 300)
    for bad in ((TABLE, 0, 0, (99,), ()), (9999, 0, 0, (), ())):
        with pytest.raises(StorageError):
            engine.try_lookup(30, b"", b"z", 5, 1 << 20, bad)
    with pytest.raises(UnknownRelation):
        request = ScanRequest(9, TABLE, b"", b"z", 0, (), None, 5)
        assert engine.try_lookup(9, b"", b"z", 5, 1 << 20, (TABLE, 0, 0, (), ())) is None
        engine.scan(request)


def test_group_limit_says_more(engine: Engine) -> None:
    rng = random.Random(6)
    load(engine, sorted(rows_for(rng, 50), key=lambda r: r.key), 20)
    groups = len(decode(engine.scan(ScanRequest(30, TABLE, group=(INTEGER,), aggs=()))[1]))
    for limit in (1, groups - 1, groups, groups + 1):
        request = ScanRequest(30, TABLE, group=(INTEGER,), aggs=((1, 0),), limit=limit)
        assert engine.scan(request)[0] == (limit < groups)


def test_sum_never_wraps(engine: Engine) -> None:
    rows = [Row(bytes((i,)), [INT_MAX, None, None, None, None, None]) for i in range(3)]
    load(engine, rows, 20)
    with pytest.raises(OutOfRange):
        engine.scan(ScanRequest(30, TABLE, aggs=((5, INTEGER),)))
    answer = decode(engine.scan(ScanRequest(30, TABLE, aggs=((6, INTEGER),)))[1])
    assert (answer[0][0] << 32) + answer[0][1] == 3 * INT_MAX


@pytest.mark.parametrize(
    "tree",
    [
        [],
        7,
        [99],
        [3],
        [6, INTEGER, 1],
        [6, INTEGER, 9, 1],
        [6, INTEGER, 1, b"x"],
        [6, INTEGER, 1, 1 << 63],
        [6, BYTES, 1, 1],
        [6, BYTES, 1, "text"],
        [6, OPAQUE, 3, b"x"],
        [7, OPAQUE, []],
        [6, 77, 3, 1],
        [6, "c1", 3, 1],
        [6, FLOAT, 3, b""],
        [6, FLOAT, 3, 1.5],
        [7, INTEGER, 5],
    ],
)
def test_bad_filters_are_refused(engine: Engine, tree: Any) -> None:
    with pytest.raises(BadRequest):
        engine.scan(ScanRequest(30, TABLE, filter=tree))


def test_bounds_of_filters(engine: Engine) -> None:
    deep: list[Any] = [4, INTEGER]
    for _ in range(150):
        deep = [3, deep]
    with pytest.raises(BadRequest):
        engine.scan(ScanRequest(30, TABLE, filter=deep))
    wide = [2, *([6, INTEGER, 3, i] for i in range(5000))]
    assert engine.scan(ScanRequest(30, TABLE, filter=wide)) == (False, b"\x90")
    with pytest.raises(BadRequest):
        engine.scan(ScanRequest(30, TABLE, filter=[2, *([6, INTEGER, 3, i] for i in range(20000))]))
    many = [7, INTEGER, list(range(100_000))]
    assert engine.scan(ScanRequest(30, TABLE, filter=many)) == (False, b"\x90")
    nested: list[Any] = [6, INTEGER, 3, 1]
    for _ in range(95):
        nested = [1, [5, INTEGER], nested]
    assert engine.scan(ScanRequest(30, TABLE, filter=nested)) == (False, b"\x90")


def junk(rng: random.Random, depth: int = 0) -> Any:
    """What a broken client might send where something else belongs."""
    atoms = [None, True, -1, 0, 1, 3, 77, 1 << 63, -(1 << 63), 1.5, b"", b"x", "b", "", [], {}]
    if depth < 3 and rng.random() < 0.4:
        return [junk(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return rng.choice(atoms)


@pytest.mark.parametrize("seed", range(5))
def test_junk_gets_a_clear_refusal(engine: Engine, seed: int) -> None:
    rng = random.Random(seed)
    load(engine, sorted(rows_for(rng, 20), key=lambda r: r.key), 20)
    fields: dict[str, Any] = {
        "lo": lambda: rng.choice([None, b"", b"a", b"\xff" * 9]),
        "hi": lambda: rng.choice([None, b"", b"a"]),
        "flags": lambda: rng.choice([0, 1, 2, 3, 4, -1, 1 << 70]),
        "cols": lambda: tuple(rng.choice([1, 2, 99, -1, 1 << 70]) for _ in range(2)),
        "filter": lambda: junk(rng),
        "limit": lambda: rng.choice([0, 1, -1, 1 << 63, 1 << 70]),
        "page_bytes": lambda: rng.choice([0, -1, 1, 1 << 70]),
        "row_sid": lambda: rng.choice([0, TABLE, 99, -1, 1 << 70]),
        "row_filter": lambda: junk(rng),
        "group": lambda: rng.choice([None, (), (1,), (99,), (-1,)]),
        "aggs": lambda: rng.choice([None, (), ((1, 0),), ((99, 1),), ((5, BYTES),), ((1, 2, 3),)]),
    }
    for _ in range(400):
        chosen = {name: make() for name, make in fields.items() if rng.random() < 0.4}
        sid = rng.choice([TABLE, TABLE, INDEX, 99, 1 << 70])
        tau = rng.choice([30, 30, 30, 5, -1, 1 << 70])
        request = ScanRequest(tau, sid, **chosen)
        try:
            engine.scan(request)
        except StorageError:
            pass
        except Exception as error:
            raise AssertionError(f"{request}: {error!r}") from error
