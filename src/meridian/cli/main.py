"""`meridian`: the commands and how their errors look."""

from __future__ import annotations

import sys

import click

from meridian import __version__
from meridian.cli import bench, check, dev, doctor, psql, sim, status, topology, verify
from meridian.instance.errors import SetupError


class Commands(click.Group):
    """Shows errors a person can act on without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; SetupError ends with status 1 and its words on standard error."""
        try:
            return super().invoke(ctx)
        except SetupError as error:
            click.echo(f"meridian: {error}", err=True)
            sys.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="meridian")
def main() -> None:
    """Meridian: a serverless, distributed, PostgreSQL-compatible database."""


for command in (
    dev.dev,
    psql.psql,
    status.status,
    topology.topology,
    verify.verify,
    doctor.doctor,
    bench.bench,
    sim.sim,
    check.check,
):
    main.add_command(command)
