"""`meridian bench`: against stock PostgreSQL on this machine."""

from __future__ import annotations

import json

import click

from meridian.bench import adjudicator
from meridian.bench.harness import compare
from meridian.bench.workloads import WORKLOADS


@click.command()
@click.argument("name", type=click.Choice([*WORKLOADS, "adjudicator"]))
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
    """Compare one workload with stock PostgreSQL 18, in alternating rounds.

    `adjudicator` has no counterpart: decisions per second of one process through its socket.
    """
    if name == "adjudicator":
        _adjudicator(as_json, rounds, seconds)
        return
    result = compare(name, rounds, seconds, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(result))
        return
    low, high = result["spread"]
    click.echo(
        f"{name}: {result['ratio']:.2f} of stock ({low:.2f} to {high:.2f}); "
        f"{result['ours']:,} against {result['stock']:,} {result['unit']}"
    )


def _adjudicator(as_json: bool, rounds: int, seconds: float) -> None:
    result = adjudicator.run(seconds, rounds, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"adjudicator: {result['decisions_per_s']:,} decisions/s of"
        f" {result['keys_per_transaction']} keys;"
        f" {result['bytes_per_million_keys']:,} bytes for a million keys"
    )
