"""Garbage collection by time alone (C6), in small slices.

The queue holds, per op that ended versions, their keys and the te. A version may go once te <=
horizon: reads at or above the horizon have tau >= te. Dropped relations go row by row, then whole.
"""

from __future__ import annotations

from itertools import repeat

import msgspec

from meridian.storage.apply import Applier
from meridian.storage.relations import Relation
from meridian.storage.sql import fetch

_decode_keys = msgspec.msgpack.Decoder(list[bytes]).decode
_encode = msgspec.msgpack.Encoder().encode

DROP_AT_ONCE_ROWS = 1000


def slice_versions(applier: Applier, horizon: int, budget_rows: int) -> bool:
    """Remove dead versions of about `budget_rows` keys. False: nothing may go now."""
    db = applier.db
    worked = False
    while budget_rows > 0:
        head = fetch(db, "SELECT id, te, sid, superseded, keys FROM gc ORDER BY id LIMIT 1")
        if not head or head[0][1] > horizon:
            return worked
        worked = True
        number, te, sid, superseded, encoded = head[0]
        keys = _decode_keys(encoded)
        relation = applier.relations.get(sid)
        if relation is not None:
            count = _remove(applier, relation, te, keys[:budget_rows])
            relation.dead = max(0, relation.dead - count)
            relation.superseded = max(0, relation.superseded - count * superseded)
        if relation is None or len(keys) <= budget_rows:
            db.execute("DELETE FROM gc WHERE id = ?", (number,))
        else:
            db.execute("UPDATE gc SET keys = ? WHERE id = ?", (_encode(keys[budget_rows:]), number))
        budget_rows -= len(keys)
    return worked


def _remove(applier: Applier, relation: Relation, te: int, keys: list[bytes]) -> int:
    """Versions of these keys that ended by te; returns their number."""
    db, table = applier.db, relation.table
    if relation.has_big:
        origin = "coalesce(x, ts)" if relation.origin else "ts"
        db.executemany(
            f"DELETE FROM big WHERE sid = {relation.sid} AND k = ?1 AND ts IN"
            f" (SELECT {origin} FROM {table} WHERE k = ?1 AND ts <= ?2 AND te <= ?2)",
            zip(keys, repeat(te)),
        )
    before = db.total_changes()
    db.executemany(
        f"DELETE FROM {table} WHERE k = ?1 AND ts <= ?2 AND te <= ?2", zip(keys, repeat(te))
    )
    applier.touched[relation.sid] = relation
    return db.total_changes() - before


def slice_dropped(applier: Applier, horizon: int, budget_rows: int) -> bool:
    """Remove a slice of one dropped relation whose end no read may see any more."""
    gone = min((r.sid for r in applier.relations.values() if r.died <= horizon), default=None)
    if gone is None:
        return False
    relation = applier.relations[gone]
    if _delete_slice(applier, "big", f"sid = {gone}", budget_rows):
        return True
    if _delete_slice(applier, relation.table, "1", max(budget_rows, DROP_AT_ONCE_ROWS)):
        return True
    db = applier.db
    db.execute(f"DROP TABLE {relation.table}")
    db.execute("DELETE FROM columns WHERE sid = ?", (gone,))
    db.execute("DELETE FROM relations WHERE sid = ?", (gone,))
    applier.touched.pop(gone, None)
    del applier.relations[gone]
    applier.catalog_changed = True
    return True


def _delete_slice(applier: Applier, table: str, where: str, rows: int) -> bool:
    """Delete the first `rows` rows of a key range. False: fewer than that are left."""
    db = applier.db
    end = fetch(db, f"SELECT k FROM {table} WHERE {where} ORDER BY k LIMIT 1 OFFSET {rows}")
    if end:
        db.execute(f"DELETE FROM {table} WHERE {where} AND k <= ?", (end[0][0],))
    elif table == "big":
        before = db.total_changes()
        db.execute(f"DELETE FROM big WHERE {where}")
        return db.total_changes() > before
    return bool(end)
