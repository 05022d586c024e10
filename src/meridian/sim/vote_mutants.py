"""Cores with one rule broken each: of votes, take-overs with promises, ranges that move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from meridian.adjudicator import events as ev
from meridian.adjudicator.ahead import SentAhead
from meridian.adjudicator.ballots import Ballot
from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.cut import Cut
from meridian.adjudicator.events import Code
from meridian.adjudicator.footprint import Footprint
from meridian.adjudicator.holds import Age, Hold, Meeting
from meridian.adjudicator.ledger import Ledger
from meridian.adjudicator.relations import Relations
from meridian.adjudicator.voter import Voter
from meridian.clock.tau import TAU_MAX, Interval
from meridian.journal.core import Position
from meridian.limits import HOLD_NS
from meridian.sim.messages import Parts
from meridian.sim.world import MS
from meridian.wire import partition, votes
from meridian.wire.partition import Handover
from meridian.wire.votes import Ask, Tally, Verdict, Vote

FOCUS: dict[str, object] = {
    "partitioned": True,
    "owners": 3,
    "replicas": 1,
    "clients": 6,
    "colocated": False,
    "streams": False,
    "coded": False,
    "adds": 0,
    "closes": 0,
    "rots": 0,
    "crashes": 0,
    "pauses": 0,
    "crash_at_append": 0.0,
    "crash_at_vote": 0.0,
    "sync_failure": 0.0,
    "clock_error": 20_000,
    "false_bounds": False,
    "drop": 0.02,
    "double": 0.3,
    "late": 0.1,
    "delay": (50_000, MS),
    "late_delay": (2 * MS, 60 * MS),
    "sync": (50_000, 300_000),
    "window_keys": 1 << 20,
    "keys": 3,
    "moves": 0,
    "moves_at_votes": 0.0,
    "moves_more": 0.0,
    "wide": 0.8,
    "ahead": 0.0,
    "weights": (0, 3, 2, 0, 0, 0, 1, 0, 0),
}
"""Much contention among three owners, late and doubled messages, and nothing else."""
MOVING = {**FOCUS, "moves_at_votes": 0.03, "late": 0.3, "late_delay": (5 * MS, 90 * MS)}
SEVERAL = {**MOVING, "moves_more": 1.0}
AHEAD = {**FOCUS, "ahead": 1.0, "drop": 0.0}
SCHEMA = {**FOCUS, "drop": 0.1, "weights": (0, 1, 1, 0, 0, 0, 0, 3, 0)}
TAKEN = {**FOCUS, "crashes": 6, "weights": (0, 2, 1, 0, 0, 0, 0, 2, 0)}

Spans = tuple[partition.Span, ...]
WHOLE: Spans = (partition.EVERYTHING,)


def parts(
    base: type[Adjudicator] = Adjudicator,
    voter: type[Voter] | None = None,
    relations: type[Relations] | None = None,
    ledger: type[Ledger] | None = None,
    swarm: dict[str, object] | None = None,
) -> Parts:
    """Adjudicators with one part of another class."""

    def make(
        number: int, start: Position | None = None, keys: int = 1 << 20, spans: Spans = WHOLE
    ) -> Adjudicator:
        core = base(number, start, keys, spans)
        if ledger is not None:
            core.ledger = core.voter.ledger = ledger(number)
        if relations is not None:
            core.relations = relations(core.relations.catalog_version)
            core.voter.relations = core.relations
        if voter is not None:
            old = core.voter
            core.voter = voter(number, old.ledger, old.window, old.relations, old.ranges, old.gates)
        return core

    return Parts(adjudicator=make, swarm=swarm or {})


# The leader


class IgnoresTauMax(Adjudicator):
    """Commits beyond promises."""

    def _decide_ballot(self, now: Interval, ballot: Ballot, event: ev.Commit) -> list[ev.Effect]:
        ballot.votes = {
            voter: msgspec.structs.replace(vote, tau_max=TAU_MAX)
            for voter, vote in ballot.votes.items()
        }
        return super()._decide_ballot(now, ballot, event)


class IgnoresTauA(Adjudicator):
    """Commits below what a voter has promised to readers and committed."""

    def _decide_ballot(self, now: Interval, ballot: Ballot, event: ev.Commit) -> list[ev.Effect]:
        ballot.votes = {
            voter: msgspec.structs.replace(vote, tau_a=0) for voter, vote in ballot.votes.items()
        }
        return super()._decide_ballot(now, ballot, event)


class NoCoverage(Adjudicator):
    """Does not look whether its voters hold what it lacks."""

    def _covers(self, foreign: Tally, everywhere: bool, votes: Sequence[Vote]) -> bool:
        return True


class NoMissingVotes(Adjudicator):
    """Decides when the first vote is there."""

    def _poll(self, now: Interval, ballot: Ballot) -> list[ev.Effect]:
        assert ballot.event is not None
        if ballot.votes:
            voters = tuple(sorted(ballot.votes))
            ballot.event = msgspec.structs.replace(ballot.event, voters=voters)
        return super()._poll(now, ballot)

    def _covers(self, foreign: Tally, everywhere: bool, votes: Sequence[Vote]) -> bool:
        return True


class AnyAttempt(Adjudicator):
    """Counts votes of attempts that were given up."""

    def _vote(self, now: Interval, vote: Vote) -> list[ev.Effect]:
        ballot = self.ballots.get(vote.txid)
        if ballot is not None and vote.epoch == self.ledger.epoch:
            vote = msgspec.structs.replace(vote, attempt=ballot.attempt)
        return super()._vote(now, vote)


class AnyLeader(Adjudicator):
    """Answers for transactions whose ids name another leader."""

    def _misled(self, txid: bytes) -> bool:
        return False


class LeaderPassesHolds(Adjudicator):
    """A leader's own keys pass although an older promise holds them."""

    def _decide_ballot(self, now: Interval, ballot: Ballot, event: ev.Commit) -> list[ev.Effect]:
        holds, self.voter.holds = self.voter.holds, type(self.voter.holds)()
        effects = super()._decide_ballot(now, ballot, event)
        self.voter.holds = holds
        return effects


