"""Changing what a replica file owns: shrink, purge, rewind, import (design section 8).

A range moves without ever being claimed before it is there. A new file restores it from a snapshot,
reads the journal behind it, serves; then the old file shrinks: one small transaction, checked by
every later read in its own SQLite snapshot. The rows left over go in slices.

Two files become one when both show the very same tau: `rewind` takes the newer one back (its older
versions are still there), `import_ranges` copies the rows, and one journal position serves both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import apsw
import msgspec

from meridian.storage import relations, schema, staging
from meridian.storage.apply import Applier
from meridian.storage.errors import BadRequest, Corrupt
from meridian.storage.relations import Relation
from meridian.storage.schema import State
from meridian.storage.sql import fetch
from meridian.storage.types import PROVISIONAL, TS_MAX
from meridian.wire.ranges import Owned, Range, Ranges, gaps, joined, keys_of, span

_encode = msgspec.msgpack.Encoder().encode
_decode_keys = msgspec.msgpack.Decoder(list[bytes]).decode

ROW_BYTES = 100
"""Guess for the size estimate of rows that were not measured when they came."""

_LIVE = (
    f"te = {TS_MAX} AND (ts < {PROVISIONAL}"
    " OR ts IN (SELECT number FROM staged WHERE tau IS NOT NULL AND tau > 0))"
)
"""What a relation's row counter counts: superseded rows of unsettled transactions too."""


def adopt(applier: Applier, part: Owned) -> None:
    """Own a range of which nothing was ever written, inside the caller's transaction.

    Raises BadRequest if it overlaps with what the file owns or holds rows of.
    """
    if applier.ranges.meets(part.range):
        raise BadRequest("the file owns a part of the range already")
    if any(span(sid).meets(part.range) for sid in applier.relations):
        raise BadRequest("the file still holds rows of the range")
    owned = joined([*applier.ranges.owned, part])
    schema.save_ranges(applier.db, owned)
    applier.ranges = Ranges(owned)
    applier.catalog_changed = True


def shrink(applier: Applier, owned: Sequence[Owned]) -> None:
    """Give up what is not in `owned`, inside the caller's transaction. O(relations + staged ops).

    Raises BadRequest unless the file owns all of it, with bases at least as high as before.
    """
    try:
        left = Ranges(owned)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    for one in owned:
        base = applier.ranges.base_of(one.range)
        if base is None or one.base < base:
            raise BadRequest("a file only shrinks: the range or its base is not its own")
    db = applier.db
    schema.save_ranges(db, owned)
    for relation in applier.relations.values():
        whole = span(relation.sid)
        lost = [part for one in gaps(owned, whole) for part in _meeting(applier.ranges, one)]
        db.executemany(
            "INSERT INTO purge(sid, lo, hi) VALUES(?, ?, ?)",
            [(relation.sid, *keys_of(relation.sid, part)) for part in lost],
        )
    _cut_staged(applier, left)
    applier.ranges = left
    applier.catalog_changed = True


def _meeting(ranges: Ranges, gap: Range) -> list[Range]:
    """The parts of a gap that the file owned until now: nothing lies in the others."""
    parts = ranges.base_parts(gap)
    return [Range(max(one.lo, gap.lo), min(one.hi, gap.hi)) for one in parts]


def _cut_staged(applier: Applier, left: Ranges) -> None:
    """Open large transactions lose the keys that were given up, lists and rows.

    Those whose outcome is known settle all of their keys, whoever owns them: their rows count.
    """
    db = applier.db
    ops = fetch(
        db,
        "SELECT o.number, o.seq, o.n, o.sid, o.kind, o.attnum FROM staged_ops o"
        " JOIN staged s ON s.number = o.number WHERE s.tau IS NULL"
        f" AND o.kind IN ({staging.PUT}, {staging.DELETE}, {staging.BIG})",
    )
    for number, seq, n, sid, kind, attnum in ops:
        if left.base_of(span(sid)) is not None:
            continue
        name = (number, seq, n)
        where = "WHERE number = ? AND seq = ? AND n = ?"
        keys = _decode_keys(fetch(db, f"SELECT keys FROM staged_ops {where}", name)[0][0])
        kept, lost = _split_keys(keys, left, sid)
        staging.delete_rows(db, applier.relations[sid], number, kind, attnum, lost)
        db.execute(
            f"UPDATE staged_ops SET keys = ?, count = ? {where}", (_encode(kept), len(kept), *name)
        )


