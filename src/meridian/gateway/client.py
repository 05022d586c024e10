"""A small blocking client of the gateway: for the command line, tests and tools.

One thread uses a client. Requests may be pipelined with `send` and `wait`.
"""

from __future__ import annotations

import os
import secrets
import socket
from typing import Any, NamedTuple

import msgspec

from meridian.limits import FRAME_SIZE_BYTES
from meridian.wire import frames
from meridian.wire.ops import Op, encode_chunk

_decode = msgspec.msgpack.Decoder().decode


class GatewayError(Exception):
    """An ERROR answer."""

    def __init__(self, code: int, sqlstate: str, message: str, detail: str, hint: str) -> None:
        super().__init__(f"{sqlstate}: {message}" + (f" ({detail})" if detail else ""))
        self.code = code
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
        self.hint = hint


class Result(NamedTuple):
    """RESULT: rows as of `tau`; `more` rows follow."""

    tau: int
    more: bool
    rows: list[list[Any]]


class Client:
    """One connection. Raises OSError (ConnectionError when the gateway goes away)."""

    def __init__(self, path: str | os.PathLike[str], *, timeout_s: float | None = 60.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._socket.connect(os.fspath(path))
        self._buffer = bytearray()
        self._last_id = 0
        self._answers: dict[int, list[Any]] = {}
        self._abandoned: set[int] = set()
        welcome = self.call(frames.HELLO, frames.PROTOCOL_VERSION, os.getpid(), 0)
        self.profile: str = welcome[1]
        self.limits: dict[str, int] = welcome[2]

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Frames

    def send(self, kind: int, *fields: Any) -> int:
        """Sends one request; returns its id for `wait`."""
        self._last_id += 1
        self._socket.sendall(frames.frame((kind, self._last_id, *fields)))
        return self._last_id

    def wait(self, request_id: int) -> list[Any]:
        """[type, fields...] of the answer. Raises GatewayError for ERROR."""
        while request_id not in self._answers:
            answer = self._receive()
            if answer[1] in self._abandoned:
                self._abandoned.discard(answer[1])
                continue
            self._answers[answer[1]] = answer
        answer = self._answers.pop(request_id)
        if answer[0] == frames.ERROR:
            raise GatewayError(*answer[2:])
        return [answer[0], *answer[2:]]

    def abandon(self, request_id: int) -> None:
        """Its answer will be dropped; the gateway is asked to stop working on it."""
        self._abandoned.add(request_id)
        self.cancel(request_id)

    def cancel(self, request_id: int) -> None:
        """Asks the gateway to stop a request; it still answers (57014 if it was running)."""
        self._socket.sendall(frames.frame((frames.CANCEL, 0, request_id)))

    def call(self, kind: int, *fields: Any) -> list[Any]:
        """Sends one request and returns the answer's fields."""
        return self.wait(self.send(kind, *fields))[1:]

    def _receive(self) -> list[Any]:
        header = self._read(frames.HEADER_SIZE_BYTES)
        (size_bytes,) = frames.HEADER.unpack(header)
        if size_bytes > FRAME_SIZE_BYTES:
            raise ConnectionError(f"frame of {size_bytes} bytes")
        answer: list[Any] = _decode(self._read(size_bytes))
        return answer

    def _read(self, size_bytes: int) -> bytes:
        while len(self._buffer) < size_bytes:
            data = self._socket.recv(1 << 18)
            if not data:
                raise ConnectionError("the gateway closed the connection")
            self._buffer += data
        taken = bytes(self._buffer[:size_bytes])
        del self._buffer[:size_bytes]
        return taken

    # Requests

    def begin(self, catver: int = 0) -> int:
        """A tau_start."""
        return int(self.call(frames.BEGIN, catver)[0])

    def get(
        self, sid: int, keys: list[bytes], cols: list[int], *, tau: int = 0, catver: int = 0
    ) -> Result:
        """Rows [k, c...] of the keys that exist; keys strictly ascending."""
        return Result(*self.call(frames.GET, catver, tau, sid, cols, keys))

    def scan(
        self,
        sid: int,
        cols: list[int],
        *,
        tau: int = 0,
        catver: int = 0,
        lo: bytes = b"",
        hi: bytes | None = None,
        flags: int = 0,
        where: Any = None,
        limit: int = 0,
        page_bytes: int = 0,
        row_sid: int = 0,
        row_cols: list[int] | None = None,
        row_filter: Any = None,
        group: list[int] | None = None,
        aggs: list[list[int]] | None = None,
    ) -> Result:
        """One page of a range; see docs/protocol.md."""
        fields = (lo, hi, flags, cols, where, limit, page_bytes, row_sid, row_cols or [])
        return Result(*self.call(frames.SCAN, catver, tau, sid, *fields, row_filter, group, aggs))

    def scan_all(self, sid: int, cols: list[int], *, tau: int = 0) -> Result:
        """All rows of a relation, page by page, as of one tau."""
        page = self.scan(sid, cols, tau=tau)
        rows = page.rows
        while page.more:
            page = self.scan(
                sid, cols, tau=page.tau, lo=rows[-1][0], flags=frames.SCAN_LO_EXCLUSIVE
            )
            rows = rows + page.rows
        return Result(page.tau, False, rows)

    def commit(
        self,
        ops: list[Op],
        *,
        tau: int = 0,
        txid: bytes | None = None,
        flags: int = 0,
        row_count: int = 0,
        catver: int = 0,
    ) -> int:
        """Commits a write set of one chunk; returns tau_commit."""
        chunk = encode_chunk(ops)
        txid = txid or secrets.token_bytes(frames.TXID_SIZE_BYTES)
        return int(self.call(frames.COMMIT, catver, tau, txid, flags, row_count, chunk)[0])

    def status(self, txid: bytes, tau: int = 0) -> tuple[int, int]:
        """(outcome, tau_commit or 0)."""
        outcome, tau_commit = self.call(frames.STATUS, txid, tau)
        return int(outcome), int(tau_commit)

    def lease(self, kind: int, count: int) -> tuple[int, int]:
        """(first, count granted)."""
        first, granted = self.call(frames.LEASE, kind, count)
        return int(first), int(granted)

    def stats(self, sids: list[int]) -> list[list[int]]:
        """[rows, bytes] per relation, estimates."""
        return list(self.call(frames.STATS, sids)[0])

    def next_values(
        self,
        sid: int,
        *,
        cache: int = 1,
        increment: int = 1,
        minimum: int = 1,
        maximum: int = (1 << 63) - 1,
        start: int = 1,
        cycle: bool = False,
    ) -> tuple[int, int]:
        """`cache` values of a sequence: (first, last)."""
        values = self.call(frames.SEQUENCE, sid, cache, increment, minimum, maximum, start, cycle)[
            0
        ]
        return values[0], values[1]

    def admin(self, command: str, **arguments: Any) -> Any:
        """An ADMIN command's values."""
        return self.call(frames.ADMIN, command, arguments)[0]
