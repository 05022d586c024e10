"""Catalog deltas: taken on one server, applied to another, all catalogs compared row by row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg
import pytest

from tests.pgext.conftest import codec_only
from tests.pgext.ddl_program import PROGRAM

Connection = psycopg.Connection[Any]
LOCAL_CATALOGS = {"pg_statistic", "pg_statistic_ext_data", "pg_largeobject"}
TEMPORARY = re.compile(r"\(\d+,pg_(toast_)?temp_\d+,")
"""The schema of temporary objects of a session: stays when they end."""
LOCAL_COLUMNS = {
    "relfilenode",
    "relpages",
    "reltuples",
    "relallvisible",
    "relallfrozen",
    "relfrozenxid",
    "relminmxid",
    "datfrozenxid",
    "datminmxid",
    # Set or reset in place, by statements that ROLLBACK, or by ANALYZE.
    "relhasindex",
    "relhastriggers",
    "relhasrules",
}

CLEAN_UP = [
    "DO $$ DECLARE r name; BEGIN FOR r IN SELECT rolname FROM pg_roles WHERE rolname IN"
    " ('r1', 'r2') LOOP EXECUTE 'DROP OWNED BY ' || r || ' CASCADE'; EXECUTE 'DROP ROLE ' || r;"
    " END LOOP; END $$",
    "DROP EVENT TRIGGER IF EXISTS et",
    "DROP SCHEMA public CASCADE",
    "CREATE SCHEMA public",
    "DROP SCHEMA IF EXISTS s CASCADE",
    "DROP PUBLICATION IF EXISTS pub",
]


@pytest.fixture(scope="module")
def two_servers() -> Iterator[tuple[str, str]]:
    with codec_only() as (first, _), codec_only() as (second, _):
        yield first, second


@pytest.fixture
def pair(two_servers: tuple[str, str]) -> Iterator[tuple[Connection, Connection]]:
    """Two servers with the same catalogs; whatever a test leaves behind is dropped by a delta."""
    with (
        psycopg.connect(two_servers[0], prepare_threshold=None) as origin,
        psycopg.connect(two_servers[1], autocommit=True, prepare_threshold=None) as copy,
    ):
        yield origin, copy
        origin.rollback()
        apply(copy, run(origin, CLEAN_UP))


def catalogs(connection: Connection) -> dict[str, Counter[str]]:
    """Every row of every catalog that the user may read, without what is each instance's own."""
    names = connection.execute(
        "SELECT c.relname, array_agg(quote_ident(a.attname) ORDER BY a.attnum) FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 WHERE c.relkind = 'r'"
        " AND c.relnamespace = 'pg_catalog'::regnamespace"
        " AND has_table_privilege(c.oid, 'SELECT') GROUP BY 1"
    ).fetchall()
    found = {}
    for name, columns in names:
        if name in LOCAL_CATALOGS:
            continue
        wanted = ", ".join(column for column in columns if column not in LOCAL_COLUMNS)
        rows = connection.execute(f"SELECT ROW({wanted})::text FROM pg_catalog.{name}").fetchall()
        found[name] = Counter(row[0] for row in rows if not TEMPORARY.match(row[0]))
    return found


def overlooked(connection: Connection) -> list[Any]:
    """Indexes, triggers and rules that PostgreSQL does not look for."""
    return connection.execute(
        "SELECT oid::regclass FROM pg_class c WHERE"
        " NOT relhasindex AND EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid)"
        " OR NOT relhastriggers AND EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid)"
        " OR NOT relhasrules AND EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid)"
    ).fetchall()


def differences(origin: Connection, copy: Connection) -> dict[str, Any]:
    assert not overlooked(origin) and not overlooked(copy)
    ours, theirs = catalogs(origin), catalogs(copy)
    return {
        name: (
            list((ours[name] - theirs[name]).elements())[:5],
            list((theirs[name] - ours[name]).elements())[:5],
        )
        for name in ours
        if ours[name] != theirs[name]
    }


def run(origin: Connection, statements: list[str]) -> bytes | None:
    """One transaction; its delta as it stands before COMMIT."""
    for statement in statements:
        origin.execute(statement)
    row = origin.execute("SELECT meridian_debug.capture()").fetchone()
    origin.commit()
    assert row is not None
    return row[0]


