"""What the keepers of one run share: options, places, and whether the data plane serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from meridian.embedded.directory import ClusterDirectory, Identity
from meridian.instance.software import Software

QUERY_HOSTS_MAX = 16


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
    query_hosts: int = 1
    """Instances, 1 to QUERY_HOSTS_MAX."""
    adjudicators: int | None = None
    journals: int | None = None
    """None: as the directory was made, with one of each if it is new."""
    storage_shards: int = 0
    """Files that storage is spread over; 0: as many as there are, at first one."""


@dataclass(frozen=True)
class Site:
    """Fixed for one run. `report` hears progress, line by line."""

    options: Options
    directory: ClusterDirectory
    identity: Identity
    software: Software
    sockets: Path
    postgres: Path
    """Holds one data directory per instance, named by its number."""
    password: str
    report: Callable[[str], None]
    plane_serves: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def gateway(self) -> Path:
        """The gateway's socket."""
        return self.sockets / "gateway"

    def dsn(self, port: int) -> str:
        """How `admin` reaches the instance on `port`."""
        secret = "" if self.options.trust else f":{quote(self.password, safe='')}"
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        reach = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        return f"postgresql://admin{secret}@{reach}:{port}/postgres"
