"""An owner process: one adjudicator core, the writer of its journal, and the disk below."""

from __future__ import annotations

from typing import Any

import msgspec

from meridian.adjudicator import events as ev
from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.cut import cut
from meridian.adjudicator.events import Code
from meridian.journal.core import Position, Reader
from meridian.journal.record import Record
from meridian.routing.core import TOO_OLD
from meridian.sim.disk import Disk
from meridian.sim.gating import Watch
from meridian.sim.heat import Heat
from meridian.sim.messages import (
    Ask,
    Beat,
    Change,
    Changed,
    Fetch,
    Frame,
    GateTold,
    Get,
    Got,
    Parts,
    Peer,
    Records,
    Told,
    Trimmed,
    Unread,
    Want,
)
from meridian.sim.plans import CATALOG, version_of
from meridian.sim.world import MS, Node, SimulationError, World
from meridian.wire.partition import EVERYTHING, Span
from meridian.wire.votes import Ask as Ask_
from meridian.wire.votes import Message, Vote

FETCH_RECORDS = 200
CATALOG_AGAIN_NS = 150 * MS


class Owner(Node):
    """Node `o<number>`; restarts with a higher epoch after every crash and failed sync."""

    def __init__(self, world: World, number: int, parts: Parts, name: str = "") -> None:
        super().__init__(world, name or f"o{number}")
        self.number = number
        self.parts = parts
        self.replicas: list[str] = []
        self.disk = Disk(world.random(f"disk/{number}"), parts.reader)
        self.served = 0
        self._random = world.random(f"sync/{self.name}")
        self._core: Adjudicator | None = None
        self._records: list[Record] = []
        self._waiting: list[Record] = []
        self._syncing = False
        self._asked: dict[int, tuple[str, int]] = {}
        self._txids: dict[int, bytes] = {}
        """Of commits and questions for outcomes that were asked."""
        """Who asked, and with which attempt."""
        self._next_to = 0
        self.spans: tuple[Span, ...] = (EVERYTHING,)
        """What its adjudicator was made to own."""
        self.heat = Heat()
        self._catalog_reads: dict[int, int] = {}
        self._catalog_asked: dict[int, str] = {}
        self._timers: dict[str, int] = {}
        self._watch = Watch(world, self.name)
        self._started = 0
        self._beat_at = -1
        self._several: set[bytes] = set()
        """Transactions of several chunks."""
        self._settled: set[bytes] = set()
        """Transactions whose outcome is durable."""
        self._gates: dict[int, ev.Gate] = {}
        self._gathering = False
        """A frame is being decided: what it appends goes to the disk in one go."""
        self._taking = world.random(f"taking/{self.name}")

    def on_start(self) -> None:
        """Reads the journal, replays it, opens a new epoch."""
        self._records = self.disk.recover()
        self._waiting = []
        self._syncing = False
        self._asked = {}
        self._timers = {}
        reader = self._replay(self.disk.beginning, self._records)
        nonce = self._random.getrandbits(32)
        self._step(ev.Replayed(reader.position(), (reader.epoch[0] + 1, nonce)))

    def _replay(self, start: Position, records: list[Record]) -> Reader:
        keys = self.world.swarm.window_keys
        # Gates are volatile.
        self._watch = Watch(self.world, self.name)
        self._core = self.parts.adjudicator(self.number, start, keys, self.spans)
        self._catalog_reads, self._catalog_asked = {}, {}
        self._core.window.work_keys = self.world.swarm.work_keys
        self._core.in_flight = self.world.swarm.in_flight
        self._core.together.fewest = self.world.swarm.together
        self._started = self.world.now
        reader = self.parts.reader(start)
        self._settled = {record.txid for record in records}
        for record in records:
            payload = reader.accept(record)
            if payload is not None:
                self._step(ev.Replay(record, payload))
        self.clock.observe(reader.position().tau)
        self.world.trace("start", self.name, len(records), reader.lease)
        return reader

    def states(self) -> list[str]:
        """What its adjudicator is in the middle of."""
        core = self._core
        if core is None or not core.serving:
            return ["starting"]
        found = {
            "holding": len(core.voter.holds) > 0,
            "leading": len(core.ballots) > 0,
            "releasing": core.ranges.pending,
            "appending": core.ledger.under_way > 0,
        }
        return [state for state, is_so in found.items() if is_so] or ["serving"]

    @property
    def serving(self) -> bool:
        """Whether it takes commits."""
        return self._core is not None and self._core.serving

    @property
    def sealed(self) -> bool:
        """Whether it is the owner, serving or about to."""
        return self._core is not None and self._core.sealed

    @property
    def epoch(self) -> tuple[int, int]:
        """Of the adjudicator that runs here."""
        assert self._core is not None
        return self._core.ledger.epoch

    def core_ranges(self) -> tuple[Span, ...]:
        """What it owns now."""
        assert self._core is not None
        return self._core.ranges.spans

    def on_crash(self) -> None:
        """Unsynced bytes are torn."""
        self._core = None
        self.disk.crash()
        self.world.counts["torn"] = self.world.counts.get("torn", 0) + 1

    def _restart_soon(self) -> None:
        if self.alive:
            self.crash()
            delay = self._random.choice((MS // 10, self._random.randint(MS, 200 * MS)))
            self.world.at(self.world.now + delay, self._restart)

    def _restart(self) -> None:
        machine = self.world.machine
        # A data plane that starts reads all its journals before anybody is served.
        if not self.alive and (machine is None or machine.up):
            self.start()

    def _step(self, event: ev.Event) -> None:
        core = self._core
        if core is None:
            return
        self._perform_all(core, core.step(self.clock.now(), event))
        if not isinstance(event, ev.Replay):
            core.check()

    def _perform_all(self, core: Adjudicator, effects: list[ev.Effect]) -> None:
        for effect in effects:
            if self._core is core:
                self._perform(effect)

    def _perform(self, effect: ev.Effect) -> None:
        world = self.world
        match effect:
            case ev.Append():
                self._append([effect.record])
            case ev.AppendAll():
                world.count("frames decided together")
                world.count_more("commits decided together", len(effect.records))
                self._append(effect.records)
            case ev.Answer():
                source, attempt = self._asked.pop(effect.to, ("", 0))
                world.trace("answer", self.name, effect.outcome, effect.tau, effect.code)
                if effect.outcome is ev.Outcome.COMMITTED:
                    self.heat.committed(self.clock.now().earliest)
                if source:
                    world.send(self.name, source, Told(effect, attempt))
            case ev.Heartbeat() if self.parts.heartbeats_wait and not self._others_beat():
                pass
            case ev.Heartbeat():
                self._beat_at = world.now
                self._watch.beat(self.clock.now().latest, effect.tau)
                world.trace("heartbeat", self.name, effect.n, effect.tau)
                for replica in self.replicas:
                    beat = Beat(self.number, effect.epoch, effect.n, effect.tau)
                    world.send(self.name, replica, beat)
            case ev.SetTimer():
                self._timers[effect.name] = effect.at
                self._arm(effect.name, effect.at)
            case ev.Serving():
                self.served += 1
            case ev.Fatal():
                self.after(0, self._restart_soon)
            case ev.Added() | ev.Closed():
                world.trace(type(effect).__name__.lower(), self.name, effect.tau)
                if "m" in world.nodes:
                    world.send(self.name, "m", Changed(self.number, effect))
            case ev.Send():
                world.trace("send", self.name, effect.to, type(effect.message).__name__)
                self._send(effect)
            case ev.WantCatalog():
                self._next_to += 1
                self._read_catalog(self._next_to, effect.tau)
            case ev.Expired():
                world.trace("expired", self.name, effect.txid.hex(), effect.tau)
                world.expired.setdefault(effect.txid, []).append(effect.tau)
            case ev.Moved() | ev.Unmoved():
                world.send(self.name, "d", Changed(self.number, effect))
            case ev.StillOwner():
                world.trace("still owner", self.name, len(effect.spans))
            case ev.Gated():
                source, _ = self._asked.pop(effect.to, ("", 0))
                asked = self._gates.pop(effect.to)
                world.trace("gated", self.name, effect.code, effect.tau)
                self._watch.answered(self.clock.now().earliest, asked, effect.code)
                if source and asked.hold_ns:
                    world.send(self.name, source, GateTold(self.number, effect))
            case ev.Refused():
                pass

    def _others_beat(self) -> bool:
        """For the mutant of rule 5.9."""
        others = [one for one in self.world.nodes.values() if isinstance(one, Owner)]
        return all(one.number == self.number or one._beat_at >= self._started for one in others)

    def _send(self, effect: ev.Send) -> None:
        if isinstance(effect.message, Vote) and effect.message.code:
            self.world.count(f"vote {Code(effect.message.code).name.lower()}")
        for name in self.world.owner_names(effect.to):
            self.world.send(self.name, name, Peer(effect.message))
        chance = self.world.swarm.crash_at_vote
        if chance and not self.world.healed and self._random.random() < chance:
            self._restart_soon()

    def _heard(self, message: Message) -> None:
        self._step(ev.Heard(message))
        chance, mapper = self.world.swarm.moves_at_votes, self.world.mapper
        if mapper is None or not isinstance(message, Ask_) or not message.bounds:
            return
        if self._random.random() < chance:
            sid, key, _ = message.bounds[0]
            mapper((sid, key))

    def _read_catalog(self, request: int, tau: int) -> None:
        """Asks replicas until one is complete through `tau`."""
        self._catalog_reads[request] = tau
        self._ask_catalog(request)

        def again() -> None:
            if request in self._catalog_reads:
                self._read_catalog(request, tau)

        self.after(CATALOG_AGAIN_NS, again)

    def _ask_catalog(self, request: int) -> None:
        if not self.replicas:
            # The hosts of all of them are gone for good; others are being built.
            return
        replica = self._random.choice(self.replicas)
        self._catalog_asked[request] = replica
        get = Get(request, self._catalog_reads[request], (CATALOG,))
        self.world.send(self.name, replica, get)

    def _catalog_unread(self, source: str, request: int, reason: int) -> None:
        """Another replica may hold it; only the one asked last has a say.

        Where the version then in force is not held any more, a later one does: rather one abort
        too many.  It is asked for with another number: the answer may come twice, and questions
        would multiply if each copy of it led to one.
        """
        if request not in self._catalog_reads or self._catalog_asked.get(request) != source:
            return
        tau = self._catalog_reads.pop(request)
        del self._catalog_asked[request]
        self._next_to += 1
        if reason == TOO_OLD:
            tau = max(tau, self.clock.now().latest)
        self._read_catalog(self._next_to, tau)

    def _catalog_read(self, got: Got) -> None:
        tau = self._catalog_reads.pop(got.request, None)
        if tau is not None:
            self._step(ev.CatalogKnown(tau, version_of(got.values[0])))

    def _arm(self, name: str, at: int) -> None:
        def fire() -> None:
            if self._timers.get(name) != at:
                return
            if at and self.clock.now().earliest < at:
                self._arm(name, at)
                return
            del self._timers[name]
            self._step(ev.TimerFired(name))

        # "Right after other waiting work" may take a while on a busy loop.
        soon = self._random.choice((0, self._random.randint(0, 5 * MS)))
        self.after(max(at - self.clock.now().earliest, 1_000) if at else soon, fire)

    # The disk

    def _append(self, records: list[Record]) -> None:
        for record in records:
            self._waiting.append(record)
            self._watch.appended(self.clock.now(), record)
            self.world.trace("append", self.name, record.n, record.kind, record.tau)
        if not self._gathering:
            self._sync()

    def _take(self) -> list[Record]:
        """What is written in one go: not always all that waits, nor whole frames."""
        batch, count = self._waiting, len(self._waiting)
        if self.world.swarm.gateways and count > 1 and self._taking.random() < 0.3:
            count = self._taking.randrange(1, count)
        self._waiting = batch[count:]
        return batch[:count]

    def _buggify(self) -> bool:
        """A crash at an awkward moment."""
        swarm = self.world.swarm
        if self.world.healed or self._random.random() >= swarm.crash_at_append:
            return False
        self._restart_soon()
        return True

    def _sync(self) -> None:
        if self._syncing or not self._waiting:
            return
        swarm, random = self.world.swarm, self._random
        batch = self._take()
        self._syncing = True
        size_bytes = self.disk.write(batch)
        delay = random.randint(*swarm.sync)
        if not self.world.healed and random.random() < swarm.slow_sync:
            delay += random.randint(100 * MS, 1500 * MS)
            self.world.exercised("slow sync", self)
        self.after(delay, lambda: self._synced(batch, size_bytes))
        if self._buggify():
            return

    def _synced(self, batch: list[Record], size_bytes: int) -> None:
        self._syncing = False
        swarm = self.world.swarm
        if not self.world.healed and self._random.random() < swarm.sync_failure:
            self.world.trace("sync failed", self.name, batch[-1].n)
            self.world.exercised("failed sync", self)
            self._step(ev.AppendFailed("sync failed"))
            return
        self.disk.synced(size_bytes, batch[-1].n)
        if self._buggify():
            # Durable, and nobody was told.
            return
        self._records += batch
        self._settled.update(record.txid for record in batch)
        self._watch.durable(batch)
        self._push(batch)
        self._step(ev.Appended(batch[-1].n))
        self._sync()

    def _push(self, batch: list[Record]) -> None:
        for replica in self.replicas:
            self.world.send(self.name, replica, Records(self.number, batch[0].n, batch))

    def trim(self, through_n: int) -> None:
        """A checkpoint holds everything through this record."""
        if self.alive:
            before = self.disk.beginning.n
            self.disk.trim(through_n)
            del self._records[: self.disk.beginning.n - before]
            self.world.trace("trim", self.name, self.disk.beginning.n)

    # Messages

    def receive(self, source: str, message: Any) -> None:
        """Requests of query processors and replicas."""
        match message:
            case Ask():
                self._ask(source, message.event)
            case Frame():
                self._decide(message)
            case Fetch():
                at = message.after - self.disk.beginning.n
                wanted = self._records[max(at, 0) : max(at, 0) + FETCH_RECORDS]
                if at < 0:
                    self.world.send(self.name, source, Trimmed(self.number))
                elif wanted:
                    self.world.send(self.name, source, Records(self.number, wanted[0].n, wanted))
            case Change():
                self._step(message.event)
            case Peer():
                self._heard(message.message)
            case Got():
                self._catalog_read(message)
            case Unread():
                unread = source, message.request, message.reason
                self.after(2 * MS, lambda: self._catalog_unread(*unread))
            case Want():
                self._step(ev.WantHeartbeat(message.tau))

    def _feel(self, commit: ev.Commit) -> None:
        """Where its keys are, of those that are its own."""
        if self._core is not None:
            part = cut(commit.chunk, self._core.ranges.map).part(self.number)
            for sid, first, _ in part.bounds:
                self.heat.touched((sid, first))

    def _ask(
        self, source: str, event: ev.Commit | ev.Part | ev.Status | ev.Discard | ev.Gate
    ) -> None:
        if isinstance(event, ev.Gate):
            self._next_to += 1
            self._asked[self._next_to] = (source, 0)
            event = msgspec.structs.replace(event, to=self._next_to)
            self._gates[self._next_to] = event
        elif isinstance(event, ev.Commit):
            event = self._asked_by(source, event)
        elif isinstance(event, ev.Status):
            self._next_to += 1
            self._asked[self._next_to] = (source, 0)
            event = ev.Status(self._next_to, event.txid, event.tau_start)
            self._txids[event.to] = event.txid
        self._step(event)
        if isinstance(event, ev.Commit):
            self._bounded([event])

    def _asked_by(self, source: str, event: ev.Commit) -> ev.Commit:
        if self.world.controllers:
            self._feel(event)
        self._next_to += 1
        self._asked[self._next_to] = (source, event.attempt)
        self._txids[self._next_to] = event.txid
        return msgspec.structs.replace(event, to=self._next_to)

    def _decide(self, frame: Frame) -> None:
        """All of a frame under one reading of the clock, as the process of an owner does."""
        core = self._core
        if core is None:
            return
        events = [self._asked_by(source, event) for source, event in frame.asks]
        txids = {event.txid for event in events}
        self.world.count("frames of several" if len(txids) > 1 else "frames of one")
        if len(txids) < len(events):
            self.world.count("frames with a copy")
        self._gathering = True
        self._perform_all(core, core.commits(self.clock.now(), events))
        self._gathering = False
        core.check()
        if self._core is core and self._waiting:
            self._sync()
        self._bounded(events)

    def _bounded(self, events: list[ev.Commit]) -> None:
        """Rule 5.9; those that wait for votes and large ones have bounds of their own.

        Who asks for an outcome that is durable waits for the clock only.
        """
        swarm = self.world.swarm
        self._several.update(event.txid for event in events if event.parts)
        waiting = {self._txids[to] for to in self._asked if to in self._txids}
        waiting -= self._several | self._settled
        alone = not swarm.partitioned and not swarm.streams
        if alone and len(waiting) > swarm.in_flight:
            raise SimulationError(f"{self.name}: {len(waiting)} commits wait")
