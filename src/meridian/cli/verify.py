"""`meridian verify`: every journal record's checksum, every index against its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from meridian.cli.options import directory_option, existing
from meridian.embedded import data_plane
from meridian.gateway.client import Client, GatewayError
from meridian.instance.errors import SetupError


@click.command()
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def verify(directory: Path, as_json: bool) -> None:
    """Check the cluster's data, running or not. Exit status 1 and a list on damage."""
    cluster = existing(directory)
    running = cluster.running()
    if running is not None:
        report = ask(running.gateway_socket)
    else:
        with data_plane.alone(cluster, lambda line: click.echo(line, err=True)) as path:
            report = ask(str(path))
    damage = report["damage"]
    if as_json:
        click.echo(json.dumps(report, default=str))
    else:
        for line in damage:
            click.echo(f"damaged: {line}")
        for line in report["notes"]:
            click.echo(f"note: {line}")
        checked = ", ".join(f"{report[name]} {name}" for name in ("records", "relations", "rows"))
        click.echo(f"{len(damage)} damaged ({checked} checked)")
    sys.exit(1 if damage else 0)


def ask(path: str) -> dict[str, Any]:
    """The data plane's report: `damage`, a list of sentences, and counts of what was checked.

    Raises SetupError when it cannot answer.
    """
    try:
        with Client(path, timeout_s=None) as client:
            found: dict[str, Any] = client.admin("verify")
            return found
    except (OSError, GatewayError) as error:
        raise SetupError(f"the data plane could not verify: {error}") from None
