"""Two transactions on two instances, interleaved: both work, then one commits after the other."""

from __future__ import annotations

import psycopg

from tests.locks.conftest import Session

Outcome = str | None


def state(session: Session, sql: str) -> Outcome:
    """The SQLSTATE a statement ends with, None for success."""
    try:
        session.execute(sql.encode())
    except psycopg.Error as error:
        assert error.sqlstate is not None, error
        return error.sqlstate
    return None


def race(one: Session, first: str, other: Session, second: str) -> tuple[Outcome, Outcome]:
    """Both begin and work; `first` commits, then `second`. How each COMMIT ended."""
    for session, work in ((one, first), (other, second)):
        session.execute("BEGIN")
        # The snapshots are taken here: neither sees the other's work.
        session.execute("SELECT count(*) FROM snapshot_taken")
        for statement in filter(None, map(str.strip, work.split(";"))):
            session.execute(statement.encode())
    return state(one, "COMMIT"), state(other, "COMMIT")


def rows(session: Session, sql: str) -> list[tuple[object, ...]]:
    return session.execute(sql.encode()).fetchall()
