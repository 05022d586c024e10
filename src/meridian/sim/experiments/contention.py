"""One hot row and many clients: how much gets done, and does everybody's turn come?

The cores of the data plane decide; clients read the row, think, write it, commit, and after 40001
run again. What they do between two attempts is the policy. Time is virtual, nothing fails.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import msgspec

from meridian.sim.client import Client
from meridian.sim.experiments.report import Figure, Report
from meridian.sim.messages import Key, Parts
from meridian.sim.plans import CATALOG, CHUNK_BYTES, SID_FIRST, WriteSet
from meridian.sim.run import Run
from meridian.sim.swarm import choose
from meridian.sim.world import MS, SimulationError, World

POLICIES = ("at once", "exponential", "by age")
CLIENTS = (4, 16)
THINK_NS = (4 * MS, 8 * MS)
"""Between read and COMMIT; the slowest client takes twice as long as the fastest."""
WON = 2.0
LOST = 0.3
SHARE = 0.7
"""By age: pauses as shares of one round, the time of an attempt for every client."""
CALM: dict[str, object] = {
    "owners": 1, "replicas": 1, "clients": 0, "colocated": False, "streams": False,
    "coded": False, "clock_error": 20_000, "false_bounds": False, "eager": 0.0, "drop": 0.0,
    "double": 0.0, "late": 0.0, "delay": (50_000, 150_000), "sync": (200_000, 400_000),
    "slow_sync": 0.0, "sync_failure": 0.0, "crash_at_append": 0.0, "crashes": 0, "pauses": 0,
    "cuts": 0, "clock_steps": 0, "checkpoints": 0, "adds": 0, "closes": 0, "rots": 0,
    "partitioned": False, "moves": 0, "moves_at_votes": 0.0, "crash_at_vote": 0.0,
    "window_keys": 1 << 20, "gates": 0.0, "machine": False, "in_flight": 8192, "keys": 3,
}  # fmt: skip

Wait = Generator[tuple[int, object], Any, Any]


class HotPlan:
    """Read the hot row, write it; with `wide` a row of the own in another relation, too."""

    kind = "update"
    sid = SID_FIRST
    chunk_bytes = CHUNK_BYTES

    def __init__(self, client: str, wide: bool) -> None:
        self.targets: list[Key] = [(SID_FIRST, b"hot")]
        if wide:
            self.targets.append((SID_FIRST + 1, client.encode()))
        self.reads = [*self.targets, CATALOG]

    def write_set(self, name: bytes, seen: dict[Key, bytes | None]) -> WriteSet:
        """Every row gets the transaction's name."""
        out = WriteSet()
        out.rows = dict.fromkeys(self.targets, name)
        return out


class HotClient(Client):
    """Tries until it has won, then once more from the start."""

    def __init__(self, world: World, number: int, parts: Parts, clients: int, policy: str) -> None:
        super().__init__(world, number, [0], 1, parts)
        self.policy = policy
        self._clients = clients
        low, high = THINK_NS
        share = number / max(clients - 1, 1)
        self.think_ns = (int(low + (high - low) * share),) * 2
        self.losses = 0
        self.worst = 0
        self.wins = 0
        self._attempt_ns = high
        self._pauses = world.random(f"pauses/{number}")

    def pause_ns(self) -> int:
        """How long to wait before the next attempt."""
        if self.policy == "at once":
            return 0
        if self.policy == "exponential":
            return int(self._pauses.uniform(0, self._attempt_ns * min(2**self.losses, 32)))
        # Who has just won gives way for a round or two, and who has lost often waits least.
        share = LOST * SHARE**self.losses if self.losses else WON
        return int(self._pauses.uniform(0, share * self._clients * self._attempt_ns))

    def _work(self) -> Wait:
        plan: Any = HotPlan(self.name, self.world.swarm.partitioned)
        while not self.stopping:
            yield self.pause_ns(), None
            began = self.world.now
            yield from self._transaction(plan, 0)
            self._attempt_ns += (self.world.now - began - self._attempt_ns) // 8
            won = self.log[-1].status == "committed"
            self.wins += won
            self.losses = 0 if won else self.losses + 1
            self.worst = max(self.worst, self.losses)


class Outcome(msgspec.Struct, frozen=True):
    """Of one run: commits of all, of the client with the fewest, most losses in a row."""

    commits: int
    fewest: int
    worst: int


def hammer(seed: int, clients: int, policy: str, owners: int = 1) -> Outcome:
    """One run of five virtual seconds. Raises SimulationError if a promise was broken."""
    swarm = dict(CALM)
    if owners > 1:
        swarm |= {"owners": owners, "partitioned": True}
    parts = Parts(swarm=swarm)
    run = Run(seed, parts, swarm=choose(1))
    made = [HotClient(run.world, number, parts, clients, policy) for number in range(clients)]
    run.clients = [*made]
    result = run.go()
    if result.failure:
        raise SimulationError(result.failure)
    wins = [client.wins for client in made]
    return Outcome(sum(wins), min(wins), max(max(c.worst, c.losses) for c in made))


def run(seed: int) -> Report:
    """Table over policies and numbers of clients."""
    serial = {owners: hammer(seed, 1, "at once", owners).commits for owners in (1, 3)}
    rows: list[tuple[object, ...]] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    for owners in (1, 3):
        for policy in POLICIES:
            for clients in CLIENTS:
                got = hammer(seed, clients, policy, owners)
                share = 100.0 * got.commits / serial[owners]
                rows.append((owners, policy, clients, share, got.fewest, got.worst))
                if owners == 1:
                    lines.setdefault(policy, []).append((clients, float(got.worst)))
    return Report(
        name="contention",
        title="One hot row, clients that run again after 40001, five seconds",
        model=(
            "A client reads the row, thinks for 4 to 8 ms (the slowest twice as long as the"
            " fastest), writes it and commits. Goodput: commits of all, in\npercent of what the"
            " fastest client does alone. At once: no pause. Exponential: a random pause, twice as"
            " long after every loss. By age: after a commit a random pause of up\nto two rounds (an"
            " attempt's time for every client), after the first loss up to 0.2 rounds, after each"
            " further one 0.7 times that.\nThree owners: each transaction writes a row of its own"
            " as well, elsewhere."
        ),
        header=("owners", "policy", "clients", "goodput %", "fewest commits", "losses in a row"),
        rows=rows,
        figure=Figure("clients", "losses in a row", lines, log_y=True),
    )
