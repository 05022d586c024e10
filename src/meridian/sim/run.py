"""One run: build the world, let things fail, heal it, require progress, check everything."""

from __future__ import annotations

import msgspec

from meridian.journal.core import Position
from meridian.sim.checkers import check_all, check_ranges
from meridian.sim.client import Client
from meridian.sim.coded import CodedJournal, CodedOwner
from meridian.sim.disk import Disk
from meridian.sim.mapper import Mapper, first_map, spans_of
from meridian.sim.membership import Registrar
from meridian.sim.messages import Parts
from meridian.sim.owner import Owner
from meridian.sim.plans import SIDS
from meridian.sim.replica import Replica, Store
from meridian.sim.stream import Stream, StreamOwner
from meridian.sim.swarm import Swarm, choose
from meridian.sim.world import MS, START, Node, S, SimulationError, World
from meridian.wire.partition import Span

SAFETY_NS = 5 * S
LIVENESS_NS = 30 * S
"""Virtual time in which everything under way must end once nothing fails any more."""


class Result(msgspec.Struct, frozen=True):
    """What a run did; `failure` is empty if all held."""

    seed: int
    failure: str
    digest: str
    events: int
    counts: dict[str, int]
    story: list[str]


class Run:
    """The nodes of one world and the faults that befall them."""

    def __init__(
        self,
        seed: int,
        parts: Parts | None = None,
        *,
        swarm: Swarm | None = None,
        story: bool = False,
    ) -> None:
        self.seed = seed
        parts = parts or Parts()
        self.swarm = msgspec.structs.replace(swarm or choose(seed), **parts.swarm)
        world = self.world = World(seed, self.swarm, story)
        swarm_ = self.swarm
        self.journals: list[Disk | Stream | CodedJournal] = []
        self.owners: list[Owner] = []
        self._parts = parts
        self._everyone: list[Owner] = []
        self.routes = list(range(swarm_.owners))
        """Journals that take commits, as far as query processors know."""
        self.mapper: Mapper | None = None
        if swarm_.partitioned:
            borders = world.random("borders")
            map_ = first_map(borders, seed, swarm_.owners, SIDS)
            self.mapper = Mapper(world, map_, world.owner_names, SIDS)
            world.mapper = self.mapper.move_at
        for number in range(swarm_.owners):
            self._build_owner(number, Position())
        object_store: list[Store] = []
        self.replicas = [
            Replica(world, number, self.journals, self._everyone, object_store, parts)
            for number in range(swarm_.replicas)
        ]
        self.clients = [
            Client(world, number, self.routes, swarm_.replicas, parts)
            for number in range(swarm_.clients)
        ]
        self.registrar = Registrar(world, self._owner_names, self._opened)

    def _build_owner(self, number: int, born: Position) -> None:
        """A journal with its owners; all its taus exceed that of `born`."""
        world, parts = self.world, self._parts
        journal: Disk | Stream | CodedJournal
        if self.swarm.streams:
            kind = CodedOwner if self.swarm.coded else StreamOwner
            owners: list[Owner] = []
            for name in (f"o{number}", f"o{number}b"):
                owner = kind(world, number, parts, name)
                owner.beginning = born
                owners.append(owner)
            if self.swarm.coded:
                journal = CodedJournal(world, number, self._replica_names(), born)
            else:
                journal = Stream(world, number)
                journal.replicas = self._replica_names()
        else:
            owners = [Owner(world, number, parts)]
            journal = owners[0].disk
        journal.born = journal.beginning = born
        assert number == len(self.journals)
        self.journals.append(journal)
        self.owners.append(owners[0])
        self._everyone += owners
        for one in owners:
            one.replicas = self._replica_names()
            world.owners.setdefault(number, []).append(one.name)
            if self.mapper is not None:
                one.spans = spans_of(self.mapper.map, number)

    def _replica_names(self) -> list[str]:
        return [f"r{number}" for number in range(self.swarm.replicas)]

    def _owner_names(self, number: int) -> list[str]:
        return [owner.name for owner in self._everyone if owner.number == number]

    def _opened(self, number: int, tau: int) -> None:
        """The ADD of a journal is durable: it comes to life, and readers find it."""
        self._build_owner(number, Position(tau=tau))
        for stream in streams_of(self.journals[number]):
            stream.start()
        self.owners[number].start()
        self.routes.append(number)

    def _close_some(self) -> None:
        """A journal other than 0 ends; query processors hear of it sooner or later."""
        random = self.world.random("faults")
        candidates = [number for number in self.routes if number > 0]
        if not candidates or self.world.healed:
            return
        number = random.choice(candidates)
        self.registrar.close(number)
        later = self.world.now + random.randint(0, 500 * MS)
        self.world.at(later, lambda: self.routes.remove(number) if number in self.routes else None)

    def _all_owners(self) -> list[Owner]:
        return self._everyone

    def _streams(self) -> list[Stream]:
        return [stream for one in self.journals for stream in streams_of(one)]

    def go(self) -> Result:
        """Runs both phases and all checks."""
        failure = ""
        counts: dict[str, int] = {}
        try:
            everyone: list[Node] = [*self.owners, *self.replicas, *self.clients]
            everyone.append(self.registrar)
            if self.mapper is not None:
                everyone.append(self.mapper)
            for node in (*self._streams(), *everyone):
                node.start()
            self._plan_faults()
            self.world.run(START + SAFETY_NS)
            self._heal()
            counts = self._check()
        except (SimulationError, AssertionError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        world = self.world
        story = world.story or []
        return Result(
            self.seed, failure, world.digest(), world.events, {**world.counts, **counts}, story
        )

    def _plan_faults(self) -> None:
        world, swarm = self.world, self.swarm
        random = world.random("faults")
        nodes: list[Node] = [*self._all_owners(), *self.replicas, *self.clients]
        if swarm.adds:
            self._plan_changes()
            nodes.append(self.registrar)

        if self.mapper is not None:
            nodes.append(self.mapper)

        def moment() -> int:
            return START + random.randrange(SAFETY_NS)

        for _ in range(swarm.moves):
            assert self.mapper is not None
            world.at(START + self.world.random("moves").randrange(SAFETY_NS), self.mapper.move)
        for _ in range(swarm.crashes):
            node, down = random.choice(nodes), random.randint(MS, 800 * MS)
            world.at(moment(), lambda node=node, down=down: self._crash(node, down))  # type: ignore[misc]
        for _ in range(swarm.pauses):
            node, pause = random.choice(nodes), random.randint(10 * MS, 1500 * MS)
            world.at(moment(), lambda node=node, pause=pause: self._pause(node, pause))  # type: ignore[misc]
        for _ in range(swarm.cuts):
            one, other = random.sample(nodes, 2)
            begin = moment()
            end = begin + random.randint(10 * MS, 1000 * MS)
            world.at(begin, lambda a=one, b=other, end=end: self._cut(a, b, end))  # type: ignore[misc]
        if swarm.streams:
            self._supervise()
            for _ in range(swarm.takeovers):
                world.at(moment(), self._takeover)
            kinds = ("elect", "step_down", "stop_leader", "fail_all")
            faults = world.random("faults/streams")
            for coded in (one for one in self.journals if isinstance(one, CodedJournal)):
                for _ in range(swarm.lost_tails):
                    world.at(moment(), lambda coded=coded: coded.lose_tail(faults))  # type: ignore[misc]
            for _ in range(swarm.elections):
                kind, at = faults.choice(kinds), START + faults.randrange(SAFETY_NS)
                world.at(at, lambda kind=kind: faults.choice(self._streams()).fail(kind))  # type: ignore[misc]
        for _ in range(swarm.checkpoints):
            world.at(moment(), random.choice(self.replicas).checkpoint)
        for _ in range(swarm.rots):
            world.at(moment(), random.choice(self.replicas).rot)
        for _ in range(swarm.clock_steps):
            node = random.choice(nodes)
            world.at(moment(), lambda node=node: self._step_clock(node))  # type: ignore[misc]

    def _plan_changes(self) -> None:
        random = self.world.random("changes")
        moments = sorted(START + random.randrange(SAFETY_NS) for _ in range(self.swarm.adds))
        for number, moment in enumerate(moments, self.swarm.owners):
            self.world.at(moment, lambda number=number: self.registrar.add(number))  # type: ignore[misc]
        for _ in range(self.swarm.closes):
            self.world.at(START + random.randrange(SAFETY_NS), self._close_some)

    def _crash(self, node: Node, down: int) -> None:
        if self.world.healed or not node.alive:
            return
        group = [node]
        if self.swarm.colocated and not isinstance(node, Client):
            group = [*self.owners, *self.replicas]
        for member in group:
            member.crash()
        for member in group:
            self.world.at(self.world.now + down, lambda m=member: None if m.alive else m.start())  # type: ignore[misc]

    def _takeover(self) -> None:
        """The other owner of a journal starts, whatever the present one does."""
        down = [owner for owner in self._all_owners() if not owner.alive]
        if down and not self.world.healed:
            challenger = self.world.random("faults").choice(down)
            for owner in self._all_owners():
                if owner.number == challenger.number and owner.alive:
                    self.world.exercised("take-over", owner)
            challenger.start()

    def _supervise(self) -> None:
        """A journal that nobody owns gets an owner."""
        for one in self.owners:
            pair = [owner for owner in self._all_owners() if owner.number == one.number]
            if not any(owner.alive for owner in pair):
                # After the healing too: late messages of a deposed owner may fence another one.
                pick = one if self.world.healed else self.world.random("faults").choice(pair)
                pick.start()
        self.world.at(self.world.now + 100 * MS, self._supervise)

    def _cut(self, one: Node, other: Node, end: int) -> None:
        """One way, from `one` to `other`."""
        self.world.cut(one.name, other.name, end)
        self.world.exercised("cut", one)

    def _step_clock(self, node: Node) -> None:
        node.clock.step()
        self.world.exercised("clock step", node)

    def _pause(self, node: Node, pause: int) -> None:
        if not self.world.healed:
            node.paused_until = self.world.now + pause
            self.world.trace("pause", node.name, pause)
            self.world.exercised("pause", node)

    def _heal(self) -> None:
        """Everything comes back; what is under way must end."""
        world = self.world
        world.heal()
        for stream in self._streams():
            stream.model.heal()
        for client in self.clients:
            client.stopping = True
        for owner in self._all_owners():
            if self.swarm.streams:
                owner.crash()
        nodes: list[Node] = [*self.owners, *self.replicas, self.registrar]
        if self.mapper is not None:
            nodes.append(self.mapper)
        for node in nodes:
            if not node.alive:
                node.start()
        limit = world.now + LIVENESS_NS
        if not world.run(limit, self._idle):
            raise SimulationError("liveness: transactions do not end after the faults have")
        self._settle(limit)

    def _idle(self) -> bool:
        moving = self.mapper is not None and not self.mapper.idle
        return not moving and self.registrar.idle and all(client.idle for client in self.clients)

    def _settle(self, limit: int) -> None:
        """Every replica becomes complete through now."""
        world = self.world
        tau = world.now + S

        def complete() -> bool:
            behind = [replica for replica in self.replicas if not replica.settled(tau)]
            for replica in behind:
                replica.demand(tau)
            return not behind and self._everybody_serves()

        if not world.run(limit, complete):
            raise SimulationError("liveness: a replica does not become complete")

    def _everybody_serves(self) -> bool:
        """Late messages of deposed owners may fence others after the healing too."""
        if self.mapper is None:
            return True
        serving = {owner.number for owner in self._everyone if owner.serving}
        return len(serving) == len(self.owners)

    def _ranges(self) -> list[tuple[Span, ...]]:
        """What each adjudicator owns in the end."""
        owned = []
        for one in self.owners:
            serving = [o for o in self._everyone if o.number == one.number and o.serving]
            owned.append(max(serving, key=lambda owner: owner.epoch).core_ranges())
        return owned

    def _check(self) -> dict[str, int]:
        log = [txn for client in self.clients for txn in client.log]
        for txn in log:
            # Unknown for good only where outcomes were trimmed with the journal (5.6).
            trimmed = txn.unknown_answers and self.swarm.checkpoints > 0
            if txn.status == "unknown" and not txn.abandoned and not trimmed:
                raise SimulationError(f"liveness: {txn.name!r} never got an outcome")
        partitioned = self.swarm.partitioned
        if self.mapper is not None:
            check_ranges(self._ranges())
        return check_all(
            self.journals,
            self.replicas,
            log,
            real_time=not self.swarm.false_bounds,
            expired=self.world.expired,
            leaders=partitioned,
        )


def streams_of(journal: Disk | Stream | CodedJournal) -> list[Stream]:
    """The shared streams that a journal lies in."""
    if isinstance(journal, CodedJournal):
        return journal.streams
    return [journal] if isinstance(journal, Stream) else []


def run_seed(seed: int, parts: Parts | None = None, *, story: bool = False) -> Result:
    """One run of a seed."""
    return Run(seed, parts, story=story).go()
