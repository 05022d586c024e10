"""A session that has lost its advisory locks with its gateway does nothing more."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.crash.processes import Embedded


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    running = Embedded(tmp_path_factory.mktemp("loss") / "data")
    running.start()
    with psycopg.connect(running.dsn, autocommit=True) as session:
        session.execute("CREATE TABLE kept (id int PRIMARY KEY)")
    yield running
    running.stop()


def lose_the_gateway(embedded: Embedded) -> None:
    """kill -9 of the data plane, until the next one serves."""
    embedded.kill("data-plane")
    deadline = time.monotonic() + 60
    while True:
        try:
            with psycopg.connect(embedded.dsn, autocommit=True) as session:
                session.execute("SELECT count(*) FROM kept")
                return
        except psycopg.Error:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("statement", ["SELECT 1", "COMMIT", "INSERT INTO kept VALUES (1)"])
@pytest.mark.parametrize("inside", [False, True])
def test_next_statement_is_the_last(embedded: Embedded, statement: str, inside: bool) -> None:
    session = psycopg.connect(embedded.dsn, autocommit=True)
    session.execute("SELECT pg_advisory_lock(1)")
    if inside:
        session.execute("BEGIN")
        session.execute("INSERT INTO kept VALUES (2)")
    lose_the_gateway(embedded)
    with pytest.raises(psycopg.OperationalError) as caught:
        session.execute(statement.encode())
    assert caught.value.sqlstate == "57P01" and "advisory locks" in str(caught.value)
    assert session.closed
    with psycopg.connect(embedded.dsn, autocommit=True) as other:
        assert other.execute("SELECT pg_try_advisory_lock(1)").fetchone() == (True,)
        assert other.execute("SELECT * FROM kept").fetchall() == []


def test_a_transactions_locks_take_its_commit_along(embedded: Embedded) -> None:
    with psycopg.connect(embedded.dsn, autocommit=True) as session:
        session.execute("BEGIN")
        session.execute("SELECT pg_advisory_xact_lock(1)")
        session.execute("INSERT INTO kept VALUES (3)")
        lose_the_gateway(embedded)
        with pytest.raises(psycopg.OperationalError) as caught:
            session.execute("COMMIT")
        assert caught.value.sqlstate == "08006"
        assert session.execute("SELECT * FROM kept").fetchall() == []
        assert session.execute("SELECT pg_try_advisory_lock(1)").fetchone() == (True,)


def test_without_locks_a_session_goes_on(embedded: Embedded) -> None:
    with psycopg.connect(embedded.dsn, autocommit=True) as session:
        session.execute("SELECT pg_advisory_lock(1), pg_advisory_unlock(1)")
        lose_the_gateway(embedded)
        assert session.execute("SELECT * FROM kept").fetchall() == []
