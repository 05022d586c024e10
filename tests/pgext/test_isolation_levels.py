"""Isolation levels as clients name them; what they mean is tested in tests/isolation."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.conftest import Server

HINT = "FOR UPDATE"


@pytest.mark.parametrize("level", ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize(
    "sql",
    [
        "BEGIN ISOLATION LEVEL {}",
        "BEGIN; SET TRANSACTION ISOLATION LEVEL {}",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {}; BEGIN",
        "START TRANSACTION ISOLATION LEVEL {}, READ ONLY, DEFERRABLE",
    ],
)
def test_accepted(cluster: Server, level: str, sql: str) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute(sql.format(level).encode())
        assert session.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)
        assert session.execute("SELECT current_setting('transaction_isolation')").fetchone() == (
            "repeatable read",
        )


@pytest.mark.parametrize(
    "sql",
    [
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET default_transaction_isolation = 'serializable'",
        "SELECT set_config('transaction_isolation', 'serializable', true)",
        "ALTER ROLE admin SET default_transaction_isolation = 'serializable'",
        "ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql"
        " SET default_transaction_isolation = 'serializable' AS 'SELECT 1'",
    ],
)
def test_serializable_is_refused(cluster: Server, sql: str) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
            session.execute(sql.encode())
        assert HINT in (caught.value.diag.message_hint or "")
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_serializable_as_a_connection_option(cluster: Server) -> None:
    option = "-c default_transaction_isolation=serializable"
    with pytest.raises(psycopg.OperationalError, match="SERIALIZABLE"):
        psycopg.connect(cluster.dsn, options=option)


def test_driver_property(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn) as session:
        session.isolation_level = IsolationLevel.REPEATABLE_READ
        assert session.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)
        session.rollback()
        session.isolation_level = IsolationLevel.SERIALIZABLE
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            session.execute("SELECT 1")


def test_both_levels_read_one_snapshot(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as writer:
        writer.execute("CREATE TABLE snap (a int PRIMARY KEY)")
        for level in ("READ COMMITTED", "REPEATABLE READ"):
            with psycopg.connect(cluster.dsn, autocommit=True) as reader:
                reader.execute(f"BEGIN ISOLATION LEVEL {level}".encode())
                before = reader.execute("SELECT count(*) FROM snap").fetchone()
                writer.execute("INSERT INTO snap SELECT coalesce(max(a), 0) + 1 FROM snap")
                assert reader.execute("SELECT count(*) FROM snap").fetchone() == before
        writer.execute("DROP TABLE snap")


def test_read_only(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("BEGIN READ ONLY")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            session.execute("CREATE TABLE ro (a int)")


def test_statement_timeout(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("SET statement_timeout = '50ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute("SELECT pg_sleep(5)")
