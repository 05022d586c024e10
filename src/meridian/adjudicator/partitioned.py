"""What an adjudicator does as one of several: leads votes, votes, gives and takes ranges.

The rest of the core, `core.py`, decides as if alone; transactions of one owner take that way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from functools import reduce
from typing import Final

from meridian.adjudicator.absorber import Absorber
from meridian.adjudicator.ballots import FINAL_CODES, Ballot, Ballots, verdicts, voters_of
from meridian.adjudicator.cut import Cut, Part, cut
from meridian.adjudicator.events import (
    Answer,
    Append,
    CatalogKnown,
    Code,
    Commit,
    Effect,
    Move,
    Moved,
    Outcome,
    Send,
    Serving,
    SetTimer,
    Unmoved,
    WantCatalog,
)
from meridian.adjudicator.footprint import BadWriteSet, Footprint
from meridian.adjudicator.gates import Gates
from meridian.adjudicator.holds import Meeting
from meridian.adjudicator.ledger import Decision, Ledger
from meridian.adjudicator.membership import Membership
from meridian.adjudicator.outcomes import Outcomes
from meridian.adjudicator.ranges import Ranges
from meridian.adjudicator.relations import Relations
from meridian.adjudicator.together import Together
from meridian.adjudicator.voter import Voter
from meridian.adjudicator.window import Window, keys_of
from meridian.clock.tau import Interval
from meridian.journal import core as journal
from meridian.limits import BALLOTS, HANDOVER_RESEND_NS, HOLD_NS, HOLDS, VOTE_WAIT_NS
from meridian.wire.partition import NOBODY, Handover, Span, covers
from meridian.wire.votes import (
    Acquired,
    Ahead,
    Ask,
    Declined,
    Forget,
    Message,
    Released,
    Tally,
    Verdict,
    Vote,
    leader_of,
)

WORK_TIMER: Final = "work"
HOLD_TIMER: Final = "hold"
HANDOVER_TIMER: Final = "handover"
NO_TALLY: Final = Tally()


class Partitioned(ABC):
    """The state of one owner, and its dealings with the others."""

    def __init__(
        self, number: int, start: journal.Position, window_keys: int, spans: tuple[Span, ...]
    ) -> None:
        self.number = number
        self.ledger = Ledger(number)
        self.window = Window(start.tau, window_keys)
        # A journal that begins here, not behind a trim, holds every outcome it ever had.
        self.outcomes = Outcomes(start.tau if start.n else 0)
        self.membership = Membership(start)
        self.relations = Relations(start.catalog)
        self.ranges = Ranges(number, spans)
        if start.holding is not None:
            self.ranges.load(start.holding)
        self.gates = Gates()
        self.voter = Voter(
            number, self.ledger, self.window, self.relations, self.ranges, self.gates
        )
        self.ballots = Ballots()
        self.absorber = Absorber()
        self.together = Together()
        self.serving = False
        self.sealed = False
        """The SEAL is durable: heartbeats are given from here on (5.7)."""
        self.retries_count: dict[Code, int] = {}
        self._catalog_from = 0
        """Serves once the catalog is known through this tau."""
        self._incoming: Handover | None = None
        """A range that waits for the catalog."""
        self._durable: deque[tuple[int, list[Effect]]] = deque()
        """What to do once record n is durable."""
        self._live: dict[bytes, Decision] = {}
        self._blocked: dict[bytes, tuple[Commit, list[int], int]] = {}
        """Commits of this owner only that wait for younger holds, and until when."""

    # What core.py offers

    @abstractmethod
    def _refusal(self, tau_start: int, catver: int, prints: Sequence[Footprint]) -> Code | None:
        """Why this cannot commit, by floor and catalog."""

    @abstractmethod
    def _decide(self, now: Interval, event: Commit, waiting: list[int]) -> list[Effect]:
        """Decides a commit of this owner alone."""

    @abstractmethod
    def _retry_large(self, now: Interval) -> list[Effect]:
        """Large transactions that waited are looked at again."""

    @abstractmethod
    def _commit_large(self, now: Interval, event: Commit, waiting: list[int]) -> list[Effect]:
        """COMMIT of a large transaction."""

    @abstractmethod
    def _holds_chunks(self, txid: bytes) -> bool:
        """Are chunks of this transaction here?"""

    @abstractmethod
    def _keep_chunks(self, txid: bytes) -> None:
        """They stay although the client may be gone: a vote is under way."""

    @abstractmethod
    def _abort_chunks(
        self, now: Interval, txid: bytes, code: Code, waiting: list[int]
    ) -> list[Effect]:
        """The transaction of these chunks never commits."""

    @abstractmethod
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
        """The commit record, at `tau`."""

    @abstractmethod
    def _abort(
        self, now: Interval, txid: bytes, tau_start: int, code: Code, waiting: list[int]
    ) -> list[Effect]:
        """The abort record; who waits is told once it is durable."""

    def live_all(self, txids: Sequence[bytes], decisions: Sequence[Decision]) -> bool:
        """These are on their way to the disk; False: one of them was already."""
        if not self._live.keys().isdisjoint(txids) or len(set(txids)) < len(txids):
            return False
        self._live.update(zip(txids, decisions, strict=True))
        return True

    # Start and durability

    def _serve(self) -> list[Effect]:
        """The SEAL is durable: serve, or learn first which catalog is in force (5.7)."""
        if self.serving or not self.sealed:
            return []
        if self._catalog_from:
            return [WantCatalog(self._catalog_from)]
        self.serving = True
        effects: list[Effect] = [Serving()]
        if self.ranges.pending:
            effects += self._hand_over()
        return effects

    def _begin_partitioned(self, lease_old: int) -> None:
        """Other owners decided some of what was written here, in their journals (5.7)."""
        if not self.ranges.alone and lease_old:
            self.window.forget_before(lease_old)
            self._catalog_from = lease_old

    def _catalog_known(self, now: Interval, event: CatalogKnown) -> list[Effect]:
        effects: list[Effect] = []
        if self._catalog_from and event.tau >= self._catalog_from:
            self._catalog_from = 0
            self.relations.rebase(event.tau, event.version)
            effects += self._serve()
        incoming = self._incoming
        if incoming is not None and event.tau >= incoming.tau_m:
            self._incoming = None
            if not self.ranges.spans:
                self.relations.rebase(event.tau, event.version)
                effects += self._acquire(now, incoming)
        found, ended = self.voter.catalog(event.tau, event.version)
        return effects + found + ([*self._unblock(now), *self.hold_timer()] if ended else [])

    def _now_durable(self, n: int) -> list[Effect]:
        """Go-aheads come before answers (5.3), so the caller answers later."""
        effects: list[Effect] = []
        while self._durable and self._durable[0][0] <= n:
            effects += self._durable.popleft()[1]
        return effects

    # Messages

    def _heard(self, now: Interval, message: Message) -> list[Effect]:
        match message:
            case Ask():
                if not self.serving:
                    # It may be a standby: a no of its would end attempts that the owner supports.
                    return []
                if self.membership.closing:
                    # It owns nothing any more: whoever asks it has an old map.
                    return self.voter.refuse(message, Code.PLACE)
                return [*self.voter.ask(now, message), *self.hold_timer()]
            case Vote():
                return [*self._vote(now, message), *self.hold_timer()] if self.serving else []
            case Verdict():
                ended = self.voter.verdict(message)
                return [*self._unblock(now), *self.hold_timer()] if ended else []
            case Ahead():
                taken = self.serving and not self.membership.closing
                taken = taken and self.voter.ahead(now, message)
                return [SetTimer(WORK_TIMER, 0), *self.hold_timer()] if taken else []
            case Forget():
                self.voter.forget(message)
                return [SetTimer(WORK_TIMER, 0)]
            case Released():
                return self._released(now, message.handover)
            case Acquired():
                return self._acquired(message)
            case Declined():
                return self._declined(now, message) if self.serving else []

    # Leading

    def _open_ballot(self, now: Interval, event: Commit, waiting: list[int]) -> list[Effect]:
        """COMMIT of a transaction with voters."""
        if event.epoch != self.ledger.epoch:
            return self._retry(waiting, event.txid, Code.EPOCH)
        if event.attempt <= self.ballots.spent(event.txid):
            return self._retry(waiting, event.txid, Code.ATTEMPT)
        if len(self.ballots) >= BALLOTS:
            return self._retry(waiting, event.txid, Code.BUSY)
        assert event.voters and self.number not in event.voters
        ballot = self.ballots.get(event.txid)
        effects: list[Effect] = []
        if ballot is not None and ballot.attempt > event.attempt:
            # Votes for a later attempt came first.
            return self._retry(waiting, event.txid, Code.ATTEMPT)
        if ballot is not None and ballot.attempt < event.attempt:
            effects = self._give_up(ballot, Code.ATTEMPT)
            ballot = None
        if ballot is None:
            deadline = now.latest + VOTE_WAIT_NS
            ballot = Ballot(event.txid, event.tau_start, event.attempt, deadline)
            self.ballots.add(ballot)
        ballot.event, ballot.waiting = event, waiting
        if event.parts or self._holds_chunks(event.txid):
            # Compared while the votes are on their way.
            effects += self._commit_large(now, event, waiting)
        if self.ballots.get(event.txid) is ballot:
            effects += self._poll(now, ballot)
        return [*effects, *self.hold_timer()]

    def _vote(self, now: Interval, vote: Vote) -> list[Effect]:
        """Only votes for the live attempt of this epoch count (5.5)."""
        if vote.epoch != self.ledger.epoch:
            return self._correct(vote) if vote.epoch < self.ledger.epoch else []
        if vote.txid in self._live:
            return []
        if self.membership.closing:
            return self._correct(vote)
        ballot = self.ballots.get(vote.txid)
        known = self.outcomes.find(vote.txid, vote.tau_start) is not None
        if known or vote.attempt <= self.ballots.spent(vote.txid):
            return self._correct(vote)
        if ballot is not None and vote.attempt < ballot.attempt:
            return self._correct(vote)
        effects: list[Effect] = []
        if ballot is not None and vote.attempt > ballot.attempt:
            effects = self._give_up(ballot, Code.ATTEMPT)
            ballot = None
        if ballot is None:
            if vote.tau_start < self.outcomes.floor or len(self.ballots) >= BALLOTS:
                return effects
            # Its COMMIT is still on its way.
            deadline = now.latest + VOTE_WAIT_NS
            ballot = Ballot(vote.txid, vote.tau_start, vote.attempt, deadline)
            self.ballots.add(ballot)
        ballot.votes[vote.voter] = vote
        return effects + (self._poll(now, ballot) if ballot.event is not None else [])

    def _correct(self, vote: Vote) -> list[Effect]:
        """A vote that can never count any more: its hold may end now."""
        value = self.outcomes.find(vote.txid, vote.tau_start) or 0
        verdict = Verdict(vote.txid, vote.attempt, vote.epoch, max(value, 0))
        return [Send(vote.voter, verdict)] if vote.code == 0 else []

    def _poll(self, now: Interval, ballot: Ballot) -> list[Effect]:
        """Decides if everything is there."""
        event = ballot.event
        assert event is not None
        refusal = ballot.refusal()
        if refusal is not None:
            if refusal.code in FINAL_CODES:
                return self._abort_ballot(now, ballot, Code(refusal.code))
            return self._give_up(ballot, Code(refusal.code), refusal.version)
        if not ballot.complete:
            return []
        return self._decide_ballot(now, ballot, event)

    def _decide_ballot(self, now: Interval, ballot: Ballot, event: Commit) -> list[Effect]:
        if self._holds_chunks(event.txid):
            return self._retry_large(now)
        try:
            found = cut(event.chunk, self.ranges.map)
        except BadWriteSet:
            return self._abort_ballot(now, ballot, Code.MALFORMED)
        foreign = found.parts.get(NOBODY)
        outside = foreign.tally if foreign is not None else NO_TALLY
        if not self._covers(outside, found.everywhere, ballot.all_votes()):
            return self._give_up(ballot, Code.PLACE, self.ranges.version)
        own = found.part(self.number)
        code = self._own_refusal(event, found, own)
        if code is not None:
            return self._abort_ballot(now, ballot, code)
        if self.gates.blocks(event.txid, (own.footprint,)):
            return self._give_up(ballot, Code.HELD)
        age = event.tau_start, event.txid
        meeting = self.voter.holds.meet(age, own.footprint, everywhere=found.everywhere)
        if meeting is Meeting.WAIT:
            # Looked at again when the hold ends; the deadline stands.
            return []
        if meeting is Meeting.RETRY:
            return self._give_up(ballot, Code.HELD)
        tau = self.ledger.tau_for(now, max(event.tau_start, ballot.tau_a))
        if tau > ballot.tau_max:
            return self._give_up(ballot, Code.VOTES)
        if tau > self.ledger.lease_durable:
            # Looked at again when a lease becomes durable.
            return self.ledger.renew(now, tau)
        writes, shares = keys_of(own.footprint.writes), keys_of(own.footprint.shares)
        self.window.record(tau, writes, shares)
        self.relations.record(tau, (found.whole,), self.window.floor)
        self.ballots.end(event.txid)
        append = self._append_commit(now, event, tau, ballot.waiting, (), 0, (found.whole,))
        self._go_ahead(ballot, tau)
        return [append]

    def _go_ahead(self, ballot: Ballot, tau: int) -> None:
        """The voters hear of it as soon as the record just appended is durable."""
        go = verdicts(voters_of(ballot), ballot, self.ledger.epoch, tau)
        self._durable.append((self.ledger.n, go))

    def _covers(self, foreign: Tally, everywhere: bool, votes: Sequence[Vote]) -> bool:
        """Whether every key is held by a voter or owned here (5.3)."""
        if foreign != reduce(Tally.__add__, (vote.tally for vote in votes), NO_TALLY):
            return False
        if not everywhere:
            return bool(votes or self.ranges.spans)
        spans = [span for vote in votes for span in vote.spans]
        return covers([*spans, *self.ranges.spans])

    def _own_refusal(self, event: Commit, found: Cut, own: Part) -> Code | None:
        """Why the own keys forbid the commit."""
        floor = self.ranges.floor_max if found.everywhere else self.ranges.floor(own.bounds)
        assert floor is not None
        if event.tau_start < floor:
            return Code.FLOOR
        code = self._refusal(event.tau_start, event.catver, (own.footprint,))
        if code is not None:
            return code
        return Code.CONFLICT if self._conflicts(event.tau_start, own.footprint) else None

    def _conflicts(self, tau_start: int, print_: Footprint) -> bool:
        writes, unwritten = keys_of(print_.writes), keys_of(print_.shares + print_.checks)
        return self.window.conflicts(tau_start, writes, unwritten)

    def _give_up(self, ballot: Ballot, code: Code, version: int = 0) -> list[Effect]:
        """This attempt never commits; the transaction may, with a later one."""
        self.ballots.give_up(ballot)
        self._keep_chunks(ballot.txid)
        effects = verdicts(voters_of(ballot), ballot, self.ledger.epoch, 0)
        return effects + self._retry(ballot.waiting, ballot.txid, code, version)

    def _abort_ballot(self, now: Interval, ballot: Ballot, code: Code) -> list[Effect]:
        if self._holds_chunks(ballot.txid):
            return self._abort_chunks(now, ballot.txid, code, ballot.waiting)
        effects = self._end_ballot(ballot)
        return effects + self._abort(now, ballot.txid, ballot.tau_start, code, ballot.waiting)

    def _end_ballot(self, ballot: Ballot) -> list[Effect]:
        """It aborts.  No later owner knows of the attempt, so voters need not wait for the disk."""
        self.ballots.end(ballot.txid)
        return verdicts(voters_of(ballot), ballot, self.ledger.epoch, 0)

    def _end_other_attempts(self, decision: Decision) -> None:
        """The outcome was decided without their votes; they hear of it with its record."""
        ballot = self.ballots.get(decision.txid)
        self.ballots.end(decision.txid)
        if ballot is not None:
            told = verdicts(voters_of(ballot), ballot, self.ledger.epoch, decision.tau)
            self._durable.append((self.ledger.n + 1, told))

    def _retry(self, waiting: list[int], txid: bytes, code: Code, version: int = 0) -> list[Effect]:
        """No outcome: ask again."""
        self.retries_count[code] = self.retries_count.get(code, 0) + 1
        epoch = self.ledger.epoch
        return [Answer(to, txid, Outcome.RETRY, 0, code, epoch, version) for to in waiting]

    # Commits of one owner

    def _place(self, event: Commit, waiting: list[int]) -> list[Effect] | Cut:
        """The write set cut at the own borders, or why it cannot be decided here alone."""
        found = cut(event.chunk, self.ranges.map)
        alone = NOBODY not in found.parts and bool(self.ranges.spans)
        if alone and (not found.everywhere or covers(self.ranges.spans)):
            return found
        return self._retry(waiting, event.txid, Code.PLACE, self.ranges.version)

    def _meet(
        self, now: Interval, event: Commit, waiting: list[int], print_: Footprint, *, schema: bool
    ) -> list[Effect] | None:
        """What to do about holds of others; None: nothing."""
        age = event.tau_start, event.txid
        meeting = self.voter.holds.meet(age, print_, everywhere=schema)
        if meeting is Meeting.PASS:
            return None
        if meeting is Meeting.RETRY or len(self._blocked) >= HOLDS:
            return self._retry(waiting, event.txid, Code.HELD)
        self._blocked[event.txid] = event, waiting, now.latest + HOLD_NS
        return self.hold_timer()

    # Ends of holds

    def _unblock(self, now: Interval) -> list[Effect]:
        """A hold ended: who waited for it is looked at again."""
        effects = self.voter.again(now)
        blocked, self._blocked = self._blocked, {}
        for event, waiting, _ in blocked.values():
            effects += self._decide(now, event, waiting)
        return [*effects, *self._poll_ballots(now), *self._retry_large(now)]

    def _poll_ballots(self, now: Interval) -> list[Effect]:
        effects: list[Effect] = []
        for ballot in self.ballots:
            if ballot.event is not None and self.ballots.get(ballot.txid) is ballot:
                effects += self._poll(now, ballot)
        return effects

    def hold_timer(self) -> list[Effect]:
        """For the next promise, wait or attempt that ends."""
        times = [self.voter.deadline(), self.ballots.deadline()]
        times += [until for _, _, until in self._blocked.values()]
        due = [time for time in times if time is not None]
        timers: list[Effect] = [SetTimer(HOLD_TIMER, min(due) + 1)] if due else []
        if self.voter.busy:
            # A large transaction that ends as a voter's commit here gives keys that were sent
            # ahead, and compared, more to be compared with.
            timers.append(SetTimer(WORK_TIMER, 0))
        return timers

    def _hold_due(self, now: Interval) -> list[Effect]:
        effects, ended = self.voter.due(now)
        for ballot in self.ballots:
            if ballot.deadline < now.earliest:
                effects += self._give_up(ballot, Code.VOTES)
        for txid, (_, waiting, until) in list(self._blocked.items()):
            if until < now.earliest:
                del self._blocked[txid]
                effects += self._retry(waiting, txid, Code.HELD)
        # What a journal that ends does not hold is an abort, without a record of it.
        while not self.membership.closing and (old := self.ballots.overflow()) is not None:
            self.ballots.end(old[0])
            effects += self._abort(now, old[0], old[1], Code.RESOLVED, [])
        return [*effects, *(self._unblock(now) if ended else []), *self.hold_timer()]

    # Ranges (5.8)

    def _move(self, now: Interval, event: Move) -> list[Effect]:
        if not self.serving or event.target == self.number:
            return []
        ranges = self.ranges
        if event.version <= ranges.version:
            # Heard before; a command that comes late must not move a range that came back.
            done = ranges.released
            if done is None or done.version != event.version:
                return [Unmoved(event.version)]
            return [] if ranges.pending else [Moved(done)]
        # What was done before the journal ended is still told: the first answer may be lost.
        if self.membership.closing or ranges.pending or not ranges.covers(event.parts()):
            return []
        ledger = self.ledger
        # Above every commit and promise, those included whose outcome is not known here.
        tau_m = max(
            ledger.last_tau,
            ledger.promised,
            ledger.beat,
            self.window.newest,
            self.window.floor,
            self.voter.holds.tau_max(),
            ranges.floor_max,
        )
        ranges.hear(event.version)
        ranges.release(event.parts())
        ranges.released = Handover(
            self.number,
            ledger.n + 1,
            event.lo,
            event.hi,
            event.target,
            tau_m,
            ranges.version,
            event.more,
        )
        ranges.pending = True
        append = ledger.ranges(now, journal.Release, ranges.holding())
        self._durable.append((ledger.n, self._hand_over()))
        return [append]

    def _hand_over(self) -> list[Effect]:
        """Tells the new owner, until it answers."""
        released = self.ranges.released
        assert released is not None and self.ranges.pending
        return [Send(released.target, Released(released)), SetTimer(HANDOVER_TIMER, 0)]

    def _handover_due(self, now: Interval) -> list[Effect]:
        released = self.ranges.released
        if released is None or not self.ranges.pending or released.n > self.ledger.n_durable:
            return []
        again = SetTimer(HANDOVER_TIMER, now.earliest + HANDOVER_RESEND_NS)
        return [Send(released.target, Released(released)), again]

    def _released(self, now: Interval, handover: Handover) -> list[Effect]:
        if not self.serving or handover.target != self.number:
            return []
        if self.ranges.seen.get(handover.source, 0) >= handover.n:
            pending = any(
                isinstance(one, Send) and isinstance(one.message, Acquired)
                for _, effects in self._durable
                for one in effects
            )
            return [] if pending else [Send(handover.source, Acquired(self.number, handover.n))]
        if self.ranges.meets(handover.parts()):
            # Another owner of this journal gave it away since: this one is deposed, and will hear
            # so from the journal.
            return []
        if self.membership.closed_tau:
            return [Send(handover.source, Declined(self.number, handover.n))]
        if self.membership.closing or self._incoming is not None:
            return []
        if not self.ranges.spans:
            # Schema changes were not voted on here: which catalog is in force at tau_m?
            self._incoming = handover
            return [WantCatalog(handover.tau_m)]
        return self._acquire(now, handover)

    def _acquire(self, now: Interval, handover: Handover) -> list[Effect]:
        ranges = self.ranges
        ranges.acquire(handover.parts(), handover.tau_m)
        ranges.seen[handover.source] = handover.n
        ranges.hear(handover.version)
        append = self.ledger.ranges(now, journal.Acquire, ranges.holding())
        told = Send(handover.source, Acquired(self.number, handover.n))
        self._durable.append((self.ledger.n, [told]))
        return [append]

    def _acquired(self, message: Acquired) -> list[Effect]:
        released = self.ranges.released
        if released is None or released.n != message.n or released.target != message.target:
            return []
        was, self.ranges.pending = self.ranges.pending, False
        return [Moved(released)] if was else []

    def _declined(self, now: Interval, message: Declined) -> list[Effect]:
        """The target's journal ended before it read the RELEASE: nobody else can own the range."""
        ranges, released = self.ranges, self.ranges.released
        if released is None or not ranges.pending:
            return []
        if (released.target, released.n) != (message.target, message.n):
            return []
        assert not self.membership.closing, "CLOSE waits for what was released"
        ranges.acquire(released.parts(), released.tau_m)
        ranges.released, ranges.pending = None, False
        append = self.ledger.ranges(now, journal.Acquire, ranges.holding())
        self._durable.append((self.ledger.n, [Unmoved(released.version)]))
        return [append]

    def _owns(self) -> bool:
        """Whether ranges are its own, or may be if a message comes."""
        ranges = self.ranges
        if ranges.alone:
            # Relations of its own: nobody else could take them.
            return False
        return bool(ranges.spans or ranges.pending or self._incoming is not None)

    # End

    def _waiting_for_others(self) -> list[Effect]:
        """Those whom only this owner could answer: at its end they must ask the next one."""
        effects = self.voter.drop_waiting()
        for ballot in self.ballots:
            effects += self._retry(ballot.waiting, ballot.txid, Code.STARTING)
        for event, waiting, _ in self._blocked.values():
            effects += self._retry(waiting, event.txid, Code.STARTING)
        return effects

    def _misled(self, txid: bytes) -> bool:
        """Whether the id names another leader (5.6)."""
        return not self.ranges.alone and leader_of(txid) != self.number