def _split_keys(keys: list[bytes], left: Ranges, sid: int) -> tuple[list[bytes], list[bytes]]:
    """(keys inside, keys outside) of the ranges."""
    kept: list[bytes] = []
    lost: list[bytes] = []
    at = 0
    for one in left.base_parts(span(sid)):
        lo, hi = keys_of(sid, one.range)
        start = bisect_left(keys, lo)
        stop = len(keys) if hi is None else bisect_left(keys, hi)
        lost += keys[at:start]
        kept += keys[start:stop]
        at = stop
    return kept, lost + keys[at:]


def purge_slice(applier: Applier, budget_rows: int) -> bool:
    """Delete a slice of what was given up. False: nothing is left."""
    db = applier.db
    found = fetch(db, "SELECT id, sid, lo, hi FROM purge ORDER BY id LIMIT 1")
    if not found:
        return False
    number, sid, lo, hi = found[0]
    relation = applier.relations.get(sid)
    if relation is None:
        db.execute("DELETE FROM purge WHERE id = ?", (number,))
        return True
    end = slice_end(db, relation.table, lo, hi, budget_rows)
    delete_keys(applier, relation, lo, hi if end is None else end)
    if end is not None:
        db.execute("UPDATE purge SET lo = ? WHERE id = ?", (end, number))
        return True
    db.execute("DELETE FROM purge WHERE id = ?", (number,))
    if not applier.ranges.meets(span(sid)):
        _forget(applier, sid)
        applier.catalog_changed = True
    return True


def slice_end(
    db: apsw.Connection, table: str, lo: bytes, hi: bytes | None, rows: int
) -> bytes | None:
    """The key where a slice of about `rows` versions ends; None: the range has fewer."""
    where, values = _between(lo, hi)
    sql = f"SELECT k FROM {table} WHERE {where} AND k > ? ORDER BY k LIMIT 1 OFFSET {rows}"
    found = fetch(db, sql, (*values, lo))
    return found[0][0] if found else None


def _between(lo: bytes, hi: bytes | None) -> tuple[str, tuple[bytes, ...]]:
    return ("k >= ?", (lo,)) if hi is None else ("k >= ? AND k < ?", (lo, hi))


def delete_keys(applier: Applier, relation: Relation, lo: bytes, hi: bytes | None) -> None:
    """Remove all versions of the keys, counters included."""
    db = applier.db
    where, values = _between(lo, hi)
    live, dead = fetch(
        db,
        f"SELECT count(*) FILTER (WHERE {_LIVE}), count(*) FILTER (WHERE te < {TS_MAX} AND te > 0)"
        f" FROM {relation.table} WHERE {where}",
        values,
    )[0]
    db.execute(f"DELETE FROM {relation.table} WHERE {where}", values)
    db.execute(f"DELETE FROM big WHERE sid = {relation.sid} AND {where}", values)
    relation.rows = max(0, relation.rows - live)
    relation.dead = max(0, relation.dead - dead)
    relation.superseded = min(relation.superseded, relation.dead)
    applier.touched[relation.sid] = relation


def rewind(applier: Applier, state: State, tau: int) -> None:
    """Make the file what it was at `tau`: newer versions go, what they ended lives again.

    For settled files without open large transactions. The caller sets the positions back; applying
    the journal again is idempotent by tau. Raises BadRequest below the horizon, Corrupt.
    """
    db = applier.db
    if tau < state.horizon:
        raise BadRequest("versions that old are gone")
    if fetch(db, "SELECT 1 FROM staged LIMIT 1"):
        raise Corrupt("a file with staged rows cannot be rewound")
    if tau >= state.applied_tau:
        return
    for sid in sorted(r.sid for r in applier.relations.values() if r.born > tau):
        _forget(applier, sid)
    db.execute("UPDATE relations SET died = ? WHERE died > ?", (TS_MAX, tau))
    db.execute("DELETE FROM gc WHERE te > ?", (tau,))
    for relation in applier.relations.values():
        table = relation.table
        if relation.has_big:
            origin = "coalesce(x, ts)" if relation.origin else "ts"
            db.execute(
                f"DELETE FROM big WHERE sid = {relation.sid} AND (k, ts) IN"
                f" (SELECT k, {origin} FROM {table} WHERE ts > ?)",
                (tau,),
            )
        db.execute(f"DELETE FROM {table} WHERE ts > ?", (tau,))
        db.execute(f"UPDATE {table} SET te = {TS_MAX} WHERE te > ?", (tau,))
        recount(applier, relation)
    state.applied_tau = tau
    applier.catalog_changed = True