# Commits of one owner


class PassesHolds(Adjudicator):
    """Commits over keys that are held for others."""

    def _meet(
        self,
        now: Interval,
        event: ev.Commit,
        waiting: list[int],
        print_: Footprint,
        *,
        schema: bool,
    ) -> list[ev.Effect] | None:
        return None


class AbortsTheYounger(Adjudicator):
    """Who meets a hold gets 40001 instead of another attempt."""

    def _meet(
        self,
        now: Interval,
        event: ev.Commit,
        waiting: list[int],
        print_: Footprint,
        *,
        schema: bool,
    ) -> list[ev.Effect] | None:
        age = event.tau_start, event.txid
        if self.voter.holds.meet(age, print_, everywhere=schema) is Meeting.PASS:
            return None
        return self._abort(now, event.txid, event.tau_start, Code.CONFLICT, waiting)


class AnyPlace(Adjudicator):
    """Commits keys of others."""

    def _place(self, event: ev.Commit, waiting: list[int]) -> list[ev.Effect] | Cut:
        found = super()._place(event, waiting)
        if isinstance(found, list):
            return self._cut(event)
        return found

    def _cut(self, event: ev.Commit) -> Cut:
        from meridian.adjudicator.cut import cut

        found = cut(event.chunk, partition.whole_map(self.number))
        bounds = tuple(one for one in found.part(self.number).bounds if self.ranges.floor([one]))
        part = msgspec.structs.replace(found.part(self.number), bounds=bounds)
        return msgspec.structs.replace(found, parts={self.number: part})


# The voter


class ForgetsExpired(Voter):
    """A promise that ends without a verdict leaves nothing behind."""

    def _expire(self, hold: Hold) -> ev.Effect:
        self.holds.remove(hold.ask.txid)
        return ev.Expired(hold.ask.txid, hold.tau_max)


class ForgetsVerdicts(Voter):
    """A commit that it hears of leaves nothing behind."""

    def _record(self, hold: Hold, tau: int) -> None:
        if tau == hold.tau_max:
            super()._record(hold, tau)


