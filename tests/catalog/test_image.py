"""Merging deltas: the image has the effect of all its parts, whatever the order of events."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meridian.catalog.catalogs import CATALOGS, FIRST_USER_OID
from meridian.catalog.image import MergeError, merge, pack, unpack

NAMESPACE, DEPEND, SETTING = 2615, 2608, 2964
HEAD = (1, 202507011, 7, 5)
encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode

# A small world: one catalog with a key, one without, one with two OIDs in its key.
WIDTHS = {NAMESPACE: 2, DEPEND: 5, SETTING: 3}
KEYS = {NAMESPACE: (0,), SETTING: (0, 1), DEPEND: ()}
OIDS = st.sampled_from([5, 2200, FIRST_USER_OID, 20000])
ROWS = {
    NAMESPACE: st.tuples(OIDS, st.binary(max_size=1)),
    DEPEND: st.tuples(st.just(1259), OIDS, st.just(0), st.just(2615), st.sampled_from([5, 20000])),
    SETTING: st.tuples(OIDS, OIDS, st.binary(max_size=1)),
}
Catalogs = dict[int, Counter[tuple[Any, ...]]]


def key(catalog: int, row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(row[at] for at in KEYS[catalog]) or row


def is_of_template(catalog: int, row: tuple[Any, ...]) -> bool:
    oids = {NAMESPACE: row[:1], DEPEND: row[:2] + row[3:], SETTING: row[:2]}[catalog]
    return all(oid < FIRST_USER_OID for oid in oids)


def apply(catalogs: Catalogs, delta: bytes) -> None:
    """As pgext/src/catapply.c does it: first what goes, then what comes."""
    for catalog, _, rows, gone in decode(delta)[4]:
        here = catalogs[catalog]
        for row in map(tuple, gone):
            for found in [one for one in here if key(catalog, one) == key(catalog, row)][:1]:
                here[found] -= 1
        for row in map(tuple, rows):
            if KEYS[catalog]:
                for found in [one for one in here if key(catalog, one) == key(catalog, row)]:
                    del here[found]
            here[row] += 1
        catalogs[catalog] = +here


@st.composite
def histories(draw: st.DrawFn) -> tuple[Catalogs, list[bytes]]:
    """A template, and the deltas of transactions that each saw the ones before."""
    template: Catalogs = {}
    for catalog, rows in ROWS.items():
        made = [row for row in draw(st.lists(rows, max_size=4)) if is_of_template(catalog, row)]
        if KEYS[catalog]:
            made = list({key(catalog, row): row for row in made}.values())
        template[catalog] = Counter(made)
    now = {catalog: counter.copy() for catalog, counter in template.items()}
    deltas = []
    for _ in range(draw(st.integers(1, 6))):
        parts = []
        for catalog, rows in ROWS.items():
            there = sorted(now[catalog].elements())
            gone = draw(st.lists(st.sampled_from(there), max_size=2, unique=True)) if there else []
            born = draw(st.lists(rows, max_size=3))
            if KEYS[catalog]:
                born = list({key(catalog, row): row for row in born}.values())
                keys = {key(catalog, row) for row in born}
                gone = [row for row in gone if key(catalog, row) not in keys]
            if born or gone:
                parts.append([catalog, WIDTHS[catalog], born, gone])
        deltas.append(encode([*HEAD, parts]))
        apply(now, deltas[-1])
    return template, deltas


@settings(max_examples=400, deadline=None)
@given(histories(), st.integers(0, 6))
def test_an_image_has_the_effect_of_its_deltas(
    history: tuple[Catalogs, list[bytes]], cut: int
) -> None:
    template, deltas = history
    wanted = {catalog: counter.copy() for catalog, counter in template.items()}
    for delta in deltas:
        apply(wanted, delta)
    images = [merge(deltas)]
    if 0 < cut < len(deltas):
        images.append(merge([merge(deltas[:cut]), *deltas[cut:]]))
    for image in images:
        got = {catalog: counter.copy() for catalog, counter in template.items()}
        apply(got, unpack(pack(image)))
        assert got == wanted


@settings(max_examples=200, deadline=None)
@given(histories())
def test_an_image_does_not_grow_with_what_is_gone(history: tuple[Catalogs, list[bytes]]) -> None:
    """What it deletes is of the template, once each; users' objects that went leave no trace."""
    template, deltas = history
    for catalog, _, _, gone in decode(merge(deltas))[4]:
        rows = [tuple(row) for row in gone]
        assert all(is_of_template(catalog, row) for row in rows)
        keys = [key(catalog, row) for row in rows]
        if KEYS[catalog]:
            assert len(keys) == len(set(keys))
        else:
            assert not Counter(rows) - template[catalog]


def test_what_does_not_fit_is_refused() -> None:
    one = encode([*HEAD, [[NAMESPACE, 2, [[20000, b"a"]], []]]])
    for other, why in [
        (encode([1, HEAD[1] + 1, 7, 5, []]), "another version of PostgreSQL"),
        (encode([1, HEAD[1], 8, 5, []]), "another version of PostgreSQL"),
        (encode([2, *HEAD[1:], []]), "unknown format 2"),
        (encode([*HEAD, [[1, 2, [], []]]]), "catalog 1 is unknown"),
        (encode([*HEAD, [[NAMESPACE, 3, [], []]]]), "another shape"),
        (encode([*HEAD, [[NAMESPACE, 2, [[1]], []]]]), "another width"),
        (b"\xc1", "not a catalog delta"),
    ]:
        with pytest.raises(MergeError, match=why):
            merge([one, other])
    with pytest.raises(MergeError, match="no delta"):
        merge([])
    with pytest.raises(MergeError, match="unknown format"):
        unpack(b"\x02" + pack(one)[1:])
    with pytest.raises(MergeError, match="damaged"):
        unpack(pack(one)[:-1])


def test_the_table_has_each_catalog_once() -> None:
    assert len({catalog.id for catalog in CATALOGS}) == len(CATALOGS) > 50
