"""Every statement that is classed replicated: what it does at one instance, the other has."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.locks.conftest import Connect, Session
from tests.locks.races import rows
from tests.pgext.test_catdelta import differences
from tests.pgext.test_utility_classes import ACCEPTED, Case

ROLES = "r1", "r2"
NOT_CATALOG = {"LockStmt", "NotifyStmt", "CopyStmt"}
"""Part of the commit, without a catalog row; tests of their own."""


def replicated(session: Session) -> list[str]:
    found = rows(session, "SELECT node_tag FROM sys.statements WHERE class = 'replicated'")
    return sorted({str(tag) for (tag,) in found} - NOT_CATALOG)


@pytest.fixture
def pair(connect: Connect) -> Iterator[tuple[Session, Session]]:
    one, other = connect(0), connect(1)
    yield one, other
    for session in (one, other):
        session.execute("ROLLBACK")
    clean(one)


def clean(session: Session) -> None:
    session.execute("ALTER DATABASE postgres RESET work_mem")
    session.execute("ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM PUBLIC")
    session.execute("DROP SCHEMA IF EXISTS other CASCADE")
    session.execute("DROP SCHEMA public CASCADE")
    session.execute("CREATE SCHEMA public")
    for role in ROLES:
        if rows(session, f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'"):
            session.execute(f"GRANT {role} TO admin".encode())
            session.execute(f"DROP OWNED BY {role}".encode())
            session.execute(f"DROP ROLE {role}".encode())


def run(session: Session, case: Case) -> str | None:
    """The case as transactions of its own; the SQLSTATE it ends with."""
    session.execute("CREATE TABLE base (a int PRIMARY KEY, b text)")
    session.execute("INSERT INTO base SELECT i, 'x' || i FROM generate_series(1, 5) i")
    if case.setup:
        session.execute(case.setup.encode())
    try:
        session.execute(case.sql.encode())
    except psycopg.Error as error:
        return error.sqlstate
    return None


@pytest.mark.nightly
def test_catalogs_are_equal_after_every_replicated_statement(
    pair: tuple[Session, Session],
) -> None:
    for number, tag in enumerate(replicated(pair[0])):
        here, there = pair if number % 2 else pair[::-1]
        case = ACCEPTED[tag]
        clean(here)
        assert run(here, case) == case.state, tag
        for session in pair:
            session.execute("DISCARD TEMP")
        assert not differences(here, there), tag


def test_settings_of_database_and_role_reach_new_sessions(
    pair: tuple[Session, Session], connect: Connect
) -> None:
    one, _ = pair
    one.execute("ALTER DATABASE postgres SET work_mem = '7MB'")
    one.execute("ALTER ROLE admin IN DATABASE postgres SET extra_float_digits = 2")
    try:
        for instance in (0, 1):
            session = connect(instance)
            assert rows(session, "SHOW work_mem") == [("7MB",)]
            assert rows(session, "SHOW extra_float_digits") == [("2",)]
    finally:
        one.execute("ALTER ROLE admin IN DATABASE postgres RESET ALL")


def test_owners_and_comments(pair: tuple[Session, Session]) -> None:
    one, other = pair
    one.execute("CREATE TABLE base (a int PRIMARY KEY)")
    one.execute("CREATE ROLE r1; CREATE ROLE r2; GRANT r1, r2 TO admin")
    one.execute("GRANT CREATE ON SCHEMA public TO r1, r2")
    other.execute("ALTER TABLE base OWNER TO r1")
    one.execute("COMMENT ON DATABASE postgres IS 'mine'; COMMENT ON ROLE r1 IS 'one'")
    one.execute("REASSIGN OWNED BY r1 TO r2")
    owner = "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'base'::regclass"
    assert rows(other, owner) == [("r2",)]
    comments = (
        "SELECT shobj_description(d.oid, 'pg_database'),"
        " shobj_description(r.oid, 'pg_authid')"
        " FROM pg_database d, pg_roles r WHERE datname = 'postgres' AND rolname = 'r1'"
    )
    assert rows(other, comments) == [("mine", "one")]
    other.execute("DROP OWNED BY r2")
    assert rows(one, "SELECT to_regclass('base')") == [(None,)]


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER SYSTEM SET work_mem = '1MB'",
        "CREATE DATABASE other",
        "ALTER DATABASE postgres CONNECTION LIMIT 5",
        "CLUSTER base",
        "SECURITY LABEL ON TABLE base IS 'x'",
        "LOAD 'plpgsql'",
        "REINDEX TABLE base",
        "CREATE TABLESPACE ts LOCATION '/nowhere'",
        "SELECT lo_create(0)",
        "SELECT pg_export_snapshot()",
        "SELECT pg_logical_emit_message(true, 'a', 'b')",
        "SELECT pg_current_snapshot()",
        "SELECT txid_current_snapshot()",
    ],
)
def test_what_would_stay_in_one_instance_is_refused(
    pair: tuple[Session, Session], sql: str
) -> None:
    pair[0].execute("CREATE TABLE base (a int PRIMARY KEY)")
    for session in pair:
        with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
            session.execute(sql.encode())
        assert caught.value.diag.message_hint


def test_prepared_transactions_are_refused(pair: tuple[Session, Session]) -> None:
    for session in pair:
        session.execute("BEGIN")
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            session.execute("PREPARE TRANSACTION 'x'")
        session.execute("ROLLBACK")
