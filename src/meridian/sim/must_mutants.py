"""One rule broken each: clocks of one machine, promises on request, progress, unknown appends."""

from __future__ import annotations

import msgspec

from meridian.adjudicator import events as ev
from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.ledger import Ledger
from meridian.clock.clock import Clock
from meridian.clock.tau import Interval
from meridian.journal import core as journal
from meridian.journal.core import Reader
from meridian.journal.record import Record
from meridian.sim.machine import Machine
from meridian.sim.messages import Parts
from meridian.sim.vote_mutants import parts
from meridian.sim.world import MS, Node, S

ALONE: dict[str, object] = {
    "partitioned": False, "owners": 1, "adds": 0, "closes": 0, "streams": False, "coded": False,
    "moves": 0, "rots": 0, "false_bounds": False, "sharded": False, "hosts": 0, "snapshots": 0,
    "controllers": 0, "in_flight": 8192, "gates": 0.0, "checkpoints": 0, "gateways": 0,
    "plain": 0.0,
}  # fmt: skip
MACHINE = {
    **ALONE, "colocated": True, "machine": True, "clock_error": 0, "crashes": 6, "clock_steps": 20,
}  # fmt: skip
"""One machine whose wall clock steps while its data plane restarts."""
TWO = {**ALONE, "owners": 2, "colocated": True, "crashes": 3, "clock_error": 0}
CROWD = {**ALONE, "clients": 6, "in_flight": 2, "sync": (5 * MS, 40 * MS), "crashes": 0}
FAILING = {**ALONE, "sync_failure": 0.05}
ASTRAY = {
    **ALONE, "colocated": False, "clock_error": 100 * MS, "false_bounds": True, "clock_steps": 6,
    "clients": 6, "delay": (20_000, 100_000),
}  # fmt: skip
CONTENDED = {
    **ALONE, "colocated": False, "streams": True, "takeovers": 12, "late": 0.1, "double": 0.3,
}  # fmt: skip
EAGER = {**ALONE, "eager": 0.3, "eager_ns": 3 * S}
HASTY = {
    **ALONE, "eager": 0.2, "eager_ns": 900 * MS, "crashes": 6, "sync": (5 * MS, 40 * MS),
    "crash_at_append": 0.03, "slow_sync": 0.05,
}  # fmt: skip
TRIMMED = {**ALONE, "checkpoints": 4, "weights": (0, 1, 0, 3, 0, 0, 0, 0, 0)}


class NotSeeded(Machine):
    """A new process believes its wall, whatever the journal holds."""

    def observe(self, tau: int) -> None:
        pass


class GoesBack(Machine):
    """Follows its wall back."""

    def now(self) -> Interval:
        return Interval(self._wall(), self._wall())


class OneEach(Machine):
    """A clock for every process, each with an error of its own that it does not admit."""

    def of(self, node: Node) -> Machine:
        own = type(self)(self.world)
        own.up = True
        own._offset = self.world.random(f"machine/{node.name}").randint(-50 * MS, 50 * MS)
        return own

    def observe(self, tau: int) -> None:
        if self._clock.now_ns() < tau:
            self._clock = Clock(tau, wall_ns=self._wall, monotonic_ns=lambda: self.world.now)


class TakesAnyStart(Adjudicator):
    """Does not compare tau_start with its own clock."""

    def _known(self, now: Interval, to: int, txid: bytes, tau_start: int) -> list[ev.Effect] | None:
        return super()._known(Interval(now.earliest, 1 << 62), to, txid, tau_start)


class PromisesAnything(Ledger):
    """Promises what a reader asks for, however far ahead."""

    def want(self, now: Interval, tau: int) -> list[ev.Effect]:
        return super().want(Interval(now.earliest, max(now.latest, tau)), tau)


class BeatsBeyondLease(Ledger):
    """A heartbeat needs no durable lease."""

    def heartbeat(self) -> list[ev.Effect]:
        lease, self.lease_durable = self.lease_durable, 1 << 62
        effects = super().heartbeat()
        self.lease_durable = lease
        return effects

    def check(self) -> None:
        pass


class Unbounded(Adjudicator):
    """Takes every commit, however many wait."""

    def _known(self, now: Interval, to: int, txid: bytes, tau_start: int) -> list[ev.Effect] | None:
        self.in_flight = 1 << 30
        return super()._known(now, to, txid, tau_start)


class ToldAsFailed(Adjudicator):
    """An append that failed is told as an abort."""

    def _fail(self, reason: str) -> list[ev.Effect]:
        return [
            msgspec.structs.replace(one, outcome=ev.Outcome.ABORTED)
            if isinstance(one, ev.Answer) and one.outcome is ev.Outcome.UNKNOWN
            else one
            for one in super()._fail(reason)
        ]


class ForgetsOpen(Reader):
    """A place inside an open transaction is as good as any to begin from."""

    def open_n(self) -> int | None:
        return None


class OverGaps(Reader):
    """Goes on behind a gap."""

    def accept(self, record: Record) -> journal.Payload | None:
        if record.n > self.n + 1 and record.epoch == self.epoch:
            self.n = record.n - 1
        return super().accept(record)


MUTANTS: tuple[tuple[str, str, int, Parts], ...] = (
    ("clock: not seeded from the journal", "4.2", 60, Parts(machine=NotSeeded, swarm=MACHINE)),
    ("clock: follows the wall back", "4.2", 60, Parts(machine=GoesBack, swarm=MACHINE)),
    ("clock: one for every process", "4.2", 60, Parts(machine=OneEach, swarm=MACHINE)),
    ("takes any tau_start", "4.3", 60, parts(TakesAnyStart, swarm=ASTRAY)),
    ("promises whatever is asked", "4.3", 100, parts(ledger=PromisesAnything, swarm=EAGER)),
    (
        "heartbeats beyond the durable lease",
        "4.6",
        100,
        parts(ledger=BeatsBeyondLease, swarm=HASTY),
    ),
    ("heartbeats wait for others'", "5.9", 60, Parts(heartbeats_wait=True, swarm=TWO)),
    ("takes commits without bound", "5.9", 60, parts(Unbounded, swarm=CROWD)),
    ("tells a failed append as failed", "6.8", 60, parts(ToldAsFailed, swarm=FAILING)),
    ("reads on behind a gap", "6.2", 60, Parts(reader=OverGaps, swarm=CONTENDED)),
    ("trims inside a transaction", "6.7", 100, Parts(reader=ForgetsOpen, swarm=TRIMMED)),
)
