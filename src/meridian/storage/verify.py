"""`meridian verify` of a replica file: what must hold between its tables, in SQL.

Damages are contradictions. Notes are facts that only the catalog can judge, such as rows without
an entry in an index that was not declared COMPLETE (partial).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw
import msgspec

from meridian.storage import reading, schema
from meridian.storage.errors import UnknownRelation
from meridian.storage.query import Source, overlay_at, relation_at
from meridian.storage.relations import Relation, Snapshot, load_snapshot
from meridian.storage.sql import fetch
from meridian.storage.types import PROVISIONAL, TS_MAX
from meridian.wire.ops import KIND_INDEX
from meridian.wire.ranges import span

EXAMPLES = 3
"""Keys named per damage."""
CACHE_BYTES = 32 << 20
PROGRESS_STEPS = 50_000


class Report(msgspec.Struct):
    """What `verify` found. No damages: the file is sound."""

    applied_tau: int = 0
    relations: int = 0
    rows: int = 0
    damages: list[str] = []
    notes: list[str] = []


def run(path: Path, stop: Callable[[], bool]) -> Report:
    """Check a file inside one SQLite snapshot. Raises Cancelled, Failed."""
    try:
        db = schema.connect_reader(path, cache_bytes=CACHE_BYTES)
        try:
            db.set_progress_handler(stop, PROGRESS_STEPS)
            db.execute("BEGIN")
            return _Verifier(db).report()
        finally:
            db.close(True)
    except apsw.CorruptError as error:
        return Report(damages=[f"the file is damaged: {error}"])
    except apsw.Error as error:
        raise reading.translate(error) from error


class _Verifier:
    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        self.result = Report()

    def report(self) -> Report:
        """Everything, in one pass per relation."""
        for (line,) in fetch(self.db, "PRAGMA integrity_check(20)"):
            if line != "ok":
                self.result.damages.append(f"SQLite: {line}")
        state = schema.load_state(self.db)
        self.result.applied_tau = state.applied_tau
        tau = max(state.applied_tau, state.horizon)
        snapshot = load_snapshot(self.db, ())
        tables = {row[0] for row in fetch(self.db, "SELECT name FROM sqlite_schema")}
        for sid in sorted(snapshot.relations):
            if snapshot.relations[sid].table not in tables:
                self.result.damages.append(f"relation {sid}: its table is missing")
                del snapshot.relations[sid]
        for _, relation in sorted(snapshot.relations.items()):
            self.result.relations += 1
            self._versions(relation)
            self._big(relation)
            if relation.visible(tau):
                self._live(snapshot, relation, tau)
                if (
                    relation.kind == KIND_INDEX
                    and relation.table_sid
                    and self._here(snapshot, relation)
                ):
                    self._index(snapshot, relation, tau)
        self._orphans(snapshot)
        return self.result

    @staticmethod
    def _here(snapshot: Snapshot, index: Relation) -> bool:
        """Only a file with the whole index and the whole table can compare them."""
        owned = snapshot.ranges
        return all(owned.base_of(span(sid)) is not None for sid in (index.sid, index.table_sid))

    def _damage(self, what: str, sql: str, values: tuple[int, ...] = ()) -> None:
        """Run a query for offending keys; name the first few."""
        keys = [row[0] for row in fetch(self.db, f"{sql} LIMIT {EXAMPLES + 1}", values)]
        if keys:
            shown = ", ".join(
                key.hex() if isinstance(key, bytes) else repr(key) for key in keys[:EXAMPLES]
            )
            rest = ", ..." if len(keys) > EXAMPLES else ""
            self.result.damages.append(f"{what}: {shown}{rest}")

    def _versions(self, relation: Relation) -> None:
        """Versions of a key never overlap; keys are byte strings; numbers are known."""
        table, name = relation.table, f"relation {relation.sid}"
        self._damage(
            f"{name}: overlapping versions",
            "SELECT DISTINCT k FROM (SELECT k, te, lead(ts) OVER (PARTITION BY k ORDER BY ts) AS n"
            f" FROM {table} WHERE ts < {PROVISIONAL} AND te > ts) WHERE n < te",
        )
        self._damage(
            f"{name}: a key is no byte string",
            f"SELECT x'' FROM {table}"
            " WHERE typeof(k) <> 'blob' OR typeof(ts) <> 'integer'"
            " OR typeof(te) <> 'integer'",
        )
        self._damage(
            f"{name}: staged rows of an unknown transaction",
            f"SELECT k FROM {table} WHERE ts >= {PROVISIONAL}"
            " AND ts NOT IN (SELECT number FROM staged)",
        )

    def _big(self, relation: Relation) -> None:
        """Every marker has its value and every value its marker."""
        source = Source(relation, "r")
        origin = "coalesce(r.x, r.ts)" if relation.origin else "r.ts"
        for attnum, column in sorted(relation.columns.items()):
            raw = source.raw(column)
            name = f"relation {relation.sid} column {attnum}"
            beside = (
                f"b.sid = {relation.sid} AND b.k = r.k AND b.ts = {origin} AND b.attnum = {attnum}"
            )
            self._damage(
                f"{name}: big value is missing",
                f"SELECT r.k FROM {relation.table} r WHERE typeof({raw}) = 'text'"
                f" AND ts < {PROVISIONAL} AND NOT EXISTS (SELECT 1 FROM big b WHERE {beside})",
            )
            self._damage(
                f"{name}: big value without its row",
                f"SELECT b.k FROM big b WHERE b.sid = {relation.sid} AND b.attnum = {attnum}"
                f" AND b.ts < {PROVISIONAL} AND NOT EXISTS (SELECT 1 FROM {relation.table} r"
                f" WHERE r.k = b.k AND b.ts = {origin} AND typeof({raw}) = 'text')",
            )

    def _live(self, snapshot: Snapshot, relation: Relation, tau: int) -> None:
        """The maintained row count; an estimate while large transactions are unsettled."""
        overlay = overlay_at(snapshot, relation.sid, tau)
        condition = Source(relation, "r").as_of(overlay)
        sql = f"SELECT count(*) FROM {relation.table} r WHERE {condition}"
        count = fetch(self.db, sql, (tau,))[0][0]
        self.result.rows += count
        if count != relation.rows and relation.sid not in snapshot.overlay:
            self.result.damages.append(
                f"relation {relation.sid}: {count} rows, its counter says {relation.rows}"
            )

    def _index(self, snapshot: Snapshot, index: Relation, tau: int) -> None:
        """Entries against rows, both ways."""
        name = f"index {index.sid} of table {index.table_sid}"
        try:
            table = relation_at(snapshot, index.table_sid, tau)
        except UnknownRelation:
            self.result.notes.append(f"{name}: its table is gone")
            return
        entry, row = Source(index, "e"), Source(table, "r")
        entries = entry.as_of(overlay_at(snapshot, index.sid, tau))
        rows = row.as_of(overlay_at(snapshot, table.sid, tau))
        pointer = entry(0)[1]
        self._damage(
            f"{name}: entry without a row",
            f"SELECT e.k FROM {index.table} e WHERE {entries} AND NOT EXISTS"
            f" (SELECT 1 FROM {table.table} r WHERE r.k = {pointer} AND {rows})",
            (tau,),
        )
        self._damage(
            f"{name}: two entries of one row",
            f"SELECT {pointer} FROM {index.table} e WHERE {entries}"
            f" GROUP BY {pointer} HAVING count(*) > 1",
            (tau,),
        )
        missing = (
            f"SELECT r.k FROM {table.table} r WHERE {rows}"
            f" EXCEPT SELECT {pointer} FROM {index.table} e WHERE {entries}"
        )
        # The primary key of a table organised by it is an index that never had an entry.
        if index.complete and index.put_rows:
            self._damage(f"{name}: row without an entry", missing, (tau,))
        else:
            count = fetch(self.db, f"SELECT count(*) FROM ({missing})", (tau,))[0][0]
            if count:
                self.result.notes.append(f"{name}: {count} rows without an entry")

    def _orphans(self, snapshot: Snapshot) -> None:
        known = ",".join(map(str, snapshot.relations)) or "0"
        self._damage(
            "big values of unknown relations", f"SELECT k FROM big WHERE sid NOT IN ({known})"
        )


assert PROVISIONAL < TS_MAX
