"""Control cores in the world: nodes `k<number>` around `control/core.py` (requirement F3).

They hear reports that may be late or lost, ask the metadata node for the map in force, and order
hosts, the metadata node and the mapper about.  Two at once know nothing of each other; one that
starts again knows nothing at all.  Policies are scaled to the world's seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from meridian.control.core import (
    RETIRE,
    Change,
    Control,
    JournalsInForce,
    MapInForce,
    Policy,
    Reported,
    Tick,
)
from meridian.control.views import (
    Action,
    AddReplica,
    AdjudicatorReport,
    MoveKeys,
    Placed,
    Publish,
    Remove,
    ReplicaReport,
    Report,
    Shrink,
    TakeOver,
)
from meridian.sim.hosts import Host
from meridian.sim.messages import (
    AskJournals,
    AskShards,
    Order,
    Ordered,
    Parts,
    Said,
    TheseJournals,
    TheseShards,
)
from meridian.sim.owner import Owner
from meridian.sim.world import MS, Node, S, SimulationError, World
from meridian.wire.ranges import END, Range, subtract

if TYPE_CHECKING:
    from meridian.sim.run import Run

TICK_NS = 100 * MS
REPORT_NS = 200 * MS
LOOK_NS = 50 * MS
STABLE_NS = 1 * S
"""Nothing may be left to do for so long."""
CHANGE_NS = 1_500 * MS
"""A change of the map, from its reason to fresh reports of what came of it."""


def policy_of(world: World) -> Policy:
    """Of the order of the world's own times: everything happens within seconds."""
    random = world.random("policy")
    split_bytes = random.choice((300, 600, 1500))
    return Policy(
        copies=world.swarm.copies,
        copies_max=world.swarm.copies + 1,
        split_bytes=split_bytes,
        split_ops_per_s=random.choice((40, 1_000)),
        merge_bytes=split_bytes // random.choice((2, 4)),
        merge_ops_per_s=random.choice((20, 100)),
        read_heavy_per_s=random.choice((1, 4, 1_000)),
        move_commits_per_s=random.choice((1, 4)),
        sustain=2,
        changes=random.choice((1, 2, 3)),
        fresh_ns=1_000 * MS,
        dead_ns=2_000 * MS,
        owner_ns=1_000 * MS,
        build_ns=3_000 * MS,
        build_max_ns=24_000 * MS,
        order_ns=800 * MS,
        pause_ns=500 * MS,
    )


