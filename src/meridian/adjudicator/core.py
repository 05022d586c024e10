"""The adjudicator: decides commits and is the single writer of its journal (design sections 4-6).

Pure: no clock, no I/O, no randomness.  A decision, abort or commit, is final when it is made,
durable when its record is, and told only then: a successor that reads the journal repeats every
answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from meridian.adjudicator.chunked import Chunked
from meridian.adjudicator.events import (
    Absorb,
    Absorbed,
    Added,
    AddJournal,
    Answer,
    Append,
    Appended,
    AppendFailed,
    CatalogKnown,
    Closed,
    CloseJournal,
    Code,
    Commit,
    Discard,
    Effect,
    Event,
    Fatal,
    Gate,
    Gated,
    Heard,
    Move,
    Outcome,
    Part,
    Replay,
    Replayed,
    Serving,
    SetTimer,
    Status,
    StillOwner,
    TimerFired,
    WantHeartbeat,
)
from meridian.adjudicator.footprint import BadWriteSet, Footprint, footprint
from meridian.adjudicator.gates import GATE_TIMER
from meridian.adjudicator.large import is_large, without_keys
from meridian.adjudicator.ledger import ACK_TIMER, IN_FLIGHT, Change, Decision, change_of
from meridian.adjudicator.partitioned import HANDOVER_TIMER, HOLD_TIMER, WORK_TIMER
from meridian.adjudicator.window import keys_of
from meridian.clock.tau import Interval
from meridian.journal import core as journal
from meridian.limits import CONFLICT_KEYS, CONFLICT_WINDOW_NS, TAU_FUTURE_NS
from meridian.wire.partition import EVERYTHING, Span
from meridian.wire.votes import leader_of

WAITING = 64
"""Askers that wait for one decision; more get no answer of their own."""
EXPIRE_EVERY = 1_024
"""Commits between two looks at what is older than the window."""


class Adjudicator(Chunked):
    """One adjudicator with the journal it writes; `spans` is what it was made to own.

    Feed `Replay` for every accepted record after `start`, then `Replayed`, then anything.
    """

    def __init__(
        self,
        number: int,
        start: journal.Position | None = None,
        window_keys: int = CONFLICT_KEYS,
        spans: tuple[Span, ...] = (EVERYTHING,),
    ) -> None:
        super().__init__(number, start or journal.Position(), window_keys, spans)
        self.dead = False
        self.in_flight = IN_FLIGHT
        self.commits_count = 0
        self.aborts_count: dict[Code, int] = {}
        self._seal_n = 0
        self._stalled: dict[bytes, tuple[Commit, list[int]]] = {}
        """Small commits that wait for a lease to become durable, in order of arrival."""
        self._replayed_bodies: dict[bytes, list[Footprint]] = {}

    def step(self, now: Interval, event: Event) -> list[Effect]:
        """What to do about one event, in order.  After Fatal nothing comes any more."""
        if self.dead:
            return []
        if self.gates:
            self.gates.expire(now.earliest)
        effects = self._take(now, event)
        alarm = self.gates.alarm
        if alarm is not None:
            self.gates.alarm = None
            effects.append(SetTimer(GATE_TIMER, alarm))
        return effects

    def _take(self, now: Interval, event: Event) -> list[Effect]:
        match event:
            case Commit():
                return self._commit(now, event)
            case Appended():
                return self._appended(now, event.n)
            case WantHeartbeat():
                return self.ledger.want(now, event.tau) if self.sealed else []
            case Part():
                return self._part(now, event)
            case TimerFired():
                return self._timer(now, event.name)
            case Status():
                return self._status(now, event)
            case Discard():
                return self._discard(now, event.txid)
            case Gate():
                return [self._gate(now, event)]
            case AddJournal():
                return self._add_journal(now, event.journal)
            case CloseJournal():
                return self._close_journal(now)
            case Heard():
                return self._heard(now, event.message)
            case Move():
                return self._move(now, event)
            case CatalogKnown():
                return self._catalog_known(now, event)
            case Absorb():
                self.absorber.read(event)
                return []
            case Absorbed():
                self.absorber.end(event)
                return []
            case Replay():
                return self._replay(event)
            case Replayed():
                return self._replayed(now, event)
            case AppendFailed():
                return self._fail(event.reason)

    # Start

    def _replay(self, event: Replay) -> list[Effect]:
        assert not self.ledger.n, "replay comes before everything"
        record, payload = event.record, event.payload
        match payload:
            case journal.Marker():
                self._replayed_bodies.clear()
            case journal.Body():
                body = without_keys(footprint(payload.chunk))
                self._replayed_bodies.setdefault(record.txid, []).append(body)
            case journal.Abort():
                self._replayed_bodies.pop(record.txid, None)
                self.outcomes.add(record.txid, payload.tau_start, -payload.code, 0)
            case journal.Commit():
                self._replay_commit(record.txid, record.tau, payload)
            case journal.Add() | journal.Close():
                self.membership.read(payload, record.tau)
            case journal.Release() | journal.Acquire():
                self.ranges.load(payload.holding)
            case _:
                pass
        return []

    def _replay_commit(self, txid: bytes, tau: int, payload: journal.Commit) -> None:
        self.outcomes.add(txid, payload.tau_start, tau, tau)
        bodies = self._replayed_bodies.pop(txid, [])
        last = footprint(payload.chunk)
        self.relations.record(tau, (*bodies, last), self.window.floor)
        if bodies or is_large(last):
            # Cheaper than its keys and as safe: what began before it will be refused.
            self.window.forget_through(tau)
        else:
            self.window.record(tau, keys_of(last.writes), keys_of(last.shares))
        self._expire(tau)

    def _replayed(self, now: Interval, event: Replayed) -> list[Effect]:
        position = event.position
        self._replayed_bodies.clear()
        if position.closed:
            # The journal takes no more records, so there is no epoch to begin: outcomes only.
            self.ledger.end(position.tau)
            # CLOSE came after whatever was released had been acquired.
            self.ranges.pending = False
            self.serving = self.sealed = True
            return [Serving()]
        marked = event.epoch == position.epoch
        assert not self.ledger.n and (marked or event.epoch[0] > position.epoch[0])
        assert not (marked and position.sealed), "an epoch is begun once"
        # No promise or commit of an earlier epoch lies beyond this (6.6, 4.4).
        lease_old = max(position.lease, position.tau)
        effects = self.ledger.begin(now, event.epoch, position.n, lease_old, marked=marked)
        self._seal_n = self.ledger.n
        self._begin_partitioned(lease_old)
        return effects

    # Commits

    def _known(self, now: Interval, to: int, txid: bytes, tau_start: int) -> list[Effect] | None:
        """What to do if no new decision is due; ids come before floor and conflicts (5.6)."""
        if not self.serving:
            return [Answer(to, txid, Outcome.RETRY, 0, Code.STARTING)]
        if self._misled(txid):
            return [self._for_another(now, to, txid, tau_start)]
        waiting = self._waiting(txid)
        if waiting is not None:
            if to not in waiting and len(waiting) < WAITING:
                waiting.append(to)
            return []
        value = self.outcomes.find(txid, tau_start)
        if value is not None and value > now.earliest:
            # Committed by an earlier owner, ahead of the clock: the answer waits too (4.4).
            decision = self._live[txid] = Decision(txid, tau_start, value, 0, [to])
            return self.ledger.delay(decision)
        if value is not None:
            return [_answer(to, txid, max(value, 0), max(-value, 0))]
        if tau_start < self.outcomes.floor:
            return [Answer(to, txid, Outcome.UNKNOWN)]
        if self.membership.closing:
            # Once CLOSE is durable this is final: the journal can never hold it (4.7).
            if self.membership.closed_tau:
                return [Answer(to, txid, Outcome.ABORTED, 0, Code.CLOSED)]
            return [Answer(to, txid, Outcome.RETRY, 0, Code.STARTING)]
        if tau_start > now.latest + TAU_FUTURE_NS:
            return [Answer(to, txid, Outcome.RETRY, 0, Code.CLOCK)]
        if self.ledger.under_way + len(self._stalled) + len(self.gates.held) >= self.in_flight:
            return [Answer(to, txid, Outcome.RETRY, 0, Code.BUSY)]
        return None

    def _for_another(self, now: Interval, to: int, txid: bytes, tau_start: int) -> Answer:
        """The id names another leader: answered only if its journal was absorbed (5.6)."""
        found = self.absorber.find(leader_of(txid), txid, tau_start, now.earliest)
        if found is None:
            return Answer(to, txid, Outcome.RETRY, 0, Code.LEADER)
        outcome, tau, code = found
        return Answer(to, txid, outcome, tau, code)

    def _waiting(self, txid: bytes) -> list[int] | None:
        """Who waits for the outcome of this transaction; None if no decision is under way."""
        live = self._live.get(txid)
        if live is not None:
            return live.waiting
        for pair in (self._stalled.get(txid), self._blocked.get(txid)):
            if pair is not None:
                return pair[1]
        held = self.gates.held.get(txid)
        if held is not None:
            return held.waiting
        ballot = self.ballots.get(txid)
        if ballot is not None and ballot.event is not None:
            return ballot.waiting
        return self._large_waiting(txid)

    def _commit(self, now: Interval, event: Commit) -> list[Effect]:
        if self._is_plain(now, event):
            return self._decide(now, event, [event.to])
        effects: list[Effect] = []
        ballot = self.ballots.get(event.txid)
        if ballot is not None and event.attempt > ballot.attempt and self.serving:
            effects = self._give_up(ballot, Code.ATTEMPT)
        known = self._known(now, event.to, event.txid, event.tau_start)
        if known is not None:
            return effects + known
        waiting = [event.to]
        if event.voters:
            return effects + self._open_ballot(now, event, waiting)
        if event.parts or self._holds_chunks(event.txid):
            return self._commit_large(now, event, waiting)
        return self._decide(now, event, waiting)

    def _is_plain(self, now: Interval, event: Commit) -> bool:
        """Whether `_known` has nothing to say, told at once: true of nearly all commits."""
        return (
            self.is_quiet()
            and not event.voters
            and not event.parts
            and event.txid not in self._live
            and self.outcomes.floor <= event.tau_start <= now.latest + TAU_FUTURE_NS
            and self.ledger.under_way < self.in_flight
            and self.outcomes.find(event.txid, event.tau_start) is None
        )

    def commits(self, now: Interval, events: Sequence[Commit]) -> list[Effect]:
        """`step` for commits that came together: the same decisions, sooner."""
        return self.together.commits(self, now, events)

    def is_quiet(self) -> bool:
        """Nothing is under way but decisions that wait for the disk, and it decides alone."""
        return (
            self.serving
            and self.ranges.alone
            and not self.dead
            and not self.membership.closing
            and not self._stalled
            and not self._blocked
            and not self._large
            and not self.gates
            and not self.gates.held
            and not self.voter.holds
            and self.ballots.idle
        )

    def _decide(self, now: Interval, event: Commit, waiting: list[int]) -> list[Effect]:
        """Decides a transaction of one chunk."""
        try:
            print_ = footprint(event.chunk)
        except BadWriteSet:
            return self._abort(now, event.txid, event.tau_start, Code.MALFORMED, waiting)
        if is_large(print_):
            return self._commit_large(now, event, waiting)
        schema = False
        code = None
        if not self.ranges.alone:
            placed = self._place(event, waiting)
            if isinstance(placed, list):
                return placed
            schema = placed.everywhere
            print_ = placed.part(self.number).footprint
            code = self._own_refusal(event, placed, placed.part(self.number))
        prints = (print_,)
        writes = keys_of(print_.writes)
        shares = keys_of(print_.shares) if print_.shares else ()
        if self.ranges.alone:
            code = self._refusal(event.tau_start, event.catver, prints)
            unwritten = shares if not print_.checks else keys_of(print_.shares + print_.checks)
            if code is None and self.window.conflicts(event.tau_start, writes, unwritten):
                code = Code.CONFLICT
        if code is not None:
            return self._abort(now, event.txid, event.tau_start, code, waiting)
        if self.gates.blocks(event.txid, prints):
            if self.gates.hold(now.earliest, event, waiting, prints):
                return []
            return self._abort(now, event.txid, event.tau_start, Code.GATED, waiting)
        if self.voter.holds:
            met = self._meet(now, event, waiting, print_, schema=schema)
            if met is not None:
                return met
        tau = self.ledger.tau_for(now, event.tau_start)
        if tau > self.ledger.lease_durable:
            self._stalled[event.txid] = (event, waiting)
            return self.ledger.renew(now, tau)
        self.window.record(tau, writes, shares)
        self.relations.record(tau, prints, self.window.floor)
        return [self._append_commit(now, event, tau, waiting, (), 0, prints)]

    def _refusal(self, tau_start: int, catver: int, prints: Sequence[Footprint]) -> Code | None:
        if tau_start < self.window.floor:
            return Code.FLOOR
        if self.relations.stale(tau_start, catver, prints):
            return Code.CATALOG
        return Code.CONFLICT if self.relations.conflict(tau_start, prints) else None

    def _append_commit(
        self,
        now: Interval,
        event: Commit,
        tau: int,
        waiting: list[int],
        bodies: tuple[int, ...],
        crc: int,
        prints: Sequence[Footprint],
    ) -> Append:
        catalog = prints[0].catalog_version
        if len(prints) > 1:
            catalog = max(print_.catalog_version for print_ in prints)
        decision = Decision(event.txid, event.tau_start, tau, 0, waiting)
        self._remember(decision, tau)
        self.count_commits(now, 1)
        return self.ledger.commit(
            now, decision, event.catver, event.flags, bodies, crc, event.chunk, catalog
        )

    def count_commits(self, now: Interval, count: int) -> None:
        """So many were decided; now and then what is older than the window is forgotten."""
        before = self.commits_count
        self.commits_count += count
        if self.commits_count // EXPIRE_EVERY > before // EXPIRE_EVERY:
            self._expire(now.earliest)

    def _abort(
        self, now: Interval, txid: bytes, tau_start: int, code: Code, waiting: list[int]
    ) -> list[Effect]:
        decision = Decision(txid, tau_start, 0, code, waiting)
        self._remember(decision, now.latest)
        self.aborts_count[code] = self.aborts_count.get(code, 0) + 1
        return [self.ledger.abort(now, decision)]

    def _remember(self, decision: Decision, decided: int) -> None:
        assert decision.txid not in self._live
        self._live[decision.txid] = decision
        if not self.ballots.idle:
            self._end_other_attempts(decision)
        value = decision.tau or -decision.code
        self.outcomes.add(decision.txid, decision.tau_start, value, decided)
        self.gates.end(decision.txid)

    def _expire(self, now: int) -> None:
        self.window.expire(now - CONFLICT_WINDOW_NS)

    # Outcomes

    def _status(self, now: Interval, event: Status) -> list[Effect]:
        known = self._known(now, event.to, event.txid, event.tau_start)
        if known is not None:
            return known
        # Nobody is told "unknown" while the commit may still arrive: it is made an abort.
        waiting = [event.to]
        if self._holds_chunks(event.txid):
            return self._abort_chunks(now, event.txid, Code.RESOLVED, waiting)
        ballot = self.ballots.get(event.txid)
        if ballot is not None:
            ballot.waiting = waiting
            return self._abort_ballot(now, ballot, Code.RESOLVED)
        return self._abort(now, event.txid, event.tau_start, Code.RESOLVED, waiting)

    def _appended(self, now: Interval, n: int) -> list[Effect]:
        lease = self.ledger.lease_durable
        decisions = self.ledger.appended(now, n)
        effects = self._now_durable(n) + self._tell(decisions)
        if not self.sealed and self.ledger.n_durable >= self._seal_n:
            self.sealed = True
            effects += self._serve()
        if not self.sealed:
            return effects
        if self.ledger.lease_durable > lease:
            effects += self._retry_stalled(now)
        return effects + self.ledger.heartbeat() + self.ledger.ack_timer()

    def _retry_stalled(self, now: Interval) -> list[Effect]:
        effects = self._change(now)
        stalled, self._stalled = self._stalled, {}
        for event, waiting in stalled.values():
            effects += self._decide(now, event, waiting)
        effects += self.voter.again(now) + self._poll_ballots(now) + self.hold_timer()
        return effects + self._retry_large(now)

    # Gates

    def _gate(self, now: Interval, event: Gate) -> Effect:
        if not self.serving or self.membership.closing:
            return Gated(event.to, event.txid, 0, Code.STARTING)
        code = Code.NONE
        if event.hold_ns:
            code = self.gates.open(now.earliest, event.txid, event.sids, event.hold_ns)
        else:
            self.gates.end(event.txid)
        return Gated(event.to, event.txid, self.relations.last(event.sids), code)

    def _open_gates(self, now: Interval) -> list[Effect]:
        """Gates that ended, commits that have waited for too long."""
        effects: list[Effect] = []
        free, late = self.gates.release(now.earliest)
        for held in free:
            effects += self._decide(now, held.event, held.waiting)
        for held in late:
            event = held.event
            effects += self._abort(now, event.txid, event.tau_start, Code.GATED, held.waiting)
        return effects + self._retry_large(now)

    def _tell(self, decisions: list[Decision]) -> list[Effect]:
        effects: list[Effect] = []
        live = self._live
        for decision in decisions:
            if isinstance(decision, Change):
                effects.append(self._changed(decision))
                continue
            txid, tau = decision.txid, decision.tau
            del live[txid]
            for to in decision.waiting:
                effects.append(_answer(to, txid, tau, decision.code))
        return effects

    # Membership (4.7)

    def _add_journal(self, now: Interval, number: int) -> list[Effect]:
        assert self.number == 0, "journal 0 says which journals exist"
        tau = self.membership.members.get(number)
        if tau is not None:
            # Before serving too: no read passes the ADD until the journal is opened, and serving
            # may wait for a read (5.7).
            return [Added(number, tau)]
        if not self.serving:
            return []
        return self._change(now) if self.membership.ask(number) else []

    def _close_journal(self, now: Interval) -> list[Effect]:
        """Undecided transactions are told to ask again: then they are aborted for good."""
        if not self.serving:
            return []
        if self.membership.closing:
            tau = self.membership.closed_tau
            return [Closed(tau)] if tau else []
        if self._owns():
            # Nobody could own them after it: the new owner reads RELEASE, and CLOSE comes last.
            return [StillOwner(self.ranges.spans)]
        effects = self._abort_all_large(now, Code.CLOSED)
        stalled, self._stalled = self._stalled, {}
        undecided = [*stalled.values(), *((one.event, one.waiting) for one in self.gates.drop())]
        for event, waiting in undecided:
            effects += [Answer(to, event.txid, Outcome.RETRY, 0, Code.STARTING) for to in waiting]
        for ballot in self.ballots:
            effects += self._give_up(ballot, Code.STARTING)
        for event, waiting, _ in self._blocked.values():
            effects += self._retry(waiting, event.txid, Code.STARTING)
        self._blocked = {}
        effects += self.voter.drop_waiting()
        self.membership.close()
        return [*effects, *self._change(now)]

    def _change(self, now: Interval) -> list[Effect]:
        """Appends the changes that wait, unless a lease must become durable first."""
        waiting = self.membership.waiting
        effects: list[Effect] = []
        while waiting:
            tau = self.ledger.tau_for(now, 0)
            if tau > self.ledger.lease_durable:
                return effects + self.ledger.renew(now, tau)
            change = change_of(waiting.pop(0), tau)
            assert isinstance(change.payload, journal.Add) or not self._owns(), "CLOSE of an owner"
            effects.append(self.ledger.change(now, change))
        return effects

    def _changed(self, change: Change) -> Effect:
        self.membership.durable(change)
        if isinstance(change.payload, journal.Add):
            return Added(change.payload.journal, change.tau)
        return Closed(change.tau)

    def _timer(self, now: Interval, name: str) -> list[Effect]:
        if name == WORK_TIMER:
            return self._work(now)
        if name == GATE_TIMER:
            return self._open_gates(now)
        if name == HOLD_TIMER:
            return self._hold_due(now) if self.serving else []
        if name == HANDOVER_TIMER:
            return self._handover_due(now)
        assert name == ACK_TIMER, name
        return self._tell(self.ledger.due(now)) + self.ledger.ack_timer()

    def _fail(self, reason: str) -> list[Effect]:
        """Pending appends may have landed: their outcome is unknown, never "failed" (6.8)."""
        self.dead = True
        self.serving = False
        effects: list[Effect] = []
        for decision in self.ledger.abandoned():
            effects += [Answer(to, decision.txid, Outcome.UNKNOWN) for to in decision.waiting]
        undecided = [(event.txid, waiting) for event, waiting in self._stalled.values()]
        undecided += [(held.event.txid, held.waiting) for held in self.gates.drop()]
        undecided += [(txid, large.waiting) for txid, large in self._large.items()]
        for txid, waiting in undecided:
            effects += [Answer(to, txid, Outcome.RETRY, 0, Code.STARTING) for to in waiting]
        return [*effects, *self._waiting_for_others(), Fatal(reason)]

    def check(self) -> None:
        """Invariants too dear for every step; the simulator calls it."""
        self.ledger.check()
        told = [one for one in self.ledger.abandoned() if not isinstance(one, Change)]
        assert len(self._live) == len(told)
        assert not self._live.keys() & self._stalled.keys()
        assert not self._live.keys() & self._large.keys()
        assert not self.gates.held.keys() & (self._live.keys() | self._stalled.keys())
        assert self.gates.large.keys() <= self._large.keys()
        assert not self._live.keys() & self._blocked.keys()
        assert not any(ballot.txid in self._live for ballot in self.ballots)
        assert all(hold.tau_max <= self.ledger.lease_durable for hold in self.voter.holds)


def _answer(to: int, txid: bytes, tau: int, code: int) -> Answer:
    if tau > 0:
        return Answer(to, txid, Outcome.COMMITTED, tau)
    return Answer(to, txid, Outcome.ABORTED, 0, Code(code))
