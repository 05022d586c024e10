"""Gates of DDL statements: asks the adjudicator, waits until its answer lies in the past.

See docs/rfcs, "Catalog coherence", point 8, and `meridian.adjudicator.gates`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meridian.adjudicator import events as ev
from meridian.errors import Kind, MeridianError
from meridian.limits import COMMIT_WAIT_MS, GATE_MS, GATE_RELATIONS, MS
from meridian.wire.frames import TXID_SIZE_BYTES

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

_RETRY_S = 0.005
_ANSWER_S = 1.0
_OTHER = "another schema change holds commits on one of its relations"


class Gates:
    """One per node, on the event loop's thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._asked: dict[int, asyncio.Future[ev.Gated]] = {}

    async def open(self, txid: bytes, sids: Sequence[int], hold_ms: int) -> int:
        """Closes the gate (0 ms: ends it); the tau of the last thing that happened to them.

        When it returns the clock has passed that tau, so a tau_start taken now lies above it.
        Raises SCHEMA_CHANGED when another gate is in the way, TOO_MANY_REQUESTS, NOT_READY,
        PROTOCOL_VIOLATION, REQUEST_TOO_LARGE.
        """
        _check(txid, sids, hold_ms)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + COMMIT_WAIT_MS / 1000
        while True:
            answer = await self._ask(txid, tuple(sids), min(hold_ms, GATE_MS) * MS)
            code = ev.Code.STARTING if answer is None else answer.code
            if answer is not None and code is ev.Code.NONE:
                if hold_ms:
                    self.node.counters.gates += 1
                await self._pass(answer.tau)
                return answer.tau
            if code is ev.Code.GATED:
                raise MeridianError(Kind.SCHEMA_CHANGED, detail=_OTHER)
            if loop.time() >= give_up_at:
                raise MeridianError(_LATER[code])
            await asyncio.sleep(_RETRY_S)

    async def _ask(self, txid: bytes, sids: tuple[int, ...], hold_ns: int) -> ev.Gated | None:
        """None: nobody answers now."""
        asker = self.node.commits.asker
        future: asyncio.Future[ev.Gated] = asyncio.get_running_loop().create_future()
        to = asker.next_to()
        self._asked[to] = future
        try:
            if not asker.step(ev.Gate(to, txid, sids, hold_ns)):
                return None
            return await asyncio.wait_for(future, _ANSWER_S)
        except TimeoutError:
            # Its owner ended meanwhile.
            return None
        finally:
            del self._asked[to]

    def answered(self, effect: ev.Gated) -> None:
        """The adjudicator's Gated effect."""
        future = self._asked.get(effect.to)
        if future is not None and not future.done():
            future.set_result(effect)

    def end(self, txid: bytes) -> None:
        """Whoever asked for it is gone."""
        asker = self.node.commits.asker
        asker.step(ev.Gate(asker.next_to(), txid, (), 0))

    def status(self) -> dict[str, int]:
        """How many there are, how many commits they hold, how many they have held so far."""
        owner = self.node.owner
        if owner is None or owner.dead:
            return {"open": 0, "held": 0, "held_since_start": 0}
        gates = owner.adjudicator.gates
        held = len(gates.held) + len(gates.large)
        return {"open": len(gates), "held": held, "held_since_start": gates.held_count}

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
