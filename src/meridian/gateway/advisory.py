"""ADVISORY requests: the lock table's answers on their connections (docs/protocol.md)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from meridian.dataplane import advisory
from meridian.errors import Kind, MeridianError
from meridian.gateway.connection import Connection
from meridian.wire import frames

if TYPE_CHECKING:
    from collections.abc import Iterable

_OPS = range(advisory.OP_LOCK, advisory.OP_WAITED_FOR + 1)
_CLASSES = range(1, 3)
_FLAGS = range(4)
_WAITED_FOR_MAX = 1_000
_ROWS_MAX = 100_000
_KEYS = range(-(1 << 63), 1 << 63)


class Advisory:
    """All connections' advisory locks; one per gateway, on the event loop's thread."""

    def __init__(self) -> None:
        self.locks = advisory.AdvisoryLocks()
        self._connections: dict[int, Connection] = {}
        self._waited: dict[int, list[int]] = {}

    def handle(self, connection: Connection, request: frames.Advisory) -> None:
        """Answers at once, or when the lock is granted. Raises MeridianError."""
        _, request_id, op, kind, key, flags = request
        if op not in _OPS or kind not in _CLASSES or key not in _KEYS or flags not in _FLAGS:
            raise MeridianError(Kind.PROTOCOL_VIOLATION, why="no such advisory lock")
        owner = connection.number
        self._connections[owner] = connection
        if op == advisory.OP_UNLOCK:
            released, granted = self.locks.unlock(owner, (kind, key), flags)
            _answer(connection, request_id, released)
        elif op == advisory.OP_UNLOCK_ALL:
            granted = self.locks.unlock_all(owner, flags)
            _answer(connection, request_id, True)
        elif op == advisory.OP_WAITED_FOR:
            granted = self._waited_for(connection, key, bool(flags))
            _answer(connection, request_id, True)
        else:
            granted = self._lock(connection, request_id, (kind, key), flags, op)
        self._tell(granted)

    def _lock(
        self, connection: Connection, request_id: int, key: advisory.Key, flags: int, op: int
    ) -> list[advisory.Granted]:
        owner, wait = connection.number, op == advisory.OP_LOCK
        connection.start(request_id, partial(self._cancel, connection, request_id))
        try:
            state, granted = self.locks.lock(owner, request_id, key, flags, wait)
        except BaseException:
            connection.running.pop(request_id, None)
            raise
        if state is not None:
            connection.running.pop(request_id, None)
            _answer(connection, request_id, state)
        return granted

    def _waited_for(self, connection: Connection, pid: int, first: bool) -> list[advisory.Granted]:
        """The session of a process of the same instance waits for this one, which waits here.

        With `first`, what was said before is forgotten.
        """
        owner, instance = connection.number, connection.instance_id
        others = [] if first else self._waited.get(owner, [])
        others += [
            number
            for number, other in self._connections.items()
            if other.pid == pid and other.instance_id == instance and number != owner
        ]
        self._waited[owner] = others[-_WAITED_FOR_MAX:]
        request_id = self.locks.request(owner)
        deadlock, granted = self.locks.waited_for(owner, tuple(self._waited[owner]))
        if deadlock and request_id is not None:
            connection.finish_error(request_id, MeridianError(Kind.DEADLOCK))
        return granted

    def _cancel(self, connection: Connection, request_id: int) -> None:
        """The client waits no longer, or is gone (its locks go by `close`)."""
        granted = self.locks.cancel(connection.number)
        connection.finish_error(request_id, MeridianError(Kind.CANCELED))
        self._tell(granted)

    def rows(self) -> list[tuple[int, int, bool, bool, int, int]]:
        """class, key, shared, granted, instance, process id of the first holds and waits."""
        found = []
        for kind, key, owner, shared, granted in self.locks.rows()[:_ROWS_MAX]:
            who = self._connections[owner]
            found.append((kind, key, shared, granted, who.instance_id, who.pid))
        return found

    def close(self, connection: Connection) -> None:
        """The connection has ended and none of its commits is under way any more."""
        if self._connections.pop(connection.number, None) is not None:
            self._waited.pop(connection.number, None)
            self._tell(self.locks.close(connection.number))

    def _tell(self, granted: Iterable[advisory.Granted]) -> None:
        for grant in granted:
            connection = self._connections[grant.owner]
            connection.finish(grant.request, _values(grant.request, True))


def _values(request_id: int, granted: bool) -> bytes:
    return frames.frame((frames.VALUES, request_id, [granted]))


def _answer(connection: Connection, request_id: int, granted: bool) -> None:
    connection.send(_values(request_id, granted))
