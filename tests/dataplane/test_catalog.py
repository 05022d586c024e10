"""The history of catalog versions, alone: stale and too new, by reach; bounds."""

from __future__ import annotations

import random

import pytest

from meridian.dataplane import catalog as module
from meridian.dataplane.catalog import Catalog
from meridian.dataplane.counters import Counters
from meridian.errors import Kind, MeridianError
from meridian.limits import S
from meridian.wire.reach import (
    ADDITIVE,
    EVERYBODY,
    GLOBAL,
    RELATIONS,
    Reach,
    decode_reach,
    encode_reach,
)


def history(*made: tuple[int, int, Reach], base: int = 0) -> Catalog:
    catalog = Catalog(Counters())
    catalog.load(base, [(version, tau) for version, tau, _ in made])
    for version, _, reach in made:
        catalog._learn(version, reach)
    catalog.check()
    return catalog


def refused(catalog: Catalog, catver: int, tau: int, *sids: int) -> str:
    """ "" if it passes, else the detail."""
    try:
        catalog.compare(catver, tau, sids)
    except MeridianError as error:
        assert error.kind is Kind.SCHEMA_CHANGED
        return error.detail
    return ""


SAMPLE = (
    (5, 500, Reach(ADDITIVE)),
    (6, 600, Reach(RELATIONS, (1000, 1001))),
    (7, 700, EVERYBODY),
    (8, 800, Reach(RELATIONS, (1000,))),
)


def test_stale_whatever_the_reach() -> None:
    catalog = history(*SAMPLE, base=4)
    assert refused(catalog, 4, 499, 9) == ""
    assert refused(catalog, 4, 500, 9) == "catalog 5 500"
    assert refused(catalog, 7, 900, 9) == "catalog 8 900"
    assert refused(catalog, 8, 900, 1000) == ""
    assert catalog.counters.catalog_stale == 2 and catalog.counters.catalog_too_new == 0


def test_too_new_by_reach() -> None:
    catalog = history(*SAMPLE, base=4)
    assert refused(catalog, 5, 450, 1000) == "", "additive"
    assert refused(catalog, 6, 550, 1000) == "catalog 5 550"
    assert refused(catalog, 6, 550, 1002, 1001) == "catalog 5 550", "any of the relations read"
    assert refused(catalog, 6, 550, 1002) == ""
    assert refused(catalog, 7, 650, 1002) == "catalog 6 650", "global"
    assert refused(catalog, 8, 750, 1001) == "", "what came before is in force"
    assert refused(catalog, 8, 750, 1000) != ""
    assert catalog.counters.catalog_too_new == 4


def test_a_version_that_nobody_made_is_refused() -> None:
    catalog = history(*SAMPLE, base=4)
    assert refused(catalog, 9, 900, 1000) == "catalog 8 900"


def test_zero_is_not_compared() -> None:
    assert refused(history(*SAMPLE), 0, 1, 1000) == ""


def test_unread_reach_counts_as_global() -> None:
    catalog = Catalog(Counters())
    catalog.load(0, [(1, 100)])
    assert refused(catalog, 1, 50, 77) == "catalog 0 50"


def test_names_versions_after(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = history(*SAMPLE, base=4)
    assert catalog.after(0, 10) == [4, 5, 6, 7, 8]
    assert catalog.after(4, 10) == [5, 6, 7, 8]
    assert catalog.after(6, 1) == [7]
    assert catalog.after(8, 10) == []
    assert catalog.made_at(700) == 7 and catalog.made_at(701) == 0 and catalog.made_at(900) == 0


def test_older_than_the_window_only_counts_as_in_force() -> None:
    catalog = history(*SAMPLE, base=4)
    catalog.add(9, 700 + 310 * S)
    assert len(catalog) == 3 and catalog.after(0, 10) == [6, 7, 8, 9]
    assert refused(catalog, 5, 800 + S, 1) == f"catalog 8 {800 + S}"
    catalog.check()


def test_a_new_owner_adds_what_is_newer() -> None:
    """The journal may have been trimmed meanwhile, behind what is remembered."""
    catalog = history(*SAMPLE, base=4)
    catalog.load(6, [(7, 700), (8, 800), (9, 900)])
    assert catalog.after(3, 10) == [4, 5, 6, 7, 8, 9]
    assert refused(catalog, 4, 450, 1) == "" and refused(catalog, 8, 900, 1) == "catalog 9 900"
    catalog.check()


def test_records_of_several_journals_come_in_any_order() -> None:
    rnd = random.Random(3)
    for _ in range(20):
        catalog = Catalog(Counters())
        catalog.load(4, [])
        for version, tau, reach in rnd.sample(SAMPLE, len(SAMPLE)):
            catalog.add(version, tau)
            catalog.add(version, tau)
            catalog._learn(version, reach)
            catalog.check()
        assert (catalog.version, catalog.tau, catalog.after(4, 9)) == (8, 800, [5, 6, 7, 8])
        assert refused(catalog, 4, 500, 1) == "catalog 5 500"
        assert refused(catalog, 6, 550, 1002) == ""
    catalog.add(9, 750)
    assert catalog.version == 8, "no adjudicator lets it pass"


def test_count_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CATALOG_HISTORY", 10)
    catalog = Catalog(Counters())
    for version in range(1, 100):
        catalog.add(version, version * 10)
        catalog._learn(version, Reach(RELATIONS, (1000 + version % 3,)))
        catalog.check()
    assert len(catalog) == 10 and len(catalog._by_sid) == 3 and not catalog._global


def test_against_the_rule_word_by_word() -> None:
    """Random histories; the rule of docs/rfcs, point 2, without any index."""
    rnd = random.Random(7)
    kinds = [Reach(ADDITIVE), EVERYBODY, Reach(RELATIONS, (1,)), Reach(RELATIONS, (1, 2))]
    for _ in range(200):
        made = [(v, v * 10, rnd.choice(kinds)) for v in range(3, 3 + rnd.randint(0, 8))]
        catalog = history(*made, base=2)
        for _ in range(50):
            catver, tau, sid = rnd.randint(1, 10), rnd.randint(0, 120), rnd.randint(1, 3)
            stale = catver < 2 or any(v > catver and t <= tau for v, t, _ in made)
            new = catver > catalog.version or any(
                v <= catver and t > tau and (reach.kind == GLOBAL or sid in reach.sids)
                for v, t, reach in made
            )
            assert bool(refused(catalog, catver, tau, sid)) == (stale or new)


def test_fast_path_agrees() -> None:
    catalog = history(*SAMPLE, base=4)
    for tau in range(400, 1000, 10):
        for catver in range(1, 10):
            if catver == catalog.version and tau >= catalog.tau:
                assert refused(catalog, catver, tau, 1000) == ""


def test_reach_on_the_wire() -> None:
    for reach in (Reach(ADDITIVE), EVERYBODY, Reach(RELATIONS, (1000, 1001))):
        assert decode_reach(encode_reach(reach)) == reach
    assert decode_reach(None) == EVERYBODY
    for bad in (b"", b"\x93", b"\x92\x09\x90", "b", 5):
        with pytest.raises(ValueError):
            decode_reach(bad)
