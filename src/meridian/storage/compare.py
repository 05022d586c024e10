"""A storage file against what else knows its content: a checkpoint of it, and the journal.

A version of a row never changes after its commit, except that its end is written once. So every
version that the file and the other source both have must be the same, whatever came or went since;
no replay is needed, and no point in time. Everything runs in SQL, in slices, on an own read-only
connection: for a thread. Rows of large transactions are compared once they are settled, their
values above 2 KB only with checkpoints.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat
from operator import concat
from pathlib import Path
from typing import Any

import apsw

from meridian.storage import reading, schema
from meridian.storage.errors import Cancelled
from meridian.storage.relations import Relation, load_relations
from meridian.storage.sql import fetch
from meridian.storage.types import PROVISIONAL
from meridian.wire.ops import Big, Op, Put

EXAMPLES = 3
"""Keys named per damage."""
SLICE_ROWS = 4_096
CACHE_BYTES = 8 << 20
SUSPECTS = 256
REST_MAX_S = 0.2
WORK_S = 0.002


class Pace:
    """Rests between pieces of work, so that others get their share; shared by all of a pass."""

    def __init__(self, stop: Callable[[], bool], rest: int) -> None:
        self._stop = stop
        self._rest = rest
        self._since = time.monotonic()

    def step(self) -> bool:
        """After a piece of work: rests `rest` times as long as it took; True: stop."""
        spent = time.monotonic() - self._since
        if spent >= WORK_S:
            time.sleep(min(REST_MAX_S, spent * self._rest))
            self._since = time.monotonic()
        return self._stop()


class Comparison:
    """One file, read as it is now; `damages` says what differs."""

    def __init__(self, path: Path, pace: Pace) -> None:
        self.damages: list[str] = []
        self.versions = 0
        """Versions looked for; not all of them are still there."""
        self._pace = pace
        self._sql: dict[tuple[int, tuple[int, ...]], str | None] = {}
        self._suspects: dict[tuple[int, int, bytes], None] = {}
        """(sid, tau, key) of versions that differ from what an op of that commit wrote; a later op
        of the same commit may have written them again."""
        self._db = schema.connect_reader(path, cache_bytes=CACHE_BYTES)
        self._relations = load_relations(self._db)

    def close(self) -> None:
        """Ends the connection."""
        self._db.close(True)

    def finish(self) -> list[str]:
        """All damages, when everything was compared."""
        by_sid: dict[int, list[bytes]] = {}
        for sid, _, key in self._suspects:
            by_sid.setdefault(sid, []).append(key)
        for sid, keys in sorted(by_sid.items()):
            what = f"relation {sid}: a version differs from the journal's"
            self._found(what, ((key,) for key in keys))
        return self.damages

    def _pause(self) -> None:
        """Lets others work. Raises Cancelled."""
        if self._pace.step():
            raise Cancelled()

    def _found(self, what: str, keys: Iterator[Any]) -> None:
        some = [row[0] for row in islice(keys, EXAMPLES + 1)]
        if some:
            shown = ", ".join(bytes(key).hex() for key in some[:EXAMPLES])
            rest = ", ..." if len(some) > EXAMPLES else ""
            self.damages.append(f"{what}: {shown}{rest}")

    # A checkpoint

    def with_checkpoint(self, copy: Path) -> None:
        """Against an earlier copy of the file. Raises Cancelled, Failed."""
        try:
            self._db.execute("ATTACH ? AS copy", (str(copy),)).fetchall()
            try:
                theirs = load_relations(self._db, database="copy")
                for sid in sorted(self._relations.keys() & theirs.keys()):
                    self._relation(self._relations[sid], theirs[sid])
                self._big_values()
            finally:
                self._db.execute("DETACH copy").fetchall()
        except apsw.Error as error:
            raise reading.translate(error) from error

    def _relation(self, relation: Relation, theirs: Relation) -> None:
        names = [
            column.name
            for attnum, column in sorted(relation.columns.items())
            if attnum in theirs.columns
        ]
        differs = " OR ".join(f"l.{name} IS NOT c.{name}" for name in names)
        differs = f"({differs}) OR " if differs else ""
        sql = (
            f"SELECT c.k FROM copy.{relation.table} c JOIN main.{relation.table} l"
            f" ON l.k = c.k AND l.ts = c.ts WHERE c.k >= ?1 AND (?2 IS NULL OR c.k < ?2)"
            f" AND c.ts < {PROVISIONAL}"
            f" AND ({differs}(c.te < {PROVISIONAL} AND l.te <> c.te))"
        )
        lo: bytes | None = b""
        while lo is not None:
            end = fetch(
                self._db,
                f"SELECT k FROM copy.{relation.table} WHERE k > ? ORDER BY k"
                f" LIMIT 1 OFFSET {SLICE_ROWS}",
                (lo,),
            )
            hi: bytes | None = end[0][0] if end else None
            what = f"relation {relation.sid}: a version differs from the checkpoint's"
            self._found(what, self._db.execute(sql, (lo, hi)))
            self.versions += SLICE_ROWS
            lo = hi
            self._pause()

    def _big_values(self) -> None:
        sql = (
            "SELECT c.k FROM copy.big c JOIN main.big l ON l.sid = c.sid AND l.k = c.k"
            " AND l.ts = c.ts AND l.attnum = c.attnum WHERE c.sid = ? AND l.v IS NOT c.v"
        )
        for (sid,) in fetch(self._db, "SELECT DISTINCT sid FROM copy.big"):
            what = f"relation {sid}: a big value differs from the checkpoint's"
            self._found(what, self._db.execute(sql, (sid,)))
            self._pause()

    # The journal

    def with_ops(self, tau: int, ops: Sequence[Op]) -> None:
        """Against what a durable commit at `tau` wrote. Raises Cancelled, Failed."""
        try:
            for op in ops:
                if isinstance(op, Put):
                    self._put(op, tau)
                elif isinstance(op, Big):
                    self._big(op, tau)
        except apsw.Error as error:
            raise reading.translate(error) from error
        self._pause()

    def _put(self, op: Put, tau: int) -> None:
        sql = self._put_sql(op)
        if sql is None:
            return
        self.versions += len(op.keys)
        if self._suspects:
            for suspect in list(self._suspects):
                if suspect[:2] == (op.sid, tau) and _holds(op.keys, suspect[2]):
                    del self._suspects[suspect]
        values = map(concat, zip(op.keys, repeat(tau)), map(tuple, op.rows))
        for (key,) in islice(self._db.executemany(sql, values), SUSPECTS):
            if len(self._suspects) < SUSPECTS:
                self._suspects[op.sid, tau, key] = None

    def _put_sql(self, op: Put) -> str | None:
        """None: the relation, or a column, is not in this file (any more)."""
        key = op.sid, tuple(op.attnums)
        if key not in self._sql:
            relation = self._relations.get(op.sid)
            if relation is None or any(a not in relation.columns for a in op.attnums):
                self._sql[key] = None
            else:
                names = [relation.columns[attnum].name for attnum in op.attnums]
                differs = " OR ".join(f"{name} IS NOT ?" for name in names) or "0"
                self._sql[key] = (
                    f"SELECT k FROM {relation.table} WHERE k = ? AND ts = ? AND ({differs})"
                )
        return self._sql[key]

    def _big(self, op: Big, tau: int) -> None:
        sql = "SELECT k FROM big WHERE sid = ? AND k = ? AND ts = ? AND attnum = ? AND v IS NOT ?"
        what = f"relation {op.sid}: a big value differs from the journal's"
        values = zip(repeat(op.sid), op.keys, repeat(tau), repeat(op.attnum), op.values)
        self._found(what, self._db.executemany(sql, values))


def _holds(keys: Sequence[bytes], key: bytes) -> bool:
    at = bisect_left(keys, key)
    return at < len(keys) and keys[at] == key
