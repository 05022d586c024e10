"""Shared fixtures: one embedded cluster and one stock PostgreSQL for the whole session.

Both use free ports and temporary directories; the session fails if a process is left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.processes import descendants
from tests.ephemeral import ephemeral

STATE = tempfile.mkdtemp(prefix="meridian-tests-")
"""Where PostgreSQL's directories go under root: pytest's own directories are closed to others."""
os.chmod(STATE, 0o711)
os.environ["MERIDIAN_STATE_DIR"] = STATE

LEAK_GRACE_S = 5.0

TOPOLOGY = os.environ.get("MERIDIAN_TEST_TOPOLOGY", "")
"""STORAGE SHARDS,ADJUDICATORS,JOURNALS of every cluster that tests make, like 4,3,2."""
if TOPOLOGY:
    for name, count in zip(
        ("STORAGE_SHARDS", "ADJUDICATORS", "JOURNALS"), TOPOLOGY.split(","), strict=True
    ):
        os.environ[f"MERIDIAN_{name}"] = count

SOURCE = str(Path(__file__).resolve().parent.parent / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (SOURCE, os.environ.get("PYTHONPATH"))))


@dataclasses.dataclass(frozen=True)
class Server:
    """A running database; `directory` is None for stock PostgreSQL."""

    dsn: str
    directory: Path | None = None
    pid: int = 0


@pytest.fixture(scope="session")
def cluster() -> Iterator[Server]:
    """`meridian dev --ephemeral`, as a user starts it."""
    with ephemeral() as facts:
        yield Server(facts["dsn"], Path(facts["dir"]), facts["pid"])


@pytest.fixture(scope="session")
def stock() -> Iterator[Server]:
    """Stock PostgreSQL 18 with heap tables, for comparisons."""
    from meridian.bench import servers

    settings = {
        "fsync": "off",
        "shared_buffers": "64MB",
        "io_method": "sync",
        "timezone": "UTC",
        "default_transaction_isolation": "repeatable read",
    }
    with servers.scratch() as directory, servers.stock(directory, settings) as dsn:
        yield Server(dsn)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that outlives the session is a failure of its own."""
    shutil.rmtree(STATE, ignore_errors=True)
    deadline = time.monotonic() + LEAK_GRACE_S
    while left := {p: c for p, c in descendants(os.getpid()).items() if c}:
        if time.monotonic() > deadline:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            sys.stderr.write(f"\nprocesses left behind: {left}\n")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            return
        time.sleep(0.05)
