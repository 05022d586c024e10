"""SQL text for reads as of tau (design section 8). `?1` is tau in every statement.

As of tau a version is valid while ts <= tau < te. Rows of large transactions that are resolved but
not yet settled bear provisional numbers; statements consult them only while the relation's overlay
is not empty.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from meridian.storage.errors import BadRequest, BelowHorizon, UnknownRelation
from meridian.storage.filters import Parameters, compile_filter
from meridian.storage.relations import Column, Relation, Snapshot, Staged
from meridian.storage.types import (
    DESCENDING,
    LO_EXCLUSIVE,
    PROVISIONAL,
    Aggregate,
    SampleRequest,
    ScanRequest,
)
from meridian.wire.ops import CLASS_BYTES, CLASS_INTEGER

LIMIT_MAX = 1 << 40

COUNT_ROWS, COUNT, MINIMUM, MAXIMUM, SUM, SUM_HALVES = range(1, 7)


class Statement(NamedTuple):
    """SQL, its parameters, and the width of a row."""

    sql: str
    values: tuple[Any, ...]


def relation_at(snapshot: Snapshot, sid: int, tau: int) -> Relation:
    """The relation if a read at tau may see it. Raises BelowHorizon, UnknownRelation."""
    if tau < snapshot.horizon:
        raise BelowHorizon()
    relation = snapshot.relations.get(sid)
    if relation is None or not relation.visible(tau):
        raise UnknownRelation(sid)
    return relation


class Source:
    """A relation under an alias in one statement."""

    def __init__(self, relation: Relation, alias: str) -> None:
        self.relation = relation
        self.alias = alias

    def __call__(self, attnum: int) -> tuple[Column, str]:
        """Column and expression of an attnum."""
        column = self.relation.columns.get(attnum)
        if column is None:
            raise BadRequest(f"relation {self.relation.sid} has no column {attnum}")
        return column, self._expression(attnum, column)

    def raw(self, column: Column) -> str:
        """The stored value, marker of big values included."""
        return f"{self.alias}.{column.name}"

    def _expression(self, attnum: int, column: Column) -> str:
        raw = self.raw(column)
        if not column.big:
            return raw
        a = self.alias
        origin = f"coalesce({a}.x, {a}.ts)" if self.relation.origin else f"{a}.ts"
        return (
            f"CASE typeof({raw}) WHEN 'text' THEN (SELECT v FROM big b WHERE"
            f" b.sid = {self.relation.sid} AND b.k = {a}.k AND b.ts = {origin}"
            f" AND b.attnum = {attnum}) ELSE {raw} END"
        )

    def expressions(self, attnums: tuple[int, ...]) -> list[str]:
        """One expression per attnum."""
        return [self(attnum)[1] for attnum in attnums]

    def as_of(self, overlay: tuple[Staged, ...]) -> str:
        """The versions valid at tau."""
        a, table = self.alias, self.relation.table
        plain = f"{a}.ts <= ?1 AND {a}.te > ?1"
        if not overlay:
            return plain
        numbers = ", ".join(str(staged.number) for staged in overlay)
        condition = f"(({plain}) OR ({a}.ts IN ({numbers}) AND {a}.te <> 0))"
        for position, staged in enumerate(overlay):
            if staged.closes:
                newer = ", ".join(str(s.number) for s in overlay[position:])
                condition += (
                    f" AND NOT ({a}.ts NOT IN ({newer}) AND EXISTS (SELECT 1 FROM {table} n"
                    f" WHERE n.k = {a}.k AND n.ts = {staged.number}))"
                )
        return condition

    def newest(self) -> str:
        """Like `as_of` without overlay, for a known key with very many versions."""
        a = self.alias
        return (
            f"{a}.ts = (SELECT v.ts FROM {self.relation.table} v WHERE v.k = {a}.k"
            f" AND v.ts <= ?1 AND v.te > ?1 LIMIT 1)"
        )


def overlay_at(snapshot: Snapshot, sid: int, tau: int) -> tuple[Staged, ...]:
    """The unsettled transactions of a relation that a read at tau must see."""
    return tuple(s for s in snapshot.overlay.get(sid, ()) if s.tau <= tau)


def get_one(relation: Relation, cols: tuple[int, ...], overlay: tuple[Staged, ...]) -> str:
    """GET of one key (`?2`): the hottest statement of the product."""
    source = Source(relation, "r")
    columns = ", ".join(["r.k", *source.expressions(cols)])
    return (
        f"SELECT {columns} FROM {relation.table} r"
        f" WHERE r.k = ?2 AND {source.as_of(overlay)} LIMIT 1"
    )


def get_filtered(
    snapshot: Snapshot, tau: int, sid: int, cols: tuple[int, ...], keys: Any, where: Any
) -> Statement:
    """`get_many` of the rows that pass a filter; `keys`: what SQLite takes as an array."""
    parameters = Parameters(tau)
    parameters.add(keys)
    source = Source(relation_at(snapshot, sid, tau), "r")
    condition = compile_filter(where, source, parameters)
    sql = f"{get_many(snapshot, tau, sid, cols)} AND {condition}"
    return Statement(sql, tuple(parameters.values))


def get_many(snapshot: Snapshot, tau: int, sid: int, cols: tuple[int, ...]) -> str:
    """GET of an array of keys (`?2`), in the order of the array."""
    relation = relation_at(snapshot, sid, tau)
    source = Source(relation, "r")
    overlay = overlay_at(snapshot, sid, tau)
    columns = ", ".join(["r.k", *source.expressions(cols)])
    crowded = relation.crowded and not overlay
    condition = source.newest() if crowded else source.as_of(overlay)
    return (
        f"SELECT {columns} FROM carray(?2) a CROSS JOIN {relation.table} r"
        f" WHERE r.k = a.value AND {condition}"
    )


def lookup_one(snapshot: Snapshot, request: ScanRequest) -> str:
    """A SCAN of exactly one key (`?2`) without overlay or filters; empty where that is no gain."""
    if request.flags & LO_EXCLUSIVE or (request.row_sid and request.cols):
        return ""
    entry = relation_at(snapshot, request.sid, request.tau)
    if not request.row_sid:
        return get_one(entry, request.cols, ())
    row = Source(relation_at(snapshot, request.row_sid, request.tau), "r")
    columns = ", ".join(["?2", "r.k", *row.expressions(request.row_cols)])
    return (
        f"SELECT {columns} FROM {row.relation.table} r"
        f" WHERE r.k = (SELECT e.c0 FROM {entry.table} e"
        f" WHERE e.k = ?2 AND e.ts <= ?1 AND e.te > ?1 LIMIT 1) AND {row.as_of(())} LIMIT 1"
    )


def _key_range(request: ScanRequest | SampleRequest, key: str, parameters: Parameters) -> list[str]:
    conditions = []
    flags = request.flags if isinstance(request, ScanRequest) else 0
    if request.lo is not None and request.lo != b"":
        word = ">" if flags & LO_EXCLUSIVE else ">="
        conditions.append(f"{key} {word} {parameters.add(request.lo)}")
    elif request.lo == b"" and flags & LO_EXCLUSIVE:
        conditions.append(f"{key} > x''")
    if request.hi is not None:
        conditions.append(f"{key} < {parameters.add(request.hi)}")
    return conditions


def _skipping(relation: Relation, request: ScanRequest, parameters: Parameters) -> str:
    """The distinct keys of the range, found by one seek each: dead versions are never visited."""
    conditions = " AND ".join(["1", *_key_range(request, "k", parameters)])
    table = relation.table
    aggregate, word = ("max", "<") if request.flags & DESCENDING else ("min", ">")
    return (
        f"(WITH RECURSIVE s(k) AS (SELECT {aggregate}(k) FROM {table} WHERE {conditions}"
        f" UNION ALL SELECT (SELECT {aggregate}(k) FROM {table} WHERE k {word} s.k"
        f" AND {conditions}) FROM s WHERE s.k IS NOT NULL) SELECT k FROM s WHERE k IS NOT NULL)"
    )


def _from(
    snapshot: Snapshot, request: ScanRequest, parameters: Parameters
) -> tuple[Source, Source | None, str, list[str]]:
    """FROM clause and conditions of a scan, without filters."""
    tau = request.tau
    entry = Source(relation_at(snapshot, request.sid, tau), "e")
    overlay = overlay_at(snapshot, request.sid, tau)
    if entry.relation.crowded and not overlay:
        keys = _skipping(entry.relation, request, parameters)
        tables = f"{keys} s CROSS JOIN {entry.relation.table} e"
        conditions = ["e.k = s.k", entry.newest()]
    else:
        tables = f"{entry.relation.table} e"
        conditions = [*_key_range(request, "e.k", parameters), entry.as_of(overlay)]
    if not request.row_sid:
        return entry, None, tables, conditions
    row = Source(relation_at(snapshot, request.row_sid, tau), "r")
    if 0 not in entry.relation.columns:
        raise BadRequest(f"relation {request.sid} is not an index")
    row_overlay = overlay_at(snapshot, request.row_sid, tau)
    tables += f" CROSS JOIN {row.relation.table} r"
    crowded = row.relation.crowded and not row_overlay
    conditions += [
        f"r.k = {entry(0)[1]}",
        row.newest() if crowded else row.as_of(row_overlay),
    ]
    return entry, row, tables, conditions


def scan(snapshot: Snapshot, request: ScanRequest) -> Statement:
    """The statement of a SCAN. Raises BadRequest, BelowHorizon, UnknownRelation."""
    if not 0 <= request.limit <= LIMIT_MAX or request.flags & ~(DESCENDING | LO_EXCLUSIVE):
        raise BadRequest("bad limit or flags")
    parameters = Parameters(request.tau)
    entry, row, tables, conditions = _from(snapshot, request, parameters)
    if request.filter is not None:
        conditions.append(compile_filter(request.filter, entry, parameters))
    if request.row_filter is not None:
        if row is None:
            raise BadRequest("a row filter without a row relation")
        conditions.append(compile_filter(request.row_filter, row, parameters))
    where = " AND ".join(conditions)
    if request.grouped and (request.cols or request.row_cols):
        raise BadRequest("groups and columns in one request")
    if request.grouped:
        columns, tail = _aggregates(request, row or entry)
    else:
        keys = ["e.k"] if row is None else ["e.k", "r.k"]
        cells = keys + entry.expressions(request.cols)
        cells += row.expressions(request.row_cols) if row else []
        columns = ", ".join(cells)
        tail = " ORDER BY e.k DESC" if request.flags & DESCENDING else " ORDER BY e.k"
    if request.limit:
        # Groups: one more than asked for, since `more` says that the answer is not all of them.
        tail += f" LIMIT {parameters.add(request.limit + request.grouped)}"
    sql = f"SELECT {columns} FROM {tables} WHERE {where}{tail}"
    return Statement(sql, tuple(parameters.values))


def _aggregates(request: ScanRequest, source: Source) -> tuple[str, str]:
    group = []
    for attnum in request.group or ():
        column, sql = source(attnum)
        if column.column_class not in (CLASS_INTEGER, CLASS_BYTES):
            raise BadRequest("only integer and bytes columns can be grouped")
        group.append(sql)
    cells = group + [cell for agg in request.aggs or () for cell in _aggregate(agg, source)]
    if not cells:
        raise BadRequest("an aggregate request without groups and aggregates")
    return ", ".join(cells), f" GROUP BY {', '.join(group)}" if group else ""


def _aggregate(aggregate: Aggregate, source: Source) -> list[str]:
    """Exact by construction: sums of int2/int4 cannot pass 2^63 below 2^31 rows, int8 is halved,
    and SQLite's sum() of integers raises instead of wrapping."""
    if len(aggregate) != 2:
        raise BadRequest("an aggregate is [function, attnum]")
    function, attnum = aggregate
    if function == COUNT_ROWS:
        return ["count(*)"]
    column, sql = source(attnum)
    if function == COUNT:
        return [f"count({source.raw(column)})"]
    integer = column.column_class == CLASS_INTEGER
    if function in (MINIMUM, MAXIMUM) and (integer or column.column_class == CLASS_BYTES):
        return [f"{'min' if function == MINIMUM else 'max'}({sql})"]
    if function == SUM and integer:
        return [f"sum({sql})"]
    if function == SUM_HALVES and integer:
        return [f"sum({sql} >> 32)", f"sum({sql} & 4294967295)"]
    raise BadRequest(f"unknown aggregate {function} of a column of class {column.column_class}")


def sample(snapshot: Snapshot, request: SampleRequest) -> Statement:
    """About `count` random rows, in key order: a coin is thrown for each live row."""
    if request.count < 0:
        raise BadRequest("a sample has at least 0 rows")
    relation = relation_at(snapshot, request.sid, request.tau)
    source = Source(relation, "e")
    overlay = overlay_at(snapshot, request.sid, request.tau)
    columns = ", ".join(["e.k", *source.expressions(request.cols)])
    chance = min(1.0, request.count / max(1, relation.rows))
    threshold = int(chance * (1 << 31))
    parameters = Parameters(request.tau)
    coin = f"(random() & 2147483647) < {parameters.add(threshold)}"
    where = [source.as_of(overlay), coin, *_key_range(request, "e.k", parameters)]
    return Statement(
        f"SELECT {columns} FROM {relation.table} e WHERE {' AND '.join(where)} ORDER BY e.k",
        tuple(parameters.values),
    )


assert PROVISIONAL == 1 << 62
