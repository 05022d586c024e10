"""Commits that came together are decided as if they had come one by one."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from meridian.adjudicator import together
from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.events import (
    Append,
    AppendAll,
    Appended,
    Commit,
    Effect,
    Gate,
    Replayed,
    Status,
    TimerFired,
)
from meridian.adjudicator.ledger import ACK_TIMER, IN_FLIGHT
from meridian.clock.tau import Interval
from meridian.journal.core import Position
from meridian.wire.ops import (
    CLASS_INTEGER,
    KIND_TABLE,
    Add,
    Create,
    Delete,
    Lock,
    Op,
    Put,
    Share,
    encode_chunk,
)

MS = 1_000_000
START = 1_700_000_000_000_000_000
SEEDS = 30


def hashes(numbers: Iterable[int]) -> bytes:
    return b"".join((n * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "little") for n in numbers)


class Pair:
    """The same events for two cores: `many` gets commits together, `single` one by one."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.many, self.single = Adjudicator(3), Adjudicator(3)
        self.keys = self.r.choice((30, 1_000, 100_000, 100_000))
        self.odd = self.r.choice((0.0, 0.003, 0.01, 0.2))
        self.now = START
        self.to = 0
        self.asked: list[Commit] = []
        self.decided_together = 0
        self.both(Replayed(Position(), (1, 1)))
        self.both(Appended(self.single.ledger.n))

    @property
    def instant(self) -> Interval:
        return Interval(self.now, self.now + 1_000)

    def both(self, event: object) -> None:
        """One event; both must do the same."""
        one = self.many.step(self.instant, event)  # type: ignore[arg-type]
        assert one == self.single.step(self.instant, event)  # type: ignore[arg-type]

    def commits(self, events: list[Commit]) -> None:
        one = self.many.commits(self.instant, events)
        self.decided_together += any(isinstance(effect, AppendAll) for effect in one)
        other = [effect for event in events for effect in self.single.step(self.instant, event)]
        assert flat(one) == flat(other)
        self.many.check()
        assert self.many.outcomes.floor == self.single.outcomes.floor
        assert len(self.many.window) == len(self.single.window)
        assert self.many.relations._written == self.single.relations._written

    def commit(self) -> Commit:
        r = self.r
        if self.asked and r.random() < self.odd:
            # Sent again, or the id of another transaction.
            return self.asked[-r.randint(1, min(len(self.asked), 200))]
        numbers = r.sample(range(self.keys), r.randint(1, 4))
        half = r.randint(0, len(numbers))
        ops: list[Op] = []
        for part, sid in ((numbers[:half], 1000), (numbers[half:], r.choice((1000, 1001)))):
            if part:
                ops.append(self.op(sid, part))
        chunk = encode_chunk(ops)
        if r.random() < self.odd:
            chunk = r.choice((b"", b"\xc1", chunk[:-1]))
        self.to += 1
        tau_start = self.now - r.choice((0, 0, MS, 50 * MS))
        if r.random() < self.odd:
            tau_start = self.now + r.choice((2, 2_000 * MS, -400_000 * MS))
        parts = int(r.random() < self.odd / 4)
        catver = r.choice((0, 0, 1, 2))
        event = Commit(self.to, r.randbytes(16), tau_start, catver, 0, parts, chunk)
        self.asked.append(event)
        if r.random() < self.odd:
            # Asked for before it came: it never commits.
            self.both(Status(0, event.txid, event.tau_start))
        return event

    def op(self, sid: int, numbers: list[int]) -> Op:
        r, keys = self.r, [b"k"] * len(numbers)
        identity = hashes(numbers) if r.random() < self.odd else b""
        if r.random() < self.odd:
            return r.choice(
                (
                    Share(sid, keys, hashes(numbers), b""),
                    Lock(sid, keys, hashes(numbers), b""),
                    Lock(sid, [b""], hashes([sid]), b""),
                    Create(r.randint(2000, 9000), KIND_TABLE, [(1, CLASS_INTEGER)], 0),
                    Add(sid, 5, CLASS_INTEGER, None),
                )
            )
        if r.random() < 0.2:
            return Delete(sid, 0, keys, hashes(numbers), identity)
        return Put(sid, 0, (1,), keys, hashes(numbers), identity, [(n,) for n in numbers])

    def durable(self) -> None:
        """Some of what waits, also in the middle of what came together."""
        ledger = self.single.ledger
        if ledger.n > ledger.n_durable:
            self.both(Appended(self.r.randint(ledger.n_durable + 1, ledger.n)))

    def turn(self) -> None:
        r = self.r
        self.now += r.choice((1_000, MS, 5 * MS))
        self.commits([self.commit() for _ in range(r.choice((1, 7, 8, 40, 64)))])
        while r.random() < 0.6:
            self.durable()
            self.both(TimerFired(ACK_TIMER))
        if r.random() < self.odd:
            self.both(Gate(1, r.randbytes(16), (1001,), r.choice((0, MS))))
        if r.random() < self.odd:
            for core in (self.many, self.single):
                core.window.forget_before(self.now - MS)
        if self.asked and r.random() < 0.1:
            event = r.choice(self.asked)
            self.both(Status(0, event.txid, event.tau_start))


