"""Index builds in a small world: a real adjudicator, rows and entries in dicts, any interleaving.

Each rule has a mutant that leaves it out; the checker must catch every one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from meridian.adjudicator.events import Outcome
from meridian.wire import ops
from tests.adjudicator.driver import Driver, hashes

TABLE, INDEX = 1000, 2000
KEYS = [f"k{n}" for n in range(5)]
VALUES = ["u", "v", "w"]
RULES = ["check", "write again", "own entries only", "duplicates", "entry conflicts"]

Rows = dict[str, str]
Entries = dict[str, str]
"""Entry key -> row key."""


@dataclass
class Txn:
    """What one transaction read, and will ship: entry None means its end."""

    number: int
    tau: int
    rows: dict[str, str | None] = field(default_factory=dict)
    entries: dict[str, str | None] = field(default_factory=dict)
    locks: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    last: str = ""
    failed: bool = False


class World:
    """Versions by tau; `broken` is the rule that nobody follows."""

    def __init__(self, rng: random.Random, unique: bool, broken: str) -> None:
        self.rng = rng
        self.unique = unique
        self.broken = broken
        self.driver = Driver()
        self.driver.sync()
        self.history: list[tuple[int, Rows, Entries]] = []
        rows = {key: rng.choice(VALUES) for key in KEYS if rng.random() < 0.7}
        self.history.append((0, rows, {}))
        self.number = 0
        self.position = ""
        self.state = "building"

    # ---------- storage ----------

    def as_of(self, tau: int) -> tuple[Rows, Entries]:
        found = max((h for h in self.history if h[0] <= tau), key=lambda h: h[0])
        return found[1], found[2]

    def begin(self) -> Txn:
        self.number += 1
        self.driver.now += 2000
        return Txn(self.number, self.driver.now)

    def commit(self, txn: Txn) -> bool:
        chunk = self._chunk(txn)
        answer = self.driver.commit(txn.number, chunk, txn.tau)
        if answer.outcome is not Outcome.COMMITTED:
            return False
        _, rows, entries = self.history[-1]
        self.history.append((answer.tau, _applied(rows, txn.rows), _applied(entries, txn.entries)))
        self.driver.now = max(self.driver.now, answer.tau) + 1000
        return True

    def _chunk(self, txn: Txn) -> bytes:
        out: list[ops.Op] = []
        conflicting = self.unique and self.broken != "entry conflicts"
        for sid, keys, checked in (
            (TABLE, sorted(txn.rows), True),
            (INDEX, sorted(txn.entries), conflicting),
        ):
            if keys:
                encoded = [key.encode() for key in keys]
                w = hashes(*keys, sid=sid) if checked else b""
                out.append(ops.Put(sid, 0, (1,), encoded, w, b"", [(1,)] * len(keys)))
        if txn.locks:
            keys = sorted(set(txn.locks))
            out.append(ops.Lock(INDEX, [k.encode() for k in keys], hashes(*keys, sid=INDEX), b""))
        if txn.checks and self.broken != "check":
            keys = sorted(txn.checks)
            out.append(ops.Check(TABLE, [k.encode() for k in keys], hashes(*keys, sid=TABLE)))
        return ops.encode_chunk(out)

    def entry(self, key: str, value: str) -> str:
        return value if self.unique else f"{value}/{key}"

    # ---------- a writer (indexmaint.c) ----------

    def write(self) -> Txn | None:
        txn = self.begin()
        rows, entries = self.as_of(txn.tau)
        key = self.rng.choice(KEYS)
        old = rows.get(key)
        new = self.rng.choice([*VALUES, old, None])
        if old is None and new is None:
            return None
        txn.rows[key] = new
        if old is not None and old != new:
            self._remove(txn, entries, key, old)
        if new is not None and old != new:
            owner = entries.get(self.entry(key, new))
            if self.unique and owner is not None:
                return None
            txn.entries[self.entry(key, new)] = key
        if new is not None and old == new and self.broken != "write again":
            name = self.entry(key, new)
            if entries.get(name) in (None, key):
                txn.entries[name] = key
            else:
                txn.locks.append(name)
        return txn

    def _remove(self, txn: Txn, entries: Entries, key: str, value: str) -> None:
        name = self.entry(key, value)
        if entries.get(name) in (None, key) or self.broken == "own entries only":
            txn.entries[name] = None
        else:
            txn.locks.append(name)

    # ---------- the job (jobs_build.c) ----------

    def read_batch(self) -> Txn:
        txn = self.begin()
        rows, entries = self.as_of(txn.tau)
        keys = [key for key in sorted(rows) if key > self.position][: self.rng.randint(1, 3)]
        for key in keys:
            name = self.entry(key, rows[key])
            owner = entries.get(name, txn.entries.get(name))
            if owner is None:
                txn.entries[name] = key
                txn.checks.append(key)
            elif owner != key and self.broken != "duplicates":
                txn.failed = True
        txn.last = keys[-1] if keys else "end"
        return txn

    def end_batch(self, txn: Txn) -> None:
        if txn.failed:
            self.state = "failed"
        elif not (txn.entries or txn.checks) or self.commit(txn):
            self.position = txn.last
            if txn.last == "end":
                self.state = "valid"

    # ---------- checks ----------

    def wrong(self) -> bool:
        """A valid index that is not the table."""
        rows, entries = self.history[-1][1:]
        wanted = {self.entry(key, value): key for key, value in rows.items()}
        return self.state == "valid" and (entries != wanted or len(wanted) != len(rows))


def _applied(old: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
    merged = {**old, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def run(seed: int, unique: bool, broken: str = "") -> bool:
    """Whether the build of this seed went wrong."""
    rng = random.Random(seed)
    world = World(rng, unique, broken)
    writers: list[Txn] = []
    batch: Txn | None = None
    for _ in range(120):
        kind = rng.randrange(4)
        if kind == 0 and len(writers) < 3:
            writer = world.write()
            if writer is not None:
                writers.append(writer)
        elif kind == 1 and writers:
            world.commit(writers.pop(rng.randrange(len(writers))))
        elif kind == 2 and batch is None and world.state == "building":
            batch = world.read_batch()
        elif kind == 3 and batch is not None:
            world.end_batch(batch)
            batch = None
        if world.wrong():
            return True
    return False


@pytest.mark.parametrize("unique", [False, True])
def test_a_valid_index_is_the_table(unique: bool) -> None:
    assert not [seed for seed in range(600) if run(seed, unique)]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "write again"])
def test_without_a_rule_entries_are_lost_or_doubled(rule: str) -> None:
    assert any(run(seed, unique, rule) for seed in range(2000) for unique in (True, False))


@pytest.mark.parametrize("rule", ["", "write again"])
def test_a_row_that_is_always_written_is_passed_only_by_its_writers_entry(rule: str) -> None:
    """Each batch of one row loses against a writer of that row, unless it has an entry."""
    world = World(random.Random(1), False, rule)
    world.history[0] = (0, {"k0": "u"}, {})
    for _ in range(20):
        batch = world.read_batch()
        writer = world.begin()
        writer.rows["k0"] = "u"
        if rule != "write again":
            writer.entries["u/k0"] = "k0"
        assert world.commit(writer)
        world.end_batch(batch)
    assert (world.state == "valid") == (rule != "write again")
