"""The gateway of a host: COMMITs of its query processors travel many to a frame.

As hosts send them to the process of an adjudicator (adjudicator/frames.py): in the order in which
they came, one frame after the other, and whoever asked hears of its own.  A gateway that crashes
loses what waits; what is asked again may lie in one frame with its first copy.
"""

from __future__ import annotations

from typing import Any

from meridian.adjudicator import events as ev
from meridian.sim.messages import Frame, Submit
from meridian.sim.world import Node, World

FRAME_COMMITS = 64
"""After which a frame is full."""


class Gateway(Node):
    """Node `qg<number>`."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, f"qg{number}")
        self._random = world.random(f"gateway/{number}")
        self._waiting: dict[str, list[tuple[str, ev.Commit]]] = {}
        """By the owner that is meant; an owner with a list has a frame that is about to leave."""

    def states(self) -> list[str]:
        """Whether somebody's COMMIT waits in it."""
        return ["gateway gathers" if self._waiting else "gateway idle"]

    def on_crash(self) -> None:
        """Whoever waits asks again."""
        self._waiting = {}

    def receive(self, source: str, message: Any) -> None:
        """A COMMIT of a query processor."""
        assert isinstance(message, Submit)
        frame = self._waiting.get(message.target)
        if frame is None:
            frame = self._waiting[message.target] = []
            delay = self._random.randint(0, self.world.swarm.gather_ns)
            self.after(delay, lambda: self._send(message.target))
        frame.append((source, message.event))
        if self._random.random() < self.world.swarm.frame_doubles:
            # Somewhere behind it, not always next to it.
            self.after(
                self._random.randint(0, self.world.swarm.gather_ns // 2),
                lambda: self._again(source, message),
            )

    def _again(self, source: str, message: Submit) -> None:
        frame = self._waiting.get(message.target)
        if frame is not None:
            frame.append((source, message.event))

    def _send(self, target: str) -> None:
        asks = self._waiting.pop(target)
        for first in range(0, len(asks), FRAME_COMMITS):
            frame = Frame(tuple(asks[first : first + FRAME_COMMITS]))
            self.world.trace("frame", self.name, target, len(frame.asks))
            self.world.send(self.name, target, frame)


def gateway_of(world: World, client: int) -> str | None:
    """The gateway of query processor `client`; None: it asks owners itself."""
    gateways = world.swarm.gateways
    return f"qg{client % gateways}" if gateways else None
