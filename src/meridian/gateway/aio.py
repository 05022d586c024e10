"""A small asyncio client of the gateway, for services that keep one request open."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec

from meridian.gateway.client import GatewayError
from meridian.limits import FRAME_SIZE_BYTES
from meridian.wire import frames

_decode = msgspec.msgpack.Decoder().decode


class AsyncClient:
    """One connection, one request at a time. Raises OSError when the gateway goes away."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._last_id = 0
        self._one = asyncio.Lock()

    @staticmethod
    async def connect(path: Path, instance_id: int = 0, *, timeout_s: float) -> AsyncClient:
        """Connected and welcomed. Raises OSError (TimeoutError is one), GatewayError."""
        async with asyncio.timeout(timeout_s):
            client = AsyncClient(*await asyncio.open_unix_connection(path))
            try:
                fields = (frames.PROTOCOL_VERSION, os.getpid(), instance_id)
                await client.call(frames.HELLO, *fields)
            except BaseException:
                client.close()
                raise
            return client

    async def call(self, kind: int, *fields: Any) -> list[Any]:
        """Sends one request and returns the answer's fields. Raises GatewayError for ERROR.

        Given up half-way (cancelled), the connection is of no more use.
        """
        async with self._one:
            self._last_id += 1
            self._writer.write(frames.frame((kind, self._last_id, *fields)))
            await self._writer.drain()
            answer = await self._receive()
        if answer[0] == frames.ERROR:
            raise GatewayError(*answer[2:])
        return answer[2:]

    async def post(self, kind: int, *fields: Any) -> None:
        """Sends a request that has no answer unless it is refused; then the next `call` fails."""
        async with self._one:
            self._last_id += 1
            self._writer.write(frames.frame((kind, self._last_id, *fields)))
            await self._writer.drain()

    async def _receive(self) -> list[Any]:
        try:
            header = await self._reader.readexactly(frames.HEADER_SIZE_BYTES)
            (size_bytes,) = frames.HEADER.unpack(header)
            if size_bytes > FRAME_SIZE_BYTES:
                raise ConnectionError(f"frame of {size_bytes} bytes")
            answer: list[Any] = _decode(await self._reader.readexactly(size_bytes))
        except asyncio.IncompleteReadError:
            raise ConnectionError("the gateway closed the connection") from None
        if answer[1] != self._last_id and answer[0] != frames.ERROR:
            raise ConnectionError("an answer that nobody asked for")
        return answer

    def close(self) -> None:
        """Idempotent."""
        self._writer.close()
