"""One instance: a PostgreSQL data directory with the extension, its start and its end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from meridian.instance import binaries, config, extension, processes, scram, template
from meridian.instance.errors import SetupError
from meridian.instance.users import PgUser, clean_environment, die_with_parent, pg_user

STAMP = "meridian.json"


def _quiet(_: str) -> None:
    return None


class Instance:
    """Manages the data directory `data`, whose parent must exist and be reachable by `user`.

    `report` hears about work that takes long. Everything here blocks; none of it needs asyncio.
    """

    def __init__(
        self, data: Path, report: Callable[[str], None] = _quiet, user: PgUser | None = None
    ) -> None:
        self.user = user or pg_user()
        self.data = Path(os.path.realpath(data))
        self.report = report
        self.install = binaries.for_user(binaries.find(), self.user)
        self.extension = extension.compiled(self.install, report)

    def prepare(self, password: str) -> None:
        """Make the directory if it is missing, from a template of this very extension.

        A directory of another version of the extension is a stale cache and is made anew: the
        catalog is in the journal. Raises SetupError.
        """
        processes.kill_leftovers(self.data)
        stamp = self._stamp(password)
        if self._read_stamp() != stamp:
            self._create(password, stamp)

    def recreate(self, password: str) -> None:
        """Throw the directory away and make it anew."""
        processes.kill_leftovers(self.data)
        self._create(password, self._stamp(password))

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

    def sql(self, settings: config.Settings, script: str, database: str = "postgres") -> str:
        """Run SQL as our superuser over the private socket; its unaligned output.

        Raises SetupError with PostgreSQL's words.
        """
        done = subprocess.run(
            [
                str(binaries.find().program("psql")),
                "-XqAt",
                "-v",
                "ON_ERROR_STOP=1",
                "-f",
                "-",
                "-h",
                str(settings.socket_directory),
                "-p",
                str(settings.port),
                "-U",
                template.SUPERUSER,
                "-d",
                database,
            ],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            env=clean_environment(),
        )
        if done.returncode != 0:
            raise SetupError(f"SQL failed:\n{done.stderr.strip()}")
        return done.stdout

    def _create(self, password: str, stamp: str) -> None:
        source = template.meridian_template(self.install, self.extension, self.user, self.report)
        if self.data.exists():
            shutil.rmtree(self.data)
        template.copy(source, self.data, self.user)
        verifier = scram.verifier(password)
        script = f"ALTER ROLE admin PASSWORD '{verifier}';\n\n"
        options = template.library_settings(self.extension)
        template.single_user(self.install, self.user, self.data, options, script)
        self._write(STAMP, stamp)

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
