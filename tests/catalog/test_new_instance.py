"""A new instance starts from image and tail: its catalogs are those of one that saw every delta."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from meridian.catalog import compaction
from meridian.catalog.catalogs import CATALOGS, FIRST_USER_OID
from meridian.gateway.aio import AsyncClient
from meridian.gateway.client import Client
from meridian.instance import extension
from meridian.wire.ops import SID_CATALOG, SID_CATALOG_AUDIT
from tests.catalog.instances import DEADLINE_S, differences, root, running, settle
from tests.crash.processes import Embedded
from tests.pgext.ddl_objects import Objects
from tests.pgext.ddl_program import PROGRAM
from tests.pgext.ddl_random import Program

PROGRAMS = int(os.environ.get("MERIDIAN_IMAGE_PROGRAMS", "3"))
STATEMENTS = 60


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    made = Embedded(tmp_path_factory.mktemp("image") / "data", "--query-hosts", "2")
    made.start()
    yield made
    made.stop()


def compact(cluster: Embedded) -> int:
    async def work() -> int:
        path = Path(running(cluster)["gateway_socket"])
        client = await AsyncClient.connect(path, timeout_s=10)
        try:
            version = 0
            while made := await compaction.compact(client, age_ns=0, tail=1):
                version = made
            return version
        finally:
            client.close()

    return asyncio.run(work())


def renew(cluster: Embedded, number: int) -> None:
    """Instance `number` loses its directory while the others serve."""
    pid = cluster.postmaster(number)
    data = Path(f"/proc/{pid}/cwd").resolve()
    (data / "meridian.json").unlink()
    os.kill(pid, 9)
    deadline = time.monotonic() + DEADLINE_S
    while not (data / "meridian.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while running(cluster)["instances"][number - 1]["state"] != "serving":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run_random(cluster: Embedded, seed: int) -> None:
    """A program over tables and their columns, one over objects of all kinds."""
    statements = Program(seed).statements(STATEMENTS)
    for group in Objects(seed, f"role{seed}_").program(STATEMENTS):
        statements += group
    with psycopg.connect(cluster.dsns[seed % 2], autocommit=True) as session:
        session.execute(f"CREATE SCHEMA r{seed}".encode())
        session.execute(f"SET search_path = r{seed}".encode())
        for statement in statements:
            try:
                session.execute(statement.encode())
            except psycopg.Error:
                continue
        session.execute("ROLLBACK")


def run_fixed(cluster: Embedded) -> None:
    """Roles, types, partitions, views, policies, functions, triggers: what the slice accepts."""
    with psycopg.connect(cluster.dsns[0], autocommit=True, prepare_threshold=None) as session:
        for statements in PROGRAM:
            try:
                with session.transaction():
                    for statement in statements:
                        session.execute(statement.encode())
            except psycopg.Error:
                continue


@pytest.fixture(autouse=True)
def several_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """One behind the other: each is merged from the one before."""
    monkeypatch.setattr(compaction, "VERSIONS_AT_ONCE", 40)


def test_the_table_of_catalogs_is_the_servers(pair: Embedded) -> None:
    source = (extension.source_directory() / "src" / "catrules.c").read_text()
    assert len(re.findall(r"MERCAT_SHIP,", source)) == len(CATALOGS)
    with root(pair, 1) as session:
        found = session.execute(
            "SELECT CASE WHEN c.relname = 'relation' THEN 0 ELSE c.oid END::int, i.indkey::int2[],"
            " (SELECT array_agg(a.attnum ORDER BY a.attnum) FROM pg_attribute a WHERE"
            " a.attrelid = c.oid AND a.attnum > 0 AND a.atttypid IN"
            " ('oid'::regtype, 'regproc'::regtype)) FROM pg_class c LEFT JOIN pg_index i"
            " ON i.indrelid = c.oid AND i.indisprimary WHERE c.relkind = 'r'"
        ).fetchall()
    server = {oid: (tuple(key or ()), tuple(oids or ())) for oid, key, oids in found}
    for catalog in CATALOGS:
        key, oids = server[catalog.id]
        assert catalog.key == key, catalog
        assert catalog.oids == tuple(a for a in oids if not key or a in key), catalog


def test_ids_of_the_template_are_small(pair: Embedded) -> None:
    """What the merge takes for granted: see catalogs.FIRST_USER_OID."""
    with root(pair, 1) as session:
        version = session.execute("SELECT meridian.catalog_version()").fetchone()
        assert version is not None
        if version[0] > 0:
            pytest.skip("users' objects are there already")
        for table in ("pg_class", "pg_type", "pg_proc", "pg_namespace", "pg_authid", "pg_opclass"):
            row = session.execute(f"SELECT max(oid::int8) FROM {table}".encode()).fetchone()
            assert row is not None and row[0] < FIRST_USER_OID, table
        rows = session.execute("SELECT greatest(objid::int8, refobjid::int8) FROM pg_depend")
        assert max(row[0] for row in rows) < FIRST_USER_OID


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_image_and_tail_are_all_deltas(pair: Embedded, seed: int) -> None:
    run_random(pair, 2 * seed)
    if seed == 0:
        run_fixed(pair)
    version = compact(pair)
    assert version > 0
    run_random(pair, 2 * seed + 1)
    with Client(running(pair)["gateway_socket"]) as client:
        kept = [int.from_bytes(row[0], "big") for row in client.scan_all(SID_CATALOG, []).rows]
        assert kept and kept[0] == version + 1
        texts = client.scan_all(SID_CATALOG_AUDIT, [1]).rows
        assert len(texts) == version and any(b"CREATE TABLE" in row[1] for row in texts)
    renew(pair, 2)
    with root(pair, 1) as one, root(pair, 2) as two:
        settle((one, two))
        assert differences(one, two) == {}
    with psycopg.connect(pair.dsns[1], autocommit=True) as session:
        session.execute(f"CREATE TABLE after{seed} AS SELECT 1 AS a".encode())


def test_a_directory_that_the_image_has_passed_is_made_anew(tmp_path: Path) -> None:
    cluster = Embedded(tmp_path / "data", "--query-hosts", "2")
    cluster.start()
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("CREATE TABLE a (x int)")
    cluster.stop()
    cluster.options = ()
    cluster.start()
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("DROP TABLE a")
        session.execute("CREATE TABLE b (x int)")
    assert compact(cluster) > 0
    cluster.stop()
    cluster.options = ("--query-hosts", "2")
    cluster.start()
    assert "made anew" in cluster.errors()
    with root(cluster, 1) as one, root(cluster, 2) as two:
        assert differences(one, two) == {}
        assert two.execute("SELECT to_regclass('a'), to_regclass('b')").fetchone() == (None, "b")
    cluster.stop()


def test_a_directory_ahead_of_the_journal_is_made_anew(tmp_path: Path) -> None:
    """As after the journal was restored from an older copy."""
    cluster = Embedded(tmp_path / "data")
    cluster.start()
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("CREATE TABLE a (x int)")
    cluster.stop()
    shutil.copytree(cluster.directory / "data", tmp_path / "copy")
    cluster.start()
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("CREATE TABLE b (x int)")
    cluster.stop()
    shutil.rmtree(cluster.directory / "data")
    shutil.copytree(tmp_path / "copy", cluster.directory / "data")
    cluster.start()
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        assert session.execute("SELECT to_regclass('a') IS NULL, to_regclass('b')").fetchone() == (
            False,
            None,
        )
        session.execute("CREATE TABLE c AS SELECT x FROM a")
    cluster.stop()
