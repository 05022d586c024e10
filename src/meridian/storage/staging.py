"""Large transactions: rows written before their outcome is known (design section 8).

A staged row has ts = its transaction's *number*, above every tau, and te = max; a staged DELETE is
a row with te = 0 (a tombstone). Neither touches older versions, so that a transaction that never
commits leaves nothing to undo but its own rows, and small commits of other transactions need not
know about it. `staged.tau` is NULL until the outcome is known, -1 for "never", else the tau.

Resolving is one row. From then on reads hide what the numbers' rows supersede (query.py). Settling
walks the recorded key lists in slices: it ends the older version, then turns number into tau; both
in one SQLite transaction and only while the staged row is still there, hence idempotent. A number
is never used twice in a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING

import apsw
import msgspec

from meridian.storage import relations
from meridian.storage.errors import Corrupt
from meridian.storage.relations import Relation, Staged
from meridian.storage.sql import fetch
from meridian.storage.types import NEVER, PROVISIONAL, TS_MAX
from meridian.wire import ops
from meridian.wire.ops import Add, Big, Create, Delete, Drop, Op, Put

if TYPE_CHECKING:
    from meridian.storage.apply import Applier
    from meridian.storage.schema import State

PUT, DELETE, CREATE, ADD, DROP, BIG = 1, 2, 6, 7, 8, 5
DISCARDED = -1

_encode = msgspec.msgpack.Encoder().encode
_decode_keys = msgspec.msgpack.Decoder(list[bytes]).decode


def stage(applier: Applier, state: State, txid: bytes, seq: int, chunk: Sequence[Op]) -> None:
    """Write one chunk under the transaction's number. Chunks come in order; repeats are skipped."""
    db = applier.db
    found = fetch(db, "SELECT number, tau, chunks FROM staged WHERE txid = ?", (txid,))
    if found:
        number, tau, chunks = found[0]
    elif seq > 0:
        # Read again after its outcome was applied and settled: chunks come in order, so its row
        # was here. A chunk that is really missing shows when the transaction is resolved.
        return
    else:
        number, tau, chunks = PROVISIONAL + state.next_number, None, 0
        state.next_number += 1
        db.execute("INSERT INTO staged VALUES(?, ?, NULL, 0)", (number, txid))
    if tau is not None or seq < chunks:
        return
    if seq != chunks:
        raise Corrupt(f"chunk {seq} of a large transaction follows chunk {chunks - 1}")
    ordered = sorted(applier.own(chunk), key=lambda op: not isinstance(op, (Create, Add, Drop)))
    for n, op in enumerate(ordered):
        _stage_op(applier, number, seq, n, op)
    db.execute("UPDATE staged SET chunks = ? WHERE number = ?", (seq + 1, number))


def _stage_op(applier: Applier, number: int, seq: int, n: int, op: Op) -> None:
    record: tuple[int, int, int, int, list[bytes]]
    if isinstance(op, Put):
        applier.insert(applier.relation(op.sid), op, number)
        record = op.sid, PUT, not op.flags & ops.FRESH, 0, op.keys
    elif isinstance(op, Delete):
        relation = applier.relation(op.sid)
        applier.db.executemany(
            f"INSERT OR REPLACE INTO {relation.table}(k, ts, te) VALUES(?, ?, 0)",
            zip(op.keys, repeat(number)),
        )
        record = op.sid, DELETE, True, 0, op.keys
    elif isinstance(op, Big):
        applier.big(op, number)
        record = op.sid, BIG, False, op.attnum, op.keys
    elif isinstance(op, Create):
        applier.ddl(op, number)
        record = op.sid, CREATE, False, 0, []
    elif isinstance(op, Add):
        applier.ddl(op, number)
        name = applier.relation(op.sid).columns[op.attnum].name
        record = op.sid, ADD, False, op.attnum, [name.encode(), bytes((op.column_class,))]
    elif isinstance(op, Drop):
        applier.relation(op.sid)
        record = op.sid, DROP, False, 0, []
    else:
        return
    sid, kind, closes, attnum, keys = record
    applier.db.execute(
        "INSERT INTO staged_ops VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (number, seq, n, sid, kind, int(closes), attnum, len(keys), _encode(keys)),
    )


def resolve(applier: Applier, txid: bytes, chunks: int, tau: int) -> None:
    """The transaction committed at tau: visible from here on. Raises Corrupt on missing chunks."""
    assert 0 < tau < NEVER, tau
    db = applier.db
    found = fetch(db, "SELECT number, tau, chunks FROM staged WHERE txid = ?", (txid,))
    if not found or found[0][2] != chunks or found[0][1] is not None:
        raise Corrupt(f"large transaction {txid.hex()} was not staged completely")
    number = found[0][0]
    db.execute("UPDATE staged SET tau = ? WHERE number = ?", (tau, number))
    rows: dict[int, int] = {}
    # Only ADD needs its name here: the key lists of all chunks are never read at once.
    for sid, kind, attnum, count, name in fetch(
        db,
        "SELECT sid, kind, attnum, count, CASE kind WHEN 7 THEN keys END FROM staged_ops"
        " WHERE number = ? AND kind IN (1, 7, 8) ORDER BY seq, n",
        (number,),
    ):
        if sid not in applier.relations and not applier.ranges.whole:
            # Staged before the file gave up the relation's range.
            continue
        if kind == DROP:
            applier.end_relation(sid, tau)
        elif kind == ADD:
            column, column_class = _decode_keys(name)
            relation = applier.relation(sid)
            relations.set_column(db, relation, attnum, column.decode(), column_class[0])
        else:
            rows[sid] = rows.get(sid, 0) + count
    for sid, count in rows.items():
        relation = applier.relation(sid)
        relation.rows += count
        applier.touched[sid] = relation
    db.execute("UPDATE relations SET born = ? WHERE born = ?", (tau, number))
    for relation in applier.relations.values():
        if relation.born == number:
            relation.born = tau
    applier.catalog_changed = True


