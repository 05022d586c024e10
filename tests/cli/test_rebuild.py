"""`meridian dev --rebuild`: storage and PostgreSQL's directories are caches of the journal.

Before and after a rebuild every table has the same rows, every catalog the same rows, and no
sequence goes back; with checkpoint and trimmed journal, after kill -9, and by hand too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from meridian.dataplane import housekeeping
from meridian.dataplane.node import Node
from meridian.gateway.client import Client
from meridian.limits import STANDARD
from tests.crash.processes import Embedded, dev_command
from tests.differential.programs import Program
from tests.differential.runner import run_statement

SEED = int(os.environ.get("MERIDIAN_REBUILD_SEED", "1"))
PROGRAMS = 4
LOCAL = {
    ("pg_class", "relfilenode"): "relfilenode <> 0",
    ("pg_class", "relfrozenxid"): "true",
    ("pg_class", "relminmxid"): "true",
    ("pg_class", "relhasindex"): "NOT EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid)",
    ("pg_class", "relpages"): "true",
    ("pg_class", "reltuples"): "true",
    ("pg_class", "relallvisible"): "true",
    ("pg_class", "relallfrozen"): "true",
    ("pg_authid", "rolpassword"): "rolname = 'admin'",
    ("pg_database", "datfrozenxid"): "true",
    ("pg_database", "datminmxid"): "true",
}
"""What tells of one instance's own files, transaction ids and estimates: column -> in which rows.

