"""The extension under AddressSanitizer and UndefinedBehaviorSanitizer: nothing is reported.

By hand: MERIDIAN_EXTENSION_SANITIZE=DIR pytest tests/pgext; DIR is open to PostgreSQL's user.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from meridian.bench import servers
from meridian.instance import binaries, extension, sanitizer
from meridian.instance.users import pg_user

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = [
    f"tests/differential/test_differential.py::test_programs_nightly[{start}]"
    for start in range(100, 500, 20)
]
GROUPS = {
    "pgext": ["tests/pgext"],
    "differential": ["tests/differential", "tests/isolation"],
    "clients": ["tests/clients"],
}
TIMEOUT_S = 3000

CANARY = """
#include "postgres.h"
#include "fmgr.h"
#include "utils/memutils.h"
PG_MODULE_MAGIC;
void _PG_init(void);
void _PG_init(void)
{
	volatile int ten = 10;
	%s
}
"""
BUGS = {
    "a byte behind a chunk": "char *p = palloc(ten); p[ten] = 1;",
    "a chunk of a context that was reset": (
        'MemoryContext c = AllocSetContextCreate(CurrentMemoryContext, "c",'
        " ALLOCSET_DEFAULT_SIZES); char *p = MemoryContextAlloc(c, ten);"
        " MemoryContextReset(c); p[0] = 1;"
    ),
    "a chunk made smaller": "char *p = palloc(50); p = repalloc(p, ten); p[ten] = 1;",
    "behind an array on the stack": "volatile char a[10]; a[ten] = 1;",
    "a shift by too much": "ten = 1 << (ten + 30);",
}


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of the reports; everything started from here on is sanitized."""
    with tempfile.TemporaryDirectory(dir=os.environ["MERIDIAN_STATE_DIR"]) as name:
        os.chmod(name, 0o777)
        monkeypatch.setenv(sanitizer.VARIABLE, name)
        yield Path(name)


def read(reports: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(reports.iterdir()))


def build_canary(target: Path, body: str) -> Path:
    source, library = target / "canary.c", target / "canary.so"
    source.write_text(CANARY % body)
    include = ["-I", str(binaries.for_user(binaries.find(), pg_user()).includedir_server)]
    flags = [*extension.FLAGS, *sanitizer.flags(extension.source_directory())]
    command = [*extension.compiler(), *flags, "-D_GNU_SOURCE", *include, "-shared", str(source)]
    subprocess.run([*command, "-fvisibility=default", "-o", str(library)], check=True)
    library.chmod(0o755)
    return library


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_are_seen(reports: Path, bug: str) -> None:
    with servers.scratch() as directory:
        library = build_canary(directory, BUGS[bug])
        environment = extension.environment()
        with servers.stock(directory, {"fsync": "off"}, environment) as dsn:
            with psycopg.connect(dsn, autocommit=True) as session:
                assert read(reports) == ""
                with contextlib.suppress(psycopg.OperationalError):
                    session.execute(f"LOAD '{library}'")
    assert "canary.c" in read(reports)


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("group", [*GROUPS, "programs"])
def test_nothing_is_reported(reports: Path, group: str) -> None:
    paths = GROUPS.get(group, PROGRAMS)
    choice = ["-m", "not nightly"] if group in GROUPS else []
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"MERIDIAN_STATE_DIR", "PYTEST_ADDOPTS"}
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout=900", *choice, *paths],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert read(reports) == ""
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_random_streams(tmp_path: Path) -> None:
    """The protocol and msgpack readers on frames with wrong lengths, cut and random ones."""
    sources = extension.source_directory() / "src"
    files = [str(sources / f"{name}.c") for name in ("proto", "msgpack", "protolib")]
    fuzz = tmp_path / "fuzz"
    flags = [
        "-std=gnu11",
        "-O1",
        "-g",
        "-Wall",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-DMER_PROTO_LIB",
        "-I",
        str(sources),
    ]
    program = str(ROOT / "tests" / "pgext" / "fuzz_proto.c")
    subprocess.run([*extension.compiler(), *flags, program, *files, "-o", str(fuzz)], check=True)
    done = subprocess.run([str(fuzz), "0", "100000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[0]) > 50_000, "most streams have answers"
