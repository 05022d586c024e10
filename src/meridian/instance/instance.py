"""One instance: a PostgreSQL data directory with the extension, its start and its end."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from meridian.instance import config, extension, processes, scram, template
from meridian.instance.errors import SetupError
from meridian.instance.software import Software, find
from meridian.instance.users import die_with_parent

STAMP = "meridian.json"


def sync_files(directory: Path) -> None:
    """Everything written so far to the file system of `directory` is on disk afterwards."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        if not sys.platform.startswith("linux") or ctypes.CDLL(None).syncfs(descriptor) != 0:
            os.sync()
    finally:
        os.close(descriptor)


def _quiet(_: str) -> None:
    return None


class Instance:
    """Manages the data directory `data`, whose parent must exist and be reachable by `user`.

    `report` hears about work that takes long. Everything here blocks; none of it needs asyncio.
    """

    def __init__(
        self, data: Path, report: Callable[[str], None] = _quiet, software: Software | None = None
    ) -> None:
        self.data = Path(os.path.realpath(data))
        self.report = report
        software = software or find(report)
        self.user = software.user
        self.install = software.install
        self.extension = software.extension

    def prepare(self, password: str) -> bool:
        """Make the directory if it is missing, from a template of this very extension.

        True: it is new, and wants `first_statements` and then `finish`; until `finish` it counts
        as missing. A directory of another version of the extension is a stale cache and is made
        anew: the catalog is in the journal. Raises SetupError.
        """
        processes.kill_leftovers(self.data)
        if self._read_stamp() == self._stamp(password):
            return False
        self.recreate()
        return True

    def recreate(self) -> None:
        """Throw the directory away and make it anew, as `prepare` does."""
        processes.kill_leftovers(self.data)
        source = template.meridian_template(self.install, self.extension, self.user, self.report)
        if self.data.exists():
            # The stamp first: half a directory must never look like a whole one.
            (self.data / STAMP).unlink(missing_ok=True)
            shutil.rmtree(self.data)
        template.copy(source, self.data, self.user)

    def first_statements(self, password: str) -> list[str]:
        """What our superuser runs in a new directory before anybody else comes."""
        return [
            "SET meridian.maintenance = on",
            f"ALTER ROLE admin PASSWORD '{scram.verifier(password)}'",
            "RESET meridian.maintenance",
        ]

    def finish(self, password: str, *, durable: bool = True) -> None:
        """The new directory is whole: later starts use it, also after a power cut if `durable`.

        PostgreSQL syncs what it writes, but it has not written the template's files.
        """
        if durable:
            sync_files(self.data)
        self._write(STAMP, self._stamp(password))

    def write_config(self, settings: config.Settings) -> None:
        """Write the three configuration files."""
        self._write("postgresql.conf", config.postgresql_conf(settings, self.extension))
        self._write("pg_hba.conf", config.pg_hba_conf(settings))
        self._write("pg_ident.conf", config.pg_ident_conf(self.user))

    def command(self) -> list[str]:
        """The postmaster's command line."""
        return [str(self.install.program("postgres")), "-D", str(self.data)]

    def popen_options(self) -> dict[str, Any]:
        """How to spawn the postmaster: as its user, in a session of its own, dying with us."""
        return {
            **self.user.popen_options(),
            "cwd": "/",
            "env": extension.environment(),
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
            "preexec_fn": die_with_parent(signal.SIGQUIT, batch=True),
        }

    def start(self, log: IO[Any]) -> subprocess.Popen[bytes]:
        """Spawn the postmaster and wait until it accepts connections.

        Raises SetupError when it ends or does not get there in time.
        """
        postmaster = subprocess.Popen(
            self.command(), stdout=log, stderr=log, **self.popen_options()
        )
        try:
            processes.wait_ready(self.data, postmaster)
        except SetupError:
            self.stop(postmaster)
            raise
        return postmaster

    def stop(self, postmaster: subprocess.Popen[bytes]) -> None:
        """Fast shutdown; by force when that takes over 3 s."""
        with contextlib.suppress(ProcessLookupError):
            postmaster.send_signal(signal.SIGINT)
        try:
            postmaster.wait(processes.STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            processes.kill_leftovers(self.data)
            postmaster.wait()

    def _stamp(self, password: str) -> str:
        """Names everything the directory was made from; another stamp means another directory."""
        secret = hashlib.sha256(password.encode()).hexdigest()
        return f'{{"format": 1, "extension": "{self.extension.key}", "password": "{secret}"}}\n'

    def _read_stamp(self) -> str:
        try:
            return (self.data / STAMP).read_text()
        except OSError:
            return ""

    def _write(self, name: str, text: str) -> None:
        path = self.data / name
        aside = path.with_name(f"{name}.new")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(text)
        self.user.own(aside)
        aside.rename(path)
