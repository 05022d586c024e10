"""A schema change against a writer that began before it, on another instance, in both orders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import psycopg
import pytest

from tests.locks.conftest import Connect, Session, connect, two_instances
from tests.locks.races import rows

__all__ = ["connect", "two_instances"]


@dataclasses.dataclass(frozen=True)
class Case:
    """`check` counts what must not be there whoever wins."""

    change: str
    work: str
    check: str = "SELECT 0"
    both: bool = False
    """Whether both may commit: the writer did nothing that the change cares about."""


SCHEMA = """
DROP TABLE IF EXISTS t, parted, part0, part9, other, unrelated, of_domain CASCADE;
DROP DOMAIN IF EXISTS positive;
CREATE DOMAIN positive AS int;
CREATE TABLE of_domain (v positive);
DROP FUNCTION IF EXISTS doubled;
CREATE TABLE t (id int PRIMARY KEY, v int, p int);
INSERT INTO t VALUES (1, 1, 1), (2, 2, 2);
CREATE TABLE other (id int PRIMARY KEY);
INSERT INTO other VALUES (1), (2), (3);
CREATE TABLE parted (a int NOT NULL) PARTITION BY RANGE (a);
CREATE TABLE part0 PARTITION OF parted FOR VALUES FROM (-10) TO (0);
CREATE TABLE unrelated (a int);
CREATE FUNCTION doubled(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1';
"""

CASES = {
    "check": Case(
        "ALTER TABLE t ADD CHECK (v > 0)",
        "INSERT INTO t VALUES (3, -1, 1)",
        "SELECT count(*) FROM t WHERE v <= 0 AND EXISTS"
        " (SELECT FROM pg_constraint WHERE conrelid = 't'::regclass AND contype = 'c')",
    ),
    "not null": Case(
        "ALTER TABLE t ALTER v SET NOT NULL",
        "INSERT INTO t VALUES (3, NULL, 1)",
        "SELECT count(*) FROM t WHERE v IS NULL AND EXISTS (SELECT FROM pg_attribute"
        " WHERE attrelid = 't'::regclass AND attname = 'v' AND attnotnull)",
    ),
    "foreign key, child": Case(
        "ALTER TABLE t ADD FOREIGN KEY (p) REFERENCES other",
        "INSERT INTO t VALUES (3, 3, 77)",
        "SELECT count(*) FROM t WHERE NOT EXISTS (SELECT FROM other WHERE id = p) AND EXISTS"
        " (SELECT FROM pg_constraint WHERE conrelid = 't'::regclass AND contype = 'f')",
    ),
    "foreign key, parent": Case(
        "ALTER TABLE t ADD FOREIGN KEY (p) REFERENCES other",
        "DELETE FROM other WHERE id = 1",
        "SELECT count(*) FROM t WHERE NOT EXISTS (SELECT FROM other WHERE id = p) AND EXISTS"
        " (SELECT FROM pg_constraint WHERE conrelid = 't'::regclass AND contype = 'f')",
    ),
    "foreign key not valid, child": Case(
        "ALTER TABLE t ADD FOREIGN KEY (p) REFERENCES other NOT VALID",
        "INSERT INTO t VALUES (3, 3, 77)",
    ),
    "foreign key not valid, parent": Case(
        "ALTER TABLE t ADD FOREIGN KEY (p) REFERENCES other NOT VALID",
        "DELETE FROM other WHERE id = 1",
    ),
    "domain": Case(
        "ALTER DOMAIN positive ADD CHECK (VALUE > 0)",
        "INSERT INTO of_domain VALUES (-1)",
        "SELECT count(*) FROM of_domain WHERE v <= 0 AND EXISTS"
        " (SELECT FROM pg_constraint WHERE contypid = 'positive'::regtype)",
    ),
    "unique index": Case(
        "CREATE UNIQUE INDEX t_v ON t (v)",
        "INSERT INTO t VALUES (3, 1, 1)",
        "SELECT count(*) FROM (SELECT v FROM t WHERE EXISTS (SELECT FROM pg_index"
        " WHERE indexrelid = to_regclass('t_v') AND indisvalid)"
        " GROUP BY v HAVING count(*) > 1) d",
    ),
    "drop unique": Case("ALTER TABLE t DROP CONSTRAINT t_pkey", "INSERT INTO t VALUES (4, 4, 1)"),
    "rename column": Case("ALTER TABLE t RENAME v TO w", "INSERT INTO t VALUES (3, 3, 1)"),
    "default": Case("ALTER TABLE t ALTER v SET DEFAULT 9", "INSERT INTO t (id) VALUES (3)"),
    "rule": Case(
        "CREATE RULE r AS ON INSERT TO t DO INSTEAD NOTHING", "INSERT INTO t VALUES (3, 3, 1)"
    ),
    "policy": Case("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "INSERT INTO t VALUES (3, 3, 1)"),
    "detach": Case("ALTER TABLE parted DETACH PARTITION part0", "INSERT INTO parted VALUES (-5)"),
    "new partition": Case(
        "CREATE TABLE part9 PARTITION OF parted FOR VALUES FROM (900) TO (950)",
        "INSERT INTO parted VALUES (-5)",
    ),
    "unique": Case(
        "ALTER TABLE t ADD UNIQUE (v)",
        "INSERT INTO t VALUES (3, 1, 1)",
        "SELECT count(*) FROM (SELECT v FROM t WHERE EXISTS (SELECT FROM pg_constraint"
        " WHERE conrelid = 't'::regclass AND contype = 'u')"
        " GROUP BY v HAVING count(*) > 1) d",
    ),
    "primary key moves": Case(
        "ALTER TABLE t DROP CONSTRAINT t_pkey", "INSERT INTO t VALUES (3, 3, 1)"
    ),
    "type": Case("ALTER TABLE t ALTER v TYPE text", "INSERT INTO t VALUES (3, 3, 1)"),
    "volatile default": Case(
        "ALTER TABLE t ADD n float NOT NULL DEFAULT random()", "INSERT INTO t VALUES (3, 3, 1)"
    ),
    "constant default": Case(
        "ALTER TABLE t ADD n int NOT NULL DEFAULT 7", "INSERT INTO t VALUES (3, 3, 1)"
    ),
    "drop column": Case("ALTER TABLE t DROP COLUMN v", "UPDATE t SET v = 5 WHERE id = 1"),
    "truncate": Case("TRUNCATE t", "INSERT INTO t VALUES (3, 3, 1)"),
    "drop table": Case("DROP TABLE t", "INSERT INTO t VALUES (3, 3, 1)"),
    "attach": Case(
        "ALTER TABLE parted ATTACH PARTITION t2 FOR VALUES FROM (0) TO (10)",
        "INSERT INTO t2 VALUES (77)",
        "SELECT count(*) FROM parted WHERE a NOT BETWEEN -10 AND 9",
    ),
    "trigger": Case(
        "CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "INSERT INTO t VALUES (3, 3, 1)",
    ),
    "function": Case(
        "CREATE OR REPLACE FUNCTION doubled(int) RETURNS int LANGUAGE sql IMMUTABLE"
        " AS 'SELECT 3 * $1'",
        "UPDATE t SET v = doubled(4) WHERE id = 1",
    ),
    "grant": Case("GRANT SELECT ON t TO PUBLIC", "INSERT INTO t VALUES (3, 3, 1)", both=True),
    "other table": Case(
        "ALTER TABLE other ADD CHECK (id > 0)", "INSERT INTO t VALUES (3, 3, 1)", both=True
    ),
    "comment": Case("COMMENT ON TABLE t IS 'x'", "INSERT INTO t VALUES (3, 3, 1)", both=True),
    "analyze": Case("ANALYZE t", "INSERT INTO t VALUES (3, 3, 1)", both=True),
    "new table": Case(
        "CREATE TABLE IF NOT EXISTS t_new (a int)", "INSERT INTO t VALUES (3, 3, 1)", both=True
    ),
}


def ends_with(session: Session, sql: str) -> str | None:
    """The SQLSTATE; a session that was ended for a schema change counts as 40001."""
    try:
        session.execute(sql.encode())
    except psycopg.OperationalError as error:
        if session.closed:
            assert error.sqlstate in (None, "40001"), error
            return "40001"
        return error.sqlstate
    except psycopg.Error as error:
        return error.sqlstate
    return None


@pytest.fixture
def pair(connect: Connect) -> Iterator[tuple[Session, Session]]:
    one, other = connect(0), connect(1)
    one.execute(SCHEMA)
    one.execute("CREATE TABLE IF NOT EXISTS t2 (a int NOT NULL)")
    yield one, other
    with psycopg.connect(one.info.dsn, password=one.info.password, autocommit=True) as clean:
        clean.execute("DROP TABLE IF EXISTS t_new, t2 CASCADE")


def began(session: Session, work: str) -> None:
    session.execute("BEGIN")
    session.execute("SELECT count(*) FROM unrelated")
    session.execute(work.encode())


def checked(pair: tuple[Session, Session], case: Case) -> None:
    for session in pair:
        if not session.closed and case.change != "DROP TABLE t":
            session.execute("ROLLBACK")
            assert rows(session, case.check) == [(0,)]


@pytest.mark.parametrize("name", CASES)
def test_the_change_commits_first(pair: tuple[Session, Session], name: str) -> None:
    ddl, writer = pair
    case = CASES[name]
    began(writer, case.work)
    assert ends_with(ddl, case.change) is None
    outcome = ends_with(writer, "COMMIT")
    assert outcome == (None if case.both else "40001")
    checked(pair, case)


@pytest.mark.parametrize("name", CASES)
def test_the_writer_commits_first(pair: tuple[Session, Session], name: str) -> None:
    """Before the change has, that is: a gate may hold the writer's COMMIT until it fails."""
    ddl, writer = pair
    case = CASES[name]
    began(writer, case.work)
    ddl.execute("BEGIN")
    if name != "domain":  # which is refused after the transaction has read
        ddl.execute("SELECT count(*) FROM unrelated")
    changed = ends_with(ddl, case.change)
    written = ends_with(writer, "COMMIT")
    changed = changed or ends_with(ddl, "COMMIT")
    assert (changed is None) or (written is None), "somebody gets through"
    assert changed in (None, "40001") and written in (None, "40001"), (changed, written)
    if case.both:
        assert written is None
    checked(pair, case)
