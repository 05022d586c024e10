"""A process that reads all journals and feeds storage: what every kind of replica has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from meridian.crossbar import core as xb
from meridian.journal.core import Add, Payload, Position, Reader
from meridian.journal.places import Places
from meridian.journal.record import Record
from meridian.sim.disk import Disk
from meridian.sim.feeds import CodedFeed, Feed, StreamFeed
from meridian.sim.lane import Lane
from meridian.sim.messages import Beat, Parts, Records, Trimmed, Want
from meridian.sim.owner import Owner
from meridian.sim.stream import SharedJournal
from meridian.sim.world import MS, Node, SimulationError, World

POLL_NS = 20 * MS

Journal = Disk | SharedJournal


class Follower(Node, ABC):
    """Reads journals through one crossbar, which feeds its lanes."""

    ranged = False
    """Lanes hold ranges, and may have begun at different places."""
    poll_ns = POLL_NS

    def __init__(
        self,
        world: World,
        name: str,
        journals: list[Journal],
        owners: list[Owner],
        parts: Parts,
        concern: str,
    ) -> None:
        super().__init__(world, name)
        self.parts = parts
        self.journals = journals
        self._first = len(journals)
        """Journals that were there before the first ADD."""
        self.owners = owners
        self.lanes: list[Lane] = []
        self._random = world.random(concern)
        self._bar = xb.Crossbar()
        self._readers: dict[int, Reader] = {}
        self._feeds: dict[int, Feed] = {}
        self._passed: dict[int, Places] = {}
        self._unopened: list[int] = []
        """Journals that were heard of and cannot be read yet."""
        self._wanted = 0

    @property
    def complete(self) -> int:
        """Every commit through this tau is in all stores."""
        return min((lane.complete for lane in self.lanes), default=0)

    def demand(self, tau: int) -> None:
        """As if a reader waited for `tau`."""
        self._wanted = max(self._wanted, tau)

    # For subclasses

    @abstractmethod
    def may_serve(self, lane: Lane, token: int) -> None:
        """The read `token` may run, as far as this lane is concerned."""

    @abstractmethod
    def may_not_serve(self, lane: Lane, token: int, reason: int) -> None:
        """The read `token` is refused by this lane."""

    @abstractmethod
    def waiting_tau(self) -> int:
        """The highest tau that a reader waits for."""

    def polled(self) -> bool:
        """Something to do every now and then. True: it has begun to read anew."""
        return False

    # Journals

    def starts(self) -> dict[int, Position]:
        """Where the journals begin."""
        return {number: one.beginning for number, one in enumerate(self.journals)}

    def lacking(self, starts: dict[int, Position]) -> bool:
        """Whether a file lacks what a journal does not hold any more."""
        return any(lane.store.lacks(starts) for lane in self.lanes)

    def begin(self, starts: dict[int, Position]) -> None:
        """Reads every journal from its beginning, applies what the files lack."""
        self._readers, self._feeds = {}, {}
        # Membership comes with the file and with where journal 0 begins; the rest is read (4.7).
        held = [number for lane in self.lanes for number in sorted(lane.store.positions)]
        self._unopened = list(dict.fromkeys([*range(self._first), *held, *starts[0].members]))
        opened = self._open()
        assert opened, "the file lacks nothing"
        for lane in self.lanes:
            self.cross(lane.subscription())
        self._poll()

    def _open(self) -> bool:
        """Reads the journals that were heard of and exist by now.

        False: one was trimmed before this replica heard of it, beyond what its file holds.  What is
        missing is in a checkpoint only, as after a Trimmed of a journal that is being read.
        """
        ready = [number for number in self._unopened if number < len(self.journals)]
        starts = {number: self.journals[number].beginning for number in ready}
        if self.lacking(starts):
            return False
        self._unopened = [number for number in self._unopened if number not in ready]
        for number, start in starts.items():
            self._readers[number] = self.parts.reader(start)
            self._feeds[number] = self._feed(number, start)
            self.opened(number, start)
            # Commits through this tau are in all the files, of whichever journal.
            stores = [lane.store for lane in self.lanes]
            tau = min((store.complete for store in stores), default=0)
            n = min((store.positions.get(number, 0) for store in stores), default=0)
            members = tuple(self._unopened) if number == 0 else ()
            held = Position(start.epoch, n, tau=tau, members=members, closed=start.closed)
            self.cross(xb.AddJournal(number, held))
        return True

    def _feed(self, number: int, start: Position) -> Feed:
        journal = self.journals[number]
        self._passed[number] = Places()
        if not isinstance(journal, SharedJournal):
            return Feed(f"o{number}", start.n)
        kind = CodedFeed if journal.coded else StreamFeed
        return kind(journal, self.parts)

    def _hear(self, number: int) -> None:
        if number not in self._readers and number not in self._unopened:
            self._unopened.append(number)

    def _poll(self) -> None:
        """Nothing relies on a message that was pushed: they may be lost."""
        if not self._open():
            self._again()
            return
        for feed in self._feeds.values():
            for source, fetch in feed.fetches():
                self.world.send(self.name, source, fetch)
        self.want(self.waiting_tau())
        if not self.polled():
            self.after(self.poll_ns, self._poll)

    def want(self, tau: int) -> None:
        """Heartbeats through `tau`."""
        if self._random.random() < self.world.swarm.eager:
            tau += self._random.randint(0, self.world.swarm.eager_ns)
        if tau > self.complete:
            for number in self._bar.lagging(tau):
                for owner in self.owners:
                    if owner.number == number:
                        self.world.send(self.name, owner.name, Want(tau))

    def heard(self, message: Any) -> bool:
        """Records and heartbeats. False: it is something else."""
        match message:
            case Records():
                self._take(message)
            case Beat():
                self._cover(message)
                self.cross(xb.Beat(message.journal, message.epoch, message.n, message.tau))
            case Trimmed():
                self._again()
            case _:
                return False
        return True

    def _again(self) -> None:
        self.crash()
        self.start()

    def _take(self, message: Records) -> None:
        feed = self._feeds.get(message.journal)
        if feed is not None:
            records = feed.take(message)
            if records is None:
                self._again()
            else:
                self._accept(message.journal, records)

    def _cover(self, beat: Beat) -> None:
        feed = self._feeds.get(beat.journal)
        if feed is not None:
            self._accept(beat.journal, feed.cover(beat.epoch, beat.n))

    def _accept(self, number: int, records: list[Record]) -> None:
        reader = self._readers[number]
        accepted: list[tuple[Record, Payload]] = []
        for record in records:
            payload = reader.accept(record)
            if payload is not None:
                accepted.append((record, payload))
                self.read_on(number, reader)
            if isinstance(payload, Add):
                self._hear(payload.journal)
        if accepted:
            self.cross(xb.Accepted(number, accepted))
            feed = self._feeds[number]
            if isinstance(feed, StreamFeed):
                self._passed[number].note(reader, feed.position(reader), feed.generations())

    def cut(self, positions: dict[int, int]) -> None:
        """What a durable checkpoint holds, through these records, goes from shared streams."""
        for number, journal in enumerate(self.journals):
            if isinstance(journal, SharedJournal) and number in self._passed:
                place = self._passed[number].newest(positions.get(number, 0))
                if place is not None:
                    journal.cut(place)

    def opened(self, number: int, start: Position) -> None:
        """A journal is read from its beginning on."""

    def read_on(self, number: int, reader: Reader) -> None:
        """One more record of a journal was accepted."""

    def cross(self, event: xb.Event) -> None:
        """The crossbar's step; what it delivers goes to the lanes."""
        for effect in self._bar.step(event):
            if isinstance(effect, xb.CutLoose):
                raise SimulationError("a replica that takes everything was cut loose")
            several = len(self._readers) > 1
            for lane in self.lanes:
                if lane.number == effect.subscriber:
                    lane.take(effect, known=self._bar.tau if several else 0)
