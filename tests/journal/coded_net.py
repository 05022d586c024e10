"""Owners and streams of a coded journal with everything between them that can go wrong.

Messages and answers are lost, doubled, late and out of order; ids are forgotten; one stream at a
time stalls, or comes back without what both others hold; owners do not know of each other.  Real
are `Chain`, `CodedWriter`, `CodedReader`.  What must hold: what an owner counted durable is what
every reader concludes and every new owner finds, and no two conclude different things.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from meridian.journal import core as journal
from meridian.journal.chain import Publish
from meridian.journal.coded import STREAMS
from meridian.journal.core import make, payload_of
from meridian.journal.record import Record
from meridian.sim.stream import held_by, log_of
from tests.journal.coded_owner import Answer, Kinds, Owner, Server

PAIRS = ((0, 1), (0, 2), (1, 2))
LAST = 1 << 20
"""Number of the last owner's epoch."""


class Net:
    """All of it, from one seed.  Raises AssertionError or JournalError where a rule is broken."""

    def __init__(self, seed: int, kinds: Kinds) -> None:
        self.random = random = Random(seed)
        self.kinds = kinds
        self.lag_bytes = random.choice((0, 8, 10**9))
        self.loss = random.choice((0.0, 0.05, 0.2))
        self.doubled = random.choice((0.0, 0.1))
        self.shuffled = random.choice((0.0, 0.2, 0.6))
        self.shrinks = random.choice((0.0, 0.0, 0.02))
        self.servers = [Server() for _ in range(STREAMS)]
        self.owners: list[Owner] = []
        self.flying: list[tuple[Owner, int, Publish]] = []
        self.answers: list[tuple[Owner, int, Answer]] = []
        self.history: dict[int, Record] = {}
        """What any reader concluded."""
        self.durable: dict[int, Record] = {}
        """What any owner counted."""
        self.readers = [kinds.reader() for _ in range(2)]
        self.at = [[0] * STREAMS for _ in self.readers]
        self.generations = [[0] * STREAMS for _ in self.readers]

    def run(self, steps: int) -> None:
        """At random, then each pair of streams is asked, then everything heals."""
        for _ in range(steps):
            self.step()
        self.check_pairs()
        self.heal()
        for n, record in self.durable.items():
            assert n in self.history, f"record {n} of {record.epoch} is lost"

    def step(self) -> None:
        random = self.random
        dice = random.random()
        owners = self.owners[-3:]
        if not owners or (dice < 0.01 and len(self.owners) < 6):
            self.own()
        elif dice < 0.35:
            self.deliver()
        elif dice < 0.60:
            self.answer()
        elif dice < 0.72:
            random.choice(owners).pump(random.randrange(STREAMS), again=random.random() < 0.3)
        elif dice < 0.82:
            random.choice(owners).judge(random.randrange(STREAMS))
        elif dice < 0.84:
            random.choice(owners).begin()
        elif dice < 0.88:
            self.round(random.choice(owners), random.sample(range(STREAMS), random.randint(1, 3)))
        elif dice < 0.92:
            random.choice(owners).work()
        elif dice < 0.97:
            self.read(random.randrange(len(self.readers)), random.randrange(STREAMS), 6)
        elif dice < 0.98:
            self.beat()
        elif dice < 0.99:
            self.stall()
        else:
            random.choice(self.servers).seen.clear()
        if random.random() < self.shrinks:
            self.shrink(random.randrange(STREAMS))

    def round(self, owner: Owner, streams: Sequence[int]) -> None:
        """An owner talks to these streams only, for once without a hitch."""
        kept = self.flying, self.answers, self.loss, self.doubled, self.shuffled
        self.flying, self.answers = [], []
        self.loss = self.doubled = self.shuffled = 0.0
        for _ in range(2):
            for stream in streams:
                owner.judge(stream)
                owner.pump(stream, again=True)
            owner.begin()
            others = []
            while self.flying:
                if self.flying[0][1] in streams:
                    self.deliver()
                else:
                    others.append(self.flying.pop(0))
            while self.answers:
                self.answer()
            self.flying = others
        flying, self.answers, self.loss, self.doubled, self.shuffled = kept
        self.flying = flying + self.flying

    # Faults

    def stall(self) -> None:
        """One at a time."""
        chosen = self.random.choice(self.servers)
        for server in self.servers:
            server.stalled = server is chosen and not server.stalled

    def shrink(self, stream: int) -> None:
        """A stream comes back without what both others hold."""
        others = [log_of(one.records()) for i, one in enumerate(self.servers) if i != stream]
        count = 0
        for message in reversed(self.servers[stream].messages):
            if not all(held_by(log, record) for log in others for record in message):
                break
            count += 1
        if count:
            self.servers[stream].lose(self.random.randint(1, count))

    def own(self, number: int | None = None) -> Owner:
        """A new owner, above what it saw: not always the highest."""
        seen = self.random.sample(range(STREAMS), 2)
        highest = max(log_of(self.servers[one].records()).epoch[0] for one in seen)
        epoch = (number or highest + 1, self.random.getrandbits(20))
        owner = Owner(self, f"o{len(self.owners)}", epoch, seen)
        self.owners.append(owner)
        return owner

    # Messages

    def _pick(self, count: int) -> int:
        return self.random.randrange(count) if self.random.random() < self.shuffled else 0

    def send(self, owner: Owner, stream: int, message: Publish) -> None:
        """A message sets out."""
        self.flying.append((owner, stream, message))

    def deliver(self) -> None:
        """One message that is on its way to a stream."""
        if not self.flying:
            return
        index = self._pick(len(self.flying))
        owner, stream, message = self.flying[index]
        if self.random.random() >= self.doubled:
            del self.flying[index]
        if self.random.random() < self.loss or self.servers[stream].stalled:
            return
        answer = self.servers[stream].put(owner.name, message)
        self.answers.append((owner, stream, answer))

    def answer(self) -> None:
        """One answer that is on its way to an owner."""
        if not self.answers:
            return
        owner, stream, answer = self.answers.pop(self._pick(len(self.answers)))
        if self.random.random() >= self.loss:
            owner.hear(stream, answer)
            self.count(owner)

    # What must hold

    def count(self, owner: Owner) -> None:
        """What an owner counts is what readers conclude."""
        end = owner.writer.durable_n if owner.writer is not None else 0
        for n in range(owner.durable_n + 1, end + 1):
            if n in owner.told:
                record = owner.told[n]
                assert n not in self.history or _same(self.history[n], record), record
                assert n not in self.durable or _same(self.durable[n], record), record
                self.durable[n] = record
        owner.durable_n = end

    def conclude(self, records: list[Record]) -> None:
        """What a reader delivers is what others delivered, and what was counted."""
        for record in records:
            if record.kind != journal.EPOCH:
                n = record.n
                before = self.history.setdefault(n, record)
                assert _same(before, record), (before, record)
                assert n not in self.durable or _same(self.durable[n], record), record

    def read(self, index: int, stream: int, count: int) -> None:
        """A reader gets on; one of a stream that came back with less begins again."""
        server = self.servers[stream]
        if server.stalled:
            return
        if self.generations[index][stream] != server.generation:
            self.readers[index], self.at[index] = self.kinds.reader(), [0] * STREAMS
            self.generations[index] = [one.generation for one in self.servers]
        at = self.at[index][stream]
        part = server.records()[at : at + count]
        self.at[index][stream] += len(part)
        self.readers[index].take(stream, part)
        self.conclude(self.readers[index].ready())

    def beat(self) -> None:
        """A heartbeat reaches a reader."""
        owner = self.random.choice(self.owners)
        reader = self.random.choice(self.readers)
        reader.cover(owner.epoch, owner.durable_n)
        self.conclude(reader.ready())

    def check_pairs(self) -> None:
        """Whoever fenced two streams now would find all that was counted."""
        epoch = (LAST, 0)
        for pair in PAIRS:
            third = 3 - sum(pair)
            for known in (False, True):
                reader = self.kinds.reader()
                for stream in range(STREAMS):
                    if stream != third or known:
                        reader.take(stream, self.servers[stream].records())
                    if stream != third:
                        reader.take(stream, [make(epoch, 0, journal.Marker(0))])
                found = {one.n: one for one in reader.ready() if one.kind != journal.EPOCH}
                adoption = reader.adopt(pair)
                if adoption is None:
                    assert not known, "a body that committed is nowhere whole"
                    continue
                found |= {one.n: one for one in adoption.records}
                self.check_found(found)

    def check_found(self, found: dict[int, Record]) -> None:
        """Nothing counted and nothing delivered is missing."""
        named: set[int] = set()
        for record in found.values():
            if record.kind == journal.COMMIT:
                commit = payload_of(record)
                assert isinstance(commit, journal.Commit)
                named.update(commit.bodies)
        for n, record in [*self.durable.items(), *self.history.items()]:
            assert n in found, f"record {n} of {record.epoch} would be lost"
            assert _same(found[n], record), (found[n], record)
            assert n not in named or found[n].kind == journal.BODY

    def heal(self) -> None:
        """A last owner takes over with everything well, and everybody reads to the end."""
        self.loss = self.doubled = self.shuffled = self.shrinks = 0.0
        for server in self.servers:
            server.stalled = False
        self.flying, self.answers = [], []
        owner = self.own(LAST)
        for _ in range(200):
            for stream in range(STREAMS):
                owner.judge(stream)
                owner.pump(stream, again=True)
            owner.begin()
            while self.flying:
                self.deliver()
            while self.answers:
                self.answer()
            if owner.told and owner.durable_n >= owner.n:
                break
        assert owner.told and owner.durable_n == owner.n, "nobody can take over"
        for index in range(len(self.readers)):
            for stream in (*range(STREAMS), *range(STREAMS)):
                self.read(index, stream, 1 << 30)
            assert self.readers[index].n == owner.n, "all read to the end"


def _same(one: Record, other: Record) -> bool:
    """An owner's SEAL gets its base later; a body that never commits may be left out."""
    if one.n != other.n:
        return False
    if {one.kind, other.kind} == {journal.BODY, journal.SKIP}:
        return True
    if one.kind == other.kind == journal.SEAL:
        return one.epoch == other.epoch
    return one == other
