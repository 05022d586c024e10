"""Adjudicators with one rule of gates broken (docs/rfcs, "Catalog coherence", points 7 and 8)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.events import Code, Commit
from meridian.adjudicator.footprint import Footprint
from meridian.adjudicator.gates import Gates
from meridian.adjudicator.relations import Relations
from meridian.clock.tau import TAU_MAX
from meridian.journal.core import Position
from meridian.sim.messages import Parts
from meridian.sim.vote_mutants import FOCUS, WHOLE, Spans, parts

GATED = {**FOCUS, "gates": 0.1, "drop": 0.1, "crashes": 3, "weights": (0, 2, 2, 0, 0, 0, 1, 0, 0)}
"""Relations are rewritten behind gates while others write them."""


class GatePasses(Gates):
    """Holds nobody."""

    def blocks(self, txid: bytes, prints: Iterable[Footprint]) -> bool:
        return False


class GateForgetsHeld(Gates):
    """A commit that was held once passes when it is looked at again."""

    def __init__(self) -> None:
        super().__init__()
        self._was_held: dict[bytes, None] = {}

    def hold(
        self, now: int, event: Commit, waiting: list[int], prints: Iterable[Footprint]
    ) -> bool:
        self._was_held[event.txid] = None
        return super().hold(now, event, waiting, prints)

    def _is_blocked(self, txid: bytes, sids: tuple[int, ...]) -> bool:
        return txid not in self._was_held and super()._is_blocked(txid, sids)


class GateStays(Gates):
    """Ends with its transaction only, which may never come."""

    def open(self, now: int, txid: bytes, sids: Iterable[int], hold_ns: int) -> Code:
        code = super().open(now, txid, sids, hold_ns)
        if code is Code.NONE:
            self._gates[txid] = self._gates[txid][0], TAU_MAX
        return code


class BlindRewrite(Relations):
    """A rewrite does not look at what the relation took after its tau_start."""

    def conflict(self, tau_start: int, prints: Iterable[Footprint]) -> bool:
        blind = [
            msgspec.structs.replace(one, locked=()) if one.catalog_version else one
            for one in prints
        ]
        return super().conflict(tau_start, blind)


def _gates(kind: type[Gates]) -> Parts:
    def make(
        number: int, start: Position | None = None, keys: int = 1 << 20, spans: Spans = WHOLE
    ) -> Adjudicator:
        core = Adjudicator(number, start, keys, spans)
        core.gates = core.voter.gates = kind()
        return core

    return Parts(adjudicator=make, swarm=GATED)


MUTANTS: tuple[tuple[str, str, int, Parts], ...] = (
    ("gate: holds nobody", "9", 40, _gates(GatePasses)),
    ("gate: lets pass whom it held", "9", 60, _gates(GateForgetsHeld)),
    ("gate: outlives its holder", "9", 60, _gates(GateStays)),
    ("rewrites over a later write", "9", 100, parts(relations=BlindRewrite, swarm=GATED)),
)
