"""`meridian check history FILE`: a recorded history against strong snapshot isolation."""

from __future__ import annotations

import sys
from typing import IO

import click

from meridian.check.history import HistoryError, parse
from meridian.check.history import check as check_history


@click.group()
def check() -> None:
    """Check recorded histories."""


@check.command()
@click.argument("file", type=click.File("rb"))
def history(file: IO[bytes]) -> None:
    """Check FILE (docs/history.md; "-" is standard input).

    Exit status 1: anomalies were found. 2: FILE is no history, or an empty one.
    """
    try:
        transactions = parse(file)
        if not transactions:
            raise HistoryError("it has no transactions")
        anomalies = check_history(transactions)
    except HistoryError as error:
        click.echo(f"meridian: this is not a history: {error}", err=True)
        sys.exit(2)
    for anomaly in anomalies:
        click.echo(f"{anomaly.name}: {anomaly.story}")
    click.echo(f"{len(transactions)} transactions, {len(anomalies)} anomalies")
    sys.exit(1 if anomalies else 0)
