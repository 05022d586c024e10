"""The commit path between gateway and adjudicator: limits, chunks of large commits, answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from meridian.adjudicator import events as ev
from meridian.dataplane.validate import check_relations, created_by
from meridian.errors import Kind, MeridianError
from meridian.limits import (
    CHUNK_BYTES_MAX,
    COMMIT_WAIT_MS,
    LARGE_COMMITS,
    STAGED_BACKLOG_BYTES,
    TAU_FUTURE_NS,
)
from meridian.storage.apply import check_ops
from meridian.wire import frames
from meridian.wire.ops import Op, decode_chunk

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

log = logging.getLogger("meridian.commits")

Done = Callable[[int | MeridianError], None]
StatusDone = Callable[[int, int], None]
_RETRY_S = 0.002


class _Asked(msgspec.Struct):
    """Somebody who waits for an Answer."""

    event: ev.Commit | ev.Status
    done: Done | None
    status_done: StatusDone | None
    started_ns: int
    refusal: MeridianError | None = None
    """Told instead, unless the transaction turns out to be committed."""


class _Large(msgspec.Struct):
    """Chunks of a large write set on their way to the adjudicator."""

    tau: int
    parts: int = 0
    size_bytes: int = 0
    queue: deque[tuple[int, bytes, Callable[[MeridianError | None], None]]] = msgspec.field(
        default_factory=deque
    )
    created: dict[int, dict[int, int]] = msgspec.field(default_factory=dict)
    refused: MeridianError | None = None
    commit: Callable[[], None] | None = None


class CommitPath:
    """One per node, on the event loop's thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._asked: dict[int, _Asked] = {}
        self._last_to = 0
        self._large: dict[bytes, _Large] = {}
        self._unapplied: deque[tuple[int, Done]] = deque()
        self._pumping = False

    # COMMIT

    def commit(
        self,
        txid: bytes,
        tau: int,
        catver: int,
        flags: int,
        row_count: int,
        chunk: bytes,
        done: Done,
    ) -> None:
        """Decides and writes a transaction, then calls `done` once with tau_commit or an error.

        Raises MeridianError for what is refused before anything is decided.
        """
        if len(txid) != frames.TXID_SIZE_BYTES:
            raise MeridianError(Kind.PROTOCOL_VIOLATION, why="a transaction id has 16 bytes")
        large = self._large.get(txid)
        if large is not None and (large.queue or large.refused is None):
            if large.commit is not None:
                raise MeridianError(Kind.PROTOCOL_VIOLATION, why="COMMIT was sent twice")
            if large.queue:
                again = (txid, tau, catver, flags, row_count, chunk, done)
                large.commit = lambda: self._commit_late(*again)
                return
        if tau > self.node.clock.now().latest + TAU_FUTURE_NS:
            raise MeridianError(Kind.TAU_IN_FUTURE)
        self._large.pop(txid, None)
        event = ev.Commit(
            to=self._next_to(),
            txid=txid,
            tau_start=tau or (large.tau if large else self.node.tau_start()),
            catver=catver,
            flags=flags,
            parts=large.parts if large else 0,
            chunk=chunk,
        )
        refusal = self._refusal(event, row_count, large)
        if refusal is None:
            self._ask(_Asked(event, done, None, time.monotonic_ns()))
            return
        # An earlier copy of this request may have committed: its outcome comes first (5.6).
        if large is not None:
            self._step(ev.Discard(txid))
        status = ev.Status(event.to, txid, event.tau_start)
        self._ask(_Asked(status, done, None, time.monotonic_ns(), refusal))

    def _commit_late(
        self,
        txid: bytes,
        tau: int,
        catver: int,
        flags: int,
        row_count: int,
        chunk: bytes,
        done: Done,
    ) -> None:
        try:
            self.commit(txid, tau, catver, flags, row_count, chunk, done)
        except MeridianError as error:
            done(error)

    def _refusal(
        self, event: ev.Commit, row_count: int, large: _Large | None
    ) -> MeridianError | None:
        """Why this write set may not commit, if so."""
        limits = self.node.limits
        if large is not None and large.refused is not None:
            return large.refused
        if row_count > limits.txn_rows:
            return MeridianError(Kind.TXN_ROW_LIMIT, limit=limits.txn_rows)
        size_bytes = len(event.chunk) + (large.size_bytes if large else 0)
        if size_bytes > limits.txn_size_bytes:
            return self._too_large(size_bytes)
        age_ms = (self.node.clock.now().latest - event.tau_start) // 1_000_000
        if age_ms > limits.txn_age_ms:
            return MeridianError(Kind.TXN_AGE_LIMIT, limit_s=limits.txn_age_ms // 1000)
        try:
            self._check_chunk(event.chunk, large.created if large else {})
        except MeridianError as error:
            return error
        return None

    def _too_large(self, size_bytes: int) -> MeridianError:
        limit_mb = self.node.limits.txn_size_bytes >> 20
        detail = f"Current transaction size {-(-size_bytes >> 20)}mb > {limit_mb}mb"
        return MeridianError(Kind.TXN_SIZE_LIMIT, limit_mb=limit_mb, detail=detail)

    def _check_chunk(self, chunk: bytes, created: dict[int, dict[int, int]]) -> list[Op]:
        """Nothing that storage could not apply may reach the journal."""
        if len(chunk) > CHUNK_BYTES_MAX:
            raise MeridianError(Kind.CHUNK_TOO_LARGE, size_bytes=len(chunk))
        try:
            ops = decode_chunk(chunk)
        except msgspec.MsgspecError as error:
            raise MeridianError(Kind.BAD_WRITE_SET, why=str(error)) from None
        check_ops(ops)
        created_by(ops, created)
        check_relations(ops, self.node.engine.known_columns, created)
        return ops

    # PART

    def part(
        self,
        txid: bytes,
        seq: int,
        chunk: bytes,
        tau: int,
        done: Callable[[MeridianError | None], None],
    ) -> None:
        """The next chunk of a large write set; `done` once it is on its way or refused."""
        if len(txid) != frames.TXID_SIZE_BYTES:
            raise MeridianError(Kind.PROTOCOL_VIOLATION, why="a transaction id has 16 bytes")
        large = self._large.get(txid)
        if large is None:
            if seq != 0:
                raise MeridianError(Kind.PART_OUT_OF_ORDER, seq=seq)
            if len(self._large) >= LARGE_COMMITS:
                raise MeridianError(Kind.TOO_MANY_LARGE_COMMITS)
            large = self._large[txid] = _Large(tau or self.node.tau_start())
        if large.refused is not None:
            # Told once already; what was under way when it was refused is dropped.
            done(None)
            return
        large.queue.append((seq, chunk, done))
        self.pump()

    def pump(self) -> None:
        """Hands chunks on while journal and storage keep up."""
        if self._pumping:
            return
        self._pumping = True
        try:
            for txid, large in list(self._large.items()):
                if large.queue and self._has_room():
                    self._hand_on(txid, large)
        finally:
            self._pumping = False

    @property
    def waiting(self) -> bool:
        """Some chunk waits for room."""
        return any(large.queue for large in self._large.values())

    def _has_room(self) -> bool:
        owner = self.node.owner
        if owner is None or owner.writer is None:
            return True
        backlog = owner.writer.waiting_bytes + self.node.applier.backlog_bytes
        return backlog < STAGED_BACKLOG_BYTES

    def _hand_on(self, txid: bytes, large: _Large) -> None:
        seq, chunk, done = large.queue.popleft()
        error: MeridianError | None = None
        try:
            if seq != large.parts:
                raise MeridianError(Kind.PART_OUT_OF_ORDER, seq=large.parts)
            large.size_bytes += len(chunk)
            if large.size_bytes > self.node.limits.txn_size_bytes:
                raise self._too_large(large.size_bytes)
            self._check_chunk(chunk, large.created)
            large.parts += 1
            self._step(ev.Part(txid, large.tau, seq, chunk))
        except MeridianError as refusal:
            error = refusal
            self._refuse(txid, large, refusal)
        done(error)
        self._late_commit(large)

    def _late_commit(self, large: _Large) -> None:
        if large.commit is not None and not large.queue:
            late, large.commit = large.commit, None
            late()

    def _refuse(self, txid: bytes, large: _Large, error: MeridianError) -> None:
        large.refused = error
        waiting, large.queue = large.queue, deque()
        for _, _, done in waiting:
            done(None)
        self._step(ev.Discard(txid))

    def refused(self, effect: ev.Refused) -> None:
        """The adjudicator gave a large transaction up: the client hears it at its COMMIT."""
        large = self._large.get(effect.txid)
        if large is not None and large.refused is None:
            large.refused = self._abort_error(effect.code)
            self._drop_queue(large)

    def _drop_queue(self, large: _Large) -> None:
        waiting, large.queue = large.queue, deque()
        for _, _, done in waiting:
            done(None)
        self._late_commit(large)

    def discard(self, txid: bytes) -> None:
        """The client of a large transaction went away before COMMIT."""
        large = self._large.pop(txid, None)
        if large is not None:
            large.commit = None
            self._drop_queue(large)
            self._step(ev.Discard(txid))

    # STATUS

    def status(self, txid: bytes, tau: int, done: StatusDone) -> None:
        """Calls `done` with the outcome (docs/protocol.md) and tau_commit."""
        event = ev.Status(self._next_to(), txid, tau)
        self._ask(_Asked(event, None, done, time.monotonic_ns()))

    # Asking the adjudicator

    def _next_to(self) -> int:
        self._last_to += 1
        return self._last_to

    def _step(self, event: ev.Event) -> bool:
        owner = self.node.owner
        if owner is None or owner.dead:
            return False
        owner.step(event)
        return True

    def _ask(self, asked: _Asked) -> None:
        self._asked[asked.event.to] = asked
        if not self._step(asked.event):
            self._retry(asked, self.node.unavailable())

    def _retry(self, asked: _Asked, error: MeridianError) -> None:
        """Asks again a little later, for a bounded time."""
        waited_ms = (time.monotonic_ns() - asked.started_ns) // 1_000_000
        if error.kind is Kind.DISK_FULL or waited_ms >= COMMIT_WAIT_MS:
            self._tell(asked, error)
            return
        self.node.counters.retries += 1
        asyncio.get_running_loop().call_later(_RETRY_S, self._again, asked)

    def _again(self, asked: _Asked) -> None:
        if asked.event.to not in self._asked or self._step(asked.event):
            return
        error = self.node.unavailable()
        if isinstance(asked.event, ev.Status) and asked.done is not None:
            error = MeridianError(Kind.OUTCOME_UNKNOWN)
        self._retry(asked, error)

    def answered(self, answer: ev.Answer) -> None:
        """The adjudicator's Answer effect."""
        asked = self._asked.get(answer.to)
        if asked is None:
            return
        if answer.outcome is ev.Outcome.RETRY:
            self._retry(asked, _RETRIES.get(answer.code, _RETRIES[ev.Code.STARTING]))
            return
        if asked.status_done is not None:
            del self._asked[answer.to]
            outcome = _STATUS.get(answer.outcome, frames.OUTCOME_UNKNOWN)
            asked.status_done(outcome, answer.tau)
            return
        if answer.outcome is ev.Outcome.COMMITTED:
            self._committed(asked, answer.tau)
        elif answer.outcome is ev.Outcome.ABORTED:
            self._tell(asked, asked.refusal or self._aborted(answer.code))
        else:
            self._unknown(asked)

    def _committed(self, asked: _Asked, tau: int) -> None:
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

    def _tell(self, asked: _Asked, error: MeridianError) -> None:
        if self._asked.pop(asked.event.to, None) is None:
            return
        if asked.status_done is not None:
            asked.status_done(frames.OUTCOME_UNKNOWN, 0)
        elif asked.done is not None:
            asked.done(error)

    def _aborted(self, code: ev.Code) -> MeridianError:
        counters = self.node.counters
        if code is ev.Code.CONFLICT:
            counters.conflicts += 1
        elif code is ev.Code.CATALOG:
            counters.catalog_aborts += 1
        elif code is ev.Code.FLOOR:
            counters.false_aborts += 1
        return self._abort_error(code)

    def _abort_error(self, code: ev.Code) -> MeridianError:
        kind = _ABORTS.get(code)
        if kind is not None:
            return MeridianError(kind)
        return MeridianError(Kind.BAD_WRITE_SET, why="its chunks are not complete")

    def _unknown(self, asked: _Asked) -> None:
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
        self._retry(asked, MeridianError(Kind.OUTCOME_UNKNOWN))

    def owner_lost(self) -> None:
        """Whoever the adjudicator has not answered gets the best answer there is.

        Commits whose records may be in the journal were answered by its last effects; the rest
        never reached it and is asked again of the next owner.
        """
        for txid in list(self._large):
            large = self._large[txid]
            large.refused = MeridianError(Kind.JOURNAL_UNAVAILABLE, why="its chunks are lost")
            self._drop_queue(large)
        for asked in list(self._asked.values()):
            self._retry(asked, self.node.unavailable())


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
