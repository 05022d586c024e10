"""A host of the world: takes storage replicas, performs orders about them, reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from meridian.control import performer as perform
from meridian.control.views import HostReport, Report, TakeOver
from meridian.sim.messages import AskShards, Order, Ordered, Parts, Said, TheseShards
from meridian.sim.world import MS, Node, World
from meridian.wire.ranges import Range

if TYPE_CHECKING:
    from meridian.sim.fleet import Fleet

REPORT_NS = 300 * MS


class Host(Node):
    """Node `h<number>` in a zone; its crash takes what runs on it."""

    def __init__(self, world: World, number: int, zone: int, fleet: Fleet, parts: Parts) -> None:
        super().__init__(world, f"h{number}")
        self.number = number
        self.zone = zone
        self.fleet = fleet
        self.disk: dict[int, Range] = {}
        """The replicas that it has, with the range that each owns."""
        self.ended: dict[int, None] = {}
        self.lost = False
        """It never comes back."""
        self.tenants: Callable[[Host], Sequence[Node]] = lambda _: ()
        """Owners that run here."""
        self.said: Callable[[Report], None] = lambda _: None
        """Who checks control cores knows what they were told."""
        self.take_over: Callable[[Host, TakeOver], bool] = lambda *_: False
        self._parts = parts
        self._performer = parts.performer(number, self.disk, self.ended)
        world.hosts.append(self.name)
        world.located[self.name] = (f"zone{zone}",)

    def on_start(self) -> None:
        """What its disk holds comes up with it."""
        self._performer = self._parts.performer(self.number, self.disk, self.ended)
        for number in self.disk:
            self.fleet.replicas[number].start()
        self._report()

    def on_crash(self) -> None:
        """With everything that runs here."""
        for owner in self.tenants(self):
            owner.crash()
        for number in self.disk:
            self.fleet.replicas[number].crash()

    def states(self) -> list[str]:
        """Whether it has replicas."""
        return ["host with replicas" if self.disk else "host idle"]

    def start(self) -> None:
        """Unless it is gone for good."""
        if not self.lost:
            super().start()

    def lose(self) -> None:
        """It is gone for good, with its disk."""
        self.crash()
        self.lost = True
        self.world.trace("lost", self.name)
        for number in self.disk:
            self.fleet.end(number)

    def _report(self) -> None:
        now = self.clock.now()
        self._say(HostReport(self.number, now.earliest, self.zone))
        for number in self.disk:
            replica = self.fleet.replicas[number]
            if replica.alive:
                if self.world.swarm.controllers:
                    # Completeness is judged by the clock: idle journals are asked to move on.
                    replica.demand(now.latest)
                self._say(replica.report(now.earliest))
        self.after(REPORT_NS, self._report)

    def _say(self, report: Report) -> None:
        self.said(report)
        for name in self.world.controllers:
            self.world.send(self.name, name, Said(report))

    def receive(self, source: str, message: Any) -> None:
        """Orders, and the map in force that some of them need."""
        match message:
            case Order(action=TakeOver()):
                assert isinstance(message.action, TakeOver)
                ok = self.take_over(self, message.action)
                self.world.send(self.name, source, Ordered(message.action.action, ok))
            case Order():
                self._step(perform.Do(source, message.action))
            case TheseShards():
                self._step(perform.InForce(message.request, message.map.version))

    def _step(self, event: perform.Event) -> None:
        for effect in self._performer.step(self.clock.now(), event):
            match effect:
                case perform.AskMap():
                    self.world.send(self.name, "p", AskShards(effect.request, in_force=True))
                case perform.Build():
                    self.world.trace("build", self.name, effect.replica, *effect.part)
                    self.fleet.build(self, effect.replica, effect.part)
                case perform.Keep():
                    self.world.trace("shrink", self.name, effect.replica, *effect.part)
                    self.fleet.replicas[effect.replica].shrink(effect.part)
                case perform.End():
                    self.world.trace("remove", self.name, effect.replica)
                    self.fleet.end(effect.replica)
                case perform.Answer():
                    self.world.send(self.name, effect.to, Ordered(effect.action, effect.ok))
        self._performer.check()
