"""What ANALYZE finds at one instance holds at the other one, and after everything else was lost."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.catalog.instances import root, running
from tests.crash.processes import Embedded
from tests.pgext.instances import Pair, emptied

Connection = psycopg.Connection[Any]
DEADLINE_S = 30.0

KINDS = """
CREATE TYPE mood AS ENUM ('low', 'high');
ALTER TYPE mood ADD VALUE 'middle' BEFORE 'high';
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN short AS varchar(20) CHECK (length(VALUE) < 20);
CREATE TABLE kinds (
    id int PRIMARY KEY, t text, v varchar(9), c char(5), n numeric(12, 3), f float8, r real,
    b bool, by bytea, d date, ts timestamp, tz timestamptz, ti time, iv interval, u uuid, m mood,
    dom short, ai int[], at text[], am mood[], j jsonb, ip inet, p pair, ir int4range,
    mr nummultirange, tv tsvector, bi bit(4), mo money, o oid, k "char", nam name);
INSERT INTO kinds SELECT i, md5((i % 70)::text), 'v' || i % 11, 'c' || i % 3, i / 7.0, i ^ 0.5,
    i * 1.5, i % 3 = 0, decode(md5(i::text), 'hex'), '2026-01-01'::date + i % 90,
    '2026-01-01'::timestamp + i * '1 h'::interval,
    '2026-06-01 12:00+02'::timestamptz - i * '1 s'::interval,
    '00:00'::time + i * '1 s'::interval, i * '1 day'::interval, md5(i::text)::uuid,
    (ARRAY['low', 'middle', 'high'])[1 + i % 3]::mood, 'dom' || i % 13, ARRAY[i % 5, i % 7],
    ARRAY['a' || i % 5, NULL], ARRAY['low', 'high']::mood[], jsonb_build_object('a', i % 9),
    ('10.0.' || i % 250 || '.1')::inet, ROW(i, 'x')::pair, int4range(i, i + 10),
    nummultirange(numrange(i, i + 1)), to_tsvector('simple', 'word' || i % 20 || ' common'),
    (i % 16)::bit(4), (i % 100)::money, i, 'k', 'name' || i % 4
    FROM generate_series(1, 3000) i;
