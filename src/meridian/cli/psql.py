"""`meridian psql`: the bundled psql, connected."""

from __future__ import annotations

import os
from pathlib import Path

import click

from meridian.cli.options import directory_option, running
from meridian.instance import binaries


@click.command(context_settings={"ignore_unknown_options": True})
@directory_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def psql(directory: Path, arguments: tuple[str, ...]) -> None:
    """Open psql on the running cluster; further ARGUMENTS go to psql."""
    found = running(directory)
    program = str(binaries.find().program("psql"))
    os.execv(
        program,
        [program, *arguments, found.dsn]
        if not arguments
        else [program, "-d", found.dsn, *arguments],
    )
