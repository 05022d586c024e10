"""One journal of a node: where it begins, who owns it now, and how the next owner comes.

When a write fails only this journal gets a new owner; crossbar, storage and the other journals go
on. What landed is read again, so that nothing is lost and nothing reported as failed (6.8).
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from meridian.adjudicator.events import Replayed
from meridian.crossbar import core as crossbar
from meridian.dataplane import recovery
from meridian.dataplane.owner import Owner
from meridian.errors import Kind, MeridianError
from meridian.journal.core import Position
from meridian.journal.file import AppendError, FileJournal
from meridian.limits import OWNER_RETRY_S, SERVING_WAIT_S
from meridian.metadata.identities import get_value, next_epoch, set_value
from meridian.wire.partition import Span

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

log = logging.getLogger("meridian.seat")

_PASSING = frozenset({Kind.DISK_FULL, Kind.BAD_METADATA, Kind.STORAGE_FAILED})
"""Refusals of a disk that may pass."""


class Seat:
    """Journal `number` of a node, on the event loop's thread."""

    def __init__(self, node: Node, number: int, spans: tuple[Span, ...]) -> None:
        self.node = node
        self.number = number
        self.spans = spans
        """What its adjudicator was made to own."""
        self.journal = FileJournal(node.directory / "journal" / str(number), number, node.files)
        self.owner: Owner | None = None
        self.boundaries: list[Position] = []
        """Where segments begin outside of open large transactions: possible trim points."""
        self._written_before = 0
        self._owning = True
        """An owner is being made; nobody else makes one."""

    @property
    def serves(self) -> bool:
        """Somebody owns it, as far as is known."""
        return self.owner is not None and not self.owner.dead

    @property
    def closed(self) -> bool:
        """The journal has ended (4.7); its owner tells outcomes."""
        return self.closed_tau > 0

    @property
    def closed_tau(self) -> int:
        """When it ended; 0: it has not."""
        return 0 if self.owner is None else self.owner.adjudicator.membership.closed_tau

    @property
    def failure(self) -> AppendError | None:
        """Why the last owner ended, until there is a new one."""
        return None if self.owner is None else self.owner.failure

    @property
    def last_n(self) -> int:
        """The last durable record."""
        return 0 if self.owner is None else self.owner.reader.n

    def trim_position(self) -> Position:
        """Where the journal begins; everything before it lies in the checkpoint."""
        value = get_value(self.node.store, recovery.trim_key(self.number))
        return Position() if value is None else recovery.decode_position(value)

    def trim(self, start: Position) -> int:
        """Deletes the segments before the journal's beginning; all of them if it ended there."""
        return self.journal.remove() if start.closed else self.journal.trim(start.n + 1)

    def retire(self) -> int:
        """Deletes the files of a journal that has ended; how many. Its end is where it begins.

        Checkpoint and conflict window must cover it: then all that is asked of it still is which
        journal it was and when it ended (6.7, 5.6). Its number stays used.
        """
        owner = self.owner
        assert owner is not None and self.closed and owner.reader.closed
        position = owner.reader.position()
        set_value(
            self.node.store, recovery.trim_key(self.number), recovery.encode_position(position)
        )
        self.boundaries.clear()
        if owner.writer is not None:
            # Its last file would keep its space while it is open.
            self._written_before = self.bytes_written()
            owner.writer.close()
            owner.writer = None
        return self.trim(position)

    def bytes_written(self) -> int:
        """By this process, over all owners."""
        writer = self.owner.writer if self.owner is not None else None
        return self._written_before + (writer.bytes_written if writer is not None else 0)

    # Owners

    def reading(self) -> recovery.Reading:
        """For the next owner."""
        return recovery.Reading(self.journal, self.trim_position(), self.spans, self.node.clock)

    def check_whole(self, reading: recovery.Reading) -> None:
        """Raises JOURNAL_DAMAGED when records are gone that an owner knew to be durable."""
        sealed = int(get_value(self.node.store, recovery.sealed_key(self.number)) or 0)
        last_n = reading.reader.n
        if reading.start.closed:
            return
        if reading.start.n and not reading.segments.firsts:
            # Trim keeps the segment that begins after it.
            sealed = max(sealed, reading.start.n + 1)
        if last_n < sealed:
            raise MeridianError(
                Kind.JOURNAL_DAMAGED,
                path=self.journal.directory,
                n=last_n + 1,
                offset=0,
                why=f"it ends here, but records through {sealed} were durable",
            )

    async def own(self, reading: recovery.Reading) -> None:
        """A new epoch: marker and SEAL are durable when this returns. Raises OSError."""
        node = self.node
        position = reading.position()
        node.catalog.load(reading.start.catalog, reading.catalog)
        if position.closed:
            self._attend(reading, position)
            return
        epoch = next_epoch(node.store, self.number, position.epoch[0] + 1)
        owner = Owner(node, self.number, reading, partial(self._lost))
        owner.writer = self.journal.open_writer(
            reading.segments, reading.tail, owner.durable_in_thread, owner.failed_in_thread
        )
        self.boundaries = owner.boundaries = [*reading.boundaries, position]
        self._written_before = self.bytes_written()
        self.owner = owner
        node.counters.owners += 1
        owner.step(Replayed(position, epoch))
        try:
            await asyncio.wait_for(owner.settled.wait(), SERVING_WAIT_S)
        except TimeoutError:
            # What this writer still has in hand is void: the next one begins a segment below it.
            owner.stop()
            raise
        if owner.dead:
            raise OSError(f"the first records of epoch {epoch[0]} could not be written")
        self._owning = False
        self._remember_seal(position.n + 2)
        # Reads that came meanwhile were not promised anything by this owner.
        owner.want(node.wanted_tau)
        log.info(
            "owns the journal",
            extra={"journal": self.number, "epoch": epoch[0], "n": position.n},
        )

    def _attend(self, reading: recovery.Reading, position: Position) -> None:
        """A journal that has ended: outcomes are told, nothing is written (5.6)."""
        owner = self.owner = Owner(self.node, self.number, reading, partial(self._lost))
        owner.step(Replayed(position, position.epoch))
        assert owner.settled.is_set()
        self._owning = False

    def _remember_seal(self, n: int) -> None:
        """A journal that ends before record n has lost files: see `check_whole`."""
        try:
            set_value(self.node.store, recovery.sealed_key(self.number), str(n).encode())
        except MeridianError as error:
            log.warning("seal is not remembered", extra={"error": str(error)})

    def _lost(self, reason: str, failure: AppendError | None) -> None:
        node = self.node
        if node.closing:
            return
        node.report(f"the owner of journal {self.number} ended: {reason}")
        if failure is None:
            node.die(reason)
            return
        node.commits.owner_lost(self.number)
        if not self._owning:
            self._owning = True
            node.spawn(self._own_again())

    async def _own_again(self) -> None:
        """Reads what landed, then takes a new epoch; again and again while the disk refuses."""
        while not self.serves:
            try:
                await self._read_again()
                continue
            except (OSError, TimeoutError) as error:
                why = str(error)
            except MeridianError as error:
                if error.kind not in _PASSING:
                    raise
                why = str(error)
            log.warning("journal cannot be taken", extra={"error": why, "journal": self.number})
            await asyncio.sleep(OWNER_RETRY_S)
        self._owning = False

    async def _read_again(self) -> None:
        node = self.node
        reading = self.reading()
        progress = recovery.Progress(node.report)
        while not reading.ended:
            accepted = reading.read_some(progress)
            # The crossbar skips what it has; the rest landed, and nobody was told.
            node.catalog.load(reading.start.catalog, reading.catalog)
            node.merge.cross(crossbar.Accepted(self.number, accepted))
            await asyncio.sleep(0)
        await self.own(reading)

    def close(self) -> None:
        """What was appended is durable afterwards."""
        if self.owner is not None:
            self.owner.close()
