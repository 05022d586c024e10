"""Background work of a cluster that runs beside the supervisor, such as the job runner.

A routine is a coroutine function that takes a Cluster and runs until it is cancelled. Name it in
ROUTINES (or call `register` before the cluster starts); it is started once the first instance
serves. A routine that fails is reported and started again, with a bounded pause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meridian.catalog import compaction
from meridian.instance.errors import SetupError
from meridian.instance.root import Connection
from meridian.jobs import runner as jobs
from meridian.statistics import runner as statistics

PAUSE_FIRST_S = 0.2
PAUSE_LAST_S = 5.0


@dataclass(frozen=True)
class Cluster:
    """What a routine gets to work with."""

    cluster: str
    """Its id."""
    profile: str
    gateway: Path
    """The gateway's socket (`gateway.aio.AsyncClient.connect`)."""
    report: Callable[[str], None]
    """Shows the user a line."""
    living: Callable[[], Sequence[int]]
    """Numbers of the instances that serve now, ascending."""
    connect_to: Callable[[int], Awaitable[Connection]]

    async def connect(self, number: int | None = None) -> Connection:
        """A superuser session (autocommit, psycopg) with an instance that serves, or this one.

        The caller closes it, and expects it to break at any time: instances come and go. Raises
        SetupError when no instance serves now, psycopg.OperationalError when it just went away.
        """
        living = self.living()
        if not living or (number is not None and number not in living):
            raise SetupError("no instance serves now")
        return await self.connect_to(living[0] if number is None else number)


Routine = Callable[[Cluster], Awaitable[None]]


async def _compact(cluster: Cluster) -> None:
    await compaction.run(cluster.gateway, cluster.report)


ROUTINES: list[tuple[str, Routine]] = [
    ("job runner", jobs.run),
    ("catalog images", _compact),
    ("analysing", statistics.run),
]
"""(name, routine) of every cluster."""


def register(name: str, routine: Routine) -> None:
    """Run `routine` in every cluster that starts from now on. The name is shown on failures."""
    ROUTINES.append((name, routine))


async def run(cluster: Cluster) -> None:
    """All routines, until cancelled."""
    await asyncio.gather(*(_keep(name, routine, cluster) for name, routine in ROUTINES))


async def _keep(name: str, routine: Routine, cluster: Cluster) -> None:
    pause_s = PAUSE_FIRST_S
    while True:
        began = asyncio.get_running_loop().time()
        try:
            await routine(cluster)
            return
        except Exception as error:
            cluster.report(f"{name} failed and starts again: {type(error).__name__}: {error}")
        if asyncio.get_running_loop().time() - began > PAUSE_LAST_S:
            pause_s = PAUSE_FIRST_S
        await asyncio.sleep(pause_s)
        pause_s = min(PAUSE_LAST_S, 2 * pause_s)
