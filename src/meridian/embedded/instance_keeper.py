"""Keeps one PostgreSQL instance running, and its catalog up to date.

A start: directory (from the template if it is missing), postmaster with closed doors, catalog
brought up to date over the private socket, doors open. Then the feeder follows the journal. A
directory that PostgreSQL does not start on, or that cannot take a schema change, is a broken cache:
it is made anew, once per start.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import psycopg

from meridian.catalog.image import MergeError
from meridian.embedded import places
from meridian.embedded.child import Child
from meridian.embedded.feeder import CONNECT_S, CannotApplyError, Feeder, is_gateway_gone
from meridian.embedded.keeper import HopelessError, Keeper
from meridian.embedded.site import Site
from meridian.gateway.aio import AsyncClient
from meridian.gateway.client import GatewayError
from meridian.instance import config, processes, root
from meridian.instance.errors import SetupError
from meridian.instance.instance import Instance

STOP_S = 2.0
LEFTOVERS_STOP_S = 0.3
OPEN_S = 10.0
HEARD_S = 10.0
"""How long clients wait at the doors for the first answer of the feed."""
GATEWAY_PAUSE_S = 0.05
STARTING, SERVING, DOWN = "starting", "serving", "down"


class BrokenCacheError(SetupError):
    """PostgreSQL does not start on this directory."""


class InstanceKeeper(Keeper):
    """Instance `number` of the cluster, for clients on `port`. `changed` hears of each state."""

    def __init__(self, site: Site, number: int, port: int, changed: asyncio.Event) -> None:
        several = site.options.query_hosts > 1
        name = "postgres.log" if number == 1 else f"postgres-{number}.log"
        who = f"instance {number}" if several else "PostgreSQL"
        super().__init__(who, site.directory.log / name, site.report)
        self.site = site
        self.number = number
        self.port = port
        self.changed = changed
        self.state = STARTING
        self.start_ms = 0
        """How long the last start took."""
        self.instance = Instance(site.postgres / str(number), site.report, site.software)
        self.feeder = Feeder(number, site.gateway, self.connect, site.report)
        self._feeding: asyncio.Task[None] | None = None

    async def connect(self, name: str = "instance manager") -> root.Connection:
        """A superuser session. Raises psycopg.OperationalError."""
        return await root.connect(self.site.sockets, self.port, name)

    # ---------- start ----------

    async def start(self) -> None:
        """Returns once clients are let in. Raises SetupError."""
        began = time.monotonic()
        fresh = await self._copy()
        try:
            await self._behind_closed_doors(fresh)
        except (CannotApplyError, BrokenCacheError) as error:
            # A new directory gets a second try too: an image may have passed it by meanwhile.
            await self._anew(error)
        self._feeding = asyncio.create_task(self._feed())
        await self.feeder.heard(HEARD_S)
        await self._open()
        self.start_ms = round((time.monotonic() - began) * 1000)
        self._become(SERVING)

    async def _copy(self) -> bool:
        """The directory is there; True: it is new."""
        return await asyncio.to_thread(self.instance.prepare, self.site.password)

    async def _anew(self, why: Exception) -> None:
        """With a new directory, once; the reason stays in the report."""
        await self.ended()
        self.report(f"{self.who}: its directory, a cache, is made anew: {why}")
        places.choose_port(self.site.options.host, self.port)  # it may be no fault of the directory
        await asyncio.to_thread(self.instance.recreate)
        try:
            await self._behind_closed_doors(True)
        except CannotApplyError as error:
            raise HopelessError(f"{self.who} cannot be brought up to date: {error}") from None

    async def _behind_closed_doors(self, fresh: bool) -> None:
        await self._spawn()
        await self.site.plane_serves.wait()
        while True:
            try:
                async with await self.connect() as session:
                    await self._catch_up(session, fresh)
                return
            except OSError:
                pass
            except psycopg.Error as error:
                if not is_gateway_gone(error):
                    raise SetupError(f"{self.who} failed at start: {error}") from None
            except (GatewayError, MergeError) as error:
                raise SetupError(f"{self.who} failed at start: {error}") from None
            # The data plane ended meanwhile; its keeper starts it again or ends everything.
            await asyncio.sleep(GATEWAY_PAUSE_S)
            await self.site.plane_serves.wait()

    async def _catch_up(self, session: root.Connection, fresh: bool) -> None:
        if fresh:
            for statement in self.instance.first_statements(self.site.password):
                await session.execute(statement.encode())
            durable = not self.site.options.ephemeral
            await asyncio.to_thread(self.instance.finish, self.site.password, durable=durable)
        client = await AsyncClient.connect(self.site.gateway, self.number, timeout_s=CONNECT_S)
        try:
            await self.feeder.begin(client, session)
        finally:
            client.close()
        await self.feeder.catch_up(session, self._progress)

    def _progress(self, applied: int) -> None:
        if self.site.options.rebuild:
            prefix = "" if self.site.options.query_hosts == 1 else f"{self.who}: "
            self.report(f"{prefix}catalog: {applied} schema changes applied")

    async def _spawn(self) -> None:
        await asyncio.to_thread(processes.kill_leftovers, self.instance.data)
        processes.forget_sockets(self.site.sockets, self.port)
        self.instance.write_config(self._settings(is_open=False))
        self.child = child = await Child.spawn(
            self.instance.command(), self.log, lambda _: None, **self.instance.popen_options()
        )
        deadline = time.monotonic() + processes.START_TIMEOUT_S
        while not processes.is_ready(self.instance.data, child.process.pid):
            if child.process.returncode is not None:
                status = await child.wait()
                words = self.last_words(status)
                raise BrokenCacheError(words) if status > 0 else SetupError(words)
            if time.monotonic() > deadline:
                raise SetupError(
                    f"{self.who} was not ready after {processes.START_TIMEOUT_S:.0f} s"
                )
            await asyncio.sleep(processes.POLL_S)

    async def _open(self) -> None:
        """Let clients in; returns once a new session finds the doors open."""
        assert self.child is not None
        self.instance.write_config(self._settings(is_open=True))
        deadline = time.monotonic() + OPEN_S
        try:
            self.child.process.send_signal(signal.SIGHUP)
            while not await self._is_open():
                if time.monotonic() > deadline:
                    raise SetupError(f"{self.who} did not take its settings in {OPEN_S:.0f} s")
                await asyncio.sleep(processes.POLL_S)
        except (ProcessLookupError, psycopg.Error) as error:
            raise SetupError(f"{self.who} failed at start: {error}") from None

    async def _is_open(self) -> bool:
        async with await self.connect() as session:
            return await (await session.execute("SHOW meridian.open")).fetchone() == ("on",)

    def _settings(self, *, is_open: bool) -> config.Settings:
        options = self.site.options
        return config.Settings(
            port=self.port,
            socket_directory=self.site.sockets,
            gateway_socket=self.site.gateway,
            listen=options.host,
            trust=options.trust,
            ephemeral=options.ephemeral,
            instance_id=self.number,
            instances=options.query_hosts,
            open=is_open,
        )

    # ---------- while it serves ----------

    async def _feed(self) -> None:
        """Ends the postmaster when it must not go on serving; its keeper starts it again."""
        try:
            await self.feeder.run()
        except CannotApplyError as error:
            self.report(f"{self.who} cannot apply a schema change and starts again: {error}")
        except Exception as error:  # without a feed it would serve an old catalog for ever
            self.report(f"the feed of {self.who} failed: {type(error).__name__}: {error}")
        assert self.child is not None
        await self.child.end(signal.SIGQUIT, STOP_S)

    def _become(self, state: str) -> None:
        self.state = state
        self.changed.set()

    # ---------- end ----------

    async def ended(self) -> None:
        """Nothing of it is left running."""
        self._become(STARTING)
        if self._feeding is not None:
            self._feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._feeding
            self._feeding = None
        if self.child is not None:
            await self.child.end(signal.SIGQUIT, STOP_S)

    def stays_down(self) -> None:
        """Nobody will start it again."""
        self._become(DOWN)

    async def end(self) -> None:
        """Commits under way get their answers; by force after STOP_S."""
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.wait({self._feeding}, timeout=LEFTOVERS_STOP_S)
        if self.child is not None:
            await self.child.end(signal.SIGINT, STOP_S)
        # Also a postmaster whose start was dropped half-way.
        await asyncio.to_thread(processes.kill_leftovers, self.instance.data, LEFTOVERS_STOP_S)
