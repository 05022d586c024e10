"""Random joins of two to four tables answer as heap tables do, whatever join method is left.

One seed: `MERIDIAN_SEED=17 pytest tests/pgext/test_join_pushdown.py -k one_seed`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

import psycopg
import pytest

SEEDS = 300
SEEDS_NIGHTLY = 5_000
BATCH = 100
TABLES = 4
METHODS = [
    f"enable_{name}"
    for name in (
        "hashjoin",
        "mergejoin",
        "nestloop",
        "indexscan",
        "indexonlyscan",
        "bitmapscan",
        "memoize",
        "material",
    )
]


@pytest.fixture(scope="module")
def tables(cluster) -> Iterator[psycopg.Connection]:
    """The same rows in joins.p0..p3 (ours) and pg_temp.p0..p3 (heap)."""
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        connection.execute("DROP SCHEMA IF EXISTS joins CASCADE")
        connection.execute("CREATE SCHEMA joins")
        for n in range(TABLES):
            for create, name in (("TABLE", f"joins.p{n}"), ("TEMP TABLE", f"pg_temp.p{n}")):
                connection.execute(
                    f"CREATE {create} {name} (id int PRIMARY KEY, f int, g int, s text)"
                )
                connection.execute(
                    f"INSERT INTO {name} SELECT x, nullif((x * {n + 3}) % 50, 7),"
                    f" (x * {2 * n + 5}) % 40, 's' || x % 4"
                    f" FROM generate_series(1, {30 + n * 5}) x"
                )
        yield connection
        connection.execute("DROP SCHEMA joins CASCADE")


def _source(rng: Random, alias: str) -> tuple[str, list[str]]:
    """A table, or a subquery whose computed columns outer joins must make NULL."""
    table, roll = f"p{rng.randrange(TABLES)}", rng.random()
    if roll < 0.75:
        return f"{table} {alias}", ["id", "f", "g", "s"]
    if roll < 0.9:
        select = f"SELECT id, f, g, s, 3 AS k FROM {table} WHERE g < 35"
        return f"({select}) {alias}", ["id", "f", "g", "k"]
    select = f"SELECT id, coalesce(f, 99) AS f, g, s || 'z' AS s FROM {table}"
    return f"({select}) {alias}", ["f", "g", "s"]


def _condition(rng: Random, alias: str, earlier: list[str], kind: str) -> str:
    other = rng.choice(earlier)
    sides = f"{alias}.id = {other}.{rng.choice(['f', 'g'])}"
    terms = [sides if rng.random() < 0.85 else f"{alias}.f = {other}.id"]
    if kind != "FULL JOIN":
        if rng.random() < 0.3:
            terms.append(f"{alias}.g > {rng.randint(0, 30)}")
        if rng.random() < 0.2:
            terms.append(f"{other}.s <> 's{rng.randint(0, 3)}'")
        if rng.random() < 0.15:
            terms.append(f"{alias}.s = {rng.choice(earlier)}.s")
    return " AND ".join(terms)


def _filters(rng: Random, aliases: list[str]) -> list[str]:
    filters = []
    for alias in aliases:
        if rng.random() < 0.25:
            test = f"{alias}.{rng.choice(['f', 'g', 'id'])} {rng.choice('<>')} {rng.randint(5, 40)}"
            filters.append(rng.choice([test, f"({test} OR {alias}.f IS NULL)"]))
    if rng.random() < 0.3:
        extra = rng.choice(["", " AND e.f > 10"])
        filters.append(
            f"{rng.choice(['', 'NOT '])}EXISTS (SELECT FROM p{rng.randrange(TABLES)} e"
            f" WHERE e.id = {rng.choice(aliases)}.g{extra})"
        )
    return filters


def query(rng: Random) -> str:
    """A random join without dependence on row order."""
    aliases = [f"t{n}" for n in range(rng.randint(2, 4))]
    source, columns = _source(rng, aliases[0])
    sql, cells = source, [f"{aliases[0]}.{rng.choice(columns)}"]
    for n, alias in enumerate(aliases[1:], 1):
        source, columns = _source(rng, alias)
        kind = rng.choice(["", "LEFT ", "LEFT ", "LEFT ", "RIGHT ", "FULL "]) + "JOIN"
        sql += f" {kind} {source} ON {_condition(rng, alias, aliases[:n], kind)}"
        cells += [f"{alias}.{rng.choice(columns)}" for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.1:
        cells.append(rng.choice(aliases))
    if rng.random() < 0.15:
        cells.append(
            "(SELECT max(z.id) FROM p0 z JOIN p1 y ON y.id = z.f"
            f" WHERE z.g < {rng.choice(aliases)}.g)"
        )
    if rng.random() < 0.15:
        cells = ["count(*)", "count(t0.g)"]
    filters = _filters(rng, aliases)
    where = f" WHERE {' AND '.join(filters)}" if filters else ""
    return f"SELECT {', '.join(cells)} FROM {sql}{where}"


def _answer(connection: psycopg.Connection, sql: str) -> object:
    try:
        return sorted(map(repr, connection.execute(sql).fetchall()))
    except psycopg.Error as error:
        return error.sqlstate


def _switch(connection: psycopg.Connection, methods: list[str], to: str) -> None:
    connection.execute("; ".join(f"SET {method} = {to}" for method in methods))


def run_seed(connection: psycopg.Connection, seed: int) -> bool:
    """Compare one query; true if its plan has a batched join."""
    rng = Random(f"join {seed}")
    sql = query(rng)
    off = rng.sample(METHODS, rng.choice([0, 2, 4])) if rng.random() < 0.5 else METHODS[:3]
    connection.execute("SET search_path = pg_temp")
    heap = _answer(connection, sql)
    connection.execute("SET search_path = joins, pg_temp")
    _switch(connection, off, "off")
    ours = _answer(connection, sql)
    plan = connection.execute(f"EXPLAIN {sql}").fetchall()
    _switch(connection, off, "on")
    assert ours == heap, f"seed {seed} without {off}: {sql}"
    return any("Meridian Join" in row[0] for row in plan)


@pytest.mark.parametrize("start", range(0, SEEDS, BATCH))
def test_joins_equal_heap(tables, start: int) -> None:
    batched = sum(run_seed(tables, seed) for seed in range(start, start + BATCH))
    assert batched > BATCH // 4


@pytest.mark.nightly
@pytest.mark.parametrize("start", range(SEEDS, SEEDS_NIGHTLY, BATCH))
def test_joins_equal_heap_nightly(tables, start: int) -> None:
    for seed in range(start, start + BATCH):
        run_seed(tables, seed)


@pytest.mark.skipif("MERIDIAN_SEED" not in os.environ, reason="replays one seed on request")
def test_one_seed(tables) -> None:
    run_seed(tables, int(os.environ["MERIDIAN_SEED"]))
