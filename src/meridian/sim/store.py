"""A replica's file in memory: versions of the keys it owns, staged chunks, positions.

Every piece of work is atomic and idempotent, as the engine's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from random import Random
from zlib import crc32

import msgspec

from meridian.journal.core import Position
from meridian.sim.messages import Key
from meridian.sim.world import SimulationError
from meridian.storage import core as st
from meridian.wire.ops import Delete, Op, Put, decode_chunk
from meridian.wire.ranges import ALL, Owned, Range, Ranges, cut_ops, place, without

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Store:
    """One file. `owned`: what it holds; what is written elsewhere is left out."""

    def __init__(
        self,
        owned: Sequence[Owned] = ALL,
        ranges: Callable[[Sequence[Owned]], Ranges] = Ranges,
    ) -> None:
        self._make = ranges
        self.ranges = ranges(owned)
        self.versions: dict[Key, tuple[list[int], list[bytes | None]]] = {}
        self.tau = 0
        self.noted = 0
        """Complete through this tau, though no commit concerned it (0: see `tau`)."""
        self.horizon = 0
        self.positions: dict[int, int] = {}
        self.staged: dict[bytes, dict[int, bytes]] = {}
        self.built = 0
        """When it was built from a checkpoint and the journals."""
        self.rotten: dict[tuple[Key, int], bytes | None] = {}
        """What rotted in this copy: key and tau of the version, and its true value."""

    @property
    def complete(self) -> int:
        """Everything through this tau is in."""
        return max(self.tau, self.noted)

    def copy(self) -> Store:
        """A checkpoint."""
        other = Store(self.ranges.owned, self._make)
        other.versions = {key: (t.copy(), v.copy()) for key, (t, v) in self.versions.items()}
        other.tau, other.noted, other.horizon = self.tau, self.noted, self.horizon
        other.positions = dict(self.positions)
        other.staged = {txid: dict(chunks) for txid, chunks in self.staged.items()}
        other.rotten = dict(self.rotten)
        other.built = self.built
        return other

    def digest(self, tau: int, part: Range | None = None) -> int:
        """Of all values as of tau; `part`: of these places only."""
        keys = sorted(self.versions)
        if part is not None:
            keys = [key for key in keys if part.holds(place(*key))]
        found = ((key, self.get(key, tau)) for key in keys)
        return crc32(repr([(key, one) for key, one in found if one[0] is not None]).encode())

    def perform(self, work: st.Work) -> None:
        """One piece of the storage core's work."""
        match work:
            case st.Apply():
                for tau, chunk in work.commits:
                    if tau > self.tau:
                        self.apply(tau, decode_chunk(chunk))
            case st.Stage():
                self.staged.setdefault(work.txid, {}).setdefault(work.seq, work.chunk)
            case st.Resolve():
                chunks = self.staged.pop(work.txid, {})
                if work.tau > self.tau:
                    if sorted(chunks) != list(range(work.seq)):
                        raise SimulationError(f"chunks of {work.txid.hex()} are missing")
                    ordered = [*(chunks[seq] for seq in range(work.seq)), work.chunk]
                    self.apply(work.tau, [op for c in ordered for op in decode_chunk(c)])
            case st.Discard():
                self.staged.pop(work.txid, None)
        self.positions.update(work.positions)

    def lacks(self, starts: dict[int, Position]) -> bool:
        """Whether one of these journals begins after what this file holds."""
        return any(self.positions.get(number, 0) < p.n for number, p in starts.items())

    def apply(self, tau: int, ops: Sequence[Op]) -> None:
        """One transaction, above every earlier one."""
        if tau <= self.tau:
            raise SimulationError(f"replica applies {tau} after {self.tau}")
        self.tau = tau
        # What was given up while it was on its way here goes by.
        for op in ops if self.ranges.whole else cut_ops(ops, self.ranges):
            if isinstance(op, Put):
                for key, row in zip(op.keys, op.rows, strict=True):
                    self._set((op.sid, key), tau, row[0])
            elif isinstance(op, Delete):
                for key in op.keys:
                    self._set((op.sid, key), tau, None)

    def _set(self, key: Key, tau: int, value: bytes | None) -> None:
        taus, values = self.versions.setdefault(key, ([], []))
        if taus and taus[-1] == tau:
            raise SimulationError(f"{key} is written twice at {tau}")
        taus.append(tau)
        values.append(value)

    def get(self, key: Key, tau: int) -> tuple[bytes | None, int]:
        """(value, tau of that version) as of tau."""
        taus, values = self.versions.get(key, ([], []))
        at = bisect_right(taus, tau)
        return (values[at - 1], taus[at - 1]) if at else (None, 0)

    def scan(self, part: Range, tau: int) -> list[tuple[Key, bytes, int]]:
        """(key, value, tau of the version) of what lives there as of tau, in the order of places.

        The order of (sid, key) is that of places.
        """
        lo, hi = _key_at(part.lo), _key_at(part.hi)
        keys = sorted(key for key in self.versions if lo <= key < hi)
        found = ((key, *self.get(key, tau)) for key in keys)
        return [(key, value, at) for key, value, at in found if value is not None]

    def rot(self, random: Random, by: str) -> tuple[Key, int] | None:
        """One bit of a current value is not what it was, of which key and tau; None: no value."""
        current = [(key, t[-1]) for key, (t, v) in sorted(self.versions.items()) if v[-1]]
        if not current:
            return None
        key, tau = random.choice(current)
        values = self.versions[key][1]
        self.rotten.setdefault((key, tau), values[-1])
        values[-1] = b"%s rot" % by.encode()
        return key, tau

    def forget_old_rot(self) -> None:
        """What a newer version replaced is no part of a digest: it goes with the horizon."""
        for (key, tau), value in self.rotten.items():
            taus, values = self.versions.get(key, ([], []))
            if tau in taus and tau != taus[-1]:
                values[taus.index(tau)] = value

    # Ranges

    def own(self, owned: Sequence[Owned]) -> None:
        """Gives up what is not in `owned`, or has just taken what is."""
        self.ranges = self._make(owned)
        true = Ranges(owned)
        for key in [key for key in self.versions if true.at(place(*key)) is None]:
            del self.versions[key]
        for which in [one for one in self.rotten if one[0] not in self.versions]:
            del self.rotten[which]

    def keep(self, part: Range) -> None:
        """Gives up everything outside of a range."""
        hole = Range(b"", part.lo), Range(part.hi, b"\xff")
        owned = without(without(self.ranges.owned, hole[0]), hole[1])
        self.own(owned)

    def collect(self, tau: int) -> None:
        """Old versions go: only what is seen from `tau` on stays, and `tau` becomes the base."""
        for key, (taus, values) in list(self.versions.items()):
            at = max(bisect_right(taus, tau) - 1, 0)
            for gone in taus[:at]:
                self.rotten.pop((key, gone), None)
            del taus[:at], values[:at]
        self.own([Owned(one.lo, one.hi, max(one.base, tau)) for one in self.ranges.owned])

    def take_over(self, other: Store) -> None:
        """Both show the very same tau, and nothing is staged: they become one file."""
        self.versions.update(other.versions)
        self.rotten.update(other.rotten)
        self.tau = max(self.tau, other.tau)
        self.noted = max(self.noted, other.noted)
        self.horizon = max(self.horizon, other.horizon)
        self.built = max(self.built, other.built)
        journals = sorted(self.positions.keys() | other.positions.keys())
        both = self.positions, other.positions
        # As the engines: a journal that one of them knows is known, from its first record on.
        self.positions = {j: min(one.get(j, 0) for one in both) for j in journals}
        owned = sorted([*self.ranges.owned, *other.ranges.owned], key=lambda one: one.lo)
        self.ranges = self._make(owned)

    # As bytes

    def dump(self) -> bytes:
        """What a snapshot of it holds, but for ranges and positions."""
        versions = [(*key, taus, values) for key, (taus, values) in self.versions.items()]
        rotten = [(*key, tau, value) for (key, tau), value in self.rotten.items()]
        return _encode((self.tau, self.noted, self.horizon, versions, rotten))

    def load(self, data: bytes) -> None:
        """Of `dump`."""
        self.tau, self.noted, self.horizon, versions, rotten = _decode(data)
        self.versions = {(sid, key): (taus, values) for sid, key, taus, values in versions}
        self.rotten = {((sid, key), tau): value for sid, key, tau, value in rotten}


def _key_at(where: bytes) -> Key:
    """The first key whose place is not below `where`, which may be cut short."""
    return int.from_bytes(where[:8].ljust(8, b"\0"), "big"), where[8:]
