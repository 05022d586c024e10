"""Random tables, rows and queries for the pushdown test; every literal edge included.

A query never depends on physical row order, and groups, DISTINCT and min/max are used only on types
whose equality is identity, so that two correct executors answer alike.
"""

from __future__ import annotations

import dataclasses
from random import Random

from tests.differential.values import TYPES, literal

INTEGER = ["smallint", "integer", "bigint", "boolean", "date", "time", "timestamp", "timestamptz"]
BYTES = ["text", "varchar(12)", "bytea", "uuid"]
ORDERED = ["real", "double precision", "numeric", "numeric(12,3)"]
COMPARABLE = INTEGER + BYTES + ORDERED + ["char(4)", "interval", "timetz"]
SUMMABLE = ["smallint", "integer", "bigint"]
MIN_MAX = [*SUMMABLE, "date", "time", "timestamp", "timestamptz", "text", "varchar(12)", "bytea"]
OPERATORS = ["<", "<=", "=", ">=", ">", "<>"]

EDGES = {
    "smallint": ["(-32768)::smallint", "32767::smallint"],
    "integer": ["(-2147483648)", "2147483647", "0"],
    "bigint": ["(-9223372036854775808)", "9223372036854775807", "(-4294967296)", "4294967295"],
    "real": ["'NaN'::real", "'-0'::real", "0::real", "'Infinity'::real", "'1e-45'::real"],
    "double precision": ["'NaN'::float8", "'-0'::float8", "'-Infinity'::float8", "0.1::float8"],
    "numeric": ["'NaN'::numeric", "1.0", "1.00", "0.000", "-0.5", "'Infinity'::numeric", "1e300"],
    "text": ["''", "repeat('x', 3000)", "repeat('x', 3000) || 'y'", "repeat('ÿ', 1500)", "'日本'"],
    "bytea": [r"'\x'::bytea", r"decode(repeat('00', 3000), 'hex')", r"'\x00'::bytea"],
    "date": ["'infinity'::date", "'-infinity'::date", "'4713-01-01 BC'::date"],
}


@dataclasses.dataclass(frozen=True)
class Column:
    name: str
    type_name: str


def value(rng: Random, type_name: str, null_chance: float = 0.1) -> str:
    """A literal, an edge of the type in one case of five."""
    if type_name in EDGES and rng.random() < 0.2:
        return rng.choice(EDGES[type_name])
    return literal(rng, type_name, null_chance)


