"""SQL as our superuser, over the private socket that only the instance manager reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psycopg import AsyncConnection

from meridian.instance.template import SUPERUSER

CONNECT_TIMEOUT_S = 10

Connection = AsyncConnection[tuple[Any, ...]]


async def connect(sockets: Path, port: int, name: str = "instance manager") -> Connection:
    """A session in autocommit mode. Raises psycopg.OperationalError."""
    return await AsyncConnection.connect(
        host=str(sockets),
        port=port,
        user=SUPERUSER,
        dbname="postgres",
        application_name=f"meridian {name}",
        # Not the caller's PGOPTIONS.
        options="-c client_min_messages=warning",
        connect_timeout=CONNECT_TIMEOUT_S,
        autocommit=True,
        prepare_threshold=None,
    )
