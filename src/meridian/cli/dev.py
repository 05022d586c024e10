"""`meridian dev`: the embedded cluster in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import click

from meridian.cli.options import DEFAULT_DIR
from meridian.dataplane.shard_files import SHARDS_MAX
from meridian.embedded.directory import Running
from meridian.embedded.site import QUERY_HOSTS_MAX
from meridian.embedded.supervisor import Options, Supervisor
from meridian.instance.errors import SetupError
from meridian.limits import ADJUDICATORS_MAX, JOURNALS_MAX


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Where the cluster lives.  [default: {DEFAULT_DIR}]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5432,
    show_default=True,
    help="TCP port of the first instance, the others take the next free ones; 0 chooses any.",
)
@click.option("--listen", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--ephemeral", is_flag=True, help="A temporary directory, removed at the end; no fsync."
)
@click.option(
    "--profile",
    type=click.Choice(["standard", "dsql"]),
    help="SQL dialect and limits, fixed when the cluster is made.  [default: standard]",
)
@click.option("--trust", is_flag=True, help="No passwords (loopback only).")
@click.option(
    "--rebuild",
    is_flag=True,
    help="First delete storage and PostgreSQL's directories; the journal makes them anew.",
)
@click.option(
    "--query-hosts",
    type=click.IntRange(1, QUERY_HOSTS_MAX),
    default=1,
    show_default=True,
    help="PostgreSQL instances: equals, each with a port of its own.",
)
@click.option(
    "--adjudicators",
    type=click.IntRange(1, ADJUDICATORS_MAX),
    help="Ranges of keys that decide commits.  [default: as it is, at first 1]",
)
@click.option(
    "--journals",
    type=click.IntRange(1, JOURNALS_MAX),
    help="Journals, over which those are spread.  [default: as it is, at first 1]",
)
@click.option(
    "--storage-shards",
    type=click.IntRange(1, SHARDS_MAX),
    help="Files that storage is spread over; it can only grow.  [default: as it is, at first 1]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when ready.")
def dev(
    directory: Path | None,
    port: int,
    listen: str,
    ephemeral: bool,
    profile: str | None,
    trust: bool,
    rebuild: bool,
    query_hosts: int,
    adjudicators: int | None,
    journals: int | None,
    storage_shards: int | None,
    as_json: bool,
) -> None:
    """Run an embedded cluster until Ctrl-C."""
    if ephemeral and directory is not None:
        raise click.UsageError("--ephemeral makes its own directory; leave out --dir")
    if ephemeral and rebuild:
        raise click.UsageError("--ephemeral keeps nothing that could be rebuilt")
    if trust and listen not in ("127.0.0.1", "::1", "localhost"):
        raise click.UsageError("--trust lets everybody in, so it needs a loopback address")
    options = Options(
        directory=directory or Path(DEFAULT_DIR),
        port=port,
        host=listen,
        ephemeral=ephemeral,
        profile=profile,
        trust=trust,
        rebuild=rebuild,
        query_hosts=query_hosts,
        adjudicators=adjudicators,
        journals=journals,
        storage_shards=storage_shards or 0,
    )
    if ephemeral:
        with_temporary_directory(options, as_json)
    else:
        _run(options, as_json)


def with_temporary_directory(options: Options, as_json: bool) -> None:
    """Run in a directory that is removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="meridian-ephemeral-"))
    if os.geteuid() == 0:
        directory.chmod(0o711)
    try:
        _run(dataclasses.replace(options, directory=directory / "cluster"), as_json)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(options: Options, as_json: bool) -> None:
    supervisor = Supervisor(options, _say)

    def on_ready(running: Running) -> None:
        click.echo(_as_json(running, options) if as_json else _as_text(running, options))
        sys.stdout.flush()

    try:
        asyncio.run(supervisor.run(on_ready))
    except KeyboardInterrupt:
        raise SetupError("interrupted") from None


def _say(line: str) -> None:
    """Progress; a full disk or a reader that went away is no reason to end."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def _as_json(running: Running, options: Options) -> str:
    return json.dumps(
        {
            "dsn": running.dsn,
            "dsns": running.dsns,
            "port": running.port,
            "dir": str(options.directory.absolute()),
            "pid": running.pid,
            "start_ms": [one.start_ms for one in running.instances],
        }
    )


def _as_text(running: Running, options: Options) -> str:
    place = "" if options.directory == Path(DEFAULT_DIR) else f" --dir '{options.directory}'"
    dsns = "".join(f"  {dsn}\n" for dsn in running.dsns)
    return (
        f"Meridian is ready.\n\n"
        f"{dsns}\n"
        f"Connect with that, or with: meridian psql{place}\n"
        "Ctrl-C stops it."
    )
