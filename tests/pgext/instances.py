"""A cluster of two instances for the tests of one module."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def two_instances() -> Iterator[tuple[str, str]]:
    """The DSNs of two instances of one ephemeral cluster."""
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-m", "meridian", "dev", "--ephemeral", "--port", "0", "--json",
                   "--query-hosts", "2"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait(30)
            errors.seek(0)
            pytest.fail(f"meridian dev ended: {errors.read().decode()[-4000:]}")
        first, second = json.loads(line)["dsns"]
        yield first, second
        process.terminate()
        assert process.wait(30) == 0
