"""CATALOG and GATE: what keeps the catalogs of instances together (docs/rfcs, coherence)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meridian.errors import Kind, MeridianError
from meridian.gateway.connection import Connection
from meridian.wire import frames

if TYPE_CHECKING:
    from meridian.gateway.requests import Requests


class Coherence:
    """Registers its requests; one per gateway."""

    def __init__(self, requests: Requests) -> None:
        self.node = requests.node
        requests.register(frames.CATALOG, self._catalog, self._closed)

    def _catalog(self, connection: Connection, request: frames.Catalog) -> None:
        _, request_id, instance_id, applied, wait_ms = request
        connection.start(request_id, _nothing)

        def answer(rows: list[list[Any]]) -> None:
            connection.finish(request_id, frames.frame((frames.VALUES, request_id, rows)))

        try:
            give_up = self.node.feeds.poll(instance_id, applied, wait_ms, connection, answer)
        except MeridianError:
            connection.running.pop(request_id, None)
            raise
        if request_id not in connection.running:
            return

        def stop() -> None:
            give_up()
            connection.finish_error(request_id, MeridianError(Kind.CANCELED))

        connection.running[request_id] = stop

    def _closed(self, connection: Connection) -> None:
        self.node.feeds.closed(connection)


def _nothing() -> None:
    """Replaced at once."""
