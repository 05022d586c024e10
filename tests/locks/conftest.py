"""Two sessions that may sit on different instances of one cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.conftest import Server

Session = psycopg.Connection
Connect = Callable[..., Session]


@pytest.fixture
def connect(cluster: Server) -> Iterator[Connect]:
    """Opens autocommit sessions; each goes to the next instance."""
    opened: list[Session] = []

    def open_one(**options: object) -> Session:
        session = psycopg.connect(cluster.dsn, autocommit=True, **options)  # type: ignore[arg-type]
        opened.append(session)
        return session

    yield open_one
    for session in opened:
        session.close()
