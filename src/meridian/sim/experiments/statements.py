"""Commit latency against statements per transaction over two regions (P, evaluation).

Ours: statements read a snapshot in their own region and buffer writes; only COMMIT crosses, to the
owners of the keys (a vote) and to two of three journal copies. Beside it a design that takes each
row's lock, where its owner lives, as the statement runs.
"""

from __future__ import annotations

import math
from random import Random

from meridian.sim.experiments.report import Figure, Report

REGIONS = 2
RTT_MS = 11.5
"""Between the two active regions, median; p99 14.4 as measured between two US regions."""
RTT_SIGMA = math.log(14.4 / 11.5) / 2.326
WITNESS_RTT_MS = 62.0
LOCAL_RTT_MS = 0.5
"""Between zones of a region."""
SERVE_MS = 0.2
SYNC_MS = 1.0
TRANSACTIONS = 20_000
STATEMENTS = (1, 2, 4, 8, 16, 32)


class Network:
    """One-way delays, drawn anew for each message."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def one_way(self, source: int, target: int) -> float:
        """Milliseconds from region to region; region 2 is the witness."""
        if source == target:
            median = LOCAL_RTT_MS
        else:
            median = WITNESS_RTT_MS if 2 in (source, target) else RTT_MS
        return self._random.lognormvariate(math.log(median / 2), RTT_SIGMA)

    def round_trip(self, source: int, target: int) -> float:
        """There, served, and back."""
        return self.one_way(source, target) + SERVE_MS + self.one_way(target, source)

    def durable(self, source: int) -> float:
        """Until two of three copies of a journal record are on disk, as seen by its writer."""
        copies = sorted(
            self.one_way(source, copy) + SYNC_MS + self.one_way(copy, source) for copy in range(3)
        )
        return copies[1]


def ours(network: Network, home: int, owners: list[int]) -> tuple[float, float]:
    """(whole transaction, its COMMIT) in ms; `owners` = region of each statement's row."""
    reads = sum(network.round_trip(home, home) for _ in owners)
    voters = sorted(set(owners))
    leader = voters[0]
    votes = [network.one_way(home, voter) + SERVE_MS for voter in voters]
    arrive = [
        vote + (network.one_way(voter, leader) if voter != leader else 0.0)
        for vote, voter in zip(votes, voters, strict=True)
    ]
    commit = max(arrive) + SERVE_MS + network.durable(leader) + network.one_way(leader, home)
    return reads + commit, commit


def locks(network: Network, home: int, owners: list[int]) -> tuple[float, float]:
    """The same for a lock per statement: each is granted by its row's owner, COMMIT as above."""
    statements = sum(
        network.round_trip(home, home) + network.round_trip(home, owner) for owner in owners
    )
    leader = min(owners)
    commit = (
        network.one_way(home, leader) + SERVE_MS + network.durable(leader)
        + network.one_way(leader, home)
    )  # fmt: skip
    return statements + commit, commit


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _p99(values: list[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


def run(seed: int) -> Report:
    """Table over the number of UPDATE statements."""
    rows: list[tuple[object, ...]] = []
    lines: dict[str, list[tuple[float, float]]] = {"ours, COMMIT": [], "locks, whole": []}
    for count in STATEMENTS:
        random = Random(f"{seed}/{count}")
        network = Network(random)
        results: dict[str, list[tuple[float, float]]] = {"ours": [], "locks": []}
        for _ in range(TRANSACTIONS // count):
            home = random.randrange(REGIONS)
            owners = [random.randrange(REGIONS) for _ in range(count)]
            results["ours"].append(ours(network, home, owners))
            results["locks"].append(locks(network, home, owners))
        our_whole = [whole for whole, _ in results["ours"]]
        our_commit = [commit for _, commit in results["ours"]]
        lock_whole = [whole for whole, _ in results["locks"]]
        rows.append(
            (count, _median(our_commit), _p99(our_commit), _median(our_whole), _median(lock_whole))
        )
        lines["ours, COMMIT"].append((count, _median(our_commit)))
        lines["locks, whole"].append((count, _median(lock_whole)))
        lines.setdefault("ours, whole", []).append((count, _median(our_whole)))
    return Report(
        name="statements",
        title="Two regions and a witness: latency against UPDATE statements per transaction (ms)",
        model=(
            f"Rows belong to either region with equal chance; round trip {RTT_MS} ms between the"
            f" regions, {WITNESS_RTT_MS:.0f} to the witness, {LOCAL_RTT_MS} within;\na journal"
            " record is durable on 2 of 3 copies. No contention, no retries. Ours: reads and"
            " buffered writes in the own region, one vote and one\nappend at COMMIT. Locks: each"
            " statement asks the region that owns its row, then the same commit."
        ),
        header=("statements", "COMMIT p50", "COMMIT p99", "transaction p50", "with locks p50"),
        rows=rows,
        figure=Figure("UPDATE statements", "ms", lines),
    )
