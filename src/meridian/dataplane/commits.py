"""The commit path between gateway and adjudicator: checks and limits."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from meridian.adjudicator import events as ev
from meridian.crossbar.core import Item, Transaction
from meridian.dataplane.asker import Asked, Asker, Done, abort_error
from meridian.dataplane.cutting import Plan, cut_chunk, leader_of_small
from meridian.dataplane.feeds import Note, notes_of
from meridian.dataplane.large import Final, LargeCommits
from meridian.dataplane.validate import check_relations, created_by
from meridian.errors import Kind, MeridianError
from meridian.limits import CHUNK_BYTES_MAX, COMMIT_WAIT_MS, MS, TAU_FUTURE_NS
from meridian.storage.apply import check_ops
from meridian.wire import frames
from meridian.wire.ops import Op, decode_chunk
from meridian.wire.votes import Forget, name_leader

if TYPE_CHECKING:
    from meridian.dataplane.node import Node


class CommitPath:
    """One per node, on the event loop's thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.asker = Asker(node)
        self.large = LargeCommits(self)
        self._noted: dict[bytes, tuple[bytes, list[Note]]] = {}
        """With several journals: transactions under way that notify, by what their leader calls
        them."""
        self._newest_tau = 0
        """The highest tau_start so far."""
        self._changed_tau = 0
        """What began before may have named another leader, if its COMMIT came before."""
        self._grown_tau = 0
        """What began before may have been made an abort under all names that there were then."""
        self._merged: deque[tuple[int, bytes]] = deque()
        """Those of them that are durable, in the order of commits."""

    def owner_lost(self, number: int) -> None:
        """A journal failed: its large commits on their way are over, the rest is asked again."""
        self.large.fail(number)
        self.asker.owner_lost(number)

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
        final = Final(tau, catver, flags, row_count, done, time.monotonic_ns())
        if not self.large.take_commit(txid, final, chunk):
            self._commit_small(txid, final, chunk)

    def _commit_small(self, txid: bytes, final: Final, chunk: bytes) -> None:
        refusal = self.refusal(final, final.tau, len(chunk))
        if final.flags & frames.COMMIT_HAS_PARTS:
            # Its chunks went to an earlier process, or were refused and forgotten.
            refusal = MeridianError(Kind.BAD_WRITE_SET, why="its chunks are not here")
        if refusal is None:
            try:
                final.notes = notes_of(self.check_chunk(chunk, {}))
            except MeridianError as error:
                refusal = error
        tau = final.tau or self.node.tau_start()
        self.decide(txid, final, tau, chunk, refusal)

    def decide(
        self,
        txid: bytes,
        final: Final,
        tau: int,
        chunk: bytes,
        refusal: MeridianError | None,
    ) -> None:
        """A transaction of one chunk; with a `refusal`, only whether it was committed before."""
        self._newest_tau = max(self._newest_tau, tau)
        leader, made = 0, None
        if refusal is None and tau <= self._grown_tau:
            refusal = abort_error(ev.Code.MOVED)
        if refusal is None and len(self.node.seats) > 1:
            try:
                leader, made = self._plan(txid, tau, chunk)
            except MeridianError as error:
                refusal = error
        if refusal is not None:
            # An earlier copy of this request may have committed: its outcome comes first (5.6).
            self.asker.resolve(txid, tau, self._done(txid, final), refusal)
            return
        if tau > self._changed_tau:
            self.ask(txid, final, tau, 0, chunk, leader, made)
            return
        # The map has changed since: is it an earlier copy's, under the name of then?
        done = self._done(txid, final)
        go_on = partial(self.ask, txid, final, tau, 0, chunk, leader, made)
        self.asker.elsewhere(txid, tau, leader, self.asker.first_outcome(done, go_on))

    def map_changed(self) -> None:
        """From here on transactions may have other leaders."""
        self._changed_tau = max(self._newest_tau, self.node.clock.now().latest)

    def map_was_changed(self, tau: int) -> None:
        """The same, by an earlier process: what it had planned then went on for a while."""
        if tau:
            self._changed_tau = tau + COMMIT_WAIT_MS * MS + TAU_FUTURE_NS

    def grown(self) -> None:
        """From here on there is one name more that a transaction may have."""
        self.map_changed()
        self._grown_tau = self._changed_tau

    def _plan(self, txid: bytes, tau: int, chunk: bytes) -> tuple[int, Plan | None]:
        """Who leads, who votes. Raises BAD_WRITE_SET, KEYS_ELSEWHERE."""
        map_ = self.node.map
        found = cut_chunk(chunk, map_)
        self.node.heat.count(found)
        leader = leader_of_small(found, map_)
        if len(found.parts) <= 1 and not found.everywhere:
            return leader, None
        made = Plan(leader, name_leader(txid, leader), tau)
        made.add(found)
        self.send_ahead(made)
        return leader, made.close(map_)

    def send_ahead(self, made: Plan) -> None:
        """Keys that voters compare before they are asked."""
        for voter, message in made.ahead():
            asyncio.get_running_loop().call_soon(self.node.tell, voter, message)

    def forget_ahead(self, made: Plan) -> None:
        """Nobody will ask for it again."""
        for voter in made.sent:
            message = Forget(made.txid)
            asyncio.get_running_loop().call_soon(self.node.tell, voter, message)
        made.sent.clear()

    def ask(
        self,
        txid: bytes,
        final: Final,
        tau: int,
        parts: int,
        chunk: bytes,
        leader: int,
        made: Plan | None,
    ) -> None:
        """Asks the leader for the decision, and others for their votes."""
        done = self._done(txid, final)
        name = name_leader(txid, leader)
        if len(self.node.seats) > 1:
            self.node.gates.lead(txid, leader)
            if final.notes:
                self._noted[name] = txid, final.notes
                done = partial(self._forget_notes, name, done)
        to = self.asker.next_to()
        event = ev.Commit(to, name, tau, final.catver, final.flags, parts, chunk)
        ahead = made if made is not None and made.sent else None
        self.asker.ask(
            Asked(event, done, None, final.started_ns, leader=leader, plan=made, ahead=ahead)
        )

    def _done(self, txid: bytes, final: Final) -> Done:
        done = final.done
        if final.notes:
            done = partial(self._told, txid, final.notes, done)
        if self.node.gates.is_open(txid):
            done = partial(self._end_gate, txid, done)
        return done

    def _end_gate(self, txid: bytes, done: Done, result: int | MeridianError) -> None:
        """The leader has ended its gate with the outcome; the others have one each."""
        self.node.gates.end(txid)
        done(result)

    # Notifications

    def merged(self, items: Sequence[Item]) -> None:
        """What storage is about to get, in the order of commits, of all journals."""
        if self._noted:
            for item in items:
                if isinstance(item, Transaction) and item.txid in self._noted:
                    self._merged.append((item.tau, item.txid))

    def applied(self) -> None:
        """Storage has advanced. Answers come in the order of each journal, notifications of all."""
        applied_tau = self.node.engine.applied_tau
        while self._merged and self._merged[0][0] <= applied_tau:
            txid, notes = self._noted.pop(self._merged.popleft()[1], (b"", []))
            if notes:
                self.node.feeds.notify(txid, notes)
        self.asker.applied()

    def _forget_notes(self, name: bytes, done: Done, result: int | MeridianError) -> None:
        self._noted.pop(name, None)
        done(result)

    def _told(
        self, txid: bytes, notes: list[Note], done: Done, result: int | MeridianError
    ) -> None:
        """Notifications go out when their transaction is durable and applied, before its answer."""
        if not isinstance(result, MeridianError):
            self.node.feeds.notify(txid, notes)
        elif result.kind is Kind.OUTCOME_UNKNOWN:
            self.node.feeds.notifications_lost()
        done(result)

    def refusal(self, final: Final, tau: int, size_bytes: int) -> MeridianError | None:
        """Which limit this transaction exceeds, if any."""
        limits = self.node.limits
        if final.row_count > limits.txn_rows:
            return MeridianError(Kind.TXN_ROW_LIMIT, limit=limits.txn_rows)
        if size_bytes > limits.txn_size_bytes:
            return self.too_large(size_bytes)
        age_ms = (self.node.clock.now().latest - tau) // 1_000_000
        if tau and age_ms > limits.txn_age_ms:
            return MeridianError(Kind.TXN_AGE_LIMIT, limit_s=limits.txn_age_ms // 1000)
        return None

    def too_large(self, size_bytes: int) -> MeridianError:
        """The refusal of a write set of that size."""
        limit_mb = self.node.limits.txn_size_bytes >> 20
        detail = f"Current transaction size {-(-size_bytes >> 20)}mb > {limit_mb}mb"
        return MeridianError(Kind.TXN_SIZE_LIMIT, limit_mb=limit_mb, detail=detail)

    def check_chunk(self, chunk: bytes, created: dict[int, dict[int, int]]) -> list[Op]:
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
