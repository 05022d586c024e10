"""The storage core over the real engine: two journals, crashes anywhere, every read checked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meridian.clock.tau import Interval
from meridian.limits import GC_HORIZON_NS, S
from meridian.storage import Engine, ScanRequest, core
from meridian.storage.core import (
    CancelRead,
    Chunk,
    Committed,
    Core,
    Delivered,
    Dropped,
    Performed,
    Read,
    TimerFired,
)
from meridian.storage.shell import perform
from meridian.wire import ops

decode = msgspec.msgpack.decode
SID = 2000


def put(keys: list[bytes], value: int, fresh: bool = False) -> bytes:
    rows = [(value,)] * len(keys)
    flags = ops.FRESH if fresh else 0
    return ops.encode_chunk([ops.Put(SID, flags, (1,), keys, b"", b"", rows)])


class Feed:
    """What two journals hold, merged as a crossbar would: chunks early, commits by tau."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.n = [0, 0]
        self.tau = 1000
        self.open: dict[bytes, tuple[int, list[tuple[int, list[bytes], int]]]] = {}
        self.log: list[tuple[int, int, Any]] = []
        """(journal, n, item) in the order of delivery, with markers (None) between."""
        self.rows: list[tuple[int, dict[bytes, int]]] = []
        chunk = ops.encode_chunk([ops.Create(SID, 0, [(1, 1)], 0)])
        self.commit(0, chunk, {}, 0, bytes(16))

    def commit(
        self, journal: int, chunk: bytes, rows: dict[bytes, int], bodies: int, txid: bytes
    ) -> None:
        self.tau += self.rng.randint(1, 4)
        self.n[journal] += 1
        n = self.n[journal]
        self.log.append((journal, n, Committed(self.tau, journal, n, txid, bodies, chunk)))
        self.rows.append((self.tau, rows))

    def grow(self) -> None:
        rng = self.rng
        journal = rng.randrange(2)
        keys = sorted({bytes((rng.randrange(8),)) for _ in range(rng.randint(1, 3))})
        kind = rng.random()
        value = rng.randrange(1000)
        if kind < 0.5:
            self.commit(journal, put(keys, value), dict.fromkeys(keys, value), 0, bytes(16))
        elif kind < 0.8:
            if len(self.open) < 3 and rng.random() < 0.5:
                self.open[rng.randbytes(16)] = (journal, [])
            if self.open:
                txid = rng.choice(sorted(self.open))
                owner, parts = self.open[txid]
                self.n[owner] += 1
                item = Chunk(txid, owner, self.n[owner], len(parts), put(keys, value))
                parts.append((self.n[owner], keys, value))
                self.log.append((owner, self.n[owner], item))
        elif self.open:
            txid = rng.choice(sorted(self.open))
            owner, parts = self.open.pop(txid)
            rows = {key: part[2] for part in parts for key in part[1]}
            if parts and rng.random() < 0.7:
                last = {bytes((9,)): value}
                self.commit(owner, put(list(last), value), rows | last, len(parts), txid)
            else:
                self.n[owner] += 1
                item = Dropped(txid, owner, self.n[owner])
                self.log.append((owner, self.n[owner], item))

    def at(self, tau: int) -> list[list[Any]]:
        rows: dict[bytes, int] = {}
        for commit_tau, change in self.rows:
            if commit_tau <= tau:
                rows.update(change)
        return [[key, value] for key, value in sorted(rows.items())]


