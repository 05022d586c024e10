"""Gates of DDL statements: asks the adjudicator, waits until its answer lies in the past.

See docs/rfcs, "Catalog coherence", point 8, and `meridian.adjudicator.gates`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from meridian.adjudicator import events as ev
from meridian.errors import Kind, MeridianError
from meridian.limits import COMMIT_WAIT_MS, GATE_MS, GATE_RELATIONS, GATES, MS
from meridian.wire.frames import TXID_SIZE_BYTES
from meridian.wire.votes import name_leader

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

_RETRY_S = 0.005
_ANSWER_S = 1.0
_OTHER = "another schema change holds commits on one of its relations"


class _Gate(msgspec.Struct):
    """A gate that was asked for: closed at every owner under the id that names the leader."""

    sids: tuple[int, ...]
    hold_ns: int
    leader: int


class Gates:
    """One per node, on the event loop's thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._asked: dict[int, asyncio.Future[ev.Gated]] = {}
        self._open: dict[bytes, _Gate] = {}
        """By the id that the query processor knows; it may have ended by time."""

    async def open(self, txid: bytes, sids: Sequence[int], hold_ms: int) -> int:
        """Closes the gate (0 ms: ends it); the tau of the last thing that happened to them.

        When it returns the clock has passed that tau, so a tau_start taken now lies above it.
        Raises SCHEMA_CHANGED when another gate is in the way, TOO_MANY_REQUESTS, NOT_READY,
        PROTOCOL_VIOLATION, REQUEST_TOO_LARGE.
        """
        _check(txid, sids, hold_ms)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + COMMIT_WAIT_MS / 1000
        hold_ns = min(hold_ms, GATE_MS) * MS
        gate = self._open.get(txid)
        if gate is None:
            # A schema change is decided by the first of all owners (5.3).
            gate = _Gate((), hold_ns, self.node.map.everybody()[0])
        gate.sids, gate.hold_ns = tuple(dict.fromkeys((*gate.sids, *sids))), hold_ns
        if hold_ns:
            self._open[txid] = gate
            self._forget()
        else:
            self._open.pop(txid, None)
        while True:
            code, tau = await self._ask(self._name(txid, gate), tuple(sids), hold_ns)
            if code is ev.Code.NONE:
                if hold_ms:
                    self.node.counters.gates += 1
                await self._pass(tau)
                return tau
            if code is ev.Code.GATED:
                self.end(txid)
                raise MeridianError(Kind.SCHEMA_CHANGED, detail=_OTHER)
            if loop.time() >= give_up_at:
                self.end(txid)
                raise MeridianError(_LATER[code])
            await asyncio.sleep(_RETRY_S)

    def _forget(self) -> None:
        """Whoever asked for the oldest is long gone: an adjudicator has fewer."""
        while len(self._open) > 2 * GATES:
            del self._open[next(iter(self._open))]

    def _name(self, txid: bytes, gate: _Gate) -> bytes:
        return name_leader(txid, gate.leader)

    async def _ask(self, txid: bytes, sids: tuple[int, ...], hold_ns: int) -> tuple[ev.Code, int]:
        """Of all owners: the first code that is not NONE, the highest tau."""
        asker = self.node.commits.asker
        loop = asyncio.get_running_loop()
        futures: dict[int, asyncio.Future[ev.Gated]] = {}
        try:
            # All in one go: no commit is decided between two owners' gates.
            for number in self.node.map.everybody():
                to = asker.next_to()
                self._asked[to] = futures[to] = loop.create_future()
                if not asker.step(ev.Gate(to, txid, sids, hold_ns), number):
                    return ev.Code.STARTING, 0
            answers = await asyncio.wait_for(asyncio.gather(*futures.values()), _ANSWER_S)
        except TimeoutError:
            # Its owner ended meanwhile.
            return ev.Code.STARTING, 0
        finally:
            for to in futures:
                del self._asked[to]
        codes = [answer.code for answer in answers if answer.code is not ev.Code.NONE]
        return codes[0] if codes else ev.Code.NONE, max(answer.tau for answer in answers)

    def answered(self, effect: ev.Gated) -> None:
        """The adjudicator's Gated effect."""
        future = self._asked.get(effect.to)
        if future is not None and not future.done():
            future.set_result(effect)

    def is_open(self, txid: bytes) -> bool:
        """Has it asked for a gate, as far as is known?"""
        return txid in self._open

    def lead(self, txid: bytes, leader: int) -> None:
        """Its transaction is led by somebody else than was thought: the gate takes that name."""
        gate = self._open.get(txid)
        if gate is None or gate.leader == leader:
            return
        before, gate.leader = self._name(txid, gate), leader
        after = self._name(txid, gate)
        asker = self.node.commits.asker
        for number in self.node.map.everybody():
            # In one go: held commits are looked at after both.
            asker.step(ev.Gate(asker.next_to(), before, (), 0), number)
            asker.step(ev.Gate(asker.next_to(), after, gate.sids, gate.hold_ns), number)

    def end(self, txid: bytes) -> None:
        """Its outcome is known, or whoever asked for it is gone."""
        gate = self._open.pop(txid, None)
        if gate is None:
            return
        asker = self.node.commits.asker
        for number in self.node.map.everybody():
            asker.step(ev.Gate(asker.next_to(), self._name(txid, gate), (), 0), number)

    def status(self) -> dict[str, int]:
        """How many there are, how many commits they hold, how many they have held so far."""
        found = {"open": 0, "held": 0, "held_since_start": 0}
        for seat in self.node.seats:
            if seat.owner is not None and not seat.owner.dead:
                gates = seat.owner.adjudicator.gates
                # Every owner has each gate.
                found["open"] = max(found["open"], len(gates))
                found["held"] += len(gates.held) + len(gates.large)
                found["held_since_start"] += gates.held_count
        return found

    async def _pass(self, tau: int) -> None:
        """A commit may lie ahead of the clock by the commit lead."""
        while (ahead := tau - self.node.clock.now().earliest) >= 0:  # noqa: ASYNC110
            await asyncio.sleep(ahead / 1e9)


def _check(txid: bytes, sids: Sequence[int], hold_ms: int) -> None:
    if len(txid) != TXID_SIZE_BYTES:
        raise MeridianError(Kind.PROTOCOL_VIOLATION, why="a transaction id has 16 bytes")
    if hold_ms < 0:
        raise MeridianError(Kind.PROTOCOL_VIOLATION, why="a gate has no negative duration")
    if len(sids) > GATE_RELATIONS:
        raise MeridianError(Kind.REQUEST_TOO_LARGE, limit=GATE_RELATIONS)


_LATER = {ev.Code.STARTING: Kind.NOT_READY, ev.Code.BUSY: Kind.TOO_MANY_REQUESTS}
