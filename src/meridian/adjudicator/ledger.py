"""The writing half of an adjudicator: its journal's n, taus, lease, heartbeats, acknowledgements.

The only place that assigns a tau or makes a promise.  Three marks order everything (rules 4.4,
4.6):

    beat <= promised, last_tau  <= ... <= lease_durable <= lease_appended

`last_tau` is the newest tau assigned; `promised` the newest tau below which nothing will be
assigned any more; no heartbeat reaches a commit that is not known durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from meridian.adjudicator.events import Append, Effect, Heartbeat, SetTimer
from meridian.adjudicator.events import Commit as CommitEvent
from meridian.clock.tau import ASSIGNER_BITS, Interval, next_tau
from meridian.journal.core import (
    Abort,
    Acquire,
    Add,
    Body,
    Close,
    Commit,
    EpochId,
    Lease,
    Marker,
    Payload,
    Release,
    Seal,
    make,
)
from meridian.journal.record import NO_TXID, Record
from meridian.limits import COMMIT_LEAD_MAX_NS, HEARTBEAT_AHEAD_NS, LEASE_NS, TAU_FUTURE_NS
from meridian.wire.partition import Holding

ACK_TIMER: Final = "ack"
IN_FLIGHT = 8_192
"""Decisions under way; beyond it commits are asked to come again."""


class Decision(msgspec.Struct, eq=False):
    """A final outcome on its way to the disk and then to whoever `waiting` lists.

    tau > 0: commits at tau; 0: aborts with `code`.
    """

    txid: bytes
    tau_start: int
    tau: int
    code: int
    waiting: list[int]


class Change(Decision, eq=False):
    """A change of membership on its way to the disk: ordered by its tau as a commit is (4.7)."""

    payload: Add | Close


def change_of(payload: Add | Close, tau: int) -> Change:
    """A change that is made at `tau`."""
    return Change(NO_TXID, 0, tau, 0, [], payload)


def _tau_of(decision: Decision) -> int:
    return decision.tau


class _Pending(msgspec.Struct, eq=False):
    """A record that is not durable, or several commits in a row, the last of them `n`."""

    n: int
    lease: int
    decisions: list[Decision]
    appended: int


class Ledger:
    """Writes one journal under one epoch, from its marker to its end."""

    def __init__(self, number: int, lead_max: int = COMMIT_LEAD_MAX_NS) -> None:
        self.number = number
        self.epoch: EpochId = (0, 0)
        self.n = 0
        self.n_durable = 0
        self.last_tau = 0
        self.lease_appended = 0
        self.lease_durable = 0
        self.promised = 0
        self.beat = 0
        self.lead = 0
        self.closed = False
        """CLOSE was appended: no record follows, and no promise passes it."""
        self._lead_max = lead_max
        self._pending: deque[_Pending] = deque()
        self._commits: deque[Decision] = deque()
        """Commits that are not durable, in the order of tau."""
        self._unacknowledged: deque[Decision] = deque()
        """Durable commits whose tau the clock has not reached."""

    @property
    def under_way(self) -> int:
        """Records that are not durable, and commits that are not told."""
        return self.n - self.n_durable + len(self._unacknowledged)

    # Records

    def end(self, tau: int) -> None:
        """The journal was closed at `tau` by an earlier owner: only outcomes are told."""
        assert self.n == 0
        self.closed = True
        self.last_tau = self.lease_durable = self.lease_appended = tau

    def begin(
        self, now: Interval, epoch: EpochId, n: int, lease_old: int, *, marked: bool
    ) -> list[Effect]:
        """Marker (unless it is in) and SEAL.

        `lease_old` covers every commit and promise of earlier epochs.
        """
        assert self.n == 0 and epoch > (0, 0)
        self.epoch = epoch
        self.n = self.n_durable = n
        # Nothing is assigned at or below what an earlier owner may have promised.
        self.last_tau = self.promised = lease_old
        self.lease_durable = lease_old
        lease = max(lease_old, now.latest) + LEASE_NS
        self.lease_appended = lease
        effects: list[Effect] = []
        if not marked:
            effects.append(self._append(now, Marker(self.number), lease_old, None))
        return [*effects, self._append(now, Seal(lease_old, lease), lease, None)]

    def _append(
        self,
        now: Interval,
        payload: Payload,
        lease: int,
        decision: Decision | None,
        tau: int = 0,
        txid: bytes = NO_TXID,
    ) -> Append:
        assert not self.closed, "CLOSE is the last record"
        self.n += 1
        decisions = [] if decision is None else [decision]
        self._pending.append(_Pending(self.n, lease, decisions, now.earliest))
        return Append(make(self.epoch, self.n, payload, tau, txid))

    def _lease(self, now: Interval) -> int:
        """The lease to write into the next record."""
        lease = now.latest + LEASE_NS
        if lease > self.lease_appended:
            self.lease_appended = lease
        return self.lease_appended

    def tau_for(self, now: Interval, tau_start: int) -> int:
        """The tau a commit would get now (4.1).  Only one within `lease_durable` may be used."""
        bound = now.earliest + self.lead
        # As max() does, at a third of its cost: every commit comes through here.
        if bound < self.last_tau:
            bound = self.last_tau
        if bound < self.promised:
            bound = self.promised
        if bound < tau_start:
            bound = tau_start
        return next_tau(bound, self.number)

    def renew(self, now: Interval, beyond: int) -> list[Effect]:
        """A LEASE that reaches beyond `beyond`, unless one is on its way."""
        if self.lease_appended > beyond or self.closed:
            return []
        self.lease_appended = max(now.latest, beyond) + LEASE_NS
        return [self._append(now, Lease(self.lease_appended), self.lease_appended, None)]

    def commit(
        self,
        now: Interval,
        decision: Decision,
        catver: int,
        flags: int,
        bodies: tuple[int, ...],
        crc: int,
        chunk: bytes,
        catalog: int,
    ) -> Append:
        """Appends the commit record of a decision whose tau is tau_for's."""
        self._assign(decision)
        lease, start = self._lease(now), decision.tau_start
        payload = Commit(lease, start, catver, flags, bodies, crc, chunk, catalog)
        return self._append(now, payload, lease, decision, decision.tau, decision.txid)

    def taus_for(self, now: Interval, tau_start_max: int, count: int) -> range | None:
        """`tau_for` of so many commits in a row, no gap between them; None: one by one."""
        bound = max(now.earliest + self.lead, self.last_tau, self.promised)
        step = 1 << ASSIGNER_BITS
        first = next_tau(bound, self.number)
        taus = range(first, first + count * step, step)
        return taus if tau_start_max <= bound and taus[-1] <= self.lease_durable else None

    def commit_all(
        self, now: Interval, decisions: list[Decision], events: Sequence[CommitEvent]
    ) -> list[Record]:
        """`commit` of decisions whose taus are taus_for's, of one chunk each, without catalog."""
        assert not self.closed, "CLOSE is the last record"
        first, last = decisions[0].tau, decisions[-1].tau
        assert max(self.last_tau, self.promised, self.beat) < first <= last <= self.lease_durable
        self.last_tau = last
        self._commits.extend(decisions)
        lease, epoch = self._lease(now), self.epoch
        numbers = range(self.n + 1, self.n + 1 + len(decisions))
        self.n += len(decisions)
        self._pending.append(_Pending(self.n, lease, decisions, now.earliest))
        return [
            make(
                epoch,
                n,
                Commit(lease, one.tau_start, event.catver, event.flags, (), 0, event.chunk),
                one.tau,
                one.txid,
            )
            for n, one, event in zip(numbers, decisions, events, strict=True)
        ]

    def _assign(self, decision: Decision) -> None:
        """Rule 4.4: above everything assigned and promised, within the durable lease."""
        tau = decision.tau
        assert self.last_tau < tau and self.promised < tau and self.beat < tau
        assert decision.tau_start < tau <= self.lease_durable
        self.last_tau = tau
        self._commits.append(decision)

    def change(self, now: Interval, change: Change) -> Append:
        """Appends ADD or CLOSE; its tau is tau_for's, and heartbeats treat it as a commit."""
        self._assign(change)
        effect = self._append(now, change.payload, self.lease_appended, change, change.tau)
        self.closed = isinstance(change.payload, Close)
        return effect

    def abort(self, now: Interval, decision: Decision) -> Append:
        """Appends the abort record of a decision."""
        assert decision.tau == 0 and decision.code > 0
        lease = self._lease(now)
        payload = Abort(lease, decision.tau_start, decision.code)
        return self._append(now, payload, lease, decision, 0, decision.txid)

    def body(
        self, now: Interval, txid: bytes, seq: int, chunk: bytes, tau_start: int
    ) -> tuple[int, Append]:
        """Appends a body chunk; returns its n too."""
        body = Body(seq, chunk, tau_start)
        effect = self._append(now, body, self.lease_durable, None, 0, txid)
        return self.n, effect

    def ranges(self, now: Interval, payload: type[Release] | type[Acquire], h: Holding) -> Append:
        """Appends RELEASE or ACQUIRE, which say all that is owned from here on (5.8)."""
        lease = self._lease(now)
        return self._append(now, payload(lease, h), lease, None)

    def exceed(self, tau: int) -> None:
        """No tau at or below this one is assigned any more (5.4); it lies within the lease."""
        assert tau <= self.lease_durable
        self.last_tau = max(self.last_tau, tau)

    # Durability

    def appended(self, now: Interval, n: int) -> list[Decision]:
        """Records through `n` are durable.  Returns the decisions that may be answered now."""
        assert n <= self.n, (n, self.n)
        ready: list[Decision] = []
        while self._pending:
            entry = self._pending[0]
            decisions = entry.decisions
            if entry.n <= n:
                self._pending.popleft()
                self.n_durable = entry.n
            else:
                count = n - entry.n + len(decisions)
                if count <= 0:
                    break
                decisions, entry.decisions = decisions[:count], decisions[count:]
                self.n_durable = n
            if entry.lease > self.lease_durable:
                self.lease_durable = entry.lease
            if decisions and decisions[0].tau:
                self._committed(decisions, now.earliest - entry.appended)
            else:
                ready += decisions
        assert self.last_tau <= self.lease_durable <= self.lease_appended
        return ready + self.due(now)

    def _committed(self, decisions: list[Decision], latency: int) -> None:
        for decision in decisions:
            first = self._commits.popleft()
            assert first is decision
        self._unacknowledged.extend(decisions)
        # Three quarters of the average latency: most answers need not wait for the clock.
        target = min(latency * 3 // 4, self._lead_max) if latency > 0 else 0
        for _ in decisions:
            change = (target - self.lead) // 8
            if not change:
                break
            self.lead += change

    def due(self, now: Interval) -> list[Decision]:
        """Durable commits whose tau has certainly passed (4.4)."""
        waiting, earliest = self._unacknowledged, now.earliest
        ready = []
        while waiting and waiting[0].tau <= earliest:
            ready.append(waiting.popleft())
        return ready

    def delay(self, decision: Decision) -> list[Effect]:
        """A durable commit of an earlier epoch, to be told when its tau has passed."""
        assert 0 < decision.tau <= self.last_tau
        later = sorted((*self._unacknowledged, decision), key=_tau_of)
        self._unacknowledged = deque(later)
        return self.ack_timer()

    def ack_timer(self) -> list[Effect]:
        """The timer for the next acknowledgement that waits for the clock."""
        if not self._unacknowledged:
            return []
        return [SetTimer(ACK_TIMER, self._unacknowledged[0].tau)]

    # Promises

    def want(self, now: Interval, tau: int) -> list[Effect]:
        """A reader needs completeness through `tau`: promise it, within bounds (4.3, 4.6)."""
        if self.closed:
            return []
        wanted = min(tau, now.latest + TAU_FUTURE_NS)
        if wanted <= self.beat:
            # The reader may have lost it: any later n with the same tau is as true.  Or it knows a
            # later epoch: once the lease is over, only a record shows whether this is the owner.
            effects: list[Effect] = [Heartbeat(self.epoch, self.n_durable, self.beat)]
            return effects + self.renew(now, now.latest)
        # More than asked, so that few reads ask; commits lead by as much anyway.
        ahead = max(HEARTBEAT_AHEAD_NS, self.lead)
        self.promised = max(self.promised, wanted, now.latest + ahead)
        # Renewed at half, so that readers seldom wait for the disk.
        renewal = self.renew(now, max(self.promised, now.latest + LEASE_NS // 2))
        return renewal + self.heartbeat()

    def heartbeat(self) -> list[Effect]:
        """The heartbeat that is due: a promise not given yet, as far as durability allows."""
        if self.beat >= self.promised:
            return []
        tau = min(self.promised, self.lease_durable)
        if self._commits:
            tau = min(tau, self._commits[0].tau - 1)
        if tau <= self.beat:
            return []
        self.beat = tau
        return [Heartbeat(self.epoch, self.n_durable, tau)]

    def abandoned(self) -> list[Decision]:
        """At the end of this owner: decisions whose outcome nobody was told."""
        pending = [decision for entry in self._pending for decision in entry.decisions]
        return [*self._unacknowledged, *pending]

    def check(self) -> None:
        """The invariant in the module's docstring."""
        assert self.beat <= self.lease_durable <= self.lease_appended
        assert self.beat <= max(self.promised, self.last_tau)
        assert self.last_tau <= self.lease_durable
        taus = [decision.tau for decision in self._commits]
        assert taus == sorted(set(taus)) and (not taus or taus[0] > self.beat)
