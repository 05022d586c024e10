"""The storage engine of one shard replica: one SQLite file, one owner (design section 8)."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from meridian.storage import checkpoint, gc, owning, query, reading, shards, staging, verify
from meridian.storage import schema as schema_
from meridian.storage.apply import Applier
from meridian.storage.checkpoint import CheckpointInfo
from meridian.storage.errors import (
    BadRequest,
    BelowHorizon,
    Cancelled,
    Failed,
    RebuildNeeded,
    UnknownRelation,
)
from meridian.storage.readers import ReadPool
from meridian.storage.relations import Relation, Snapshot, Staged, load_overlay, load_relations
from meridian.storage.sql import fetch
from meridian.storage.types import (
    GET_BYTES_MAX,
    TS_MAX,
    Page,
    ReadRequest,
    SampleRequest,
    ScanRequest,
    Statistics,
)
from meridian.storage.verify import Report
from meridian.storage.wal import WalCopier
from meridian.wire.ops import Op
from meridian.wire.ranges import ALL, Owned, Range, Ranges, Scanned, asked, check_disjoint, span

CACHE_BYTES = 64 << 20
SHORT_ROWS = 2_000
"""Scans that visit at most about this many versions run on the caller's thread."""
SHORT_STEPS = 50_000
"""SQLite steps after which a read on the caller's thread is given up: about a millisecond."""

COPY_BOOT_ID = "copy"

Commit = tuple[int, Sequence[Op]]
"""(tau_commit, ops)."""

LOOKUP_ROWS = 64
"""Rows of a page that `try_lookup` answers."""

GetShape = tuple[int, tuple[int, ...], tuple[Staged, ...]]
"""(sid, cols, unsettled transactions to see) of a GET of one key."""

LookupShape = tuple[int, int, int, tuple[int, ...], tuple[int, ...]]
"""(sid, row_sid, flags, cols, row_cols) of a SCAN."""


class Lookup(NamedTuple):
    """A prepared range statement: parameters are tau, lo, hi, limit.

    `exact` (tau, lo) is quicker where the range is one key; empty: there is none. From `base` on
    the file holds all keys of both relations (TS_MAX: never). `plain`: no value lies in `big`.
    """

    sql: str
    exact: str
    born: int
    died: int
    entry: Relation
    row: Relation
    base: int
    plain: bool


def _stop() -> bool:
    return True


