"""Asking the adjudicator: who waits for which answer, retries, and what clients are told."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from meridian.adjudicator import events as ev
from meridian.errors import Kind, MeridianError
from meridian.limits import COMMIT_WAIT_MS
from meridian.wire import frames

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

Done = Callable[[int | MeridianError], None]
StatusDone = Callable[[int, int], None]
_RETRY_S = 0.002


class Asked(msgspec.Struct):
    """Somebody who waits for an Answer."""

    event: ev.Commit | ev.Status
    done: Done | None
    status_done: StatusDone | None
    started_ns: int
    refusal: MeridianError | None = None
    """Told instead, unless the transaction turns out to be committed."""


class Asker:
    """One per node, on the event loop's thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._asked: dict[int, Asked] = {}
        self._last_to = 0
        self._unapplied: deque[tuple[int, Done]] = deque()

    def status(self, txid: bytes, tau: int, done: StatusDone) -> None:
        """Calls `done` with the outcome (docs/protocol.md) and tau_commit."""
        event = ev.Status(self.next_to(), txid, tau)
        self.ask(Asked(event, None, done, time.monotonic_ns()))

    def next_to(self) -> int:
        self._last_to += 1
        return self._last_to

    def step(self, event: ev.Event) -> bool:
        owner = self.node.owner
        if owner is None or owner.dead:
            return False
        owner.step(event)
        return True

    def ask(self, asked: Asked) -> None:
        self._asked[asked.event.to] = asked
        if not self.step(asked.event):
            self.retry(asked, self.node.unavailable())

    def retry(self, asked: Asked, error: MeridianError) -> None:
        """Asks again a little later, for a bounded time."""
        waited_ms = (time.monotonic_ns() - asked.started_ns) // 1_000_000
        if error.kind is Kind.DISK_FULL or waited_ms >= COMMIT_WAIT_MS:
            self._tell(asked, error)
            return
        self.node.counters.retries += 1
        asyncio.get_running_loop().call_later(_RETRY_S, self._again, asked)

    def _again(self, asked: Asked) -> None:
        if asked.event.to not in self._asked or self.step(asked.event):
            return
        error = self.node.unavailable()
        if isinstance(asked.event, ev.Status) and asked.done is not None:
            error = MeridianError(Kind.OUTCOME_UNKNOWN)
        self.retry(asked, error)

    def answered(self, answer: ev.Answer) -> None:
        """The adjudicator's Answer effect."""
        asked = self._asked.get(answer.to)
        if asked is None:
            return
        if answer.outcome is ev.Outcome.RETRY:
            self.retry(asked, _RETRIES.get(answer.code, _RETRIES[ev.Code.STARTING]))
            return
        if asked.status_done is not None:
            del self._asked[answer.to]
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

    def _committed(self, asked: Asked, tau: int) -> None:
        del self._asked[asked.event.to]
        counters = self.node.counters
        counters.commits += 1
        if isinstance(asked.event, ev.Commit) and asked.event.parts:
            counters.commits_large += 1
        counters.commit_latency.add(time.monotonic_ns() - asked.started_ns)
        assert asked.done is not None
        if self.node.engine.applied_tau >= tau:
            asked.done(tau)
        else:
            # Answered once storage holds it: the next request may depend on its relations.
            self._unapplied.append((tau, asked.done))
            loop = asyncio.get_running_loop()
            loop.call_later(COMMIT_WAIT_MS / 1000, self._give_up, tau, asked.done)

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
        if self._asked.pop(asked.event.to, None) is None:
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
        failure = self.node.failure
        if failure is not None and failure.nothing_written:
            # Certainly nothing of it is in the journal, and nobody can append it any more.
            self._tell(asked, self.node.unavailable())
            return
        if failure is None or isinstance(asked.event, ev.Status):
            self.node.counters.unknown_outcomes += 1
            self._tell(asked, MeridianError(Kind.OUTCOME_UNKNOWN))
            return
        # The next owner reads what landed: ask it, for a bounded time (6.8).
        event = asked.event
        asked.event = ev.Status(event.to, event.txid, event.tau_start)
        asked.refusal = self.node.unavailable()
        self.retry(asked, MeridianError(Kind.OUTCOME_UNKNOWN))

    def owner_lost(self) -> None:
        """The journal failed: whoever has no answer is asked for again.

        Commits whose records may be in the journal were answered by the adjudicator's last
        effects; the others never reached it.
        """
        for asked in list(self._asked.values()):
            self.retry(asked, self.node.unavailable())


def abort_error(code: ev.Code) -> MeridianError:
    """What a client is told about an abort."""
    if code is ev.Code.GATED:
        why = "a schema change or LOCK TABLE held this commit"
        return MeridianError(Kind.SCHEMA_CHANGED, detail=why)
    kind = _ABORTS.get(code)
    if kind is not None:
        return MeridianError(kind)
    return MeridianError(Kind.BAD_WRITE_SET, why="its chunks are not complete")


_RETRIES = {
    ev.Code.STARTING: MeridianError(Kind.NOT_READY),
    ev.Code.BUSY: MeridianError(Kind.TOO_MANY_REQUESTS),
    ev.Code.CLOCK: MeridianError(Kind.TAU_IN_FUTURE),
}
_ABORTS = {
    ev.Code.CONFLICT: Kind.CONFLICT,
    ev.Code.CATALOG: Kind.SCHEMA_CHANGED,
    ev.Code.FLOOR: Kind.TAU_BELOW_FLOOR,
    ev.Code.RESOLVED: Kind.TXN_ABORTED,
}
_STATUS = {
    ev.Outcome.COMMITTED: frames.OUTCOME_COMMITTED,
    ev.Outcome.ABORTED: frames.OUTCOME_ABORTED,
}
