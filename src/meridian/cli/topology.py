"""`meridian topology`: how many adjudicators and journals a running cluster has, and others."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from meridian.cli.options import directory_option, running
from meridian.gateway.client import Client, GatewayError
from meridian.instance.errors import SetupError
from meridian.limits import ADJUDICATORS_MAX, JOURNALS_MAX

TIMEOUT_S = 5.0
_LOOK_S = 0.1


@click.command()
@directory_option
@click.option("--adjudicators", type=click.IntRange(1, ADJUDICATORS_MAX), help="Have so many.")
@click.option("--journals", type=click.IntRange(1, JOURNALS_MAX), help="Have so many.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is as wanted.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def topology(
    directory: Path,
    adjudicators: int | None,
    journals: int | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Show, or change, the adjudicators and journals of a running cluster.

    Work goes on meanwhile; transactions under way may get 40001. A change that is interrupted is
    finished after the next start.
    """
    socket = running(directory).gateway_socket
    wanted = {"adjudicators": adjudicators, "journals": journals}
    found = ask(socket, {name: number for name, number in wanted.items() if number is not None})
    while not (found["done"] or no_wait):
        time.sleep(_LOOK_S)
        found = ask(socket, {})
    if as_json:
        click.echo(json.dumps(found))
        return
    state = "done" if found["done"] else found["step"] or "begins"
    click.echo(f"adjudicators: {found['adjudicators']}\njournals: {found['journals']}\n{state}")


def ask(socket: str, wanted: dict[str, int]) -> dict[str, Any]:
    """Where the change stands that is wanted, or the last one. Raises SetupError."""
    try:
        with Client(socket, timeout_s=TIMEOUT_S) as client:
            found: dict[str, Any] = client.admin("topology", **wanted)
            return found
    except GatewayError as error:
        raise SetupError(str(error), error.hint) from None
    except OSError as error:
        raise SetupError(f"the data plane does not answer: {error}") from None
