"""Gates in the world (docs/rfcs, "Catalog coherence", point 8): who asks for one, and who watches.

A schema change that rewrites or validates a relation closes a gate at every owner before it takes
tau_start.  The watch of an owner knows only what its core said: while a gate is closed, no commit
of another transaction that uses its relations is decided there; and nobody is refused for a
gate that cannot be there any more.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from meridian.adjudicator import events as ev
from meridian.journal import core as journal
from meridian.journal.record import Record
from meridian.limits import GATE_MS
from meridian.sim.messages import Ask, GateTold
from meridian.sim.world import MS, SimulationError, World

if TYPE_CHECKING:
    from meridian.sim.client import Client

Wait = Generator[tuple[int, object], Any, Any]

HOLDS_NS = (100 * MS, 1000 * MS, 4000 * MS)
TRIES = 8


class Watch:
    """The gates that one owner said are closed, as long as it lives.

    A commit by votes was held elsewhere before the gate closed there; its leader looks at all its
    relations, so the rule holds for whole transactions.
    """

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self._gates: dict[bytes, tuple[frozenset[int], int]] = {}

    def answered(self, now: int, asked: ev.Gate, code: ev.Code) -> None:
        """The owner answered a GATE."""
        if not asked.hold_ns:
            self._gates.pop(asked.txid, None)
        elif code is ev.Code.NONE:
            held = self._gates.get(asked.txid, (frozenset(), 0))[0]
            until = now + min(asked.hold_ns, GATE_MS * MS)
            self._gates[asked.txid] = held | set(asked.sids), until

    def decided(self, now: int, record: Record) -> None:
        """The owner appends a decision. Raises SimulationError when a gate forbids it."""
        if record.kind not in (journal.COMMIT, journal.ABORT):
            return
        used = self._world.using.get(record.txid, ())
        held = any(
            txid != record.txid and until > now and not sids.isdisjoint(used)
            for txid, (sids, until) in self._gates.items()
        )
        self._gates.pop(record.txid, None)
        if record.kind == journal.COMMIT and held:
            raise SimulationError(f"gate: {self._name} let {record.txid.hex()} pass")
        if record.kind == journal.ABORT and not held and self._gated(record):
            raise SimulationError(f"gate: {self._name} held {record.txid.hex()} for none")

    def _gated(self, record: Record) -> bool:
        payload = journal.payload_of(record)
        return isinstance(payload, journal.Abort) and payload.code == ev.Code.GATED


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
