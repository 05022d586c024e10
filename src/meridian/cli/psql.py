"""`meridian psql`: the bundled psql, connected."""

from __future__ import annotations

import os
from pathlib import Path

import click

from meridian.cli.options import directory_option, running
from meridian.instance import binaries


@click.command(context_settings={"ignore_unknown_options": True})
@directory_option
@click.option(
    "--query-host", "number", type=int, default=1, show_default=True, help="Which instance."
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def psql(directory: Path, number: int, arguments: tuple[str, ...]) -> None:
    """Open psql on the running cluster; further ARGUMENTS go to psql."""
    dsns = running(directory).dsns
    if not 1 <= number <= len(dsns):
        raise click.UsageError(f"this cluster has query hosts 1 to {len(dsns)}")
    dsn = dsns[number - 1]
    program = str(binaries.find().program("psql"))
    os.execv(
        program,
        [program, *arguments, dsn] if not arguments else [program, "-d", dsn, *arguments],
    )
