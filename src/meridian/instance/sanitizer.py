"""For developers: the extension with AddressSanitizer and UndefinedBehaviorSanitizer.

MERIDIAN_EXTENSION_SANITIZE names a directory that PostgreSQL's user may write: reports go there,
one file per process. PostgreSQL itself is not instrumented, so its processes load the runtimes
first (LD_PRELOAD). Linux and gcc only.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from meridian.instance.errors import SetupError

VARIABLE = "MERIDIAN_EXTENSION_SANITIZE"
FLAGS = ("-fsanitize=address,undefined -fno-omit-frame-pointer -O1 -DMERIDIAN_SANITIZE").split()
_RUNTIMES = ("libasan.so", "libubsan.so")


def reports() -> Path | None:
    """Where reports go; None: no sanitizer."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).resolve() if chosen else None


def flags(sources: Path) -> list[str]:
    """What the compiler gets besides the usual flags; `sources` is the directory `pgext`.

    Every file includes sanitize.h first: it gives palloc's chunks exact ends.
    """
    if reports() is None:
        return []
    return [*FLAGS, "-include", str(sources / "src" / "sanitize.h")]


def environment(compiler: list[str]) -> dict[str, str]:
    """What a process that loads the extension needs in its environment.

    Raises SetupError where the compiler has no such runtimes.
    """
    directory = reports()
    if directory is None:
        return {}
    path = f"{directory}/report"
    common = f"log_path={path}:print_stacktrace=1"
    return {
        "LD_PRELOAD": " ".join(_runtime(compiler, name) for name in _RUNTIMES),
        "ASAN_OPTIONS": f"{common}:detect_leaks=0:abort_on_error=1:disable_coredump=1",
        "UBSAN_OPTIONS": common,
        "MERIDIAN_SANITIZE_REPORTS": path,
    }


def _runtime(compiler: list[str], name: str) -> str:
    command = [*compiler, f"-print-file-name={name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    path = Path(done.stdout.strip())
    if done.returncode != 0 or not path.is_absolute():
        raise SetupError(
            f"{VARIABLE} is set, but the compiler {compiler[0]} has no {name}",
            "Install gcc with its sanitizer libraries, or unset the variable.",
        )
    return str(path.resolve())
