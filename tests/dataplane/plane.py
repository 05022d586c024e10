"""A data plane of its own for tests: as a process, or inside the test's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from meridian.dataplane.node import Node
from meridian.errors import MeridianError
from meridian.gateway.client import Client
from meridian.journal.files import Files
from meridian.limits import STANDARD, Limits
from meridian.wire.frames import COMMIT_HAS_SCHEMA
from meridian.wire.ops import (
    CLASS_BYTES,
    CLASS_INTEGER,
    KIND_TABLE,
    Create,
    Delete,
    Op,
    Put,
    conflict_hash,
    encode_chunk,
)

START_TIMEOUT_S = 60


class Plane:
    """`python -m meridian.dataplane` on a directory; may be started again after a kill."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory / "data"
        self.socket = directory / "gateway"
        self.options = options
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []

    def start(self, preexec: Callable[[], object] | None = None) -> Plane:
        """Until `ready`; what was said before is in `lines`. Raises AssertionError."""
        command = [sys.executable, "-m", "meridian.dataplane", "--dir", str(self.directory)]
        command += ["--socket", str(self.socket), *self.options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, preexec_fn=preexec
        )
        assert self.process.stdout is not None
        self.lines = []
        for line in self.process.stdout:
            if line.strip() == "ready":
                return self
            self.lines.append(line.rstrip())
        status = self.process.wait()
        raise AssertionError(f"the data plane ended with {status}: {self.lines}")

    def refuses(self) -> str:
        """Starts; it must end by itself with an error, which is returned."""
        try:
            self.start()
        except AssertionError:
            assert self.process is not None and self.process.returncode == 2
            return "\n".join(self.lines)
        self.stop()
        raise AssertionError("it started")

    def client(self) -> Client:
        return Client(self.socket, timeout_s=30)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=10)

    def __enter__(self) -> Plane:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def segments(self) -> list[Path]:
        return sorted((self.directory / "journal" / "0").glob("*.seg"))


def key(number: int) -> bytes:
    return struct.pack(">Q", number)


def put(sid: int, rows: dict[int, int], *, pad: int = 0, flags: int = 0) -> Put:
    """Rows number -> value in a table of `create`."""
    keys = [key(number) for number in sorted(rows)]
    values = [(rows[number], b"x" * pad) for number in sorted(rows)]
    return Put(sid, flags, (1, 2), keys, hashes(sid, keys), b"", values)


def delete(sid: int, numbers: Sequence[int]) -> Delete:
    keys = [key(number) for number in sorted(numbers)]
    return Delete(sid, 0, keys, hashes(sid, keys), b"")


def hashes(sid: int, keys: Sequence[bytes]) -> bytes:
    return b"".join(conflict_hash(sid, 0, one).to_bytes(8, "little") for one in keys)


def create(sid: int) -> Create:
    return Create(sid, KIND_TABLE, [(1, CLASS_INTEGER), (2, CLASS_BYTES)], 0)


def new_table(client: Client) -> int:
    """A table (number -> value, padding); its storage id."""
    sid = client.lease(2, 1)[0]
    client.commit([create(sid)], flags=COMMIT_HAS_SCHEMA)
    return sid


def contents(client: Client, sid: int) -> dict[int, int]:
    """number -> value, as of now."""
    rows = client.scan_all(sid, [1]).rows
    return {struct.unpack(">Q", row[0])[0]: row[1] for row in rows}


@contextlib.asynccontextmanager
async def running(
    directory: Path, files: Files | None = None, limits: Limits = STANDARD, **options: Any
) -> AsyncIterator[Node]:
    """A node in this event loop, without a gateway."""
    node = Node(directory, profile="standard", limits=limits, files=files, **options)
    await node.start()
    try:
        yield node
    finally:
        if not node.closing:
            await node.close()


async def commit(
    node: Node, ops: list[Op], *, tau: int = 0, txid: bytes | None = None, flags: int = 0
) -> int:
    """tau_commit. Raises MeridianError."""
    future: asyncio.Future[int | MeridianError] = asyncio.get_running_loop().create_future()
    txid = txid or secrets.token_bytes(16)
    rows = sum(len(op.keys) for op in ops if isinstance(op, (Put, Delete)))
    node.commits.commit(txid, tau, 0, flags, rows, encode_chunk(ops), future.set_result)
    result = await asyncio.wait_for(future, 30)
    if isinstance(result, MeridianError):
        raise result
    return result


async def value(node: Node, sid: int, number: int) -> int | None:
    """The row's value as of now."""
    import msgspec

    tau = node.tau_start()
    await node.wait_until_ready(tau, 10_000)
    rows = msgspec.msgpack.decode(node.engine.get(tau, sid, (1,), [key(number)])[1])
    return rows[0][1] if rows else None
