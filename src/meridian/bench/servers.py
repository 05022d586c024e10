"""The two servers of a comparison: `meridian dev` as a user starts it, and stock PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from meridian.embedded import places
from meridian.instance import binaries, processes, template
from meridian.instance.errors import SetupError
from meridian.instance.users import clean_environment, die_with_parent, pg_user

STOP_TIMEOUT_S = 10.0


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary directory that PostgreSQL's user can pass through."""
    directory = Path(tempfile.mkdtemp(prefix="meridian-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def ours(directory: Path, *options: str) -> Iterator[str]:
    """The DSN of a running `meridian dev` on `directory`. Raises SetupError."""
    command = [sys.executable, "-m", "meridian", "dev", "--dir", str(directory), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--json", *options],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent(signal.SIGTERM),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SetupError(f"meridian dev ended (status {process.wait()})")
        yield str(json.loads(line)["dsn"])
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def stock(
    directory: Path,
    settings: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[str]:
    """The DSN of a stock PostgreSQL 18 in `directory`: heap tables, defaults, fsync on.

    `settings` are more of postgresql.conf, `environment` replaces the clean one. Raises SetupError.
    """
    user = pg_user()
    install = binaries.for_user(binaries.find(), user)
    home = directory / "stock"
    home.mkdir(mode=0o700)
    user.own(home)
    data = Path(os.path.realpath(home / "data"))
    template.initdb(install, user, data, template.STOCK_FLAGS)
    port = places.choose_port("127.0.0.1", 0)
    words = {"port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
    words |= settings or {}
    command = [str(install.program("postgres")), "-D", str(data)]
    command += [word for name, value in words.items() for word in ("-c", f"{name}={value}")]
    with open(directory / "stock.log", "ab") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment or clean_environment(),
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGQUIT),
            **user.popen_options(),
        )
    try:
        processes.wait_ready(data, process)
        yield f"postgresql://admin@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        finally:
            processes.kill_leftovers(data)
