"""A replica process: crossbar core and a versioned store in memory, behind a model gateway."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from meridian.clock.tau import TAU_MAX
from meridian.crossbar import core as xb
from meridian.journal.core import Position, Reader
from meridian.sim.messages import Beat, Fetch, Get, Got, Key, Parts, Records, Want
from meridian.sim.world import MS, Node, SimulationError, World
from meridian.wire.ops import Delete, Op, Put, decode_chunk

POLL_NS = 20 * MS
CREDIT_BYTES = 1 << 20


class Store:
    """Versions of every key: (tau, value) in the order of tau; None ends a row."""

    def __init__(self) -> None:
        self.versions: dict[Key, tuple[list[int], list[bytes | None]]] = {}
        self.tau = 0

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
    """Node `r<number>`: everything of every journal.  A crash loses the store: it is rebuilt."""

    def __init__(self, world: World, number: int, journals: int, parts: Parts) -> None:
        super().__init__(world, f"r{number}")
        self.parts = parts
        self.journals = journals
        self._random = world.random(f"replica/{number}")
        self.store = Store()
        self.complete = 0
        self._bar = xb.Crossbar()
        self._readers: list[Reader] = []
        self._bodies: dict[bytes, dict[int, bytes]] = {}
        self._reads: list[tuple[str, Get]] = []
        self._demanded = 0

    def demand(self, tau: int) -> None:
        """As if a reader waited for `tau`."""
        self._demanded = max(self._demanded, tau)

    def on_start(self) -> None:
        """Empty; reads every journal from its beginning."""
        self.store = Store()
        self.complete = 0
        self._bodies = {}
        self._reads = []
        self._bar = self.parts.crossbar()
        self._readers = [self.parts.reader(Position()) for _ in range(self.journals)]
        for number in range(self.journals):
            self._cross(xb.AddJournal(number, Position()))
        self._cross(xb.Subscribe(1, 0, CREDIT_BYTES))
        self._poll()

    def _poll(self) -> None:
        """Nothing relies on a message that was pushed: they may be lost."""
        for number, reader in enumerate(self._readers):
            self.world.send(self.name, f"o{number}", Fetch(reader.n))
        self._want()
        self.after(POLL_NS, self._poll)

    def _want(self) -> None:
        tau = max((get.tau for _, get in self._reads), default=self._demanded)
        if self._random.random() < self.world.swarm.eager:
            tau += self._random.randint(0, 900 * MS)
        if tau > self.complete:
            for number in self._bar.lagging(tau):
                self.world.send(self.name, f"o{number}", Want(tau))

    def receive(self, source: str, message: Any) -> None:
        """Records, heartbeats, reads."""
        match message:
            case Records():
                self._take(message)
            case Beat():
                self._cross(xb.Beat(message.journal, message.epoch, message.n, message.tau))
            case Get():
                self._reads.append((source, message))
                self._want()
        self._answer()

    def _take(self, message: Records) -> None:
        reader = self._readers[message.journal]
        accepted = []
        for record in message.records:
            if record.n != reader.n + 1:
                continue
            payload = reader.accept(record)
            if payload is not None:
                accepted.append((record, payload))
        if accepted:
            self._cross(xb.Accepted(message.journal, accepted))

    def _cross(self, event: xb.Event) -> None:
        for effect in self._bar.step(event):
            if isinstance(effect, xb.CutLoose):
                raise SimulationError("a replica that takes everything at once was cut loose")
            size_bytes = sum(self._apply(item) for item in effect.items)
            if effect.tau < self.complete:
                raise SimulationError(f"{self.name}: completeness went back")
            self.complete = effect.tau
            if size_bytes:
                self._cross(xb.Credit(1, size_bytes))

    def _apply(self, item: xb.Item) -> int:
        match item:
            case xb.Transaction():
                if item.tau <= self.complete:
                    raise SimulationError(f"{self.name}: commit {item.tau} after completeness")
                staged = self._bodies.pop(item.txid, {})
                if list(staged) != list(range(len(item.bodies))):
                    raise SimulationError(f"{self.name}: chunks of {item.txid.hex()} are missing")
                ops = [op for chunk in (*staged.values(), item.chunk) for op in decode_chunk(chunk)]
                self.store.apply(item.tau, ops)
                self.world.trace("apply", self.name, item.tau)
            case xb.Body():
                self._bodies.setdefault(item.txid, {})[item.seq] = item.chunk
            case xb.Dropped():
                self._bodies.pop(item.txid, None)
                return 0
        return len(item.chunk)

    def _answer(self) -> None:
        waiting = []
        for source, get in self._reads:
            if get.tau > self.complete:
                waiting.append((source, get))
            else:
                self._serve(source, get)
        self._reads = waiting

    def _serve(self, source: str, get: Get) -> None:
        found = [self.store.get(key, get.tau) for key in get.keys]
        got = Got(get.request, tuple(value for value, _ in found))
        newest = max((tau for _, tau in found), default=0)
        assert newest <= get.tau < TAU_MAX
        self.world.trace("read", self.name, get.tau, newest)
        self._leave(source, got, newest)

    def _leave(self, source: str, got: Got, newest: int) -> None:
        ahead = newest - self.clock.now().earliest
        if ahead > 0 and self.parts.read_wait:
            self.after(ahead, lambda: self._leave(source, got, newest))
        else:
            self.world.send(self.name, source, got)
