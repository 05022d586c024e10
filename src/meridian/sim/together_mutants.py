"""One rule of commits that come together broken each: only frames of several find them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.events import Commit, Effect
from meridian.adjudicator.ledger import Decision, Ledger
from meridian.adjudicator.together import Together
from meridian.clock.tau import Interval
from meridian.journal.core import Position
from meridian.journal.record import NO_TXID, Record
from meridian.sim.messages import Parts
from meridian.sim.must_mutants import ALONE
from meridian.sim.vote_mutants import WHOLE, Spans
from meridian.sim.world import MS

FRAMES: dict[str, object] = {
    **ALONE, "clients": 12, "gateways": 1, "gather_ns": 15 * MS, "frame_doubles": 0.2,
    "plain": 0.8, "together": 2, "window_keys": 1 << 20, "clock_error": 0, "keys": 6,
}  # fmt: skip
"""One owner who decides frames of several, in which commits meet and come twice."""
LOCKS: dict[str, object] = {**FRAMES, "plain": 0.6, "weights": (0, 0, 0, 0, 0, 0, 0, 3, 9)}
GATES: dict[str, object] = {**FRAMES, "gates": 0.08}
ASKED: dict[str, object] = {
    **FRAMES, "late": 0.1, "late_delay": (10 * MS, 2_000 * MS), "plain": 0.95, "drop": 0.05,
}  # fmt: skip
"""Many are asked for before they come."""
DYING: dict[str, object] = {
    **FRAMES, "crashes": 6, "crash_at_append": 0.03, "sync": (5 * MS, 40 * MS),
    "gather_ns": 40 * MS,
}  # fmt: skip
"""Its owner dies while a part of a frame is on the disk."""


class Blind(Together):
    """Looks at what was decided before, not at what is decided with it."""

    def meet(self, keys: list[int], recorded: dict[int, int]) -> bool:
        return False


class DecidesCopies(Together):
    """A commit that is in its frame twice is decided twice."""

    def decide(
        self, core: Adjudicator, now: Interval, events: Sequence[Commit]
    ) -> list[Record] | None:
        first: dict[bytes, Commit] = {}
        copies: list[Commit] = []
        for event in events:
            (copies.append(event) if event.txid in first else first.update({event.txid: event}))
        records = super().decide(core, now, list(first.values()))
        for event in copies if records is not None else ():
            tau = core.ledger.tau_for(now, event.tau_start)
            decision = Decision(event.txid, event.tau_start, tau, 0, [event.to])
            records = [*(records or ()), *core.ledger.commit_all(now, [decision], [event])]
        return records


class NoCopies(Adjudicator):
    """Knows each decision by its id alone."""

    def _tell(self, decisions: list[Decision]) -> list[Effect]:
        for decision in decisions:
            if decision.txid != NO_TXID:
                self._live[decision.txid] = decision
        effects: list[Effect] = []
        for decision in decisions:
            effects += super()._tell([decision]) if decision.txid in self._live else []
        return effects

    def check(self) -> None:
        self.ledger.check()


class ForgetsTold(Together):
    """Does not look which outcomes were told."""

    def are_new(self, core: Adjudicator, txids: list[bytes], first: int) -> bool:
        return first >= core.outcomes.floor


class PastLocks(Together):
    """Locks of relations and schema changes are for commits that come alone."""

    def stands_against(
        self, core: Adjudicator, events: Sequence[Commit], first: int, sids: tuple[int, ...]
    ) -> bool:
        return False


class Youngest(Together):
    """All of a frame are compared with what happened since the youngest began."""

    def decide(
        self, core: Adjudicator, now: Interval, events: Sequence[Commit]
    ) -> list[Record] | None:
        last = max(event.tau_start for event in events)
        young = [msgspec.structs.replace(event, tau_start=last) for event in events]
        return super().decide(core, now, young)


class PastGates(Adjudicator):
    """A frame is decided whatever a gate holds."""

    def is_quiet(self) -> bool:
        gates, held = self.gates._gates, self.gates.held
        self.gates._gates, self.gates.held = {}, {}
        quiet = super().is_quiet()
        self.gates._gates, self.gates.held = gates, held
        return quiet


class UnseenWrites(Adjudicator):
    """Whoever locks a relation does not see what a frame has written in it."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.relations.record_writes = lambda taus, floor: None  # type: ignore[method-assign]


class DurableWithFirst(Ledger):
    """Once one record of a frame is durable, so are all."""

    def appended(self, now: Interval, n: int) -> list[Decision]:
        entry = self._pending[0] if self._pending else None
        if entry is not None and n < entry.n and n > entry.n - len(entry.decisions):
            n = entry.n
        return super().appended(now, n)


def _parts(
    swarm: dict[str, object],
    *,
    together: type[Together] = Together,
    base: type[Adjudicator] = Adjudicator,
    ledger: type[Ledger] | None = None,
) -> Parts:
    def make(
        number: int, start: Position | None = None, keys: int = 1 << 20, spans: Spans = WHOLE
    ) -> Adjudicator:
        core = base(number, start, keys, spans)
        core.together = together()
        if ledger is not None:
            core.ledger = core.voter.ledger = ledger(number)
        return core

    return Parts(adjudicator=make, swarm=swarm)


Row = tuple[str, str, int, Parts]
MUTANTS: tuple[Row, ...] = (
    ("frame: blind to its other commits", "5.1", 40, _parts(FRAMES, together=Blind)),
    ("frame: as of its youngest commit", "5.1", 40, _parts(FRAMES, together=Youngest)),
    ("frame: decides copies", "5.6", 40, _parts(FRAMES, together=DecidesCopies, base=NoCopies)),
    ("frame: forgets what was told", "5.6", 200, _parts(ASKED, together=ForgetsTold)),
    ("frame: past locks and schema changes", "9", 60, _parts(LOCKS, together=PastLocks)),
    ("frame: its writes hide from locks", "9", 60, _parts(LOCKS, base=UnseenWrites)),
    ("frame: past gates", "9", 60, _parts(GATES, base=PastGates)),
    ("frame: durable with its first", "3", 100, _parts(DYING, ledger=DurableWithFirst)),
)