def flat(effects: list[Effect]) -> list[object]:
    """The records, and what else is to be done."""
    records: list[object] = []
    for effect in effects:
        if isinstance(effect, AppendAll):
            records += effect.records
        else:
            records.append(effect.record if isinstance(effect, Append) else effect)
    return records


@pytest.mark.parametrize("seed", range(SEEDS))
def test_as_one_by_one(seed: int) -> None:
    pair = Pair(seed)
    for _ in range(40):
        pair.turn()
    if pair.keys == 100_000 and not pair.odd:
        assert pair.decided_together > 20
    while pair.single.ledger.under_way:
        pair.now += 100 * MS
        pair.both(Appended(pair.single.ledger.n))
        pair.both(TimerFired(ACK_TIMER))
    assert not pair.many.ledger.under_way


def test_a_core_that_has_ended_decides_nothing() -> None:
    pair = Pair(1)
    pair.many._fail("the disk is gone")
    assert pair.many.commits(pair.instant, [pair.commit() for _ in range(64)]) == []


def test_many_keys_are_left_to_the_other_way() -> None:
    pair = Pair(2)
    pair.keys, pair.odd = 100_000, 0.0
    wide = [
        Commit(
            n,
            n.to_bytes(16, "big"),
            pair.now,
            0,
            0,
            0,
            encode_chunk(
                [Put(1000, 0, (), [b"k"] * 600, hashes(range(n * 600, n * 600 + 600)), b"", [])]
            ),
        )
        for n in range(1, 17)
    ]
    assert together.KEYS < 16 * 600
    pair.commits(wide)
    assert pair.many.commits_count == 16


def test_no_more_than_may_be_under_way() -> None:
    pair = Pair(3)
    pair.keys, pair.odd = 10**9, 0.0
    for _ in range(IN_FLIGHT // 60 + 2):
        pair.now += MS
        pair.commits([pair.commit() for _ in range(60)])
    assert pair.many.ledger.under_way == IN_FLIGHT


@pytest.mark.parametrize("why", ["resolved", "locked"])
def test_one_thing_that_stands_in_the_way(why: str) -> None:
    pair = Pair(4)
    pair.keys, pair.odd = 10**9, 0.0
    events = [pair.commit() for _ in range(16)]
    if why == "resolved":
        pair.both(Status(0, events[5].txid, events[5].tau_start))
    else:
        chunk = encode_chunk([Lock(1000, [b""], hashes([7]), b"")])
        pair.commits([Commit(99, b"l" * 16, pair.now, 0, 0, 0, chunk)])
    pair.both(Appended(pair.single.ledger.n))
    pair.now += 100 * MS
    pair.both(TimerFired(ACK_TIMER))
    pair.commits(events)
    assert sum(pair.many.aborts_count.values()) > 0
