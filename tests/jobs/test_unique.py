"""Unique builds: every duplicate is found, whoever wrote it, in the words of PostgreSQL."""

from __future__ import annotations

import contextlib
import random

import psycopg
import pytest

from tests.conftest import Server
from tests.jobs.tables import (
    Session,
    Writers,
    compare,
    connect,
    indexes,
    invalid_indexes,
    one,
    wait_for,
)


def make(session: Session, table: str, rows: int = 3000) -> None:
    session.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, u int, v text)".encode())
    session.execute(
        f"INSERT INTO {table} SELECT i, i, 'v' || i FROM generate_series(1, {rows}) i".encode()
    )


def hold(dsn: str, table: str) -> Session:
    """A session that keeps jobs away from a table until its rollback, yet lets CREATE INDEX in."""
    holder = psycopg.connect(dsn)
    holder.execute(f"LOCK TABLE {table} IN SHARE MODE".encode())
    return holder


@pytest.mark.parametrize(
    "index",
    [
        "CREATE UNIQUE INDEX dup_i ON {t} (u)",
        "CREATE UNIQUE INDEX dup_i ON {t} ((u + 1), v)",
        "CREATE UNIQUE INDEX dup_i ON {t} (u) WHERE u > 5",
        "CREATE UNIQUE INDEX dup_i ON {t} (u) NULLS NOT DISTINCT",
    ],
)
def test_old_duplicates_in_the_words_of_postgresql(
    cluster: Server, stock: Server, index: str
) -> None:
    said = []
    for server in (cluster, stock):
        with psycopg.connect(server.dsn, autocommit=True) as session:
            session.execute("DROP TABLE IF EXISTS dup")
            make(session, "dup", 1500)
            session.execute("UPDATE dup SET u = 700, v = 'same' WHERE id IN (70, 1400)")
            if "NULLS" in index:
                session.execute("UPDATE dup SET u = NULL WHERE id IN (70, 1400)")
            with pytest.raises(psycopg.errors.UniqueViolation) as error:
                session.execute(index.format(t="dup").encode())
            diag = error.value.diag
            said.append((diag.message_primary, diag.message_detail))
            assert indexes(session, "dup") == ["dup_pkey"]
    assert said[0] == said[1]


