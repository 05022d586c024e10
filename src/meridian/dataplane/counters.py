"""What the data plane counts. Plain integers: one thread adds to them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from typing import Any

_BOUNDS_US = (100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 1_000_000)


class Histogram:
    """Latencies in buckets of doubling width."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_US) + 1)
        self.sum_us = 0

    def add(self, duration_ns: int) -> None:
        """One observation."""
        duration_us = duration_ns // 1000
        self.sum_us += duration_us
        self.counts[bisect_left(_BOUNDS_US, duration_us)] += 1

    def quantile_us(self, quantile: float) -> int:
        """Upper bound of the bucket that holds the quantile; 0 without observations."""
        rank = quantile * sum(self.counts)
        seen = 0
        for count, bound in zip(self.counts, (*_BOUNDS_US, 10_000_000), strict=True):
            seen += count
            if count and seen >= rank:
                return bound
        return 0

    def summary(self) -> dict[str, int]:
        """Count, sum and two quantiles."""
        return {
            "count": sum(self.counts),
            "sum_us": self.sum_us,
            "p50_us": self.quantile_us(0.5),
            "p99_us": self.quantile_us(0.99),
        }


@dataclass
class Counters:
    """Since the start of the process."""

    gets: int = 0
    scans: int = 0
    reads_waited: int = 0
    commits: int = 0
    commits_large: int = 0
    conflicts: int = 0
    false_aborts: int = 0
    """Aborts for lack of memory of the past: below the floor, never a wrong commit."""
    catalog_aborts: int = 0
    catalog_stale: int = 0
    """Reads of an instance that had not applied the version in force."""
    catalog_too_new: int = 0
    """Reads of an instance whose catalog was newer than their tau."""
    catalog_waits_expired: int = 0
    """DDL answered although an instance had not applied it."""
    gates: int = 0
    """Gates that held back commits of others for a DDL statement."""
    gate_timeouts: int = 0
    """Commits refused because a gate held them for too long, or too many were held."""
    notifications: int = 0
    notifications_lost: int = 0
    """Instances that were told to end the sessions that listen count once each time."""
    unknown_outcomes: int = 0
    retries: int = 0
    connections_cut: int = 0
    sequence_commits: int = 0
    checkpoints: int = 0
    storage_damages: int = 0
    """Found by self-checks."""
    storage_healed: int = 0
    """1 if this process began with damaged storage and made it anew."""
    commits_voted: int = 0
    """Commits over several adjudicators."""
    attempts_again: int = 0
    """Attempts after the first one of such commits."""
    heat_moves: int = 0
    """Times that key ranges went from a busy adjudicator to an idle one."""
    promises_expired: int = 0
    """Promises that ended without a verdict: the leader was lost or slow."""
    owners: int = 0
    """Epochs this process has taken; more than one means that the journal failed."""
    commit_latency: Histogram = field(default_factory=Histogram)

    def as_map(self) -> dict[str, Any]:
        """For ADMIN and the log."""
        values: dict[str, Any] = {k: v for k, v in asdict(self).items() if isinstance(v, int)}
        values["commit_latency"] = self.commit_latency.summary()
        return values
