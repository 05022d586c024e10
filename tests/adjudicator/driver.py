"""Drives an adjudicator core by hand: a clock, a journal, answers by asker."""

from __future__ import annotations

from collections.abc import Callable

from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.events import (
    Answer,
    Append,
    Appended,
    Commit,
    Effect,
    Event,
    Heartbeat,
    Outcome,
    Replay,
    Replayed,
    TimerFired,
)
from meridian.clock.tau import Interval
from meridian.journal.core import Position, Reader
from meridian.journal.record import Record
from meridian.wire.ops import Check, Lock, Op, Put, Share, conflict_hash, encode_chunk
from meridian.wire.reach import Reach, encode_reach

START = 1_000_000_000_000_000_000
MS = 1_000_000


def txid(number: int) -> bytes:
    return number.to_bytes(16, "big")


def hashes(*keys: str, sid: int = 1000, kind: int = 0) -> bytes:
    return b"".join(
        conflict_hash(sid, kind, key.encode()).to_bytes(8, "little") for key in sorted(keys)
    )


def put(*keys: str, sid: int = 1000, identity: bool = False) -> bytes:
    w, i = hashes(*keys, sid=sid), hashes(*keys, sid=sid, kind=1) if identity else b""
    ordered = [key.encode() for key in sorted(keys)]
    return encode_chunk([Put(sid, 0, (1,), ordered, w, i, [(1,) for _ in ordered])])


def lock(*keys: str, sid: int = 1000) -> bytes:
    return encode_chunk([Lock(sid, [key.encode() for key in sorted(keys)], hashes(*keys), b"")])


def share(*keys: str, sid: int = 1000, identity: bool = True) -> bytes:
    ordered = [key.encode() for key in sorted(keys)]
    r = b"" if identity else hashes(*keys, sid=sid)
    i = hashes(*keys, sid=sid, kind=1) if identity else b""
    return encode_chunk([Share(sid, ordered, r, i)])


def check(*keys: str, sid: int = 1000) -> bytes:
    ordered = [key.encode() for key in sorted(keys)]
    return encode_chunk([Check(sid, ordered, hashes(*keys, sid=sid))])


def catalog(version: int, *ops: Op, reach: Reach | None = None) -> bytes:
    """A transaction that makes a catalog version; without a reach it concerns everybody."""
    key = version.to_bytes(8, "big")
    hashed = conflict_hash(1, 0, key).to_bytes(8, "little")
    row = (b"delta", b"text", None if reach is None else encode_reach(reach))
    return encode_chunk([*ops, Put(1, 0, (1, 2, 3), [key], hashed, b"", [row])])


def whole(*, sid: int = 1000, share: bool = False) -> bytes:
    """LOCK, or SHARE, of a whole relation."""
    hashed = conflict_hash(sid, 0, b"").to_bytes(8, "little")
    return encode_chunk([(Share if share else Lock)(sid, [b""], hashed, b"")])


class Driver:
    """One core; `records` is what was appended, `durable` how many of them are on disk."""

    def __init__(
        self,
        records: list[Record] | None = None,
        now: int = START,
        start: Position | None = None,
        number: int = 1,
        make: Callable[[int, Position | None], Adjudicator] = Adjudicator,
    ) -> None:
        self.now = now
        self.error = 0
        self.core = make(number, start)
        self.records = list(records or [])
        self.durable = len(self.records)
        self.answers: dict[int, Answer] = {}
        self.beats: list[Heartbeat] = []
        self.effects: list[Effect] = []
        self._asked = 0
        reader = Reader(start)
        for record in self.records:
            payload = reader.accept(record)
            if payload is not None:
                self.step(Replay(record, payload))
        epoch = (reader.epoch[0] + 1, 7)
        self.step(Replayed(reader.position(), epoch))

    def step(self, event: Event) -> list[Effect]:
        effects = self.core.step(Interval(self.now - self.error, self.now + self.error), event)
        self.core.check()
        for effect in effects:
            if isinstance(effect, Append):
                self.records.append(effect.record)
            elif isinstance(effect, Answer):
                assert effect.to not in self.answers, "answered twice"
                self.answers[effect.to] = effect
            elif isinstance(effect, Heartbeat):
                self.beats.append(effect)
        self.effects += effects
        return effects

    def sync(self) -> None:
        """Makes everything durable, and again what that led to."""
        last = -1
        while self.records and self.records[-1].n != last:
            last = self.records[-1].n
            self.durable = len(self.records)
            self.step(Appended(last))

    def settle(self) -> None:
        """Durable, all background work done, and the clock far enough for every answer."""
        for _ in range(1000):
            self.sync()
            self.now += MS
            self.step(TimerFired("work"))
            self.step(TimerFired("ack"))
        self.sync()
        self.now += 1000 * MS
        self.step(TimerFired("ack"))

    def ask(self, id_: int, chunk: bytes, tau_start: int, parts: int = 0, catver: int = 0) -> int:
        self._asked += 1
        self.step(Commit(self._asked, txid(id_), tau_start, catver, 0, parts, chunk))
        return self._asked

    def commit(
        self, id_: int, chunk: bytes, tau_start: int = 0, parts: int = 0, catver: int = 0
    ) -> Answer:
        """Asks and waits."""
        to = self.ask(id_, chunk, tau_start or self.now, parts, catver)
        self.sync()
        self.now += 2000 * MS
        self.step(TimerFired("ack"))
        return self.answers[to]

    def outcome(self, to: int) -> Outcome:
        return self.answers[to].outcome
