"""`meridian bench`: against stock PostgreSQL on this machine."""

from __future__ import annotations

import json

import click

from meridian.bench.harness import compare
from meridian.bench.workloads import WORKLOADS


@click.command()
@click.argument("name", type=click.Choice(list(WORKLOADS)))
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 600),
    default=5,
    show_default=True,
    help="Length of a pgbench round.",
)
def bench(name: str, as_json: bool, rounds: int, seconds: float) -> None:
    """Compare one workload with stock PostgreSQL 18, in alternating rounds."""
    result = compare(name, rounds, seconds, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(result))
        return
    low, high = result["spread"]
    click.echo(
        f"{name}: {result['ratio']:.2f} of stock ({low:.2f} to {high:.2f}); "
        f"{result['ours']:,} against {result['stock']:,} {result['unit']}"
    )
