"""A backend and its gateway connection, with a gateway that misbehaves on request."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from meridian.wire import frames
from tests.pgext.proto import frame

Connection = psycopg.Connection[Any]
LIMITS = {"txn_rows": 3000, "row_size_bytes": 2 << 20}


class Gateway:
    """Answers LEASE with a counter, unless the test says otherwise."""

    def __init__(self, path: Path, listening: bool = True) -> None:
        self.path = path
        self.requests: list[Any] = []
        self.connections = 0
        self.answer: Callable[[Any], bytes | None] = self.lease
        self.version = frames.PROTOCOL_VERSION
        self._next = 100
        self._clients: list[socket.socket] = []
        self.listen()
        if listening:
            self.accept()

    def listen(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self.path))
        self.path.chmod(0o777)
        self._server.listen(2)

    def accept(self) -> None:
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            self.connections += 1
            self._clients.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        stream = client.makefile("rb")
        while len(header := stream.read(4)) == 4:
            request = frames.decode_request(stream.read(int.from_bytes(header, "little")))
            if request[0] == frames.HELLO:
                answer: bytes | None = frame(
                    (frames.WELCOME, request[1], self.version, "standard", LIMITS)
                )
            else:
                self.requests.append(request)
                answer = self.answer(request)
            if answer == b"":
                client.shutdown(socket.SHUT_RDWR)
                return
            if answer is not None:
                client.sendall(answer)

    def lease(self, request: Any) -> bytes | None:
        if request[0] == frames.CANCEL:
            return None
        self._next += request[3]
        return frame((frames.LEASED, request[1], self._next, request[3]))

    def drop_clients(self) -> None:
        for client in self._clients:
            client.shutdown(socket.SHUT_RDWR)
        self._clients.clear()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.path.unlink(missing_ok=True)
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def gateway(codec_server: tuple[str, Path]) -> Iterator[Gateway]:
    made = Gateway(codec_server[1])
    yield made
    made.close()


@pytest.fixture
def session(codec_server: tuple[str, Path], gateway: Gateway) -> Iterator[Connection]:
    with psycopg.connect(codec_server[0], autocommit=True) as connection:
        yield connection


def lease(session: Connection) -> int:
    row = session.execute("SELECT meridian_debug.lease(1, 10)").fetchone()
    assert row is not None
    return int(row[0])


def test_welcome(session: Connection, gateway: Gateway) -> None:
    assert gateway.connections == 0, "connected before the first use"
    assert session.execute("SELECT meridian_debug.profile()").fetchone() == ("standard",)
    assert session.execute("SELECT meridian_debug.limit('txn_rows')").fetchone() == (3000,)
    with pytest.raises(psycopg.errors.InternalError):
        session.execute("SELECT meridian_debug.limit('nonsense')")
    assert lease(session) == 110 and lease(session) == 120
    assert gateway.connections == 1


def test_no_gateway(codec_server: tuple[str, Path]) -> None:
    with psycopg.connect(codec_server[0], autocommit=True) as session:
        with pytest.raises(psycopg.errors.SqlclientUnableToEstablishSqlconnection):
            lease(session)


def test_another_protocol_version(session: Connection, gateway: Gateway) -> None:
    gateway.version = 2
    with pytest.raises(psycopg.errors.ProtocolViolation):
        lease(session)
    gateway.version = 1
    lease(session)


def test_errors_keep_their_parts(session: Connection, gateway: Gateway) -> None:
    gateway.answer = lambda r: frame((frames.ERROR, r[1], 9, "40001", "no", "because", "try again"))
    with pytest.raises(psycopg.errors.SerializationFailure) as caught:
        lease(session)
    diag = caught.value.diag
    assert (diag.message_primary, diag.message_detail, diag.message_hint) == (
        "no",
        "because",
        "try again",
    )
    gateway.answer = gateway.lease
    lease(session)


@pytest.mark.parametrize(
    "answer",
    [
        lambda r: frame((frames.ERROR, r[1], 9, "40001", b"\xff\xfe", "", "")),
        lambda r: frame((frames.ERROR, r[1], 9, "4000", "no", "", "")),
        lambda r: frame((frames.LEASED, r[1], 1, 11)),
        lambda r: frame((frames.LEASED, r[1])),
        lambda r: frame((frames.VALUES, r[1], [])),
        lambda r: b"\x01\x00\x00\x00\xc1",
    ],
)
def test_malformed_answers(
    session: Connection, gateway: Gateway, answer: Callable[[Any], bytes]
) -> None:
    gateway.answer = answer
    with pytest.raises(psycopg.errors.ProtocolViolation):
        lease(session)
    gateway.answer = gateway.lease
    lease(session)


def test_a_timeout_cancels_and_the_late_answer_is_dropped(
    session: Connection, gateway: Gateway
) -> None:
    lease(session)
    gateway.answer = lambda r: None
    session.execute("SET statement_timeout = 200")
    started = time.monotonic()
    with pytest.raises(psycopg.errors.QueryCanceled):
        lease(session)
    assert time.monotonic() - started < 5
    waited = gateway.requests[-1] if gateway.requests[-1][0] == frames.LEASE else None
    deadline = time.monotonic() + 5
    while gateway.requests[-1][0] != frames.CANCEL:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    late = waited or gateway.requests[-2]
    assert gateway.requests[-1] == (frames.CANCEL, 0, late[1])
    gateway.answer = lambda r: frame((frames.LEASED, late[1], 666, 10)) + (gateway.lease(r) or b"")
    assert lease(session) != 666
    assert gateway.connections == 1


def test_a_gateway_restarted_between_transactions(session: Connection, gateway: Gateway) -> None:
    lease(session)
    gateway.drop_clients()
    time.sleep(0.1)
    lease(session)
    assert gateway.connections == 2


def test_a_full_backlog_is_waited_out(codec_server: tuple[str, Path]) -> None:
    """All backends connect at once after a restart of the gateway."""
    gateway = Gateway(codec_server[1], listening=False)
    fillers = []
    try:
        while True:  # a listener that accepts nobody yet, until its backlog is full
            filler = socket.socket(socket.AF_UNIX)
            filler.setblocking(False)
            fillers.append(filler)
            filler.connect(str(codec_server[1]))
    except BlockingIOError:
        pass
    threading.Timer(0.3, gateway.accept).start()
    with psycopg.connect(codec_server[0], autocommit=True) as session:
        assert lease(session) == 110
    for filler in fillers:
        filler.close()
    gateway.close()


def test_a_connection_lost_inside_a_transaction(session: Connection, gateway: Gateway) -> None:
    with pytest.raises(psycopg.errors.ConnectionFailure):
        with session.transaction():
            lease(session)
            gateway.answer = lambda r: b""
            lease(session)
    gateway.answer = gateway.lease
    lease(session)
    assert gateway.connections == 2


def test_a_lost_connection_stays_lost_for_its_transaction(
    session: Connection, gateway: Gateway
) -> None:
    with session.transaction():
        lease(session)
        gateway.drop_clients()
        time.sleep(0.1)
        for _ in range(2):
            with pytest.raises(psycopg.errors.ConnectionFailure):
                with session.transaction():
                    lease(session)
    assert gateway.connections == 1
    lease(session)
