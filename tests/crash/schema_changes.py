"""A client that changes the schema without end, on any instance, and keeps a ledger of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import psycopg

KEPT = 4
"""Tables that live at a time."""


class SchemaClient(threading.Thread):
    """Makes tables with a row each and drops them; meanwhile alters what the other clients use.

    `get_dsns` gives the instances as they are now.
    """

    def __init__(self, get_dsns: Callable[[], list[str]], stop: threading.Event, seed: int) -> None:
        super().__init__(daemon=True)
        self.get_dsns, self.stopping = get_dsns, stop
        self.rng = random.Random(seed)
        self.number = 0
        self.there: set[int] = set()
        self.gone: set[int] = set()
        self.unknown: set[int] = set()
        self.done = 0
        self.refused = 0
        self.unexpected: list[str] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                dsn = self.rng.choice(self.get_dsns())
                with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
                    for _ in range(4):
                        self._change(connection)
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError):
                time.sleep(0.05)

    def _change(self, connection: psycopg.Connection) -> None:
        self.rng.choice((self._create, self._drop, self._alter, self._index))(connection)
        time.sleep(self.rng.uniform(0, 0.1))

    def _create(self, connection: psycopg.Connection) -> None:
        self.number += 1
        number = self.number
        script = (
            f"BEGIN; CREATE TABLE made{number} (id int PRIMARY KEY, by text);"
            f"INSERT INTO made{number} VALUES ({number}, 'x'); COMMIT"
        )
        self._note(connection, script, number, self.there)

    def _drop(self, connection: psycopg.Connection) -> None:
        if len(self.there) > KEPT:
            number = min(self.there)
            self.there.discard(number)
            if not self._note(connection, f"DROP TABLE made{number}", number, self.gone):
                self.there.add(number)

    def _alter(self, connection: psycopg.Connection) -> None:
        column = f"extra{self.rng.randrange(3)}"
        action = self.rng.choice(
            (f"ADD COLUMN IF NOT EXISTS {column} int DEFAULT 5", f"DROP COLUMN IF EXISTS {column}")
        )
        self._note(connection, f"ALTER TABLE entry {action}")

    def _index(self, connection: psycopg.Connection) -> None:
        self._note(
            connection,
            self.rng.choice(
                (
                    "CREATE OR REPLACE FUNCTION named() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                    "CREATE OR REPLACE VIEW seen AS SELECT client, seq FROM entry",
                    "COMMENT ON TABLE account IS 'money'",
                    "GRANT SELECT ON account TO PUBLIC",
                )
            ),
        )

    def _note(
        self,
        connection: psycopg.Connection,
        sql: str,
        number: int = 0,
        acknowledged: set[int] | None = None,
    ) -> bool:
        """False: it has certainly not happened. A lost connection is passed on."""
        try:
            connection.execute(sql.encode())
        except psycopg.Error as error:
            if error.sqlstate == "40001":
                self.refused += 1
                if not connection.closed:
                    connection.execute("ROLLBACK")
                return False
            if error.sqlstate is not None and not error.sqlstate.startswith(("08", "57", "XX")):
                self.unexpected.append(f"{sql}: {error.sqlstate} {error}")
            self.unknown.add(number)
            self.there.discard(number)
            raise psycopg.OperationalError(str(error)) from error
        self.done += 1
        if acknowledged is not None:
            acknowledged.add(number)
        return True


def check(dsns: list[str], client: SchemaClient) -> None:
    """Every promise about tables, on every instance."""
    assert not client.unexpected, client.unexpected[:3]
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            found = {
                int(name[4:])
                for (name,) in connection.execute(
                    "SELECT relname FROM pg_class WHERE relname ~ '^made[0-9]+$'"
                )
            }
            assert client.there <= found, f"lost tables: {sorted(client.there - found)}"
            assert not client.gone & found, f"dropped, but there: {sorted(client.gone & found)}"
            known = client.there | client.gone | client.unknown
            assert found <= known, f"tables of refused changes: {sorted(found - known)}"
            for number in sorted(found):
                rows = connection.execute(f"SELECT id FROM made{number}".encode()).fetchall()
                assert rows == [(number,)], number
