"""ADVISORY over the gateway's socket: answers, cancel, and what the end of a connection frees."""

from __future__ import annotations

import time
from collections.abc import Iterator
from unittest.mock import MagicMock

import pytest

from meridian.dataplane.advisory import OP_LOCK, OP_TRY, OP_UNLOCK, OP_UNLOCK_ALL, TRANSACTION
from meridian.errors import Kind
from meridian.gateway.advisory import Advisory
from meridian.gateway.client import Client, GatewayError
from meridian.gateway.connection import Connection
from meridian.gateway.requests import Requests
from meridian.wire import frames
from meridian.wire.frames import ADVISORY
from tests.dataplane.plane import Plane

BIGINT = 1


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("advisory"), "--ephemeral") as running:
        yield running


def ask(client: Client, op: int, key: int, flags: int = 0) -> bool:
    return bool(client.call(ADVISORY, op, BIGINT, key, flags)[0][0])


def test_a_lock_is_waited_for_and_handed_on(plane: Plane) -> None:
    with plane.client() as one, plane.client() as other:
        assert ask(one, OP_LOCK, 1) and not ask(other, OP_TRY, 1)
        waiting = other.send(ADVISORY, OP_LOCK, BIGINT, 1, 0)
        assert ask(one, OP_UNLOCK, 1) and not ask(one, OP_UNLOCK, 1)
        assert other.wait(waiting)[1] == [True]
        assert not ask(one, OP_TRY, 1)
        assert ask(other, OP_UNLOCK_ALL, 0) and ask(one, OP_TRY, 1)


def test_closing_frees_everything(plane: Plane) -> None:
    with plane.client() as waiter:
        with plane.client() as holder:
            assert ask(holder, OP_LOCK, 2) and ask(holder, OP_LOCK, 2, TRANSACTION)
            waiting = waiter.send(ADVISORY, OP_LOCK, BIGINT, 2, 0)
        assert waiter.wait(waiting)[1] == [True]


def test_a_canceled_wait_holds_up_nobody(plane: Plane) -> None:
    with plane.client() as holder, plane.client() as waiter, plane.client() as third:
        assert ask(holder, OP_LOCK, 3, 1)
        waiting = waiter.send(ADVISORY, OP_LOCK, BIGINT, 3, 0)
        waiter.cancel(waiting)
        with pytest.raises(GatewayError) as caught:
            waiter.wait(waiting)
        assert caught.value.sqlstate == "57014"
        assert ask(third, OP_TRY, 3, 1)
        assert ask(waiter, OP_TRY, 4)


def test_a_circle_is_40P01(plane: Plane) -> None:
    with plane.client() as one, plane.client() as other:
        assert ask(one, OP_LOCK, 5) and ask(other, OP_LOCK, 6)
        waiting = one.send(ADVISORY, OP_LOCK, BIGINT, 6, 0)
        time.sleep(0.1)
        with pytest.raises(GatewayError) as caught:
            ask(other, OP_LOCK, 5)
        assert caught.value.sqlstate == "40P01"
        assert ask(other, OP_UNLOCK, 6)
        assert one.wait(waiting)[1] == [True]


@pytest.mark.parametrize("fields", [(9, 1, 1, 0), (1, 3, 1, 0), (1, 1, 1 << 63, 0), (1, 1, 1, 4)])
def test_malformed_requests_are_refused(plane: Plane, fields: tuple[int, ...]) -> None:
    with plane.client() as client:
        with pytest.raises(GatewayError) as caught:
            client.call(ADVISORY, *fields)
        assert caught.value.sqlstate == "08P01"
        assert ask(client, OP_TRY, 7)


class FakeConnection:
    """What Advisory uses of a connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.running: dict[int, object] = {}
        self.sent: list[bytes] = []

    def start(self, request_id: int, stop: object) -> None:
        self.running[request_id] = stop

    def send(self, answer: bytes) -> None:
        self.sent.append(answer)

    def finish(self, request_id: int, answer: bytes) -> None:
        if self.running.pop(request_id, None) is not None:
            self.sent.append(answer)


def test_a_refused_request_leaves_nothing_behind() -> None:
    gateway = Advisory()
    connections = [FakeConnection(number) for number in (1, 2)]
    for number, key in ((0, 1), (1, 2)):
        gateway.handle(connections[number], (ADVISORY, 1, OP_LOCK, BIGINT, key, 0))  # type: ignore[arg-type]
    gateway.handle(connections[0], (ADVISORY, 2, OP_LOCK, BIGINT, 2, 0))  # type: ignore[arg-type]
    with pytest.raises(Exception, match=Kind.DEADLOCK.value.sentence):
        gateway.handle(connections[1], (ADVISORY, 2, OP_LOCK, BIGINT, 1, 0))  # type: ignore[arg-type]
    assert connections[1].running == {} and list(connections[0].running) == [2]
    gateway.close(connections[1])  # type: ignore[arg-type]
    assert connections[0].running == {}
    gateway.close(connections[0])  # type: ignore[arg-type]
    assert gateway.locks.rows() == [] and gateway._connections == {}


class FakeTransport:
    """Takes answers; never full."""

    def set_write_buffer_limits(self, high: int) -> None:
        """As asyncio's."""

    def write(self, data: bytes) -> None:
        """As asyncio's."""

    def get_write_buffer_size(self) -> int:
        return 0


def test_locks_last_until_a_commit_under_way_has_ended() -> None:
    """The connection is lost with a COMMIT in flight: it may land, so nobody gets the lock yet."""
    node = MagicMock(profile="standard")
    requests = Requests(node)
    holder, other = Connection(requests, 1), Connection(requests, 2)
    for connection in (holder, other):
        connection.connection_made(FakeTransport())  # type: ignore[arg-type]
        connection.greeted = True
    requests.handle(holder, frames.frame((ADVISORY, 1, OP_LOCK, BIGINT, 7, 0))[4:])
    requests.handle(holder, frames.frame((frames.COMMIT, 2, 0, 0, b"x" * 16, 0, 0, b"\x90"))[4:])
    done = node.commits.commit.call_args.args[-1]
    requests.handle(other, frames.frame((ADVISORY, 1, OP_LOCK, BIGINT, 7, 0))[4:])
    holder.connection_lost(None)
    assert list(other.running) == [1]
    done(1234)
    assert other.running == {}
    other.connection_lost(None)
    assert requests.advisory.locks.rows() == []
