"""Asking the adjudicator: who waits for which answer, retries, and what clients are told."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from meridian.adjudicator import events as ev
from meridian.dataplane.cutting import Plan, cut_chunk
from meridian.errors import Kind, MeridianError
from meridian.limits import AHEAD_KEYS, COMMIT_WAIT_MS, GATE_HOLD_MS
from meridian.wire import frames
from meridian.wire.votes import name_leader

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

Done = Callable[[int | MeridianError], None]
StatusDone = Callable[[int, int], None]
_RETRY_S = 0.002
_HELD_S = 0.02
"""Longest pause between two attempts of a transaction with voters."""


class Asked(msgspec.Struct):
    """Somebody who waits for an Answer."""

    event: ev.Commit | ev.Status
    done: Done | None
    status_done: StatusDone | None
    started_ns: int
    refusal: MeridianError | None = None
    """Told instead, unless the transaction turns out to be committed."""
    leader: int = 0
    """The journal whose owner decides."""
    plan: Plan | None = None
    """Who else must vote."""
    ahead: Plan | None = None
    """The plan whose keys voters were sent ahead; they hear when nobody asks any more."""
    attempt: int = 0
    pausing: bool = False
    """It is asked again soon. Twice at once, each attempt would end the other."""


class Asker:
    """One per node, on the event loop's thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._asked: dict[int, Asked] = {}
        self._last_to = 0
        self._unapplied: deque[tuple[int, Done]] = deque()

    def status(self, txid: bytes, tau: int, done: StatusDone) -> None:
        """Calls `done` with the outcome (docs/protocol.md) and tau_commit.

        A commit is told once storage holds it, as to whoever has waited for its answer: while
        storage cannot write, reads stay behind what it lacks. Unknown when that takes too long.
        """

        def applied(result: int | MeridianError) -> None:
            if isinstance(result, MeridianError):
                done(frames.OUTCOME_UNKNOWN, 0)
            else:
                done(frames.OUTCOME_COMMITTED, result)

        def told(outcome: int, tau_commit: int) -> None:
            if outcome == frames.OUTCOME_COMMITTED:
                self._when_applied(tau_commit, applied)
            else:
                done(outcome, tau_commit)

        # Nobody knows whom its COMMIT would have named: it is looked for, and where it is not
        # found made an abort, under every name. One at most was ever committed.
        self._poll(range(len(self.node.seats)), txid, tau, told)

    def elsewhere(self, txid: bytes, tau: int, leader: int, done: StatusDone) -> None:
        """The same under all names but one. An abort there is no outcome: that one decides."""
        others = [number for number in range(len(self.node.seats)) if number != leader]
        self._poll(others, txid, tau, done)

    def _poll(self, leaders: Sequence[int], txid: bytes, tau: int, done: StatusDone) -> None:
        if not leaders:
            done(frames.OUTCOME_ABORTED, 0)
            return
        poll = _Poll(len(leaders), done)
        for leader in leaders:
            event = ev.Status(self.next_to(), name_leader(txid, leader), tau)
            self.ask(Asked(event, None, poll.told, time.monotonic_ns(), leader=leader))

    def resolve(self, txid: bytes, tau: int, done: Done, refusal: MeridianError) -> None:
        """Tells the refusal, unless an earlier copy of the request has committed (5.6)."""
        if len(self.node.seats) == 1:
            event = ev.Status(self.next_to(), name_leader(txid, 0), tau)
            self.ask(Asked(event, done, None, time.monotonic_ns(), refusal))
            return
        self.status(txid, tau, self.first_outcome(done, lambda: done(refusal)))

    def first_outcome(self, done: Done, aborted: Callable[[], None]) -> StatusDone:
        """Tells a client what a poll found; `aborted` goes on where nothing was committed."""
        started_ns = time.monotonic_ns()

        def told(outcome: int, tau_commit: int) -> None:
            if outcome == frames.OUTCOME_COMMITTED:
                self._count(started_ns)
                self._when_applied(tau_commit, done)
            elif outcome == frames.OUTCOME_ABORTED:
                aborted()
            else:
                done(MeridianError(Kind.OUTCOME_UNKNOWN))

        return told

    def next_to(self) -> int:
        self._last_to += 1
        return self._last_to

    def step(self, event: ev.Event, leader: int = 0) -> bool:
        """Gives it to the owner of journal `leader`; False: there is none now."""
        seats = self.node.seats
        if not seats:
            return False
        owner = seats[leader].owner
        if owner is None or owner.dead:
            return False
        owner.step(event)
        return True

    def ask(self, asked: Asked) -> None:
        self._asked[asked.event.to] = asked
        if not self._send(asked):
            self.retry(asked, self.node.unavailable(asked.leader))

    def _send(self, asked: Asked) -> bool:
        """False: nobody decides now."""
        if asked.plan is None or isinstance(asked.event, ev.Status):
            return self.step(asked.event, asked.leader)
        owner = self.node.seats[asked.leader].owner
        if owner is None or owner.dead:
            return False
        asked.attempt += 1
        self.node.counters.attempts_again += asked.attempt > 1
        event = asked.event = msgspec.structs.replace(
            asked.event, attempt=asked.attempt, epoch=owner.epoch, voters=asked.plan.voters
        )
        soon = asyncio.get_running_loop().call_soon
        for voter, ask in asked.plan.asks(event):
            soon(self.node.tell, voter, ask)
        owner.step(event)
        return True

    def retry(self, asked: Asked, error: MeridianError, delay_s: float = _RETRY_S) -> None:
        """Asks again a little later, for a bounded time."""
        waited_ms = (time.monotonic_ns() - asked.started_ns) // 1_000_000
        # Held by others, or by a gate, which holds nobody for longer (docs/rfcs, coherence).
        limit_ms = GATE_HOLD_MS if error.kind is Kind.CONFLICT else COMMIT_WAIT_MS
        if error.kind is Kind.DISK_FULL or waited_ms >= limit_ms:
            self._end(asked, error)
            return
        if asked.pausing:
            return
        asked.pausing = True
        self.node.counters.retries += 1
        asyncio.get_running_loop().call_later(delay_s, self._again, asked)

    def _end(self, asked: Asked, error: MeridianError) -> None:
        """Patience is over. Attempts end with an outcome: they may still be under way."""
        if (
            asked.plan is None
            or isinstance(asked.event, ev.Status)
            or error.kind is Kind.DISK_FULL  # Its leader is gone, and with it the attempts.
        ):
            self._tell(asked, error)
            return
        event = asked.event
        asked.plan = None
        asked.event = ev.Status(event.to, event.txid, event.tau_start)
        asked.refusal = error
        asked.started_ns = time.monotonic_ns()
        self._again(asked)

    def _again(self, asked: Asked) -> None:
        asked.pausing = False
        if asked.event.to not in self._asked or self._send(asked):
            return
        error = self.node.unavailable(asked.leader)
        if isinstance(asked.event, ev.Status) and asked.done is not None:
            error = MeridianError(Kind.OUTCOME_UNKNOWN)
        self.retry(asked, error)

    def answered(self, answer: ev.Answer) -> None:
        """The adjudicator's Answer effect."""
        asked = self._asked.get(answer.to)
        if asked is None:
            return
        if answer.outcome is ev.Outcome.RETRY:
            self._asked_again(asked, answer)
            return
        if asked.status_done is not None:
            self._end_of(asked)
            outcome = _STATUS.get(answer.outcome, frames.OUTCOME_UNKNOWN)
            asked.status_done(outcome, answer.tau)
            return
        if answer.outcome is ev.Outcome.COMMITTED:
            self._committed(asked, answer.tau)
        elif answer.outcome is ev.Outcome.ABORTED:
            refusal = asked.refusal or self._aborted(answer.code, asked.event.tau_start)
            self._tell(asked, refusal)
        else:
            self._unknown(asked)

    def _asked_again(self, asked: Asked, answer: ev.Answer) -> None:
        """RETRY: the same again, or another attempt."""
        error = _RETRIES.get(answer.code, _RETRIES[ev.Code.STARTING])
        event = asked.event
        if isinstance(event, ev.Status):
            unknown = asked.done is not None
            self.retry(asked, MeridianError(Kind.OUTCOME_UNKNOWN) if unknown else error)
            return
        if answer.code in (ev.Code.PLACE, ev.Code.PARTS):
            # A range has moved: who must vote is found out anew, if the keys are still here.
            if event.parts or asked.ahead is not None or answer.code is ev.Code.PARTS:
                self._end(asked, abort_error(ev.Code.MOVED))
                return
            self._plan_again(asked, event)
        delay_s = _RETRY_S
        if asked.attempt:
            delay_s = min(_HELD_S, _RETRY_S * asked.attempt)
        self.retry(asked, error, delay_s)

    def _plan_again(self, asked: Asked, event: ev.Commit) -> None:
        leader = asked.leader
        made = Plan(leader, event.txid, event.tau_start)
        made.add(cut_chunk(event.chunk, self.node.map))
        self.node.commits.send_ahead(made)
        asked.ahead = made if made.sent else None
        asked.plan = made.close(self.node.map)
        if asked.plan is None:
            # The leader owns all of it now.
            asked.attempt = 0
            asked.event = msgspec.structs.replace(event, attempt=0, epoch=(0, 0), voters=())

    def _end_of(self, asked: Asked) -> bool:
        """It has its answer, or gets none; False: it had one before."""
        if asked.ahead is not None:
            self.node.commits.forget_ahead(asked.ahead)
            asked.ahead = None
        return self._asked.pop(asked.event.to, None) is not None

    def _committed(self, asked: Asked, tau: int) -> None:
        self._end_of(asked)
        counters = self.node.counters
        if isinstance(asked.event, ev.Commit):
            counters.commits_large += bool(asked.event.parts)
            counters.commits_voted += asked.plan is not None
        self._count(asked.started_ns)
        assert asked.done is not None
        self._when_applied(tau, asked.done)

    def _count(self, started_ns: int) -> None:
        self.node.counters.commits += 1
        self.node.counters.commit_latency.add(time.monotonic_ns() - started_ns)

    def _when_applied(self, tau: int, done: Done) -> None:
        if self.node.engine.applied_tau >= tau:
            done(tau)
        else:
            # Answered once storage holds it: the next request may depend on its relations.
            self._unapplied.append((tau, done))
            loop = asyncio.get_running_loop()
            loop.call_later(COMMIT_WAIT_MS / 1000, self._give_up, tau, done)

    def _give_up(self, tau: int, done: Done) -> None:
        """Storage is stuck: the commit is durable, but nobody may read it yet."""
        if (tau, done) in self._unapplied:
            self._unapplied.remove((tau, done))
            self.node.counters.unknown_outcomes += 1
            done(MeridianError(Kind.OUTCOME_UNKNOWN))

    def applied(self) -> None:
        """Storage has advanced."""
        applied_tau = self.node.engine.applied_tau
        waiting = self._unapplied
        for _ in range(len(waiting)):
            tau, done = waiting.popleft()
            if tau <= applied_tau:
                done(tau)
            else:
                waiting.append((tau, done))

    def _tell(self, asked: Asked, error: MeridianError) -> None:
        if not self._end_of(asked):
            return
        if asked.status_done is not None:
            asked.status_done(frames.OUTCOME_UNKNOWN, 0)
        elif asked.done is not None:
            asked.done(error)

    def _aborted(self, code: ev.Code, tau_start: int) -> MeridianError:
        counters = self.node.counters
        if code is ev.Code.CONFLICT:
            counters.conflicts += 1
        elif code is ev.Code.CATALOG:
            counters.catalog_aborts += 1
            return self.node.catalog.refusal(tau_start)
        elif code is ev.Code.GATED:
            counters.gate_timeouts += 1
        elif code is ev.Code.FLOOR:
            counters.false_aborts += 1
        return abort_error(code)

    def _unknown(self, asked: Asked) -> None:
        """An append failed, or the outcome is forgotten (5.6)."""
        failure = self.node.failure(asked.leader)
        if failure is not None and failure.nothing_written:
            # Certainly nothing of it is in the journal, and nobody can append it any more.
            self._tell(asked, self.node.unavailable(asked.leader))
            return
        if failure is None or isinstance(asked.event, ev.Status):
            self.node.counters.unknown_outcomes += 1
            self._tell(asked, MeridianError(Kind.OUTCOME_UNKNOWN))
            return
        # The next owner reads what landed: ask it, for a bounded time (6.8).
        event = asked.event
        asked.event = ev.Status(event.to, event.txid, event.tau_start)
        asked.refusal = self.node.unavailable(asked.leader)
        self.retry(asked, MeridianError(Kind.OUTCOME_UNKNOWN))

    def owner_lost(self, number: int) -> None:
        """A journal failed: whoever has no answer from its owner is asked for again.

        Commits whose records may be in the journal were answered by the adjudicator's last
        effects; the others never reached it.
        """
        for asked in list(self._asked.values()):
            if asked.leader == number:
                self.retry(asked, self.node.unavailable(number))
            elif asked.ahead is not None and number in asked.ahead.sent:
                # The keys that it was sent ahead are lost with it.
                self._end(asked, abort_error(ev.Code.MOVED))


