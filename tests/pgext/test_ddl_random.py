"""Random DDL and DML against stock PostgreSQL: same SQLSTATE, same rows."""

from __future__ import annotations

import os

import psycopg
import pytest

from tests.conftest import Server
from tests.pgext.ddl_random import Program

PROGRAMS = int(os.environ.get("MERIDIAN_DDL_PROGRAMS", "40"))
STATEMENTS = 60


def answer(session: psycopg.Connection, sql: str) -> object:
    try:
        cursor = session.execute(sql.encode())
    except psycopg.Error as error:
        return error.sqlstate
    if cursor.description is None:
        return cursor.statusmessage
    return sorted(map(repr, cursor.fetchall()))


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_program(cluster: Server, stock: Server, seed: int) -> None:
    schema = f"random_{seed}"
    statements = Program(seed).statements(STATEMENTS)
    with (
        psycopg.connect(cluster.dsn, autocommit=True) as ours,
        psycopg.connect(stock.dsn, autocommit=True) as theirs,
    ):
        for session in (ours, theirs):
            session.execute(f"CREATE SCHEMA {schema}".encode())
            session.execute(f"SET search_path = {schema}".encode())
        try:
            for number, sql in enumerate(statements):
                got, expected = answer(ours, sql), answer(theirs, sql)
                assert (number, sql, got) == (number, sql, expected)
        finally:
            for session in (ours, theirs):
                session.execute("ROLLBACK")
                session.execute(f"DROP SCHEMA {schema} CASCADE".encode())