class PromisesBeyondLease(Voter):
    """Promises longer than its durable lease."""

    def _answer(self, now: Interval, ask: Ask, until: int) -> list[ev.Effect]:
        lease = self.ledger.lease_durable
        self.ledger.lease_durable = max(lease, now.latest + 20 * HOLD_NS)
        effects = super()._answer(now, ask, until)
        held = self.holds.get(ask.txid)
        if held is not None and effects:
            effects[0] = self._longer(held, now.latest + 20 * HOLD_NS)
        self.ledger.lease_durable = lease
        return effects

    def _longer(self, held: Hold, tau_max: int) -> ev.Effect:
        held.tau_max = tau_max
        held.vote = msgspec.structs.replace(held.vote, tau_max=tau_max)
        return ev.Send(votes.leader_of(held.ask.txid), held.vote)


class NoLeaseCheck(Adjudicator):
    """For PromisesBeyondLease: does not catch itself."""

    def check(self) -> None:
        pass


class HoldsForeignKeys(Voter):
    """Votes for keys that it does not own."""

    def _code(
        self, now: Interval, ask: Ask, print_: Footprint, sent: SentAhead | None
    ) -> Code | None:
        owned = tuple(bound for bound in ask.bounds if self.ranges.floor([bound]) is not None)
        return super()._code(now, msgspec.structs.replace(ask, bounds=owned), print_, sent)


class EndsAnyAttempt(Voter):
    """Lets go of a later attempt's keys because an earlier one was given up."""

    def verdict(self, verdict: Verdict) -> bool:
        hold = self.holds.get(verdict.txid)
        if hold is not None and not verdict.tau:
            verdict = msgspec.structs.replace(
                verdict, attempt=hold.ask.attempt, epoch=hold.ask.epoch
            )
        return super().verdict(verdict)


class VotesOverHolds(Voter):
    """Holds keys that are held already."""

    def _answer(self, now: Interval, ask: Ask, until: int) -> list[ev.Effect]:
        meet = self.holds.meet

        def passing(
            age: Age, print_: Footprint, *, everywhere: bool, sent: SentAhead | None = None
        ) -> Meeting:
            return Meeting.PASS

        self.holds.meet = passing  # type: ignore[method-assign]
        effects = super()._answer(now, ask, until)
        self.holds.meet = meet  # type: ignore[method-assign]
        return effects


class VotesWithoutLooking(Voter):
    """Votes yes whatever was written."""

    def _code(
        self, now: Interval, ask: Ask, print_: Footprint, sent: SentAhead | None
    ) -> Code | None:
        code = super()._code(now, ask, print_, sent)
        return None if code is Code.CONFLICT else code


class VotesBelowFloor(Voter):
    """Votes on transactions that began before what it knows."""

    def _code(
        self, now: Interval, ask: Ask, print_: Footprint, sent: SentAhead | None
    ) -> Code | None:
        floor, self.window.floor = self.window.floor, 0
        code = super()._code(now, ask, print_, sent)
        self.window.floor = floor
        return None if code is Code.FLOOR else code


class NoCatalogVote(Voter):
    """Votes without comparing catalog versions."""

    def _code(
        self, now: Interval, ask: Ask, print_: Footprint, sent: SentAhead | None
    ) -> Code | None:
        code = super()._code(now, ask, print_, sent)
        return None if code is Code.CATALOG else code


class DropsSchemaHolds(Voter):
    """Takes an expired schema change for one that did not happen."""

    def due(self, now: Interval) -> tuple[list[ev.Effect], bool]:
        for hold in self.holds:
            if hold.tau_max < now.earliest and hold.footprint.catalog_version:
                self.holds.remove(hold.ask.txid)
        return super().due(now)


# Take-over and ranges


class NoFloorAtTakeOver(Adjudicator):
    """A new owner that takes its own journal for all there was."""

    def _begin_partitioned(self, lease_old: int) -> None:
        pass


class NoCatalogAtTakeOver(Adjudicator):
    """A new owner that serves without learning which catalog is in force."""

    def _begin_partitioned(self, lease_old: int) -> None:
        if not self.ranges.alone and lease_old:
            self.window.forget_before(lease_old)


