"""CATALOG and GATE: what keeps the catalogs of instances together (docs/rfcs, coherence)."""

from __future__ import annotations

from collections.abc import Callable
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
        self._requests = requests
        self._gates: dict[Connection, bytes] = {}
        """The gate last asked for on a connection; it may have ended since."""
        requests.register(frames.CATALOG, self._catalog)
        requests.register(frames.GATE, self._gate, self._closed)

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

    def _gate(self, connection: Connection, request: frames.Gate) -> None:
        _, request_id, txid, sids, hold_ms = request
        before = self._gates.get(connection)
        if before is not None and before != txid:
            # A backend has one transaction at a time: that one has ended.
            self.node.gates.end(before)
        if hold_ms:
            self._gates[connection] = txid

        async def work() -> Callable[[int], bytes]:
            try:
                tau = await self.node.gates.open(txid, sids, hold_ms)
            except BaseException:
                # Nobody knows whether it was closed to others meanwhile (CANCEL).
                self.node.gates.end(txid)
                raise
            return lambda rid: frames.frame((frames.VALUES, rid, [tau]))

        self._requests.spawn(connection, request_id, work())

    def _closed(self, connection: Connection) -> None:
        self.node.feeds.closed(connection)
        txid = self._gates.pop(connection, None)
        if txid is not None:
            self.node.gates.end(txid)


def _nothing() -> None:
    """Replaced at once."""
