"""One connection of a query processor: frames in, answers out, both bounded.

`asyncio.Protocol` rather than streams: the point-read path is a handful of calls per request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from meridian.errors import Kind, MeridianError
from meridian.limits import (
    CONNECTION_OUTPUT_BYTES,
    CONNECTION_REQUESTS,
    CONNECTION_STALL_MS,
)
from meridian.wire import frames
from meridian.wire.splitter import Splitter

if TYPE_CHECKING:
    from meridian.gateway.requests import Requests

_HIGH_WATER_BYTES = 1 << 20


class Connection(asyncio.Protocol):
    """Splits frames, hands them to `Requests`, keeps count of what is under way."""

    def __init__(self, requests: Requests, number: int) -> None:
        self.requests = requests
        self.number = number
        self.transport: asyncio.Transport | None = None
        self.greeted = False
        self.instance_id = 0
        """From HELLO; 0: a tool."""
        self.pid = 0
        """From HELLO: its process, in that instance."""
        self.running: dict[int, Callable[[], object]] = {}
        """Requests under way: id -> how to stop it (it then answers 57014 itself)."""
        self.staged: set[bytes] = set()
        """Transaction ids whose PART frames came on this connection, not yet committed."""
        self.committing = 0
        """Commits under way: they may still land, so the connection's advisory locks last."""
        self._splitter = Splitter()
        self._holds = 0
        self._stalled: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self.requests.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._stalled is not None:
            self._stalled.cancel()
        for stop in list(self.running.values()):
            stop()
        self.running.clear()
        self._splitter = Splitter()
        self.requests.closed(self)

    def data_received(self, data: bytes) -> None:
        # A query processor waits for most answers before it asks again.
        whole = self._splitter.one(data)
        if whole is not None and self.transport is not None:
            self.requests.handle(self, whole)
            return
        bodies = self._splitter.feed(data)
        while self.transport is not None:
            try:
                body = next(bodies, None)
            except MeridianError as error:
                self.cut(str(error))
                return
            if body is None:
                return
            self.requests.handle(self, body)

    def pause_writing(self) -> None:
        """The client reads too slowly: take no more requests, cut it when that lasts."""
        self.hold()
        loop = asyncio.get_running_loop()
        self._stalled = loop.call_later(
            CONNECTION_STALL_MS / 1000, self.cut, "it does not read its answers"
        )

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self.release()

    # For Requests

    def hold(self) -> None:
        """Stops reading from the socket until as many `release` calls."""
        self._holds += 1
        if self._holds == 1 and self.transport is not None:
            self.transport.pause_reading()

    def release(self) -> None:
        """See `hold`."""
        self._holds -= 1
        assert self._holds >= 0
        if self._holds == 0 and self.transport is not None:
            self.transport.resume_reading()

    def send(self, answer: bytes) -> None:
        """Writes one answer; a client that lets too much pile up is cut."""
        transport = self.transport
        if transport is None:
            return
        transport.write(answer)
        if transport.get_write_buffer_size() > CONNECTION_OUTPUT_BYTES:
            self.cut("its answers pile up")

    def send_error(self, request_id: int, error: MeridianError) -> None:
        """ERROR in the profile's words."""
        self.send(frames.error_frame(request_id, error, self.requests.profile))

    def start(self, request_id: int, stop: Callable[[], object]) -> None:
        """Registers a request that does not answer at once. Raises TOO_MANY_REQUESTS."""
        if len(self.running) >= CONNECTION_REQUESTS:
            raise MeridianError(Kind.TOO_MANY_REQUESTS)
        if request_id in self.running:
            raise MeridianError(Kind.PROTOCOL_VIOLATION, why="request id is in use")
        self.running[request_id] = stop

    def finish(self, request_id: int, answer: bytes) -> None:
        """The answer of a registered request; dropped when it was stopped before."""
        if self.running.pop(request_id, None) is not None:
            self.send(answer)

    def finish_error(self, request_id: int, error: MeridianError) -> None:
        """Like `finish`, with an error."""
        self.finish(request_id, frames.error_frame(request_id, error, self.requests.profile))

    def cut(self, why: str) -> None:
        """Ends the connection without waiting for anything."""
        if self.transport is not None:
            self.requests.log_cut(self, why)
            self.transport.abort()