class ReleaseForgetsPromises(Adjudicator):
    """tau_m lies above its commits only."""

    def _move(self, now: Interval, event: ev.Move) -> list[ev.Effect]:
        holds, self.voter.holds = self.voter.holds, type(self.voter.holds)()
        effects = super()._move(now, event)
        self.voter.holds = holds
        return effects


class AcquiresWithoutFloor(Adjudicator):
    """Takes a range as if it knew what happened there."""

    def _acquire(self, now: Interval, handover: Handover) -> list[ev.Effect]:
        return super()._acquire(now, msgspec.structs.replace(handover, tau_m=0))


class AcquiresTwice(Adjudicator):
    """Forgets at a take-over which ranges it has acquired, and takes them again."""

    def _released(self, now: Interval, handover: Handover) -> list[ev.Effect]:
        if not self.ranges.covers(handover.parts()) and not any(
            span.lo < handover.hi and handover.lo < span.hi for span in self.ranges.spans
        ):
            self.ranges.seen.pop(handover.source, None)
        return super()._released(now, handover)


class KeepsReleased(Adjudicator):
    """Goes on with a range until its new owner has it."""

    kept: Spans = ()

    def _move(self, now: Interval, event: ev.Move) -> list[ev.Effect]:
        spans = self.ranges.spans
        effects = super()._move(now, event)
        if effects and isinstance(effects[0], ev.Append):
            self.kept = self.ranges.spans
            self.ranges._set(spans, self.ranges.version)
        return effects

    def _acquired(self, message: votes.Acquired) -> list[ev.Effect]:
        effects = super()._acquired(message)
        if effects:
            self.ranges._set(self.kept, self.ranges.version)
        return effects


class ReleasesOne(Adjudicator):
    """Goes on with the further ranges of a hand-over."""

    def _move(self, now: Interval, event: ev.Move) -> list[ev.Effect]:
        effects = super()._move(now, event)
        if event.more and effects and isinstance(effects[0], ev.Append):
            self.ranges.acquire(event.more, 0)
        return effects

    def _acquire(self, now: Interval, handover: Handover) -> list[ev.Effect]:
        # What it kept may come back: it has it already.
        for lo, hi in handover.parts():
            self.ranges.release([(lo, hi)])
        return super()._acquire(now, handover)


# Keys sent ahead


class AheadUnchecked(Voter):
    """Votes for keys that it was sent ahead without having compared them."""

    def _code(
        self, now: Interval, ask: Ask, print_: Footprint, sent: SentAhead | None
    ) -> Code | None:
        if sent is not None:
            sent.draft.conflict = False
        return super()._code(now, ask, print_, sent)


class AheadForgotten(Voter):
    """Keys that it was sent ahead do not count as written once the transaction has committed."""

    def _record(self, hold: Hold, tau: int) -> None:
        if hold.sent is not None:
            self._drop_sent(hold.ask.txid)
            hold.sent = None
        super()._record(hold, tau)


class AheadUnheld(Voter):
    """Keys that it was sent ahead hold up nobody."""

    def _hold(
        self, ask: Ask, print_: Footprint, tau_max: int, sent: SentAhead | None
    ) -> list[ev.Effect]:
        effects = super()._hold(ask, print_, tau_max, sent)
        hold = self.holds.get(ask.txid)
        if hold is not None and hold.sent is not None:
            # Bound to the draft, which is still recorded when the promise ends.
            setattr(hold.sent.draft, "meets", lambda writes, shares: False)  # noqa: B010
        return effects


# Relations


class NoRelationLocks(Relations):
    """Locks of whole relations stand against nobody."""

    def conflict(self, tau_start: int, prints: Iterable[Footprint]) -> bool:
        return False


class NoGlobalReach(Relations):
    """What concerns everybody concerns nobody."""

    def record(self, tau: int, prints: Sequence[Footprint], floor: int) -> None:
        super().record(tau, prints, floor)
        self._everybody = 0, 0


