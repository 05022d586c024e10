"""Constraints on big tables: added NOT VALID, validated beside writers, dropped when broken."""

from __future__ import annotations

import contextlib
import random
import threading
import time

import psycopg
import pytest

from tests.conftest import Server
from tests.jobs.tables import Session, Writers, connect, one, wait_for

ROWS = 3000


def make(session: Session, table: str) -> None:
    session.execute("SET meridian.validate_online_rows = 100") if _ours(session) else None
    session.execute(f"DROP TABLE IF EXISTS {table}, {table}_parent".encode())
    session.execute(f"CREATE TABLE {table}_parent (id int PRIMARY KEY)".encode())
    session.execute(f"INSERT INTO {table}_parent SELECT generate_series(0, 9)".encode())
    session.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, a int, b text)".encode())
    session.execute(
        f"INSERT INTO {table} SELECT i, i % 10, 'b' FROM generate_series(1, {ROWS}) i".encode()
    )


def _ours(session: Session) -> bool:
    return bool(one(session, "SELECT count(*) FROM pg_am WHERE amname = 'meridian'"))


def constraints(session: Session, table: str) -> list[tuple[str, bool]]:
    return session.execute(
        "SELECT conname, convalidated FROM pg_constraint"
        " WHERE conrelid = %s::regclass AND contype IN ('c', 'f', 'n') ORDER BY 1",
        [table],
    ).fetchall()


ADDED = [
    "ADD CHECK (a < 10)",
    "ADD CONSTRAINT named CHECK (a < 10 AND b <> 'c')",
    "ALTER a SET NOT NULL",
    "ADD FOREIGN KEY (a) REFERENCES {t}_parent",
    "ADD CONSTRAINT named FOREIGN KEY (a) REFERENCES {t}_parent ON DELETE CASCADE DEFERRABLE",
    "ADD CHECK (a < 10), ALTER b SET NOT NULL, ADD CONSTRAINT named CHECK (id > 0)",
]
BREAKS = [
    "UPDATE {t} SET a = 10, b = 'c' WHERE id = 2900",
    "UPDATE {t} SET a = NULL, b = NULL WHERE id = 2900",
]


@pytest.mark.parametrize("broken", ["", *BREAKS])
@pytest.mark.parametrize("command", ADDED)
def test_as_in_postgresql(cluster: Server, stock: Server, command: str, broken: str) -> None:
    said = []
    for server in (cluster, stock):
        with psycopg.connect(server.dsn, autocommit=True) as session:
            make(session, "c")
            if broken:
                session.execute(broken.format(t="c").encode())
            try:
                session.execute(f"ALTER TABLE c {command.format(t='c')}".encode())
                error = None
            except psycopg.Error as raised:
                error = (raised.sqlstate, raised.diag.message_primary, raised.diag.message_detail)
            later = []
            for sql in (*BREAKS, "DELETE FROM {t}_parent WHERE id = 5"):
                try:
                    later.append(session.execute(sql.format(t="c").encode()).rowcount)
                except psycopg.Error as raised:
                    later.append(raised.sqlstate)
            said.append((error, constraints(session, "c"), later))
    assert said[0] == said[1]


