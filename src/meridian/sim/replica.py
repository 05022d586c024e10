"""A replica process: crossbar core, storage core and a versioned store, behind a model gateway."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any
from zlib import crc32

from meridian.clock.tau import TAU_MAX
from meridian.crossbar import core as xb
from meridian.journal.core import Add, Payload, Position, Reader
from meridian.journal.record import Record
from meridian.sim.coded import CodedJournal
from meridian.sim.disk import Disk
from meridian.sim.feeds import CodedFeed, Feed
from meridian.sim.messages import (
    Beat,
    CountAsked,
    CountTold,
    Get,
    Got,
    Key,
    Parts,
    Records,
    Trimmed,
    Want,
)
from meridian.sim.owner import Owner
from meridian.sim.stream import Stream
from meridian.sim.world import MS, Node, S, SimulationError, World
from meridian.storage import agreement
from meridian.storage import core as st
from meridian.storage.agreement import SelfCheck
from meridian.wire.ops import Delete, Op, Put, decode_chunk

POLL_NS = 20 * MS
CHECK_NS = 300 * MS
CHECK_LAG_NS = 100 * MS
"""Digests are as of a little while ago, which the other replicas have as well."""
CREDIT_BYTES = 2_000
READ_PATIENCE_NS = 60 * S


class Store:
    """The replica's file: versions of every key, staged chunks, positions.

    Every piece of work is atomic and idempotent, as the engine's.
    """

    def __init__(self) -> None:
        self.versions: dict[Key, tuple[list[int], list[bytes | None]]] = {}
        self.tau = 0
        self.horizon = 0
        self.positions: dict[int, int] = {}
        self.staged: dict[bytes, dict[int, bytes]] = {}
        self.built = 0
        """When it was built from a checkpoint and the journals."""
        self.rotten: dict[tuple[Key, int], bytes | None] = {}
        """What rotted in this copy: key and tau of the version, and its true value."""

    def copy(self) -> Store:
        """A checkpoint."""
        other = Store()
        other.versions = {key: (t.copy(), v.copy()) for key, (t, v) in self.versions.items()}
        other.tau, other.horizon = self.tau, self.horizon
        other.positions = dict(self.positions)
        other.staged = {txid: dict(chunks) for txid, chunks in self.staged.items()}
        other.rotten = dict(self.rotten)
        other.built = self.built
        return other

    def digest(self, tau: int) -> int:
        """Of all values as of tau."""
        found = ((key, self.get(key, tau)) for key in sorted(self.versions))
        return crc32(repr([(key, one) for key, one in found if one[0] is not None]).encode())

    def perform(self, work: st.Work) -> None:
        """One piece of the storage core's work."""
        match work:
            case st.Apply():
                for tau, chunk in work.commits:
                    if tau > self.tau:
                        self.apply(tau, decode_chunk(chunk))
            case st.Stage():
                self.staged.setdefault(work.txid, {}).setdefault(work.seq, work.chunk)
            case st.Resolve():
                chunks = self.staged.pop(work.txid, {})
                if work.tau > self.tau:
                    if sorted(chunks) != list(range(work.seq)):
                        raise SimulationError(f"chunks of {work.txid.hex()} are missing")
                    ordered = [*(chunks[seq] for seq in range(work.seq)), work.chunk]
                    self.apply(work.tau, [op for c in ordered for op in decode_chunk(c)])
            case st.Discard():
                self.staged.pop(work.txid, None)
        self.positions.update(work.positions)

    def lacks(self, starts: dict[int, Position]) -> bool:
        """Whether one of these journals begins after what this file holds."""
        return any(self.positions.get(number, 0) < p.n for number, p in starts.items())

    def apply(self, tau: int, ops: list[Op]) -> None:
        """One transaction, above every earlier one."""
        if tau <= self.tau:
            raise SimulationError(f"replica applies {tau} after {self.tau}")
        self.tau = tau
        for op in ops:
            if isinstance(op, Put):
                for key, row in zip(op.keys, op.rows, strict=True):
                    self._set((op.sid, key), tau, row[0])
            elif isinstance(op, Delete):
                for key in op.keys:
                    self._set((op.sid, key), tau, None)

    def _set(self, key: Key, tau: int, value: bytes | None) -> None:
        taus, values = self.versions.setdefault(key, ([], []))
        if taus and taus[-1] == tau:
            raise SimulationError(f"{key} is written twice at {tau}")
        taus.append(tau)
        values.append(value)

    def get(self, key: Key, tau: int) -> tuple[bytes | None, int]:
        """(value, tau of that version) as of tau."""
        taus, values = self.versions.get(key, ([], []))
        at = bisect_right(taus, tau)
        return (values[at - 1], taus[at - 1]) if at else (None, 0)


