"""Relations of a replica file: their columns, SQL names, counters and visibility in tau.

The tables `relations` and `columns` are the truth; `Relation` is their image in memory. A reader
thread loads its own image inside its own SQLite snapshot, so that it never sees a column, a
relation or a provisional number that its snapshot lacks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import apsw

from meridian.storage import schema
from meridian.storage.sql import fetch
from meridian.storage.types import PROVISIONAL, TS_MAX
from meridian.wire import ops
from meridian.wire.ranges import Ranges


@dataclass(slots=True)
class Column:
    """One column: `name` in SQLite, class, and whether a value of it ever went to `big`."""

    name: str
    column_class: int
    big: bool


@dataclass(slots=True)
class Relation:
    """One relation, visible to reads at born <= tau < died."""

    sid: int
    kind: int
    table_sid: int
    born: int
    died: int
    rows: int = 0
    dead: int = 0
    """Versions that ended and are not collected yet."""
    superseded: int = 0
    """Those of them that another version of the same key followed."""
    put_rows: int = 0
    put_bytes: int = 0
    origin: bool = False
    """Has column `x`: the ts under which big values of a once staged row are filed."""
    complete: bool = False
    """An index that must hold an entry of every row."""
    columns: dict[int, Column] = field(default_factory=dict)

    @property
    def table(self) -> str:
        """Its SQLite table."""
        return f"r{self.sid}"

    @property
    def has_big(self) -> bool:
        """Some value of it may lie in `big`."""
        return any(column.big for column in self.columns.values())

    @property
    def crowded(self) -> bool:
        """Keys have so many versions each that one seek per key beats reading them all."""
        keys = self.rows + self.dead - self.superseded
        return self.superseded > 64 + 16 * keys

    def visible(self, tau: int) -> bool:
        """May a read at tau see it?"""
        return self.born <= tau < self.died


@dataclass(frozen=True, slots=True)
class Staged:
    """A resolved transaction whose rows of one relation still bear a provisional number."""

    number: int
    tau: int
    closes: bool
    """It also ends older versions; else all of its keys are new."""


Overlay = dict[int, tuple[Staged, ...]]
"""By sid, ascending tau. Empty almost always."""


@dataclass(slots=True)
class Snapshot:
    """What SQL generation needs to know, as of one SQLite snapshot."""

    relations: dict[int, Relation]
    overlay: Overlay
    horizon: int
    ranges: Ranges


_RELATIONS = (
    "SELECT sid, kind, table_sid, born, died, rows, dead, superseded, put_rows,"
    " put_bytes, origin, complete"
    " FROM {}.relations"
)
_COLUMNS = "SELECT sid, attnum, name, class, big FROM {}.columns"
_OVERLAY = (
    "SELECT o.sid, s.number, s.tau, max(o.closes) FROM staged s JOIN staged_ops o"
    " ON o.number = s.number WHERE s.tau > 0 AND o.kind IN (1, 2){}"
    " GROUP BY o.sid, s.number ORDER BY o.sid, s.tau"
)


def load_relations(
    db: apsw.Connection, sids: tuple[int, ...] = (), *, database: str = "main"
) -> dict[int, Relation]:
    """All relations of the file (or of one attached as `database`), or those named."""
    where = f" WHERE sid IN ({','.join(map(str, sids))})" if sids else ""
    relations: dict[int, Relation] = {}
    for row in fetch(db, _RELATIONS.format(database) + where):
        relations[row[0]] = Relation(*row)
    for sid, attnum, name, column_class, big in fetch(db, _COLUMNS.format(database) + where):
        relations[sid].columns[attnum] = Column(name, column_class, bool(big))
    return relations


def load_overlay(db: apsw.Connection, sids: tuple[int, ...] = ()) -> Overlay:
    """Resolved but unsettled transactions, by relation."""
    where = f" AND o.sid IN ({','.join(map(str, sids))})" if sids else ""
    overlay: Overlay = {}
    for sid, number, tau, closes in fetch(db, _OVERLAY.format(where)):
        overlay[sid] = (*overlay.get(sid, ()), Staged(number, tau, bool(closes)))
    return overlay


def load_snapshot(db: apsw.Connection, sids: tuple[int, ...]) -> Snapshot:
    """The image for one read; call inside a read transaction."""
    horizon = fetch(db, "SELECT horizon FROM state")[0][0]
    ranges = schema.load_ranges(db)
    return Snapshot(load_relations(db, sids), load_overlay(db, sids), horizon, ranges)


def create(db: apsw.Connection, op: ops.Create, born: int) -> Relation:
    """CREATE: the table and its metadata rows."""
    relation = Relation(op.sid, op.kind, op.table_sid, born, TS_MAX)
    relation.complete = bool(op.flags & ops.COMPLETE)
    columns = list(op.columns)
    if op.kind == ops.KIND_INDEX and all(attnum != 0 for attnum, _ in columns):
        columns.insert(0, (0, ops.CLASS_BYTES))
    relation.columns = {a: Column(f"c{a}", c, False) for a, c in columns}
    names = "".join(f", {column.name}" for column in relation.columns.values())
    db.execute(
        f"CREATE TABLE {relation.table}(k BLOB, ts INTEGER, te INTEGER{names},"
        " PRIMARY KEY(k, ts DESC)) WITHOUT ROWID"
    )
    db.execute(
        "INSERT INTO relations(sid, kind, table_sid, born, died, complete) VALUES(?,?,?,?,?,?)",
        (op.sid, op.kind, op.table_sid, born, TS_MAX, int(relation.complete)),
    )
    db.executemany(
        "INSERT INTO columns(sid, attnum, name, class, big) VALUES(?,?,?,?,0)",
        [(op.sid, a, f"c{a}", c) for a, c in columns],
    )
    return relation


def adopt(db: apsw.Connection, theirs: Relation) -> Relation:
    """The same relation, empty, in this file; the defaults of its columns come with its SQL."""
    sql = fetch(db, "SELECT sql FROM other.sqlite_schema WHERE name = ?", (theirs.table,))[0][0]
    db.execute(sql)
    row = (theirs.sid, theirs.kind, theirs.table_sid, theirs.born, theirs.died)
    db.execute(
        "INSERT INTO relations(sid, kind, table_sid, born, died, origin, complete)"
        " VALUES(?,?,?,?,?,?,?)",
        (*row, int(theirs.origin), int(theirs.complete)),
    )
    db.executemany(
        "INSERT INTO columns(sid, attnum, name, class, big) VALUES(?,?,?,?,?)",
        [
            (theirs.sid, attnum, column.name, column.column_class, int(column.big))
            for attnum, column in theirs.columns.items()
        ],
    )
    columns = {a: Column(c.name, c.column_class, c.big) for a, c in theirs.columns.items()}
    return Relation(*row, origin=theirs.origin, complete=theirs.complete, columns=columns)


def literal(value: Any) -> str:
    """A default as a SQL literal. Values are None, int or bytes."""
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(int(value))
    return f"X'{bytes(value).hex()}'"


def add_column(db: apsw.Connection, relation: Relation, op: ops.Add) -> None:
    """ADD: a column whose default answers for rows written without it.

    A discarded transaction leaves its physical column behind (dropping it would rewrite the
    table), so a taken name gets a suffix.
    """
    taken = {row[1] for row in fetch(db, f"PRAGMA table_info({relation.table})")}
    name, suffix = f"c{op.attnum}", 0
    while name in taken:
        suffix += 1
        name = f"c{op.attnum}_{suffix}"
    default = literal(op.default)
    db.execute(f"ALTER TABLE {relation.table} ADD COLUMN {name} DEFAULT {default}")
    set_column(db, relation, op.attnum, name, op.column_class)


def set_column(
    db: apsw.Connection, relation: Relation, attnum: int, name: str, column_class: int
) -> None:
    """`attnum` means the physical column `name` from here on."""
    known = relation.columns.get(attnum)
    if known is not None and known.name == name:
        return
    db.execute(
        "INSERT OR REPLACE INTO columns(sid, attnum, name, class, big) VALUES(?,?,?,?,0)",
        (relation.sid, attnum, name, column_class),
    )
    relation.columns[attnum] = Column(name, column_class, False)


def set_complete(db: apsw.Connection, relation: Relation, flags: int) -> None:
    """ALTER: an index is, or is no longer, known to hold an entry of every row."""
    relation.complete = bool(flags & ops.COMPLETE)
    db.execute(
        "UPDATE relations SET complete = ? WHERE sid = ?", (int(relation.complete), relation.sid)
    )


def forget_column(db: apsw.Connection, relation: Relation, attnum: int, name: bytes) -> None:
    """Undo `set_column`, unless another transaction took the attnum meanwhile."""
    known = relation.columns.get(attnum)
    if known is not None and known.name == name.decode():
        db.execute("DELETE FROM columns WHERE sid = ? AND attnum = ?", (relation.sid, attnum))
        del relation.columns[attnum]


def mark_big(db: apsw.Connection, relation: Relation, attnum: int) -> None:
    """From now on reads of this column look for the marker of a big value."""
    relation.columns[attnum].big = True
    db.execute("UPDATE columns SET big = 1 WHERE sid = ? AND attnum = ?", (relation.sid, attnum))


def add_origin(db: apsw.Connection, relation: Relation) -> None:
    """Column `x`, so that settling a staged row need not copy its big values to a new ts."""
    db.execute(f"ALTER TABLE {relation.table} ADD COLUMN x")
    db.execute("UPDATE relations SET origin = 1 WHERE sid = ?", (relation.sid,))
    relation.origin = True


def save_counters(db: apsw.Connection, relation: Relation) -> None:
    """The counters, in the transaction that changed them."""
    db.execute(
        "UPDATE relations SET rows = ?, dead = ?, superseded = ?, put_rows = ?, put_bytes = ?"
        " WHERE sid = ?",
        (
            relation.rows,
            relation.dead,
            relation.superseded,
            relation.put_rows,
            relation.put_bytes,
            relation.sid,
        ),
    )


assert PROVISIONAL < TS_MAX