def test_nulls_are_distinct(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        make(session, "nulls")
        session.execute("UPDATE nulls SET u = NULL WHERE id % 3 = 0")
        session.execute("CREATE UNIQUE INDEX nulls_u ON nulls (u)")
        compare(session, "nulls", "nulls_u", "u")


def test_partitions_fail_together(cluster: Server) -> None:
    with connect(cluster.dsn) as session:
        session.execute("CREATE TABLE up (id int, u int) PARTITION BY LIST (u)")
        session.execute("CREATE TABLE up_0 PARTITION OF up FOR VALUES IN (0)")
        session.execute("CREATE TABLE up_1 PARTITION OF up FOR VALUES IN (1)")
        session.execute("INSERT INTO up SELECT i, 0 FROM generate_series(1, 500) i")
        session.execute("INSERT INTO up SELECT i / 2, 1 FROM generate_series(1, 500) i")
        with pytest.raises(psycopg.errors.UniqueViolation, match="up_1_id_u_idx"):
            session.execute("CREATE UNIQUE INDEX up_i ON up (id, u)")
        for table in ("up", "up_0", "up_1"):
            assert indexes(session, table) == []


def test_a_new_row_against_an_old_one(cluster: Server) -> None:
    """Written while the job has not yet come to the old row: the build fails."""
    with connect(cluster.dsn) as session:
        make(session, "news")
        holder = hold(cluster.dsn, "news")
        job = one(session, "CREATE UNIQUE INDEX ASYNC ON news (u)")
        assert invalid_indexes(session, "news") == ["news_u_idx"]
        holder.execute("INSERT INTO news VALUES (5000, 2000, 'dup')")
        holder.commit()
        with pytest.raises(psycopg.errors.UniqueViolation) as error:
            session.execute(f"CALL sys.wait_for_job('{job}')".encode())
        assert error.value.diag.message_detail == "Key (u)=(2000) is duplicated."
        assert indexes(session, "news") == ["news_pkey"]
        details = one(session, "SELECT details FROM sys.jobs WHERE job_id = %s", job)
        assert (
            details == 'could not create unique index "news_u_idx": Key (u)=(2000) is duplicated.'
        )
        assert one(session, "SELECT count(*) FROM news WHERE u = 2000") == 2


def test_new_rows_among_each_other_are_refused_at_once(cluster: Server) -> None:
    with connect(cluster.dsn) as session, connect(cluster.dsn) as other:
        make(session, "among")
        holder = hold(cluster.dsn, "among")
        job = one(session, "CREATE UNIQUE INDEX ASYNC ON among (u)")
        holder.execute("INSERT INTO among VALUES (5000, 5000, 'new')")
        with pytest.raises(psycopg.errors.UniqueViolation, match="duplicate key value"):
            holder.execute("INSERT INTO among VALUES (5001, 5000, 'new')")
        holder.rollback()
        session.execute(f"CALL sys.wait_for_job('{job}')".encode())
        with pytest.raises(psycopg.errors.UniqueViolation):
            other.execute("INSERT INTO among VALUES (5001, 17, 'new')")
        compare(session, "among", "among_u_idx", "u")


@pytest.mark.parametrize(
    "end",
    [
        "DELETE FROM doomed WHERE id = {id}",
        "UPDATE doomed SET u = u + 100000 WHERE id = {id}",
        "UPDATE doomed SET v = 'other' WHERE id = {id}",
    ],
)
@pytest.mark.parametrize("row", [10, 2990])
def test_a_duplicate_that_goes_away_takes_no_entry_of_another_row(
    cluster: Server, end: str, row: int
) -> None:
    """Rows 10 and 2990 share a key; one of them is written again and again by others."""
    with connect(cluster.dsn) as session:
        session.execute("DROP TABLE IF EXISTS doomed")
        make(session, "doomed")
        session.execute("UPDATE doomed SET u = 10 WHERE id = 2990")

        def work(writer: Session, rng: random.Random) -> None:
            writer.execute(end.format(id=row).encode())

        with Writers(cluster.dsn, 2, work, allowed=("40001", "23505")) as writers:
            try:
                session.execute("CREATE UNIQUE INDEX doomed_u ON doomed (u)")
            except psycopg.errors.UniqueViolation:
                assert indexes(session, "doomed") == ["doomed_pkey"]
            else:
                compare(session, "doomed", "doomed_u", "u")
                assert "v = " not in end
        assert writers.unexpected == []


@pytest.mark.parametrize("seed", range(6))
def test_random_writers_of_few_keys(cluster: Server, seed: int) -> None:
    """Old rows are unique or nearly so, writers make and unmake duplicates of them."""
    rng = random.Random(seed)
    table = f"few_{seed}"

    def work(writer: Session, random_: random.Random) -> None:
        id_, u = random_.randrange(1, 400), random_.randrange(1, 2000)
        sql = random_.choice(
            [
                f"INSERT INTO {table} VALUES ({id_}, {u}, 'w') ON CONFLICT (id) DO NOTHING",
                f"DELETE FROM {table} WHERE id = {id_}",
                f"UPDATE {table} SET u = {u} WHERE id = {id_}",
                f"UPDATE {table} SET v = v || '.' WHERE id = {id_}",
            ]
        )
        writer.execute(sql.encode())

    with connect(cluster.dsn) as session:
        make(session, table, 300)
        if rng.random() < 0.5:
            session.execute(f"UPDATE {table} SET u = 1 WHERE id = {rng.randrange(2, 300)}".encode())
        built = failed = 0
        with Writers(cluster.dsn, 2, work, allowed=("40001", "23505")) as writers:
            wait_for(lambda: writers.done > 20)
            for _ in range(10):
                try:
                    session.execute(f"CREATE UNIQUE INDEX {table}_u ON {table} (u)".encode())
                except psycopg.errors.UniqueViolation:
                    failed += 1
                    with contextlib.suppress(psycopg.errors.SerializationFailure):
                        session.execute(
                            f"DELETE FROM {table} a USING {table} b"
                            " WHERE a.u = b.u AND a.id > b.id".encode()
                        )
                except psycopg.errors.SerializationFailure:
                    continue
                else:
                    built += 1
                    done = writers.done
                    wait_for(lambda: writers.done > done + 20)
                    duplicates = one(session, f"SELECT count(*) - count(DISTINCT u) FROM {table}")
                    assert duplicates == 0
                    compare(session, table, f"{table}_u", "u")
                    session.execute(f"DROP INDEX {table}_u".encode())
        assert writers.unexpected == []
        assert indexes(session, table) == [f"{table}_pkey"]