UPDATE kinds SET t = NULL WHERE id % 10 = 0;
CREATE INDEX kinds_lower ON kinds (lower(v), (id % 17));
CREATE STATISTICS kinds_many (ndistinct, dependencies, mcv) ON v, c, m FROM kinds;
CREATE STATISTICS kinds_expression ON (id % 3), (id % 9) FROM kinds;
CREATE TABLE parts (id int, k int, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (50);
CREATE TABLE parts2 PARTITION OF parts DEFAULT;
INSERT INTO parts SELECT i, i % 120 FROM generate_series(1, 1000) i;
CREATE TABLE nothing (id int PRIMARY KEY)
"""
STATISTICS = [
    "SELECT row_to_json(s)::text FROM pg_stats s WHERE schemaname = 'public'",
    "SELECT row_to_json(s)::text FROM pg_stats_ext s",
    "SELECT row_to_json(s)::text FROM pg_stats_ext_exprs s",
    "SELECT stxoid, stxdinherit, stxdmcv::bytea::text FROM pg_statistic_ext_data",
    "SELECT relname, relpages, reltuples FROM pg_class WHERE relkind IN ('r', 'p')"
    " AND relnamespace = 'public'::regnamespace",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    made = Embedded(tmp_path_factory.mktemp("statistics") / "data", "--query-hosts", "2")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def pair(cluster: Embedded) -> Iterator[Pair]:
    with emptied(cluster.dsns) as both:
        yield both


def found(cluster: Embedded, number: int) -> list[list[Any]]:
    with root(cluster, number) as session:
        return [sorted(session.execute(query.encode()).fetchall()) for query in STATISTICS]


def version(cluster: Embedded, number: int) -> int:
    with root(cluster, number) as session:
        row = session.execute("SELECT meridian.catalog_version()").fetchone()
        assert row is not None
        return int(row[0])


def until(holds: Callable[[], bool], what: object = "") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def both_equal(cluster: Embedded) -> bool:
    return found(cluster, 1) == found(cluster, 2)


def make(session: Connection, script: str) -> None:
    for statement in script.strip().split(";\n"):
        session.execute(statement.encode())


def test_statistics_of_all_kinds_are_everywhere(cluster: Embedded, pair: Pair) -> None:
    here, there = pair
    make(here, KINDS)
    before = version(cluster, 1)
    there.execute("BEGIN")
    assert there.execute("SELECT count(*) FROM kinds").fetchone() == (3000,)
    for table in ("kinds", "parts", "nothing"):
        here.execute(f"ANALYZE {table}".encode())
    ours = found(cluster, 1)
    columns = {json.loads(row[0])["attname"] for row in ours[0]}
    assert columns >= {"t", "n", "tz", "m", "am", "ir", "tv", "p", "lower", "k"}
    assert len(ours[1]) == 2 and len(ours[2]) == 2 and len(ours[3]) == 2
    until(lambda: found(cluster, 2) == ours, "statistics of the other instance")
    assert version(cluster, 1) == version(cluster, 2) == before, "a schema version was made"
    assert there.execute("SELECT count(*) FROM kinds").fetchone() == (3000,)
    there.execute("COMMIT")
    there.execute("DELETE FROM kinds WHERE id > 1500")
    there.execute("ANALYZE kinds (id, m)")
    theirs = found(cluster, 2)
    assert theirs != ours
    until(lambda: found(cluster, 1) == theirs, "statistics went the other way")


def test_both_choose_the_same_plans(cluster: Embedded, pair: Pair) -> None:
    """Values that are rare and values that are not: nobody can tell without statistics."""
    here, there = pair
    make(
        here,
        """CREATE TABLE t (id int PRIMARY KEY, state text, k int);
        CREATE INDEX ON t (state);
        CREATE INDEX ON t (k);
        INSERT INTO t SELECT i, CASE WHEN i % 100 = 0 THEN 'rare' ELSE 'usual' END, i % 3
            FROM generate_series(1, 6000) i""",
    )
    queries = [
        "SELECT * FROM t WHERE state = 'rare'",
        "SELECT * FROM t WHERE state = 'usual'",
        "SELECT * FROM t WHERE k = 5 AND state = 'rare'",
        "SELECT * FROM t a JOIN t b ON a.k = b.id WHERE a.state = 'rare'",
        "SELECT count(*) FROM t GROUP BY k",
    ]

    def plans(session: Connection) -> list[Any]:
        session.execute("SET meridian.statistics_ttl = 0")
        return [session.execute(f"EXPLAIN {query}".encode()).fetchall() for query in queries]

    before = plans(here)
    there.execute("ANALYZE t")
    theirs = plans(there)
    assert theirs != before
    until(lambda: plans(here) == theirs)
    assert "Index" in str(theirs[0]) and "Index" not in str(theirs[1])


def test_what_analyze_and_ddl_take_away_is_gone_everywhere(cluster: Embedded, pair: Pair) -> None:
    here, there = pair
    here.execute("CREATE TABLE t (id int PRIMARY KEY, a int, b int, c int)")
    here.execute("INSERT INTO t SELECT i, i % 50, i, i FROM generate_series(1, 2000) i")
    here.execute("CREATE STATISTICS many ON a, b FROM t")
    here.execute("CREATE TABLE dropped AS SELECT generate_series(1, 100) i")
    for session, table in ((here, "t"), (there, "dropped")):
        session.execute(f"ANALYZE {table}".encode())
    until(lambda: both_equal(cluster) and len(found(cluster, 1)[0]) == 5)
    # The values of `a` at the other instance are integers, and not to be taken for texts.
    here.execute("ALTER TABLE t ALTER a TYPE text USING 'x' || a, DROP c")
    for session in pair:
        assert session.execute("SELECT count(*) FROM t WHERE a < 'x1'").fetchone() == (40,)
    here.execute("DROP TABLE dropped")
    here.execute("DROP STATISTICS many")
    until(lambda: both_equal(cluster) and len(found(cluster, 1)[0]) == 2)
    with root(cluster, 2) as session:
        kept = session.execute("SELECT count(*) FROM pg_statistic WHERE starelid > 16384")
        assert kept.fetchone() == (2,)
    here.execute("SELECT pg_clear_attribute_stats('public', 't', 'b', false)")
    until(lambda: both_equal(cluster) and len(found(cluster, 1)[0]) == 1)
    there.execute("BEGIN; ANALYZE t; ROLLBACK")
    there.execute("ANALYZE t")
    until(lambda: both_equal(cluster) and len(found(cluster, 1)[0]) == 3)


def test_two_who_analyse_one_table_at_once_agree(cluster: Embedded, pair: Pair) -> None:
    here, there = pair
    here.execute("CREATE TABLE t (id int PRIMARY KEY, a int)")
    here.execute("INSERT INTO t SELECT i, i % 50 FROM generate_series(1, 60000) i")
    here.execute("SET default_statistics_target = 10; BEGIN; ANALYZE t")
    there.execute("SET default_statistics_target = 20; BEGIN; ANALYZE t")
    there.execute("COMMIT")
    here.execute("COMMIT")
    until(lambda: both_equal(cluster))
    assert len(json.loads(found(cluster, 2)[0][-1][0])["histogram_bounds"]) > 0


def test_a_table_in_use_is_left_for_later_and_nobody_waits(cluster: Embedded, pair: Pair) -> None:
    here, there = pair
    here.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
    here.execute("CREATE TABLE u AS SELECT generate_series(1, 1000) i")
    there.execute("BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
    here.execute("ANALYZE t")
    here.execute("ANALYZE u")
    until(lambda: len(found(cluster, 2)[0]) == 1)
    here.execute("CREATE TABLE v (i int)")
    there.execute("COMMIT")
    until(lambda: both_equal(cluster) and len(found(cluster, 2)[0]) == 2)


def test_temporary_tables_keep_theirs(cluster: Embedded, pair: Pair) -> None:
    del pair
    with contextlib.closing(psycopg.connect(cluster.dsns[0], autocommit=True)) as session:
        session.execute("CREATE TEMP TABLE own AS SELECT generate_series(1, 100) i")
        session.execute("ANALYZE own; DROP TABLE own")
        session.execute("CREATE TEMP TABLE own AS SELECT generate_series(1, 100) i")
        session.execute("ANALYZE own")
    with root(cluster, 2) as session:
        assert session.execute(
            "SELECT count(*) FROM pg_statistic WHERE starelid > 16384"
        ).fetchone() == (0,)


def test_a_new_instance_and_a_rebuilt_cluster_have_them(cluster: Embedded, pair: Pair) -> None:
    here, _ = pair
    make(here, KINDS)
    here.execute("ANALYZE kinds; ANALYZE parts")
    ours = found(cluster, 1)
    until(lambda: found(cluster, 2) == ours)
    cluster.stop()
    shutil.rmtree(cluster.directory / "storage", ignore_errors=True)
    cluster.options = (*cluster.options, "--rebuild")
    cluster.start()
    cluster.options = cluster.options[:-1]
    for number in (1, 2):
        until(lambda number=number: found(cluster, number) == ours, number)
    assert running(cluster)["instances"][0]["state"] == "serving"
