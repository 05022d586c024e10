"""psycopg 3 unchanged: parameters, pipelines, COPY, server-side cursors, cancel, types."""

from __future__ import annotations

import datetime
import decimal
import threading
import time
import uuid

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb


@pytest.fixture
def connection(cluster):
    with psycopg.connect(cluster.dsn) as opened:
        opened.execute("DROP TABLE IF EXISTS item, big_item, point")
        opened.commit()
        yield opened
        opened.rollback()


def test_types_round_trip(connection) -> None:
    connection.execute("""CREATE TABLE item (id serial PRIMARY KEY, n numeric, f float8, t text,
        b bytea, u uuid, d date, ts timestamptz, j jsonb, a int[], ok bool)""")
    row = (
        decimal.Decimal("1.500"),
        2.25,
        "né",
        b"\x00\xff",
        uuid.UUID(int=7),
        datetime.date(2024, 2, 29),
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
        {"a": [1, None]},
        [1, None, 3],
        True,
    )
    connection.execute(
        "INSERT INTO item (n, f, t, b, u, d, ts, j, a, ok) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (*row[:7], Jsonb(row[7]), *row[8:]),
    )
    connection.commit()
    found = connection.execute("SELECT n, f, t, b, u, d, ts, j, a, ok FROM item").fetchone()
    assert found == row
    assert str(found[0]) == "1.500"


def test_copy_in_and_out(connection) -> None:
    connection.execute("CREATE TABLE item (id int PRIMARY KEY, t text)")
    with connection.cursor().copy("COPY item FROM STDIN") as copy:
        for number in range(5_000):
            copy.write_row((number, f"row {number}" if number % 3 else None))
    connection.commit()
    with connection.cursor().copy("COPY (SELECT * FROM item ORDER BY id) TO STDOUT") as copy:
        rows = list(copy.rows())
    assert len(rows) == 5_000 and rows[3] == ("3", None) and rows[4999] == ("4999", "row 4999")


def test_pipeline_and_executemany(connection) -> None:
    connection.execute("CREATE TABLE item (id int PRIMARY KEY, v int)")
    with connection.pipeline():
        for number in range(50):
            connection.execute("INSERT INTO item VALUES (%s, %s)", (number, number * 2))
        total = connection.execute("SELECT sum(v) FROM item")
    assert total.fetchone() == (2450,)
    connection.cursor().executemany(
        "UPDATE item SET v = v + 1 WHERE id = %s", [(n,) for n in range(50)]
    )
    assert connection.execute("SELECT sum(v) FROM item").fetchone() == (2500,)


def test_server_side_cursor(connection) -> None:
    connection.execute("CREATE TABLE item (id int PRIMARY KEY)")
    connection.execute("INSERT INTO item SELECT generate_series(1, 1000)")
    with connection.cursor("walk") as cursor:
        cursor.execute("SELECT id FROM item ORDER BY id")
        first = cursor.fetchmany(10)
        connection.execute("DELETE FROM item WHERE id > 500")
        rest = cursor.fetchall()
    assert len(first) + len(rest) == 1000
    assert connection.execute("SELECT count(*) FROM item").fetchone() == (500,)


def test_prepared_statements_and_dict_rows(connection) -> None:
    connection.execute("CREATE TABLE item (id int PRIMARY KEY, t text)")
    cursor = connection.cursor(row_factory=dict_row)
    for number in range(12):
        cursor.execute("INSERT INTO item VALUES (%s, %s)", (number, str(number)), prepare=True)
    for number in range(12):
        cursor.execute("SELECT * FROM item WHERE id = %s", (number,), prepare=True)
        assert cursor.fetchone() == {"id": number, "t": str(number)}


def test_nested_transactions(connection) -> None:
    connection.execute("CREATE TABLE item (id int PRIMARY KEY)")
    with connection.transaction():
        connection.execute("INSERT INTO item VALUES (1)")
        with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
            connection.execute("INSERT INTO item VALUES (2)")
            connection.execute("INSERT INTO item VALUES (1)")
        connection.execute("INSERT INTO item VALUES (3)")
    rows = connection.execute("SELECT id FROM item ORDER BY id").fetchall()
    assert rows == [(1,), (3,)]


def test_large_values(connection) -> None:
    connection.execute("CREATE TABLE big_item (id int PRIMARY KEY, t text, b bytea)")
    text, blob = "é" * 500_000, bytes(range(256)) * 4096
    connection.execute("INSERT INTO big_item VALUES (1, %s, %s)", (text, blob))
    connection.commit()
    connection.execute("UPDATE big_item SET t = t || 'x' WHERE id = 1")
    connection.commit()
    found = connection.execute("SELECT t, b FROM big_item WHERE b = %s", (blob,)).fetchone()
    assert found == (text + "x", blob)


def test_statement_timeout(connection) -> None:
    connection.execute("SET statement_timeout = '200ms'")
    started = time.monotonic()
    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute("SELECT pg_sleep(10)")
    assert time.monotonic() - started < 5


def test_cancel_from_another_thread(connection) -> None:
    threading.Timer(0.3, connection.cancel).start()
    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute("SELECT count(*) FROM generate_series(1, 1000000000)")
    connection.rollback()
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_isolation_levels(connection) -> None:
    assert connection.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)
    connection.rollback()
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    connection.execute("SELECT 1")
    connection.rollback()
    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        connection.execute("SELECT 1")
