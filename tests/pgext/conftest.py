"""A stock PostgreSQL with the codec part of the extension loaded: no gateway, heap tables."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from meridian.bench import servers
from meridian.instance import binaries, extension
from meridian.instance.users import pg_user

CODEC_FILES = ["module", "msgpack", "orderbytes", "rowcodec", "keyenc", "proto", "wire", "debug"]


def build_library(target: Path, names: list[str]) -> None:
    """Some of the extension's files as a loadable `meridian.so` in `target`."""
    install = binaries.for_user(binaries.find(), pg_user())
    sources = extension.source_directory() / "src"
    files = [str(sources / f"{name}.c") for name in names]
    include = ["-I", str(install.includedir_server), "-D_GNU_SOURCE"]
    output = target / extension.LIBRARY
    subprocess.run(
        [*extension.compiler(), *extension.FLAGS, *include, "-shared", *files, "-lm",
         "-o", str(output)],
        check=True,
    )
    output.chmod(0o755)


@pytest.fixture(scope="module")
def codec() -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection to that server, with schema `meridian_debug`."""
    with servers.scratch() as directory:
        build_library(directory, CODEC_FILES)
        settings = {
            "shared_preload_libraries": "meridian",
            "dynamic_library_path": f"{directory}:$libdir",
            "fsync": "off",
            "timezone": "UTC",
        }
        with (
            servers.stock(directory, settings) as dsn,
            psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection,
        ):
            script = extension.source_directory() / "sql" / "meridian_debug.sql"
            connection.execute(script.read_text())
            yield connection