def _forget(applier: Applier, sid: int) -> None:
    """As if the relation had never been created: its CREATE comes again."""
    db = applier.db
    db.execute(f"DROP TABLE {applier.relations[sid].table}")
    for table in ("big", "columns", "relations"):
        db.execute(f"DELETE FROM {table} WHERE sid = ?", (sid,))
    applier.touched.pop(sid, None)
    del applier.relations[sid]


def recount(applier: Applier, relation: Relation) -> None:
    """The counters of a settled relation from its rows."""
    relation.rows, relation.dead, keys = fetch(
        applier.db,
        f"SELECT count(*) FILTER (WHERE te = {TS_MAX}), count(*) FILTER (WHERE te < {TS_MAX}),"
        f" count(DISTINCT k) FROM {relation.table}",
    )[0]
    relation.superseded = min(relation.dead, relation.rows + relation.dead - keys)
    applier.touched[relation.sid] = relation


def import_ranges(applier: Applier, state: State, source: Path) -> None:
    """Copy everything of another file, which shows the same tau, beside what is here.

    Both files are settled and have no open large transactions; theirs must not overlap. Rows are
    copied by SQLite. Raises BadRequest, Corrupt. Call it outside of a transaction that writes.
    """
    db = applier.db
    theirs = schema.load_state_of(db, "other")
    if theirs.applied_tau != state.applied_tau:
        raise BadRequest("the files do not show the same tau")
    if fetch(db, "SELECT 1 FROM staged LIMIT 1") or fetch(db, "SELECT 1 FROM other.staged LIMIT 1"):
        raise Corrupt(f"staged rows in {source.name} or here")
    if fetch(db, "SELECT 1 FROM other.purge LIMIT 1"):
        raise Corrupt(f"{source.name} still holds rows that it gave up")
    mine = list(applier.ranges.owned)
    added = [Owned(*row) for row in fetch(db, "SELECT lo, hi, base FROM other.ranges")]
    # Each range keeps its own base: reads below it are refused there, not in the others.
    bases = [
        Owned(one.lo, one.hi, max(one.base, horizon))
        for part, horizon in ((mine, state.horizon), (added, theirs.horizon))
        for one in part
    ]
    owned = sorted(bases, key=lambda one: one.lo)
    try:
        applier.ranges = Ranges(owned)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    schema.save_ranges(db, owned)
    for relation in relations.load_relations(db, database="other").values():
        if relation.died:
            _import_relation(applier, relation)
    db.execute(
        "INSERT INTO gc(te, sid, superseded, keys)"
        " SELECT te, sid, superseded, keys FROM other.gc ORDER BY id"
    )
    _sort_gc(db)
    state.horizon = min(state.horizon, theirs.horizon)
    for journal, n in theirs.positions.items():
        state.positions[journal] = min(n, state.positions.get(journal, 0))
    for journal in [j for j in state.positions if j not in theirs.positions]:
        state.positions[journal] = 0
    state.next_number = max(state.next_number, theirs.next_number)
    applier.catalog_changed = True


def take_slice(
    applier: Applier, state: State, source: Relation, lo: bytes, hi: bytes | None, base: int
) -> None:
    """Copy all versions of some keys of a relation from the attached file `other`, and own them.

    A step of a move inside one process, in the caller's transaction: both files have applied the
    same commits, and `state.applied_tau` says so, so that none of them is applied to the copies
    again. Neither file has staged rows. Raises BadRequest, Corrupt.
    """
    db, sid = applier.db, source.sid
    whole = span(sid)
    part = Owned(whole.lo + lo, whole.hi if hi is None else whole.lo + hi, base)
    if applier.ranges.meets(part.range):
        raise BadRequest("the file owns a part of the range already")
    mine = applier.relations.get(sid)
    if mine is None:
        mine = applier.relations[sid] = relations.adopt(db, source)
    # What an earlier move left here is old.
    delete_keys(applier, mine, lo, hi)
    columns = _same_columns(applier, mine, source)
    where, values = _between(lo, hi)
    db.execute(
        f"INSERT INTO {mine.table}({', '.join(to for to, _ in columns)})"
        f" SELECT {', '.join(of for _, of in columns)} FROM other.{source.table} WHERE {where}",
        values,
    )
    db.execute(f"INSERT INTO big SELECT * FROM other.big WHERE sid = {sid} AND {where}", values)
    _count_slice(applier, mine, lo, hi)
    owned = joined([*applier.ranges.owned, part])
    schema.save_ranges(db, owned)
    applier.ranges = Ranges(owned)
    applier.catalog_changed = True