def test_writers_go_on_and_what_they_write_is_checked(cluster: Server) -> None:
    def work(session: Session, rng: random.Random) -> None:
        id_ = rng.randrange(1, 2 * ROWS)
        session.execute(
            rng.choice(
                [
                    f"UPDATE busy_c SET a = {rng.randrange(-2, 10)} WHERE id = {id_}",
                    f"UPDATE busy_c SET a = NULL WHERE id = {id_}",
                    f"INSERT INTO busy_c VALUES ({id_}, 12, 'n') ON CONFLICT DO NOTHING",
                    f"DELETE FROM busy_c WHERE id = {id_}",
                ]
            ).encode()
        )

    with connect(cluster.dsn) as session:
        make(session, "busy_c")
        allowed = ("40001", "23514", "23502", "23503")
        with Writers(cluster.dsn, 2, work, allowed=allowed) as writers:
            wait_for(lambda: writers.done > 50)
            for command, wrong in (
                ("ADD CONSTRAINT x CHECK (a >= 0)", "a < 0"),
                ("ALTER a SET NOT NULL", "a IS NULL"),
                ("ADD CONSTRAINT x FOREIGN KEY (a) REFERENCES busy_c_parent", "a > 9"),
            ):
                for _ in range(5):
                    try:
                        session.execute(f"ALTER TABLE busy_c {command}".encode())
                        assert one(session, f"SELECT count(*) FROM busy_c WHERE {wrong}") == 0
                        break
                    except (psycopg.errors.IntegrityError, psycopg.errors.SerializationFailure):
                        session.execute("SELECT 1")
                    # Mend it, so that the next attempt may get through.
                    try:
                        session.execute(f"DELETE FROM busy_c WHERE {wrong}".encode())
                    except psycopg.errors.SerializationFailure:
                        continue
                session.execute("ALTER TABLE busy_c DROP CONSTRAINT IF EXISTS x")
                session.execute("ALTER TABLE busy_c ALTER a DROP NOT NULL")
        assert writers.unexpected == []
        assert [valid for _, valid in constraints(session, "busy_c")] == [True]


def test_validation_keeps_no_writer_waiting(cluster: Server) -> None:
    with connect(cluster.dsn) as session, connect(cluster.dsn) as writer:
        make(session, "slow")
        session.execute(
            "CREATE FUNCTION slowly(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS"
            " $$BEGIN PERFORM pg_sleep(0.0005); RETURN true; END$$"
        )
        thread = threading.Thread(
            target=session.execute, args=["ALTER TABLE slow ADD CONSTRAINT s CHECK (slowly(id))"]
        )
        thread.start()
        wait_for(lambda: constraints(writer, "slow")[:1] == [("s", False)])
        worst, count = 0.0, 0
        while thread.is_alive():
            began = time.monotonic()
            with contextlib.suppress(psycopg.errors.SerializationFailure):
                writer.execute("UPDATE slow SET a = a WHERE id = 7")
            worst = max(worst, time.monotonic() - began)
            count += 1
        thread.join()
        assert count > 5
        assert worst < 0.5
        assert ("s", True) in constraints(writer, "slow")


def test_a_cancelled_validation_leaves_no_constraint(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        make(session, "slow2")
        session.execute(
            "CREATE OR REPLACE FUNCTION slower(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS"
            " $$BEGIN PERFORM pg_sleep(0.001); RETURN true; END$$"
        )
        session.execute("SET statement_timeout = '400ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute("ALTER TABLE slow2 ADD CONSTRAINT s CHECK (slower(id))")
        session.execute("RESET statement_timeout")
        assert ("s", False) not in constraints(session, "slow2")
        assert "s" not in dict(constraints(session, "slow2"))


def test_blocks_small_tables_and_children_are_done_in_one_commit(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        make(session, "whole")
        with session.transaction():
            session.execute("ALTER TABLE whole ADD CONSTRAINT x CHECK (a < 10)")
            assert dict(constraints(session, "whole"))["x"] is True
        session.execute("SET meridian.validate_online_rows = 1000000")
        session.execute("ALTER TABLE whole ADD CONSTRAINT y CHECK (a < 10)")
        assert dict(constraints(session, "whole"))["y"] is True
        session.execute("SET meridian.validate_online_rows = 0")
        session.execute("ALTER TABLE whole DROP CONSTRAINT x, DROP CONSTRAINT y")
        session.execute("CREATE TABLE whole_child () INHERITS (whole)")
        session.execute("INSERT INTO whole_child VALUES (1, 50, 'x')")
        with pytest.raises(psycopg.errors.CheckViolation):
            session.execute("ALTER TABLE whole ADD CONSTRAINT z CHECK (a < 20)")
        session.execute("ALTER TABLE whole ADD CONSTRAINT w CHECK (a < 90) NOT VALID")
        assert dict(constraints(session, "whole"))["w"] is False