class Queries:
    """One random schema and what may be asked of it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(f"pushdown {seed}")
        rng = self.rng
        names = rng.sample(INTEGER + BYTES, 4) + rng.sample(ORDERED, 1) + rng.sample(TYPES, 2)
        self.columns = [Column(f"c{n}", type_name) for n, type_name in enumerate(names)]
        self.key = rng.choice([[], ["id"], ["id"], ["id", "c0"], ["c0", "id"], ["c4", "id"]])

    def schema(self) -> str:
        """Columns and primary key of CREATE TABLE."""
        parts = ["id integer", *(f"{c.name} {c.type_name}" for c in self.columns)]
        if self.key:
            parts.append(f"PRIMARY KEY ({', '.join(self.key)})")
        return ", ".join(parts)

    def rows(self, first: int, count: int) -> list[str]:
        """Rows as SQL, `first` being the first id."""
        return [
            "(" + ", ".join([str(first + n), *(self.cell(c) for c in self.columns)]) + ")"
            for n in range(count)
        ]

    def cell(self, column: Column) -> str:
        """A value for a row: key columns are never NULL."""
        return value(self.rng, column.type_name, 0 if column.name in self.key else 0.1)

    def of(self, types: list[str]) -> list[Column]:
        return [c for c in self.columns if c.type_name in types]

    def leaf(self) -> str:
        """A comparison, test or list over one column."""
        rng = self.rng
        column = rng.choice([*self.of(COMPARABLE), Column("id", "integer")])
        name, type_name = column.name, column.type_name
        roll = rng.random()
        if type_name == "boolean" and roll < 0.5:
            test = rng.choice(["", " IS TRUE", " IS NOT TRUE", " IS NOT FALSE", " IS UNKNOWN"])
            return f"{name}{test}"
        if roll < 0.15:
            return f"{rng.choice(self.columns).name} IS {rng.choice(['', 'NOT '])}NULL"
        if roll < 0.3:
            chance = 0.05
            items = ", ".join(value(rng, type_name, chance) for _ in range(rng.randint(1, 4)))
            return f"{name} {rng.choice(['', 'NOT '])}IN ({items})"
        if roll < 0.4:
            distinct = rng.choice(["", "NOT "])
            return f"{name} IS {distinct}DISTINCT FROM {value(rng, type_name, 0.3)}"
        if roll < 0.5 and type_name in SUMMABLE:
            other = rng.choice(SUMMABLE)
            return f"{name} {rng.choice(OPERATORS)} {value(rng, other, 0)}"
        if roll < 0.55 and type_name in ("real", "double precision"):
            return f"{name} {rng.choice(OPERATORS)} {value(rng, 'double precision', 0)}"
        if roll < 0.6 and type_name in ("text", "varchar(12)"):
            return f"{name} LIKE {rng.choice(['a%', '%b', '_', 'A%'])!r}"
        if roll < 0.7:
            low, high = value(rng, type_name, 0), value(rng, type_name, 0)
            return f"{name} BETWEEN {low} AND {high}"
        sides = [name, value(rng, type_name, 0.03)]
        if rng.random() < 0.2:
            sides.reverse()
        return f"{sides[0]} {rng.choice(OPERATORS)} {sides[1]}"

    def predicate(self, depth: int = 0) -> str:
        """AND, OR and NOT over leaves."""
        rng = self.rng
        roll = rng.random()
        if depth >= 3 or roll < 0.45:
            return self.leaf()
        if roll < 0.6:
            return f"NOT ({self.predicate(depth + 1)})"
        glue = rng.choice([" AND ", " OR "])
        arms = [self.predicate(depth + 1) for _ in range(rng.randint(2, 3))]
        return f"({glue.join(arms)})"

    def aggregate(self) -> str:
        """One aggregate expression, pushable or not."""
        rng = self.rng
        roll = rng.random()
        if roll < 0.2:
            return "count(*)"
        if roll < 0.4:
            return f"count({rng.choice(self.columns).name})"
        sums, ends = self.of(SUMMABLE), self.of(MIN_MAX)
        if roll < 0.7 and sums:
            return f"{rng.choice(['sum', 'avg'])}({rng.choice(sums).name})"
        if roll < 0.95 and ends:
            return f"{rng.choice(['min', 'max'])}({rng.choice(ends).name})"
        if roll < 0.97 and sums:
            return f"count(DISTINCT {rng.choice(sums).name})"
        odd = ["sum(id) + 1", "count(*) FILTER (WHERE id > 3)", "count(1)", "sum(id % 7)"]
        return rng.choice(odd)

    def grouped(self) -> str:
        """An aggregate query over the table named t."""
        rng = self.rng
        keys = rng.sample(self.of(INTEGER + BYTES), rng.choice([0, 1, 1, 2]))
        names = [c.name for c in keys]
        if names and rng.random() < 0.2:
            return f"SELECT DISTINCT {', '.join(names)} FROM t WHERE {self.predicate()}"
        cells = [*names, *(self.aggregate() for _ in range(rng.randint(1, 3)))]
        sql = f"SELECT {', '.join(cells)} FROM t"
        if rng.random() < 0.7:
            sql += f" WHERE {self.predicate()}"
        if names:
            sql += f" GROUP BY {', '.join(names)}"
        if rng.random() < 0.2:
            sql += f" HAVING {rng.choice(['count(*) > 1', 'min(id) < 20', 'sum(id) IS NOT NULL'])}"
        return sql

    def plain(self) -> str:
        """A query of rows of the table named t."""
        rng = self.rng
        chosen = rng.sample(self.columns, rng.randint(0, 3))
        cells = ", ".join(c.name for c in chosen) or rng.choice(["*", "1", "id", "t"])
        sql = f"SELECT {cells} FROM t"
        roll = rng.random()
        if roll < 0.1:
            return sql
        if roll < 0.2:
            inner = f"SELECT id FROM t WHERE {self.predicate()}"
            return f"{sql} WHERE {self.predicate()} AND id IN ({inner})"
        if roll < 0.3:
            return (
                f"SELECT a.id, b.id FROM t a JOIN t b ON a.id = b.id + 1"
                f" WHERE a.id > {rng.randint(0, 40)}"
            )
        if roll < 0.4:
            lateral = "(SELECT count(*) AS n FROM t x WHERE x.id < a.id) s"
            return f"SELECT a.id, s.n FROM t a, LATERAL {lateral} WHERE a.id % 5 = 0"
        return f"{sql} WHERE {self.predicate()}"

    def change(self) -> str:
        """A data change of the table named t that answers the same everywhere."""
        rng = self.rng
        column = rng.choice(self.columns)
        roll = rng.random()
        if roll < 0.4:
            new = value(rng, column.type_name)
            return f"UPDATE t SET {column.name} = {new} WHERE {self.predicate()} RETURNING *"
        if roll < 0.6:
            return f"DELETE FROM t WHERE {self.predicate()} AND id % 3 = 0 RETURNING id"
        return f"SELECT id FROM t WHERE {self.predicate()} FOR UPDATE"
