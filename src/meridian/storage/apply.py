"""Applying durable commits: deterministic, idempotent, no Python per row (design section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, repeat
from operator import concat, lt

import apsw
import msgspec

from meridian.limits import NOTIFY_CHANNEL_BYTES, NOTIFY_PAYLOAD_BYTES
from meridian.storage import relations, staging
from meridian.storage.errors import BadWriteSet, Corrupt
from meridian.storage.relations import Overlay, Relation
from meridian.storage.types import NEVER, PROVISIONAL, TS_MAX
from meridian.wire import ops
from meridian.wire.ops import (
    Add,
    Alter,
    Big,
    Check,
    Create,
    Delete,
    Drop,
    Lock,
    Notify,
    Op,
    Put,
    Share,
)
from meridian.wire.ranges import Ranges, cut_ops

encode = msgspec.msgpack.Encoder().encode

ATTNUM_MAX = 1600
"""As in PostgreSQL; SQLite takes 2,000 columns."""
STATEMENTS_MAX = 10_000
SAMPLED_ROWS = 64
"""Rows measured per op for the size estimate."""

_BIG = "INSERT OR REPLACE INTO big(sid, k, ts, attnum, v) VALUES(?, ?, ?, ?, ?)"


def check_ops(chunk: Sequence[Op]) -> None:
    """Refuse a write set that storage could not apply; call it before the journal sees the chunk.

    Raises BadWriteSet. Costs C loops only. Existence of relations is the catalog's business.
    """
    for op in chunk:
        if isinstance(op, (Put, Delete, Big, Lock, Share, Check)):
            _check_keys(op)
        if isinstance(op, Put):
            _check_rows(op)
        elif isinstance(op, Big) and (
            len(op.values) != len(op.keys) or set(map(type, op.values)) - {bytes}
        ):
            raise BadWriteSet("BIG values and keys are not parallel byte strings")
        elif isinstance(op, Create):
            _check_create(op)
        elif isinstance(op, Add):
            _check_column(op.attnum, op.column_class)
            if not isinstance(op.default, (int, bytes, type(None))):
                raise BadWriteSet("the default of a column is nil, an int or bin")
            if isinstance(op.default, int) and not -TS_MAX - 1 <= op.default <= TS_MAX:
                raise BadWriteSet("an integer exceeds int64")
        elif isinstance(op, Notify) and (
            not 0 < len(op.channel) <= NOTIFY_CHANNEL_BYTES
            or len(op.payload) > NOTIFY_PAYLOAD_BYTES
        ):
            raise BadWriteSet("channel or payload of a notification is too long")


def _check_create(op: Create) -> None:
    if not 0 < op.sid <= TS_MAX or op.kind not in (0, 1, 2):
        raise BadWriteSet("unknown kind of relation or impossible storage id")
    if len({attnum for attnum, _ in op.columns}) != len(op.columns):
        raise BadWriteSet("a column is named twice")
    for attnum, column_class in op.columns:
        _check_column(attnum, column_class)


def _check_column(attnum: int, column_class: int) -> None:
    if not 0 <= attnum <= ATTNUM_MAX or column_class not in (1, 2, 3, 4):
        raise BadWriteSet("impossible column number or class")


def _check_keys(op: Put | Delete | Big | Lock | Share | Check) -> None:
    keys = op.keys
    if len(keys) == 1 and type(keys[0]) is bytes:
        return
    if set(map(type, keys)) - {bytes}:
        raise BadWriteSet("keys are byte strings")
    if not all(map(lt, keys, islice(keys, 1, None))):
        raise BadWriteSet("keys are not strictly ascending")


_VALUE_TYPES = {int, bytes, type(None), bool, str}
# Bound methods of types: filters that run in C.
_is_int = int.__instancecheck__
_is_str = str.__instancecheck__


def _check_rows(op: Put) -> None:
    if len(op.rows) != len(op.keys) or len(set(op.attnums)) != len(op.attnums):
        raise BadWriteSet("rows, keys and attnums do not match")
    if set(map(len, op.rows)) - {len(op.attnums)}:
        raise BadWriteSet("a row has another number of columns than its op")
    # The values of one row are looked at together, those of many rows by column.
    for column in op.rows if len(op.rows) == 1 else zip(*op.rows, strict=True):
        types = set(map(type, column))
        if types - _VALUE_TYPES:
            raise BadWriteSet("a value is neither nil, int nor bin")
        if str in types and set(filter(_is_str, column)) != {"b"}:
            raise BadWriteSet("the only string value is the marker of a big value")
        # msgpack has no integers below int64.
        if int in types and max(column if types == {int} else filter(_is_int, column)) > TS_MAX:
            raise BadWriteSet("an integer exceeds int64")


class Applier:
    """Writes ops into the file inside the caller's SQLite transaction.

    Keeps the image of the relations in step; after a rollback the owner reloads it.
    """

    def __init__(
        self,
        db: apsw.Connection,
        known: dict[int, Relation],
        overlay: Overlay,
        ranges: Ranges,
    ) -> None:
        self.db = db
        self.ranges = ranges
        self.relations = known
        self.overlay = overlay
        self.touched: dict[int, Relation] = {}
        self.catalog_changed = False
        self._insert_sql: dict[tuple[int, tuple[int, ...]], str] = {}

    def relation(self, sid: int) -> Relation:
        """A relation that rows or DDL name. Raises Corrupt: the catalog let a stale writer pass."""
        relation = self.relations.get(sid)
        if relation is None:
            raise Corrupt(f"a durable commit names the unknown storage id {sid}")
        return relation

    def own(self, chunk: Sequence[Op]) -> Sequence[Op]:
        """The share of a write set that lies in the file's ranges."""
        return chunk if self.ranges.whole else cut_ops(chunk, self.ranges)

    def commit(self, tau: int, chunk: Sequence[Op]) -> None:
        """All ops of one small transaction; CREATE, ADD and DROP first."""
        assert 0 < tau < NEVER, tau
        chunk = self.own(chunk)
        for op in chunk:
            if isinstance(op, (Create, Add, Drop)):
                self.ddl(op, tau)
        for op in chunk:
            if isinstance(op, Put):
                self._put(op, tau)
            elif isinstance(op, Delete):
                self._delete(op, tau)
            elif isinstance(op, Big):
                self.big(op, tau)
            elif isinstance(op, Alter):
                relations.set_complete(self.db, self.relation(op.sid), op.flags)
                self.catalog_changed = True

    def ddl(self, op: Create | Add | Drop, tau: int) -> None:
        """Catalog of storage. `tau` may be provisional for CREATE and ADD."""
        self.catalog_changed = True
        self._insert_sql.clear()
        if isinstance(op, Create):
            if op.sid in self.relations:
                raise Corrupt(f"storage id {op.sid} is created twice")
            self.relations[op.sid] = relations.create(self.db, op, tau)
        elif isinstance(op, Add):
            relations.add_column(self.db, self.relation(op.sid), op)
        else:
            self.end_relation(op.sid, tau)

    def end_relation(self, sid: int, tau: int) -> None:
        """DROP: invisible from tau on."""
        relation = self.relation(sid)
        relation.died = min(relation.died, tau)
        self.db.execute("UPDATE relations SET died = ? WHERE sid = ?", (relation.died, sid))
        self.catalog_changed = True

    def _put(self, op: Put, tau: int) -> None:
        relation = self.relation(op.sid)
        if not op.flags & ops.FRESH:
            self.close(relation, tau, op.keys, superseded=True)
        elif op.sid in self.overlay:
            self._settle(relation, op.keys)
        self.insert(relation, op, tau)
        relation.rows += len(op.keys)

    def insert(self, relation: Relation, op: Put, ts: int) -> None:
        """New versions at ts, tau or provisional."""
        stamped = zip(op.keys, repeat(ts))
        self.db.executemany(self._insert(relation, op.attnums), map(concat, stamped, op.rows))
        sampled = op.rows[:: max(1, len(op.rows) // SAMPLED_ROWS)]
        if sampled:
            size_bytes = len(encode(sampled)) + sum(map(len, op.keys[: len(sampled)]))
            relation.put_bytes += size_bytes * len(op.rows) // len(sampled)
            relation.put_rows += len(op.rows)
        self.touched[relation.sid] = relation

    def _insert(self, relation: Relation, attnums: tuple[int, ...]) -> str:
        cached = self._insert_sql.get((relation.sid, attnums))
        if cached is None:
            missing = [a for a in attnums if a not in relation.columns]
            if missing:
                raise Corrupt(f"relation {relation.sid} has no column {missing[0]}")
            names = "".join(f", {relation.columns[a].name}" for a in attnums)
            marks = ", ?" * len(attnums)
            cached = (
                f"INSERT OR REPLACE INTO {relation.table}(k, ts, te{names})"
                f" VALUES(?, ?, {TS_MAX}{marks})"
            )
            if len(self._insert_sql) > STATEMENTS_MAX:
                self._insert_sql.clear()
            self._insert_sql[relation.sid, attnums] = cached
        return cached

    def close(self, relation: Relation, tau: int, keys: list[bytes], *, superseded: bool) -> None:
        """End the current versions of keys at tau and queue them for collection."""
        if relation.sid in self.overlay:
            self._settle(relation, keys)
        before = self.db.total_changes()
        self.db.executemany(
            f"UPDATE {relation.table} SET te = ?1 WHERE k = ?2 AND ts = (SELECT v.ts FROM"
            f" {relation.table} v WHERE v.k = ?2 AND v.ts < {PROVISIONAL}"
            f" AND v.te = {TS_MAX} LIMIT 1)",
            zip(repeat(tau), keys),
        )
        count = self.db.total_changes() - before
        self.closed(relation, tau, keys, count, superseded=superseded)

    def _settle(self, relation: Relation, keys: list[bytes]) -> None:
        """Give resolved staged rows of these keys their tau before a newer version comes.

        Invariant for reads: key by key, versions without a number are older than those with one.
        """
        for staged in self.overlay[relation.sid]:
            staging.settle_keys(self, relation, staged, keys)

    def closed(
        self, relation: Relation, tau: int, keys: list[bytes], count: int, *, superseded: bool
    ) -> None:
        """Account for `count` versions of `keys` that ended at tau."""
        if count:
            relation.rows -= count
            relation.dead += count
            relation.superseded += count if superseded else 0
            self.db.execute(
                "INSERT INTO gc(te, sid, superseded, keys) VALUES(?, ?, ?, ?)",
                (tau, relation.sid, int(superseded), encode(keys)),
            )
        self.touched[relation.sid] = relation

    def _delete(self, op: Delete, tau: int) -> None:
        self.close(self.relation(op.sid), tau, op.keys, superseded=False)

    def big(self, op: Big, ts: int) -> None:
        """Values above 2,048 bytes, beside their rows."""
        relation = self.relation(op.sid)
        column = relation.columns.get(op.attnum)
        if column is None:
            raise Corrupt(f"relation {op.sid} has no column {op.attnum}")
        if not column.big:
            relations.mark_big(self.db, relation, op.attnum)
            self.catalog_changed = True
        if ts >= PROVISIONAL and not relation.origin:
            relations.add_origin(self.db, relation)
            self.catalog_changed = True
        self.db.executemany(
            _BIG, zip(repeat(op.sid), op.keys, repeat(ts), repeat(op.attnum), op.values)
        )
        relation.put_bytes += sum(map(len, op.values))
        self.touched[relation.sid] = relation

    def save_counters(self) -> None:
        """Counters of the touched relations, in this transaction."""
        for relation in self.touched.values():
            relations.save_counters(self.db, relation)
        self.touched.clear()
