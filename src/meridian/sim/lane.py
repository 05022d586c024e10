"""A storage core over a store: what serves one file in a replica process."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from meridian.crossbar import core as xb
from meridian.crossbar.held import Held
from meridian.sim.store import Store
from meridian.sim.world import SimulationError
from meridian.storage import core as st
from meridian.wire.ranges import ALL

if TYPE_CHECKING:
    from meridian.sim.follower import Follower

CREDIT_BYTES = 2_000


class Lane:
    """Subscriber `number` of the process's crossbar, with a storage core of its own."""

    def __init__(self, home: Follower, number: int, store: Store, random: Random) -> None:
        self.home = home
        self.number = number
        self.store = store
        self._random = random
        self._told = 0
        self.core = home.parts.storage(store.tau, store.horizon, store.positions)
        # A file that no commit concerned is complete for longer than its newest commit.
        self.core.complete_tau = store.complete
        self._held = Held(store.complete, dict(store.positions))

    @property
    def complete(self) -> int:
        """Every commit through this tau is in the store."""
        return self.core.complete_tau

    def subscription(self) -> xb.Subscribe:
        """Cut by what it owns; nothing is cut for one that owns everything."""
        owned = self.store.ranges.owned
        ranges = () if owned == ALL else owned
        return xb.Subscribe(self.number, self.store.complete, CREDIT_BYTES, ranges)

    def take(self, effect: xb.Deliver, *, known: int) -> None:
        """A delivery; `known`: the tau through which the crossbar has merged."""
        if effect.tau < self._told:
            raise SimulationError(f"{self.home.name}: completeness went back")
        self._told = effect.tau
        chunks = (one.tau_start for one in effect.items if isinstance(one, xb.Body))
        if known and max(chunks, default=0) > max(effect.tau, known):
            raise SimulationError("a chunk comes before what it may name")
        wanted = self._wanted(effect.items)
        tau, positions = effect.tau, effect.positions
        if self.home.ranged:
            tau, positions = self._held.bounds(tau, positions)
        self.step(st.Delivered(tuple(map(_item, wanted)), tau, positions))
        self._give_back(_size_bytes(effect.items) - _size_bytes(wanted))

    def _give_back(self, size_bytes: int) -> None:
        """Credit for what the file held already: storage never hears of it, so takes none of it."""
        if size_bytes:
            # The crossbar's step that delivered it may have more to deliver.
            self.home.after(0, lambda: self.home.cross(xb.Credit(self.number, size_bytes)))

    def _wanted(self, items: list[xb.Item]) -> list[xb.Item]:
        if not self.home.ranged:
            return items
        return [one for item in items if (one := self._held.filtered(item)) is not None]

    def flush(self) -> None:
        """The positions of a file that nothing concerns: else no journal could be trimmed."""
        if self.core.idle:
            self.store.positions.update(self.core.positions)
            self.store.noted = max(self.store.noted, self.core.complete_tau)

    def step(self, event: st.Event) -> None:
        """The core's step, and what it wants done."""
        home = self.home
        for effect in self.core.step(home.clock.now(), event):
            match effect:
                case st.Apply() | st.Stage() | st.Resolve() | st.Discard():
                    delay = self._random.randint(1_000, home.world.swarm.apply_ns)
                    home.after(delay, self._performer(effect))
                case st.Serve():
                    home.may_serve(self, effect.token)
                case st.Refuse():
                    home.may_not_serve(self, effect.token, effect.reason)
                case st.Want():
                    home.want(effect.tau)
                case st.Took():
                    home.cross(xb.Credit(self.number, effect.size_bytes))
                case st.SetTimer():
                    self._arm(effect.at)
                case st.RaiseFloor():
                    self.store.horizon = effect.floor
        self.core.check()

    def _performer(self, work: st.Work) -> Any:
        def perform() -> None:
            before = self.store.tau
            self.store.perform(work)
            if self.store.tau > before:
                self.home.world.trace("apply", self.home.name, self.store.tau)
            self.step(st.Performed())

        return perform

    def _arm(self, at: int) -> None:
        home = self.home

        def fire() -> None:
            if home.clock.now().earliest < at:
                self._arm(at)
            else:
                self.step(st.TimerFired())

        home.after(max(at - home.clock.now().earliest, 1_000), fire)


def _size_bytes(items: list[xb.Item]) -> int:
    """What a delivery costs of the credit."""
    return sum(len(item.chunk) for item in items if not isinstance(item, xb.Dropped))


def _item(item: xb.Item) -> st.Item:
    match item:
        case xb.Transaction():
            bodies = len(item.bodies)
            return st.Committed(item.tau, item.journal, item.n, item.txid, bodies, item.chunk)
        case xb.Body():
            return st.Chunk(item.txid, item.journal, item.n, item.seq, item.chunk)
        case xb.Dropped():
            return st.Dropped(item.txid, item.journal, item.n)