def apply(copy: Connection, delta: bytes | None) -> None:
    if delta is not None:
        copy.execute("SELECT meridian_debug.apply(%s)", (delta,))


def test_a_program_of_ddl(pair: tuple[Connection, Connection]) -> None:
    origin, copy = pair
    for count, statements in enumerate(PROGRAM):
        apply(copy, run(origin, statements))
        if "CREATE TEMP" in "".join(statements):
            break
        if count % 8 == 7:
            assert not differences(origin, copy), statements
    assert "pg_class" in differences(origin, copy), "the temporary table is here only"
    for statements in PROGRAM[count + 1 :]:
        apply(copy, run(origin, statements))
    origin.execute("DISCARD TEMP")
    origin.commit()
    assert not differences(origin, copy)


def test_what_arrived_can_be_used(pair: tuple[Connection, Connection]) -> None:
    origin, copy = pair
    copy.execute("CREATE TABLE before (x int)")
    copy.execute("DROP TABLE before")
    for statements in PROGRAM[:25]:
        apply(copy, run(origin, statements))
    # Indexes of the extension have an empty file; those of this server do not.
    copy.execute("REINDEX SCHEMA public")
    copy.execute("REINDEX SCHEMA s")
    copy.execute("INSERT INTO s.t VALUES (1, 'b', 2)")
    copy.execute("INSERT INTO u (t_a, remark) VALUES (1, 'r'), (1, 's')")
    assert copy.execute("SELECT id, remark FROM u ORDER BY id").fetchall() == [(1, "r"), (2, "s")]
    copy.execute("INSERT INTO gen (b) VALUES (4)")
    assert copy.execute("SELECT a, b, c FROM gen").fetchall() == [(1, 4, 8)]
    values = copy.execute("SELECT nextval('seq'), f(4), 'happy'::mood").fetchone()
    assert values == (100, 5, "happy")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        copy.execute("INSERT INTO u (t_a) VALUES (99)")
    with pytest.raises(psycopg.errors.CheckViolation):
        copy.execute("INSERT INTO typed (d) VALUES (-1)")
    copy.execute("INSERT INTO part VALUES (5, 'five'), (15, 'fifteen')")
    assert copy.execute(
        "SELECT relname FROM part_2, pg_class c WHERE c.oid = part_2.tableoid"
    ).fetchall() == [("part_2",)]


def test_an_open_session_notices(pair: tuple[Connection, Connection]) -> None:
    """Cached plans and relation descriptors of another session follow a delta."""
    origin, copy = pair
    apply(copy, run(origin, ["CREATE TABLE t (a int)", "CREATE VIEW v AS SELECT * FROM t"]))
    dsn = copy.info.dsn
    with psycopg.connect(dsn, autocommit=True) as other:
        for _ in range(8):
            other.execute("INSERT INTO t VALUES (%s)", (1,), prepare=True)
        apply(
            copy,
            run(
                origin,
                ["ALTER TABLE t ADD b int NOT NULL DEFAULT 5", "ALTER TABLE t ADD CHECK (a < 10)"],
            ),
        )
        other.execute("INSERT INTO t VALUES (%s)", (2,), prepare=True)
        assert other.execute("SELECT b FROM t WHERE a = 2").fetchall() == [(5,)]
        with pytest.raises(psycopg.errors.CheckViolation):
            other.execute("INSERT INTO t VALUES (%s)", (11,), prepare=True)
        apply(
            copy,
            run(
                origin,
                [
                    "CREATE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS"
                    " $$ BEGIN NEW.b = 77; RETURN NEW; END $$",
                    "CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION trg()",
                ],
            ),
        )
        other.execute("INSERT INTO t VALUES (%s)", (3,), prepare=True)
        assert other.execute("SELECT b FROM t WHERE a = 3").fetchall() == [(77,)]
        apply(copy, run(origin, ["DROP TRIGGER tr ON t"]))
        other.execute("INSERT INTO t VALUES (%s)", (4,), prepare=True)
        assert other.execute("SELECT b FROM t WHERE a = 4").fetchall() == [(5,)]
        apply(copy, run(origin, ["DROP TABLE t CASCADE"]))
        with pytest.raises(psycopg.errors.UndefinedTable):
            other.execute("SELECT * FROM v")


