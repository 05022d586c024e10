"""Several adjudicator cores by hand: a network that delivers when told to, clocks that agree."""

from __future__ import annotations

from collections.abc import Callable

from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.cut import cut, owners_of, pack
from meridian.adjudicator.events import (
    Answer,
    Append,
    Appended,
    CatalogKnown,
    Commit,
    Effect,
    Event,
    Expired,
    Heard,
    Heartbeat,
    Move,
    Replay,
    Replayed,
    Send,
    SetTimer,
    Status,
    TimerFired,
    WantCatalog,
    WantHeartbeat,
)
from meridian.clock.tau import Interval
from meridian.journal.core import Reader
from meridian.journal.record import Record
from meridian.wire.partition import FIRST, LAST, PartitionMap, Place, Span
from meridian.wire.votes import Ask, Message, name_leader

from .driver import MS, START

SID = 1000


def place(key: str, sid: int = SID) -> Place:
    return sid, key.encode()


class Node:
    """One adjudicator: number, journal, timers."""

    def __init__(self, cluster: Cluster, number: int, spans: tuple[Span, ...]) -> None:
        self.cluster = cluster
        self.number = number
        self.spans = spans
        self.records: list[Record] = []
        self.timers: dict[str, int] = {}
        self.answers: dict[int, Answer] = {}
        self.expired: list[Expired] = []
        self.beats: list[Heartbeat] = []
        self.wanted: list[int] = []
        self.core = Adjudicator(number, spans=spans)
        self.start()

    def start(self) -> None:
        """A new owner, from what is in the journal."""
        self.core = Adjudicator(self.number, spans=self.spans)
        self.timers, self.answers, self.wanted = {}, {}, []
        reader = Reader()
        for record in self.records:
            payload = reader.accept(record)
            if payload is not None:
                self.step(Replay(record, payload))
        self.step(Replayed(reader.position(), (reader.epoch[0] + 1, 7)))

    def step(self, event: Event) -> list[Effect]:
        now = Interval(self.cluster.now, self.cluster.now)
        effects = self.core.step(now, event)
        self.core.check()
        for effect in effects:
            match effect:
                case Append():
                    self.records.append(effect.record)
                case Answer():
                    assert effect.to not in self.answers, "answered twice"
                    self.answers[effect.to] = effect
                case Send():
                    self.cluster.sent.append((effect.to, effect.message))
                case SetTimer():
                    self.timers[effect.name] = effect.at
                case WantCatalog():
                    self.wanted.append(effect.tau)
                case Expired():
                    self.expired.append(effect)
                case Heartbeat():
                    self.beats.append(effect)
                case _:
                    pass
        return effects

    def sync(self) -> None:
        last = -1
        while self.records[-1].n != last:
            last = self.records[-1].n
            self.step(Appended(last))

    def fire(self) -> None:
        """Every timer that is due."""
        for name, at in list(self.timers.items()):
            if at <= self.cluster.now:
                del self.timers[name]
                self.step(TimerFired(name))


class Cluster:
    """Adjudicators 0, 1, ... with borders between them at the keys given."""

    def __init__(self, *borders: str) -> None:
        self.now = START
        self.sent: list[tuple[int, Message]] = []
        starts = [FIRST, *(place(border) for border in borders)]
        self.map = PartitionMap(1, tuple(starts), tuple(range(len(starts))))
        ends = [*starts[1:], LAST]
        self.nodes = [
            Node(self, number, (Span(lo, hi),))
            for number, (lo, hi) in enumerate(zip(starts, ends, strict=True))
        ]
        self.attempts: dict[bytes, int] = {}
        self._to = 0
        self.settle()

    def sync(self) -> None:
        for node in self.nodes:
            node.sync()

    def deliver(self, keep: Callable[[Message], bool] = lambda _: True) -> list[Message]:
        """All messages on their way, and what they lead to; those not kept are lost."""
        lost: list[Message] = []
        while self.sent:
            to, message = self.sent.pop(0)
            if keep(message):
                self.nodes[to].step(Heard(message))
            else:
                lost.append(message)
        return lost

    def settle(self, rounds: int = 60) -> None:
        """Everything durable, delivered, and every timer fired while 60 ms pass."""
        for _ in range(rounds):
            self.sync()
            self.deliver()
            for node in self.nodes:
                node.fire()
            self.now += MS
        self.sync()

    def txid(self, id_: int, leader: int) -> bytes:
        return name_leader(id_.to_bytes(15, "big") + b"\0", leader)

    def ask(
        self, id_: int, chunk: bytes, tau_start: int, attempt: int = 0, leader: int | None = None
    ) -> tuple[Node, int]:
        """Sends COMMIT and asks, cut by the map; (leader, asker)."""
        found = cut(chunk, self.map)
        owners = owners_of([found], self.map)
        leader = owners[0] if leader is None else leader
        txid = self.txid(id_, leader)
        if not attempt:
            attempt = self.attempts.get(txid, 0) + 1
        self.attempts[txid] = attempt
        voters = tuple(owner for owner in owners if owner != leader)
        epoch = self.nodes[leader].core.ledger.epoch if voters else (0, 0)
        self._to += 1
        commit = Commit(
            self._to, txid, tau_start, 0, 0, 0, chunk, attempt if voters else 0, epoch, voters
        )
        self.nodes[leader].step(commit)
        for voter in voters:
            part = found.part(voter)
            ask = Ask(
                txid,
                attempt,
                epoch,
                tau_start,
                0,
                pack(part.footprint),
                part.bounds,
                found.everywhere,
            )
            self.sent.append((voter, ask))
        return self.nodes[leader], self._to

    def commit(self, id_: int, chunk: bytes, tau_start: int = 0) -> Answer:
        """Asks and waits for an answer."""
        node, to = self.ask(id_, chunk, tau_start or self.now)
        self.settle()
        return node.answers[to]

    def status(self, id_: int, leader: int, tau_start: int) -> Answer:
        self._to += 1
        self.nodes[leader].step(Status(self._to, self.txid(id_, leader), tau_start))
        to = self._to
        self.settle()
        return self.nodes[leader].answers[to]

    def restart(self, number: int, catalog: int = 0) -> Node:
        """A new owner takes over; the catalog is read for it."""
        node = self.nodes[number]
        node.sync()
        node.start()
        node.sync()
        for tau in list(node.wanted):
            node.step(CatalogKnown(tau, catalog))
        return node

    def move(self, source: int, target: int, lo: Place, hi: Place) -> None:
        self.nodes[source].step(Move(lo, hi, target, self.map.version + 1))

    def heartbeat(self, number: int, tau: int) -> None:
        self.nodes[number].step(WantHeartbeat(tau))
