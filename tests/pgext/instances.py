"""A cluster of two instances for the tests of one module, and sessions there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg.conninfo

from tests.ephemeral import ephemeral

Pair = tuple[psycopg.Connection[Any], psycopg.Connection[Any]]

_sockets: dict[str, str] = {}


def superuser(dsn: str) -> psycopg.Connection[Any]:
    """A session of the internal superuser at the same instance."""
    port = psycopg.conninfo.conninfo_to_dict(dsn)["port"]
    return psycopg.connect(
        host=_sockets[dsn], port=port, user="meridian_root", dbname="postgres", autocommit=True
    )


@contextlib.contextmanager
def two_instances() -> Iterator[tuple[str, str]]:
    """The DSNs of two instances of one ephemeral cluster."""
    with ephemeral("--query-hosts", "2") as facts:
        first, second = facts["dsns"]
        run = json.loads((Path(facts["dir"]) / "run.json").read_text())
        _sockets[first] = _sockets[second] = run["socket_directory"]
        yield first, second


@contextlib.contextmanager
def emptied(dsns: Iterable[str]) -> Iterator[Pair]:
    """Sessions at two instances, and nothing in the schema public."""
    here, there = (psycopg.connect(dsn, autocommit=True) for dsn in dsns)
    with here, there:
        here.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        yield here, there
