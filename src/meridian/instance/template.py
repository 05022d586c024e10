"""The template directory: initdb and the extension's bootstrap, done once and then copied."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from meridian.instance import cache, work
from meridian.instance.binaries import PgInstall
from meridian.instance.errors import SetupError
from meridian.instance.extension import Extension, environment
from meridian.instance.users import PgUser, clean_environment

SUPERUSER = "meridian_root"
INITDB_FLAGS = (
    "--encoding=UTF8 --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C "
    f"--wal-segsize=1 --no-sync --no-instructions --auth=reject --username={SUPERUSER}"
).split()
STOCK_FLAGS = (
    "--encoding=UTF8 --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C "
    "--no-sync --no-instructions --auth=trust --username=admin"
).split()


def meridian_template(
    install: PgInstall, extension: Extension, user: PgUser, report: Callable[[str], None]
) -> Path:
    """A data directory that holds the extension and the first roles; never started from."""
    facts = f"{extension.key} {user.uid} {INITDB_FLAGS} {install.bindir}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]

    def build(target: Path) -> None:
        report("Preparing the PostgreSQL template (once)...")
        user.own(target)
        data = target / "data"
        initdb(install, user, data, INITDB_FLAGS)
        script = extension.bootstrap.read_text()
        options = [*library_settings(extension), "allow_system_table_mods=on"]
        single_user(install, user, data, options, script)

    return cache.entry(f"template-{key}", build) / "data"


def library_settings(extension: Extension) -> list[str]:
    """The settings by which PostgreSQL finds and loads the extension."""
    return [
        f"extension_control_path={extension.control_path}:$system",
        f"dynamic_library_path={extension.library_path}:$libdir",
        "shared_preload_libraries=meridian",
    ]


def initdb(install: PgInstall, user: PgUser, data: Path, flags: list[str]) -> None:
    """Run initdb. Raises SetupError with its output when it fails."""
    command = [str(install.program("initdb")), "-D", str(data), *flags]
    _run(command, user, "initdb")


def single_user(
    install: PgInstall, user: PgUser, data: Path, options: list[str], script: str
) -> None:
    """Run SQL on a data directory without a server; statements end with `;` and an empty line.

    Raises SetupError with PostgreSQL's words when a statement fails.
    """
    settings = [word for option in options for word in ("-c", option)]
    command = [str(install.program("postgres")), "--single", "-j", "-F", "-D", str(data)]
    command += ["-c", "exit_on_error=true", "-c", "log_min_messages=warning", *settings]
    _run([*command, "postgres"], user, "setting up the database", script, environment())


def copy(template: Path, data: Path, user: PgUser) -> None:
    """Copy a data directory as its owner. Raises SetupError when the disk refuses."""
    _run(["cp", "-R", str(template), str(data)], user, "copying the template")


def _run(
    command: list[str],
    user: PgUser,
    what: str,
    text: str = "",
    env: dict[str, str] | None = None,
) -> None:
    env = clean_environment() if env is None else env
    done = work.run(command, text, cwd="/", env=env, **user.popen_options())
    if done.returncode != 0:
        output = (done.stderr.strip() or done.stdout.strip())[-4000:]
        raise SetupError(f"{what} failed (exit status {done.returncode}):\n{output}")
