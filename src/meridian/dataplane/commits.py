"""The commit path between gateway and adjudicator: limits, chunks of large commits, answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

import msgspec

from meridian.adjudicator import events as ev
from meridian.dataplane.slices import slices
from meridian.dataplane.validate import check_relations, created_by
from meridian.errors import Kind, MeridianError
from meridian.limits import (
    CHUNK_BYTES_MAX,
    COMMIT_WAIT_MS,
    LARGE_COMMITS,
    LARGE_WAITING,
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
_PACE_S = 0.002
"""Pause between two pieces of large commits while others are served too."""


class _Asked(msgspec.Struct):
    """Somebody who waits for an Answer."""

    event: ev.Commit | ev.Status
    done: Done | None
    status_done: StatusDone | None
    started_ns: int
    refusal: MeridianError | None = None
    """Told instead, unless the transaction turns out to be committed."""


class _Final(msgspec.Struct):
    """The COMMIT of a large write set."""

    tau: int
    catver: int
    flags: int
    row_count: int
    done: Done
    started_ns: int


_Chunk = tuple[int, bytes, Callable[[MeridianError | None], None]]
"""seq, chunk, whom to tell once it is on its way."""


class _Large(msgspec.Struct):
    """Chunks of a large write set on their way to the adjudicator."""

    tau: int
    next_seq: int = 0
    parts: int = 0
    """Pieces handed to the adjudicator so far."""
    size_bytes: int = 0
    queue: deque[_Chunk] = msgspec.field(default_factory=deque)
    pieces: deque[bytes] = msgspec.field(default_factory=deque)
    taken: Callable[[MeridianError | None], None] | None = None
    created: dict[int, dict[int, int]] = msgspec.field(default_factory=dict)
    refused: MeridianError | None = None
    final: _Final | None = None
    last_chunk: bytes | None = None

    @property
    def waiting(self) -> bool:
        """Something can be handed on."""
        return bool(self.queue or self.pieces or self.last_chunk is not None)


class CommitPath:
    """One per node, on the event loop's thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._asked: dict[int, _Asked] = {}
        self._last_to = 0
        self._large: dict[bytes, _Large] = {}
        self._unapplied: deque[tuple[int, Done]] = deque()
        self._scheduled = False
        self._requests_seen = 0

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
        if tau > self.node.clock.now().latest + TAU_FUTURE_NS:
            raise MeridianError(Kind.TAU_IN_FUTURE)
        if self.node.replica.failing is not None:
            raise self.node.unavailable()
        final = _Final(tau, catver, flags, row_count, done, time.monotonic_ns())
        large = self._large.get(txid)
        if large is None:
            self._commit_small(txid, final, chunk)
            return
        if large.final is not None:
            raise MeridianError(Kind.PROTOCOL_VIOLATION, why="COMMIT was sent twice")
        large.final = final
        if large.refused is not None:
            self._drop(txid, large)
            return
        large.last_chunk = chunk
        self.pump()

    def _commit_small(self, txid: bytes, final: _Final, chunk: bytes) -> None:
        refusal = self._refusal(final, final.tau, len(chunk))
        if final.flags & frames.COMMIT_HAS_PARTS:
            # Its chunks went to an earlier process, or were refused and forgotten.
            refusal = MeridianError(Kind.BAD_WRITE_SET, why="its chunks are not here")
        if refusal is None:
            try:
                self._check_chunk(chunk, {})
            except MeridianError as error:
                refusal = error
        tau = final.tau or self.node.tau_start()
        self._decide(txid, final, tau, 0, chunk, refusal)

    def _decide(
        self,
        txid: bytes,
        final: _Final,
        tau: int,
        parts: int,
        chunk: bytes,
        refusal: MeridianError | None,
    ) -> None:
        to = self._next_to()
        if refusal is None:
            event = ev.Commit(to, txid, tau, final.catver, final.flags, parts, chunk)
            self._ask(_Asked(event, final.done, None, final.started_ns))
        else:
            # An earlier copy of this request may have committed: its outcome comes first (5.6).
            status = ev.Status(to, txid, tau)
            self._ask(_Asked(status, final.done, None, final.started_ns, refusal))

    def _refusal(self, final: _Final, tau: int, size_bytes: int) -> MeridianError | None:
        """Which limit this transaction exceeds, if any."""
        limits = self.node.limits
        if final.row_count > limits.txn_rows:
            return MeridianError(Kind.TXN_ROW_LIMIT, limit=limits.txn_rows)
        if size_bytes > limits.txn_size_bytes:
            return self._too_large(size_bytes)
        age_ms = (self.node.clock.now().latest - tau) // 1_000_000
        if tau and age_ms > limits.txn_age_ms:
            return MeridianError(Kind.TXN_AGE_LIMIT, limit_s=limits.txn_age_ms // 1000)
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
            large = self._large[txid] = _Large(tau or self.node.tau_start())
            if seq != 0:
                large.refused = MeridianError(Kind.PART_OUT_OF_ORDER, seq=0)
            elif len(self._large) > LARGE_WAITING:
                large.refused = MeridianError(Kind.TOO_MANY_LARGE_COMMITS)
            if large.refused is not None:
                # Remembered: its COMMIT, perhaps sent already, must not commit the rest alone.
                done(large.refused)
                return
        if large.refused is not None:
            # Told once already; what was under way when it was refused is dropped.
            done(None)
            return
        large.queue.append((seq, chunk, done))
        self.pump()

    def pump(self) -> None:
        """Hands one piece on if journal and storage keep up, then lets others run."""
        if self.node.replica.failing is not None:
            self.fail_large()
            return
        if self._scheduled or not self._has_room():
            return
        for txid, large in self._active():
            if large.waiting:
                self._scheduled = True
                # Round robin: the one served goes to the end.
                self._large[txid] = self._large.pop(txid)
                delay_s = _PACE_S if self._others_came() else 0.0
                asyncio.get_running_loop().call_later(delay_s, self._next_piece, txid)
                return

    def _others_came(self) -> bool:
        """Has anybody else asked for something since the last piece? Then they get some room."""
        counters = self.node.counters
        requests = counters.gets + counters.scans + counters.commits
        came = requests != self._requests_seen
        self._requests_seen = requests
        return came

    def _active(self) -> Iterator[tuple[bytes, _Large]]:
        """Those whose turn it is; the others wait for one of them to end."""
        under_way = [item for item in self._large.items() if item[1].parts]
        fresh = (item for item in self._large.items() if not item[1].parts)
        return chain(under_way, islice(fresh, max(0, LARGE_COMMITS - len(under_way))))

    def expire(self) -> None:
        """Large commits that are too old to commit make room for others."""
        oldest = self.node.clock.now().earliest - self.node.limits.txn_age_ms * 1_000_000
        limit_s = self.node.limits.txn_age_ms // 1000
        for txid, large in list(self._large.items()):
            if large.tau < oldest and large.refused is None:
                self._refuse(txid, large, MeridianError(Kind.TXN_AGE_LIMIT, limit_s=limit_s))

    def _next_piece(self, txid: bytes) -> None:
        self._scheduled = False
        large = self._large.get(txid)
        if large is not None and large.waiting:
            try:
                self._hand_on(txid, large)
            except MeridianError as error:
                self._refuse(txid, large, error)
        self.pump()

    @property
    def waiting(self) -> bool:
        """Some piece waits for room."""
        return any(large.waiting for large in self._large.values())

    def _has_room(self) -> bool:
        owner = self.node.owner
        if owner is None or owner.writer is None:
            return True
        backlog = owner.writer.waiting_bytes + self.node.replica.backlog_bytes
        return backlog < STAGED_BACKLOG_BYTES

    def _hand_on(self, txid: bytes, large: _Large) -> None:
        if not large.pieces:
            self._open_chunk(large)
            return
        piece = large.pieces.popleft()
        if large.final is not None and not large.waiting:
            self._commit_large(txid, large, piece)
            return
        self._step(ev.Part(txid, large.tau, large.parts, piece))
        large.parts += 1
        if not large.pieces:
            self._taken(large)

    def _taken(self, large: _Large) -> None:
        taken, large.taken = large.taken, None
        if taken is not None:
            taken(None)

    def _open_chunk(self, large: _Large) -> None:
        """Checks the next chunk and cuts it. Raises MeridianError."""
        if large.queue:
            seq, chunk, large.taken = large.queue.popleft()
            if seq != large.next_seq:
                raise MeridianError(Kind.PART_OUT_OF_ORDER, seq=large.next_seq)
            large.next_seq += 1
        else:
            assert large.last_chunk is not None
            chunk, large.last_chunk = large.last_chunk, None
        large.size_bytes += len(chunk)
        if large.size_bytes > self.node.limits.txn_size_bytes:
            raise self._too_large(large.size_bytes)
        ops = self._check_chunk(chunk, large.created)
        large.pieces.extend(slices(ops, len(chunk)))

    def _commit_large(self, txid: bytes, large: _Large, piece: bytes) -> None:
        """The last piece goes with the commit record."""
        final = large.final
        assert final is not None
        del self._large[txid]
        refusal = self._refusal(final, large.tau, large.size_bytes)
        if final.tau not in (0, large.tau):
            refusal = MeridianError(Kind.PROTOCOL_VIOLATION, why="tau differs from its chunks'")
        if refusal is not None:
            self._step(ev.Discard(txid))
        self._decide(txid, final, large.tau, large.parts, piece, refusal)

    def _refuse(self, txid: bytes, large: _Large, error: MeridianError) -> None:
        """A chunk cannot be taken: the client hears it now, and again at its COMMIT."""
        large.refused = error
        large.parts = 0
        self._step(ev.Discard(txid))
        taken, large.taken = large.taken, None
        if taken is not None:
            taken(error)
        self._drop(txid, large)

    def refused(self, effect: ev.Refused) -> None:
        """The adjudicator gave a large transaction up: the client hears it at its COMMIT."""
        large = self._large.get(effect.txid)
        if large is not None and large.refused is None:
            large.refused = self._abort_error(effect.code)
            large.parts = 0
            self._drop(effect.txid, large)

    def _drop(self, txid: bytes, large: _Large) -> None:
        """Nothing more of it is handed on; its COMMIT is answered."""
        self._taken(large)
        waiting, large.queue = large.queue, deque()
        for _, _, done in waiting:
            done(None)
        large.pieces.clear()
        large.last_chunk = None
        if large.final is not None:
            self._large.pop(txid, None)
            self._decide(txid, large.final, large.tau, 0, b"", large.refused)

    def discard(self, txid: bytes) -> None:
        """The client of a large transaction went away before COMMIT."""
        large = self._large.get(txid)
        if large is None or large.final is not None:
            return
        del self._large[txid]
        self._drop(txid, large)
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

    def fail_large(self) -> None:
        """Large commits on their way end; their clients hear why."""
        for txid, large in list(self._large.items()):
            if large.refused is None:
                self._refuse(txid, large, self.node.unavailable())

    def owner_lost(self) -> None:
        """The journal failed: large commits on their way are over, the rest is asked again.

        Commits whose records may be in the journal were answered by the adjudicator's last
        effects; the others never reached it.
        """
        self.fail_large()
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
