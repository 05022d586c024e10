"""Starts the data plane and the instance, keeps them running, ends them.

Order of a start: lock, data plane until `ready`, PostgreSQL on its private socket only, catalog
brought up to date, then PostgreSQL for clients. The end goes the other way, within 5 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from meridian.embedded import data_plane, places, rebuild
from meridian.embedded.child import Backoff, Child
from meridian.embedded.directory import ClusterDirectory, Identity, Running
from meridian.embedded.logs import RotatingLog
from meridian.instance import config, processes, work
from meridian.instance.errors import SetupError
from meridian.instance.instance import Instance
from meridian.instance.users import die_with_parent, pg_user

POSTGRES_STOP_S = 2.0
LEFTOVERS_STOP_S = 0.3
DATA_PLANE_STOP_S = 2.0
CATALOG_LOCK_TIMEOUT_MS = 2000
CATALOG_VERSIONS_AT_ONCE = 100
"""Catalog deltas applied in one local transaction."""


@dataclass(frozen=True)
class Options:
    """What `meridian dev` was asked for; `port` 0 means any."""

    directory: Path
    port: int = 5432
    host: str = "127.0.0.1"
    ephemeral: bool = False
    profile: str | None = None
    trust: bool = False
    rebuild: bool = False
    """Throw the caches away first (see `embedded.rebuild`)."""


class Supervisor:
    """One run of an embedded cluster. `report` hears progress, line by line."""

    def __init__(self, options: Options, report: Callable[[str], None]) -> None:
        self.options = options
        self.report = report
        self.directory = ClusterDirectory(options.directory)
        self._stopping = asyncio.Event()
        self._data_plane: Child | None = None
        self._postgres: Child | None = None
        self._sockets: Path | None = None
        self._reported: set[str] = set()

    async def run(self, on_ready: Callable[[Running], None]) -> None:
        """Until told to stop. Raises SetupError when the cluster cannot be started or kept."""
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
                keepers = asyncio.gather(self._keep_data_plane(), self._keep_postgres())
                await self._until_stopped(keepers)
        finally:
            await self._end()
            self.directory.close()

    async def _until_stopped(self, work: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> None:
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
        self.identity = identity
        self.user = pg_user()
        await asyncio.to_thread(self._clear)
        self.port = places.choose_port(self.options.host, self.options.port)
        self.password = self.directory.password()
        self._sockets = self.sockets = places.runtime_directory(identity.cluster, self.user)
        self.gateway = self.sockets / "gateway"
        self.logs = {
            name: RotatingLog(self.directory.log / name)
            for name in ("data-plane.out", "postgres.log")
        }
        self.instance = await asyncio.to_thread(Instance, self._place, self.report, self.user)
        await asyncio.gather(
            self._start_data_plane(), asyncio.to_thread(self.instance.prepare, self.password)
        )
        await self._start_postgres()

    def _clear(self) -> None:
        """End what a killed supervisor left; it may still hold the port."""
        where = places.postgres_directory(self.directory.path, self.identity.cluster, self.user)
        self._place = where / "1"
        processes.kill_leftovers(self._place)
        data_plane.kill_leftovers(self.directory)

    async def _start_data_plane(self) -> None:
        ready = asyncio.get_running_loop().create_future()

        def on_line(line: str) -> None:
            if line == data_plane.READY:
                if not ready.done():
                    ready.set_result(None)
            elif line and not ready.done():
                self._reported.add(line)
                self.report(line)

        command = data_plane.command(
            self.directory,
            self.identity,
            self.gateway,
            self.user,
            ephemeral=self.options.ephemeral,
        )
        child = await Child.spawn(
            command,
            self.logs["data-plane.out"],
            on_line,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        self._data_plane = child
        ended = asyncio.ensure_future(child.wait())
        await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise SetupError(self._last_words("the data plane", "data-plane.out", ended.result()))
        ended.cancel()

    async def _start_postgres(self) -> None:
        """Bring the catalog up to date behind closed doors, then let clients in."""
        child = await self._spawn_postgres(self._settings(""))
        try:
            await self._apply_catalog()
        finally:
            await child.end(signal.SIGINT, POSTGRES_STOP_S)
        await self._spawn_postgres(self._settings(self.options.host))

    async def _spawn_postgres(self, settings: config.Settings) -> Child:
        await asyncio.to_thread(processes.kill_leftovers, self.instance.data)
        self.instance.write_config(settings)
        child = await Child.spawn(
            self.instance.command(),
            self.logs["postgres.log"],
            lambda _: None,
            **self.instance.popen_options(),
        )
        self._postgres = child
        deadline = time.monotonic() + processes.START_TIMEOUT_S
        while not processes.is_ready(self.instance.data, child.process.pid):
            if child.process.returncode is not None:
                status = await child.wait()
                raise SetupError(self._last_words("PostgreSQL", "postgres.log", status))
            if time.monotonic() > deadline:
                await child.end(signal.SIGQUIT, POSTGRES_STOP_S)
                raise SetupError(
                    f"PostgreSQL was not ready after {processes.START_TIMEOUT_S:.0f} s"
                )
            await asyncio.sleep(processes.POLL_S)
        return child

    def _settings(self, listen: str) -> config.Settings:
        return config.Settings(
            port=self.port,
            socket_directory=self.sockets,
            gateway_socket=self.gateway,
            listen=listen,
            trust=self.options.trust,
            ephemeral=self.options.ephemeral,
        )

    async def _apply_catalog(self) -> None:
        """Apply the schema changes that the journal has and this instance lacks (design 9)."""
        # A session that holds a lock on what must change ends with its server (SetupError).
        script = (
            f"SET lock_timeout = {CATALOG_LOCK_TIMEOUT_MS};"
            f"SELECT meridian.apply_pending_catalog({CATALOG_VERSIONS_AT_ONCE});"
        )
        total = 0
        while count := int(await asyncio.to_thread(self.instance.sql, self._settings(""), script)):
            total += count
            if self.options.rebuild:
                self.report(f"catalog: {total} schema changes applied")

    def _last_words(self, who: str, log: str, status: int) -> str:
        tail = [line for line in self.logs[log].tail if line not in self._reported][-12:]
        words = "\n".join(["; its last words:", *tail]) if tail else ""
        return f"{who} ended at start ({_how(status)}){words}"

    def _describe(self) -> Running:
        secret = "" if self.options.trust else f":{quote(self.password, safe='')}"
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        reach = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        dsn = f"postgresql://admin{secret}@{reach}:{self.port}/postgres"
        return Running(
            pid=os.getpid(),
            port=self.port,
            host=self.options.host,
            dsn=dsn,
            dsns=[dsn],
            gateway_socket=str(self.gateway),
            socket_directory=str(self.sockets),
        )

    # ---------- keep ----------

    async def _keep_data_plane(self) -> None:
        async def start() -> None:
            """A schema change whose answer was lost is repaired from the journal."""
            await self._start_data_plane()
            try:
                await self._apply_catalog()
            except SetupError as error:  # its keeper starts PostgreSQL again, behind closed doors
                self.report(str(error))
                if self._postgres is not None:
                    await self._postgres.end(signal.SIGQUIT, POSTGRES_STOP_S)

        await self._keep("the data plane", "data-plane.out", lambda: self._data_plane, start)

    async def _keep_postgres(self) -> None:
        await self._keep("PostgreSQL", "postgres.log", lambda: self._postgres, self._start_postgres)

    async def _keep(
        self,
        who: str,
        log: str,
        current: Callable[[], Child | None],
        start: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        """Restart what `current` names whenever it ends. Raises SetupError when hopeless."""
        backoff = Backoff()
        began = time.monotonic()
        while True:
            child = current()
            assert child is not None
            status = await child.wait()
            pause = backoff.after(time.monotonic() - began)
            self.report(f"{who} ended ({_how(status)}); starting it again")
            while pause is not None:
                await asyncio.sleep(pause)
                try:
                    began = time.monotonic()
                    await start()
                    break
                except SetupError as error:
                    self.report(str(error))
                    pause = backoff.after(0.0)
            else:
                raise SetupError(self._last_words(who, log, status))

    # ---------- end ----------

    async def _end(self) -> None:
        """PostgreSQL first, so that commits under way get their answers; 5 s in all."""
        work.abort()
        if self._postgres is not None:
            await self._postgres.end(signal.SIGINT, POSTGRES_STOP_S)
            await asyncio.to_thread(processes.kill_leftovers, self.instance.data, LEFTOVERS_STOP_S)
        if self._data_plane is not None:
            await self._data_plane.end(signal.SIGTERM, DATA_PLANE_STOP_S)
        if self._sockets is not None:
            places.remove_sockets(self._sockets)


def _how(status: int) -> str:
    """An exit status in words."""
    return f"killed by signal {-status}" if status < 0 else f"status {status}"
