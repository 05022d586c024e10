"""Several sessions of one test, each in a transaction when the test says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Its instances."""

    dsn: tuple[str, ...]


class Session:
    """One connection; statements are run as written, autocommit."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of `sql`; an empty list for statements without rows."""
        cursor = self.connection.execute(sql)
        return cursor.fetchall() if cursor.description else []

    def begin(self) -> None:
        self.run("BEGIN ISOLATION LEVEL REPEATABLE READ")

    def commit(self) -> None:
        self.run("COMMIT")

    def commit_conflicts(self) -> bool:
        """Does COMMIT fail with 40001? Any other failure is raised."""
        try:
            self.commit()
        except psycopg.errors.SerializationFailure:
            return True
        return False


@contextmanager
def sessions(dsn: tuple[str, ...], count: int) -> Iterator[list[Session]]:
    """`count` sessions, on the instances in turn; table test(id, value) = {1: 10, 2: 20}."""
    with ExitStack() as stack:
        opened = [
            stack.enter_context(psycopg.connect(dsn[number % len(dsn)], autocommit=True))
            for number in range(count)
        ]
        setup = opened[0]
        setup.execute("DROP TABLE IF EXISTS test")
        setup.execute("CREATE TABLE test (id int PRIMARY KEY, value int)")
        setup.execute("INSERT INTO test VALUES (1, 10), (2, 20)")
        yield [Session(connection) for connection in opened]
