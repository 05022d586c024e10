"""The socket of an adjudicator process: commits in, answers out, many to a frame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import cast

import msgspec

from meridian.adjudicator import events as ev
from meridian.adjudicator import frames
from meridian.adjudicator.shell import Shell
from meridian.errors import Kind, MeridianError
from meridian.limits import CONNECTION_OUTPUT_BYTES
from meridian.wire.frames import TXID_SIZE_BYTES
from meridian.wire.splitter import Splitter

_TO_BITS = 32
_TO_MASK = (1 << _TO_BITS) - 1


class Hosts:
    """The connections of one adjudicator; answers find their way back through `answered`."""

    def __init__(self) -> None:
        self.shell: Shell
        self._numbers = count(1)
        self._connections: dict[int, Connection] = {}

    def connect(self) -> Connection:
        """A protocol for one accepted socket."""
        connection = Connection(self, next(self._numbers))
        self._connections[connection.number] = connection
        return connection

    def gone(self, number: int) -> None:
        """Answers for this connection are dropped from here on; outcomes stay to be asked for."""
        self._connections.pop(number, None)

    def answered(self, answer: ev.Answer) -> None:
        """For the shell: an outcome is known."""
        connection = self._connections.get(answer.to >> _TO_BITS)
        if connection is not None:
            connection.tell(answer)

    def close(self) -> None:
        """Ends all connections."""
        for connection in list(self._connections.values()):
            connection.close()


class Connection(asyncio.Protocol):
    """One host. Answers of one turn of the loop leave in one frame."""

    def __init__(self, hosts: Hosts, number: int) -> None:
        self.number = number
        self._hosts = hosts
        self._base = number << _TO_BITS
        self._splitter = Splitter()
        self._greeted = False
        self._told: list[ev.Answer] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[type, Callable[..., None]] = {
            frames.Hello: self._hello,
            frames.Commits: self._commits,
            frames.Statuses: self._statuses,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._hosts.gone(self.number)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                request = frames.decode_request(body)
                if not self._greeted and not isinstance(request, frames.Hello):
                    raise MeridianError(Kind.PROTOCOL_VIOLATION, why="HELLO comes first")
                self._handlers[type(request)](request)
        except (msgspec.MsgspecError, MeridianError) as error:
            self._refuse(str(error))

    def _hello(self, hello: frames.Hello) -> None:
        if hello.version != frames.PROTOCOL_VERSION:
            raise MeridianError(Kind.UNSUPPORTED_VERSION, version=hello.version)
        self._greeted = True
        adjudicator = self._hosts.shell.adjudicator
        epoch = adjudicator.ledger.epoch[0]
        self._send(frames.Welcome(hello.version, adjudicator.number, epoch))

    def _commits(self, commits: frames.Commits) -> None:
        _check(commits.asks)
        base = self._base
        asked = [
            ev.Commit(base | ask.to, ask.txid, ask.tau_start, ask.catver, ask.flags, 0, ask.chunk)
            for ask in commits.asks
        ]
        self._hosts.shell.commits(asked)

    def _statuses(self, statuses: frames.Statuses) -> None:
        _check(statuses.asks)
        base = self._base
        for ask in statuses.asks:
            self._hosts.shell.step(ev.Status(base | ask.to, ask.txid, ask.tau_start))

    def tell(self, answer: ev.Answer) -> None:
        """Queues an answer; they leave together."""
        if not self._told:
            self._loop.call_soon(self._flush)
        self._told.append(answer)

    def _flush(self) -> None:
        told, self._told = self._told, []
        self._send(
            frames.Answers(
                [frames.Told(one.to & _TO_MASK, one.outcome, one.tau, one.code) for one in told]
            )
        )

    def _send(self, message: frames.Answer) -> None:
        if self._transport is None:
            return
        self._transport.write(frames.frame(message))
        if self._transport.get_write_buffer_size() > CONNECTION_OUTPUT_BYTES:
            # It reads nothing: its outcomes can be asked for again.
            self._transport.abort()

    def _refuse(self, why: str) -> None:
        self._send(frames.Sorry(why))
        self.close()

    def close(self) -> None:
        """Sends what waits, then ends."""
        if self._transport is not None:
            self._transport.close()


def _check(asks: Sequence[frames.Ask | frames.AskStatus]) -> None:
    """Nothing of a frame is decided before all of it was looked at."""
    for ask in asks:
        if len(ask.txid) != TXID_SIZE_BYTES or not 0 <= ask.to <= _TO_MASK:
            raise MeridianError(Kind.PROTOCOL_VIOLATION, why="a transaction id has 16 bytes")
