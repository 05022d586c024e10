"""Large commits: chunks on their way to the adjudicator, in pieces, with backpressure."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

import msgspec

from meridian.adjudicator import events as ev
from meridian.dataplane.asker import Done, abort_error
from meridian.dataplane.cutting import Plan, cut_chunk, leader_of_large
from meridian.dataplane.feeds import Note, notes_of
from meridian.dataplane.slices import slices
from meridian.errors import Kind, MeridianError
from meridian.limits import LARGE_COMMITS, LARGE_WAITING, STAGED_BACKLOG_BYTES
from meridian.wire import frames
from meridian.wire.votes import name_leader

if TYPE_CHECKING:
    from meridian.dataplane.commits import CommitPath

_PACE_S = 0.002
"""Pause between two pieces of large commits while others are served too."""


class Final(msgspec.Struct):
    """What a COMMIT says beside its chunk."""

    tau: int
    catver: int
    flags: int
    row_count: int
    done: Done
    started_ns: int
    notes: list[Note] = []
    """Notifications of the write set."""


NO_LEADER = -1
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
    notes: list[Note] = msgspec.field(default_factory=list)
    refused: MeridianError | None = None
    leader: int = NO_LEADER
    """Who decides it; known with its first chunk."""
    plan: Plan | None = None
    """Who else must vote, if there are several adjudicators."""
    final: Final | None = None
    last_chunk: bytes | None = None

    @property
    def waiting(self) -> bool:
        """Something can be handed on."""
        return bool(self.queue or self.pieces or self.last_chunk is not None)


class LargeCommits:
    """One per node, on the event loop's thread."""

    def __init__(self, path: CommitPath) -> None:
        self.path = path
        self.node = path.node
        self._large: dict[bytes, _Large] = {}
        self._named: dict[bytes, bytes] = {}
        """The id that names the leader -> the id that the client knows, where they differ."""
        self._scheduled = False
        self._requests_seen = 0

    def take_commit(self, txid: bytes, final: Final, chunk: bytes) -> bool:
        """The COMMIT of a transaction whose chunks came before; False: none did.

        Raises PROTOCOL_VIOLATION.
        """
        large = self._large.get(txid)
        if large is None:
            return False
        if large.final is not None:
            raise MeridianError(Kind.PROTOCOL_VIOLATION, why="COMMIT was sent twice")
        large.final = final
        if large.refused is not None:
            self._drop(txid, large)
        else:
            large.last_chunk = chunk
            self.pump()
        return True

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
            self.fail()
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
        backlog = self.node.replica.backlog_bytes
        for seat in self.node.seats:
            if seat.owner is not None and seat.owner.writer is not None:
                backlog += seat.owner.writer.waiting_bytes
        return backlog < STAGED_BACKLOG_BYTES

    # Names and leaders

    def _name(self, txid: bytes, large: _Large) -> bytes:
        """What the adjudicators call it."""
        if large.leader == NO_LEADER:
            return txid
        return name_leader(txid, large.leader)

    def _step(self, event: ev.Event, large: _Large) -> None:
        if large.leader != NO_LEADER:
            self.path.asker.step(event, large.leader)

    def _cut(self, txid: bytes, large: _Large, chunk: bytes) -> None:
        """Who must take part, piece by piece. Raises BAD_WRITE_SET, KEYS_ELSEWHERE."""
        if len(self.node.seats) == 1 and large.leader in (NO_LEADER, 0):
            if large.leader == NO_LEADER:
                large.leader = 0
                self._named[self._name(txid, large)] = txid
            return
        if large.leader != NO_LEADER and large.plan is None:
            # Journals were added in the middle: its keys so far were not cut.
            raise abort_error(ev.Code.MOVED)
        found = cut_chunk(chunk, self.node.map)
        self.node.heat.count(found)
        if large.plan is None:
            large.leader = leader_of_large(found, self.node.map)
            name = self._name(txid, large)
            large.plan = Plan(large.leader, name, large.tau)
            self._named[name] = txid
            self.node.gates.lead(txid, large.leader)
        large.plan.add(found)
        self.path.send_ahead(large.plan)

    def _forget(self, txid: bytes) -> _Large | None:
        large = self._large.pop(txid, None)
        if large is not None and large.leader != NO_LEADER:
            self._named.pop(self._name(txid, large), None)
        return large

    def _forget_ahead(self, large: _Large) -> None:
        if large.plan is not None:
            self.path.forget_ahead(large.plan)

    def _hand_on(self, txid: bytes, large: _Large) -> None:
        if not large.pieces:
            self._open_chunk(txid, large)
            return
        piece = large.pieces.popleft()
        self._cut(txid, large, piece)
        if large.final is not None and not large.waiting:
            self._commit_large(txid, large, piece)
            return
        name = self._name(txid, large)
        self._step(ev.Part(name, large.tau, large.parts, piece), large)
        large.parts += 1
        if not large.pieces:
            self._taken(large)

    def _taken(self, large: _Large) -> None:
        taken, large.taken = large.taken, None
        if taken is not None:
            taken(None)

    def _open_chunk(self, txid: bytes, large: _Large) -> None:
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
            raise self.path.too_large(large.size_bytes)
        ops = self.path.check_chunk(chunk, large.created)
        large.notes += notes_of(ops)
        large.pieces.extend(slices(ops, len(chunk)))

    def _commit_large(self, txid: bytes, large: _Large, piece: bytes) -> None:
        """The last piece goes with the commit record."""
        final = large.final
        assert final is not None
        final.notes = large.notes
        self._forget(txid)
        refusal = self.path.refusal(final, large.tau, large.size_bytes)
        if final.tau not in (0, large.tau):
            refusal = MeridianError(Kind.PROTOCOL_VIOLATION, why="tau differs from its chunks'")
        if refusal is not None:
            self._step(ev.Discard(self._name(txid, large)), large)
            self._forget_ahead(large)
            self.path.decide(txid, final, large.tau, b"", refusal)
            return
        made = None if large.plan is None else large.plan.close(self.node.map)
        self.path.ask(txid, final, large.tau, large.parts, piece, large.leader, made)

    def _refuse(self, txid: bytes, large: _Large, error: MeridianError) -> None:
        """A chunk cannot be taken: the client hears it now, and again at its COMMIT."""
        large.refused = error
        large.parts = 0
        self._step(ev.Discard(self._name(txid, large)), large)
        taken, large.taken = large.taken, None
        if taken is not None:
            taken(error)
        self._drop(txid, large)

    def refused(self, effect: ev.Refused) -> None:
        """The adjudicator gave a large transaction up: the client hears it at its COMMIT."""
        txid = self._named.get(effect.txid, effect.txid)
        large = self._large.get(txid)
        if large is not None and large.refused is None:
            large.refused = abort_error(effect.code)
            large.parts = 0
            self._drop(txid, large)

    def _drop(self, txid: bytes, large: _Large) -> None:
        """Nothing more of it is handed on; its COMMIT is answered."""
        self._taken(large)
        self._forget_ahead(large)
        waiting, large.queue = large.queue, deque()
        for _, _, done in waiting:
            done(None)
        large.pieces.clear()
        large.last_chunk = None
        if large.final is not None:
            self._forget(txid)
            self.path.decide(txid, large.final, large.tau, b"", large.refused)

    def discard(self, txid: bytes) -> None:
        """The client of a large transaction went away before COMMIT."""
        large = self._large.get(txid)
        if large is None or large.final is not None:
            return
        self._forget(txid)
        self._drop(txid, large)
        self._step(ev.Discard(self._name(txid, large)), large)

    def fail(self, number: int | None = None) -> None:
        """Large commits on their way to a journal (None: to any) end; their clients hear why.

        So do those whose keys its owner had been sent ahead: they are lost with it.
        """
        for txid, large in list(self._large.items()):
            if large.refused is not None:
                continue
            if number in (None, large.leader):
                error = self.node.unavailable(max(large.leader, 0))
                self._refuse(txid, large, error)
            elif large.plan is not None and number in large.plan.sent:
                self._refuse(txid, large, abort_error(ev.Code.MOVED))
