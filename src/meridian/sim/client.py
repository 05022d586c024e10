"""A model query processor: one transaction after the other, with retries, until told to stop."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any
from zlib import crc32

from meridian.adjudicator import events as ev
from meridian.sim.committer import UNKNOWN_ANSWERS, Committer, patience
from meridian.sim.gateway import gateway_of
from meridian.sim.gating import Gate
from meridian.sim.messages import (
    Ask,
    GateTold,
    Get,
    Got,
    Key,
    Page,
    Parts,
    Submit,
    TheseShards,
    ThisMap,
    Told,
    Unread,
)
from meridian.sim.plans import CATALOG, KINDS, SID_FIRST, SIDS, Plan, WriteSet, version_of
from meridian.sim.routed import ROUTED, RoutedReads, Scanned
from meridian.sim.statements import perform, send, told
from meridian.sim.world import MS, Node, World
from meridian.wire.ranges import EVERYTHING, Range, place, span

EPOCH_NS = 60 * MS


class Txn:
    """What one transaction did, for the checkers.  Times are true times."""

    def __init__(self, name: bytes, txid: bytes, owner: int, begin: int) -> None:
        self.name = name
        self.txid = txid
        self.owner = owner
        self.begin = begin
        self.end: int | None = None
        self.tau_start = 0
        self.catver = 0
        self.seen: dict[Key, bytes | None] = {}
        self.scans: list[Scanned] = []
        self.writes = WriteSet()
        self.status = "unknown"
        self.read_at = 0
        self.unknown_answers = 0
        self.abandoned = False
        """Its query processor died: nobody waits for the outcome."""
        self.code = ev.Code.NONE
        self.owners = 1
        """How many owned its keys, as far as was known."""
        self.tau = 0


Wait = Generator[tuple[int, object], Any, Any]
"""Yields (timeout in ns, what to wait for) and gets the message, or None after the timeout."""


class Client(Node):
    """Node `q<number>`."""

    def __init__(
        self, world: World, number: int, routes: list[int], replicas: int, parts: Parts
    ) -> None:
        super().__init__(world, f"q{number}")
        self._parts = parts
        self.log: list[Txn] = []
        self.think_ns = (0, 20 * MS)
        """Between reads and COMMIT."""
        self.stopping = False
        self._routes = routes
        """Journals whose owners take commits; a hint, shared with the run."""
        self._replicas = replicas
        self._random = world.random(f"client/{number}")
        self._plain = world.random(f"plain/{number}")
        self._scanning = world.random(f"scans/{number}")
        self._number = number
        self._gateway = gateway_of(world, number)
        self._count = 0
        self._request = 0
        self._known_version = 1
        self._life: Wait | None = None
        self._expect: object = None
        self._ticket = 0
        self.committer = Committer(self, world.random(f"committer/{number}"))
        self.routed = RoutedReads(self, parts, world.random(f"routed/{number}"))

    @property
    def idle(self) -> bool:
        """Stopped, and nothing under way."""
        return self._life is None

    def states(self) -> list[str]:
        """How far its transaction is."""
        if self._life is None or not self.log or self.log[-1].status != "unknown":
            return ["client idle"]
        return ["client commits" if self.log[-1].writes else "client reads"]

    def on_start(self) -> None:
        """A new process: it remembers nothing."""
        self.committer.forget()
        self.routed.forget()
        self._life = self._work()
        self._resume(None)

    def on_crash(self) -> None:
        """Its transaction is gone, or nobody hears of its outcome."""
        self._life = None
        if self.log and self.log[-1].status == "unknown":
            self.log[-1].abandoned = True

    def _resume(self, value: object) -> None:
        assert self._life is not None
        self._ticket += 1
        try:
            timeout, self._expect = self._life.send(value)
        except StopIteration:
            self._life = None
            return
        ticket = self._ticket
        self.after(timeout, lambda: self._resume(None) if self._ticket == ticket else None)

    def receive(self, source: str, message: Any) -> None:
        """An answer; one that nobody waits for is dropped."""
        expect: object = None
        if isinstance(message, Got | Page | Unread | TheseShards) and self._expect == ROUTED:
            expect = ROUTED
        elif isinstance(message, Got):
            expect = message.request
        elif isinstance(message, ThisMap):
            expect = ThisMap
        elif isinstance(message, Told):
            expect = message.answer.txid
        elif isinstance(message, GateTold):
            expect = "gate", message.effect.txid
        if self._life is not None and expect is not None and expect == self._expect:
            self._resume(message)

    # One transaction after the other

    def _work(self) -> Wait:
        random, swarm = self._random, self.world.swarm
        while not self.stopping:
            yield random.randint(MS, 30 * MS), None
            if self.stopping:
                return
            owner = random.choice(self._routes)
            if swarm.partitioned:
                owner = random.randrange(SIDS)
            kind = random.choices(KINDS, self._weights())[0]
            sids = [SID_FIRST + number for number in sorted({*self._routes, 0})]
            if swarm.partitioned:
                sids = [SID_FIRST + number for number in range(SIDS)]
            # Half of the keys change all the time: few at once, and many hashes in all.
            seed, epoch = self.world.seed, self.world.now // EPOCH_NS
            salts = b"%d" % seed, b"%d.%d" % (seed, epoch)
            wide = swarm.partitioned and random.random() < swarm.wide
            gates = self.world.random(f"rewrites/{self._number}")
            if swarm.gates and self._changes_schema and gates.random() < swarm.gates:
                kind = "rewrite"
            if swarm.plain and self._plain.random() < swarm.plain:
                kind = "plain"
            plan = Plan(random, kind, SID_FIRST + owner, sids, swarm.keys, salts, wide=wide)
            yield from self._transaction(plan, owner)

    def _weights(self) -> list[float]:
        # A schema change is a matter of all owners: one owner only, or owners that vote.
        weights = [weight + 0.1 for weight in self.world.swarm.weights]
        weights += [0.1] * (len(KINDS) - len(weights))
        schema = KINDS.index("schema")
        weights[schema] = weights[schema] / 4 if self._changes_schema else 0
        weights[KINDS.index("table")] /= 4
        return weights

    @property
    def _changes_schema(self) -> bool:
        swarm = self.world.swarm
        return swarm.partitioned or (swarm.owners == 1 and not swarm.adds)

    def _transaction(self, plan: Plan, owner: int) -> Wait:
        world, random = self.world, self._random
        self._count += 1
        name = b"%s.%d.%d" % (self.name.encode(), self.incarnation, self._count)
        txn = Txn(name, random.randbytes(16), owner, world.now)
        gate: Gate | None = None
        if plan.kind == "rewrite":
            owners = [0]
            if world.swarm.partitioned:
                owners = yield from self.committer.lead_everywhere(txn)
            gate = Gate(self, txn.txid, (plan.sid,), owners)
            if not (yield from gate.close()):
                world.count("gates refused")
                return
        yield from self._statements(txn, plan)
        if gate is not None:
            world.count(f"rewrite {txn.status}")
            gate.end()

    def _statements(self, txn: Txn, plan: Plan) -> Wait:
        world, random, name = self.world, self._random, txn.name
        while world.machine is not None and not world.machine.up:
            yield MS, None
        self.log.append(txn)
        txn.begin = world.now
        now = self.clock.now()
        txn.tau_start = now.latest if self._parts.tau_start_latest else now.earliest
        if not (yield from self._read(txn, plan)):
            txn.status = "aborted"
            return
        yield random.randint(*self.think_ns), None
        statements = world.random(f"statements/{self._number}")
        buffer = world.writes
        txn.writes = perform(buffer, statements, plan, name, txn.seen, txn.tau_start)
        if not txn.writes:
            self._end(txn, "committed", 0)
            return
        # A cached version may be stale: then the commit must be refused, never wrong.
        version = version_of(txn.seen[CATALOG])
        self._known_version = max(self._known_version, version)
        stale = random.random() < 0.2
        txn.catver = random.randint(1, version) if stale else version
        chunks, flags = send(buffer, txn.txid, txn.tau_start, txn.catver, plan.chunk_bytes)
        world.using[txn.txid] = txn.writes.using()
        world.trace("sends", self.name, len(chunks), [crc32(chunk) for chunk in chunks])
        if self.world.swarm.partitioned:
            yield from self.committer.commit(txn, chunks, flags)
        else:
            yield from self._commit(txn, chunks, flags)

    def _end(self, txn: Txn, status: str, tau: int) -> None:
        txn.status, txn.tau, txn.end = status, tau, self.world.now
        self.world.trace(status, self.name, txn.name, tau)

    def _read(self, txn: Txn, plan: Plan) -> Wait:
        if self.world.swarm.sharded:
            return (yield from self._read_routed(txn, plan))
        deadline = self.world.now + patience(self.world)
        while self.world.now < deadline:
            replica = f"r{self._random.randrange(self._replicas)}"
            self._request += 1
            get = Get(self._request, txn.tau_start, tuple(plan.reads))
            self.world.send(self.name, replica, get)
            got = yield self._random.randint(100 * MS, 400 * MS), self._request
            if got is not None:
                txn.read_at = self.world.now
                txn.seen = dict(zip(plan.reads, got.values, strict=True))
                return True
        return False

    def _read_routed(self, txn: Txn, plan: Plan) -> Wait:
        """Keys, and sometimes a range, from whoever holds them."""
        found = yield from self.routed.get(txn.tau_start, plan.reads, patience(self.world))
        if not isinstance(found, dict):
            self.world.count("reads given up")
            return False
        txn.read_at = self.world.now
        txn.seen = {key: found[key] for key in plan.reads}
        random = self._scanning
        if random.random() < self.world.swarm.scans:
            limit = random.choice((0, 0, 1, 3))
            wanted = self._some_range(plan)
            # Some look back: what is too old for every copy is refused, never wrong.
            back = random.choice((0, random.randint(0, 2000 * MS)))
            tau = max(txn.tau_start - back, 1)
            told = yield from self.routed.scan(tau, wanted, patience(self.world), limit=limit)
            if isinstance(told, Scanned):
                txn.scans.append(told)
                txn.read_at = self.world.now
            elif not back:
                return False
        return True

    def _some_range(self, plan: Plan) -> Range:
        """A relation, a part of it, or everything there is."""
        random = self._scanning
        whole = span(plan.sid)
        kind = random.randrange(4)
        if kind == 0:
            return EVERYTHING
        ends = sorted(place(*key) for key in plan.reads if key[0] == plan.sid)
        if kind == 1 and len(ends) > 1:
            return Range(ends[0], ends[-1])
        if kind == 2 and ends:
            return random.choice((Range(whole.lo, ends[0] + b"\0"), Range(ends[0], whole.hi)))
        return whole

    def _commit(self, txn: Txn, chunks: list[bytes], flags: int) -> Wait:
        random = self._random
        targets = [f"o{txn.owner}"]
        if self.world.swarm.streams:
            targets.append(f"o{txn.owner}b")
        target = targets[0]
        parts = len(chunks) - 1
        unsure = False
        again = False
        deadline = self.world.now + patience(self.world)
        while self.world.now < deadline and txn.unknown_answers < UNKNOWN_ANSWERS:
            request: ev.Commit | ev.Status
            if unsure or (again and random.random() < 0.3):
                request = ev.Status(0, txn.txid, txn.tau_start)
            else:
                for seq in range(parts):
                    part = ev.Part(txn.txid, txn.tau_start, seq, chunks[seq])
                    self.world.send(self.name, target, Ask(part))
                    yield random.randint(0, 2 * MS), None
                request = ev.Commit(
                    0, txn.txid, txn.tau_start, txn.catver, flags, parts, chunks[-1]
                )
            again = True
            self.ask(target, request)
            told = yield random.randint(100 * MS, 400 * MS), txn.txid
            if told is None or told.answer.outcome in (ev.Outcome.RETRY, ev.Outcome.UNKNOWN):
                if told is not None and told.answer.outcome is ev.Outcome.UNKNOWN:
                    unsure = True
                    txn.unknown_answers += 1
                yield random.randint(MS, 20 * MS) * (1 + 10 * unsure), None
                target = random.choice(targets)
                continue
            self.hear(txn, told.answer)
            return

    def ask(self, target: str, request: ev.Commit | ev.Status) -> None:
        """A question to an owner; COMMITs go through the gateway, if there is one."""
        if self._gateway is not None and isinstance(request, ev.Commit):
            self.world.send(self.name, self._gateway, Submit(target, request))
        else:
            self.world.send(self.name, target, Ask(request))

    def hear(self, txn: Txn, answer: ev.Answer) -> None:
        """The outcome of a transaction."""
        random = self.world.random(f"statements/{self._number}")
        txn.code = answer.code
        status = told(self.world.writes, random, txn.txid, txn.tau_start, answer)
        self._end(txn, status, answer.tau)