def discard(applier: Applier, txid: bytes) -> None:
    """The transaction will never commit. Unknown and settled ones are fine."""
    db = applier.db
    found = fetch(db, "SELECT number FROM staged WHERE txid = ? AND tau IS NULL", (txid,))
    if not found:
        return
    number = found[0][0]
    db.execute("UPDATE staged SET tau = ? WHERE number = ?", (DISCARDED, number))
    for relation in applier.relations.values():
        if relation.born == number:
            relation.born, relation.died = NEVER, 0
    db.execute("UPDATE relations SET born = ?, died = 0 WHERE born = ?", (NEVER, number))
    for sid, attnum, encoded in fetch(
        db, "SELECT sid, attnum, keys FROM staged_ops WHERE number = ? AND kind = ?", (number, ADD)
    ):
        if sid not in applier.relations:
            continue
        relations.forget_column(db, applier.relations[sid], attnum, _decode_keys(encoded)[0])
    applier.catalog_changed = True


def settle_keys(applier: Applier, relation: Relation, staged: Staged, keys: list[bytes]) -> None:
    """Give the staged rows of these keys their tau and end what they supersede."""
    db, table, number, tau = applier.db, relation.table, staged.number, staged.tau
    if staged.closes:
        before = db.total_changes()
        db.executemany(
            f"UPDATE {table} SET te = ?1 WHERE k = ?2 AND ts = (SELECT v.ts FROM {table} v"
            f" WHERE v.k = ?2 AND v.ts < {PROVISIONAL} AND v.te = {TS_MAX} LIMIT 1)"
            f" AND EXISTS (SELECT 1 FROM {table} s WHERE s.k = ?2 AND s.ts = {number})",
            zip(repeat(tau), keys),
        )
        count = db.total_changes() - before
        # Whether by PUT or DELETE is not known here; most large transactions update.
        applier.closed(relation, tau, keys, count, superseded=True)
        db.executemany(f"DELETE FROM {table} WHERE k = ? AND ts = {number} AND te = 0", zip(keys))
    origin = ", x = ts" if relation.origin else ""
    db.executemany(
        f"UPDATE {table} SET ts = ?1{origin} WHERE k = ?2 AND ts = {number}",
        zip(repeat(tau), keys),
    )


class Settler:
    """Walks resolved and discarded transactions in slices; the place is only an optimisation."""

    def __init__(self) -> None:
        self._place: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._keys: list[bytes] = []

    def slice(self, applier: Applier, budget_rows: int) -> bool:
        """One slice, inside the caller's transaction. True: there was something to do.

        Resolved transactions go in the order of their taus: settling a key relies on it.
        """
        db = applier.db
        found = fetch(
            db, "SELECT number, tau FROM staged WHERE tau IS NOT NULL ORDER BY tau LIMIT 1"
        )
        if not found:
            return False
        number, tau = found[0]
        pending = fetch(
            db,
            "SELECT seq, n, sid, kind, closes, attnum FROM staged_ops WHERE number = ?"
            " ORDER BY seq, n LIMIT 1",
            (number,),
        )
        if not pending:
            db.execute("DELETE FROM staged WHERE number = ?", (number,))
            applier.catalog_changed = True
            return True
        seq, n, sid, kind, closes, attnum = pending[0]
        if self._place[:3] != (number, seq, n):
            self._load(db, number, seq, n)
        keys, start = self._keys, self._place[3]
        part = keys[start : start + budget_rows]
        relation = applier.relations.get(sid)
        if relation is not None and part:
            self._one(applier, relation, Staged(number, tau, bool(closes)), kind, attnum, part)
        self._place = (number, seq, n, start + len(part))
        if start + len(part) >= len(keys):
            db.execute(
                "DELETE FROM staged_ops WHERE number = ? AND seq = ? AND n = ?", (number, seq, n)
            )
        return True

    def _load(self, db: apsw.Connection, number: int, seq: int, n: int) -> None:
        """The key list of the next op, kept while its slices are walked."""
        found = fetch(
            db,
            "SELECT keys FROM staged_ops WHERE number = ? AND seq = ? AND n = ?",
            (number, seq, n),
        )
        self._keys = _decode_keys(found[0][0])
        self._place = (number, seq, n, 0)

    def _one(
        self,
        applier: Applier,
        relation: Relation,
        staged: Staged,
        kind: int,
        attnum: int,
        keys: list[bytes],
    ) -> None:
        if staged.tau != DISCARDED:
            if kind in (PUT, DELETE):
                settle_keys(applier, relation, staged, keys)
        else:
            delete_rows(applier.db, relation, staged.number, kind, attnum, keys)


def delete_rows(
    db: apsw.Connection, relation: Relation, number: int, kind: int, attnum: int, keys: list[bytes]
) -> None:
    """Remove what one staged op wrote for these keys."""
    if kind == BIG:
        db.executemany(
            "DELETE FROM big WHERE sid = ? AND k = ? AND ts = ? AND attnum = ?",
            zip(repeat(relation.sid), keys, repeat(number), repeat(attnum)),
        )
    elif kind in (PUT, DELETE):
        db.executemany(f"DELETE FROM {relation.table} WHERE k = ? AND ts = {number}", zip(keys))