class Replica:
    """Core and engine; may crash between any two steps."""

    def __init__(self, feed: Feed, path: Path, rng: random.Random) -> None:
        self.feed = feed
        self.path = path
        self.rng = rng
        self.engine = Engine.create(path, boot_id="boot")
        self.now = 0
        self.tokens = 0
        self.reads: dict[int, int] = {}
        self.start()

    def start(self) -> None:
        engine = self.engine
        self.core = Core(engine.applied_tau, engine.horizon, engine.positions)
        self.work: core.Work | None = None
        self.reads.clear()
        held = engine.positions
        # Everything after the positions is read again; the merge skips nothing else.
        self.pending = [e for e in self.feed.log if e[1] > held.get(e[0], 0)]
        open_chunks = {item.txid for _, _, item in self.pending if isinstance(item, Chunk)}
        for txid in engine.unresolved():
            known = (
                open_chunks
                | set(self.feed.open)
                | {item.txid for _, _, item in self.pending if not isinstance(item, Chunk)}
            )
            assert txid in known, "staged rows whose outcome was lost"
        self.seen = len(self.feed.log)

    def crash(self) -> None:
        self.engine.abandon()
        self.engine = Engine.open(self.path, boot_id="boot", durable=None)
        self.start()

    def step(self, event: core.Event) -> None:
        for effect in self.core.step(Interval(self.now, self.now + 2), event):
            match effect:
                case core.Apply() | core.Stage() | core.Resolve() | core.Discard():
                    assert self.work is None
                    self.work = effect
                case core.Serve():
                    tau = self.reads.pop(effect.token)
                    assert tau <= self.now and tau <= self.core.complete_tau
                    got = decode(self.engine.scan(ScanRequest(tau, SID, cols=(1,)))[1])
                    assert got == self.feed.at(tau)
                case core.Refuse():
                    del self.reads[effect.token]
        self.core.check()

    def deliver(self) -> None:
        """A delivery: some items, and the marker that is true after them."""
        self.pending += self.feed.log[self.seen :]
        self.seen = len(self.feed.log)
        count = self.rng.randint(0, 4)
        items, self.pending = self.pending[:count], self.pending[count:]
        waiting = {}
        for journal, n, _ in self.pending:
            waiting.setdefault(journal, n)
        positions = tuple((j, waiting.get(j, self.feed.n[j] + 1) - 1) for j in range(2))
        commits = [item for _, _, item in self.pending if isinstance(item, Committed)]
        newer = [item.tau for item in commits if item.tau > self.core.applied_tau]
        tau = max(min(newer, default=self.feed.tau + 1) - 1, self.delivered_tau(items))
        self.step(Delivered(tuple(item for _, _, item in items), tau, positions))

    def delivered_tau(self, items: list[Any]) -> int:
        return max([0, *(i.tau for _, _, i in items if isinstance(i, Committed))])

    def run(self) -> None:
        rng = self.rng
        choice = rng.random()
        if choice < 0.35:
            self.feed.grow()
        elif choice < 0.55:
            self.deliver()
        elif choice < 0.8:
            if self.work is not None:
                perform(self.engine, self.work)
                if rng.random() < 0.03:
                    self.crash()
                    return
                self.work = None
                self.step(Performed())
        elif choice < 0.9:
            self.tokens += 1
            tau = self.feed.tau + rng.randint(-5, 3)
            if tau > self.feed.rows[0][0]:
                self.reads[self.tokens] = tau
                self.step(Read(self.tokens, tau, self.now + rng.randint(0, 60)))
        elif choice < 0.93:
            if self.reads:
                token = rng.choice(sorted(self.reads))
                del self.reads[token]
                self.step(CancelRead(token))
        elif choice < 0.94:
            self.crash()
        elif choice < 0.97:
            self.engine.settle(2)
        else:
            self.now = max(self.now, self.feed.tau + rng.randint(-6, 6))
            self.step(TimerFired())

    def finish(self) -> None:
        """Everything delivered: the replica is complete and every read is answered."""
        self.now = self.feed.tau + 1000
        self.step(TimerFired())
        for _ in range(10_000):
            if self.work is not None:
                perform(self.engine, self.work)
                self.work = None
                self.step(Performed())
            elif self.pending or self.seen < len(self.feed.log):
                self.deliver()
            else:
                break
        self.deliver()
        assert self.core.idle and self.core.backlog_bytes == 0
        assert not self.reads
        got = decode(self.engine.scan(ScanRequest(self.feed.tau, SID, cols=(1,)))[1])
        assert got == self.feed.at(self.feed.tau)
        assert set(self.engine.unresolved()) <= set(self.feed.open)


@pytest.mark.parametrize("seed", range(40))
def test_everything_is_applied_once(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    replica = Replica(Feed(rng), tmp_path / "shard.db", rng)
    for _ in range(400):
        replica.run()
    replica.finish()
    replica.engine.abandon()


def at(now: int) -> Interval:
    return Interval(now, now)


def test_reads_wait_for_completeness_and_for_the_clock() -> None:
    replica = Core(100, 0, {})
    assert replica.step(at(100), Read(1, 100, 900)) == [core.Serve(1)]
    assert replica.step(at(100), Read(2, 150, 900)) == [core.Want(150), core.SetTimer(900)]
    assert replica.step(at(100), Read(3, 140, 900)) == []
    assert replica.step(at(120), Delivered((), 160, ((0, 1),))) == [core.SetTimer(140)]
    assert replica.step(at(140), TimerFired()) == [core.Serve(3), core.SetTimer(150)]
    assert replica.step(at(151), TimerFired()) == [core.Serve(2)]


def test_reads_expire_and_are_refused() -> None:
    replica = Core(100, 50, {})
    assert replica.step(at(200), Read(1, 49, 900)) == [core.Refuse(1, core.TOO_OLD)]
    assert core.Want(500) in replica.step(at(200), Read(2, 500, 300))
    assert replica.step(at(299), TimerFired()) == [core.SetTimer(300)]
    assert replica.step(at(300), TimerFired()) == [core.Refuse(2, core.TOO_LATE)]
    assert replica.step(at(900), Delivered((), 600, ())) == []


def test_waiting_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "READS_WAITING_MAX", 2)
    replica = Core(100, 0, {})
    for token in (1, 2):
        assert core.Refuse(token, core.TOO_MANY) not in replica.step(at(1), Read(token, 200, 900))
    assert replica.step(at(1), Read(3, 200, 900)) == [core.Refuse(3, core.TOO_MANY)]
    replica.step(at(1), CancelRead(1))
    assert core.Refuse(4, core.TOO_MANY) not in replica.step(at(1), Read(4, 200, 900))


def test_a_large_commit_does_not_hold_up_small_ones() -> None:
    replica = Core(0, 0, {})
    chunks = tuple(Chunk(b"t" * 16, 0, n, n - 1, b"c") for n in (1, 2, 3))
    effects = replica.step(at(0), Delivered(chunks, 5, ((0, 3),)))
    assert effects == [core.Stage(b"t" * 16, 0, b"c", ((0, 1),))]
    small = Committed(10, 0, 4, bytes(16), 0, b"s")
    assert replica.step(at(0), Delivered((small,), 12, ((0, 4),))) == []
    effects = replica.step(at(0), Performed())
    assert effects[1:] == [core.Apply(((10, b"s"),), ((0, 1),))]
    replica.step(at(0), Performed())
    assert replica.complete_tau == 12


def test_the_floor_follows_the_clock_but_not_on_an_idle_system() -> None:
    now = 10_000 * S
    replica = Core(now - 2 * GC_HORIZON_NS, now - 3 * GC_HORIZON_NS, {})
    assert replica.step(at(now), TimerFired()) == [core.RaiseFloor(now - 2 * GC_HORIZON_NS)]
    assert replica.step(at(2 * now), Delivered((), 2 * now, ())) == []
