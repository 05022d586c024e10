"""Plans the faults of a run and lets them happen: what, when and to whom comes from its swarm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meridian.sim.client import Client
from meridian.sim.gateway import Gateway
from meridian.sim.hosts import Host
from meridian.sim.shard_replica import RangeReplica
from meridian.sim.stream import SharedJournal
from meridian.sim.world import MS, START, Node, S

if TYPE_CHECKING:
    from meridian.sim.fleet import Fleet
    from meridian.sim.run import Run
    from meridian.sim.steering import Steering

LONG_NS = 30 * S
"""As a virtual machine that was frozen."""


class Faults:
    """The faults of one run; nothing of it happens once the world is healed, except supervision."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.world = run.world
        self.swarm = run.swarm

    def plan(self) -> None:
        """Once, at the start of the run."""
        world, swarm = self.world, self.swarm
        random = world.random("faults")
        nodes: list[Node] = [*self._run.everyone, *self._run.replicas, *self._run.clients]
        nodes += self._run.gateways
        if self._run.fleet is not None:
            nodes += [*self._run.fleet.nodes(), *self._run.fleet.living(), *self._run.disturbers]
            self._plan_ranges(self._run.fleet)
        if self._run.steering is not None:
            nodes += self._run.steering.steerers
            self._plan_steered(self._run.fleet, self._run.steering)
        if swarm.adds:
            self._plan_changes()
            nodes.append(self._run.registrar)

        if self._run.mapper is not None:
            nodes.append(self._run.mapper)

        def moment() -> int:
            return START + random.randrange(self.swarm.safety_ns)

        for _ in range(swarm.moves):
            assert self._run.mapper is not None
            world.at(
                START + self.world.random("moves").randrange(self.swarm.safety_ns),
                self._run.mapper.move,
            )
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
            if self._run.steering is None:
                self._supervise()
            for _ in range(swarm.takeovers):
                world.at(moment(), self._takeover)
            kinds = ("elect", "step_down", "stop_leader", "fail_all")
            faults = world.random("faults/streams")
            shared = [one for one in self._run.journals if isinstance(one, SharedJournal)]
            for coded in (one for one in shared if one.coded):
                for _ in range(swarm.lost_tails):
                    world.at(moment(), lambda coded=coded: coded.lose_tail(faults))  # type: ignore[misc]
            for _ in range(swarm.elections):
                kind, at = faults.choice(kinds), START + faults.randrange(self.swarm.safety_ns)
                world.at(at, lambda kind=kind: faults.choice(self._run.streams()).fail(kind))  # type: ignore[misc]
        for _ in range(swarm.checkpoints):
            world.at(moment(), random.choice(self._run.replicas).checkpoint)
        for _ in range(swarm.rots if self._run.fleet is None else 0):
            world.at(moment(), random.choice(self._run.replicas).rot)
        for _ in range(swarm.clock_steps):
            node = random.choice(nodes)
            world.at(moment(), lambda node=node: self._step_clock(node))  # type: ignore[misc]

    def _plan_ranges(self, fleet: Fleet) -> None:
        """What befalls hosts, zones and replicas of ranges."""
        world, swarm = self.world, self.swarm
        random = world.random("faults/ranges")

        def moment() -> int:
            return START + random.randrange(self.swarm.safety_ns)

        for _ in range(swarm.snapshots):
            world.at(moment(), lambda: fleet.some(random, RangeReplica.snapshot))
        for _ in range(swarm.rots):
            world.at(moment(), lambda: fleet.some(random, RangeReplica.rot))
        rotting = world.random("faults/objects")
        for _ in range(swarm.object_rots):
            at = START + rotting.randrange(swarm.safety_ns)
            world.at(at, lambda: fleet.archive.rot(rotting))
        for _ in range(swarm.host_crashes):
            host, down = random.choice(fleet.hosts), random.randint(MS, 2000 * MS)
            world.at(moment(), lambda host=host, down=down: self._crash(host, down))  # type: ignore[misc]
        for _ in range(swarm.zone_cuts):
            ends = [*world.hosts, *(f"zone{zone}" for zone in range(swarm.zones))]
            a, b, end = random.choice(ends), random.choice(ends), moment()
            begin = max(START, end - random.randint(100 * MS, 1500 * MS))
            world.at(begin, lambda a=a, b=b, end=end: world.cut(a, b, end))  # type: ignore[misc]

    def _plan_steered(self, fleet: Fleet | None, steering: Steering) -> None:
        """Hosts that never come back, zones that fail as a whole, pauses of half a minute."""
        assert fleet is not None
        world, swarm = self.world, self.swarm
        random = world.random("faults/steered")

        def moment() -> int:
            return START + random.randrange(swarm.safety_ns)

        for host in random.sample(fleet.hosts, swarm.deaths):
            world.at(moment(), host.lose)
        for _ in range(swarm.zone_crashes):
            zone, down = random.randrange(swarm.zones), random.randint(100 * MS, 3000 * MS)
            world.at(moment(), lambda zone=zone, down=down: self._crash_zone(fleet, zone, down))  # type: ignore[misc]
        for _ in range(swarm.one_way_cuts):
            one, other = random.sample(range(swarm.zones), 2)
            begin = moment()
            end = begin + random.randint(200 * MS, 4000 * MS)
            cut = f"zone{one}", f"zone{other}", end
            world.at(begin, lambda cut=cut: self._cut_zones(fleet, *cut))  # type: ignore[misc]
        for _ in range(swarm.steerer_crashes):
            one_, down = random.choice(steering.steerers), random.randint(MS, 2000 * MS)
            world.at(moment(), lambda one=one_, down=down: self._crash(one, down))  # type: ignore[misc]
        groups: list[list[Node]] = [[one] for one in (*steering.steerers, *self._run.everyone)]
        for _ in range(swarm.long_pauses):
            at = START + random.randrange(max(1, swarm.safety_ns - LONG_NS))
            choice = random.choice([*groups, *fleet.hosts])
            world.at(at, lambda choice=choice: self._pause_all(choice))  # type: ignore[misc]

    def _crash_zone(self, fleet: Fleet, zone: int, down: int) -> None:
        self.world.trace("zone crash", f"zone{zone}", down)
        for host in fleet.hosts:
            if host.zone == zone:
                self._crash(host, down)

    def _cut_zones(self, fleet: Fleet, one: str, other: str, end: int) -> None:
        self.world.cut(one, other, end)
        for host in fleet.hosts:
            if f"zone{host.zone}" == one:
                self.world.exercised("zone cut", host)

    def _pause_all(self, choice: Host | list[Node]) -> None:
        """A process, or a host with all that runs on it, stands still for half a minute."""
        nodes = choice
        if isinstance(choice, Host):
            here = [one for one in choice.fleet.living() if one.host is choice]
            nodes = [choice, *here, *choice.tenants(choice)]
        assert isinstance(nodes, list)
        for node in nodes:
            self._pause(node, LONG_NS)

    def _plan_changes(self) -> None:
        random = self.world.random("changes")
        moments = sorted(
            START + random.randrange(self.swarm.safety_ns) for _ in range(self.swarm.adds)
        )
        for number, moment in enumerate(moments, self.swarm.owners):
            self.world.at(moment, lambda number=number: self._run.registrar.add(number))  # type: ignore[misc]
        for _ in range(self.swarm.closes):
            self.world.at(START + random.randrange(self.swarm.safety_ns), self._close_some)

    def _close_some(self) -> None:
        """A journal other than 0 ends; query processors hear of it sooner or later."""
        random = self.world.random("faults")
        candidates = [number for number in self._run.routes if number > 0]
        if not candidates or self.world.healed:
            return
        number = random.choice(candidates)
        self._run.registrar.close(number)
        later = self.world.now + random.randint(0, 500 * MS)
        self.world.at(
            later, lambda: self._run.routes.remove(number) if number in self._run.routes else None
        )

    def _crash(self, node: Node, down: int) -> None:
        if self.world.healed or not node.alive:
            return
        group = [node]
        if self.swarm.colocated and not isinstance(node, Client | Gateway):
            group = [*self._run.owners, *self._run.replicas]
        machine = self.world.machine
        if machine is not None and len(group) > 1:
            machine.stop()
            self.world.at(self.world.now + down, machine.start)
        for member in group:
            member.crash()
        for member in group:
            self.world.at(self.world.now + down, lambda m=member: None if m.alive else m.start())  # type: ignore[misc]

    def _takeover(self) -> None:
        """The other owner of a journal starts, whatever the present one does."""
        down = [owner for owner in self._run.everyone if not owner.alive]
        if down and not self.world.healed:
            challenger = self.world.random("faults").choice(down)
            for owner in self._run.everyone:
                if owner.number == challenger.number and owner.alive:
                    self.world.exercised("take-over", owner)
            challenger.start()

    def _supervise(self) -> None:
        """A journal that nobody owns gets an owner."""
        for one in self._run.owners:
            pair = [owner for owner in self._run.everyone if owner.number == one.number]
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
