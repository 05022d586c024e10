"""Runs a program and records what a client sees: SQLSTATE, command tag, rows as text."""

from __future__ import annotations

import dataclasses

import psycopg

from tests.differential.programs import Program, Statement


@dataclasses.dataclass(frozen=True)
class Outcome:
    sqlstate: str
    status: str
    rows: tuple[tuple[bytes | None, ...], ...]


def run_statement(connection: psycopg.Connection, statement: Statement) -> Outcome:
    """One statement as the client sees it; rows are sorted unless their order counts."""
    result = connection.pgconn.exec_(statement.sql.encode())
    if result.error_message and result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
        state = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) or b"?????"
        return Outcome(state.decode(), "", ())
    rows = [
        tuple(result.get_value(row, column) for column in range(result.nfields))
        for row in range(result.ntuples)
    ]
    if not statement.ordered:
        rows.sort(key=lambda row: tuple((value is None, value or b"") for value in row))
    return Outcome("00000", (result.command_status or b"").decode(), tuple(rows))


def run_program(dsn: str, program: Program, schema: str) -> list[Outcome]:
    """All outcomes of `program`, run in a schema of its own that is dropped afterwards."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        connection.execute(f"SET search_path = {schema}")
        connection.execute("SET timezone = 'UTC'")
        try:
            return [run_statement(connection, statement) for statement in program.statements]
        finally:
            if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                connection.execute("ROLLBACK")
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


def differences(program: Program, ours: list[Outcome], stock: list[Outcome]) -> str | None:
    """The story up to the first difference, or None."""
    for position, statement in enumerate(program.statements):
        if ours[position] != stock[position]:
            story = "\n".join(f"  {s.sql};" for s in program.statements[: position + 1])
            return f"{story}\n  ours:  {ours[position]}\n  stock: {stock[position]}"
    return None
