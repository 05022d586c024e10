"""The crossbar of a node: the records of all its journals go in, storage takes what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from meridian.crossbar import core as crossbar
from meridian.dataplane.replica import Replica
from meridian.journal.core import Position
from meridian.limits import CROSSBAR_CREDIT_BYTES

SUBSCRIBER = 1


class Merge:
    """One per node, on the event loop's thread; `journals`: where each begins.

    At start (`take`) everything is in storage when a call returns; later (`cross`) storage works
    for a slice and goes on by itself.
    """

    def __init__(self, replica: Replica, journals: Mapping[int, Position]) -> None:
        self.core = crossbar.Crossbar()
        self.replica = replica
        self.cut: Callable[[str], None] = lambda reason: None
        """Storage does not follow any more."""
        self.delivered: Callable[[Sequence[crossbar.Item]], None] = lambda items: None
        """What storage is about to get."""
        self._taken_bytes = 0
        self._waits = True
        engine = replica.engine
        replica.took = self._took
        for number, start in journals.items():
            # What storage holds lies at or below its applied tau and its positions.
            n, tau = engine.positions.get(number, 0), engine.applied_tau
            begin = Position(start.epoch, n, tau=tau, closed=start.closed)
            self.core.step(crossbar.AddJournal(number, begin))
        self.core.step(crossbar.Subscribe(SUBSCRIBER, engine.applied_tau, CROSSBAR_CREDIT_BYTES))

    def take(self, event: crossbar.Event) -> None:
        """One event at start. Raises what storage raises."""
        pending = list(self.core.step(event))
        while pending:
            effect = pending.pop(0)
            assert isinstance(effect, crossbar.Deliver), effect
            self.replica.take(effect)
            self.replica.drain()
            size_bytes, self._taken_bytes = self._taken_bytes, 0
            if size_bytes:
                pending += self.core.step(crossbar.Credit(SUBSCRIBER, size_bytes))

    def add(self, number: int, tau: int) -> None:
        """A new journal, all of whose taus exceed this one."""
        event = crossbar.AddJournal(number, Position(tau=tau))
        (self.take if self._waits else self.cross)(event)

    def start(self) -> None:
        """From here on storage gives credit when it likes."""
        self._waits = False

    def cross(self, event: crossbar.Event) -> None:
        """One event; what it delivers goes to storage."""
        for effect in self.core.step(event):
            if isinstance(effect, crossbar.Deliver):
                self.delivered(effect.items)
                self.replica.feed(effect)
            else:
                self.cut(effect.reason)

    def _took(self, size_bytes: int) -> None:
        if self._waits:
            self._taken_bytes += size_bytes
        else:
            self.cross(crossbar.Credit(SUBSCRIBER, size_bytes))
