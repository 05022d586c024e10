"""Throughput against adjudicators, journals and the share of transactions over two owners (D2, C3).

The real adjudicator cores in virtual time: each is one server with a fixed cost per event, each
journal host takes records at a bounded rate and syncs in groups. Adjudicator a's journal lies on
host a mod hosts.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from random import Random

from meridian.adjudicator import events as ev
from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.cut import cut, owners_of, pack
from meridian.clock.tau import Interval
from meridian.journal.core import Position
from meridian.sim.experiments.report import Figure, Report
from meridian.wire.ops import Put, conflict_hash, encode_chunk
from meridian.wire.partition import FIRST, LAST, PartitionMap, Place, Span
from meridian.wire.votes import Ask, name_leader

ADJUDICATORS = (1, 2, 4, 8)
JOURNALS = (1, 3, 6)
SHARES = (0.0, 0.1, 0.5)
US = 1_000
MS = 1_000 * US
S = 1_000 * MS
START = 1_700_000_000 * S
STEP_NS = 18 * US
"""One event at an adjudicator: what `meridian bench adjudicator` shows for a commit and its part
of append and answer."""
RECORD_NS = 8 * US
"""A journal host takes a record this often: 125,000 a second."""
SYNC_NS = MS
NETWORK_NS = 100 * US
UNDER_WAY = 192
"""Transactions under way per adjudicator: enough to keep it busy through a sync."""
WARM_NS = 10 * MS
MEASURE_NS = 40 * MS
SID = 1_000


class Timeline:
    """Virtual time: one heap of (time, number, action)."""

    def __init__(self) -> None:
        self.now = START
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Runs `action` later; equal times in the order of their calls."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_ns, self._count, action))

    def run(self, until: int) -> None:
        """Everything that happens before `until`."""
        while self._heap and self._heap[0][0] < until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = until


class JournalHost:
    """Takes records one by one, syncs what it has taken, tells each writer its last durable n."""

    def __init__(self, line: Timeline) -> None:
        self._line = line
        self._waiting: list[tuple[Server, int]] = []
        self._syncing = False

    def append(self, writer: Server, n: int) -> None:
        """A record of a writer's journal."""
        self._waiting.append((writer, n))
        if not self._syncing:
            self._sync()

    def _sync(self) -> None:
        self._syncing = True
        batch, self._waiting = self._waiting, []
        self._line.after(SYNC_NS + RECORD_NS * len(batch), lambda: self._synced(batch))

    def _synced(self, batch: list[tuple[Server, int]]) -> None:
        self._syncing = False
        last: dict[int, tuple[Server, int]] = {writer.number: (writer, n) for writer, n in batch}
        for writer, n in last.values():
            writer.take(ev.Appended(n))
        if self._waiting:
            self._sync()


class Server:
    """One adjudicator: events wait in line and cost STEP_NS each."""

    def __init__(self, world: World, number: int, span: Span, journal: JournalHost) -> None:
        self.world = world
        self.number = number
        self.core = Adjudicator(number, spans=(span,))
        self._journal = journal
        self._queue: deque[ev.Event] = deque()
        self._busy = False
        self._timers: dict[str, int] = {}

    def take(self, event: ev.Event) -> None:
        """An event arrives."""
        self._queue.append(event)
        if not self._busy:
            self._busy = True
            self.world.line.after(STEP_NS, self._serve)

    def _serve(self) -> None:
        now = self.world.line.now
        for effect in self.core.step(Interval(now, now), self._queue.popleft()):
            self._carry_out(effect)
        if self._queue:
            self.world.line.after(STEP_NS, self._serve)
        else:
            self._busy = False

    def _carry_out(self, effect: ev.Effect) -> None:
        world = self.world
        match effect:
            case ev.Append():
                self._journal.append(self, effect.record.n)
            case ev.Answer():
                world.line.after(NETWORK_NS, lambda: world.answered(effect))
            case ev.Send():
                target, heard = world.servers[effect.to], ev.Heard(effect.message)
                world.line.after(NETWORK_NS, lambda: target.take(heard))
            case ev.SetTimer():
                self._set_timer(effect.name, effect.at)
            case _:
                pass

    def _set_timer(self, name: str, at: int) -> None:
        self._timers[name] = at

        def fire() -> None:
            if self._timers.get(name) == at:
                del self._timers[name]
                self.take(ev.TimerFired(name))

        self.world.line.after(max(at - self.world.line.now, 0), fire)


