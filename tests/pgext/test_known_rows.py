"""A row that a statement has locked or changed is found again by its unique key without asking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from meridian.gateway.client import Client


@pytest.fixture
def connection(cluster) -> Iterator[psycopg.Connection]:
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        # The key comes after the rows, so the table is kept by hidden ids.
        connection.execute(
            "CREATE SCHEMA known; SET search_path = known; SET enable_seqscan = off;"
            " CREATE TABLE t (id int, v int, w text);"
            " INSERT INTO t SELECT i, i, 'w' || i FROM generate_series(1, 20) i;"
            " ALTER TABLE t ADD PRIMARY KEY (id); ANALYZE t"
        )
        yield connection
        connection.execute("ROLLBACK")
        connection.execute("DROP SCHEMA known CASCADE")


def reads(connection: psycopg.Connection, client: Client, statement: str) -> tuple[int, object]:
    """How many ranges storage was asked for, and the first row."""
    before = client.admin("counters")["scans"]
    row = connection.execute(statement).fetchone()
    return client.admin("counters")["scans"] - before, row


def test_a_changed_row_is_not_asked_for_again(cluster, connection) -> None:
    path = json.loads((cluster.directory / "run.json").read_text())["gateway_socket"]
    with Client(Path(path), timeout_s=30) as client:
        connection.execute("SELECT v FROM t WHERE id = 3; BEGIN")
        connection.execute("SELECT v FROM t WHERE id = 1 FOR UPDATE")
        connection.execute("UPDATE t SET v = v + 10 WHERE id = 2")
        assert reads(connection, client, "SELECT w, v FROM t WHERE id = 1") == (0, ("w1", 1))
        assert reads(connection, client, "SELECT w, v FROM t WHERE id = 2") == (0, ("w2", 12))
        asked, row = reads(connection, client, "UPDATE t SET v = -v WHERE id = 1 RETURNING v")
        assert (asked, row) == (0, (-1,))
        assert reads(connection, client, "SELECT v FROM t WHERE id = 3") == (1, (3,))
        connection.execute("COMMIT")
        assert reads(connection, client, "SELECT v FROM t WHERE id = 1") == (1, (-1,))


def test_what_became_of_a_known_row(connection) -> None:
    """Deleted, given another key, taken back with a savepoint, its key given to another row."""

    def found(key: int) -> list[tuple[object, ...]]:
        return connection.execute(f"SELECT v, w FROM t WHERE id = {key}").fetchall()

    connection.execute("BEGIN; SELECT v FROM t WHERE id IN (4, 5) FOR UPDATE")
    for key in (4, 5, 6):
        connection.execute(f"SELECT v FROM t WHERE id = {key} FOR UPDATE")
    connection.execute("SAVEPOINT a; DELETE FROM t WHERE id = 4; UPDATE t SET id = 50 WHERE id = 5")
    assert found(4) == [] and found(5) == [] and found(50) == [(5, "w5")]
    connection.execute("INSERT INTO t VALUES (4, 400, 'new'); UPDATE t SET v = 7 WHERE id = 6")
    assert found(4) == [(400, "new")] and found(6) == [(7, "w6")]
    connection.execute("ROLLBACK TO a")
    assert found(4) == [(4, "w4")] and found(5) == [(5, "w5")] and found(6) == [(6, "w6")]
    assert found(50) == []
    connection.execute("ALTER TABLE t ADD COLUMN x int DEFAULT 9, DROP COLUMN v")
    assert connection.execute("SELECT * FROM t WHERE id = 4").fetchall() == [(4, "w4", 9)]
    connection.execute("COMMIT")
    assert connection.execute("SELECT * FROM t WHERE id = 5").fetchall() == [(5, "w5", 9)]
