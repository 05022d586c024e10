"""After ANALYZE a lookup by key stays one, whatever surrounds it; tables are analysed unasked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from meridian.embedded.background import Cluster
from meridian.instance import root
from meridian.statistics import runner
from tests.conftest import Server

Connection = psycopg.Connection[Any]

SHAPES = {
    "key": "SELECT * FROM orders WHERE id = 77",
    "key in list": "SELECT * FROM orders WHERE id IN (1, 500, 1999, 777)",
    "key any parameter": "SELECT * FROM orders WHERE id = ANY(ARRAY[3, 4, 5, 6, 7, 8]::int[])",
    "secondary": "SELECT * FROM orders WHERE customer = 9",
    "secondary in list": "SELECT * FROM orders WHERE customer IN (1, 2, 3)",
    "missing value": "SELECT * FROM orders WHERE customer = -1",
    "limit": "SELECT * FROM items WHERE orders = 5 ORDER BY line LIMIT 3",
    "limit by key": "SELECT * FROM orders ORDER BY id DESC LIMIT 5",
    "limit behind a filter": "SELECT * FROM orders WHERE customer = 7 ORDER BY id LIMIT 1",
    "two tables": "SELECT * FROM orders o JOIN customers c ON c.id = o.customer WHERE o.id = 12",
    "three tables": "SELECT c.name, i.what FROM customers c JOIN orders o ON o.customer = c.id"
    " JOIN items i ON i.orders = o.id WHERE c.name = 'name 17'",
    "three tables by key": "SELECT count(*) FROM items i JOIN orders o ON o.id = i.orders"
    " JOIN customers c ON c.id = o.customer WHERE o.id IN (5, 6)",
    "exists": "SELECT * FROM customers c WHERE c.id = 3 AND EXISTS"
    " (SELECT FROM orders o WHERE o.customer = c.id)",
    "lateral": "SELECT * FROM customers c, LATERAL (SELECT * FROM orders o WHERE o.customer = c.id"
    " ORDER BY o.id DESC LIMIT 1) o WHERE c.id IN (4, 5)",
    "update": "UPDATE items SET what = 'x' WHERE orders = 5 AND line = 2",
    "skewed": "SELECT * FROM orders WHERE state = 'rare'",
    "partial keys": "DELETE FROM items WHERE orders = 9",
}
TABLES = """
CREATE TABLE customers (id int PRIMARY KEY, name text UNIQUE);
CREATE TABLE orders (id int PRIMARY KEY, customer int, state text, note text);
CREATE INDEX ON orders (customer);
CREATE INDEX ON orders (state);
CREATE TABLE items (orders int, line int, what text, PRIMARY KEY (orders, line));
INSERT INTO customers SELECT i, 'name ' || i FROM generate_series(1, 1500) i;
INSERT INTO orders SELECT i, i % 1500, CASE WHEN i % 1000 = 0 THEN 'rare' ELSE 'usual' END,
    repeat('x', i % 50) FROM generate_series(1, 6000) i;
INSERT INTO items SELECT i / 4, i % 4, 'what ' || i FROM generate_series(4, 24000) i
"""


@pytest.fixture(scope="module")
def session(cluster: Server) -> Iterator[Connection]:
    with psycopg.connect(cluster.dsn, autocommit=True) as made:
        made.execute("DROP SCHEMA IF EXISTS plans CASCADE; CREATE SCHEMA plans")
        made.execute("SET search_path = plans; SET meridian.statistics_ttl = 0")
        for statement in TABLES.strip().split(";\n"):
            made.execute(statement.encode())
        made.execute("ANALYZE customers; ANALYZE orders; ANALYZE items")
        yield made
        made.execute("DROP SCHEMA plans CASCADE")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def fetched(session: Connection, query: str) -> tuple[int, str]:
    """Rows that came from storage, or were looked at here."""
    with contextlib.closing(session.cursor()) as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode())
        row = cursor.fetchone()
        assert row is not None
        cursor.execute("ROLLBACK")
    plan = row[0][0]["Plan"]
    looked_at = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in nodes(plan)
        if "Relation Name" in node and node["Node Type"] != "ModifyTable"
    )
    return int(looked_at), json.dumps(plan, indent=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_lookup_by_key_stays_one(session: Connection, shape: str) -> None:
    looked_at, plan = fetched(session, SHAPES[shape])
    assert looked_at <= 400, plan
    assert "Seq Scan" not in plan and "Meridian Scan" not in plan, plan


def test_tables_that_grew_are_analysed_unasked(cluster: Server, session: Connection) -> None:
    session.execute("CREATE TABLE grown (id int PRIMARY KEY); CREATE TABLE small (id int)")
    session.execute("CREATE TABLE off (id int) WITH (autovacuum_enabled = false)")
    session.execute("INSERT INTO grown SELECT generate_series(1, 500)")
    session.execute("INSERT INTO small SELECT generate_series(1, 50)")
    session.execute("INSERT INTO off SELECT generate_series(1, 500)")

    def rows(table: str) -> float:
        found = session.execute(
            "SELECT reltuples FROM pg_class WHERE oid = %s::regclass", (f"plans.{table}",)
        ).fetchone()
        assert found is not None
        return float(found[0])

    assert cluster.directory is not None
    facts = json.loads((cluster.directory / "run.json").read_text())

    async def wait_for(table: str, count: int) -> None:
        async def connect_to(number: int) -> root.Connection:
            port = facts["instances"][number - 1]["port"]
            return await root.connect(Path(facts["socket_directory"]), port)

        gateway = Path(facts["gateway_socket"])
        reported: list[str] = []
        place = Cluster("x", "standard", gateway, reported.append, lambda: [1], connect_to)
        task = asyncio.create_task(runner.run(place, look_s=0.2))
        try:
            async with asyncio.timeout(60):
                while rows(table) != count:
                    assert not task.done(), task.result()
                    await asyncio.sleep(0.1)
        finally:
            task.cancel()
            await asyncio.wait({task})

    asyncio.run(wait_for("grown", 500))
    session.execute("INSERT INTO grown SELECT generate_series(501, 550)")
    session.execute("DELETE FROM small WHERE id < 0; INSERT INTO small SELECT 51")
    asyncio.run(wait_for("small", 51))
    assert rows("grown") == 500 and rows("off") == -1
    assert session.execute(
        "SELECT count(*) FROM pg_stats WHERE tablename = 'grown'"
    ).fetchone() == (1,)
    session.execute("TRUNCATE grown")
    asyncio.run(wait_for("grown", 0))
