"""Gates: commits held so that a DDL statement gets through under steady writers.

(docs/rfcs, "Catalog coherence", point 8.) A gate covers relations and belongs to a transaction id.
Commits of others that use these relations wait here until the gate ends: by the outcome of its
transaction, by time, or on request. Each waits for a bounded time. Nothing here is durable: a gate
only orders commits, it decides nothing, so losing it costs the DDL statement a retry.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from meridian.adjudicator.events import Code, Commit
from meridian.adjudicator.footprint import Footprint
from meridian.limits import GATE_HOLD_MS, GATE_MS, GATED_COMMITS, GATES, MS

GATE_TIMER = "gate"


class Held(msgspec.Struct):
    """A commit that waits; `waiting` are its askers."""

    event: Commit
    waiting: list[int]
    sids: tuple[int, ...]
    until: int


class Gates:
    """The gates of one adjudicator.

    Invariant: a commit is in `held` from `hold` until exactly one of `release`, `drop` returns it.
    """

    def __init__(self) -> None:
        self._gates: dict[bytes, tuple[tuple[int, ...], int]] = {}
        """txid -> (relations, end)."""
        self._by_sid: dict[int, bytes] = {}
        self.held: dict[bytes, Held] = {}
        self.large: dict[bytes, int] = {}
        """Large transactions that wait, all their keys compared, and until when."""
        self.alarm: int | None = None
        """When the core shall look here next (0 = now), once it has changed; else None."""
        self.opened_count = 0
        self.held_count = 0

    def __len__(self) -> int:
        return len(self._gates)

    def open(self, now: int, txid: bytes, sids: Iterable[int], hold_ns: int) -> Code:
        """NONE: the gate is closed to others.  BUSY: too many; GATED: another one is in the way."""
        # A transaction that asks again adds relations.
        sids = tuple(dict.fromkeys((*self._gates.get(txid, ((), 0))[0], *sids)))
        if any(self._by_sid.get(sid, txid) != txid for sid in sids):
            # Two that wait for each other would end by time only.
            return Code.GATED
        if len(self._gates) >= GATES and txid not in self._gates:
            return Code.BUSY
        self._remove(txid)
        self._gates[txid] = sids, now + min(hold_ns, GATE_MS * MS)
        for sid in sids:
            self._by_sid[sid] = txid
        self.opened_count += 1
        self._set_alarm()
        return Code.NONE

    def end(self, txid: bytes) -> None:
        """The outcome of its transaction is decided, or its owner is gone."""
        if txid in self._gates:
            self._remove(txid)
            self.alarm = 0

    def expire(self, now: int) -> None:
        """Ends gates whose time is over."""
        for txid, (_, until) in list(self._gates.items()):
            if until <= now:
                self.end(txid)

    def _remove(self, txid: bytes) -> None:
        sids, _ = self._gates.pop(txid, ((), 0))
        for sid in sids:
            del self._by_sid[sid]

    def _set_alarm(self) -> None:
        times = [until for _, until in self._gates.values()]
        times += [held.until for held in self.held.values()]
        self.alarm = min([*times, *self.large.values()], default=None)

    # Commits

    def blocks(self, txid: bytes, prints: Iterable[Footprint]) -> bool:
        """Must this transaction wait?"""
        return bool(self._by_sid) and self._is_blocked(txid, _sids_of(prints))

    def _is_blocked(self, txid: bytes, sids: tuple[int, ...]) -> bool:
        by_sid = self._by_sid
        return any(by_sid.get(sid, txid) != txid for sid in sids)

    def hold(
        self, now: int, event: Commit, waiting: list[int], prints: Iterable[Footprint]
    ) -> bool:
        """Takes a commit; False: too many wait."""
        assert event.txid not in self.held
        if not self._has_room():
            return False
        until = now + GATE_HOLD_MS * MS
        self.held[event.txid] = Held(event, waiting, _sids_of(prints), until)
        self.held_count += 1
        self._set_alarm()
        return True

    def hold_large(self, now: int, txid: bytes) -> bool:
        """The same for a large one, which stays where it is; False: it must not wait any more."""
        until = self.large.get(txid)
        if until is not None:
            return now < until
        if not self._has_room():
            return False
        self.large[txid] = now + GATE_HOLD_MS * MS
        self.held_count += 1
        self._set_alarm()
        return True

    def _has_room(self) -> bool:
        return len(self.held) + len(self.large) < GATED_COMMITS

    def release(self, now: int) -> tuple[list[Held], list[Held]]:
        """Returns who may be decided, and who waited too long."""
        self.expire(now)
        free: list[Held] = []
        late: list[Held] = []
        for txid, held in list(self.held.items()):
            blocked = self._is_blocked(txid, held.sids)
            if blocked and held.until > now:
                continue
            (late if blocked else free).append(self.held.pop(txid))
        self._set_alarm()
        return free, late

    def drop(self) -> list[Held]:
        """All that waits, at the end of this owner."""
        held, self.held = self.held, {}
        self.large.clear()
        return list(held.values())


def _sids_of(prints: Iterable[Footprint]) -> tuple[int, ...]:
    sids = (sid for one in prints for sid in (*one.sids, *one.schema.touched))
    return tuple(dict.fromkeys(sids))
