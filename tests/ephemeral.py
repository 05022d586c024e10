"""`meridian dev --ephemeral`, as a user starts it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "meridian", "dev", "--ephemeral", "--port", "0", "--json"]


@contextlib.contextmanager
def ephemeral(*options: str) -> Iterator[dict[str, Any]]:
    """What it prints once it serves (dsn, dsns, dir, pid); it must end well."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait(30)
            errors.seek(0)
            pytest.fail(f"meridian dev ended: {errors.read().decode()[-4000:]}")
        yield json.loads(line)
        process.terminate()
        assert process.wait(30) == 0
