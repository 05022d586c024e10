"""A host of the world: takes storage replicas, performs orders about them, reports."""

from __future__ import annotations

from typing import Any

from meridian.control.views import HostReport, Report
from meridian.sim.messages import Order, Ordered, Said, TheseShards
from meridian.sim.world import MS, Node, World

REPORT_NS = 300 * MS


class Host(Node):
    """Node `h<number>` in a zone; its crash takes what runs on it."""

    def __init__(self, world: World, number: int, zone: int) -> None:
        super().__init__(world, f"h{number}")
        self.number = number
        self.zone = zone
        world.hosts.append(self.name)

    def on_start(self) -> None:
        """What its disk holds comes up with it."""
        self._report()

    def _report(self) -> None:
        at = self.clock.now().earliest
        self._say(HostReport(self.number, at, self.zone))
        self.after(REPORT_NS, self._report)

    def _say(self, report: Report) -> None:
        for name in self.world.controllers:
            self.world.send(self.name, name, Said(report))

    def receive(self, source: str, message: Any) -> None:
        """Orders, and the map in force that some of them need."""
        match message:
            case Order():
                self.world.send(self.name, source, Ordered(message.action.action, False))
            case TheseShards():
                pass
