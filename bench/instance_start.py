"""How long does an instance take from nothing to its first answer?

    python bench/instance_start.py [--tables 50] [--rounds 5] [--json]

Starts one instance again and again over one running data plane: with a new directory (template,
then the catalog from the journal), with the one it had, and with the one a kill -9 left. Prints
the median milliseconds to the first row read through TCP, and the parts of a start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg

from meridian.embedded import data_plane, places
from meridian.embedded.directory import ClusterDirectory
from meridian.embedded.instance_keeper import InstanceKeeper
from meridian.embedded.site import Options, Site
from meridian.instance import software

PARTS = {"_copy": "directory", "_spawn": "postmaster", "_catch_up": "catalog", "_open": "doors"}


class Timed(InstanceKeeper):
    """Notes how long each part of a start takes."""

    def __init__(self, site: Site, port: int) -> None:
        super().__init__(site, 1, port, asyncio.Event())
        self.parts: dict[str, list[float]] = defaultdict(list)

    def time_part(self, name: str) -> None:
        """Wrap one method."""
        inner: Callable[..., Awaitable[Any]] = getattr(self, name)

        async def outer(*arguments: Any, **keywords: Any) -> Any:
            began = time.monotonic()
            try:
                return await inner(*arguments, **keywords)
            finally:
                self.parts[PARTS[name]].append((time.monotonic() - began) * 1000)

        setattr(self, name, outer)


def site_of(directory: ClusterDirectory, gateway: Path) -> Site:
    """As the supervisor makes it."""
    found = software.find(lambda line: print(line, file=sys.stderr))
    identity = directory.identity()
    assert identity is not None
    return Site(
        options=Options(directory.path, trust=True),
        directory=directory,
        identity=identity,
        software=found,
        sockets=gateway.parent,
        postgres=places.postgres_directory(directory.path, identity.cluster, found.user),
        password=directory.password(),
        report=lambda line: print(line, file=sys.stderr),
    )


async def first_answer(keeper: Timed) -> float:
    """Milliseconds from the start to a row."""
    began = time.monotonic()
    await keeper.start()
    session = await psycopg.AsyncConnection.connect(keeper.site.dsn(keeper.port))
    await session.execute("SELECT count(*) FROM t0")
    await session.close()
    return (time.monotonic() - began) * 1000


async def end(keeper: Timed, *, kill: bool) -> None:
    """Cleanly, or not."""
    assert keeper.child is not None
    if kill:
        os.kill(keeper.child.process.pid, signal.SIGKILL)
        await keeper.child.wait()
        await keeper.ended()
    else:
        await keeper.end()


async def measure(site: Site, tables: int, rounds: int) -> dict[str, Any]:
    """Medians, in milliseconds."""
    site.plane_serves.set()
    keeper = Timed(site, places.choose_port("127.0.0.1", 0))
    await keeper.start()
    session = await psycopg.AsyncConnection.connect(site.dsn(keeper.port), autocommit=True)
    for number in range(tables):
        await session.execute(f"CREATE TABLE t{number} (id int PRIMARY KEY, v text)".encode())
    await session.close()
    await end(keeper, kill=False)
    for name in PARTS:
        keeper.time_part(name)
    results: dict[str, Any] = {"tables": tables, "rounds": rounds}
    for kind in ("new", "existing", "killed"):
        keeper.parts.clear()
        times = []
        for _ in range(rounds):
            if kind == "new":
                shutil.rmtree(keeper.instance.data)
            times.append(await first_answer(keeper))
            await end(keeper, kill=kind == "killed")
        parts = {name: round(statistics.median(took)) for name, took in keeper.parts.items()}
        results[kind] = {"first_answer_ms": round(statistics.median(times)), **parts}
    return results


def main() -> None:
    """Prints one table, or one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="meridian-") as place:
        Path(place).chmod(0o711)
        directory = ClusterDirectory(Path(place) / "data")
        with data_plane.alone(directory, print) as gateway:
            site = site_of(directory, gateway)
            results = asyncio.run(measure(site, arguments.tables, arguments.rounds))
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{results['tables']} tables, median of {results['rounds']}; milliseconds")
    for kind in ("new", "existing", "killed"):
        print(f"  {kind:9}", ", ".join(f"{name} {ms}" for name, ms in results[kind].items()))


if __name__ == "__main__":
    main()
