"""Sessions on alternating instances of one cluster."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import psycopg
import pytest

Session = psycopg.Connection
Connect = Callable[..., Session]

INSTANCES = 2


@pytest.fixture(scope="session")
def two_instances() -> Iterator[list[str]]:
    """The DSNs of an ephemeral cluster."""
    with tempfile.TemporaryFile() as errors:
        command = [
            sys.executable,
            "-m",
            "meridian",
            "dev",
            "--ephemeral",
            "--port",
            "0",
            "--json",
            "--query-hosts",
            str(INSTANCES),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait(30)
            errors.seek(0)
            pytest.fail(f"meridian dev ended: {errors.read().decode()[-4000:]}")
        yield json.loads(line)["dsns"]
        process.terminate()
        assert process.wait(30) == 0


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