def _same_columns(applier: Applier, mine: Relation, theirs: Relation) -> list[tuple[str, str]]:
    """(name here, name there) of all physical columns. Raises Corrupt."""
    db = applier.db
    if mine.columns.keys() != theirs.columns.keys():
        raise Corrupt(f"relation {mine.sid} has other columns in the other file")
    if theirs.origin and not mine.origin:
        relations.add_origin(db, mine)
    columns = [("k", "k"), ("ts", "ts"), ("te", "te")]
    for attnum, column in theirs.columns.items():
        if column.big and not mine.columns[attnum].big:
            relations.mark_big(db, mine, attnum)
        columns.append((mine.columns[attnum].name, column.name))
    if mine.origin:
        columns.append(("x", "x" if theirs.origin else "NULL"))
    return columns


def _count_slice(applier: Applier, relation: Relation, lo: bytes, hi: bytes | None) -> None:
    """Counters and the garbage queue for versions that have just come."""
    where, values = _between(lo, hi)
    table = relation.table
    live = fetch(
        applier.db, f"SELECT count(*) FROM {table} WHERE {where} AND te = {TS_MAX}", values
    )
    dead = fetch(applier.db, f"SELECT k, te FROM {table} WHERE {where} AND te < {TS_MAX}", values)
    relation.rows += live[0][0]
    relation.put_rows += live[0][0]
    relation.put_bytes += live[0][0] * ROW_BYTES
    relation.dead += len(dead)
    relation.superseded += len(dead)
    if dead:
        # Behind newer entries of the queue it only waits a little longer.
        keys = sorted({key for key, _ in dead})
        applier.db.execute(
            "INSERT INTO gc(te, sid, superseded, keys) VALUES(?, ?, 1, ?)",
            (max(te for _, te in dead), relation.sid, _encode(keys)),
        )
    applier.touched[relation.sid] = relation


def _sort_gc(db: apsw.Connection) -> None:
    """The queue is read by id and must ascend in te."""
    db.execute("CREATE TEMP TABLE queue AS SELECT te, sid, superseded, keys FROM gc ORDER BY te")
    db.execute("DELETE FROM gc")
    db.execute(
        "INSERT INTO gc(te, sid, superseded, keys)"
        " SELECT te, sid, superseded, keys FROM temp.queue ORDER BY rowid"
    )
    db.execute("DROP TABLE temp.queue")


def _import_relation(applier: Applier, theirs: Relation) -> None:
    db, sid = applier.db, theirs.sid
    mine = applier.relations.get(sid)
    if mine is not None and not mine.died:
        # It never came to be, or was given up.
        _forget(applier, sid)
        mine = None
    if mine is None:
        mine = applier.relations[sid] = relations.adopt(db, theirs)
    elif (mine.kind, mine.born, mine.died) != (theirs.kind, theirs.born, theirs.died):
        raise Corrupt(f"relation {sid} is not the same in both files")
    if theirs.origin and not mine.origin:
        relations.add_origin(db, mine)
    to, of = ["k", "ts", "te"], ["k", "ts", "te"]
    for attnum, column in theirs.columns.items():
        # A column that only one file has was added after this tau: its ADD comes again.
        if attnum not in mine.columns:
            continue
        if column.big and not mine.columns[attnum].big:
            relations.mark_big(db, mine, attnum)
        to.append(mine.columns[attnum].name)
        of.append(column.name)
    if mine.origin:
        to.append("x")
        of.append("x" if theirs.origin else "NULL")
    db.execute(
        f"INSERT INTO {mine.table}({', '.join(to)})"
        f" SELECT {', '.join(of)} FROM other.{theirs.table}"
    )
    db.execute(f"INSERT INTO big SELECT * FROM other.big WHERE sid = {sid}")
    mine.rows += theirs.rows
    mine.dead += theirs.dead
    mine.superseded += theirs.superseded
    mine.put_rows += theirs.put_rows
    mine.put_bytes += theirs.put_bytes
    applier.touched[sid] = mine
