"""Cuts a stream of bytes into frames: a length of 4 bytes, then the body."""

from __future__ import annotations

from collections.abc import Iterator

from meridian.errors import Kind, MeridianError
from meridian.limits import FRAME_SIZE_BYTES
from meridian.wire.frames import HEADER_SIZE_BYTES


class Splitter:
    """Holds the part of a frame that has come; lengths are checked before anything is kept."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def one(self, data: bytes) -> bytes | None:
        """The body, if `data` is one whole frame and nothing came before; else `feed` it."""
        size_bytes = len(data) - HEADER_SIZE_BYTES
        if self._buffer or size_bytes < 0 or size_bytes > FRAME_SIZE_BYTES:
            return None
        if int.from_bytes(data[:HEADER_SIZE_BYTES], "little") != size_bytes:
            return None
        return data[HEADER_SIZE_BYTES:]

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are whole now. Raises FRAME_TOO_LARGE."""
        buffer: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            buffer = self._buffer
        start, end = 0, len(buffer)
        try:
            while end - start >= HEADER_SIZE_BYTES:
                body = start + HEADER_SIZE_BYTES
                size_bytes = int.from_bytes(buffer[start:body], "little")
                if size_bytes > FRAME_SIZE_BYTES:
                    raise MeridianError(Kind.FRAME_TOO_LARGE, size_bytes=size_bytes)
                if body + size_bytes > end:
                    break
                start = body + size_bytes
                yield bytes(buffer[body:start])
        finally:
            if buffer is data:
                self._buffer += memoryview(data)[start:]
            else:
                del self._buffer[:start]
