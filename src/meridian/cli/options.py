"""Options that several commands share, and how they find a cluster."""

from __future__ import annotations

from pathlib import Path

import click

from meridian.embedded.directory import ClusterDirectory, Running
from meridian.instance.errors import SetupError

DEFAULT_DIR = "./meridian-data"

directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DIR,
    show_default=True,
    help="Where the cluster lives.",
)


def existing(directory: Path) -> ClusterDirectory:
    """The cluster in `directory`. Raises SetupError when there is none, or of unknown format."""
    cluster = ClusterDirectory(directory)
    if cluster.identity() is None:
        raise SetupError(
            f"there is no Meridian cluster in {directory}",
            "Start one there with `meridian dev --dir DIR`, or name another --dir.",
        )
    return cluster


def running(directory: Path) -> Running:
    """How to reach the running cluster. Raises SetupError when it does not run."""
    found = existing(directory).running()
    if found is None:
        raise SetupError(
            f"the cluster in {directory} is not running",
            f"Start it: meridian dev --dir {directory}",
        )
    return found