class Engine:
    """See README.md. Not thread-safe: one thread calls it; `readers` have their own connections."""

    def __init__(self, path: Path, db: apsw.Connection, boot_id: str) -> None:
        self.path = path
        self.boot_id = boot_id
        self.generation = schema_.load_generation(db)
        self.readers = ReadPool(path, self.generation)
        self._wal = WalCopier(path, db)
        self._db = db
        self._execute = db.execute
        self._short = db.cursor().execute
        """For short reads that are fetched whole at once: a cursor less to make."""
        self._gets: dict[GetShape, tuple[str, int, int]] = {}
        self._lookups: dict[LookupShape, Lookup] = {}
        self._failed = ""
        self._pinned = False
        self._reload()

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        boot_id: str,
        base_tau: int = 0,
        cache_bytes: int = CACHE_BYTES,
        owned: Sequence[Owned] = ALL,
    ) -> Engine:
        """A new, empty file complete through `base_tau`; an older file at the path is deleted.

        `owned`: its ranges, ascending and disjoint (ValueError otherwise).
        """
        check_disjoint(owned)
        db = schema_.create_file(
            path, boot_id=boot_id, base_tau=base_tau, cache_bytes=cache_bytes, owned=owned
        )
        return cls(path, db, boot_id)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        boot_id: str,
        durable: Mapping[int, int] | None,
        cache_bytes: int = CACHE_BYTES,
    ) -> Engine:
        """An existing file, if it can be trusted and is not ahead of the durable journals.

        `durable`: number of the last durable record per journal; None skips the check. Raises
        RebuildNeeded (design section 8: such a file must be discarded), Failed (disk full).
        """
        db = schema_.open_file(path, boot_id=boot_id, durable=durable, cache_bytes=cache_bytes)
        try:
            return cls(path, db, boot_id)
        except apsw.Error as error:
            db.close(True)
            raise RebuildNeeded(f"the storage file cannot be read: {error}") from error

    @classmethod
    def restore(
        cls,
        checkpoint_dir: Path,
        path: Path,
        *,
        boot_id: str,
        durable: Mapping[int, int] | None,
        cache_bytes: int = CACHE_BYTES,
    ) -> Engine:
        """A file made from a checkpoint, replacing that at `path`. Raises RebuildNeeded, Failed."""
        checkpoint.restore(checkpoint_dir, path)
        return cls.open(path, boot_id=boot_id, durable=durable, cache_bytes=cache_bytes)

    @classmethod
    def open_copy(cls, path: Path, *, cache_bytes: int) -> Engine:
        """A copy that this process has just made and that nobody else uses. Raises RebuildNeeded.

        It is nobody's cache yet: neither boot nor journal say anything about it.
        """
        try:
            db = schema_.connect(path, cache_bytes=cache_bytes)
            try:
                schema_.migrate(db)
                return cls(path, db, COPY_BOOT_ID)
            except BaseException:
                db.close(True)
                raise
        except apsw.Error as error:
            raise RebuildNeeded(f"the copy cannot be read: {error}") from error

    def close(self) -> None:
        """Clean close: the next boot may trust the file."""
        self.readers.close()
        self._wal.close()
        self._unpin()
        schema_.close_file(self._db, boot_id=self.boot_id)

    def abandon(self) -> None:
        """Close without the clean mark (tests, and after a failure)."""
        self.readers.close()
        self._wal.close()
        self._db.close(True)

    # -- state ------------------------------------------------------------------------------

    @property
    def applied_tau(self) -> int:
        """The newest commit applied."""
        return self._state.applied_tau

    @property
    def horizon(self) -> int:
        """Reads below this tau are refused."""
        return self._state.horizon

    @property
    def positions(self) -> dict[int, int]:
        """Last applied record per journal."""
        return dict(self._state.positions)

    @property
    def note(self) -> bytes:
        """The caller's bytes stored with the positions."""
        return self._state.note

    @property
    def broken(self) -> bool:
        """A rollback failed: this engine takes no writes any more; open the file anew."""
        return bool(self._failed)

    def break_off(self, reason: str) -> None:
        """Take no writes any more (`broken`)."""
        self._failed = reason

    def unresolved(self) -> list[bytes]:
        """Transaction ids that were staged and whose outcome is not known yet."""
        rows = fetch(self._db, "SELECT txid FROM staged WHERE tau IS NULL ORDER BY number")
        return [row[0] for row in rows]

    @property
    def unsettled(self) -> bool:
        """`settle` has work."""
        return bool(self._execute("SELECT 1 FROM staged WHERE tau IS NOT NULL LIMIT 1").fetchall())

    def _reload(self) -> None:
        self._state = schema_.load_state(self._db)
        self._relations = load_relations(self._db)
        self._overlay = load_overlay(self._db)
        ranges = schema_.load_ranges(self._db)
        self._applier = Applier(self._db, self._relations, self._overlay, ranges)
        self._settler = staging.Settler()
        self._refresh()

    def _refresh(self) -> None:
        """After a change of catalog, overlay or horizon."""
        self._gets.clear()
        self._lookups.clear()
        self._horizon = self._state.horizon
        # Asked many times a second, also by an idle system with many relations.
        self._first_death = min((r.died for r in self._relations.values()), default=TS_MAX)
        self._ranges = self._applier.ranges
        self._whole = self._ranges.whole
        self._snapshot = Snapshot(self._relations, self._overlay, self._horizon, self._ranges)

    def _pin(self) -> None:
        """Short reads share one SQLite snapshot until this connection writes.

        Nobody else writes the file, so the snapshot is always of the newest commit, the one that
        the image in memory describes; and the lock of the log is not taken and released by every
        read. The log may be copied back meanwhile, and starts over as before: the owner's own
        commits do that, and they unpin first.
        """
        if not self._db.in_transaction:
            self._execute("BEGIN").fetchall()
        self._pinned = True

    def _unpin(self) -> None:
        self._pinned = False
        # An error may have ended it.
        if self._db.in_transaction:
            self._execute("COMMIT").fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[Applier]:
        """One SQLite transaction; on any error the file and its image go back together."""
        if self._failed:
            raise Failed(self._failed)
        applier = self._applier
        try:
            if self._pinned:
                self._unpin()
            self._execute("BEGIN IMMEDIATE")
            yield applier
            if applier.touched:
                applier.save_counters()
            schema_.save_state(self._db, self._state)
            self._execute("COMMIT")
        except BaseException as error:
            self._undo()
            if isinstance(error, apsw.Error):
                raise Failed(str(error)) from error
            raise
        if applier.catalog_changed:
            applier.catalog_changed = False
            self._overlay = applier.overlay = load_overlay(self._db)
            self._refresh()
        elif self._horizon != self._state.horizon:
            self._refresh()

    def _undo(self) -> None:
        try:
            if self._db.in_transaction:
                self._execute("ROLLBACK")
            self._reload()
        except apsw.Error as error:
            self._failed = f"rollback failed: {error}"

    def _advance(self, positions: Mapping[int, int], note: bytes | None) -> None:
        for journal, n in positions.items():
            if n > self._state.positions.get(journal, -1):
                self._state.positions[journal] = n
        if note is not None:
            self._state.note = note

    # -- writes -----------------------------------------------------------------------------

    def apply(
        self,
        commits: Sequence[Commit],
        positions: Mapping[int, int],
        note: bytes | None = None,
    ) -> None:
        """Apply durable commits in ascending tau in one SQLite transaction, position included.

        Commits at or below `applied_tau` are skipped. Raises Failed (rolled back; may be tried
        again), Corrupt (the feed contradicts the file: stop and rebuild).
        """
        with self._transaction() as applier:
            state = self._state
            for tau, chunk in commits:
                if tau > state.applied_tau:
                    applier.commit(tau, chunk)
                    state.applied_tau = tau
            self._advance(positions, note)

    def stage(
        self, txid: bytes, seq: int, chunk: Sequence[Op], positions: Mapping[int, int]
    ) -> None:
        """Write chunk `seq` of a large transaction whose outcome is not known yet.

        A repeat (by txid and seq) is skipped. Raises Failed, Corrupt.
        """
        with self._transaction() as applier:
            staging.stage(applier, self._state, txid, seq, chunk)
            self._advance(positions, None)

    def resolve(
        self,
        txid: bytes,
        chunk_count: int,
        tau: int,
        positions: Mapping[int, int],
        note: bytes | None = None,
    ) -> None:
        """The staged transaction committed at tau; O(its DDL + its chunks), whatever its rows.

        Skipped when `applied_tau` has passed tau.
        Raises Failed, Corrupt (chunks are missing).
        """
        with self._transaction() as applier:
            if tau > self._state.applied_tau:
                staging.resolve(applier, txid, chunk_count, tau)
                self._state.applied_tau = tau
            else:
                # Read again after a crash: chunks staged anew beside the settled ones must go.
                staging.discard(applier, txid)
            self._advance(positions, note)

    def discard(self, txid: bytes, positions: Mapping[int, int]) -> None:
        """The staged transaction will never commit. Unknown ids are fine."""
        with self._transaction() as applier:
            staging.discard(applier, txid)
            self._advance(positions, None)

    # -- background -------------------------------------------------------------------------

    def settle(self, budget_rows: int = 500) -> bool:
        """One slice of turning provisional numbers into taus. False: nothing is left."""
        if not self.unsettled:
            return False
        with self._transaction() as applier:
            return self._settler.slice(applier, budget_rows)

    def raise_floor(self, floor: int) -> None:
        """Refuse reads below `floor` from here on; collection may take what only they could see."""
        if floor > self._state.horizon:
            with self._transaction():
                self._state.horizon = floor

    def collect(self, budget_rows: int = 500) -> bool:
        """One slice of garbage collection. False: nothing may go at this horizon."""
        horizon = self._state.horizon
        if not self._collectable(horizon):
            return False
        with self._transaction() as applier:
            return gc.slice_versions(applier, horizon, budget_rows) or gc.slice_dropped(
                applier, horizon, budget_rows
            )

    def _collectable(self, horizon: int) -> bool:
        head = fetch(self._db, "SELECT te FROM gc ORDER BY id LIMIT 1")
        return bool(head and head[0][0] <= horizon) or self._first_death <= horizon

    # -- ranges (shards.py) -----------------------------------------------------------------

    @property
    def ranges(self) -> Ranges:
        """What the file owns."""
        return self._ranges

    def shrink(self, owned: Sequence[Owned]) -> None:
        """Own only `owned` from here on; the rest is refused at once and deleted by `purge`.

        Raises BadRequest unless it is a part of what the file owns; Failed.
        """
        with self._transaction() as applier:
            shards.shrink(applier, owned)
            self._settler = staging.Settler()

    def adopt(self, part: Owned) -> None:
        """Own a range where nothing was ever written. Raises BadRequest, Failed."""
        with self._transaction() as applier:
            shards.adopt(applier, part)

    def purge(self, budget_rows: int = 500) -> bool:
        """One slice of deleting what was given up. False: nothing is left."""
        if not self._execute("SELECT 1 FROM purge LIMIT 1").fetchall():
            return False
        with self._transaction() as applier:
            return shards.purge_slice(applier, budget_rows)

    def rewind(self, tau: int, positions: Mapping[int, int]) -> None:
        """Back to what the file was at `tau`; the journals are read again from `positions`.

        A journal that the file knows stays known: one that is not named is read from its beginning
        (6.7). Only for a file that serves nobody. Raises BadRequest, Corrupt, Failed.
        """
        while self.settle():
            pass
        for txid in self.unresolved():
            self.discard(txid, {})
        while self.settle():
            pass
        with self._transaction() as applier:
            shards.rewind(applier, self._state, tau)
            known = dict.fromkeys(self._state.positions, 0)
            self._state.positions = {**known, **positions}
        self._reload()

    def import_ranges(self, source: Path) -> None:
        """Take over all of a closed file that shows the same tau; positions become the lower ones.

        Only for a file that serves nobody. Raises BadRequest, Corrupt, Failed.
        """
        self._unpin()
        self._execute("ATTACH DATABASE ? AS other", (str(source),)).fetchall()
        try:
            with self._transaction() as applier:
                shards.import_ranges(applier, self._state, source)
        finally:
            self._execute("DETACH DATABASE other").fetchall()

    def take_slice(
        self, source: Engine, sid: int, lo: bytes, hi: bytes | None, tau: int, note: bytes
    ) -> None:
        """Take keys of a relation over from another file of this process (shards.py).

        Both are complete through `tau`; `note` says so for this file. The source then shrinks.
        Raises BadRequest, Corrupt, Failed.
        """
        base = source.ranges.base_of(asked(sid, lo, hi))
        if base is None:
            raise BadRequest("the range is not the source's")
        base = max(base, source.horizon)
        self._unpin()
        self._execute("ATTACH DATABASE ? AS other", (str(source.path),)).fetchall()
        try:
            with self._transaction() as applier:
                shards.take_slice(applier, self._state, source._relations[sid], lo, hi, base)
                self._state.applied_tau = max(self._state.applied_tau, tau)
                self._state.note = note
        finally:
            self._execute("DETACH DATABASE other").fetchall()

    def slice_end(self, sid: int, lo: bytes, hi: bytes | None, rows: int) -> bytes | None:
        """The key where a slice of about so many versions from `lo` on ends; None: at `hi`."""
        return shards.slice_end(self._db, self._relations[sid].table, lo, hi, rows)

    def has_staged(self) -> bool:
        """Large transactions are open or not settled yet."""
        return bool(self._execute("SELECT 1 FROM staged LIMIT 1").fetchall())

    def largest_relation(self) -> tuple[int, int] | None:
        """(sid, rows) of the user's relation with the most rows."""
        found = [(r.rows, r.sid) for r in self._relations.values() if r.sid >= 1000 and r.died]
        rows, sid = max(found, default=(0, 0))
        return (sid, rows) if sid else None

    def checkpoint(
        self, target_dir: Path, stop: Callable[[], bool] = lambda: False
    ) -> CheckpointInfo:
        """A durable, consistent copy in the new directory `target_dir`, on its own connection.

        Any thread may call it; writers and readers go on. Raises Cancelled, Failed.
        """
        return checkpoint.write(self.path, target_dir, stop)

    def verify(self, stop: Callable[[], bool] = lambda: False) -> Report:
        """Check every invariant of the file, on its own connection; any thread may call it.

        Raises Cancelled once `stop()` says so, Failed.
        """
        return verify.run(self.path, stop)

    # -- reads ------------------------------------------------------------------------------

    def get(self, tau: int, sid: int, cols: tuple[int, ...], keys: Sequence[bytes]) -> Page:
        """Rows `[k, c...]` of the keys found, ascending; keys strictly ascending.

        `more`: cut at GET_BYTES_MAX; ask again for the keys after the last row. Raises
        BelowHorizon, UnknownRelation, BadRequest, Failed.
        """
        if not self._whole:
            owning.check_keys(self._ranges, tau, sid, keys)
        if len(keys) == 1:
            overlay = query.overlay_at(self._snapshot, sid, tau) if sid in self._overlay else ()
            shape = (sid, cols, overlay)
            known = self._gets.get(shape) or self._prepare_get(shape)
            if tau < self._horizon:
                raise BelowHorizon()
            sql, born, died = known
            if not born <= tau < died:
                raise UnknownRelation(sid)
            try:
                if not self._pinned:
                    self._pin()
                return False, reading.encode(self._short(sql, (tau, keys[0])).fetchall())
            except apsw.Error as error:
                raise reading.translate(error) from error
        return self._get_many(tau, sid, cols, keys)

    def _prepare_get(self, shape: GetShape) -> tuple[str, int, int]:
        sid, cols, overlay = shape
        relation = self._relations.get(sid)
        if relation is None:
            raise UnknownRelation(sid)
        known = query.get_one(relation, cols, overlay), relation.born, relation.died
        if len(self._gets) > 10_000:
            self._gets.clear()
        self._gets[shape] = known
        return known

    def get_filtered(
        self, tau: int, sid: int, cols: tuple[int, ...], keys: Sequence[bytes], where: Any
    ) -> Page:
        """`get` of those rows that pass a filter (joins whose index lies in another file)."""
        if not self._whole:
            owning.check_keys(self._ranges, tau, sid, keys)
        return self._get_many(tau, sid, cols, keys, where)

    def _get_many(
        self,
        tau: int,
        sid: int,
        cols: tuple[int, ...],
        keys: Sequence[bytes],
        where: Any = None,
    ) -> Page:
        statement = query.Statement(query.get_many(self._snapshot, tau, sid, cols), ())
        if not keys:
            return False, reading.EMPTY
        try:
            array = apsw.carray(tuple(keys))
            if where is None:
                statement = statement._replace(values=(tau, array))
            else:
                statement = query.get_filtered(self._snapshot, tau, sid, cols, array, where)
            cursor = self._execute(*statement)
            try:
                big = self._relations[sid].has_big
                return reading.collect_page(cursor, GET_BYTES_MAX, limit=0, big=big)
            finally:
                cursor.close(True)
        except apsw.Error as error:
            raise reading.translate(error) from error
        except TypeError as error:
            raise BadRequest(f"keys are byte strings: {error}") from error

    def try_lookup(
        self, tau: int, lo: bytes, hi: bytes, limit: int, page_bytes: int, shape: LookupShape
    ) -> Page | None:
        """A short range without filters, by a statement prepared for its shape; None: `try_scan`.

        The path of key lookups through an index: no SQL is built. Raises like `get`.
        """
        sid, row_sid = shape[0], shape[1]
        known = self._lookups.get(shape)
        if (
            not self._whole
            and (known is None or tau < known.base)
            and not self._owns(tau, row_sid, asked(sid, lo, hi))
        ):
            return None
        if not 0 < limit <= LOOKUP_ROWS or sid in self._overlay or row_sid in self._overlay:
            return None
        lookup = known or self._prepare_lookup(tau, shape)
        if tau < self._horizon or not lookup.born <= tau < lookup.died:
            return None
        if not lookup.plain or lookup.entry.crowded or lookup.row.crowded:
            return None
        self._db.set_progress_handler(_stop, SHORT_STEPS)
        try:
            if not self._pinned:
                self._pin()
            if lookup.exact and len(hi) == len(lo) + 1 and hi.startswith(lo) and not hi[-1]:
                rows = self._short(lookup.exact, (tau, lo)).fetchall()
            else:
                rows = self._short(lookup.sql, (tau, lo, hi, limit)).fetchall()
        except apsw.InterruptError:
            return None
        except apsw.Error as error:
            raise reading.translate(error) from error
        finally:
            self._db.set_progress_handler(None)
        encoded = reading.encode(rows)
        return None if len(encoded) > page_bytes else (len(rows) >= limit, encoded)

    def _owns(self, tau: int, row_sid: int, wanted: Range) -> bool:
        return self._base_of(row_sid, wanted) <= tau

    def _base_of(self, row_sid: int, wanted: Range) -> int:
        """From which tau on the file holds all of a range, and of the relation that its rows are
        joined to; TS_MAX: some of them lie elsewhere."""
        base = self._ranges.base_of(wanted)
        rows = self._ranges.base_of(span(row_sid)) if row_sid else 0
        return TS_MAX if base is None or rows is None else max(base, rows)

    def _prepare_lookup(self, tau: int, shape: LookupShape) -> Lookup:
        sid, row_sid, flags, cols, row_cols = shape
        request = ScanRequest(
            tau, sid, b"lo", b"hi", flags, cols, limit=1, row_sid=row_sid, row_cols=row_cols
        )
        sql, _ = query.scan(self._snapshot, request)
        entry = self._relations[sid]
        row = self._relations[row_sid] if row_sid else entry
        exact = query.lookup_one(self._snapshot, request)
        born, died = max(entry.born, row.born), min(entry.died, row.died)
        base = self._base_of(row_sid, span(sid))
        # A column that gets its first big value empties `_lookups`.
        plain = not (entry.has_big or row.has_big)
        lookup = Lookup(sql, exact, born, died, entry, row, base, plain)
        if entry.crowded or row.crowded:
            return lookup
        if len(self._lookups) > 10_000:
            self._lookups.clear()
        self._lookups[shape] = lookup
        return lookup

    def try_scan(self, request: ReadRequest) -> Page | None:
        """The answer if it takes less than about a millisecond on the caller's thread, else None.

        None: use `readers`. Raises like `get`.
        """
        part = self.try_scan_part(request, clip=False)
        return None if part is None else part[0]

    def try_scan_part(
        self, request: ReadRequest, *, clip: bool = True
    ) -> tuple[Page, Scanned] | None:
        """`scan_part` within about a millisecond, else None: use `readers`."""
        if not self._may_be_short(request):
            return None
        self._db.set_progress_handler(_stop, SHORT_STEPS)
        try:
            return self.scan_part(request, clip=clip)
        except Cancelled:
            return None
        finally:
            self._db.set_progress_handler(None)

    def scan_part(self, request: ReadRequest, *, clip: bool = True) -> tuple[Page, Scanned]:
        """A scan as far as the file owns its range, and the subrange of keys that it covers.

        The part is the one where the scan begins; WrongPlace if that is not here (or, without
        `clip`, if anything is not). Raises like `get`.
        """
        request, scanned = reading.place_request(self._snapshot, request, clip=clip)
        return reading.run(self._db, self._snapshot, request), scanned

    def _may_be_short(self, request: ReadRequest) -> bool:
        """Not worth a try: everything of a relation with many versions."""
        relation = self._relations.get(request.sid)
        if relation is None or relation.rows + relation.dead <= SHORT_ROWS:
            return True
        if isinstance(request, SampleRequest):
            return False
        bounded = request.lo is not None and request.hi is not None
        return bounded or (0 < request.limit <= SHORT_ROWS and not request.grouped)

    def scan(self, request: ReadRequest) -> Page:
        """SCAN or SAMPLE on the caller's thread, all of it or WrongPlace. Raises like `get`."""
        return self.scan_part(request, clip=False)[0]

    def sample(self, tau: int, sid: int, count: int, cols: tuple[int, ...]) -> Page:
        """About `count` random rows on the caller's thread."""
        return self.scan(SampleRequest(tau, sid, count, cols))

    def stats(self, sids: Sequence[int]) -> list[Statistics]:
        """Live rows and bytes of each relation, estimated from maintained counters."""
        return [self._statistics(sid) for sid in sids]

    def known_columns(self, sid: int) -> Container[int] | None:
        """Attnums of a relation that exists in the file, visible or not; None: there is none."""
        relation = self._relations.get(sid)
        return None if relation is None else relation.columns.keys()

    def _statistics(self, sid: int) -> Statistics:
        relation = self._relations.get(sid)
        if relation is None or not relation.put_rows:
            return Statistics(0, 0)
        rows = max(0, relation.rows)
        return Statistics(rows, rows * relation.put_bytes // relation.put_rows)