`relhasindex` without an index is a hint that outlives a rollback (PostgreSQL sets it in place).
The first password of admin lies in DIR; every instance salts it for itself.
"""
STATISTICS = {"pg_statistic", "pg_statistic_ext_data"}
"""What ANALYZE found comes by itself, a moment later (tests/statistics)."""
ROLES = """
CREATE ROLE keeper LOGIN PASSWORD 'secret' CONNECTION LIMIT 7;
CREATE ROLE readers;
GRANT readers TO keeper;
ALTER ROLE keeper SET work_mem = '8MB';
CREATE SCHEMA extra;
GRANT USAGE ON SCHEMA extra TO readers;
ALTER DEFAULT PRIVILEGES IN SCHEMA extra GRANT SELECT ON TABLES TO readers;
CREATE TYPE extra.mood AS ENUM ('low', 'high');
ALTER TYPE extra.mood ADD VALUE 'middle' BEFORE 'high';
CREATE DOMAIN extra.even AS int CHECK (VALUE % 2 = 0);
CREATE SEQUENCE extra.plain;
CREATE SEQUENCE extra.down INCREMENT -3 MINVALUE -100000 CACHE 1;
CREATE SEQUENCE extra.round MAXVALUE 1000000 CYCLE CACHE 20;
CREATE TABLE extra.parts (id int GENERATED ALWAYS AS IDENTITY, k int, m extra.mood,
    PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
CREATE TABLE extra.parts1 PARTITION OF extra.parts FOR VALUES FROM (0) TO (50);
CREATE TABLE extra.parts2 PARTITION OF extra.parts DEFAULT;
INSERT INTO extra.parts (k, m) SELECT n, 'middle' FROM generate_series(1, 120) n;
CREATE VIEW extra.seen WITH (security_invoker) AS SELECT k, m FROM extra.parts WHERE k > 3;
CREATE FUNCTION extra.twice(int) RETURNS int LANGUAGE sql AS 'SELECT 2 * $1';
CREATE TABLE extra.long (id int PRIMARY KEY, body text COMPRESSION pglz, much bytea);
INSERT INTO extra.long SELECT n, repeat(md5(n::text), 3000), decode(repeat(md5(n::text), 99), 'hex')
    FROM generate_series(1, 20) n;
CREATE INDEX ON extra.long (length(body)) WHERE id > 3;
COMMENT ON TABLE extra.long IS 'long values';
GRANT SELECT (id), UPDATE (body) ON extra.long TO keeper;
ALTER TABLE extra.long ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON extra.long TO readers USING (id > 1);
CREATE TABLE extra.gone (id int PRIMARY KEY);
INSERT INTO extra.gone SELECT generate_series(1, 1000);
DROP TABLE extra.gone;
CREATE TABLE extra.emptied (id int PRIMARY KEY);
INSERT INTO extra.emptied SELECT generate_series(1, 1000);
TRUNCATE extra.emptied;
ALTER TABLE extra.emptied ADD COLUMN late int DEFAULT 5, ADD CHECK (late > 0);
INSERT INTO extra.emptied VALUES (1), (2);
ALTER DATABASE postgres SET lock_timeout = '9s';
ANALYZE extra.long
"""


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Embedded]:
    made = Embedded(tmp_path / "data")
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()


def connect(embedded: Embedded) -> psycopg.Connection:
    return psycopg.connect(embedded.dsn, autocommit=True)


def workload(embedded: Embedded, seed: int, *, first: bool = True) -> None:
    """Random programs, each in a schema that stays, and one of everything else."""
    with connect(embedded) as session:
        if first:
            for statement in ROLES.strip().split(";\n"):
                session.execute(statement.encode())
        for number in range(PROGRAMS):
            schema = f"p{seed}_{number}"
            session.execute(f"CREATE SCHEMA {schema}".encode())
            session.execute(f"SET search_path = {schema}".encode())
            for statement in Program(seed * 100 + number).statements:
                run_statement(session, statement)
            session.execute("ROLLBACK")
        rng = random.Random(seed)
        for name in sequences(session):
            for _ in range(rng.randint(0, 40)):
                session.execute("SELECT nextval(%s)", (name,))


def sequences(session: psycopg.Connection) -> list[str]:
    found = session.execute("SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S'")
    return sorted(row[0] for row in found)


def tables(session: psycopg.Connection) -> dict[str, str]:
    """md5 of the sorted row texts of every table."""
    names = session.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p', 'm')"
        " AND relpersistence <> 't' AND relnamespace::regnamespace::text NOT IN"
        " ('pg_catalog', 'information_schema', 'pg_toast', 'meridian')"
    ).fetchall()
    return {
        name: digest(session.execute(f"SELECT t::text FROM {name} t".encode())) for (name,) in names
    }


def digest(rows: psycopg.Cursor) -> str:
    texts = sorted(row[0] for row in rows)
    return f"{len(texts)} {hashlib.md5(repr(texts).encode()).hexdigest()}"


def catalogs(root: psycopg.Connection) -> dict[str, list[str]]:
    """All rows of all catalogs, sorted, without what is of one instance's own files."""
    names = root.execute(
        "SELECT c.relname, array_agg(a.attname ORDER BY a.attnum) FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
        " WHERE c.relkind = 'r' AND c.relnamespace = 'pg_catalog'::regnamespace GROUP BY 1"
    ).fetchall()
    found = {}
    for name, columns in names:
        if name in STATISTICS:
            continue
        shown: list[sql.Composable] = [
            sql.SQL("CASE WHEN {} THEN NULL ELSE {} END").format(
                sql.SQL(LOCAL[name, column]), sql.Identifier(column)
            )
            if (name, column) in LOCAL
            else sql.Identifier(column)
            for column in columns
        ]
        query = sql.SQL("SELECT ROW({})::text FROM pg_catalog.{}").format(
            sql.SQL(", ").join(shown), sql.Identifier(name)
        )
        found[name] = sorted(row[0] for row in root.execute(query))
    return found


def as_root(embedded: Embedded) -> psycopg.Connection:
    running = json.loads((embedded.directory / "run.json").read_text())
    return psycopg.connect(
        host=running["socket_directory"],
        port=running["port"],
        user="meridian_root",
        dbname="postgres",
        autocommit=True,
    )


class Facts:
    """What a rebuild must keep."""

    def __init__(self, embedded: Embedded) -> None:
        with connect(embedded) as session, as_root(embedded) as root:
            self.tables = tables(session)
            self.catalogs = catalogs(root)
            self.next = {name: value(session, name) for name in sequences(session)}
            self.steps = {
                name: session.execute("SELECT seqincrement FROM pg_sequence"
                                      " WHERE seqrelid = %s::regclass", (name,)).fetchone()[0]
                for name in self.next
            }  # fmt: skip

    def assert_kept(self, later: Facts) -> None:
        assert later.tables == self.tables
        assert later.catalogs.keys() == self.catalogs.keys()
        differ = {
            name: (sorted(set(rows) - set(later.catalogs[name]))[:5],
                   sorted(set(later.catalogs[name]) - set(rows))[:5])
            for name, rows in self.catalogs.items() if later.catalogs[name] != rows
        }  # fmt: skip
        assert differ == {}
        assert later.next.keys() == self.next.keys()
        for name, step in self.steps.items():
            assert (later.next[name] - self.next[name]) * step > 0, name


def value(session: psycopg.Connection, name: str) -> int:
    row = session.execute("SELECT nextval(%s)", (name,)).fetchone()
    assert row is not None
    return int(row[0])


def restart(embedded: Embedded, *options: str) -> None:
    embedded.options = options
    embedded.start()
    embedded.options = ()


def rebuild(embedded: Embedded) -> None:
    restart(embedded, "--rebuild")
    assert "rebuilt in " in embedded.errors()


def by_hand(embedded: Embedded) -> None:
    identity = json.loads((embedded.directory / "meridian.json").read_text())
    outside = Path(os.environ["MERIDIAN_STATE_DIR"]) / identity["cluster"]
    caches = [embedded.directory / "postgres", outside, embedded.directory / "data" / "storage"]
    assert sum(path.exists() for path in caches) == 2
    for path in caches:
        shutil.rmtree(path, ignore_errors=True)
    restart(embedded)


def checkpoint(embedded: Embedded) -> dict[str, Any]:
    running = json.loads((embedded.directory / "run.json").read_text())
    with Client(running["gateway_socket"], timeout_s=60) as client:
        report: dict[str, Any] = client.admin("checkpoint")
        return report


def trim(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint by a data plane alone; nobody is open, so the window need not be kept."""
    monkeypatch.setattr(housekeeping, "CONFLICT_WINDOW_NS", 0)

    async def work() -> None:
        node = Node(directory / "data", profile="standard", limits=STANDARD)
        await node.start()
        try:
            report = await node.admin("checkpoint", {})
            assert report["segments_trimmed"] > 0 and node.seats[0].trim_position().n > 0
        finally:
            await node.close()

    asyncio.run(work())


def dev(embedded: Embedded, *options: str) -> subprocess.CompletedProcess[str]:
    """A start that must end by itself."""
    command = dev_command(embedded.directory, *options)
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize("again", [rebuild, by_hand])
def test_everything_comes_back(embedded: Embedded, again: Callable[[Embedded], None]) -> None:
    workload(embedded, SEED)
    before = Facts(embedded)
    assert len(before.tables) > 8 and len(before.next) > 3
    embedded.stop()
    again(embedded)
    before.assert_kept(Facts(embedded))
    workload(embedded, SEED + 1, first=False)
    before = Facts(embedded)
    embedded.kill("everything")
    again(embedded)
    before.assert_kept(Facts(embedded))
    assert embedded.run_cli("verify").returncode == 0


@pytest.mark.parametrize("again", [rebuild, by_hand])
def test_from_a_checkpoint_with_a_trimmed_journal(
    embedded: Embedded, monkeypatch: pytest.MonkeyPatch, again: Callable[[Embedded], None]
) -> None:
    workload(embedded, SEED + 2)
    assert checkpoint(embedded)["n"] > 0
    embedded.stop()
    trim(embedded.directory, monkeypatch)
    embedded.start()
    with connect(embedded) as session:
        session.execute("CREATE TABLE extra.after (id serial PRIMARY KEY, m extra.mood)")
        session.execute("INSERT INTO extra.after (m) SELECT 'low' FROM generate_series(1, 50)")
        session.execute("DELETE FROM extra.parts WHERE k < 7")
        session.execute("ALTER TABLE extra.long DROP COLUMN much, ADD COLUMN short int DEFAULT 3")
    before = Facts(embedded)
    embedded.kill("everything")
    again(embedded)
    before.assert_kept(Facts(embedded))
    assert embedded.run_cli("verify").returncode == 0


def test_nothing_is_deleted_when_something_would_be_lost(
    embedded: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each source that is missing or damaged: refused, and everything still lies there."""
    with connect(embedded) as session:
        session.execute("CREATE TABLE kept AS SELECT generate_series(1, 2000) AS id")
    in_use = dev(embedded, "--rebuild")
    assert in_use.returncode == 1 and "in use by process" in in_use.stderr
    # A segment can go once storage has a commit behind its end.
    embedded.stop()
    embedded.start()
    with connect(embedded) as session:
        session.execute("INSERT INTO kept VALUES (0)")
    embedded.stop()
    trim(embedded.directory, monkeypatch)
    embedded.start()
    with connect(embedded) as session:
        for number in range(2001, 2011):
            session.execute("INSERT INTO kept VALUES (%s)", (number,))
    embedded.stop()
    data = embedded.directory / "data"
    point = next((data / "checkpoint").iterdir())
    last = sorted((data / "journal" / "0").glob("*.seg"))[-1]
    # With several storage files: the largest of them.
    image = max(point.rglob("*.db"), key=lambda path: path.stat().st_size)
    spoils: dict[str, Callable[[], object]] = {
        "there is no checkpoint": lambda: shutil.rmtree(point),
        "is not whole": lambda: os.truncate(image, image.stat().st_size - 4096),
        "is damaged": lambda: overwrite(image, 16384 + 100, b"\xff" * 4000),
        "but records through": lambda: os.truncate(last, last.stat().st_size // 2),
        "has no files": lambda: shutil.rmtree(last.parent),
        "is missing": (data / "metadata.db").unlink,
    }
    kept = embedded.directory.parent / "kept"
    shutil.copytree(data, kept)
    for words, spoil in spoils.items():
        spoil()
        refused = dev(embedded, "--rebuild")
        assert refused.returncode == 1 and words in refused.stderr, (words, refused.stderr)
        assert "Nothing was deleted" in refused.stderr and "Traceback" not in refused.stderr
        assert (data / "storage" / "shard-0.db").exists(), words
        shutil.rmtree(data)
        shutil.copytree(kept, data)
    rebuild(embedded)
    with connect(embedded) as session:
        assert session.execute("SELECT count(*), sum(id) FROM kept").fetchone() == (2011, 2021055)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_rebuild_that_is_killed_is_finished_by_the_next_start(embedded: Embedded) -> None:
    workload(embedded, SEED + 3)
    before = Facts(embedded)
    embedded.stop()
    command = dev_command(embedded.directory, "--rebuild")
    for pause_s in (0.2, 0.35, 0.5, 0.7, 0.9):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(pause_s)
        process.kill()
        process.wait()
    restart(embedded)
    before.assert_kept(Facts(embedded))


def test_a_changed_password_comes_back_and_the_file_stays(embedded: Embedded) -> None:
    with connect(embedded) as session:
        session.execute("ALTER ROLE admin PASSWORD 'changed'")
        session.execute("CREATE ROLE other LOGIN PASSWORD 'others'")
    secret = (embedded.directory / "password").read_text()
    embedded.stop()
    rebuild(embedded)
    assert (embedded.directory / "password").read_text() == secret
    first = embedded.dsn
    for user in ("admin:changed", "other:others"):
        with psycopg.connect(first.replace(f"admin:{secret.strip()}", user)) as session:
            assert session.execute("SELECT current_user").fetchone() == (user.split(":")[0],)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(first)


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    missing = Embedded(tmp_path / "missing")
    refused = dev(missing, "--rebuild")
    assert refused.returncode == 1 and "no cluster" in refused.stderr
    assert not missing.directory.exists()
    command = [sys.executable, "-m", "meridian", "dev", "--ephemeral", "--rebuild"]
    ephemeral = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ephemeral.returncode == 2 and "--ephemeral" in ephemeral.stderr


def test_a_comparison_that_can_fail(embedded: Embedded) -> None:
    workload(embedded, SEED)
    before = Facts(embedded)
    with connect(embedded) as session:
        session.execute("UPDATE extra.long SET body = body || '!' WHERE id = 5")
    with pytest.raises(AssertionError):
        before.assert_kept(Facts(embedded))
