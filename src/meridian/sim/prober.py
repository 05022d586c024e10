"""Reads everything once, when all faults are over: every place must be served by somebody."""

from __future__ import annotations

from typing import Any

from meridian.sim.messages import Got, Page, Parts, TheseShards, Unread
from meridian.sim.routed import RoutedReads, Scanned, Wait
from meridian.sim.world import Node, S, World
from meridian.wire.ranges import EVERYTHING

PATIENCE_NS = 20 * S


class Prober(Node):
    """Node `q.all`: one scan of all there is."""

    def __init__(self, world: World, parts: Parts) -> None:
        super().__init__(world, "q.all")
        self.scan: Scanned | None = None
        self._reads = RoutedReads(self, parts, world.random("prober"))
        self._life: Wait | None = None
        self._ticket = 0

    def on_start(self) -> None:
        """Begins to read."""
        tau = self.clock.now().latest
        self._life = self._reads.scan(tau, EVERYTHING, PATIENCE_NS)
        self._resume(None)

    def _resume(self, message: Any) -> None:
        assert self._life is not None
        self._ticket += 1
        ticket = self._ticket
        try:
            timeout, _ = self._life.send(message)
        except StopIteration as end:
            self._life = None
            if isinstance(end.value, Scanned):
                self.scan = end.value
            return
        self.after(timeout, lambda: self._resume(None) if self._ticket == ticket else None)

    def receive(self, source: str, message: Any) -> None:
        """Answers."""
        if self._life is not None and isinstance(message, Got | Page | Unread | TheseShards):
            self._resume(message)
