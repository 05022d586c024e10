"""`meridian sim`: the deterministic world, loaded only when asked for."""

from __future__ import annotations

import importlib

import click


class LazyGroup(click.Group):
    """Takes its commands from `meridian.sim.cli`, so that other commands start fast."""

    def _group(self) -> click.Group:
        found = importlib.import_module("meridian.sim.cli").sim
        assert isinstance(found, click.Group)
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of its commands."""
        return self._group().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of its commands."""
        return self._group().get_command(ctx, cmd_name)


sim = LazyGroup("sim", help="Run the deterministic simulation.")
