"""`meridian doctor`: what is missing on this machine, and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click

from meridian.embedded import places
from meridian.embedded.site import QUERY_HOSTS_MAX
from meridian.instance import binaries, cache, config, extension
from meridian.instance.errors import SetupError
from meridian.instance.users import pg_user

DISK_NEEDED_BYTES = 1024**3
PORTS = "port 5432"


@dataclass(frozen=True)
class Finding:
    """One line of the answer; `hint` is set when something is missing."""

    what: str
    found: str
    hint: str = ""
    fatal: bool = True


def check(what: str, probe: Callable[[], str]) -> Finding:
    """Run a probe that returns what it found, or raises SetupError."""
    try:
        return Finding(what, probe())
    except SetupError as error:
        return Finding(what, error.message, error.hint or "See above.")


def findings(query_hosts: int = 1) -> Iterator[Finding]:
    """Everything that is looked at, in the order it is needed."""
    yield Finding("system", f"{platform.system()} {platform.machine()}")
    yield Finding(
        "Python",
        platform.python_version(),
        "" if (3, 11) <= sys.version_info < (3, 15) else "Use Python 3.11 to 3.14.",
    )
    yield check("PostgreSQL", lambda: f"{binaries.find().version} in {binaries.find().bindir}")
    yield check("C compiler", lambda: " ".join(extension.compiler()))
    yield check("C headers", _headers)
    yield check("user of PostgreSQL", lambda: pg_user().name)
    yield check("directory for sockets", lambda: str(places.runtime_root()))
    yield check("cache directory", _cache)
    free = shutil.disk_usage(".").free
    yield Finding(
        "free disk space here",
        f"{free // 2**20} MiB",
        "" if free >= DISK_NEEDED_BYTES else "Free some: 1 GiB is little.",
        fatal=False,
    )
    yield Finding("shared memory", config.shared_memory_type())
    yield check(PORTS, lambda: _ports(query_hosts))


def _headers() -> str:
    header = binaries.find().includedir_server / "postgres.h"
    if not header.is_file():
        raise SetupError(f"{header} is missing", "Install PostgreSQL's server headers.")
    return str(header.parent)


def _cache() -> str:
    root = cache.cache_root()
    nearest = next(p for p in (root, *root.parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        raise SetupError(f"{root} cannot be written", "Name another with MERIDIAN_CACHE_DIR.")
    return str(root)


def _ports(count: int) -> str:
    ports = places.choose_ports("127.0.0.1", 5432, count)
    return f"{', '.join(map(str, ports))} free"


@click.command()
@click.option(
    "--query-hosts",
    type=click.IntRange(1, QUERY_HOSTS_MAX),
    default=1,
    show_default=True,
    help="Look for the ports of so many instances.",
)
def doctor(query_hosts: int) -> None:
    """Check this machine; exit status 1 if something needed is missing."""
    missing = False
    for finding in findings(query_hosts):
        mark = "ok " if not finding.hint else "!! "
        click.echo(f"{mark}{finding.what}: {finding.found}")
        if finding.hint:
            click.echo(f"     {finding.hint}")
            missing = missing or (finding.fatal and finding.what != PORTS)
    sys.exit(1 if missing else 0)
