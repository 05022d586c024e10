"""Outcomes of transaction ids, compact: about 30 bytes each once settled (rule 5.6).

An outcome is found by id and tau_start: a decision never comes before its tau_start, so a recent
transaction is looked up in one or two generations only.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from sys import byteorder

from meridian.limits import CONFLICT_WINDOW_NS, OUTCOMES

GENERATION = 4_096
FRESH = 4
"""Generations whose ids are kept as a set too."""
KEPT_NS = 2 * CONFLICT_WINDOW_NS
"""Longer than the window, so that what falls below the floor still gets its own outcome."""


class _Settled:
    """One generation, sorted by id."""

    __slots__ = ("_high", "_low", "_values", "fresh", "newest", "tau_start_max")

    def __init__(self, entries: dict[bytes, int], newest: int, tau_start_max: int) -> None:
        txids = sorted(entries)
        halves = array("Q", b"".join(txids))
        if byteorder == "little":
            halves.byteswap()
        self._high, self._low = halves[::2], halves[1::2]
        self._values = array("q", map(entries.__getitem__, txids))
        self.newest = newest
        self.tau_start_max = tau_start_max
        self.fresh: frozenset[bytes] | None = frozenset(txids)
        """Its ids, while it is one of the last few."""

    def __len__(self) -> int:
        return len(self._high)

    def find(self, txid: bytes) -> int | None:
        high, low = int.from_bytes(txid[:8], "big"), int.from_bytes(txid[8:], "big")
        at = bisect_left(self._high, high)
        while at < len(self._high) and self._high[at] == high:
            if self._low[at] == low:
                return self._values[at]
            at += 1
        return None


class Outcomes:
    """value > 0: committed at that tau; value < 0: aborted with code -value.

    Every outcome of a transaction with tau_start >= `floor` is here.
    """

    def __init__(self, floor: int, count_max: int = OUTCOMES) -> None:
        self.floor = floor
        self._count_max = max(count_max, 2 * GENERATION)
        self._settled: deque[_Settled] = deque()
        self._count = 0
        self._recent: dict[bytes, int] = {}
        self._newest = 0
        self._tau_start_max = 0

    def __len__(self) -> int:
        return self._count + len(self._recent)

    def add(self, txid: bytes, tau_start: int, value: int, decided: int) -> None:
        """A decision made at about `decided` (any clock; only its order matters)."""
        assert len(txid) == 16 and value != 0 and txid not in self._recent
        self._recent[txid] = value
        newest = max(decided, value, tau_start)
        if newest > self._newest:
            self._newest = newest
        if tau_start > self._tau_start_max:
            self._tau_start_max = tau_start
        if len(self._recent) >= GENERATION:
            self._settle()

    def add_all(self, txids: list[bytes], taus: Sequence[int], tau_start_max: int) -> None:
        """Commits at ascending taus; nothing of them is here."""
        self._recent.update(zip(txids, taus, strict=True))
        self._newest = max(self._newest, taus[-1], tau_start_max)
        self._tau_start_max = max(self._tau_start_max, tau_start_max)
        if len(self._recent) >= GENERATION:
            self._settle()

    def has_none(self, txids: list[bytes], tau_start_min: int) -> bool:
        """Whether nothing is known, nor forgotten, of any of these, told by C loops."""
        if tau_start_min < self.floor or not self._recent.keys().isdisjoint(txids):
            return False
        for generation in reversed(self._settled):
            if generation.newest < tau_start_min:
                break
            if generation.fresh is None:
                if any(generation.find(txid) is not None for txid in txids):
                    return False
            elif not generation.fresh.isdisjoint(txids):
                return False
        return True

    def find(self, txid: bytes, tau_start: int) -> int | None:
        """The outcome of a transaction, None if there is none here."""
        value = self._recent.get(txid)
        if value is not None:
            return value
        for generation in reversed(self._settled):
            if generation.newest < tau_start:
                break
            value = generation.find(txid)
            if value is not None:
                return value
        return None

    def _settle(self) -> None:
        self._settled.append(_Settled(self._recent, self._newest, self._tau_start_max))
        if len(self._settled) > FRESH:
            self._settled[-FRESH - 1].fresh = None
        self._count += len(self._recent)
        self._recent = {}
        self._tau_start_max = 0
        while self._count > self._count_max or self._settled[0].newest < self._newest - KEPT_NS:
            gone = self._settled.popleft()
            self._count -= len(gone)
            self.floor = max(self.floor, gone.tau_start_max + 1)
