"""Foreign keys of every kind over two instances: no orphan in either order of commits."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.locks.conftest import Connect, Session
from tests.locks.races import race, rows, state

CONFLICT = "40001"
VIOLATION = "23503"

ACTIONS = ["NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT"]
TIMES = ["", "DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"]

PLAIN = """
CREATE TABLE parent (id int PRIMARY KEY, k int UNIQUE, note text);
CREATE TABLE child (id int PRIMARY KEY, pid int DEFAULT 9
  REFERENCES parent {target} ON DELETE {action} ON UPDATE {action} {time});
"""
SHAPES = {
    "primary key": PLAIN,
    "hidden ids": """
CREATE TABLE parent (id int UNIQUE, k int UNIQUE, note text);
CREATE TABLE child (id int, pid int DEFAULT 9
  REFERENCES parent (id) ON DELETE {action} ON UPDATE {action} {time});
""",
    "partitioned parent": """
CREATE TABLE parent (id int PRIMARY KEY, k int, note text) PARTITION BY RANGE (id);
CREATE TABLE parent_low PARTITION OF parent FOR VALUES FROM (0) TO (5);
CREATE TABLE parent_high PARTITION OF parent FOR VALUES FROM (5) TO (100);
CREATE TABLE child (id int PRIMARY KEY, pid int DEFAULT 9
  REFERENCES parent ON DELETE {action} ON UPDATE {action} {time});
""",
    "partitioned child": """
CREATE TABLE parent (id int PRIMARY KEY, k int, note text);
CREATE TABLE child (id int, pid int DEFAULT 9
  REFERENCES parent ON DELETE {action} ON UPDATE {action} {time}) PARTITION BY HASH (id);
CREATE TABLE child_even PARTITION OF child FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE child_odd PARTITION OF child FOR VALUES WITH (MODULUS 2, REMAINDER 1);
""",
}
COMPOSITE = """
CREATE TABLE parent (a int, b text, note text, PRIMARY KEY (a, b));
CREATE TABLE child (id int PRIMARY KEY, pa int, pb text DEFAULT 'none',
  FOREIGN KEY (pa, pb) REFERENCES parent {match} ON DELETE {action} ON UPDATE CASCADE);
