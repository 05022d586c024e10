"""An owner that takes a coded journal over and writes its three streams (6.4, 6.5)."""

from __future__ import annotations

from meridian.adjudicator import events as ev
from meridian.journal import core as journal
from meridian.journal.coded import STREAMS, StreamPosition
from meridian.journal.coded_reader import with_markers
from meridian.journal.coded_writer import CodedWriter
from meridian.journal.core import Marker, make
from meridian.journal.record import Record
from meridian.sim.shared import SharedOwner
from meridian.sim.stream import Stream, log_of
from meridian.sim.world import MS

PEEK_NS = 60 * MS
"""How long a new owner looks for the highest epoch before it claims a higher one."""
LANE_RECORDS = 16
"""Records on their way to one stream; more wait, and may be skipped there."""


class CodedOwner(SharedOwner):
    """Claims three streams, begins once it has two of them, writes to all it has."""

    def _reset(self) -> None:
        super()._reset()
        self._judged: set[int] = set()
        """Streams read through the own marker."""
        self._fenced: list[int] = []
        """Those where it is the highest."""
        self._writer: CodedWriter | None = None
        self._durable_n = 0
        self._generations = [0] * STREAMS
        """Of each stream, as known before all claims, or since a claim took note of another."""

    def on_start(self) -> None:
        """Looks for the highest epoch, then claims the next."""
        super().on_start()
        self.after(PEEK_NS, self._choose)

    # Take-over

    def _unread(self) -> list[int]:
        return [index for index in range(STREAMS) if index not in self._judged]

    def _choose(self) -> None:
        logs = [log_of(one.read, one.start) for one in self._publishers]
        reader = self.parts.coded_reader(self._place.streams)
        for index, publisher in enumerate(self._publishers):
            reader.take(index, publisher.read)
        history = reader.ready()
        if self._place.history.closed or any(one.kind == journal.CLOSE for one in history):
            self._judged.update(range(STREAMS))
            self._ended(history)
        else:
            self._generations = [one.generation for one in self._publishers]
            self._claim_all(max(log.epoch[0] for log in logs))

    def _judge(self, index: int) -> None:
        """The stream was read through the own marker: whose is it?"""
        publisher = self._publishers[index]
        log = publisher.log()
        self._judged.add(index)
        if log.epoch == self._epoch:
            self._fenced.append(index)
            if self._writer is not None:
                self._open(self._writer, index, log.position_now())
            self._tell()
            if self.alive:
                self._pump()
        elif self._writer is not None:
            self._writer.fenced(index)
            self._check_dead()
        elif len(self._judged) - len(self._fenced) >= 2:
            self.after(0, self._restart_soon)

    def _open(self, writer: CodedWriter, index: int, end: StreamPosition) -> None:
        generation = self._publishers[index].generation
        if generation != self._generations[index]:
            self._generations[index] = generation
            for other in writer.returned(index, end):
                self._broken(other)
        elif not writer.opened(index, end):
            self.world.trace("left out", self.name, index)

    def _begin(self) -> None:
        """Two streams are fenced: history is what they hold (6.5)."""
        reader = self.parts.coded_reader(self._place.streams)
        for index, publisher in enumerate(self._publishers):
            fenced = index in self._fenced
            reader.take(index, publisher.claimed_part() if fenced else publisher.read)
        history = reader.ready()
        adoption = reader.adopt(self._fenced)
        if adoption is None:
            # A body that committed is on the third stream too, which is not read that far.
            return
        found = [*history, *with_markers(adoption.records)]
        if any(record.kind == journal.CLOSE for record in found):
            self.after(0, self._restart_soon)
        self.world.trace("adopted", self.name, adoption.base, len(adoption.records))
        self._writer = self.parts.coded_writer(self._epoch, adoption, self.world.swarm.lag_bytes)
        for index in self._fenced:
            # All that is sent comes after these claims: one of the two has every higher marker.
            self._generations[index] = self._publishers[index].generation
            self._writer.opened(index, self._publishers[index].log().position_now())
        logical = self._follow([*found, make(self._epoch, 0, Marker(self.number))])
        self._step(ev.Replayed(logical.position(), self._epoch))

    # Appends

    def _sync(self) -> None:
        batch, self._waiting = self._waiting, []
        assert self._writer is not None
        for record in batch:
            self._writer.append(record)
        self._pump()

    def _pump(self) -> None:
        writer = self._writer
        if writer is None:
            return
        for index, lane in enumerate(writer.lanes):
            if lane.open and len(lane.sent) < LANE_RECORDS:
                batch = writer.take(index, 500)
                if batch:
                    self._publishers[index].append(batch)
                    if self._buggify() or self._dies_sealing(index, batch):
                        return

    def _dies_sealing(self, index: int, batch: list[Record]) -> bool:
        """An owner whose SEAL is on one stream only, and that stream stalls: a buggified moment."""
        world = self.world
        sealing = any(record.kind == journal.SEAL for record in batch)
        if world.healed or not sealing or self._random.random() > world.swarm.dies_sealing:
            return False
        stream = world.nodes[f"l{self.number}.{index}"]
        assert isinstance(stream, Stream)
        world.at(world.now + self._random.randint(5 * MS, 60 * MS), lambda: stream.fail("elect"))
        self._restart_soon()
        return True

    def _stored(self, index: int, batch: list[Record]) -> None:
        writer = self._writer
        if writer is None or not writer.lanes[index].open:
            return
        writer.stored(index, len(batch))
        if self._buggify():
            return
        self._tell()
        if self.alive:
            self._pump()

    def _tell(self) -> None:
        if self._writer is not None and self._writer.durable_n > self._durable_n:
            self._durable_n = self._writer.durable_n
            self._step(ev.Appended(self._durable_n))

    def _broken(self, index: int) -> None:
        """Fenced, or the stream lost something: its marker tells."""
        if self._writer is not None:
            if self._writer.lanes[index].fenced:
                # Given up, even if the higher marker is gone with a lost tail.
                return
            self._writer.closed(index)
        self._judged.discard(index)
        if index in self._fenced:
            self._fenced.remove(index)
        self._claim(index)

    def _check_dead(self) -> None:
        if self._writer is not None and self._writer.dead:
            self._step(ev.AppendFailed("fenced"))

    def _look(self, index: int) -> None:
        publisher = self._publishers[index]
        if not self.alive or self._epoch == (0, 0):
            return
        if publisher.broken:
            self._broken(index)
        elif index not in self._judged and publisher.claimed:
            self._judge(index)
        if self.alive and self._writer is None and len(self._fenced) >= self.parts.coded_fences:
            self._begin()
