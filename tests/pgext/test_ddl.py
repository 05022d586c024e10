"""DDL over storage, alone and mixed with DML in one transaction, answers as PostgreSQL's."""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import Server
from tests.pgext.compare import assert_same
from tests.pgext.ddl_scripts import REWRITES, SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_like_stock(cluster: Server, stock: Server, name: str) -> None:
    assert_same(cluster, stock, SCRIPTS[name])


@pytest.mark.parametrize("name", REWRITES)
def test_rewrites_like_stock(cluster: Server, stock: Server, name: str) -> None:
    assert_same(cluster, stock, REWRITES[name])


def test_copy_freeze_after_truncate(cluster: Server) -> None:
    """The way pgbench -i fills its tables."""
    with psycopg.connect(cluster.dsn) as session:
        session.execute("CREATE TABLE fr (a int, b text) WITH (fillfactor = 90)")
        session.commit()
        session.execute("TRUNCATE fr")
        with session.cursor().copy("COPY fr FROM STDIN WITH (FREEZE ON)") as copy:
            for number in range(1000):
                copy.write_row((number, f"row {number}"))
        session.commit()
        session.execute("ALTER TABLE fr ADD PRIMARY KEY (a)")
        session.commit()
        assert session.execute("SELECT b FROM fr WHERE a = 777").fetchone() == ("row 777",)
        assert session.execute("SELECT count(*) FROM fr").fetchone() == (1000,)
        session.execute("DROP TABLE fr")


def test_side_effects_cannot_take_the_key(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("CREATE DOMAIN code AS int")
        session.execute("CREATE TABLE keyed (a code PRIMARY KEY, b int)")
        session.execute("INSERT INTO keyed VALUES (1, 2)")
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            session.execute("DROP DOMAIN code CASCADE")
        assert session.execute("SELECT b FROM keyed WHERE a = 1").fetchone() == (2,)
        session.execute("DROP TABLE keyed")
        session.execute("DROP DOMAIN code")


LATE = [
    "ALTER TABLE late ADD CHECK (b < 100)",
    "ALTER TABLE late ALTER b SET NOT NULL",
    "ALTER TABLE late ADD FOREIGN KEY (b) REFERENCES late_parent",
    "ALTER TABLE late ALTER b TYPE bigint",
    "ALTER TABLE late ADD UNIQUE (b)",
    "ALTER TABLE late ADD COLUMN r float8 DEFAULT random()",
    "ALTER TABLE late_partitioned ATTACH PARTITION late FOR VALUES FROM (0) TO (1000)",
    "ALTER TABLE late DROP CONSTRAINT late_pkey",
    "CREATE INDEX ON late (b)",
]


@pytest.mark.parametrize("sql", LATE)
@pytest.mark.parametrize("row", ["(2, 500)", "(2, NULL)"])
def test_rows_behind_the_snapshot_abort(cluster: Server, sql: str, row: str) -> None:
    """A row committed after tau_start is not seen by validation or copying: 40001 at COMMIT."""
    with (
        psycopg.connect(cluster.dsn) as ddl,
        psycopg.connect(cluster.dsn, autocommit=True) as writer,
    ):
        writer.execute("CREATE TABLE late_parent (a int PRIMARY KEY)")
        writer.execute("CREATE TABLE late (a int PRIMARY KEY, b int)")
        writer.execute("CREATE TABLE late_partitioned (a int, b int) PARTITION BY RANGE (a)")
        writer.execute("INSERT INTO late_parent VALUES (1)")
        writer.execute("INSERT INTO late VALUES (1, 1)")
        try:
            assert ddl.execute("SELECT count(*) FROM late_parent").fetchone() == (1,)
            writer.execute(f"INSERT INTO late VALUES {row}".encode())
            with pytest.raises(
                (psycopg.errors.SerializationFailure, psycopg.errors.InternalError_)
            ):
                ddl.execute(sql.encode())
                ddl.commit()
            ddl.rollback()
            assert writer.execute("SELECT count(*) FROM late").fetchone() == (2,)
        finally:
            ddl.rollback()
            writer.execute("DROP TABLE late, late_parent, late_partitioned CASCADE")


def test_parent_deleted_behind_the_snapshot(cluster: Server) -> None:
    with (
        psycopg.connect(cluster.dsn) as ddl,
        psycopg.connect(cluster.dsn, autocommit=True) as writer,
    ):
        writer.execute("CREATE TABLE up (a int PRIMARY KEY)")
        writer.execute("CREATE TABLE down (b int)")
        writer.execute("INSERT INTO up VALUES (1)")
        writer.execute("INSERT INTO down VALUES (1)")
        assert ddl.execute("SELECT count(*) FROM down").fetchone() == (1,)
        writer.execute("DELETE FROM up")
        with pytest.raises(psycopg.errors.SerializationFailure):
            ddl.execute("ALTER TABLE down ADD FOREIGN KEY (b) REFERENCES up")
            ddl.commit()
        ddl.rollback()
        writer.execute("DROP TABLE up, down")


def test_domains_are_checked_first(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn) as session:
        session.execute("CREATE DOMAIN dom AS int")
        session.execute("CREATE TABLE has_dom (a dom)")
        session.execute("INSERT INTO has_dom VALUES (-1)")
        session.commit()
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            session.execute("SELECT * FROM has_dom")
            session.execute("ALTER DOMAIN dom ADD CHECK (VALUE > 0)")
        session.rollback()
        session.execute("DROP TABLE has_dom")
        session.execute("DROP DOMAIN dom")


def test_rewritten_tables_hold_back_no_transaction_numbers(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("CREATE TABLE fx (a int PRIMARY KEY, b int)")
        session.execute("INSERT INTO fx VALUES (1, 1)")
        session.execute("ALTER TABLE fx ALTER b TYPE text")
        row = session.execute("SELECT relfrozenxid, relminmxid FROM pg_class WHERE relname = 'fx'")
        assert row.fetchone() == ("0", "0")
        session.execute("DROP TABLE fx")


@pytest.mark.parametrize("column", ["v varchar(20)", "v text", "v char(8)"])
def test_pattern_indexes_serve_like(cluster: Server, column: str) -> None:
    """As Django makes them beside each unique text column."""
    kind = column.split()[1].split("(")[0].replace("char", "bpchar").replace("varbpchar", "varchar")
    with psycopg.connect(cluster.dsn) as session:
        session.execute(f"CREATE TABLE pat (a int PRIMARY KEY, {column})".encode())
        session.execute(f"CREATE INDEX pat_like ON pat (v {kind}_pattern_ops)".encode())
        session.execute("INSERT INTO pat SELECT i, 'n' || i FROM generate_series(1, 2000) i")
        session.execute("ANALYZE pat")
        plan = session.execute("EXPLAIN SELECT * FROM pat WHERE v LIKE 'n19%'").fetchall()
        assert any("pat_like" in line for (line,) in plan), plan
        found = session.execute("SELECT count(*) FROM pat WHERE v LIKE 'n19%'").fetchone()
        assert found == (111,)
        assert session.execute("SELECT a FROM pat WHERE v = 'n77'").fetchall() == [(77,)]
        session.rollback()
