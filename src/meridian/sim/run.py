"""One run: build the world, let things fail, heal it, require progress, check everything."""

from __future__ import annotations

import msgspec

from meridian.journal.core import Position
from meridian.sim.checkers import check_all, check_ranges
from meridian.sim.client import Client
from meridian.sim.coded import CodedOwner
from meridian.sim.disk import Disk
from meridian.sim.faults import Faults
from meridian.sim.fleet import Fleet
from meridian.sim.gateway import Gateway
from meridian.sim.mapper import Mapper, first_map, spans_of
from meridian.sim.membership import Registrar
from meridian.sim.messages import Parts
from meridian.sim.orders import Disturber
from meridian.sim.owner import Owner
from meridian.sim.plans import SIDS
from meridian.sim.prober import Prober
from meridian.sim.replica import Replica
from meridian.sim.shared import StreamOwner
from meridian.sim.steering import Steerer, Steering
from meridian.sim.store import Store
from meridian.sim.stream import SharedJournal, Stream
from meridian.sim.swarm import Swarm, choose
from meridian.sim.world import START, Node, S, SimulationError, World
from meridian.sim.writes import Writes
from meridian.wire.partition import Span

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
        writes: Writes | None = None,
    ) -> None:
        self.seed = seed
        parts = parts or Parts()
        self.swarm = msgspec.structs.replace(swarm or choose(seed), **parts.swarm)
        world = self.world = World(seed, self.swarm, story, writes)
        swarm_ = self.swarm
        if swarm_.machine and swarm_.colocated:
            world.machine = parts.machine(world)
        self.journals: list[Disk | SharedJournal] = []
        self.owners: list[Owner] = []
        self._parts = parts
        self.everyone: list[Owner] = []
        """All owners; two per journal where journals are streams."""
        self.routes = list(range(swarm_.owners))
        """Journals that take commits, as far as query processors know."""
        self.mapper: Mapper | None = None
        if swarm_.partitioned:
            borders = world.random("borders")
            map_ = first_map(borders, seed, swarm_.owners, SIDS)
            self.mapper = Mapper(world, map_, world.owner_names, SIDS, self.routes)
            world.mapper = self.mapper.move_at
        self.fleet: Fleet | None = None
        """Storage in ranges, if this run has it."""
        self.disturbers: list[Disturber] = []
        if swarm_.sharded:
            self.fleet = Fleet(world, self.journals, self.everyone, parts)
            self.disturbers = [
                Disturber(world, number, self.fleet) for number in range(swarm_.disturbers)
            ]
        self.steering: Steering | None = None
        """Who keeps storage and owners in shape, if somebody does."""
        if swarm_.controllers:
            self.steering = Steering(self, parts)
        for number in range(swarm_.owners):
            self._build_owner(number, Position())
        object_store: list[Store] = []
        whole = 0 if swarm_.sharded else swarm_.replicas
        self.replicas = [
            Replica(world, number, self.journals, self.everyone, object_store, parts)
            for number in range(whole)
        ]
        self.clients = [
            Client(world, number, self.routes, swarm_.replicas, parts)
            for number in range(swarm_.clients)
        ]
        self.gateways = [Gateway(world, number) for number in range(swarm_.gateways)]
        self.prober: Prober | None = None
        self.registrar = Registrar(world, self._owner_names, self._opened, self.mapper, self.routes)
        self.faults = Faults(self)

    def _build_owner(self, number: int, born: Position) -> None:
        """A journal with its owners; all its taus exceed that of `born`."""
        world, parts = self.world, self._parts
        journal: Disk | SharedJournal
        if self.swarm.streams:
            coded = self.swarm.coded
            shared = SharedJournal(world, number, self._replica_names(), born, coded=coded)
            kind = CodedOwner if coded else StreamOwner
            names = (f"o{number}", f"o{number}b")
            owners: list[Owner] = [kind(world, number, parts, name, shared) for name in names]
            journal = shared
        else:
            owners = [Owner(world, number, parts)]
            journal = owners[0].disk
            journal.born = journal.beginning = born
        assert number == len(self.journals)
        self.journals.append(journal)
        self.owners.append(owners[0])
        self.everyone += owners
        for one in owners:
            one.replicas = self._replica_names()
            world.owners.setdefault(number, []).append(one.name)
            if self.mapper is not None:
                one.spans = spans_of(self.mapper.map, number)
            if self.steering is not None:
                self.steering.settle_in(one)

    def _replica_names(self) -> list[str]:
        if self.fleet is not None:
            return self.fleet.names
        return [f"r{number}" for number in range(self.swarm.replicas)]

    def _owner_names(self, number: int) -> list[str]:
        return [owner.name for owner in self.everyone if owner.number == number]

    def _opened(self, number: int, tau: int) -> None:
        """The ADD of a journal is durable: it comes to life, and readers find it."""
        self._build_owner(number, Position(tau=tau))
        for stream in streams_of(self.journals[number]):
            stream.start()
        self.owners[number].start()
        self.routes.append(number)

    def _steerers(self) -> list[Steerer]:
        return self.steering.steerers if self.steering is not None else []

    def streams(self) -> list[Stream]:
        """All shared streams that journals lie in."""
        return [stream for one in self.journals for stream in streams_of(one)]

    def go(self) -> Result:
        """Runs both phases and all checks."""
        failure = ""
        counts: dict[str, int] = {}
        try:
            nodes: list[Node] = [*self.owners, *self.replicas, *self.gateways, *self.clients]
            nodes.append(self.registrar)
            if self.mapper is not None:
                nodes.append(self.mapper)
            if self.fleet is not None:
                nodes = [*self.fleet.nodes(), *self.disturbers, *nodes, *self._steerers()]
            for node in (*self.streams(), *nodes):
                node.start()
            self.faults.plan()
            self.world.run(START + self.swarm.safety_ns)
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

    def _heal(self) -> None:
        """Everything comes back; what is under way must end."""
        world = self.world
        world.heal()
        for stream in self.streams():
            stream.model.heal()
        for client in self.clients:
            client.stopping = True
        nodes: list[Node] = [*self.owners, *self.replicas, self.registrar]
        if self.swarm.streams and self.steering is not None:
            # It is for control cores to see that every journal has an owner.
            nodes = nodes[len(self.owners) :]
        elif self.swarm.streams:
            for owner in self.everyone:
                owner.crash()
        nodes += self.gateways
        if self.mapper is not None:
            nodes.append(self.mapper)
        if self.fleet is not None:
            nodes += [*self.fleet.nodes(), *self.disturbers, *self.fleet.living()]
        nodes += self._steerers()
        if world.machine is not None:
            world.machine.start()
        for node in nodes:
            if not node.alive:
                node.start()
        limit = world.now + LIVENESS_NS
        if not world.run(limit, self._idle):
            raise SimulationError("liveness: transactions do not end after the faults have")
        self._settle(limit)

    def _idle(self) -> bool:
        moving = self.mapper is not None and not self.mapper.idle
        moving = moving or not all(one.idle for one in self.disturbers)
        return not moving and self.registrar.idle and all(client.idle for client in self.clients)

    def _settle(self, limit: int) -> None:
        """Every replica becomes complete through now, and through every durable commit.

        Owners that crash again and again assign taus seconds ahead: above the leases before them.
        """
        world = self.world
        if self.steering is not None:
            patience_ns = self.steering.patience_ns()
            limit += patience_ns
            # What takes longer may take more events, too.
            world.allow_events(patience_ns)
            if not world.run(limit, self.steering.done):
                raise SimulationError(f"liveness: control: {self.steering.why}")
        tau = world.now + S

        def complete() -> bool:
            nonlocal tau
            replicas = self.replicas if self.fleet is None else self.fleet.living()
            behind = [replica for replica in replicas if not replica.settled(tau)]
            for replica in behind:
                replica.demand(tau)
            if behind or not self._everybody_serves():
                return False
            newest = max(record.tau for one in self.journals for record in one.history())
            done, tau = newest <= tau, max(tau, newest)
            return done

        if not world.run(limit, complete):
            raise SimulationError("liveness: a replica does not become complete")
        if self.fleet is not None:
            self._probe(self.fleet, tau, limit)

    def _probe(self, fleet: Fleet, tau: int, limit: int) -> None:
        """Somebody serves every place, and who asks for everything gets it."""
        if fleet.uncovered(tau):
            raise SimulationError(f"liveness: nobody serves {fleet.uncovered(tau)}")
        # Owners that crash again and again assign taus ahead of the clock, and a copy that comes
        # from a snapshot through one of them may hold nothing older: until the clock has passed
        # its base, reads of the present are rightly refused.
        if not self.world.run(limit, lambda: fleet.newest_base() < self.world.now):
            raise SimulationError("liveness: copies hold nothing as old as the present")
        prober = self.prober = Prober(self.world, self._parts)
        prober.start()

        def over() -> bool:
            return prober.scan is not None and self._everybody_serves()

        if not self.world.run(limit + LIVENESS_NS, over):
            raise SimulationError("liveness: not everything can be read")

    def _everybody_serves(self) -> bool:
        """Late messages of deposed owners may fence others after the healing too."""
        if self.mapper is None:
            return True
        serving = {owner.number for owner in self.everyone if owner.serving}
        return len(serving) == len(self.owners)

    def _ranges(self) -> list[tuple[Span, ...]]:
        """What each adjudicator owns in the end."""
        owned = []
        for one in self.owners:
            serving = [o for o in self.everyone if o.number == one.number and o.serving]
            owned.append(max(serving, key=lambda owner: owner.epoch).core_ranges())
        return owned

    def _check(self) -> dict[str, int]:
        log = [txn for client in self.clients for txn in client.log]
        for txn in log:
            # Unknown for good only where outcomes were trimmed with the journal (5.6).
            trims = self.swarm.checkpoints + self.swarm.snapshots > 0
            trimmed = txn.unknown_answers and trims
            if txn.status == "unknown" and not txn.abandoned and not trimmed:
                raise SimulationError(f"liveness: {txn.name!r} never got an outcome")
        partitioned = self.swarm.partitioned
        if self.mapper is not None:
            check_ranges(self._ranges())
        ranged = () if self.fleet is None else self.fleet.living()
        probe = () if self.prober is None else (self.prober.scan,)
        return check_all(
            self.journals,
            self.replicas,
            log,
            ranged=ranged,
            probes=[scan for scan in probe if scan is not None],
            real_time=not self.swarm.false_bounds,
            expired=self.world.expired,
            leaders=partitioned,
        )


def streams_of(journal: Disk | SharedJournal) -> list[Stream]:
    """The shared streams that a journal lies in."""
    return journal.streams if isinstance(journal, SharedJournal) else []


def run_seed(
    seed: int, parts: Parts | None = None, *, story: bool = False, writes: Writes | None = None
) -> Result:
    """One run of a seed."""
    return Run(seed, parts, story=story, writes=writes).go()