class NoReach(Relations):
    """A version concerns only what its ops name."""

    def record(self, tau: int, prints: Sequence[Footprint], floor: int) -> None:
        stripped = [
            msgspec.structs.replace(one, reach=None, schema=type(one.schema)((), ()))
            for one in prints
        ]
        super().record(tau, stripped, floor)


MUTANTS: tuple[tuple[str, str, int, Parts], ...] = (
    ("commits beyond a promise", "5.3", 60, parts(IgnoresTauMax, swarm=FOCUS)),
    ("does not look whether all keys are held", "5.3", 60, parts(NoCoverage, swarm=MOVING)),
    ("decides before all voted", "5.3", 60, parts(NoMissingVotes, swarm=FOCUS)),
    ("counts votes of attempts given up", "5.5", 60, parts(AnyAttempt, swarm=FOCUS)),
    ("answers for another leader", "5.6", 150, parts(AnyLeader, swarm=FOCUS)),
    ("leads over a promise", "5.3", 60, parts(LeaderPassesHolds, swarm=FOCUS)),
    ("commits over a promise", "5.3", 60, parts(PassesHolds, swarm=FOCUS)),
    ("a hold costs the younger its transaction", "5.3", 60, parts(AbortsTheYounger, swarm=FOCUS)),
    ("commits keys of others", "5.8", 60, parts(AnyPlace, swarm=MOVING)),
    ("forgets expired promises", "5.4", 60, parts(voter=ForgetsExpired, swarm=FOCUS)),
    ("forgets verdicts", "5.4", 60, parts(voter=ForgetsVerdicts, swarm=FOCUS)),
    ("promises beyond its lease", "5.3, 6.6", 150, parts(NoLeaseCheck, PromisesBeyondLease)),
    ("votes for keys of others", "5.3", 60, parts(voter=HoldsForeignKeys, swarm=MOVING)),
    ("ends a later attempt's hold", "5.5", 60, parts(voter=EndsAnyAttempt, swarm=FOCUS)),
    ("votes over a promise", "5.3", 60, parts(voter=VotesOverHolds, swarm=FOCUS)),
    ("votes without looking", "5.1", 60, parts(voter=VotesWithoutLooking, swarm=FOCUS)),
    ("votes below its floor", "5.7", 150, parts(voter=VotesBelowFloor)),
    ("votes without the catalog", "9", 60, parts(voter=NoCatalogVote, swarm=SCHEMA)),
    ("does not compare keys sent ahead", "5.3", 60, parts(voter=AheadUnchecked, swarm=AHEAD)),
    ("forgets keys sent ahead", "5.4", 60, parts(voter=AheadForgotten, swarm=AHEAD)),
    ("does not hold keys sent ahead", "5.3", 60, parts(voter=AheadUnheld, swarm=AHEAD)),
    ("drops expired schema changes", "5.4, 9", 60, parts(voter=DropsSchemaHolds, swarm=SCHEMA)),
    ("takes over without a floor", "5.7", 150, parts(NoFloorAtTakeOver, swarm=TAKEN)),
    (
        "takes over without the catalog",
        "5.7, 9",
        300,
        parts(NoCatalogAtTakeOver),
    ),
    ("releases below its promises", "5.8", 60, parts(ReleaseForgetsPromises, swarm=MOVING)),
    ("acquires without a floor", "5.8", 150, parts(AcquiresWithoutFloor)),
    ("acquires a range twice", "5.8", 150, parts(AcquiresTwice)),
    ("keeps a range that it released", "5.8", 300, parts(KeepsReleased, swarm=MOVING)),
    ("releases one of several ranges", "5.8", 60, parts(ReleasesOne, swarm=SEVERAL)),
    ("ignores relation locks", "9", 300, parts(relations=NoRelationLocks)),
    ("ignores global reach", "9", 300, parts(relations=NoGlobalReach, swarm=SCHEMA)),
    ("ignores the reach of versions", "9", 300, parts(relations=NoReach, swarm=SCHEMA)),
    ("ignores tau_a", "4.4", 300, parts(IgnoresTauA, swarm=SCHEMA)),
)