class Replica(Node):
    """Node `r<number>`: everything of every journal.  A crash may lose its file or keep it."""

    def __init__(
        self,
        world: World,
        number: int,
        journals: list[Disk | Stream | CodedJournal],
        owners: list[Owner],
        object_store: list[Store],
        parts: Parts,
    ) -> None:
        super().__init__(world, f"r{number}")
        self.parts = parts
        self.journals = journals
        self._first = len(journals)
        """Journals that were there before the first ADD."""
        self.owners = owners
        self.object_store = object_store
        self.store = Store()
        self._random = world.random(f"replica/{number}")
        self._bar = xb.Crossbar()
        self._core = st.Core(0, 0, {})
        self._readers: dict[int, Reader] = {}
        self._feeds: dict[int, Feed] = {}
        self._unopened: list[int] = []
        """Journals that were heard of and cannot be read yet."""
        self._reads: dict[int, tuple[str, Get]] = {}
        self._token = 0
        self._wanted = 0
        self._told = 0
        self._check = SelfCheck(number, patience_ns=S)
        self._discard = False
        self._agreed = 0
        self._publishing: Store | None = None
        self._tried: Store | None = None
        """A checkpoint that waits for another replica to confirm it, and whether it did before."""

    @property
    def complete(self) -> int:
        """Every commit through this tau is in the store."""
        return self._core.complete_tau

    def checkpoint(self) -> None:
        """A copy of the file to the object store; the journals are trimmed behind it."""
        last = self.object_store[-1].positions if self.object_store else {}
        ahead = all(self.store.positions.get(number, 0) >= n for number, n in last.items())
        if not self.alive or not ahead:
            return
        if self.world.swarm.rots:
            # Rot in a checkpoint would outlive the journals that know better: see `_verdict`.
            self._publishing = self.store.copy()
            return
        self._publish(self.store.copy())

    def _publish(self, copy: Store) -> None:
        last = self.object_store[-1].positions if self.object_store else {}
        if not all(copy.positions.get(number, 0) >= n for number, n in last.items()):
            return
        self.object_store.append(copy)
        for owner in self.owners:
            owner.trim(copy.positions.get(owner.number, 0))

    # Bit rot and the checks that find it

    def rot(self) -> None:
        """One bit of a current value of this copy is not what it was; its disk does not notice."""
        current = [(key, t[-1]) for key, (t, v) in sorted(self.store.versions.items()) if v[-1]]
        if not current:
            return
        key, tau = self._random.choice(current)
        values = self.store.versions[key][1]
        self.store.rotten.setdefault((key, tau), values[-1])
        values[-1] = b"%s rot" % self.name.encode()
        self.world.trace("rot", self.name, key, tau)

    def settled(self, tau: int) -> bool:
        """Complete through tau and, where values rot, found equal to the others since."""
        if self.complete < tau:
            return False
        if self.world.swarm.rots and self._agreed < tau - S:
            return False
        self._forget_old_rot()
        return True

    def _forget_old_rot(self) -> None:
        """What a newer version replaced is no part of a digest: it goes with the horizon."""
        for (key, tau), value in self.store.rotten.items():
            taus, values = self.store.versions.get(key, ([], []))
            if tau in taus and tau != taus[-1]:
                values[taus.index(tau)] = value

    def _check_others(self) -> None:
        peers = tuple(n for n in range(self.world.swarm.replicas) if f"r{n}" != self.name)
        tau = self.complete - CHECK_LAG_NS
        if self._tried is not None and self._tried is self._publishing:
            # Nobody confirmed it: the next one will do.
            self._publishing = None
        self._tried = self._publishing
        if self._publishing is not None:
            tau = self._publishing.tau
        if tau > self.store.horizon:
            self._judge(agreement.Due(tau, peers))
        self.after(CHECK_NS, self._check_others)

    def _judge(self, event: agreement.Event) -> None:
        for effect in self._check.step(self.clock.now(), event):
            match effect:
                case agreement.Count() if f"r{effect.replica}" == self.name:
                    self._judge(self._counted(effect))
                case agreement.Count():
                    asked = CountAsked(effect.number, effect.tau)
                    self.world.send(self.name, f"r{effect.replica}", asked)
                case agreement.SetTimer():
                    delay = max(effect.at - self.clock.now().earliest, 1_000)
                    self.after(delay, lambda: self._judge(agreement.TimerFired()))
                case _:
                    self._verdict(effect)

    def _counted(self, count: agreement.Count) -> agreement.Counted:
        """The own digest; of a checkpoint that waits, that of the checkpoint."""
        store = self.store
        if self._publishing is not None and self._publishing.tau == count.tau:
            store = self._publishing
        digest = store.digest(count.tau)
        return agreement.Counted(count.number, count.replica, self.store.built, 0, digest)

    def _verdict(self, verdict: agreement.Effect) -> None:
        self.world.trace("verdict", self.name, type(verdict).__name__)
        publishing, self._publishing = self._publishing, None
        if isinstance(verdict, agreement.Agreed):
            self._agreed = max(self._agreed, verdict.tau)
            if publishing is not None and publishing.tau == verdict.tau:
                self._publish(publishing)
        elif isinstance(verdict, agreement.RemoveSelf):
            self._discard = True
            self.crash()
            self.start()

    def _tell(self, source: str, asked: CountAsked) -> None:
        able = self.store.horizon <= asked.tau <= self.complete
        content = self.store.digest(asked.tau) if able else None
        number = int(self.name[1:])
        told = CountTold(asked.number, number, self.store.built, content)
        self.world.send(self.name, source, told)

    def states(self) -> list[str]:
        """Whether somebody waits for it."""
        return ["reads wait" if self._reads else "following"]

    def demand(self, tau: int) -> None:
        """As if a reader waited for `tau`."""
        self._wanted = max(self._wanted, tau)

    def on_start(self) -> None:
        """Reads every journal from its beginning, applies what its file lacks."""
        starts = {number: one.beginning for number, one in enumerate(self.journals)}
        lost = self._random.random() < 0.4 or self.store.lacks(starts)
        if lost or self._discard:
            self.store = self.object_store[-1].copy() if self.object_store else Store()
            if self.world.swarm.rots:
                # What another copy confirmed is what is visible at the checkpoint's tau; versions
                # replaced before may have rotted in it (`restore(history=False)`).
                self.store.horizon = max(self.store.horizon, self.store.tau)
            self.store.built = self.clock.now().latest
            self._discard = False
        self._publishing = None
        store = self.store
        assert not store.lacks(starts), "trimmed beyond the newest checkpoint"
        self.world.trace("start", self.name, store.tau)
        self._reads = {}
        self._told = 0
        self._bar = self.parts.crossbar()
        self._core = self.parts.storage(store.tau, store.horizon, store.positions)
        self._readers, self._feeds = {}, {}
        # Membership comes with the file and with where journal 0 begins; the rest is read (4.7).
        heard = [*range(self._first), *sorted(store.positions), *starts[0].members]
        self._unopened = list(dict.fromkeys(heard))
        opened = self._open()
        assert opened, "the file lacks nothing"
        self._cross(xb.Subscribe(1, store.tau, CREDIT_BYTES))
        self._poll()
        if self.world.swarm.rots:
            self._check_others()

    def _open(self) -> bool:
        """Reads the journals that were heard of and exist by now.

        False: one was trimmed before this replica heard of it, beyond what its file holds.  What is
        missing is in a checkpoint only, as after a Trimmed of a journal that is being read.
        """
        ready = [number for number in self._unopened if number < len(self.journals)]
        starts = {number: self.journals[number].beginning for number in ready}
        if self.store.lacks(starts):
            return False
        self._unopened = [number for number in self._unopened if number not in ready]
        for number, start in starts.items():
            self._readers[number] = self.parts.reader(start)
            self._feeds[number] = self._feed(number, start)
            # Commits through the store's tau are in, of whichever journal.
            tau = self.store.tau
            n = self.store.positions.get(number, 0)
            members = tuple(self._unopened) if number == 0 else ()
            held = Position(start.epoch, n, tau=tau, members=members, closed=start.closed)
            self._cross(xb.AddJournal(number, held))
        return True

    def _feed(self, number: int, start: Position) -> Feed:
        swarm = self.world.swarm
        if swarm.streams and swarm.coded:
            return CodedFeed(number, self.parts)
        return Feed(f"l{number}" if swarm.streams else f"o{number}", start.n)

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
        self._want(max((get.tau for _, get in self._reads.values()), default=self._wanted))
        self.after(POLL_NS, self._poll)

    def _want(self, tau: int) -> None:
        if self._random.random() < self.world.swarm.eager:
            tau += self._random.randint(0, self.world.swarm.eager_ns)
        if tau > self.complete:
            for number in self._bar.lagging(tau):
                for owner in self.owners:
                    if owner.number == number:
                        self.world.send(self.name, owner.name, Want(tau))

    def receive(self, source: str, message: Any) -> None:
        """Records, heartbeats, reads."""
        match message:
            case Records():
                self._take(message)
            case Beat():
                self._cover(message)
                self._cross(xb.Beat(message.journal, message.epoch, message.n, message.tau))
            case Trimmed():
                self._again()
            case CountAsked():
                self._tell(source, message)
            case CountTold():
                told = message
                self._judge(
                    agreement.Counted(told.number, told.replica, told.built, 0, told.content)
                )
            case Get():
                self._token += 1
                self._reads[self._token] = (source, message)
                deadline = self.clock.now().earliest + READ_PATIENCE_NS
                self._step(st.Read(self._token, message.tau, deadline))

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
            if isinstance(payload, Add):
                self._hear(payload.journal)
        if accepted:
            self._cross(xb.Accepted(number, accepted))

    def _cross(self, event: xb.Event) -> None:
        for effect in self._bar.step(event):
            if isinstance(effect, xb.CutLoose):
                raise SimulationError("a replica that takes everything was cut loose")
            if effect.tau < self._told:
                raise SimulationError(f"{self.name}: completeness went back")
            self._told = effect.tau
            chunks = (one.tau_start for one in effect.items if isinstance(one, xb.Body))
            if len(self._readers) > 1 and max(chunks, default=0) > max(effect.tau, self._bar.tau):
                raise SimulationError("a chunk comes before what it may name")
            items = tuple(map(_item, effect.items))
            self._step(st.Delivered(items, effect.tau, effect.positions))

    def _step(self, event: st.Event) -> None:
        for effect in self._core.step(self.clock.now(), event):
            match effect:
                case st.Apply() | st.Stage() | st.Resolve() | st.Discard():
                    self.after(self._random.randint(1_000, MS), self._performer(effect))
                case st.Serve():
                    self._serve(*self._reads.pop(effect.token))
                case st.Refuse():
                    self._reads.pop(effect.token)
                case st.Want():
                    self._want(effect.tau)
                case st.Took():
                    self._cross(xb.Credit(1, effect.size_bytes))
                case st.SetTimer():
                    self._arm(effect.at)
                case st.RaiseFloor():
                    self.store.horizon = effect.floor
        self._core.check()

    def _performer(self, work: st.Work) -> Any:
        def perform() -> None:
            before = self.store.tau
            self.store.perform(work)
            if self.store.tau > before:
                self.world.trace("apply", self.name, self.store.tau)
            self._step(st.Performed())

        return perform

    def _arm(self, at: int) -> None:
        def fire() -> None:
            if self.clock.now().earliest < at:
                self._arm(at)
            else:
                self._step(st.TimerFired())

        self.after(max(at - self.clock.now().earliest, 1_000), fire)

    def _serve(self, source: str, get: Get) -> None:
        found = [self.store.get(key, get.tau) for key in get.keys]
        newest = max((tau for _, tau in found), default=0)
        assert newest <= get.tau < TAU_MAX
        self.world.trace("read", self.name, get.tau, newest)
        if any(
            (key, tau) in self.store.rotten for key, (_, tau) in zip(get.keys, found, strict=True)
        ):
            # A reader would be told a wrong value until the rot is found; not modelled further.
            self.world.trace("rotten read", self.name)
            return
        got = Got(get.request, tuple(value for value, _ in found))
        self.world.send(self.name, source, got)


def _item(item: xb.Item) -> st.Item:
    match item:
        case xb.Transaction():
            bodies = len(item.bodies)
            return st.Committed(item.tau, item.journal, item.n, item.txid, bodies, item.chunk)
        case xb.Body():
            return st.Chunk(item.txid, item.journal, item.n, item.seq, item.chunk)
        case xb.Dropped():
            return st.Dropped(item.txid, item.journal, item.n)
