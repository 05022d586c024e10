"""Randomized interleavings of small and large commits, settling, collection and crashes against a
model that is a dict of versions."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from meridian.storage import Engine, ScanRequest, relations
from meridian.storage.errors import BelowHorizon
from meridian.wire import ops

SID = 2000
decode = msgspec.msgpack.decode

Value = tuple[int, bytes]
Change = dict[bytes, Value | None]


class Large:
    """A large transaction under way in the model."""

    def __init__(self, txid: bytes, tau_start: int) -> None:
        self.txid = txid
        self.tau_start = tau_start
        self.change: Change = {}
        self.fresh = False
        self.chunks = 0


class World:
    """Engine and model side by side."""

    def __init__(self, seed: int, path: Path) -> None:
        self.random = random.Random(seed)
        self.path = path
        self.engine = Engine.create(path, boot_id="boot")
        self.keys = [bytes((i,)) * self.random.randint(1, 3) for i in range(1, 14)]
        self.keys = sorted(set(self.keys))
        self.tau = 1000
        self.n = 0
        self.history: list[tuple[int, Change]] = []
        self.open: list[Large] = []
        self.horizon = 0
        self.commit([ops.Create(SID, ops.KIND_TABLE, [(1, 1), (2, 2)], 0)], {})

    def position(self) -> dict[int, int]:
        self.n += 1
        return {0: self.n}

    def next_tau(self) -> int:
        self.tau += self.random.randint(1, 3)
        return self.tau

    def commit(self, chunk: list[ops.Op], change: Change) -> None:
        tau = self.next_tau()
        self.engine.apply([(tau, chunk)], self.position())
        self.history.append((tau, change))

    def at(self, tau: int) -> dict[bytes, Value]:
        rows: dict[bytes, Value] = {}
        for commit_tau, change in self.history:
            if commit_tau <= tau:
                for key, value in change.items():
                    if value is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = value
        return rows

    def written_since(self, tau: int) -> set[bytes]:
        return {k for t, change in self.history if t > tau for k in change}

    def value(self) -> Value:
        size = self.random.choice([0, 3, 3, 3000])
        return self.random.randint(-5, 5), self.random.randbytes(size)

    def ops_for(self, change: Change, fresh: bool) -> list[ops.Op]:
        puts = {k: v for k, v in sorted(change.items()) if v is not None}
        deletes = sorted(k for k, v in change.items() if v is None)
        chunk: list[ops.Op] = []
        if puts:
            rows = [(a, b if len(b) <= 2048 else "b") for a, b in puts.values()]
            flags = ops.FRESH if fresh else 0
            chunk.append(ops.Put(SID, flags, (1, 2), list(puts), b"", b"", rows))
            big = {k: v[1] for k, v in puts.items() if len(v[1]) > 2048}
            if big:
                chunk.append(ops.Big(SID, 2, list(big), list(big.values())))
        if deletes:
            chunk.append(ops.Delete(SID, 0, deletes, b"", b""))
        self.random.shuffle(chunk)
        return chunk

    # Steps

    def step_small(self) -> None:
        live = self.at(self.tau)
        if self.random.random() < 0.3:
            dead = [k for k in self.keys if k not in live]
            change: Change = {k: self.value() for k in dead[:2]}
            self.commit(self.ops_for(change, fresh=True), change)
            return
        chosen = self.random.sample(self.keys, self.random.randint(1, 3))
        change = {k: self.value() if self.random.random() < 0.7 else None for k in chosen}
        self.commit(self.ops_for(change, fresh=False), change)

    def step_begin(self) -> None:
        if len(self.open) < 3:
            large = Large(self.random.randbytes(16), self.tau)
            large.fresh = self.random.random() < 0.4
            self.open.append(large)

    def step_stage(self) -> None:
        if not self.open:
            return
        large = self.random.choice(self.open)
        live = self.at(large.tau_start)
        keys = [
            k for k in self.keys if k not in large.change and (not large.fresh or k not in live)
        ]
        part: Change = {}
        for key in keys[: self.random.randint(1, 5)]:
            delete = not large.fresh and self.random.random() < 0.3
            part[key] = None if delete else self.value()
        chunk = self.ops_for(part, large.fresh)
        for _ in range(self.random.choice([1, 1, 2])):
            self.engine.stage(large.txid, large.chunks, chunk, self.position())
        large.chunks += 1
        large.change.update(part)

    def step_end(self) -> None:
        if not self.open:
            return
        large = self.open.pop(self.random.randrange(len(self.open)))
        conflict = self.written_since(large.tau_start) & set(large.change)
        if not large.chunks or (large.fresh and conflict) or self.random.random() < 0.25:
            self.engine.discard(large.txid, self.position())
            return
        tau = self.next_tau()
        self.engine.resolve(large.txid, large.chunks, tau, self.position())
        self.history.append((tau, large.change))

    def step_settle(self) -> None:
        self.engine.settle(self.random.randint(1, 4))

    def step_collect(self) -> None:
        if self.random.random() < 0.2:
            self.horizon = max(self.horizon, self.tau - self.random.randint(5, 60))
            self.engine.raise_floor(self.horizon)
        self.engine.collect(self.random.randint(1, 6))

    def step_crash(self) -> None:
        if self.random.random() < 0.15:
            self.engine.abandon()
            self.engine = Engine.open(self.path, boot_id="boot", durable={0: self.n})
            assert self.engine.positions == {0: self.n}
            assert self.engine.applied_tau == self.tau

    def check(self) -> None:
        low = max(self.horizon, self.history[0][0])
        taus = {self.tau, self.tau + 5, low, self.random.randint(low, self.tau + 1)}
        for tau in sorted(t for t in taus if t >= low):
            self.check_at(tau)

    def check_at(self, tau: int) -> None:
        expected = [[k, *v] for k, v in sorted(self.at(tau).items())]
        request = ScanRequest(tau, SID, cols=(1, 2))
        assert decode(self.engine.scan(request)[1]) == expected
        down = ScanRequest(tau, SID, cols=(1, 2), flags=1, hi=self.keys[8], lo=self.keys[2])
        part = [r for r in expected if self.keys[2] <= r[0] < self.keys[8]]
        assert decode(self.engine.scan(down)[1]) == part[::-1]
        assert decode(self.engine.get(tau, SID, (1, 2), self.keys)[1]) == expected
        for key in self.random.sample(self.keys, 2):
            found = decode(self.engine.get(tau, SID, (1, 2), [key])[1])
            assert found == [r for r in expected if r[0] == key]
        if self.random.random() < 0.1:
            job = self.engine.readers.submit(request)
            assert decode(job.future.result(10)[1]) == expected


STEPS = ["small"] * 6 + ["begin"] * 2 + ["stage"] * 5 + ["end"] * 2 + ["settle"] * 3
STEPS += ["collect"] * 3 + ["crash"]


@pytest.mark.parametrize("seed", range(40))
def test_interleavings(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 2:
        monkeypatch.setattr(relations.Relation, "crowded", property(lambda self: True))
    world = World(seed, tmp_path / "shard.db")
    for _ in range(120):
        getattr(world, "step_" + world.random.choice(STEPS))()
        world.check()
    for large in world.open:
        world.engine.discard(large.txid, world.position())
    while world.engine.settle(3):
        world.check()
    world.engine.raise_floor(world.tau)
    world.horizon = world.tau
    while world.engine.collect(3):
        world.check()
    rows = world.at(world.tau)
    assert world.engine.stats([SID])[0].rows == len(rows)
    assert world.engine._relations[SID].dead == world.engine._relations[SID].superseded == 0
    assert world.engine.unresolved() == []
    versions = count(world.engine, f"SELECT count(*) FROM r{SID}")
    assert versions == len(rows), "collection leaves exactly the live versions"
    big = sum(len(v[1]) > 2048 for v in rows.values())
    assert count(world.engine, "SELECT count(*) FROM big") == big
    with pytest.raises(BelowHorizon):
        world.engine.scan(ScanRequest(world.tau - 1, SID))
    world.engine.close()


def count(engine: Engine, sql: str) -> int:
    return engine._db.execute(sql).fetchall()[0][0]
