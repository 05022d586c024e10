"""Runs one script on our cluster and on stock PostgreSQL; the answers must be equal."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.conftest import Server

Answer = tuple[str, Any]


def answer(session: psycopg.Connection, sql: str) -> Answer:
    """Rows, a command tag, or SQLSTATE and message."""
    try:
        cursor = session.execute(sql.encode())
    except psycopg.Error as error:
        return ("error", (error.sqlstate, error.diag.message_primary))
    if cursor.description is None:
        return ("tag", cursor.statusmessage)
    return ("rows", cursor.fetchall())


def script(text: str) -> list[str]:
    """Statements, each ended by a semicolon at a line's end that no quote encloses."""
    statements: list[str] = []
    current = ""
    for part in (text.strip() + "\n").split(";\n"):
        current += part
        if current.count("'") % 2:
            current += ";\n"
            continue
        if current.strip():
            statements.append(current.strip())
        current = ""
    return statements


def run(server: Server, statements: list[str], schema: str = "compared") -> list[Answer]:
    """Answers to the statements, run in a schema of their own that is dropped at the end."""
    with psycopg.connect(server.dsn, autocommit=True) as session:
        session.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())
        session.execute(f"CREATE SCHEMA {schema}".encode())
        session.execute(f"SET search_path = {schema}".encode())
        try:
            return [answer(session, sql) for sql in statements]
        finally:
            session.execute("ROLLBACK")
            session.execute(f"DROP SCHEMA {schema} CASCADE".encode())


def assert_same(cluster: Server, stock: Server, text: str) -> None:
    """Every statement of the script ends alike on both."""
    statements = script(text)
    ours, theirs = run(cluster, statements), run(stock, statements)
    for sql, got, expected in zip(statements, ours, theirs, strict=True):
        assert (sql, got) == (sql, expected)
