"""One epoch of one journal: adjudicator, writer, reader and crossbar wired together.

Events go in through `step`; effects are carried out here. When the journal fails the owner is
finished (`lost`) and the node starts another with a higher epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meridian.adjudicator import events as ev
from meridian.adjudicator.shell import Shell
from meridian.clock.clock import Clock
from meridian.crossbar import core as crossbar
from meridian.dataplane.counters import Counters
from meridian.dataplane.recovery import JOURNAL, SUBSCRIBER
from meridian.dataplane.replica import Replica
from meridian.journal.core import Commit, Payload, Position, Reader
from meridian.journal.file import AppendError, FileWriter
from meridian.journal.record import Record


class Owner(Shell):
    """An adjudicator whose records go straight to the crossbar and the replica beside it."""

    writer: FileWriter | None

    def __init__(
        self,
        *,
        clock: Clock,
        counters: Counters,
        adjudicator: Any,
        merge: Any,
        reader: Reader,
        replica: Replica,
        answered: Callable[[ev.Answer], None],
        refused: Callable[[ev.Refused], None],
        lost: Callable[[str, AppendError | None], None],
        catalog_made: Callable[[int, int], None],
        gated: Callable[[ev.Gated], None],
    ) -> None:
        super().__init__(
            clock=clock, adjudicator=adjudicator, answered=answered, refused=refused, lost=lost
        )
        self.counters = counters
        self.merge = merge
        self.reader = reader
        self.replica = replica
        replica.took = self._took
        replica.want = self.want
        self.boundaries: list[Position] = []
        self._catalog_made = catalog_made
        self._gated = gated

    def landed(self, batches: list[list[Record]]) -> None:
        accepted: list[tuple[Record, Payload]] = []
        for batch in batches:
            self._accept(batch, accepted)
        self.cross(crossbar.Accepted(JOURNAL, accepted))

    def _accept(self, batch: list[Record], accepted: list[tuple[Record, Payload]]) -> None:
        """Adds the records that count to `accepted`."""
        assert self.writer is not None
        if batch[0].n in self.writer.segment_firsts and self.reader.open_n() is None:
            self.boundaries.append(self.reader.position())
        for record in batch:
            payload = self.reader.accept(record)
            if payload is not None:
                if type(payload) is Commit and payload.catalog:
                    # Before storage is complete through its tau, and before anybody is told.
                    self._catalog_made(payload.catalog, record.tau)
                accepted.append((record, payload))

    def cross(self, event: crossbar.Event) -> None:
        """One event of the crossbar, what it delivers goes to storage."""
        for effect in self.merge.step(event):
            if isinstance(effect, crossbar.Deliver):
                self.replica.feed(effect)
            else:
                self.stop()
                self._lost(f"storage was cut loose: {effect.reason}", None)

    def _took(self, size_bytes: int) -> None:
        self.cross(crossbar.Credit(SUBSCRIBER, size_bytes))

    def gated(self, effect: ev.Gated) -> None:
        self._gated(effect)

    def heartbeat(self, effect: ev.Heartbeat) -> None:
        self.cross(crossbar.Beat(JOURNAL, effect.epoch, effect.n, effect.tau))


__all__ = ["JOURNAL", "Owner"]
