"""How builds end before their time: cancelled, dropped, failed; and who may do and see what."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from tests.conftest import Server
from tests.jobs.tables import compare, connect, indexes, one, verify, wait_for
from tests.jobs.test_unique import hold, make

UNKNOWN = "a" * 26


def test_cancelled_create_index_leaves_nothing(cluster: Server) -> None:
    with connect(cluster.dsn) as session, connect(cluster.dsn) as other:
        make(session, "gone")
        holder = hold(cluster.dsn, "gone")
        said: list[psycopg.Error] = []

        def build() -> None:
            try:
                session.execute("CREATE INDEX gone_u ON gone (u)")
            except psycopg.Error as error:
                said.append(error)

        thread = threading.Thread(target=build)
        thread.start()
        wait_for(
            lambda: one(
                other,
                "SELECT count(*) FROM sys.jobs WHERE object_name ="
                " 'public.gone_u' AND status = 'submitted'",
            )
        )
        time.sleep(0.1)
        session.cancel()
        holder.rollback()
        thread.join(20)
        assert [error.sqlstate for error in said] == ["57014"]
        assert indexes(session, "gone") == ["gone_pkey"]
        status = one(session, "SELECT status FROM sys.jobs WHERE object_name = 'public.gone_u'")
        assert status == "cancelled"
        session.execute("CREATE INDEX gone_u ON gone (u)")
        compare(session, "gone", "gone_u", "u")


def test_statement_timeout_cancels_too(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        make(session, "late", 5000)
        holder = hold(cluster.dsn, "late")
        session.execute("SET statement_timeout = '300ms'")
        threading.Timer(0.5, holder.rollback).start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute("CREATE INDEX late_u ON late (u)")
        assert indexes(session, "late") == ["late_pkey"]


def test_progress_is_shown(cluster: Server) -> None:
    with connect(cluster.dsn) as session, connect(cluster.dsn) as other:
        make(session, "shown")
        holder = hold(cluster.dsn, "shown")
        thread = threading.Thread(
            target=session.execute, args=["CREATE INDEX shown_u ON shown (u)"]
        )
        thread.start()
        row = wait_for(
            lambda: other.execute(
                "SELECT tuples_total, relid::regclass::text FROM pg_stat_progress_create_index"
                " WHERE tuples_total > 0"
            ).fetchone()
        )
        assert row == (3000, "shown")
        holder.rollback()
        thread.join(20)
        assert one(other, "SELECT count(*) FROM pg_stat_progress_create_index") == 0
        done = other.execute(
            "SELECT rows_done, rows_estimated FROM sys.jobs WHERE object_name = 'public.shown_u'"
        ).fetchone()
        assert done == (3000, 3000)


def test_cancel_job(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        make(session, "stopped")
        holder = hold(cluster.dsn, "stopped")
        job = one(session, "CREATE INDEX ASYNC ON stopped (u)")
        holder.rollback()
        try:
            session.execute(f"CALL sys.cancel_job('{job}')".encode())
        except psycopg.errors.SerializationFailure:
            session.execute(f"CALL sys.cancel_job('{job}')".encode())
        status = one(session, "SELECT status FROM sys.jobs WHERE job_id = %s", job)
        assert status in ("cancelled", "completed")
        if status == "cancelled":
            assert indexes(session, "stopped") == ["stopped_pkey"]
            with pytest.raises(psycopg.errors.QueryCanceled):
                session.execute(f"CALL sys.wait_for_job('{job}')".encode())
        session.execute(f"CALL sys.cancel_job('{job}')".encode())


@pytest.mark.parametrize(
    "sql",
    [
        "DROP INDEX dropped_u_idx",
        "DROP TABLE dropped",
        "ALTER TABLE dropped DROP COLUMN u",
    ],
)
def test_drop_cancels(cluster: Server, sql: str) -> None:
    with connect(cluster.dsn) as session:
        session.execute("DROP TABLE IF EXISTS dropped")
        make(session, "dropped")
        holder = hold(cluster.dsn, "dropped")
        job = one(session, "CREATE INDEX ASYNC ON dropped (u)")
        holder.execute(sql.encode())
        holder.commit()
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute(f"CALL sys.wait_for_job('{job}')".encode())
        row = session.execute("SELECT status, details FROM sys.jobs WHERE job_id = %s", [job])
        assert row.fetchone() == ("cancelled", "the index was dropped")


def test_an_expression_that_fails_fails_the_build(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        make(session, "fails")
        with pytest.raises(psycopg.errors.DivisionByZero):
            session.execute("CREATE INDEX fails_i ON fails ((1 / (u - 2500)))")
        assert indexes(session, "fails") == ["fails_pkey"]
        with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="key size"):
            session.execute("UPDATE fails SET v = repeat(md5(id::text), 3000) WHERE id = 2500")
            session.execute("CREATE INDEX fails_v ON fails (v)")
        assert indexes(session, "fails") == ["fails_pkey"]


def test_expressions_run_as_the_owner(cluster: Server) -> None:
    """The runner is a superuser; a function in an index must not profit from it."""
    with connect(cluster.dsn) as session:
        make(session, "owned")
        session.execute(
            "CREATE FUNCTION who(int) RETURNS text IMMUTABLE LANGUAGE plpgsql AS"
            " $$BEGIN RETURN current_user; END$$"
        )
        session.execute("CREATE INDEX owned_who ON owned (who(u))")
        assert compare(session, "owned", "owned_who", "who(u)", "who(u) = 'admin'") == 3000
        session.execute("SET enable_seqscan = off")
        assert one(session, "SELECT count(*) FROM owned WHERE who(u) = 'admin'") == 3000


def test_bad_ids(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        for call in ("sys.wait_for_job", "sys.cancel_job"):
            for bad, error in (
                ("'x'", psycopg.errors.InvalidTextRepresentation),
                (f"'{'A' * 26}'", psycopg.errors.InvalidTextRepresentation),
                (f"'{UNKNOWN}'", psycopg.errors.UndefinedObject),
                ("NULL", psycopg.errors.NullValueNotAllowed),
            ):
                with pytest.raises(error):
                    session.execute(f"CALL {call}({bad})".encode())


def test_others_see_jobs_but_not_why_they_failed(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        make(session, "private")
        session.execute("UPDATE private SET u = 1")
        session.execute("CREATE ROLE stranger LOGIN")
        session.execute("GRANT stranger TO admin WITH SET TRUE, INHERIT FALSE")
        with pytest.raises(psycopg.errors.UniqueViolation):
            session.execute("CREATE UNIQUE INDEX private_u ON private (u)")
        holder = hold(cluster.dsn, "private")
        job = one(session, "CREATE INDEX ASYNC ON private (u)")
        session.execute("SET ROLE stranger")
        rows = session.execute(
            "SELECT status, details FROM sys.jobs WHERE object_name = 'public.private_u'"
        ).fetchall()
        assert rows == [("failed", "")]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(f"CALL sys.cancel_job('{job}')".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT meridian.job_fail('x', 'x', 'x', 'x')")
        session.execute("RESET ROLE")
        holder.rollback()
        session.execute(f"CALL sys.wait_for_job('{job}')".encode())


def test_storage_is_sound_after_all_that(cluster: Server) -> None:
    assert cluster.directory is not None
    verify(cluster.directory)