BEFORE = [
    "CREATE TABLE t (a int PRIMARY KEY, b text)",
    "CREATE TABLE parent (a int PRIMARY KEY)",
    "CREATE VIEW v AS SELECT a FROM t",
    "CREATE TYPE mood AS ENUM ('a')",
    "CREATE DOMAIN d AS int",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TABLE part (a int) PARTITION BY LIST (a)",
    "CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1)",
    "CREATE ROLE r1",
    "CREATE ROLE r2",
    "CREATE SEQUENCE seq",
    "CREATE SCHEMA s",
]
ADDITIVE, RELATIONS, GLOBAL = 0, 1, 2
REACHES = [
    (ADDITIVE, "CREATE TABLE n (a serial PRIMARY KEY, b mood CHECK (b > 'a'), c d UNIQUE)"),
    (ADDITIVE, "CREATE TABLE n (LIKE t INCLUDING ALL)"),
    (ADDITIVE, "CREATE VIEW n AS SELECT * FROM t"),
    (
        ADDITIVE,
        "CREATE TABLE n (a int) PARTITION BY LIST (a);"
        "CREATE TABLE n_1 PARTITION OF n FOR VALUES IN (1)",
    ),
    (ADDITIVE, "CREATE TYPE n AS ENUM ('x'); ALTER TYPE n ADD VALUE 'y'"),
    (ADDITIVE, "CREATE FUNCTION n() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    (ADDITIVE, "CREATE AGGREGATE n(int) (SFUNC = int4pl, STYPE = int)"),
    (ADDITIVE, "CREATE ROLE r3 IN ROLE r1"),
    (ADDITIVE, "GRANT SELECT ON t TO r1; GRANT SELECT (b) ON t TO r2"),
    (ADDITIVE, "GRANT EXECUTE ON FUNCTION f() TO r1; GRANT USAGE ON SCHEMA s TO r1"),
    (ADDITIVE, "GRANT USAGE ON TYPE mood TO r1; GRANT USAGE ON SEQUENCE seq TO r1"),
    (ADDITIVE, "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO r1"),
    (ADDITIVE, "COMMENT ON TABLE t IS 'x'; COMMENT ON ROLE r1 IS 'y'"),
    (ADDITIVE, "CREATE STATISTICS st ON a, b FROM t"),
    (ADDITIVE, "ALTER ROLE r1 SET work_mem = '1MB'; ALTER ROLE r1 PASSWORD 'x'"),
    (ADDITIVE, "ALTER TABLE t ALTER b SET STATISTICS 10"),
    (RELATIONS, "ALTER TABLE t ADD c int"),
    (RELATIONS, "ALTER TABLE t RENAME TO t2"),
    (RELATIONS, "ALTER TABLE t ALTER b TYPE varchar"),
    (RELATIONS, "ALTER TABLE t ALTER b SET DEFAULT 'x'"),
    (RELATIONS, "ALTER TABLE t ADD CHECK (a > 0)"),
    (RELATIONS, "ALTER TABLE t ENABLE ROW LEVEL SECURITY"),
    (RELATIONS, "CREATE INDEX ON t (b)"),
    (RELATIONS, "CREATE TABLE n (a int REFERENCES parent)"),
    (RELATIONS, "DROP TABLE parent"),
    (RELATIONS, "CREATE TABLE n PARTITION OF part FOR VALUES IN (2)"),
    (RELATIONS, "CREATE TABLE n (x int) INHERITS (t)"),
    (RELATIONS, "DROP TABLE part_1"),
    (RELATIONS, "ALTER TABLE part DETACH PARTITION part_1"),
    (RELATIONS, "ALTER SEQUENCE seq INCREMENT 5"),
    (RELATIONS, "TRUNCATE t"),
    (RELATIONS, "ALTER TABLE t OWNER TO r1"),
    (GLOBAL, "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'"),
    (GLOBAL, "DROP FUNCTION f()"),
    (GLOBAL, "CREATE OR REPLACE VIEW v AS SELECT a, b FROM t"),
    (GLOBAL, "DROP VIEW v"),
    (ADDITIVE, "ALTER TYPE mood ADD VALUE 'b' BEFORE 'a'"),
    (GLOBAL, "ALTER TYPE mood RENAME VALUE 'a' TO 'b'"),
    (GLOBAL, "ALTER TYPE mood RENAME TO m2"),
    (GLOBAL, "ALTER DOMAIN d ADD CHECK (VALUE > 0)"),
    (GLOBAL, "CREATE POLICY p ON t USING (true)"),
    (GLOBAL, "CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING"),
    (GLOBAL, "ALTER ROLE r1 CREATEDB"),
    (GLOBAL, "GRANT r1 TO r2"),
    (GLOBAL, "DROP ROLE r2"),
    (GLOBAL, "ALTER SCHEMA s RENAME TO s3"),
    (GLOBAL, "CREATE CAST (mood AS int) WITH INOUT"),
    (GLOBAL, "CREATE TABLE n (a int); DROP SCHEMA s"),
]


def test_whom_a_delta_concerns(pair: tuple[Connection, Connection]) -> None:
    origin, copy = pair
    apply(copy, run(origin, BEFORE))
    wrong = []
    for kind, statements in REACHES:
        origin.execute(statements.encode())
        row = origin.execute("SELECT meridian_debug.reach()").fetchone()
        origin.rollback()
        assert row is not None and row[0] is not None, statements
        found = msgspec.msgpack.decode(row[0])
        if found[0] != kind:
            wrong.append((statements, kind, found))
    assert not wrong
    origin.execute("CREATE TEMP TABLE x (a int)")
    assert origin.execute("SELECT meridian_debug.reach()").fetchone() == (None,)
    origin.rollback()


def test_nothing_to_ship(pair: tuple[Connection, Connection]) -> None:
    origin, _ = pair
    run(origin, ["CREATE TABLE t (a int)", "CREATE TABLE big (a int)"])
    assert run(origin, ["SELECT 1"]) is None
    assert run(origin, ["INSERT INTO t SELECT generate_series(1, 1000)"]) is None
    assert run(origin, ["ANALYZE t"]) is None
    assert run(origin, ["CREATE TEMP TABLE x (a serial PRIMARY KEY, b text)"]) is None
    assert run(origin, ["CREATE TEMP VIEW y AS SELECT * FROM x", "DROP TABLE x CASCADE"]) is None
    assert run(origin, ["SAVEPOINT a", "CREATE TABLE z (a int)", "ROLLBACK TO a"]) is None
    assert run(origin, ["CREATE TABLE z (a int)", "DROP TABLE z"]) is None


def test_without_counters_every_catalog_is_read(pair: tuple[Connection, Connection]) -> None:
    origin, copy = pair
    assert not differences(origin, copy)
    apply(
        copy, run(origin, ["SET LOCAL track_counts = off", "CREATE TABLE t (a serial PRIMARY KEY)"])
    )
    assert not differences(origin, copy)


@pytest.mark.parametrize("statement", ["SELECT lo_create(0)"])
def test_what_cannot_be_shipped_is_refused(
    pair: tuple[Connection, Connection], statement: str
) -> None:
    origin, _ = pair
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        run(origin, [statement])


def test_damaged_and_foreign_deltas_change_nothing(pair: tuple[Connection, Connection]) -> None:
    origin, copy = pair
    assert not differences(origin, copy)
    delta = run(origin, ["CREATE TABLE t (a int PRIMARY KEY)"])
    assert delta is not None
    fields = msgspec.msgpack.decode(delta, strict=False)
    before = catalogs(copy)
    wrong = [
        delta[:-1],
        delta + b"\xc0",
        delta[: len(delta) // 2],
        b"",
        b"\x00",
        msgspec.msgpack.encode([2, *fields[1:]]),
        msgspec.msgpack.encode([1, fields[1] + 1, *fields[2:]]),
        msgspec.msgpack.encode([*fields[:2], fields[2] + 1, *fields[3:]]),
        msgspec.msgpack.encode([*fields[:3], 1, fields[4]]),
        msgspec.msgpack.encode([*fields[:4], [[2619, 31, [], []]]]),
        msgspec.msgpack.encode([*fields[:4], [[99, 1, [], []]]]),
        msgspec.msgpack.encode([*fields[:4], [[1259, 3, [], []]]]),
    ]
    for damaged in wrong:
        with pytest.raises((psycopg.errors.ProtocolViolation, psycopg.errors.FeatureNotSupported)):
            apply(copy, damaged)
    assert catalogs(copy) == before
    apply(copy, delta)
    assert not differences(origin, copy)
