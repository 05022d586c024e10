"""The C extension: compiled at first start, cached by the hash of its sources and the server."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from meridian.instance import cache, sanitizer, work
from meridian.instance.binaries import PgInstall
from meridian.instance.errors import SetupError
from meridian.instance.users import clean_environment

FLAGS = (
    "-std=gnu11 -O2 -g -fPIC -fvisibility=hidden -fwrapv -fno-strict-aliasing "
    "-Wall -Wmissing-prototypes -Wpointer-arith -Wdeclaration-after-statement -Wvla "
    "-Wendif-labels -Wformat-security"
).split()
LIBRARY = "meridian.so"


@dataclass(frozen=True)
class Extension:
    """A compiled extension: `control_path` and `library_path` are what PostgreSQL is told."""

    control_path: Path
    library_path: Path
    bootstrap: Path
    key: str


def source_directory() -> Path:
    """`pgext`: inside the installed package, or beside `src` in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "_pgext", package.parent.parent / "pgext"):
        if (candidate / "meridian.control").is_file():
            return candidate
    raise SetupError("the sources of the PostgreSQL extension are missing from this installation")


def compiled(install: PgInstall, report: Callable[[str], None]) -> Extension:
    """The extension for `install`, compiled now if it is not in the cache.

    Raises SetupError without a C compiler or when compiling fails.
    """
    sources = source_directory()
    key = _key(sources, install)

    def build(target: Path) -> None:
        report("Compiling the PostgreSQL extension (once)...")
        _compile(sources, install, target)

    path = cache.entry(f"extension-{key}", build)
    return Extension(path / "share", path / "lib", path / "share" / "bootstrap.sql", key)


def _key(sources: Path, install: PgInstall) -> str:
    digest = hashlib.sha256()
    sanitize = sanitizer.FLAGS if sanitizer.reports() else []
    for fact in (install.version, platform.machine(), " ".join([*FLAGS, *sanitize])):
        digest.update(fact.encode() + b"\0")
    for path in sorted((*sources.glob("src/*.[ch]"), *sources.glob("sql/*"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for name in ("meridian.control", "Makefile"):
        digest.update((sources / name).read_bytes())
    return digest.hexdigest()[:16]


def _compile(sources: Path, install: PgInstall, target: Path) -> None:
    program = compiler()
    extension_directory = target / "share" / "extension"
    for directory in (extension_directory, target / "lib", target / "objects"):
        directory.mkdir(parents=True)
    shutil.copy(sources / "meridian.control", extension_directory)
    for script in sources.glob("sql/meridian--*.sql"):
        shutil.copy(script, extension_directory)
    shutil.copy(sources / "sql" / "bootstrap.sql", target / "share")
    files = _files(sources)
    include = ["-I", str(install.includedir_server), "-D_GNU_SOURCE", *sanitizer.flags(sources)]
    objects = [target / "objects" / f"{path.stem}.o" for path in files]
    commands = [
        [*program, *FLAGS, *include, "-c", str(path), "-o", str(made)]
        for path, made in zip(files, objects, strict=True)
    ]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(_run, commands))
    output = target / "lib" / LIBRARY
    link = [*_link_flags(install), *(sanitizer.FLAGS if sanitizer.reports() else [])]
    _run([*program, *link, *map(str, objects), "-o", str(output)])
    shutil.rmtree(target / "objects")
    subprocess.run(["chmod", "-R", "a+rX", str(target)], check=True)


def _files(sources: Path) -> list[Path]:
    """The C files of the library: OBJS of its Makefile, which `make` cannot use on every path."""
    makefile = (sources / "Makefile").read_text().replace("\\\n", " ")
    found = re.search(r"^OBJS\s*=(.*)$", makefile, re.MULTILINE)
    assert found is not None, "pgext/Makefile lists OBJS"
    return [sources / name.replace(".o", ".c") for name in found[1].split()]


def _link_flags(install: PgInstall) -> list[str]:
    if sys.platform == "darwin":
        return ["-bundle", "-bundle_loader", str(install.program("postgres"))]
    return ["-shared", "-lm"]


def compiler() -> list[str]:
    """The C compiler's command: $CC, or the first of the usual names. Raises SetupError."""
    chosen = os.environ.get("CC")
    if chosen:
        return chosen.split()
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise SetupError(
        "no C compiler was found; Meridian's PostgreSQL extension is compiled at first start",
        "Install one. Debian and Ubuntu: apt install gcc libc6-dev. Fedora: dnf install gcc.",
    )


def environment() -> dict[str, str]:
    """The environment of PostgreSQL processes that load the extension. Raises SetupError."""
    extra = sanitizer.environment(compiler()) if sanitizer.reports() else {}
    return {**clean_environment(), **extra}


def _run(command: list[str]) -> None:
    done = work.run(command)
    if done.returncode != 0:
        raise SetupError(f"compiling the PostgreSQL extension failed:\n{done.stderr.strip()}")
    if done.stderr.strip() and os.environ.get("MERIDIAN_SHOW_WARNINGS"):
        sys.stderr.write(done.stderr)
