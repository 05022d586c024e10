"""Alternating rounds and their ratio: the machine's noise hits both servers alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from meridian.bench import servers
from meridian.bench.workloads import WORKLOADS, Context, Workload


def compare(
    name: str, rounds: int, seconds: float, report: Callable[[str], None]
) -> dict[str, Any]:
    """Run `name` on both servers; the JSON of `meridian bench`. Raises SetupError, KeyError."""
    workload = WORKLOADS[name]
    with (
        servers.scratch() as directory,
        servers.ours(directory / "ours") as our_dsn,
        servers.stock(directory) as stock_dsn,
    ):
        ours = Context(our_dsn, directory, seconds)
        stock = Context(stock_dsn, directory, seconds)
        for title, context in (("Meridian", ours), ("stock", stock)):
            report(f"{name}: setting up {title}")
            workload.set_up(context)
        report(f"{name}: {workload.rest_s:.0f} s of rest for both")
        time.sleep(workload.rest_s)
        pairs = [_round(workload, ours, stock, n, report) for n in range(rounds)]
    return summary(name, workload.unit, pairs)


def _round(
    workload: Workload, ours: Context, stock: Context, number: int, report: Callable[[str], None]
) -> tuple[float, float]:
    """Both servers once; who goes first changes from round to round."""
    order = [ours, stock] if number % 2 == 0 else [stock, ours]
    rates = {context.dsn: workload.measure(context) for context in order}
    a, b = rates[ours.dsn], rates[stock.dsn]
    report(f"round {number + 1}: ours {a:,.1f}, stock {b:,.1f} {workload.unit}, ratio {a / b:.3f}")
    return a, b


def summary(name: str, unit: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Median ratio and its spread over the rounds; `ours` and `stock` are median rates."""
    ratios = sorted(a / b for a, b in pairs)
    return {
        "name": name,
        "ratio": round(statistics.median(ratios), 4),
        "spread": [round(ratios[0], 4), round(ratios[-1], 4)],
        "ours": round(statistics.median(a for a, _ in pairs), 2),
        "stock": round(statistics.median(b for _, b in pairs), 2),
        "unit": unit,
        "rounds": len(pairs),
    }
