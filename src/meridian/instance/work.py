"""Helper programs (compiler, initdb, cp) that can be ended from another thread."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from typing import Any

from meridian.instance.errors import SetupError

_lock = threading.Lock()
_running: list[subprocess.Popen[str]] = []
_aborted = False


def run(command: list[str], text: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Like subprocess.run with captured text. Raises SetupError after `abort`."""
    with _lock:
        if _aborted:
            raise SetupError("stopped")
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        _running.append(process)
    try:
        out, err = process.communicate(text)
    finally:
        with _lock:
            _running.remove(process)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def abort() -> None:
    """End what runs and start nothing more: this process is about to end."""
    global _aborted
    with _lock:
        _aborted = True
        for process in _running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
