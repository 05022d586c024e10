"""Random transactions with relation locks, catalog versions and gates against a model.

The model knows no bookkeeping: it looks at all pairs of commits. Each rule has a mutant that the
same runs must catch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.events import Code, Gate, Outcome, Part, TimerFired
from meridian.adjudicator.gates import Gates
from meridian.adjudicator.relations import Relations
from meridian.wire.reach import ADDITIVE, GLOBAL, RELATIONS, Reach
from tests.adjudicator.driver import MS, Driver, catalog, lock, put, share, txid, whole

Make = Callable[..., Adjudicator]
SIDS = (1000, 1001)
EXCLUDES = {
    frozenset({"lock", "write"}),
    frozenset({"lock", "row"}),
    frozenset({"lock"}),
    frozenset({"lock", "share"}),
    frozenset({"share", "write"}),
}


class Txn:
    def __init__(self, kind: str, sid: int, start: int, catver: int) -> None:
        self.kind = kind
        self.sid = sid
        self.start = start
        self.catver = catver
        self.version = 0
        self.reach = Reach(ADDITIVE)
        self.asked: list[tuple[int, int]] = []
        """(life, to)"""
        self.tau = 0
        self.code: Code | None = None


class World:
    """Lives are owners, one after the other, over one journal."""

    def __init__(self, seed: int, make: Make) -> None:
        self.random = random.Random(seed)
        self.make = make
        self.txns: dict[int, Txn] = {}
        self.lives = [self._driver(None)]
        self.gate_of: int | None = None

    def _driver(self, before: Driver | None) -> Driver:
        if before is None:
            driver = Driver(make=self.make)
        else:
            driver = Driver(before.records[: before.durable], before.now, make=self.make)
        driver.sync()
        driver.now += 1
        return driver

    @property
    def driver(self) -> Driver:
        return self.lives[-1]

    def run(self, steps: int = 120) -> World:
        for _ in range(steps):
            action = self.random.choices(
                (self.ask, self.tick, self.sync, self.gate, self.end_gate, self.restart),
                (10, 5, 4, 2, 1, 0.3),
            )[0]
            action()
        self.finish()
        return self

    def ask(self) -> None:
        rnd, driver = self.random, self.driver
        id_ = len(self.txns) + 1
        kind = rnd.choice(("write", "write", "write", "row", "lock", "share", "ddl"))
        start = driver.now - rnd.choice((0, 0, MS, 5 * MS, 40 * MS))
        known = [t.version for t in self.txns.values() if t.version]
        newest = max(known, default=1)
        txn = Txn(kind, rnd.choice(SIDS), start, max(1, newest - rnd.choice((0, 0, 0, 1))))
        key = f"k{id_}"
        if kind == "ddl":
            txn.version = txn.catver + 1
            sids = tuple(rnd.sample(SIDS, rnd.randint(1, 2)))
            txn.reach = Reach(rnd.choice((ADDITIVE, RELATIONS, RELATIONS, GLOBAL)))
            if txn.reach.kind == RELATIONS:
                txn.reach = Reach(RELATIONS, sids)
            chunk = catalog(txn.version, reach=txn.reach)
        elif kind == "row":
            chunk = rnd.choice((lock, share))(key, sid=txn.sid)
        elif kind == "write":
            chunk = put(key, sid=txn.sid)
        else:
            chunk = whole(sid=txn.sid, share=kind == "share")
        self.txns[id_] = txn
        parts = 0
        if kind in ("write", "lock") and rnd.random() < 0.2:
            parts = 1
            driver.step(Part(txid(id_), start, 0, chunk))
            chunk = put(f"z{id_}", sid=1777)
        to = driver.ask(id_, chunk, start, parts, txn.catver)
        txn.asked.append((len(self.lives) - 1, to))

    def tick(self) -> None:
        driver = self.driver
        driver.now += self.random.choice((MS // 10, MS, 10 * MS, 10 * MS, 700 * MS))
        for name in ("work", "ack", "gate"):
            driver.step(TimerFired(name))

    def sync(self) -> None:
        self.driver.sync()

    def gate(self) -> None:
        self.gate_of = self.random.randint(1, len(self.txns) + 3)
        sids = tuple(self.random.sample(SIDS, self.random.randint(1, 2)))
        self.driver.step(Gate(1, txid(self.gate_of), sids, self.random.randint(1, 3000) * MS))

    def end_gate(self) -> None:
        if self.gate_of is not None:
            self.driver.step(Gate(1, txid(self.gate_of), (), 0))

    def restart(self) -> None:
        self.lives.append(self._driver(self.driver))

    def finish(self) -> None:
        """Everybody is answered, all gates and all time behind us."""
        for _ in range(40):
            self.driver.now += 300 * MS
            for name in ("work", "gate", "ack"):
                self.driver.step(TimerFired(name))
            self.driver.sync()
        for number in range(1, len(self.txns) + 4):
            self.driver.step(Gate(1, txid(number), (), 0))
        self.driver.settle()

    def check(self) -> None:
        for id_, txn in self.txns.items():
            found = [self.lives[life].answers.get(to) for life, to in txn.asked]
            last = found[-1]
            if txn.asked[-1][0] == len(self.lives) - 1:
                assert last is not None, f"{id_} {txn.kind} lost its answer"
            decided = [one for one in found if one is not None]
            for answer in decided:
                if answer.outcome is Outcome.COMMITTED:
                    txn.tau = answer.tau
                txn.code = answer.code
            if not txn.tau:
                # Nobody was told; the journal knows.
                txn.tau = max(0, self.driver.core.outcomes.find(txid(id_), txn.start) or 0)
        done = sorted((t for t in self.txns.values() if t.tau), key=lambda t: t.tau)
        for at, later in enumerate(done):
            for earlier in done[:at]:
                self._pair(earlier, later)

    def _pair(self, earlier: Txn, later: Txn) -> None:
        concurrent = earlier.tau > later.start
        if earlier.kind == "ddl":
            everybody = earlier.reach.kind == GLOBAL
            if later.kind == "ddl":
                assert later.version > earlier.version, "a delta that does not follow the last"
                assert later.catver >= earlier.version, "made on an older catalog"
            elif everybody or later.sid in earlier.reach.sids:
                assert not concurrent, f"{later.kind} slipped past {earlier.reach}"
                assert later.catver >= earlier.version, "stale"
        elif later.kind != "ddl" and earlier.sid == later.sid and concurrent:
            pair = frozenset({earlier.kind, later.kind})
            assert pair not in EXCLUDES, f"{later.kind} beside {earlier.kind}"


def explore(make: Make, seeds: range) -> dict[str, int]:
    counts: dict[str, int] = {}
    for seed in seeds:
        world = World(seed, make).run()
        world.check()
        for txn in world.txns.values():
            name = "commit" if txn.tau else "lost" if txn.code is None else txn.code.name
            counts[name] = counts.get(name, 0) + 1
        counts["held"] = counts.get("held", 0) + world.driver.core.gates.held_count
    return counts


def test_random_transactions() -> None:
    counts = explore(Adjudicator, range(60))
    # The runs reach what they are about.
    assert counts["commit"] > 300, counts
    assert min(counts[name] for name in ("CATALOG", "CONFLICT", "held", "GATED")) > 20, counts


# Mutants


class _Patched(Adjudicator):
    relations_type: type[Relations] = Relations
    gates_type: type[Gates] = Gates

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.relations = self.relations_type(self.relations.catalog_version)
        self.gates = self.gates_type()


def relations(**methods: Any) -> type[Adjudicator]:
    mutant = type("Mutant", (Relations,), methods)
    return type("Patched", (_Patched,), {"relations_type": mutant})


def gates(**methods: Any) -> type[Adjudicator]:
    mutant = type("Mutant", (Gates,), methods)
    return type("Patched", (_Patched,), {"gates_type": mutant})


def _forgets(*names: str) -> Any:
    def record(self: Relations, tau: int, prints: Any, floor: int) -> None:
        Relations.record(self, tau, prints, floor)
        for name in names:
            getattr(self, name).clear()

    return record


def _ignores_reach(self: Relations, tau: int, prints: Any, floor: int) -> None:
    before = dict(self._changed)
    Relations.record(self, tau, prints, floor)
    self._changed = before


def _ignores_global(self: Relations, tau: int, prints: Any, floor: int) -> None:
    before = self._everybody
    Relations.record(self, tau, prints, floor)
    self._everybody = before


def _ignores_order(self: Relations, start: int, catver: int, prints: Any) -> bool:
    version, self.catalog_version = self.catalog_version, 0
    try:
        return Relations.stale(self, start, catver, prints)
    finally:
        self.catalog_version = version


def _forgets_held(self: Gates, now: int) -> Any:
    free, late = Gates.release(self, now)
    return free, late[1:]


def _never_wakes(self: Gates, txid: bytes) -> None:
    self._remove(txid)
    self.held.clear()


MUTANTS = {
    "forgets locks of relations": relations(record=_forgets("_locked")),
    "forgets shares of relations": relations(record=_forgets("_shared")),
    "forgets writes": relations(record=_forgets("_written")),
    "forgets locks of rows": relations(record=_forgets("_row_locked")),
    "ignores the reach": relations(record=_ignores_reach),
    "ignores global versions": relations(record=_ignores_global),
    "ignores the order of versions": relations(stale=_ignores_order),
    "compares nothing": relations(conflict=lambda *_: False),
    "forgets who waited too long": gates(release=_forgets_held),
    "forgets who waits when a gate ends": gates(end=_never_wakes),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name: str) -> None:
    with pytest.raises(AssertionError):
        explore(MUTANTS[name], range(60))
