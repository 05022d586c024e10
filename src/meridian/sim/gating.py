"""Gates in the world (docs/rfcs, "Catalog coherence", point 8), and who watches owners.

A schema change that rewrites or validates a relation closes a gate at every owner before it takes
tau_start.  The watch of an owner knows only what its core said: while a gate is closed, no commit
of another transaction that uses its relations is decided there; and nobody is refused for a
gate that cannot be there any more.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from meridian.adjudicator import events as ev
from meridian.clock.tau import Interval
from meridian.journal import core as journal
from meridian.journal.record import Record
from meridian.limits import (
    COMMIT_LEAD_MAX_NS,
    GATE_MS,
    HEARTBEAT_AHEAD_NS,
    TAU_FUTURE_NS,
)
from meridian.sim.messages import Ask, GateTold
from meridian.sim.world import MS, SimulationError, World

if TYPE_CHECKING:
    from meridian.sim.client import Client

Wait = Generator[tuple[int, object], Any, Any]

HOLDS_NS = (100 * MS, 1000 * MS, 4000 * MS)
TRIES = 8


class Watch:
    """What one owner said, as long as it lives: the gates it closed, how far its promises go.

    A commit by votes may have been held elsewhere before the gate closed there: it passes.
    """

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self._gates: dict[bytes, tuple[frozenset[int], int]] = {}
        self._lease_old = 0
        self._lease: int | None = None
        """That is durable; None: not known here (shared streams)."""

    def answered(self, now: int, asked: ev.Gate, code: ev.Code) -> None:
        """The owner answered a GATE."""
        if not asked.hold_ns:
            self._gates.pop(asked.txid, None)
        elif code is ev.Code.NONE:
            held = self._gates.get(asked.txid, (frozenset(), 0))[0]
            until = now + min(asked.hold_ns, GATE_MS * MS)
            self._gates[asked.txid] = held | set(asked.sids), until

    def beat(self, latest: int, tau: int) -> None:
        """A heartbeat. Raises SimulationError when it promises more than a reader may ask for."""
        lead = TAU_FUTURE_NS + max(COMMIT_LEAD_MAX_NS, HEARTBEAT_AHEAD_NS)
        if tau > max(latest + lead, self._lease_old):
            raise SimulationError(f"promise: {self._name} promises {tau - latest} ns ahead")
        if self._lease is not None and tau > max(self._lease, self._lease_old):
            raise SimulationError(f"promise: {self._name} goes beyond its durable lease")

    def durable(self, batch: list[Record]) -> None:
        """Records of the owner's own disk."""
        for record in batch:
            lease = getattr(journal.payload_of(record), "lease", 0)
            self._lease = max(lease, self._lease or 0)

    def appended(self, now: Interval, record: Record) -> None:
        """A record of the owner. Raises SimulationError when it may not decide so."""
        payload = journal.payload_of(record)
        if isinstance(payload, journal.Seal):
            self._lease_old = payload.lease_old
        ahead = payload.tau_start - now.latest if isinstance(payload, journal.Commit) else 0
        if ahead > TAU_FUTURE_NS:
            raise SimulationError(f"tau_start: {self._name} takes one {ahead} ns ahead")
        self._decided(now.earliest, record, payload)

    def _decided(self, now: int, record: Record, payload: journal.Payload) -> None:
        if record.kind not in (journal.COMMIT, journal.ABORT):
            return
        used = self._world.using.get(record.txid, ())
        held = any(
            txid != record.txid and until > now and not sids.isdisjoint(used)
            for txid, (sids, until) in self._gates.items()
        )
        self._gates.pop(record.txid, None)
        voted = record.txid in self._world.voted
        if record.kind == journal.COMMIT and held and not voted:
            raise SimulationError(f"gate: {self._name} let {record.txid.hex()} pass")
        gated = isinstance(payload, journal.Abort) and payload.code == ev.Code.GATED
        if gated and not held:
            raise SimulationError(f"gate: {self._name} held {record.txid.hex()} for none")


class Gate:
    """The gate of one transaction, at all owners that may decide about its relations."""

    def __init__(
        self, client: Client, txid: bytes, sids: tuple[int, ...], owners: list[int]
    ) -> None:
        self.client = client
        self.txid = txid
        self.sids = sids
        self._random = client.world.random(f"gates/{client.name}")
        self._hold_ns = self._random.choice(HOLDS_NS)
        self._owners = owners

    def _tell(self, hold_ns: int, owners: list[int]) -> None:
        world = self.client.world
        gate = Ask(ev.Gate(0, self.txid, self.sids, hold_ns))
        for number in owners:
            for name in world.owner_names(number):
                world.send(self.client.name, name, gate)

    def close(self) -> Wait:
        """True once every owner holds the commits of others and the clock has passed their last."""
        taus: dict[int, int] = {}
        clock = self.client.clock
        for _ in range(TRIES):
            self._tell(self._hold_ns, [number for number in self._owners if number not in taus])
            deadline = self.client.world.now + 200 * MS
            while self.client.world.now < deadline and len(taus) < len(self._owners):
                left = deadline - self.client.world.now
                told: GateTold | None = yield left, ("gate", self.txid)
                if told is not None and told.effect.code is ev.Code.GATED:
                    self.end()
                    return False
                if told is not None and told.effect.code is ev.Code.NONE:
                    taus[told.number] = told.effect.tau
            if len(taus) == len(self._owners):
                while clock.now().earliest <= max(taus.values()):
                    yield MS // 2, None
                self.client.world.count("gates closed")
                return True
        self.end()
        return False

    def end(self) -> None:
        """Its transaction has an outcome, or gives up."""
        self._tell(0, self._owners)
