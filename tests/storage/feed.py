"""A journal of random commits over a few relations, to feed replicas of any ranges with."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import msgspec

from meridian.storage import Engine, ScanRequest
from meridian.storage.errors import WrongPlace
from meridian.wire import ops
from meridian.wire.ranges import Owned, place

SIDS = (2000, 2001, 2002, 2003)
KEYS = [bytes((a, b)) for a in range(6) for b in range(4)]
decode = msgspec.msgpack.decode


class Item:
    """One step: what it does to an engine."""

    def __init__(self, n: int, tau: int, kind: str, *arguments: Any) -> None:
        self.n = n
        self.tau = tau
        self.kind = kind
        self.arguments = arguments

    def perform(self, engine: Engine) -> None:
        at = {0: self.n}
        if self.kind == "apply":
            engine.apply([(self.tau, *self.arguments)], at)
        elif self.kind == "stage":
            engine.stage(*self.arguments, at)
        elif self.kind == "resolve":
            txid, count = self.arguments
            engine.resolve(txid, count, self.tau, at)
        else:
            engine.discard(*self.arguments, at)


class Feed:
    """Random items; `boundaries` are positions outside of open large transactions."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.items: list[Item] = []
        self.boundaries = [0]
        self.tau = 1000
        self.attnums = {sid: [1, 2] for sid in SIDS}
        self.open: dict[bytes, tuple[int, list[list[ops.Op]], set[bytes], int]] = {}
        creates: list[ops.Op] = [ops.Create(sid, 0, [(1, 1), (2, 2)], 0) for sid in SIDS[:3]]
        self._add("apply", creates)

    def _add(self, kind: str, *arguments: Any) -> None:
        n = len(self.items) + 1
        if kind in ("apply", "resolve"):
            self.tau += self.random.randint(1, 3)
        self.items.append(Item(n, self.tau, kind, *arguments))
        if not self.open:
            self.boundaries.append(n)

    def _ops(self, sids: list[int], keys: list[bytes]) -> list[ops.Op]:
        chunk: list[ops.Op] = []
        for sid in sids:
            dead = [key for key in keys if self.random.random() < 0.25]
            live = [key for key in keys if key not in dead]
            if dead:
                chunk.append(ops.Delete(sid, 0, dead, b"", b""))
            if not live:
                continue
            attnums = tuple(self.attnums[sid])
            big = [key for key in live if self.random.random() < 0.15]
            rows = [
                tuple(
                    "b" if a == 2 and key in big else
                    self.random.randbytes(3) if a == 2 else self.random.randrange(100)
                    for a in attnums
                )
                for key in live
            ]  # fmt: skip
            chunk.append(ops.Put(sid, 0, attnums, live, bytes(8 * len(live)), b"", rows))
            if big:
                values = [self.random.randbytes(2500) for _ in big]
                chunk.append(ops.Big(sid, 2, big, values))
        return chunk

    def grow(self) -> None:
        rng = self.random
        busy = {key for _, _, keys, _ in self.open.values() for key in keys}
        free = [key for key in KEYS if key not in busy]
        known = list(SIDS[:3]) if self.attnums[SIDS[3]] == [1, 2] else list(SIDS)
        kind = rng.random()
        if kind < 0.55 and free:
            keys = sorted(rng.sample(free, min(len(free), rng.randint(1, 5))))
            self._add("apply", self._ops(rng.sample(known, rng.randint(1, 2)), keys))
        elif kind < 0.65:
            if len(self.open) < 2 and len(free) > 6:
                keys = set(rng.sample(free, 6))
                self.open[rng.randbytes(16)] = (rng.choice(SIDS[:3]), [], keys, rng.randint(1, 4))
        elif kind < 0.92 and self.open:
            txid = rng.choice(sorted(self.open))
            sid, parts, keys, length = self.open[txid]
            if len(parts) < length:
                left = sorted(keys)[len(parts) :: length]
                parts.append(self._ops([sid], left) if left else [])
                self._add("stage", txid, len(parts) - 1, parts[-1])
            else:
                del self.open[txid]
                if rng.random() < 0.3:
                    self._add("discard", txid)
                else:
                    self._add("resolve", txid, length)
        elif kind < 0.97:
            sid = rng.choice(SIDS[:3])
            attnum = max(self.attnums[sid]) + 1
            if attnum < 6 and not self.open:
                self.attnums[sid].append(attnum)
                self._add("apply", [ops.Add(sid, attnum, 1, rng.randrange(50))])
        elif self.attnums[SIDS[3]] == [1, 2] and not self.open:
            self.attnums[SIDS[3]] = [1, 2, 3]
            self._add("apply", [ops.Create(SIDS[3], 0, [(1, 1), (2, 2), (3, 1)], 0)])

    def feed(self, engine: Engine, through: int | None = None) -> None:
        """What the engine lacks, as a crossbar would after a crash: by position."""
        at = engine.positions.get(0, 0)
        for item in self.items[at : len(self.items) if through is None else through]:
            item.perform(engine)
            if self.random.random() < 0.3:
                engine.settle(3)


def rows_of(engine: Engine, tau: int, sid: int, descending: bool = False) -> Any:
    """Everything of a relation in one file, or the name of the refusal."""
    columns = engine.known_columns(sid)
    if columns is None:
        return "UnknownRelation"
    cols = tuple(sorted(columns))  # type: ignore[type-var]
    try:
        request = ScanRequest(tau, sid, cols=cols, flags=int(descending))
        return decode(engine.scan(request)[1])
    except Exception as error:
        return type(error).__name__


def gathered(engines: list[Engine], tau: int, sid: int, descending: bool = False) -> Any:
    """Everything of a relation over several files, by the subranges that they report."""
    known = [c for c in (engine.known_columns(sid) for engine in engines) if c is not None]
    columns: Any = max(known, key=lambda c: len(list(c)), default=None)  # type: ignore[call-overload]
    if columns is None:
        return "UnknownRelation"
    lo: bytes = b""
    hi: bytes | None = None
    rows: list[Any] = []
    while True:
        for engine in engines:
            request = ScanRequest(
                tau, sid, lo, hi, cols=tuple(sorted(columns)), flags=int(descending)
            )
            try:
                (more, page), scanned = engine.scan_part(request)
            except WrongPlace:
                continue
            except Exception as error:
                return type(error).__name__
            break
        else:
            raise AssertionError("nobody has it")
        assert not more
        rows += decode(page)
        if descending:
            assert scanned.hi == hi
            if scanned.lo == b"":
                return rows
            hi = scanned.lo
        else:
            assert scanned.lo == lo
            if scanned.hi is None:
                return rows
            lo = scanned.hi


def partition(rng: random.Random, parts: int) -> list[list[Owned]]:
    """Everything, dealt out to so many files in random pieces."""
    places = [place(sid, rng.choice([b"", *KEYS])) for sid in SIDS for _ in range(2)]
    cuts = sorted({b"", b"\x80", *rng.sample(places, 5)})
    owned: list[list[Owned]] = [[] for _ in range(parts)]
    for lo, hi in pairwise(cuts):
        rng.choice(owned).append(Owned(lo, hi))
    return [part for part in owned if part]
