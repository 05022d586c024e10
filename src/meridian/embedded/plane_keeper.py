"""Keeps the data plane running."""

from __future__ import annotations

import asyncio
import signal
import subprocess

from meridian.embedded import data_plane
from meridian.embedded.child import Child
from meridian.embedded.keeper import Keeper
from meridian.embedded.site import Site
from meridian.instance.errors import SetupError
from meridian.instance.users import die_with_parent

STOP_S = 2.0


class PlaneKeeper(Keeper):
    """`site.plane_serves` is set while it answers."""

    def __init__(self, site: Site) -> None:
        super().__init__("the data plane", site.directory.log / "data-plane.out", site.report)
        self.site = site
        self._reported: set[str] = set()
        self._served = False
        """Once it has served, the directory knows what was wanted, and may want another by now."""

    async def start(self) -> None:
        """Returns once it serves. Raises SetupError with its last words."""
        ready = asyncio.get_running_loop().create_future()

        def on_line(line: str) -> None:
            if line == data_plane.READY:
                if not ready.done():
                    ready.set_result(None)
            elif line and not ready.done():
                self._reported.add(line)
                self.report(line)

        self.child = child = await self._spawn(on_line)
        ended = asyncio.ensure_future(child.wait())
        await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise SetupError(self.last_words(ended.result()))
        ended.cancel()
        self._served = True
        self.site.plane_serves.set()

    async def _spawn(self, on_line: data_plane.OnLine) -> Child:
        site = self.site
        command = data_plane.command(
            site.directory,
            site.identity,
            site.gateway,
            site.software.user,
            ephemeral=site.options.ephemeral,
            adjudicators=None if self._served else site.options.adjudicators,
            journals=None if self._served else site.options.journals,
            storage_shards=site.options.storage_shards,
        )
        return await Child.spawn(
            command,
            self.log,
            on_line,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )

    async def ended(self) -> None:
        """The instances' feeders connect again once it serves."""
        self.site.plane_serves.clear()

    def unreported(self) -> list[str]:
        """Progress lines were reported when they came."""
        return [line for line in self.log.tail if line not in self._reported]

    async def end(self) -> None:
        """Politely, then by force."""
        if self.child is not None:
            await self.child.end(signal.SIGTERM, STOP_S)