"""
SELF = """
CREATE TABLE parent (id int PRIMARY KEY, boss int REFERENCES parent {time}, note text);
"""
FILL = "INSERT INTO parent SELECT g, g, 'x' FROM generate_series(1, 9) g;"


@pytest.fixture
def pair(connect: Connect) -> Iterator[tuple[Session, Session]]:
    one, other = connect(0), connect(1)
    one.execute("DROP TABLE IF EXISTS parent, child, snapshot_taken CASCADE")
    one.execute("CREATE TABLE snapshot_taken (a int)")
    yield one, other
    for session in (one, other):
        session.execute("ROLLBACK")


def made(pair: tuple[Session, Session], schema: str, **words: str) -> tuple[Session, Session]:
    words = {"action": "NO ACTION", "time": "", "target": "", "match": "", **words}
    pair[0].execute(schema.format(**words).encode())
    return pair


def orphans(session: Session, condition: str = "parent.id = child.pid") -> int:
    """Children whose parent is not there."""
    where = "pid IS NOT NULL" if "pid" in condition else "pa IS NOT NULL AND pb IS NOT NULL"
    lost = f"NOT EXISTS (SELECT FROM parent WHERE {condition})"
    return len(rows(session, f"SELECT id FROM child WHERE {where} AND {lost}"))


@pytest.mark.parametrize(
    "change", ["DELETE FROM parent WHERE id = 1", "UPDATE parent SET id = id + 50 WHERE id = 1"]
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("action", ACTIONS)
def test_parent_changes_child_comes(
    pair: tuple[Session, Session], action: str, shape: str, change: str
) -> None:
    one, other = made(pair, SHAPES[shape] + FILL, action=action)
    insert = "INSERT INTO child VALUES ({}, 1)"
    assert race(one, change, other, insert.format(1)) == (None, CONFLICT)
    assert orphans(one) == 0 and rows(one, "SELECT * FROM child") == []
    change = change.replace("WHERE id = 1", "WHERE id = 2")
    insert = insert.replace("1)", "2)")
    assert race(one, insert.format(2), other, change) == (None, CONFLICT)
    assert orphans(one) == 0 and rows(one, "SELECT * FROM child") == [(2, 2)]


@pytest.mark.parametrize("time", TIMES)
def test_deferred_checks_too(pair: tuple[Session, Session], time: str) -> None:
    one, other = made(pair, PLAIN + FILL, time=time)
    delete, insert = "DELETE FROM parent WHERE id = {0}", "INSERT INTO child VALUES ({0}, {0})"
    assert race(one, delete.format(1), other, insert.format(1)) == (None, CONFLICT)
    assert race(one, insert.format(2), other, delete.format(2)) == (None, CONFLICT)
    move = "UPDATE child SET pid = {1} WHERE id = {0}"
    assert race(one, move.format(2, 3), other, delete.format(3)) == (None, CONFLICT)
    assert race(one, delete.format(4), other, move.format(2, 4)) == (None, CONFLICT)
    assert orphans(one) == 0


def test_a_deferred_child_may_come_first(pair: tuple[Session, Session]) -> None:
    one, other = made(pair, PLAIN, time=TIMES[2])
    both = "INSERT INTO child VALUES (1, 1); INSERT INTO parent VALUES (1, 1)"
    assert race(one, both, other, "SELECT 1") == (None, None)
    other.execute("BEGIN")
    other.execute("INSERT INTO child VALUES (2, 2)")
    assert state(other, "COMMIT") == VIOLATION
    assert orphans(one) == 0


@pytest.mark.parametrize("target", ["(id)", "(k)"])
@pytest.mark.parametrize("change", ["note = 'new'", "note = note", "id = id, k = k"])
def test_other_columns_of_a_parent_never_conflict(
    pair: tuple[Session, Session], target: str, change: str
) -> None:
    one, other = made(pair, PLAIN + FILL, target=target)
    update = f"UPDATE parent SET {change} WHERE id = 1"
    assert race(one, update, other, "INSERT INTO child VALUES (1, 1)") == (None, None)
    assert race(one, "INSERT INTO child VALUES (2, 1)", other, update) == (None, None)
    assert race(
        one, "INSERT INTO child VALUES (3, 1)", other, "INSERT INTO child VALUES (4, 1)"
    ) == (None, None)


def test_a_secondary_key_is_a_key(pair: tuple[Session, Session]) -> None:
    """Children of parent (k): a change of k conflicts in both orders."""
    one, other = made(pair, PLAIN + FILL, target="(k)")
    update = "UPDATE parent SET k = {0} + 50 WHERE k = {0}"
    insert = "INSERT INTO child VALUES ({0}, {0})"
    assert race(one, update.format(1), other, insert.format(1)) == (None, CONFLICT)
    assert race(one, insert.format(2), other, update.format(2)) == (None, CONFLICT)
    assert orphans(one, "parent.k = child.pid") == 0


@pytest.mark.parametrize("action", [*ACTIONS, "SET NULL (pa)", "SET DEFAULT (pb)"])
@pytest.mark.parametrize("match", ["MATCH SIMPLE", "MATCH FULL"])
def test_composite(pair: tuple[Session, Session], match: str, action: str) -> None:
    one, other = made(pair, COMPOSITE, action=action, match=match)
    one.execute(
        "INSERT INTO parent SELECT g, b, 'x' FROM generate_series(1, 4) g,"
        " unnest('{a,b,none}'::text[]) b"
    )
    delete = "DELETE FROM parent WHERE (a, b) = ({0}, 'a')"
    insert = "INSERT INTO child VALUES ({0}, {0}, 'a')"
    condition = "(parent.a, parent.b) = (child.pa, child.pb)"
    assert race(one, delete.format(1), other, insert.format(1)) == (None, CONFLICT)
    assert race(one, insert.format(2), other, delete.format(2)) == (None, CONFLICT)
    update = "UPDATE parent SET b = 'c' WHERE (a, b) = ({0}, 'a')"
    assert race(one, update.format(3), other, insert.format(3)) == (None, CONFLICT)
    assert race(one, insert.format(4), other, update.format(4)) == (None, CONFLICT)
    assert orphans(one, condition) == 0
    partial = state(one, "INSERT INTO child VALUES (9, 77, NULL)")
    assert partial == (VIOLATION if match == "MATCH FULL" else None)


def test_set_null_and_default_of_some_columns(pair: tuple[Session, Session]) -> None:
    one, other = made(pair, COMPOSITE, action="SET DEFAULT (pb)")
    one.execute("INSERT INTO parent VALUES (1, 'a', 'x'), (1, 'none', 'x'), (2, 'a', 'x')")
    one.execute("INSERT INTO child VALUES (1, 1, 'a'), (2, 2, 'a')")
    other.execute("DELETE FROM parent WHERE (a, b) = (1, 'a')")
    assert rows(one, "SELECT pa, pb FROM child ORDER BY id") == [(1, "none"), (2, "a")]
    assert state(other, "DELETE FROM parent WHERE a = 2") == VIOLATION
    # What a child falls back to is locked like any other parent.
    one.execute("INSERT INTO parent VALUES (3, 'a', 'x'), (3, 'none', 'x')")
    one.execute("INSERT INTO child VALUES (3, 3, 'a')")
    outcome = race(
        one,
        "DELETE FROM parent WHERE (a, b) = (3, 'a')",
        other,
        "DELETE FROM parent WHERE (a, b) = (3, 'none')",
    )
    assert outcome == (None, CONFLICT)
    assert orphans(one, "(parent.a, parent.b) = (child.pa, child.pb)") == 0


@pytest.mark.parametrize("time", TIMES)
def test_self_reference(pair: tuple[Session, Session], time: str) -> None:
    one, other = made(pair, SELF, time=time)
    one.execute("INSERT INTO parent VALUES (1, NULL), (2, NULL), (3, 3)")
    delete, insert = "DELETE FROM parent WHERE id = {}", "INSERT INTO parent VALUES ({}, {})"
    assert race(one, delete.format(1), other, insert.format(11, 1)) == (None, CONFLICT)
    assert race(one, insert.format(12, 2), other, delete.format(2)) == (None, CONFLICT)
    assert race(
        one, "UPDATE parent SET note = 'x' WHERE id = 12", other, insert.format(13, 12)
    ) == (None, None)
    assert race(one, delete.format(3), other, "SELECT 1") == (None, None)
    assert rows(
        one,
        "SELECT count(*) FROM parent p WHERE boss IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM parent WHERE id = p.boss)",
    ) == [(0,)]


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL"])
def test_actions_reach_what_the_other_instance_wrote(
    pair: tuple[Session, Session], action: str
) -> None:
    one, other = made(pair, PLAIN + FILL, action=action)
    other.execute("INSERT INTO child SELECT g, g % 3 + 1 FROM generate_series(1, 30) g")
    one.execute("DELETE FROM parent WHERE id = 1")
    left = rows(other, "SELECT count(*), count(pid) FROM child")
    assert left == ([(20, 20)] if action == "CASCADE" else [(30, 20)])
    one.execute("UPDATE parent SET id = 70 WHERE id = 2")
    assert orphans(other) == 0


def test_two_cascades_meet(pair: tuple[Session, Session]) -> None:
    """Both delete the same child through different parents."""
    one, other = pair
    one.execute(
        "CREATE TABLE parent (id int PRIMARY KEY);"
        "CREATE TABLE child (id int PRIMARY KEY,"
        " a int REFERENCES parent ON DELETE CASCADE,"
        " b int REFERENCES parent ON DELETE SET NULL);"
        "INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 1, 2)"
    )
    delete = "DELETE FROM parent WHERE id = {}"
    assert race(one, delete.format(1), other, delete.format(2)) == (None, CONFLICT)
    assert rows(one, "SELECT * FROM child") == []


def test_detached_and_attached_partitions(pair: tuple[Session, Session]) -> None:
    one, other = made(pair, SHAPES["partitioned parent"] + FILL)
    other.execute("INSERT INTO child VALUES (1, 7)")
    assert state(one, "ALTER TABLE parent DETACH PARTITION parent_high") == VIOLATION
    other.execute("DELETE FROM child")
    assert state(one, "ALTER TABLE parent DETACH PARTITION parent_high") is None
    assert state(other, "INSERT INTO child VALUES (2, 7)") == VIOLATION
    attach = "ALTER TABLE parent ATTACH PARTITION parent_high FOR VALUES FROM (5) TO (100)"
    assert state(one, attach) is None
    assert state(other, "INSERT INTO child VALUES (2, 7)") is None
    assert race(
        one, "INSERT INTO child VALUES (3, 8)", other, "DELETE FROM parent WHERE id = 8"
    ) == (None, CONFLICT)
    assert orphans(one) == 0


def test_violations_are_seen_at_once(pair: tuple[Session, Session]) -> None:
    one, other = made(pair, PLAIN + FILL)
    other.execute("INSERT INTO child VALUES (1, 1)")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        one.execute("DELETE FROM parent WHERE id = 1")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        one.execute("INSERT INTO child VALUES (2, 77)")
