"""The deterministic world: time, nodes, clocks, network (docs of the idea: sim/README.md).

Everything that happens comes off one heap of (time, seq, action).  Each concern draws from its own
seeded generator, so that a draw more in one does not shift the others.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from meridian.clock.tau import Interval
from meridian.sim.cwrites import default_writes
from meridian.sim.swarm import Swarm
from meridian.sim.writes import Writes

if TYPE_CHECKING:
    from meridian.sim.machine import Machine

MS = 1_000_000
S = 1_000 * MS
START = 1_700_000_000 * S
EVENTS_MAX = 400_000
"""More events than five seconds of failing need: something runs in circles."""

Action = Callable[[], None]


class SimulationError(Exception):
    """A run broke a promise; the message says which and how."""


class Clock:
    """A node's clock: an interval that holds true time, unless the swarm makes its bounds false."""

    def __init__(self, world: World, error: int, random: Random) -> None:
        self._world = world
        self._error = error
        self._random = random
        self._offset = random.randint(-error, error) if error else 0
        self._last = Interval(0, 0)
        self._last_true = 0

    def now(self) -> Interval:
        """The reading; both edges never go back.

        After a step back they go on at half the rate, as those of the real clock do: one that stood
        still would have timers that are almost due fire without end.
        """
        true = self._world.now
        reading = true + self._offset
        carried = (true - self._last_true) // 2 if self._last_true else 0
        self._last_true = true
        earliest, latest = self._last
        self._last = Interval(
            max(reading - self._error, earliest + carried),
            max(reading + self._error, latest + carried),
        )
        return self._last

    def step(self) -> None:
        """The clock's offset changes: a drift, or a step by the time service."""
        bound = self._error
        if self._world.swarm.false_bounds:
            bound = 20 * self._error + 5 * MS
        self._offset = self._random.randint(-bound, bound) if bound else 0

    def observe(self, tau: int) -> None:
        """A clock with bounds needs no journal to tell it the time."""

    def heal(self) -> None:
        """Its bounds hold again, once it is no longer ahead of them."""
        if self._world.swarm.false_bounds:
            self._offset = self._random.randint(-self._error, self._error)