class Steerer(Node):
    """One control core; it forgets everything when it crashes."""

    def __init__(self, world: World, number: int, steering: Steering) -> None:
        super().__init__(world, f"k{number}")
        self._steering = steering
        self.core: Control | None = None
        self._hosts: dict[int, int] = {}
        """Where replicas are, as far as was heard."""
        self._heard: dict[int, int] = {}
        """When owners of journals reported, as far as was heard."""
        self._told: list[Change] = []
        """Changes whose map came into force, counted once."""
        world.controllers.append(self.name)

    @property
    def idle(self) -> bool:
        """No change is under way."""
        return self.core is not None and not self.core.changes

    def states(self) -> list[str]:
        """How far its changes are."""
        phases = {"build": "building", "publish": "publishing", "retire": "retiring"}
        changes = self.core.changes if self.core is not None else []
        return list(dict.fromkeys(phases[one.phase] for one in changes)) or ["watching"]

    def on_start(self) -> None:
        """Knows nothing; what it had begun is left as it was."""
        number = self._steering.next_number()
        self.core = self._steering.parts.control(self._steering.policy, number)
        self._hosts, self._heard, self._told = {}, {}, []
        self._tick()

    def _tick(self) -> None:
        assert self.core is not None
        self._send("p", AskShards(0, in_force=True))
        self._send("m", AskJournals())
        for action in self.core.step(self.clock.now(), Tick()):
            self._perform(action)
        self.core.check()
        self._count()
        # Two that tick in step would order the same take-overs at once, again and again.
        jitter = self.world.random(f"ticks/{self.name}").randint(0, TICK_NS // 2)
        self.after(TICK_NS // 2 + jitter, self._tick)

    def receive(self, source: str, message: Any) -> None:
        """Reports, maps, journals; answers to orders change nothing that reports do not show."""
        now = self.clock.now()
        assert self.core is not None
        match message:
            case Said(report=report):
                if isinstance(report, ReplicaReport):
                    self._hosts[report.replica] = report.host
                elif isinstance(report, AdjudicatorReport):
                    before = self._heard.get(report.adjudicator, 0)
                    self._heard[report.adjudicator] = max(before, report.at)
                self.core.step(now, Reported(report))
            case TheseShards(map=map_):
                shards = tuple(Placed(one.lo, one.hi, one.replicas) for one in map_.shards)
                self.core.step(now, MapInForce(map_.version, shards))
                self._count()
            case TheseJournals():
                self.core.step(now, JournalsInForce(message.journals, message.ended))
            case Ordered(ok=False):
                self.world.count("order refused")

    def _count(self) -> None:
        """Changes of the map that are in force, by kind."""
        assert self.core is not None
        for change in self.core.changes:
            if change.phase == RETIRE and not any(change is one for one in self._told):
                self._told.append(change)
                self.world.trace(f"steered {change.kind}", self.name, change.reason)

    def _perform(self, action: Action) -> None:
        """An order to whoever performs it; it may be lost."""
        self._steering.check(action, self._heard)
        kind = type(action).__name__
        self.world.trace("action", self.name, kind, *_about(action), action.reason)
        match action:
            case AddReplica() | TakeOver():
                if isinstance(action, AddReplica):
                    self._hosts.setdefault(action.replica, action.host)
                self._send(f"h{action.host}", Order(action))
            case Shrink() | Remove():
                if action.replica in self._hosts:
                    self._send(f"h{self._hosts[action.replica]}", Order(action))
            case Publish():
                self._send("p", Order(action))
            case MoveKeys():
                if "d" in self.world.nodes:
                    self._send("d", Order(action))

    def _send(self, target: str, message: Any) -> None:
        self.world.send(self.name, target, message)


def _about(action: Action) -> tuple[object, ...]:
    match action:
        case AddReplica():
            return action.replica, action.host, action.lo, action.hi
        case Shrink():
            return action.replica, action.lo, action.hi, action.map_version
        case Remove():
            return action.replica, action.map_version
        case Publish():
            return action.version, len(action.shards)
        case TakeOver():
            return action.adjudicator, action.host
        case MoveKeys():
            return action.source, action.target, action.at


class Steering:
    """The control cores of one run, and what they need of the rest of it."""

    def __init__(self, run: Run, parts: Parts) -> None:
        assert run.fleet is not None
        self.run = run
        self.parts = parts
        self.fleet = run.fleet
        self.world = run.world
        self.policy = policy_of(run.world)
        self.steerers = [
            Steerer(run.world, number, self) for number in range(run.swarm.controllers)
        ]
        self._numbers = 0
        self._homes: dict[str, Host] = {}
        """Hosts of owners whose journals lie elsewhere."""
        self._stable_since: int | None = None
        self._looked = 0
        self._truth: dict[int, tuple[int, ReplicaReport]] = {}
        """Per replica, when it said last that it is complete, and what it has held since."""
        self._mapped: dict[int, None] = {}
        """Replicas that some map in force named."""
        self.why = "nobody looked"
        """What was left to do when somebody looked last."""
        for host in self.fleet.hosts:
            host.tenants = self._tenants
            host.take_over = self._take_over
            host.said = self._said
        for zone, one in enumerate(self.steerers):
            run.world.located[one.name] = (f"zone{zone % run.swarm.zones}",)

    def next_number(self) -> int:
        """Every start of a control core has its own."""
        self._numbers += 1
        assert self._numbers < 256
        return self._numbers - 1

    # Owners

    def settle_in(self, owner: Owner) -> None:
        """A new owner process gets a host, and reports from there."""
        hosts = self.fleet.hosts
        if self.run.swarm.streams:
            standby = owner.name.endswith("b")
            self._move_in(owner, hosts[(owner.number + standby) % len(hosts)])
        self._report(owner)

    def _move_in(self, owner: Owner, host: Host) -> None:
        self._homes[owner.name] = host
        self.world.located[owner.name] = (host.name, f"zone{host.zone}")

    def _tenants(self, host: Host) -> list[Node]:
        """Owners on a host: its end is theirs."""
        return [one for one in self.run.everyone if self._homes.get(one.name) is host]

    def _report(self, owner: Owner) -> None:
        """Every now and then, from its SEAL on: one that will serve soon is not taken over."""
        if owner.alive and owner.sealed and owner.paused_until <= self.world.now:
            now = owner.clock.now().earliest
            host = self._homes.get(owner.name, self.fleet.hosts[0])
            report = AdjudicatorReport(
                owner.number, host.number, now, owner.heat.per_s(now),
                owner.heat.middle(owner.core_ranges()),
            )  # fmt: skip
            for name in self.world.controllers:
                self.world.send(owner.name, name, Said(report))
        self.world.at(self.world.now + REPORT_NS, lambda: self._report(owner))

    def _take_over(self, host: Host, action: TakeOver) -> bool:
        """The host starts an owner, whatever the present one does; False: it cannot."""
        journal = action.adjudicator
        free = [one for one in self.run.everyone if one.number == journal and not one.alive]
        if not self.run.swarm.streams or not free:
            # A file belongs to one disk; two processes at once are enough to fence each other.
            return False
        for owner in self.run.everyone:
            if owner.number == journal and owner.alive:
                self.world.exercised("take-over", owner)
        self._move_in(free[0], host)
        free[0].start()
        self.world.trace("steered take-over", host.name, journal, action.reason)
        return True

    # What orders may say

    def _said(self, report: Report) -> None:
        if not isinstance(report, ReplicaReport):
            return
        if report.complete:
            self._truth[report.replica] = self.world.now, report
        elif report.replica in self._truth:
            # It may have shrunk before it fell behind, and holds what it says now.
            at, before = self._truth[report.replica]
            held = msgspec.structs.replace(before, lo=report.lo, hi=report.hi)
            self._truth[report.replica] = at, held

    def check(self, action: Action, heard: dict[int, int]) -> None:
        """Raises SimulationError if an order has no reason, or would take what nobody else has.

        `heard`: when the control core heard the owners of journals last.  Where clocks leave their
        bounds "just now" may be long ago.
        """
        if not action.reason:
            raise SimulationError(f"control: no reason for {action}")
        match action:
            case Publish():
                borders = [b"", *(hi for _, hi, _ in action.shards)]
                starts = [lo for lo, _, _ in action.shards]
                if borders != [*starts, END] or not all(of for _, _, of in action.shards):
                    raise SimulationError(f"control: a map with a hole: {action.shards}")
            case TakeOver() if not self.world.swarm.false_bounds:
                if heard.get(action.adjudicator, 0) > self.world.now - self.policy.owner_ns // 2:
                    raise SimulationError(f"control: {action.adjudicator} is not silent")
            case Shrink() | Remove() if not self.world.swarm.false_bounds:
                self._check_reduction(action)
            case _:
                pass

    def _check_reduction(self, action: Shrink | Remove) -> None:
        """What a replica of a map gives up, others served as of just now."""
        map_ = self.fleet.placement.map
        for shard in map_.shards:
            self._mapped.update(dict.fromkeys(shard.replicas))
        held = self._truth.get(action.replica)
        if action.replica not in self._mapped or held is None or action.map_version != map_.version:
            # Never needed, or the host will refuse it.
            return
        left = [held[1].range]
        if isinstance(action, Shrink):
            left = subtract(left, Range(action.lo, action.hi))
        slack = self.policy.fresh_ns + 2 * self.world.swarm.clock_error + 200 * MS
        for shard in map_.shards:
            given = [part for part in left if part.meets(shard.range)]
            if given and action.replica in shard.replicas:
                raise SimulationError(f"control: the map says that r{action.replica} has {given}")
            others = [
                report.range.covers(shard.range)
                for number in shard.replicas
                for at, report in [self._truth.get(number, (0, None))]
                if report is not None and at >= self.world.now - slack
            ]
            if given and not any(others):
                raise SimulationError(f"control: nobody else serves {given}")

    # After the faults

    def patience_ns(self) -> int:
        """What may still have to be done takes so long where it is done one by one.

        Every shard may need another copy and a merge; what is there may need to be split down to
        half of the size that is split.
        """
        living = self.fleet.living()
        keys = {key for one in living for store in one.stores for key in store.versions}
        splits = 2 * sum(len(name) + 16 for _, name in keys) // self.policy.split_bytes
        return (splits + 2 * len(self.fleet.placement.map.shards)) * CHANGE_NS

    def done(self) -> bool:
        """Nothing is left to do, for a while; looked at now and then only."""
        now = self.world.now
        if now >= self._looked + LOOK_NS:
            self._looked = now
            self.why = self._missing()
            if self.why:
                self._stable_since = None
            elif self._stable_since is None:
                self._stable_since = now
        return self._stable_since is not None and now >= self._stable_since + STABLE_NS

    def _missing(self) -> str:
        """What is not as it should be; empty: nothing."""
        fleet, run = self.fleet, self.run
        tau = self.world.now - 500 * MS
        living = [host for host in fleet.hosts if not host.lost]
        wanted = min(self.policy.copies, len(living))
        named: dict[int, None] = {}
        for shard in fleet.placement.map.shards:
            named.update(dict.fromkeys(shard.replicas))
            copies = [fleet.replicas[one] for one in shard.replicas]
            bad = [one for one in copies if not (one.alive and one.can_serve(shard.range, tau))]
            if bad or len({one.host.number for one in copies}) < wanted:
                return f"copies of {shard.lo!r}: {[one.name for one in copies]}, bad {len(bad)}"
            wide = [one.name for one in copies if one.part != shard.range]
            if wide:
                return f"wider than their shard: {wide}"
        orphans = [one.name for one in fleet.living() if one.number not in named]
        if orphans:
            return f"orphans {orphans}"
        busy = [one.name for one in self.steerers if not one.idle]
        if busy:
            return f"changes under way at {busy}"
        if run.mapper is not None and not run.mapper.idle:
            return "a range moves"
        serving = {one.number for one in run.everyone if one.serving and one.alive}
        missing = [one.number for one in run.owners if one.number not in serving]
        return f"no owner of journals {missing}" if missing else ""
