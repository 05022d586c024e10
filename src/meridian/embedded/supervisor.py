"""Starts the data plane and the instances, keeps them running, ends them.

Order of a start: lock, then data plane and instances at once; an instance opens its doors when
its catalog is up to date. The end goes the other way, within 5 s. Each process has its keeper.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from meridian.embedded import background, data_plane, places, rebuild
from meridian.embedded.directory import ClusterDirectory, Identity, InstanceFacts, Running
from meridian.embedded.instance_keeper import DOWN, SERVING, InstanceKeeper
from meridian.embedded.plane_keeper import PlaneKeeper
from meridian.embedded.site import QUERY_HOSTS_MAX, Options, Site
from meridian.instance import processes, root, software, users, work
from meridian.instance.errors import SetupError

__all__ = ["Options", "Supervisor"]

Work = Coroutine[Any, Any, None]
ANNOUNCE_RETRY_S = 5.0


class Supervisor:
    """One run of an embedded cluster. `report` hears progress, line by line."""

    def __init__(self, options: Options, report: Callable[[str], None]) -> None:
        assert 1 <= options.query_hosts <= QUERY_HOSTS_MAX
        self.options = options
        self.report = report
        self.directory = ClusterDirectory(options.directory)
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._site: Site | None = None
        self._plane: PlaneKeeper | None = None
        self._instances: list[InstanceKeeper] = []

    async def run(self, on_ready: Callable[[Running], None]) -> None:
        """Until told to stop. Raises SetupError when the cluster cannot be started or kept."""
        users.forget_settings_of_clients()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stopping.set)
        if self.options.rebuild and self.directory.identity() is None:
            raise SetupError(
                f"there is no cluster in {self.directory.path} to rebuild", "Name it with --dir."
            )
        identity = self.directory.open(self.options.profile)
        try:
            began = time.monotonic()
            if self.options.rebuild:
                await self._discard(identity)
            await self._until_stopped(self._start(identity))
            if not self._stopping.is_set():
                if self.options.rebuild:
                    self.report(f"rebuilt in {time.monotonic() - began:.1f} s")
                running = self._describe()
                self.directory.announce(running)
                on_ready(running)
                await self._until_stopped(self._keep())
        finally:
            await self._end()
            self.directory.close()

    async def _until_stopped(self, work: Work) -> None:
        """Run `work`, dropped at the first stop signal. Its exceptions pass through."""
        task = asyncio.ensure_future(work)
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            task.result()
            return
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, SetupError):
            await task

    async def _discard(self, identity: Identity) -> None:
        """Not dropped half-way by a stop signal: the lock is held until it has ended."""
        arguments = (self.directory, identity, self.report, self._stopping.is_set)
        with contextlib.suppress(InterruptedError):
            await asyncio.to_thread(rebuild.discard, *arguments)

    # ---------- start ----------

    async def _start(self, identity: Identity) -> None:
        self._site = site = await asyncio.to_thread(self._prepare, identity)
        host, port, count = self.options.host, self.options.port, self.options.query_hosts
        ports = places.choose_ports(host, port, count)
        self._plane = PlaneKeeper(site)
        self._instances = [
            InstanceKeeper(site, number, chosen, self._changed)
            for number, chosen in enumerate(ports, 1)
        ]
        await together(self._plane.start(), *(one.start() for one in self._instances))

    def _prepare(self, identity: Identity) -> Site:
        """Ends what a killed supervisor left, which may still hold the ports."""
        found = software.find(self.report)
        for data in places.postgres_instances(self.directory.path, identity.cluster):
            processes.kill_leftovers(data)
        data_plane.kill_leftovers(self.directory)
        path, user = self.directory.path, found.user
        return Site(
            options=self.options,
            directory=self.directory,
            identity=identity,
            software=found,
            sockets=places.runtime_directory(identity.cluster, user),
            postgres=places.postgres_directory(path, identity.cluster, user),
            password=self.directory.password(),
            report=self.report,
        )

    def _describe(self) -> Running:
        assert self._site is not None
        dsns = [self._site.dsn(one.port) for one in self._instances]
        return Running(
            pid=os.getpid(),
            port=self._instances[0].port,
            host=self.options.host,
            dsn=dsns[0],
            dsns=dsns,
            gateway_socket=str(self._site.gateway),
            socket_directory=str(self._site.sockets),
            instances=[
                InstanceFacts(one.number, one.port, one.state, one.start_ms)
                for one in self._instances
            ],
        )

    # ---------- keep ----------

    async def _keep(self) -> None:
        assert self._site is not None and self._plane is not None
        cluster = background.Cluster(
            cluster=self._site.identity.cluster,
            profile=self._site.identity.profile,
            gateway=self._site.gateway,
            report=self.report,
            living=self._living,
            connect_to=self._connect_to,
        )
        keeping = [self._keep_instance(one) for one in self._instances]
        await together(
            self._plane.keep(), *keeping, self._keep_announcing(), background.run(cluster)
        )

    async def _keep_instance(self, keeper: InstanceKeeper) -> None:
        """One that cannot be started stays down, as long as another serves."""
        try:
            await keeper.keep()
        except SetupError as error:
            keeper.stays_down()
            if all(one.state == DOWN for one in self._instances):
                raise
            self.report(f"{error}\n{keeper.who} stays down; the others go on serving")

    async def _keep_announcing(self) -> None:
        """run.json says what each instance does."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                # Not in a thread, which a stop could outrun.
                self.directory.announce(self._describe())
            except SetupError as error:
                # A full disk: the cluster serves all the same.
                self.report(str(error))
                await asyncio.sleep(ANNOUNCE_RETRY_S)
                self._changed.set()

    def _living(self) -> list[int]:
        return [one.number for one in self._instances if one.state == SERVING]

    async def _connect_to(self, number: int) -> root.Connection:
        return await self._instances[number - 1].connect("background work")

    # ---------- end ----------

    async def _end(self) -> None:
        """Instances first, so that commits under way get their answers; 5 s in all."""
        work.abort()
        await asyncio.gather(*(one.end() for one in self._instances))
        if self._plane is not None:
            await self._plane.end()
        if self._site is not None:
            places.remove_sockets(self._site.sockets)


async def together(*works: Work) -> None:
    """Run all; the first exception ends the others and passes through."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        for done in asyncio.as_completed(tasks):
            await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