class Node:
    """A process: alive or not; timers of an earlier incarnation never fire."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = False
        self.incarnation = 0
        self.paused_until = 0
        self.clock: Clock | Machine = (
            world.machine.of(self)
            if world.machine is not None
            else Clock(world, world.swarm.clock_error, world.random("clock/" + name))
        )
        world.nodes[name] = self

    def start(self) -> None:
        """Comes up with what its disk holds."""
        assert not self.alive
        self.alive = True
        self.incarnation += 1
        self.on_start()

    def crash(self) -> None:
        """Loses everything but its disk."""
        if self.alive:
            self.world.trace("crash", self.name)
            self.world.exercised("crash", self)
            self.alive = False
            self.on_crash()

    def after(self, delay: int, action: Action) -> None:
        """Runs `action` unless this incarnation has ended by then."""
        incarnation = self.incarnation
        world = self.world

        def fire() -> None:
            if not self.alive or self.incarnation != incarnation:
                return
            if self.paused_until > world.now:
                world.at(self.paused_until, fire)
                return
            action()

        world.at(world.now + max(delay, 0), fire)

    def on_start(self) -> None:
        """For subclasses."""

    def on_crash(self) -> None:
        """For subclasses."""

    def states(self) -> list[str]:
        """What it is in the middle of, for the table of what was exercised."""
        return ["idle"]

    def receive(self, source: str, message: Any) -> None:
        """For subclasses."""
        raise NotImplementedError


class World:
    """One run from one seed."""

    def __init__(
        self, seed: int, swarm: Swarm, keep_trace: bool = False, writes: Writes | None = None
    ) -> None:
        self.seed = seed
        self.swarm = swarm
        self.now = START
        self.writes = writes or default_writes()[0]
        """The write buffer of the query processor whose statements run."""
        self.nodes: dict[str, Node] = {}
        self.events = 0
        self.healed = False
        self.story: list[str] | None = [] if keep_trace else None
        self.counts: dict[str, int] = {}
        self.machine: Machine | None = None
        """The clock of all nodes, where they share one."""
        self.using: dict[bytes, tuple[int, ...]] = {}
        """Relations that a transaction writes or locks, once it commits."""
        self.voted: dict[bytes, None] = {}
        """Transactions that asked others than their leader for votes."""
        self.expired: dict[bytes, list[int]] = {}
        """Promises that ended without a verdict: the taus by transaction id."""
        self.owners: dict[int, list[str]] = {}
        """Who may be adjudicator number n."""
        self.controllers: list[str] = []
        """Nodes that hosts report to."""
        self.hosts: list[str] = []
        """Nodes that take replicas; none: replicas stand alone and hold everything."""
        self.located: dict[str, tuple[str, ...]] = {}
        """Where a node is: its host and zone, which may be cut off as a whole."""
        self.mapper: Callable[[tuple[int, bytes]], None] | None = None
        """Moves the range around a key."""
        self._seq = 0
        self._events_max = 0
        self.allow_events(swarm.safety_ns)
        self._heap: list[tuple[int, int, Action]] = []
        self._hash = hashlib.blake2b(digest_size=8)
        self._randoms: dict[str, Random] = {}
        self._network = self.random("network")
        self._cuts: dict[tuple[str, str], int] = {}
        self._cut_until = 0

    def random(self, concern: str) -> Random:
        """The generator of a concern; the same one for the same name."""
        if concern not in self._randoms:
            self._randoms[concern] = Random(f"{self.seed}/{concern}")
        return self._randoms[concern]

    def trace(self, what: str, node: str, *details: object) -> None:
        """What happened goes into the hash of the run, and into the story if one is kept."""
        line = f"{self.now - START} {node} {what} {details}"
        self._hash.update(line.encode())
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.story is not None:
            self.story.append(line)

    def count(self, what: str) -> None:
        """One more of these, without a line in the story."""
        self.count_more(what, 1)

    def count_more(self, what: str, more: int) -> None:
        """So many more of these."""
        self.counts[what] = self.counts.get(what, 0) + more

    def exercised(self, fault: str, node: Node) -> None:
        """A fault befell a node in these states."""
        if not self.healed:
            for state in node.states():
                self.count(f"{fault} x {state}")

    def owner_names(self, number: int) -> list[str]:
        """The nodes that may be adjudicator `number`."""
        return self.owners.get(number, [])

    def allow_events(self, duration_ns: int) -> None:
        """So much time may bring EVENTS_MAX for each 5 s that were begun."""
        self._events_max += EVENTS_MAX * -(-duration_ns // (5 * S))

    def digest(self) -> str:
        """Hash of everything traced so far."""
        return self._hash.copy().hexdigest()

    def at(self, time: int, action: Action) -> None:
        """Runs `action` at `time`."""
        self._seq += 1
        heapq.heappush(self._heap, (time, self._seq, action))

    def run(self, until: int, done: Callable[[], bool] | None = None) -> bool:
        """Runs to `until` or until `done`; False: time was up before `done`."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            if done is not None and done():
                return True
            time, _, action = heapq.heappop(heap)
            self.now = max(self.now, time)
            self.events += 1
            if self.events > self._events_max:
                raise SimulationError("too many events: something runs in circles")
            action()
        self.now = until if done is None else self.now
        return done is None or done()

    # Network

    def cut(self, source: str, target: str, until: int) -> None:
        """Nothing gets from source to target until then (one way); hosts and zones too."""
        self._cuts[source, target] = until
        self._cut_until = max(self._cut_until, until)

    def _is_cut(self, source: str, target: str) -> bool:
        if self._cut_until <= self.now:
            return False
        ends = [(one, *self.located.get(one, ())) for one in (source, target)]
        return any(self._cuts.get((a, b), 0) > self.now for a in ends[0] for b in ends[1])

    def send(self, source: str, target: str, message: Any) -> None:
        """May be lost, doubled, late, and overtaken by others."""
        random, swarm = self._network, self.swarm
        deliver = partial(self._deliver, source, target, message)
        if swarm.colocated and not (source[0] == "q" or target[0] == "q"):
            self.at(self.now + 1_000, deliver)
            return
        if self.healed:
            self.at(self.now + random.randint(*swarm.delay), deliver)
            return
        if self._is_cut(source, target) or random.random() < swarm.drop:
            self.count("dropped")
            return
        for _ in range(1 + (random.random() < swarm.double)):
            delay = random.randint(*swarm.delay)
            if random.random() < swarm.late:
                delay = random.randint(*swarm.late_delay)
            self.at(self.now + delay, deliver)

    def _deliver(self, source: str, target: str, message: Any) -> None:
        node = self.nodes[target]
        if not node.alive:
            return
        if node.paused_until > self.now:
            self.at(node.paused_until, partial(self._deliver, source, target, message))
            return
        node.receive(source, message)

    def heal(self) -> None:
        """From here on nothing fails."""
        self.healed = True
        self._cuts.clear()
        self._cut_until = 0
        for node in self.nodes.values():
            node.paused_until = 0
            # Owners whose clocks differ by more than a promise lasts never agree on a tau (5.3).
            node.clock.heal()
