"""Sessions on alternating instances of one cluster."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.ephemeral import ephemeral

Session = psycopg.Connection
Connect = Callable[..., Session]

INSTANCES = 2


@pytest.fixture(scope="session")
def two_instances() -> Iterator[list[str]]:
    """The DSNs of an ephemeral cluster."""
    with ephemeral("--query-hosts", str(INSTANCES)) as facts:
        yield facts["dsns"]


@pytest.fixture
def connect(two_instances: list[str]) -> Iterator[Connect]:
    """Opens autocommit sessions: the first on the first instance, the second on the second..."""
    opened: list[Session] = []
    turns = itertools.cycle(two_instances)

    def open_one(instance: int | None = None) -> Session:
        dsn = next(turns) if instance is None else two_instances[instance]
        session = psycopg.connect(dsn, autocommit=True)
        opened.append(session)
        return session

    yield open_one
    for session in opened:
        session.close()
