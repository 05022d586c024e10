"""A stock PostgreSQL with the codec part of the extension loaded: no gateway, heap tables."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from meridian.bench import servers
from meridian.instance import binaries, extension, sanitizer
from meridian.instance.users import pg_user

CODEC_FILES = [
    "module",
    "common",
    "msgpack",
    "orderbytes",
    "rowcodec",
    "keyenc",
    "proto",
    "welcome",
    "wire",
    "wireerror",
    "debug",
    "catrules",
    "catcapture",
    "catapply",
    "catlock",
    "reach",
    "seqfile",
    "catdebug",
]


def build_library(target: Path, names: list[str]) -> None:
    """Some of the extension's files as a loadable `meridian.so` in `target`; sanitized if asked."""
    install = binaries.for_user(binaries.find(), pg_user())
    sources = extension.source_directory() / "src"
    files = [str(sources / f"{name}.c") for name in names]
    include = [
        "-I",
        str(install.includedir_server),
        "-D_GNU_SOURCE",
        *sanitizer.flags(sources.parent),
    ]
    output = target / extension.LIBRARY
    subprocess.run(
        [
            *extension.compiler(),
            *extension.FLAGS,
            *include,
            "-shared",
            *files,
            "-lm",
            "-o",
            str(output),
        ],
        check=True,
    )
    output.chmod(0o755)


@contextlib.contextmanager
def codec_only() -> Iterator[tuple[str, Path]]:
    """DSN of a server with schema `meridian_debug`, and the path its gateway should have."""
    with servers.scratch() as directory:
        build_library(directory, CODEC_FILES)
        gateway = directory / "gateway.sock"
        settings = {
            "shared_preload_libraries": "meridian",
            "dynamic_library_path": f"{directory}:$libdir",
            "meridian.gateway_socket": str(gateway),
            "fsync": "off",
            "timezone": "UTC",
        }
        with servers.stock(directory, settings, extension.environment()) as dsn:
            script = extension.source_directory() / "sql" / "meridian_debug.sql"
            with psycopg.connect(dsn) as connection:
                connection.execute(script.read_text())
            yield dsn, gateway


@pytest.fixture(scope="module")
def codec_server() -> Iterator[tuple[str, Path]]:
    """One such server."""
    with codec_only() as server:
        yield server


@pytest.fixture(scope="module")
def codec(codec_server: tuple[str, Path]) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """An autocommit connection to the server."""
    with psycopg.connect(codec_server[0], autocommit=True, prepare_threshold=None) as connection:
        yield connection
