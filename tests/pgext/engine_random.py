"""Random programs over one table: many kinds of index, plan settings, cursors, savepoints.

Where `tests/differential` has random schemas, this one aims at the merge of stored rows with the
transaction's own writes: every access path, both directions, in the middle of transactions.
"""

from __future__ import annotations

import random

NUMBERS = {
    "int": [str(n) for n in range(-5, 13)],
    "int8": ["1", "2", "3", "1000000000000", "-1000000000000"],
    "numeric": ["1", "1.0", "1.50", "-2", "0", "100", "0.001"],
    "float8": ["1", "-0.0", "0", "'NaN'", "1e300", "-5.5"],
}
VALUES = NUMBERS | {
    "text": ["'a'", "'b'", "'ab'", "''", "'zz'", "'é'"],
    "bool": ["true", "false"],
    "date": [f"date '2024-01-{day:02d}'" for day in range(1, 13)],
}
PLAN_SETTINGS = [
    "seqscan",
    "indexscan",
    "bitmapscan",
    "indexonlyscan",
    "hashjoin",
    "nestloop",
    "sort",
]
FETCHES = [
    "3",
    "backward 2",
    "last",
    "first",
    "relative 2",
    "absolute 4",
    "prior",
    "all",
    "backward all",
]


class Program:
    """The statements of one seed."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        types = list(VALUES)
        self.columns = [(f"c{i}", self.r.choice(types)) for i in range(self.r.randint(2, 5))]
        self.key = self.r.choice(["none", "id", "id", "text", "int"])
        self.names = ["id", *(name for name, _ in self.columns)]
        if self.key in ("text", "int"):
            self.names.append("k")
        self.next_id = 0
        self.cursors = 0

    def statements(self) -> list[str]:
        """Schema, transactions, and at the end every column through whatever index serves it."""
        out = [self.table(), *(self.index(i) for i in range(self.r.randint(0, 4)))]
        for _ in range(self.r.randint(3, 8)):
            out += [self.setting() for _ in range(self.r.randint(0, 2))]
            out += self.transaction()
        out.append("select * from t")
        for name in self.names:
            out += ["set enable_seqscan = off", f"select {name} from t order by {name}"]
        return out

    def table(self) -> str:
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns)
        if self.key == "none":
            return f"create table t (id int, {columns})"
        if self.key == "id":
            return f"create table t (id int primary key, {columns})"
        return (
            f"create table t (id int not null, {columns}, k {self.key} not null, "
            "primary key (k, id))"
        )

    def index(self, number: int) -> str:
        r = self.r
        chosen = r.sample(self.columns, r.randint(1, min(3, len(self.columns))))
        parts = [
            name + r.choice(["", " desc", " desc nulls last", " nulls first"]) for name, _ in chosen
        ]
        integers = [name for name, kind in self.columns if kind in ("int", "int8")]
        if integers and r.random() < 0.2:
            parts.insert(0, f"(({integers[0]}) + 1)")
        unique = "unique " if r.random() < 0.3 else ""
        include = f" include ({r.choice(self.columns)[0]})" if r.random() < 0.3 else ""
        distinct = " nulls not distinct" if unique and r.random() < 0.3 else ""
        where = f" where {self.columns[0][0]} is not null" if r.random() < 0.25 else ""
        return f"create {unique}index i{number} on t ({', '.join(parts)}){include}{distinct}{where}"

    def value(self, kind: str, null: float = 0.15) -> str:
        picked = "null" if self.r.random() < null else self.r.choice(VALUES[kind])
        return f"{picked}::{kind}"

    def comparison(self) -> str:
        r = self.r
        name, kind = r.choice(self.columns)
        other, other_kind = r.choice(self.columns)
        return r.choice(
            [
                f"{name} {r.choice(['=', '<', '>', '<=', '>=', '<>'])} {self.value(kind, 0)}",
                f"{name} is {r.choice(['', 'not '])}null",
                f"{name} in ({', '.join(self.value(kind, 0.1) for _ in range(r.randint(1, 4)))})",
                f"id {r.choice(['=', '<', '>'])} {r.randint(1, 60)}",
                f"id in ({', '.join(str(r.randint(1, 60)) for _ in range(4))})",
                f"({name}, {other}) {r.choice(['<', '>=', '>'])} "
                f"({self.value(kind, 0)}, {self.value(other_kind, 0)})",
                f"{name} between {self.value(kind, 0)} and {self.value(kind, 0)}",
                "true",
            ]
        )

    def predicate(self) -> str:
        k = self.r.random()
        if k < 0.7:
            return self.comparison()
        return f"({self.predicate()} {self.r.choice(['and', 'or'])} {self.predicate()})"

    def row(self) -> str:
        self.next_id += 1
        number = self.next_id if self.r.random() < 0.8 else self.r.randint(1, 60)
        values = [str(number), *(self.value(kind) for _, kind in self.columns)]
        if "k" in self.names:
            values.append(self.value(self.key, 0))
        return f"({', '.join(values)})"

    def update(self) -> str:
        r = self.r
        name, kind = r.choice(self.columns)
        new = f"{name} + 1" if kind in NUMBERS and r.random() < 0.4 else self.value(kind)
        moved = r.choice(["", "", ", id = id + 100"])
        return f"update t set {name} = {new}{moved} where {self.predicate()}" + r.choice(
            [" returning *", ""]
        )

    def change(self) -> str:
        r = self.r
        rows = ", ".join(self.row() for _ in range(r.randint(1, 6)))
        copied = ", ".join([f"id + {r.choice([100, 200, 1000])}", *self.names[1:]])
        choices = [
            f"insert into t values {rows}{r.choice([' returning *', '', ''])}",
            f"insert into t values {rows} on conflict do nothing",
            self.update(),
            self.update(),
            f"delete from t where {self.predicate()}{r.choice([' returning *', ''])}",
            f"insert into t select {copied} from t where {self.predicate()}",
            f"select * from t where {self.predicate()} for update",
        ]
        if self.key == "id":
            name = r.choice(self.columns)[0]
            choices.append(
                f"insert into t values {self.row()} on conflict (id) do update "
                f"set {name} = excluded.{name} returning *"
            )
        return r.choice(choices)

    def query(self) -> str:
        r = self.r
        names = r.sample(self.names, len(self.names))
        two = names[:2]
        order = ", ".join(name + r.choice([" desc", " nulls first", ""]) for name in two)
        return r.choice(
            [
                f"select * from t where {self.predicate()}",
                f"select {', '.join(two)} from t where {self.predicate()} order by {order}",
                f"select count(*), count({names[0]}), min(id) from t where {self.predicate()}",
                f"select {names[0]}, count(*) from t where {self.predicate()}"
                " group by 1 order by 1",
                f"select a.id, b.id from t a join t b on a.{names[0]} = b.{names[0]}"
                " where a.id < b.id",
                f"select {names[0]} from t order by {names[0]} desc nulls last limit 5",
                f"select id from t o where exists (select 1 from t x where x.{names[0]} = "
                f"o.{names[0]} and x.id > o.id)",
            ]
        )

    def setting(self) -> str:
        return f"set enable_{self.r.choice(PLAN_SETTINGS)} = {self.r.choice(['on', 'off'])}"

    def transaction(self) -> list[str]:
        r = self.r
        if r.random() < 0.3:
            return [
                self.change() if r.random() < 0.6 else self.query() for _ in range(r.randint(1, 5))
            ]
        out = ["begin"]
        depth = 0
        opened: list[int] = []
        for _ in range(r.randint(3, 14)):
            k = r.random()
            if k < 0.4:
                out.append(self.change())
            elif k < 0.7:
                out.append(self.query())
            elif k < 0.8:
                out.append(f"savepoint s{depth}")
                depth += 1
            elif k < 0.88 and depth:
                out.append(f"rollback to s{depth - 1}")
            elif k < 0.93:
                self.cursors += 1
                opened.append(self.cursors)
                order = ", ".join(r.sample(self.names, len(self.names)))
                out.append(
                    f"declare k{self.cursors} scroll cursor for select * from t order by {order}"
                )
            elif opened:
                out.append(f"fetch {r.choice(FETCHES)} from k{r.choice(opened)}")
        return [*out, r.choice(["commit", "commit", "commit", "rollback"])]
