"""`meridian status`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from meridian.cli.options import directory_option, existing
from meridian.gateway.client import Client, GatewayError

TIMEOUT_S = 5.0


@click.command()
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def status(directory: Path, as_json: bool) -> None:
    """Does the cluster run, and how is its data plane? Exit status 1 if it does not run."""
    cluster = existing(directory)
    identity = cluster.identity()
    assert identity is not None
    running = cluster.running()
    facts: dict[str, Any] = {
        "dir": str(cluster.path),
        "cluster": identity.cluster,
        "profile": identity.profile,
        "running": running is not None,
    }
    if running is not None:
        facts |= {"pid": running.pid, "port": running.port}
        facts["instances"] = [msgspec.to_builtins(one) for one in running.instances]
        facts["data_plane"] = _data_plane(running.gateway_socket)
    click.echo(json.dumps(facts, default=str) if as_json else _as_text(facts))
    if running is None:
        sys.exit(1)


def _data_plane(path: str) -> dict[str, Any]:
    try:
        with Client(path, timeout_s=TIMEOUT_S) as client:
            found = client.admin("status")
    except (OSError, GatewayError) as error:
        return {"error": str(error)}
    return found if isinstance(found, dict) else {"status": found}


def _as_text(facts: dict[str, Any], indent: str = "") -> str:
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", _as_text(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            shorts = [", ".join(f"{k} {v}" for k, v in one.items()) for one in value]
            lines += [f"{indent}{name}:", *(f"{indent}  {short}" for short in shorts)]
        else:
            shown = (
                {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
            )
            lines.append(f"{indent}{name}: {'none' if shown == '' else shown}")
    return "\n".join(lines)
