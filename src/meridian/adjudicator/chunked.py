"""Large transactions of one adjudicator: chunks are journaled as they come, compared in slices.

`large.py` holds what is known of one; here is what is done about all of them.  The decision itself
follows the rules of any other: `core.py` offers the refusals, the abort and the commit record.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from meridian.adjudicator.cut import cut
from meridian.adjudicator.events import (
    Answer,
    Code,
    Commit,
    Effect,
    Outcome,
    Part,
    Refused,
    SetTimer,
)
from meridian.adjudicator.footprint import BadWriteSet, footprint
from meridian.adjudicator.holds import Meeting
from meridian.adjudicator.large import Large
from meridian.adjudicator.partitioned import WORK_TIMER, Partitioned
from meridian.clock.tau import Interval
from meridian.journal import core as journal
from meridian.limits import LARGE_COMMITS, TAU_FUTURE_NS
from meridian.wire.partition import Span
from meridian.wire.votes import Vote


class Chunked(Partitioned):
    """An owner that takes large transactions; only these methods change what is on its way."""

    def __init__(
        self, number: int, start: journal.Position, window_keys: int, spans: tuple[Span, ...]
    ) -> None:
        super().__init__(number, start, window_keys, spans)
        self._large: dict[bytes, Large] = {}
        self._vote_next = True
        """Whether keys that others sent ahead get the next slice of work."""

    @abstractmethod
    def _waiting(self, txid: bytes) -> list[int] | None:
        """Who waits for the outcome of this transaction; None if no decision is under way."""

    # Chunks

    def _part(self, now: Interval, event: Part) -> list[Effect]:
        if not self.serving or self._waiting(event.txid) is not None or self.membership.closing:
            return []
        if self._misled(event.txid):
            return []
        if self.outcomes.find(event.txid, event.tau_start) is not None:
            return []
        if not self.outcomes.floor <= event.tau_start <= now.latest + TAU_FUTURE_NS:
            # It may have been decided long ago: nothing may be decided here (5.6).
            return []
        large = self._large.get(event.txid)
        if large is None:
            if event.seq != 0:
                return []
            if len(self._large) >= LARGE_COMMITS:
                return [Refused(event.txid, Code.BUSY)]
            large = self._open_large(event.txid, event.tau_start)
        if event.seq != len(large.bodies):
            # Doubled, or one before it was lost: COMMIT will find too few.
            return []
        try:
            self._take_chunk(large, event.chunk)
        except BadWriteSet:
            return self._abort_large(now, event.txid, large, Code.MALFORMED)
        n, append = self.ledger.body(now, event.txid, event.seq, event.chunk, event.tau_start)
        large.bodies.append(n)
        return [append, SetTimer(WORK_TIMER, 0)]

    def _open_large(self, txid: bytes, tau_start: int) -> Large:
        draft = self.window.open_draft(tau_start)
        large = self._large[txid] = Large(tau_start, draft, alone=self.ranges.alone)
        large.spans = self.ranges.spans
        return large

    def _take_chunk(self, large: Large, chunk: bytes) -> None:
        if large.alone:
            large.take(chunk, footprint(chunk))
        else:
            large.take_cut(chunk, cut(chunk, self.ranges.map), self.number)

    def _commit_large(self, now: Interval, event: Commit, waiting: list[int]) -> list[Effect]:
        large = self._large.get(event.txid)
        if large is None:
            if event.parts:
                # Its parts were dropped here; no part of it can ever be decided (final).
                return self._abort(now, event.txid, event.tau_start, Code.PARTS, waiting)
            if len(self._large) >= LARGE_COMMITS:
                return [Answer(to, event.txid, Outcome.RETRY, 0, Code.BUSY) for to in waiting]
            large = self._open_large(event.txid, event.tau_start)
        large.final, large.waiting = event, waiting
        if event.parts != len(large.bodies) or event.tau_start != large.tau_start:
            return self._abort_large(now, event.txid, large, Code.PARTS)
        if large.last is not None and large.last != event.chunk:
            return self._abort_large(now, event.txid, large, Code.PARTS)
        try:
            if large.last is None:
                self._take_chunk(large, event.chunk)
                large.last = event.chunk
        except BadWriteSet:
            return self._abort_large(now, event.txid, large, Code.MALFORMED)
        return self._progress(now, event.txid, large)

    # The decision

    def _progress(self, now: Interval, txid: bytes, large: Large) -> list[Effect]:
        """A few milliseconds of work on a large transaction; decides it when all is compared."""
        floor = self._large_floor(large)
        if floor is None:
            return self._abort_large(now, txid, large, Code.MOVED)
        if large.tau_start < max(floor, self.window.floor):
            return self._abort_large(now, txid, large, Code.FLOOR)
        self.window.work(large.draft)
        if large.draft.conflict:
            return self._abort_large(now, txid, large, Code.CONFLICT)
        if not large.draft.ready:
            return [SetTimer(WORK_TIMER, 0)]
        if large.final is None:
            return []
        code = self._refusal(large.tau_start, large.final.catver, large.prints)
        if code is not None:
            return self._abort_large(now, txid, large, code)
        if self.gates.blocks(txid, large.prints):
            if self.gates.hold_large(now.earliest, txid):
                return []
            return self._abort_large(now, txid, large, Code.GATED)
        self.gates.large.pop(txid, None)
        votes: Sequence[Vote] = ()
        if large.final.voters:
            ballot = self.ballots.get(txid)
            if ballot is None or ballot.event is None or not ballot.agreed:
                return []
            votes = ballot.all_votes()
        if not self._covers(large.foreign, large.everywhere, votes):
            if large.spans != self.ranges.spans:
                # Keys that were another's may be its own now, and were never compared here.
                return self._abort_large(now, txid, large, Code.MOVED)
            return self._large_again(txid, large, Code.PLACE)
        return self._publish(now, txid, large, votes)

    def _large_floor(self, large: Large) -> int | None:
        """The floor of the ranges that hold its keys; None if one of them has gone."""
        if large.alone:
            return 0 if self.ranges.alone else None
        return self.ranges.floor_max if large.everywhere else large.floor_in(self.ranges)

    def _large_again(self, txid: bytes, large: Large, code: Code) -> list[Effect]:
        """Another attempt may pass; its chunks are here."""
        waiting = large.waiting
        self._keep_chunks(txid)
        ballot = self.ballots.get(txid)
        if ballot is not None:
            return self._give_up(ballot, code, self.ranges.version)
        return self._retry(waiting, txid, code, self.ranges.version)

    def _publish(
        self, now: Interval, txid: bytes, large: Large, votes: Sequence[Vote]
    ) -> list[Effect]:
        final = large.final
        assert final is not None
        if self.voter.holds:
            age = large.tau_start, txid
            meeting = self.voter.holds.meet_draft(
                age, large.draft, large.prints, everywhere=large.everywhere
            )
            if meeting is Meeting.RETRY and votes:
                # The older one may wait for what is held elsewhere for this one.
                return self._large_again(txid, large, Code.HELD)
            if meeting is not Meeting.PASS:
                # Its chunks are here, and holds end soon.
                return []
        tau = self.ledger.tau_for(now, max([large.tau_start, *(vote.tau_a for vote in votes)]))
        if any(tau > vote.tau_max for vote in votes):
            return self._large_again(txid, large, Code.VOTES)
        if tau > self.ledger.lease_durable:
            # Looked at again when a lease becomes durable.
            return self.ledger.renew(now, tau)
        ballot = self.ballots.get(txid)
        del self._large[txid]
        self.ballots.end(txid)
        self.window.publish(large.draft, tau)
        self.relations.record(tau, large.prints, self.window.floor)
        bodies = tuple(large.bodies)
        crc = large.crc if bodies else 0
        append = self._append_commit(now, final, tau, large.waiting, bodies, crc, large.prints)
        if ballot is not None and votes:
            self._go_ahead(ballot, tau)
        return [append]

    def _abort_large(self, now: Interval, txid: bytes, large: Large, code: Code) -> list[Effect]:
        del self._large[txid]
        self.gates.large.pop(txid, None)
        self.window.drop(large.draft)
        effects: list[Effect] = []
        ballot = self.ballots.get(txid)
        if ballot is not None:
            effects += self._end_ballot(ballot)
        effects += self._abort(now, txid, large.tau_start, code, large.waiting)
        return [*effects, Refused(txid, code), SetTimer(WORK_TIMER, 0)]

    def _discard(self, now: Interval, txid: bytes) -> list[Effect]:
        large = self._large.get(txid)
        if large is None or large.final is not None:
            return []
        return self._abort_large(now, txid, large, Code.RESOLVED)

    def _work(self, now: Interval) -> list[Effect]:
        """One slice for one of the large transactions, in turn; others run in between."""
        effects: list[Effect] = []
        waiting = 0
        # Keys that others sent take turns with those of the own transactions.
        voting = self._vote_next and self.voter.busy
        self._vote_next = not voting
        for txid, large in list(self._large.items()):
            busy = not large.draft.ready
            waiting += busy
            if busy and waiting == 1 and not voting:
                self._large[txid] = self._large.pop(txid)
            # A ready one costs nothing: a later commit may have made it an abort meanwhile.
            if (waiting == 1 and not voting) or not busy:
                effects += self._progress(now, txid, large)
        if voting:
            effects += [*self.voter.work(now), *self.hold_timer()]
        if waiting > (not voting) or self.voter.busy or self.window.tidy():
            effects.append(SetTimer(WORK_TIMER, 0))
        return effects

    # For the other ways in which a transaction may end

    def _large_waiting(self, txid: bytes) -> list[int] | None:
        """Who waits for this one; None if its COMMIT has not come."""
        large = self._large.get(txid)
        return large.waiting if large is not None and large.final is not None else None

    def _abort_all_large(self, now: Interval, code: Code) -> list[Effect]:
        effects: list[Effect] = []
        for txid, large in list(self._large.items()):
            effects += self._abort_large(now, txid, large, code)
        return effects

    def _holds_chunks(self, txid: bytes) -> bool:
        return txid in self._large

    def _keep_chunks(self, txid: bytes) -> None:
        """For the next attempt."""
        large = self._large.get(txid)
        if large is not None:
            large.final, large.waiting = None, []

    def _abort_chunks(
        self, now: Interval, txid: bytes, code: Code, waiting: list[int]
    ) -> list[Effect]:
        large = self._large[txid]
        large.waiting = waiting
        return self._abort_large(now, txid, large, code)

    def _retry_large(self, now: Interval) -> list[Effect]:
        effects: list[Effect] = []
        for txid, large in list(self._large.items()):
            if large.final is not None:
                effects += self._progress(now, txid, large)
        return effects