class _Poll:
    """The outcome of a transaction that has one name per leader."""

    def __init__(self, count: int, done: StatusDone) -> None:
        self._left = count
        self._done = done
        self._found = frames.OUTCOME_ABORTED, 0

    def told(self, outcome: int, tau: int) -> None:
        """One leader's answer."""
        self._left -= 1
        if outcome == frames.OUTCOME_COMMITTED:
            self._found = outcome, tau
        elif outcome == frames.OUTCOME_UNKNOWN and self._found[1] == 0:
            self._found = outcome, 0
        if self._left == 0:
            self._done(*self._found)


def abort_error(code: ev.Code) -> MeridianError:
    """What a client is told about an abort."""
    if code is ev.Code.GATED:
        why = "a schema change or LOCK TABLE held this commit"
        return MeridianError(Kind.SCHEMA_CHANGED, detail=why)
    if code is ev.Code.KEYS:
        return MeridianError(Kind.KEYS_ELSEWHERE, limit=AHEAD_KEYS)
    kind = _ABORTS.get(code)
    if kind is not None:
        return MeridianError(kind)
    return MeridianError(Kind.BAD_WRITE_SET, why="its chunks are not complete")


_RETRIES = {
    ev.Code.STARTING: MeridianError(Kind.NOT_READY),
    ev.Code.BUSY: MeridianError(Kind.TOO_MANY_REQUESTS),
    ev.Code.CLOCK: MeridianError(Kind.TAU_IN_FUTURE),
    ev.Code.HELD: MeridianError(Kind.CONFLICT),
    ev.Code.VOTES: MeridianError(Kind.NOT_READY),
}
_ABORTS = {
    ev.Code.CONFLICT: Kind.CONFLICT,
    ev.Code.CATALOG: Kind.SCHEMA_CHANGED,
    ev.Code.FLOOR: Kind.TAU_BELOW_FLOOR,
    ev.Code.RESOLVED: Kind.TXN_ABORTED,
    ev.Code.MOVED: Kind.TXN_ABORTED,
    ev.Code.CLOSED: Kind.TXN_ABORTED,
}
_STATUS = {
    ev.Outcome.COMMITTED: frames.OUTCOME_COMMITTED,
    ev.Outcome.ABORTED: frames.OUTCOME_ABORTED,
}
