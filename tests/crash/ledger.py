"""A workload whose client keeps a ledger of what it was told, and the check of that ledger.

Each transaction moves money between two accounts and writes one entry; a secondary and a unique
index go along. The ledger notes each entry as acknowledged, refused or unknown.
"""

from __future__ import annotations

import random
import threading
import time

import psycopg

ACCOUNTS = 200
BALANCE = 1_000

SCHEMA = """
CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance int NOT NULL);
CREATE TABLE IF NOT EXISTS entry (client int, seq int, source int REFERENCES account,
  target int REFERENCES account, amount int, note text, PRIMARY KEY (client, seq));
CREATE UNIQUE INDEX IF NOT EXISTS entry_note ON entry (note);
CREATE INDEX IF NOT EXISTS entry_source ON entry (source, amount DESC);
"""


def set_up(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(SCHEMA)
        connection.execute(
            f"INSERT INTO account SELECT g, {BALANCE} FROM generate_series(1, {ACCOUNTS}) g "
            "ON CONFLICT DO NOTHING"
        )


class Client(threading.Thread):
    """Runs transactions until told to stop; survives every lost connection."""

    def __init__(self, number: int, get_dsn, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.number, self.get_dsn, self.stopping = number, get_dsn, stop
        self.rng = random.Random(number)
        self.seq = 0
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()
        self.refused: set[int] = set()
        self.unexpected: list[str] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                with psycopg.connect(self.get_dsn(), connect_timeout=5) as connection:
                    while not self.stopping.is_set():
                        self._transaction(connection)
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError):
                time.sleep(0.05)

    def _transaction(self, connection: psycopg.Connection) -> None:
        self.seq += 1
        seq = self.seq
        committing = False
        try:
            self._move(connection, seq)
            committing = True
            connection.commit()
            self.acknowledged.add(seq)
        except psycopg.errors.SerializationFailure:
            self.refused.add(seq)
            connection.rollback()
        except psycopg.Error as error:
            known = error.sqlstate is not None and not error.sqlstate.startswith(("08", "57", "XX"))
            (self.refused if known or not committing else self.unknown).add(seq)
            if known:
                self.unexpected.append(f"{error.sqlstate} {error}")
            if connection.closed or connection.broken:
                raise
            connection.rollback()

    def _move(self, connection: psycopg.Connection, seq: int) -> None:
        source, target = self.rng.sample(range(1, ACCOUNTS + 1), 2)
        amount = self.rng.randint(1, 9)
        connection.execute(
            "UPDATE account SET balance = balance - %s WHERE id = %s", (amount, source)
        )
        connection.execute(
            "UPDATE account SET balance = balance + %s WHERE id = %s", (amount, target)
        )
        connection.execute(
            "INSERT INTO entry VALUES (%s, %s, %s, %s, %s, %s)",
            (self.number, seq, source, target, amount, f"{self.number}-{seq}"),
        )


def check(dsn: str, clients: list[Client]) -> int:
    """Every promise of the ledger against the database; the number of entries found."""
    with psycopg.connect(dsn) as connection:
        found = {(c, s) for c, s in connection.execute("SELECT client, seq FROM entry")}
        total = connection.execute("SELECT sum(balance) FROM account").fetchone()
        moved = connection.execute(
            """
            SELECT a.id, a.balance, %s
              - coalesce((SELECT sum(amount) FROM entry WHERE source = a.id), 0)
              + coalesce((SELECT sum(amount) FROM entry WHERE target = a.id), 0)
            FROM account a ORDER BY id""",
            (BALANCE,),
        ).fetchall()
        notes = connection.execute("SELECT count(DISTINCT note) FROM entry").fetchone()
    assert total == (ACCOUNTS * BALANCE,), total
    assert [row for row in moved if row[1] != row[2]] == [], "balances disagree with entries"
    assert notes == (len(found),)
    for client in clients:
        mine = {seq for number, seq in found if number == client.number}
        lost = client.acknowledged - mine
        assert not lost, f"client {client.number}: acknowledged but lost: {sorted(lost)[:10]}"
        ghosts = mine & client.refused
        assert not ghosts, f"client {client.number}: refused but there: {sorted(ghosts)[:10]}"
        assert mine <= client.acknowledged | client.unknown, "an entry nobody wrote"
        assert not client.unexpected, client.unexpected[:3]
    return len(found)
