"""Availability and read tail of k-of-M coded journals (P 5.4; design 6.4).

Any k of M streams are enough to read a record. Exact binomial sums for availability; for the tail
each stream stalls now and then and a read needs the k-th fastest answer.
"""

from __future__ import annotations

import math
from random import Random

from meridian.sim.experiments.report import Figure, Report

BASE = 0.9999
"""Availability of one stream (the paper's base)."""
READS = 200_000
READ_MS = 1.0
"""Median of one stream's answer; lognormal with SIGMA."""
SIGMA = 0.3
STALL_SHARE = 0.001
"""Answers that meet a stall of their stream."""
STALL_MS = 1_000.0
CODES = ((1, 1), (1, 2), (2, 2), (1, 3), (2, 3), (3, 3), (2, 4), (3, 4), (4, 4))


def availability_loss(k: int, m: int, base: float = BASE) -> float:
    """Probability that fewer than k of m streams are up, without cancellation."""
    down = 1 - base
    return math.fsum(
        math.comb(m, gone) * down**gone * base ** (m - gone) for gone in range(m - k + 1, m + 1)
    )


def nines(loss: float) -> float:
    """4.0 for 99.99%."""
    return -math.log10(loss)


def _percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def _read_ms(random: Random, k: int, m: int) -> list[float]:
    mu = math.log(READ_MS)
    reads = []
    for _ in range(READS):
        answers = sorted(
            random.lognormvariate(mu, SIGMA)
            + (random.random() * STALL_MS if random.random() < STALL_SHARE else 0.0)
            for _ in range(m)
        )
        reads.append(answers[k - 1])
    return sorted(reads)


def run(seed: int) -> Report:
    """Table over k and M."""
    rows: list[tuple[object, ...]] = []
    series: dict[str, list[tuple[float, float]]] = {}
    for k, m in CODES:
        reads = _read_ms(Random(f"{seed}/{k}/{m}"), k, m)
        read_nines = nines(availability_loss(k, m))
        tail = _percentile(reads, 0.999)
        rows.append((f"{k} of {m}", m / k, read_nines, _percentile(reads, 0.5), tail))
        series.setdefault(f"k = {k}", []).append((m, read_nines))
    return Report(
        name="nines",
        title="Availability of k-of-M coded journals",
        model=(
            f"Streams fail independently, each available {BASE:.2%} of the time; a record can be"
            f" read from any k of its M streams.\nStored bytes are M/k of the data. Read tail:"
            f" every stream answers in {READ_MS:.0f} ms (median) and {STALL_SHARE:.1%} of its"
            f" answers meet a stall of up to {STALL_MS / 1000:.0f} s;\na read ends with the k-th"
            f" answer, {READS:,} reads. Meridian's journals are 2 of 3 for bodies; commit records"
            " are whole on all three."
        ),
        header=("code", "stored", "nines", "read p50 ms", "read p99.9 ms"),
        rows=rows,
        figure=Figure("M", "nines of availability", series),
    )
