"""Random SQL programs: schemas, rows, DML in transactions with savepoints, queries.

A program never depends on physical row order where PostgreSQL leaves it open: groups, DISTINCT
and min/max use types whose equality is identity; updates of unique columns touch one row.
"""

from __future__ import annotations

import dataclasses
from random import Random

from tests.differential.values import KEY_TYPES, NUMBER_TYPES, TYPES, literal

IDENTITY_TYPES = [
    "smallint",
    "integer",
    "bigint",
    "boolean",
    "text",
    "varchar(12)",
    "bytea",
    "uuid",
    "date",
    "time",
    "timestamp",
    "timestamptz",
]


@dataclasses.dataclass
class Column:
    name: str
    type_name: str
    not_null: bool = False


@dataclasses.dataclass
class Table:
    name: str
    columns: list[Column]
    key: list[str]
    unique: list[list[str]] = dataclasses.field(default_factory=list)
    parent: str | None = None
    checked: bool = False

    def of(self, types: list[str]) -> list[Column]:
        return [c for c in self.columns if c.type_name in types]


@dataclasses.dataclass(frozen=True)
class Statement:
    """`ordered`: the rows must come in the same order, not only be the same multiset."""

    sql: str
    ordered: bool = False


class Program:
    """The statements of one seed."""

    def __init__(self, seed: int, length: int = 45) -> None:
        self.rng = Random(f"program {seed}")
        self.tables: list[Table] = []
        self.savepoints: list[str] = []
        self.in_transaction = False
        self.counter = 0
        self.statements: list[Statement] = []
        for _ in range(self.rng.randint(1, 3)):
            self._create_table()
        for _ in range(length):
            self._step()
        if self.in_transaction:
            self._emit(self.rng.choice(["COMMIT", "ROLLBACK"]))
        for table in self.tables:
            self._emit(f"SELECT * FROM {table.name}")
            self._emit(f"SELECT count(*) FROM {table.name}")

    def _emit(self, sql: str, ordered: bool = False) -> None:
        self.statements.append(Statement(sql, ordered))

    def _name(self, prefix: str) -> str:
        self.counter += 1
        return f"{prefix}{self.counter}"

    # ---- schema ----

    def _create_table(self) -> None:
        rng, name = self.rng, self._name("t")
        columns = [Column("id", rng.choice(["integer", "bigint"]), True)]
        for position in range(rng.randint(2, 6)):
            type_name = rng.choice(TYPES if rng.random() < 0.6 else IDENTITY_TYPES + NUMBER_TYPES)
            columns.append(Column(f"c{position}", type_name, rng.random() < 0.15))
        keyable = [c for c in columns[1:] if c.type_name in KEY_TYPES]
        key = ["id"] if rng.random() < 0.8 else []
        if key and keyable and rng.random() < 0.25:
            extra = rng.choice(keyable)
            extra.not_null = True
            key = [extra.name, "id"] if rng.random() < 0.5 else ["id", extra.name]
        table = Table(name, columns, key)
        self._emit(f"CREATE TABLE {name} ({', '.join(self._table_parts(table, keyable))})")
        self.tables.append(table)
        for _ in range(rng.choice([0, 1, 1, 2])):
            self._create_index(table)

    def _table_parts(self, table: Table, keyable: list[Column]) -> list[str]:
        rng, parts = self.rng, []
        for column in table.columns:
            part = f"{column.name} {column.type_name}" + (" NOT NULL" if column.not_null else "")
            if rng.random() < 0.15 and column.name != "id":
                part += f" DEFAULT {literal(rng, column.type_name, 0)}"
            parts.append(part)
        if table.key:
            parts.append(f"PRIMARY KEY ({', '.join(table.key)})")
        if keyable and rng.random() < 0.3:
            unique = [rng.choice(keyable).name]
            distinct = rng.choice(["", "", " NULLS NOT DISTINCT"])
            parts.append(f"UNIQUE{distinct} ({', '.join(unique)})")
            table.unique.append(unique)
        numbers = [c for c in table.of(NUMBER_TYPES) if c.name != "id"]
        if numbers and rng.random() < 0.3:
            parts.append(f"CHECK ({rng.choice(numbers).name} <> 7)")
            table.checked = True
        parents = [t for t in self.tables if t.key == ["id"]]
        if parents and rng.random() < 0.4:
            parent = rng.choice(parents)
            action = rng.choice(
                [
                    "",
                    " ON DELETE CASCADE",
                    " ON DELETE SET NULL",
                    " ON UPDATE CASCADE",
                    " DEFERRABLE INITIALLY DEFERRED",
                ]
            )
            table.columns.append(Column("parent", parent.columns[0].type_name))
            parts.append(f"parent {parent.columns[0].type_name} REFERENCES {parent.name}{action}")
            table.parent = parent.name
        return parts

    def _create_index(self, table: Table) -> None:
        rng = self.rng
        keyable = table.of(KEY_TYPES)
        chosen = rng.sample(keyable, min(len(keyable), rng.randint(1, 2)))
        parts = [
            c.name + rng.choice(["", "", " DESC", " NULLS FIRST", " DESC NULLS LAST"])
            for c in chosen
        ]
        texts = table.of(["text", "varchar(12)"])
        if texts and rng.random() < 0.2:
            parts = [f"lower({rng.choice(texts).name})"]
        sql = f"CREATE INDEX {self._name('i')} ON {table.name} ({', '.join(parts)})"
        if rng.random() < 0.2:
            sql += f" INCLUDE ({rng.choice(table.columns).name})"
        if rng.random() < 0.2:
            sql += f" WHERE {self._predicate(table)}"
        self._emit(sql)

    # ---- expressions ----

    def _predicate(self, table: Table, alias: str = "") -> str:
        rng = self.rng
        column = rng.choice(table.of(KEY_TYPES))
        name, dot = column.name, f"{alias}." if alias else ""
        roll = rng.random()
        if roll < 0.12:
            return f"{dot}{name} IS {rng.choice(['', 'NOT '])}NULL"
        if roll < 0.24:
            values = ", ".join(literal(rng, column.type_name, 0.05) for _ in range(3))
            return f"{dot}{name} {rng.choice(['', 'NOT '])}IN ({values})"
        if roll < 0.34:
            glue = rng.choice(["AND", "OR"])
            return f"({self._predicate(table, alias)} {glue} {self._predicate(table, alias)})"
        if roll < 0.40:
            return f"NOT ({self._predicate(table, alias)})"
        if roll < 0.46 and column.type_name in {"text", "varchar(12)"}:
            return f"{dot}{name} LIKE {rng.choice(['$$a%$$', '$$%b$$', '$$_$$'])}"
        if roll < 0.52 and column.type_name in NUMBER_TYPES:
            fraction = "numeric" in column.type_name
            return f"{dot}{name} > 1.5" if fraction else f"{dot}{name} % 3 = 1"
        operator = rng.choice(["=", "=", "=", "<", "<=", ">", ">=", "<>"])
        cast = "" if "numeric" in column.type_name else f"::{column.type_name}"
        return f"{dot}{name} {operator} {literal(rng, column.type_name, 0.03)}{cast}"

    def _id_value(self) -> str:
        return str(self.rng.randint(1, 25))

    # ---- statements ----

    def _step(self) -> None:
        rng = self.rng
        choices = [
            (self._insert, 30),
            (self._query, 34),
            (self._update, 14),
            (self._delete, 8),
            (self._transaction, 22),
            (self._upsert, 8),
            (self._merge, 3),
            (self._ddl, 5),
            (self._insert_select, 4),
            (self._truncate, 1),
        ]
        functions, weights = zip(*choices, strict=True)
        rng.choices(functions, weights)[0]()

    def _row(self, table: Table) -> str:
        values = []
        for column in table.columns:
            if column.name in {"id", "parent"}:
                null = column.name == "parent" and self.rng.random() < 0.3
                values.append("NULL" if null else self._id_value())
            else:
                chance = 0.01 if column.not_null else 0.12
                values.append(literal(self.rng, column.type_name, chance))
        return f"({', '.join(values)})"

    def _insert(self) -> None:
        rng, table = self.rng, self.rng.choice(self.tables)
        count = rng.choice([1, 1, 1, 2, 5]) if not self._may_fail_otherwise(table) else 1
        rows = ", ".join(self._row(table) for _ in range(count))
        sql = f"INSERT INTO {table.name} ({self._names(table)}) VALUES {rows}"
        if rng.random() < 0.2:
            sql += " RETURNING *"
        self._emit(sql)

    def _may_fail_otherwise(self, table: Table) -> bool:
        """Could a row fail by something else than uniqueness (order of errors is open then)?"""
        return (
            table.checked or table.parent is not None or any(c.not_null for c in table.columns[1:])
        )

    def _names(self, table: Table) -> str:
        return ", ".join(c.name for c in table.columns)

    def _insert_select(self) -> None:
        source, target = self.rng.choice(self.tables), self.rng.choice(self.tables)
        if self._may_fail_otherwise(target):
            return
        self._emit(
            f"INSERT INTO {target.name} (id) SELECT id + {self.rng.randint(0, 40)} "
            f"FROM {source.name} WHERE {self._predicate(source)}"
        )

    def _upsert(self) -> None:
        table = self.rng.choice(self.tables)
        plain = [
            c
            for c in table.columns[1:]
            if c.name not in table.key and c.name != "parent" and [c.name] not in table.unique
        ]
        if table.key != ["id"]:
            self._emit(
                f"INSERT INTO {table.name} ({self._names(table)}) "
                f"VALUES {self._row(table)} ON CONFLICT DO NOTHING"
            )
            return
        action = "DO NOTHING"
        if plain and self.rng.random() < 0.6:
            column = self.rng.choice(plain)
            value = self.rng.choice(
                [f"excluded.{column.name}", literal(self.rng, column.type_name, 0)]
            )
            action = f"DO UPDATE SET {column.name} = {value}"
        self._emit(
            f"INSERT INTO {table.name} ({self._names(table)}) VALUES {self._row(table)} "
            f"ON CONFLICT (id) {action} RETURNING id"
        )

    def _update(self) -> None:
        rng, table = self.rng, self.rng.choice(self.tables)
        column = rng.choice(table.columns)
        touches_unique = column.name in table.key or [column.name] in table.unique
        value = literal(rng, column.type_name, 0.05 if not column.not_null else 0)
        if column.name in {"id", "parent"}:
            value = self._id_value()
        elif column.type_name in {"integer", "bigint", "numeric"} and rng.random() < 0.4:
            value = f"{column.name} * 0 + {rng.randint(0, 9)}"
        single = touches_unique or table.parent or column.not_null
        single = single or any(t.parent == table.name for t in self.tables)
        where = f"id = {self._id_value()}" if single else self._predicate(table)
        sql = f"UPDATE {table.name} SET {column.name} = {value} WHERE {where}"
        if rng.random() < 0.25:
            sql += " RETURNING *"
        self._emit(sql)

    def _delete(self) -> None:
        table = self.rng.choice(self.tables)
        referenced = any(t.parent == table.name for t in self.tables)
        where = f"id = {self._id_value()}" if referenced else self._predicate(table)
        self._emit(
            f"DELETE FROM {table.name} WHERE {where}" + self.rng.choice(["", " RETURNING id"])
        )

    def _merge(self) -> None:
        table = self.rng.choice(self.tables)
        plain = [
            c
            for c in table.columns[1:]
            if c.name not in table.key and c.name != "parent" and [c.name] not in table.unique
        ]
        if table.key != ["id"] or not plain or self._may_fail_otherwise(table):
            return
        column = self.rng.choice(plain)
        self._emit(
            f"MERGE INTO {table.name} t USING (VALUES ({self._id_value()}), (77)) s(id) "
            f"ON t.id = s.id WHEN MATCHED THEN UPDATE SET {column.name} = "
            f"{literal(self.rng, column.type_name)} "
            "WHEN NOT MATCHED THEN INSERT (id) VALUES (s.id)"
        )

    def _truncate(self) -> None:
        table = self.rng.choice(self.tables)
        self._emit(f"TRUNCATE {table.name}")

    def _ddl(self) -> None:
        rng, table = self.rng, self.rng.choice(self.tables)
        roll = rng.random()
        if roll < 0.5 or self.in_transaction:
            self._create_index(table)
            return
        column = Column(self._name("n"), rng.choice(TYPES))
        default = f" DEFAULT {literal(rng, column.type_name, 0)}" if rng.random() < 0.6 else ""
        self._emit(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {column.type_name}{default}")
        table.columns.append(column)

    def _transaction(self) -> None:
        rng = self.rng
        if not self.in_transaction:
            self._emit("BEGIN")
            self.in_transaction, self.savepoints = True, []
            return
        roll = rng.random()
        if roll < 0.30:
            name = self._name("s")
            self.savepoints.append(name)
            self._emit(f"SAVEPOINT {name}")
        elif roll < 0.60 and self.savepoints:
            index = rng.randrange(len(self.savepoints))
            verb = rng.choice(["ROLLBACK TO", "ROLLBACK TO", "RELEASE"])
            self._emit(f"{verb} {self.savepoints[index]}")
            del self.savepoints[index + (verb == "ROLLBACK TO") :]
        else:
            self._emit(rng.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
            self.in_transaction = False

    # ---- queries ----

    def _query(self) -> None:
        self.rng.choice(
            [
                self._plain,
                self._plain,
                self._ordered,
                self._aggregate,
                self._group,
                self._join,
                self._subquery,
                self._window,
                self._locking,
                self._by_key,
            ]
        )()

    def _plain(self) -> None:
        table = self.rng.choice(self.tables)
        self._emit(f"SELECT * FROM {table.name} WHERE {self._predicate(table)}")

    def _by_key(self) -> None:
        table = self.rng.choice(self.tables)
        self._emit(f"SELECT * FROM {table.name} WHERE id = {self._id_value()}")

    def _ordered(self) -> None:
        rng, table = self.rng, self.rng.choice(self.tables)
        column = rng.choice(table.of(KEY_TYPES))
        if table.key:
            tail = ", ".join(table.key)
            direction = rng.choice(["", " DESC", " NULLS FIRST", " DESC NULLS LAST"])
            limit = rng.choice(
                ["", "", f" LIMIT {rng.randint(0, 5)}", f" OFFSET {rng.randint(0, 3)}"]
            )
            self._emit(
                f"SELECT id, {column.name} FROM {table.name} "
                f"ORDER BY {column.name}{direction}, {tail}{limit}",
                True,
            )
        elif column.type_name in IDENTITY_TYPES:
            self._emit(f"SELECT {column.name} FROM {table.name} ORDER BY {column.name}", True)

    def _aggregate(self) -> None:
        rng, table = self.rng, self.rng.choice(self.tables)
        parts = ["count(*)"]
        for column in rng.sample(table.columns, min(3, len(table.columns))):
            parts.append(f"count({column.name})")
            if column.type_name in IDENTITY_TYPES and column.type_name not in {"boolean", "uuid"}:
                parts.append(f"{rng.choice(['min', 'max'])}({column.name})")
            if column.type_name in {"smallint", "integer", "bigint"}:
                parts.append(f"{rng.choice(['sum', 'avg', 'sum'])}({column.name})")
        where = f" WHERE {self._predicate(table)}" if rng.random() < 0.6 else ""
        self._emit(f"SELECT {', '.join(parts)} FROM {table.name}{where}")

    def _group(self) -> None:
        rng, table = self.rng, self.rng.choice(self.tables)
        keys = rng.sample(table.of(IDENTITY_TYPES), 1)
        names = ", ".join(c.name for c in keys)
        numbers = table.of(["smallint", "integer", "bigint"])
        total = f", sum({rng.choice(numbers).name})" if numbers else ""
        where = f" WHERE {self._predicate(table)}" if rng.random() < 0.5 else ""
        having = " HAVING count(*) > 1" if rng.random() < 0.3 else ""
        self._emit(
            f"SELECT {names}, count(*){total} FROM {table.name}{where} GROUP BY {names}{having}"
        )

    def _join(self) -> None:
        rng, left, right = self.rng, self.rng.choice(self.tables), self.rng.choice(self.tables)
        kind = rng.choice(["JOIN", "LEFT JOIN", "FULL JOIN"])
        self._emit(
            f"SELECT a.id, b.id FROM {left.name} a {kind} {right.name} b ON a.id = b.id"
            + (f" WHERE {self._predicate(left, 'a')}" if rng.random() < 0.5 else "")
        )

    def _subquery(self) -> None:
        outer, inner = self.rng.choice(self.tables), self.rng.choice(self.tables)
        shape = self.rng.choice(
            [
                "id IN (SELECT id FROM {i} WHERE {p})",
                "EXISTS (SELECT 1 FROM {i} x WHERE x.id = o.id AND {p})",
                "NOT EXISTS (SELECT 1 FROM {i} x WHERE x.id = o.id)",
            ]
        )
        alias = "x" if " x " in shape else ""
        condition = shape.format(i=inner.name, p=self._predicate(inner, alias))
        self._emit(f"SELECT * FROM {outer.name} o WHERE {condition}")

    def _window(self) -> None:
        table = self.rng.choice(self.tables)
        if table.key:
            self._emit(
                f"SELECT id, row_number() OVER (ORDER BY {', '.join(table.key)}) FROM {table.name}"
            )

    def _locking(self) -> None:
        table = self.rng.choice(self.tables)
        strength = self.rng.choice(["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"])
        self._emit(f"SELECT id FROM {table.name} WHERE id = {self._id_value()} FOR {strength}")