class World:
    """Adjudicators, journal hosts, and clients that always have UNDER_WAY transactions each."""

    def __init__(self, seed: int, adjudicators: int, journals: int, share: float) -> None:
        self.line = Timeline()
        self.random = Random(f"{seed}/{adjudicators}/{journals}/{share}")
        self.share = share
        self.commits = self.aborts = self.retries = 0
        self._txn = 0
        self._width = (1 << 63) // adjudicators
        starts: list[Place] = [FIRST]
        starts += [(SID, _key(number * self._width)) for number in range(1, adjudicators)]
        self.map = PartitionMap(1, tuple(starts), tuple(range(adjudicators)))
        hosts = [JournalHost(self.line) for _ in range(journals)]
        self.servers = [
            Server(self, number, Span(lo, hi), hosts[number % journals])
            for number, (lo, hi) in enumerate(zip(starts, [*starts[1:], LAST], strict=True))
        ]

    def run(self) -> float:
        """Commits per second of virtual time, once warm."""
        for server in self.servers:
            server.take(ev.Replayed(Position(), (1, 1)))
        self.line.run(START + 5 * MS)
        for _ in range(UNDER_WAY * len(self.servers)):
            self.begin()
        self.line.run(self.line.now + WARM_NS)
        self.commits = 0
        self.line.run(self.line.now + MEASURE_NS)
        return self.commits * S / MEASURE_NS

    def begin(self) -> None:
        """One transaction of four keys, at one owner or at two."""
        count = len(self.servers)
        home = self.random.randrange(count)
        owners = [home]
        if count > 1 and self.random.random() < self.share:
            owners.append((home + self.random.randrange(1, count)) % count)
        keys = sorted(
            _key(owners[i % len(owners)] * self._width + self.random.randrange(self._width))
            for i in range(4)
        )
        hashes = b"".join(conflict_hash(SID, 0, key).to_bytes(8, "little") for key in keys)
        chunk = encode_chunk([Put(SID, 0, (1,), keys, hashes, b"", [(1,)] * 4)])
        self._send(chunk)

    def _send(self, chunk: bytes) -> None:
        found = cut(chunk, self.map)
        leader, *voters = owners_of([found], self.map)
        self._txn += 1
        txid = name_leader(self._txn.to_bytes(16, "little"), leader)
        server, line = self.servers[leader], self.line
        attempt, epoch = (1, server.core.ledger.epoch) if voters else (0, (0, 0))
        commit = ev.Commit(self._txn, txid, line.now, 0, 0, 0, chunk, attempt, epoch, tuple(voters))
        line.after(NETWORK_NS, lambda: server.take(commit))
        for voter in voters:
            part = found.part(voter)
            ask = Ask(txid, 1, epoch, line.now, 0, pack(part.footprint), part.bounds, False)
            asked, target = ev.Heard(ask), self.servers[voter]
            line.after(NETWORK_NS, lambda target=target, asked=asked: target.take(asked))  # type: ignore[misc]

    def answered(self, answer: ev.Answer) -> None:
        """Whatever came of it, the client goes on with another transaction."""
        if answer.outcome == ev.Outcome.COMMITTED:
            self.commits += 1
        elif answer.outcome == ev.Outcome.RETRY:
            self.retries += 1
        else:
            self.aborts += 1
        self.begin()


def _key(number: int) -> bytes:
    return b"\x01" + number.to_bytes(8, "big")


def run(seed: int) -> Report:
    """Table over adjudicators, journal hosts and cross-owner shares."""
    rows: list[tuple[object, ...]] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    for share in SHARES:
        for journals in JOURNALS:
            rates = []
            for adjudicators in ADJUDICATORS:
                rate = World(seed, adjudicators, journals, share).run()
                rates.append(round(rate))
                if journals == JOURNALS[-1] or (share == 0 and journals == 1):
                    name = f"{journals} journals, {share:.0%}"
                    lines.setdefault(name, []).append((adjudicators, rate / 1000))
            rows.append((f"{share:.0%}", journals, *rates))
    return Report(
        name="scaling",
        title="Commits per second of virtual time: adjudicators (columns), journal hosts, shares",
        model=(
            "The real adjudicator cores; each event costs an adjudicator"
            f" {STEP_NS // US} us, a journal host takes a record every {RECORD_NS // US} us and"
            f" syncs in {SYNC_NS // MS} ms.\nMessages take {NETWORK_NS // US} us, transactions"
            " write 4 random keys at one owner, or (share) at two. Adjudicator a's journal lies"
            f" on host a mod hosts;\n{UNDER_WAY} transactions under way per adjudicator."
        ),
        header=("share", "journals", *(f"{count} adj." for count in ADJUDICATORS)),
        rows=rows,
        figure=Figure("adjudicators", "1,000 commits/s", lines),
    )
