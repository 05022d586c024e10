"""Random programs of DDL and DML over a few tables, with transactions and savepoints."""

from __future__ import annotations

import random

TYPES = ("int", "bigint", "text", "numeric", "varchar(12)", "float8", "date")
VALUES = {
    "int": lambda r: str(r.randint(-5, 40)),
    "bigint": lambda r: str(r.randint(-5, 4_000_000_000)),
    "text": lambda r: f"'t{r.randint(0, 40)}'",
    "numeric": lambda r: f"{r.randint(-4, 40)}.{r.choice(['0', '5', '50'])}",
    "varchar(12)": lambda r: f"'v{r.randint(0, 40)}'",
    "float8": lambda r: f"{r.randint(-4, 40)}.5",
    "date": lambda r: f"date '2024-01-01' + {r.randint(0, 60)}",
}
CASTS = {
    "int": "bigint", "bigint": "numeric", "varchar(12)": "text", "date": "text",
    "numeric": "text", "float8": "text", "text": "text",
}  # fmt: skip


class Program:
    """What the generator believes of the tables; beliefs may be wrong after a ROLLBACK."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.tables: dict[str, dict[str, str]] = {}
        self.names = 0
        self.depth = 0
        self.open = False

    def name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def statements(self, count: int) -> list[str]:
        """`count` statements and an end that reads everything."""
        made = [self._create(), self._create()]
        for _ in range(count):
            made.append(self._next())
        made.append("COMMIT" if self.r.random() < 0.8 else "ROLLBACK")
        for table in sorted(self.tables):
            made.append(f"SELECT * FROM {table}")
            made.append(f"SELECT count(*) FROM {table} WHERE a >= 0")
        return made

    def _next(self) -> str:
        choices = [
            (10, self._insert), (5, self._update), (4, self._delete), (8, self._select),
            (3, self._add_column), (1, self._drop_column), (2, self._alter_type),
            (3, self._index), (1, self._drop_index), (1, self._primary_key), (1, self._truncate),
            (1, self._create), (1, self._drop), (5, self._transaction), (4, self._savepoint),
            (2, self._constraint),
        ]  # fmt: skip
        weights = [weight for weight, _ in choices]
        return self.r.choices([make for _, make in choices], weights)[0]()

    def _table(self) -> str:
        return self.r.choice(sorted(self.tables))

    def _column(self, table: str) -> str:
        return self.r.choice(sorted(self.tables[table]))

    def _value(self, table: str, column: str) -> str:
        if self.r.random() < 0.1 and column != "a":
            return "NULL"
        return VALUES[self.tables[table][column]](self.r)

    def _create(self) -> str:
        table = self.name("t")
        kind = self.r.choice(("int", "text", "numeric", "varchar(12)"))
        self.tables[table] = {"a": "int", "b": kind}
        key = self.r.choice(
            ("PRIMARY KEY (a)", "PRIMARY KEY (a)", "UNIQUE (b)", "CHECK (a < 1000)")
        )
        return f"CREATE TABLE {table} (a int, b {kind}, CONSTRAINT {table}_key {key})"

    def _drop(self) -> str:
        if len(self.tables) < 3:
            return self._create()
        table = self._table()
        del self.tables[table]
        return f"DROP TABLE {table}"

    def _insert(self) -> str:
        table = self._table()
        columns = sorted(self.tables[table])
        rows = ", ".join(
            "(" + ", ".join(self._value(table, column) for column in columns) + ")"
            for _ in range(self.r.randint(1, 4))
        )
        tail = self.r.choice(("", "", " ON CONFLICT DO NOTHING"))
        return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {rows}{tail}"

    def _where(self, table: str) -> str:
        column = self._column(table)
        if self.r.random() < 0.1:
            return f"{column} IS NULL"
        value = VALUES[self.tables[table][column]](self.r)
        return f"{column} {self.r.choice(('=', '<', '>=', '='))} {value}"

    def _update(self) -> str:
        table = self._table()
        column = self._column(table)
        return (
            f"UPDATE {table} SET {column} = {self._value(table, column)} WHERE {self._where(table)}"
        )

    def _delete(self) -> str:
        table = self._table()
        return f"DELETE FROM {table} WHERE {self._where(table)}"

    def _select(self) -> str:
        table = self._table()
        return f"SELECT * FROM {table} WHERE {self._where(table)}"

    def _add_column(self) -> str:
        table, column, kind = self._table(), self.name("c"), self.r.choice(TYPES)
        self.tables[table][column] = kind
        default = self.r.choice(("", f" DEFAULT {VALUES[kind](self.r)}"))
        return f"ALTER TABLE {table} ADD COLUMN {column} {kind}{default}"

    def _drop_column(self) -> str:
        table = self._table()
        column = self._column(table)
        if column == "a":
            return self._truncate()
        del self.tables[table][column]
        return f"ALTER TABLE {table} DROP COLUMN {column}"

    def _alter_type(self) -> str:
        table = self._table()
        column = self._column(table)
        kind = CASTS[self.tables[table][column]]
        if column == "a" and kind != "bigint":
            return self._insert()
        self.tables[table][column] = kind
        return f"ALTER TABLE {table} ALTER {column} TYPE {kind}"

    def _index(self) -> str:
        table = self._table()
        unique = self.r.choice(("", "", "UNIQUE "))
        columns = ", ".join(
            self._column(table) + self.r.choice(("", " DESC")) for _ in range(self.r.randint(1, 2))
        )
        where = self.r.choice(("", "", " WHERE a > 10"))
        return f"CREATE {unique}INDEX {self.name('i')} ON {table} ({columns}){where}"

    def _drop_index(self) -> str:
        return f"DROP INDEX IF EXISTS i{self.r.randint(1, self.names)}"

    def _primary_key(self) -> str:
        table = self._table()
        if self.r.random() < 0.5:
            return f"ALTER TABLE {table} DROP CONSTRAINT {table}_key"
        return f"ALTER TABLE {table} ADD CONSTRAINT {table}_key PRIMARY KEY (a)"

    def _constraint(self) -> str:
        table = self._table()
        column = self._column(table)
        return self.r.choice(
            (
                f"ALTER TABLE {table} ALTER {column} SET NOT NULL",
                f"ALTER TABLE {table} ALTER {column} DROP NOT NULL",
                f"ALTER TABLE {table} ADD CHECK (a < {self.r.randint(20, 60)})",
                f"ALTER TABLE {table} ADD UNIQUE ({column})",
            )
        )

    def _truncate(self) -> str:
        return f"TRUNCATE {self._table()}"

    def _transaction(self) -> str:
        self.open = not self.open
        self.depth = 0
        if self.open:
            return "BEGIN"
        return "COMMIT" if self.r.random() < 0.75 else "ROLLBACK"

    def _savepoint(self) -> str:
        if not self.open:
            return self._transaction()
        if self.depth and self.r.random() < 0.6:
            return f"ROLLBACK TO s{self.r.randint(1, self.depth)}"
        self.depth += 1
        return f"SAVEPOINT s{self.depth}"
