"""A cluster of two instances for the tests of one module."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg.conninfo
import pytest

_sockets: dict[str, str] = {}


def superuser(dsn: str) -> psycopg.Connection[Any]:
    """A session of the internal superuser at the same instance."""
    port = psycopg.conninfo.conninfo_to_dict(dsn)["port"]
    return psycopg.connect(
        host=_sockets[dsn], port=port, user="meridian_root", dbname="postgres", autocommit=True
    )


@contextlib.contextmanager
def two_instances() -> Iterator[tuple[str, str]]:
    """The DSNs of two instances of one ephemeral cluster."""
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
            "2",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait(30)
            errors.seek(0)
            pytest.fail(f"meridian dev ended: {errors.read().decode()[-4000:]}")
        facts = json.loads(line)
        first, second = facts["dsns"]
        run = json.loads((Path(facts["dir"]) / "run.json").read_text())
        _sockets[first] = _sockets[second] = run["socket_directory"]
        yield first, second
        process.terminate()
        assert process.wait(30) == 0
