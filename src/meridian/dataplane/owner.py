"""One epoch of one journal: adjudicator, writer, reader, wired to crossbar and other owners.

Events go in through `step`; effects are carried out here. When the journal fails the owner is
finished (`lost`) and its seat starts another with a higher epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from meridian.adjudicator import events as ev
from meridian.adjudicator.shell import Shell
from meridian.crossbar import core as crossbar
from meridian.journal.core import Commit, Payload, Position
from meridian.journal.file import AppendError, FileWriter
from meridian.journal.record import Record

if TYPE_CHECKING:
    from meridian.dataplane.node import Node
    from meridian.dataplane.recovery import Reading

log = logging.getLogger("meridian.owner")


class Owner(Shell):
    """An adjudicator whose records go straight to the crossbar beside it."""

    writer: FileWriter | None

    def __init__(
        self,
        node: Node,
        number: int,
        reading: Reading,
        lost: Callable[[str, AppendError | None], None],
    ) -> None:
        super().__init__(
            clock=node.clock,
            adjudicator=reading.adjudicator,
            answered=node.commits.asker.answered,
            refused=node.commits.large.refused,
            lost=lost,
        )
        self.node = node
        self.number = number
        self.reader = reading.reader
        self.boundaries: list[Position] = []
        self._carry_out[ev.Send] = self._send
        self._carry_out[ev.WantCatalog] = self._want_catalog
        self._carry_out[ev.Expired] = self._expired
        self._carry_out[ev.Added] = node.journal_added
        self._carry_out[ev.Moved] = node.reshape.moved
        self._carry_out[ev.Unmoved] = node.reshape.unmoved
        self._carry_out[ev.StillOwner] = self._still_owner
        self._carry_out[ev.Closed] = self._closed

    @property
    def epoch(self) -> tuple[int, int]:
        """The epoch it writes under."""
        epoch: tuple[int, int] = self.adjudicator.ledger.epoch
        return epoch

    def landed(self, batches: list[list[Record]]) -> None:
        accepted: list[tuple[Record, Payload]] = []
        for batch in batches:
            self._accept(batch, accepted)
        self.node.landed(self.number, accepted)

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
                    self.node.catalog.add(payload.catalog, record.tau)
                accepted.append((record, payload))

    def want(self, tau: int) -> None:
        ledger = self.adjudicator.ledger
        # Promised already: the heartbeat comes once what is under way is durable, and none is lost.
        if not ledger.beat < tau <= ledger.promised:
            super().want(tau)

    def gated(self, effect: ev.Gated) -> None:
        self.node.gates.answered(effect)

    def heartbeat(self, effect: ev.Heartbeat) -> None:
        beat = crossbar.Beat(self.number, effect.epoch, effect.n, effect.tau)
        self.node.merge.cross(beat)

    # One of several

    def _send(self, effect: ev.Send) -> None:
        # Never from within a step of the sender: it may be the receiver's, too.
        self._loop.call_soon(self.node.tell, effect.to, effect.message)

    def _want_catalog(self, effect: ev.WantCatalog) -> None:
        self.node.when_complete(effect.tau, self._catalog_known)

    def _catalog_known(self, tau: int) -> None:
        self.step(ev.CatalogKnown(tau, self.node.catalog.in_force(tau)))

    def _closed(self, effect: ev.Closed) -> None:
        log.info("journal has ended", extra={"journal": self.number, "tau": effect.tau})

    def _still_owner(self, effect: ev.StillOwner) -> None:
        log.info("CLOSE waits for ranges", extra={"journal": self.number, "of": len(effect.spans)})

    def _expired(self, effect: ev.Expired) -> None:
        self.node.counters.promises_expired += 1
        log.info("a promise ended without a verdict", extra={"tau": effect.tau})
