"""Random DDL, issued at two instances in turn: their catalogs are equal, row by row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.pgext.ddl_objects import Objects
from tests.pgext.instances import two_instances
from tests.pgext.test_catdelta import differences

PROGRAMS = int(os.environ.get("MERIDIAN_DDL_INSTANCE_PROGRAMS", "20"))
NIGHTLY_PROGRAMS = 500
SEEDS = [
    *range(PROGRAMS),
    *(pytest.param(s, marks=pytest.mark.nightly) for s in range(PROGRAMS, NIGHTLY_PROGRAMS)),
]
STATEMENTS = 300
COMPARED_EVERY = 100

Connection = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def dsns() -> Iterator[tuple[str, str]]:
    with two_instances() as both:
        yield both


def clean(connection: Connection, prefix: str) -> None:
    """Drops everything that a program may have made."""
    rows = connection.execute(
        "SELECT nspname FROM pg_namespace WHERE nspname ~ '^s[0-9]$'"
    ).fetchall()
    for (schema,) in rows:
        connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())
    connection.execute("DROP SCHEMA public CASCADE")
    connection.execute("CREATE SCHEMA public")
    roles = connection.execute(
        "SELECT rolname FROM pg_roles WHERE rolname ~ %s", (f"^{prefix}[0-9]$",)
    ).fetchall()
    for (role,) in roles:
        connection.execute(f"GRANT {role} TO admin".encode())
        connection.execute(f"DROP OWNED BY {role} CASCADE".encode())
    for (role,) in roles:
        connection.execute(f"DROP ROLE {role}".encode())


def compare(one: Connection, other: Connection, where: object) -> None:
    for session in (one, other):
        session.execute("DISCARD TEMP")
    assert not differences(one, other), where


@pytest.mark.parametrize("seed", SEEDS)
def test_program(dsns: tuple[str, str], seed: int) -> None:
    states: Counter[str] = Counter()
    done = 0
    with (
        psycopg.connect(dsns[0], autocommit=True, prepare_threshold=None) as one,
        psycopg.connect(dsns[1], autocommit=True, prepare_threshold=None) as other,
    ):
        for number, group in enumerate(Objects(seed).program(STATEMENTS)):
            session = (one, other)[number % 2]
            for sql in group:
                try:
                    session.execute(sql.encode())
                    states["00000"] += 1
                except psycopg.Error as error:
                    state = error.sqlstate or ""
                    assert not state.startswith(("XX", "58", "08", "40")), (sql, error)
                    states[state] += 1
            done += len(group)
            if done % COMPARED_EVERY < len(group):
                compare(one, other, (number, group))
        compare(one, other, states)
        assert states["00000"] > STATEMENTS // 4, states
        clean(one, "r")
        assert not differences(one, other)
