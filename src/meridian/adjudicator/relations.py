"""Relations at the adjudicator: catalog coherence and relation locks (design section 9).

Per relation (storage id): the tau and catalog version of its last change of meaning, its last
write, and the last locks of its rows and of itself. For all of them: the last change that concerns
everybody (docs/rfcs, "Catalog coherence", points 1, 2 and 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from meridian.adjudicator.footprint import NO_SCHEMA, Footprint
from meridian.wire.reach import GLOBAL

PRUNE_AT = 65_536
"""Entries of one kind remembered before those that no longer matter are looked for."""
SID_FIRST = 1_000
"""Relations below are the system's: no schema change concerns them."""

_Taus = dict[int, int]


class Relations:
    """Invariant: every change, write and lock above the window's floor is here."""

    def __init__(self, catalog_version: int = 0) -> None:
        self._changed: dict[int, tuple[int, int]] = {}
        self._written: _Taus = {}
        self._row_locked: _Taus = {}
        self._locked: _Taus = {}
        self._shared: _Taus = {}
        self._prune_at = PRUNE_AT
        self.catalog_version = catalog_version
        self._base = 0, catalog_version
        """Of what changed before the journal begins, or long ago, only the version is known."""
        self._everybody = 0, 0
        """The last change that concerns everybody: tau, version."""

    # Comparison

    def stale(self, tau_start: int, catver: int, prints: Sequence[Footprint]) -> bool:
        """Whether a transaction must be refused with OC001.

        `catver` 0 = the client did not say.
        """
        # One pass, no generators: every commit comes through here.
        changed, base = self._changed.get, self._base
        tau, version = self._everybody
        outdated = catver and (tau > tau_start or catver < version)
        for footprint in prints:
            for sid in footprint.sids:
                tau, version = changed(sid, base)
                if tau > tau_start or 0 < catver < version or (outdated and sid >= SID_FIRST):
                    return True
            made = footprint.catalog_version
            if made and min(made - 1, catver or made) < self.catalog_version:
                # A delta follows the last one: it was made on a catalog that holds all of them.
                return True
            for sid in footprint.schema.read:
                if self._written.get(sid, 0) > tau_start:
                    return True
            for sid in footprint.schema.touched:
                if changed(sid, base)[0] > tau_start:
                    return True
        return False

    def conflict(self, tau_start: int, prints: Iterable[Footprint]) -> bool:
        """Whether a lock of a whole relation stands against a transaction, in either order.

        A lock of a relation excludes writes, locks of rows and of itself; a share only writes and
        locks of the relation: as PostgreSQL's EXCLUSIVE and SHARE do.
        """
        tables = self._written, self._row_locked, self._locked, self._shared
        written, _, locked, shared = tables
        for footprint in prints:
            if (locked or shared) and (
                _any_after(tau_start, footprint.written, (locked, shared))
                or _any_after(tau_start, footprint.row_locked, (locked,))
            ):
                return True
            if footprint.locked and _any_after(tau_start, footprint.locked, tables):
                return True
            if footprint.shared and _any_after(tau_start, footprint.shared, (written, locked)):
                return True
        return False

    def last(self, sids: Iterable[int]) -> int:
        """The tau of the last thing that happened to any of these relations, 0 if forgotten."""
        taus = [0]
        for sid in sids:
            taus += [table.get(sid, 0) for table in self._tables()]
            taus.append(self._changed.get(sid, (0, 0))[0])
        return max(taus)

    # Bookkeeping

    def rebase(self, tau: int, catalog_version: int) -> None:
        """Of what changed at or below `tau` only the version then in force is known (5.7)."""
        self._changed = {sid: one for sid, one in self._changed.items() if one[0] > tau}
        self.catalog_version = max(self.catalog_version, catalog_version)
        self._base = tau, catalog_version
        self._everybody = max(self._everybody, self._base)

    def record(self, tau: int, prints: Sequence[Footprint], floor: int) -> None:
        """A transaction commits at `tau`."""
        schema = False
        for footprint in prints:
            schema = schema or footprint.schema is not NO_SCHEMA or footprint.reach is not None
            if footprint.catalog_version:
                self.catalog_version = max(self.catalog_version, footprint.catalog_version)
            # Another owner's commit may be told late, below what is known here.
            _raise(self._written, footprint.written, tau)
            if footprint.row_locked or footprint.locked or footprint.shared:
                _raise(self._row_locked, footprint.row_locked, tau)
                _raise(self._locked, footprint.locked, tau)
                _raise(self._shared, footprint.shared, tau)
        if schema:
            self._change(tau, prints)
        self._prune_soon(floor)

    def record_writes(self, taus: dict[int, int], floor: int) -> None:
        """`record` of transactions that only write rows: relations and their last taus."""
        for sid, tau in taus.items():
            _raise(self._written, (sid,), tau)
        self._prune_soon(floor)

    def _prune_soon(self, floor: int) -> None:
        most = self._prune_at
        if len(self._written) > most or len(self._row_locked) > most or len(self._changed) > most:
            self._prune(floor)

    def _change(self, tau: int, prints: Sequence[Footprint]) -> None:
        change = tau, self.catalog_version
        for footprint in prints:
            reach = footprint.reach
            for sid in (*footprint.schema.touched, *(reach.sids if reach is not None else ())):
                self._changed[sid] = max(change, self._changed.get(sid, change))
            if reach is not None and reach.kind == GLOBAL:
                self._everybody = max(change, self._everybody)

    def _tables(self) -> tuple[_Taus, ...]:
        return self._written, self._row_locked, self._locked, self._shared

    def _prune(self, floor: int) -> None:
        # Below the floor nothing is decided, so what happened there cannot matter.
        tables = [{s: tau for s, tau in table.items() if tau > floor} for table in self._tables()]
        self._written, self._row_locked, self._locked, self._shared = tables
        # Of changes the version may: a client that lags behind for longer than the window is then
        # refused for every relation, which costs it a retry.
        gone = [change for change in self._changed.values() if change[0] <= floor]
        self._changed = {s: change for s, change in self._changed.items() if change[0] > floor}
        versions = [self._base[1], *(version for _, version in gone)]
        self._base = self._base[0], max(versions)
        kept = max(len(self._written), len(self._row_locked), len(self._changed))
        self._prune_at = max(PRUNE_AT, 2 * kept)


def _any_after(tau: int, sids: tuple[int, ...], tables: tuple[_Taus, ...]) -> bool:
    return any(table.get(sid, 0) > tau for table in tables for sid in sids)


def _raise(taus: _Taus, sids: Iterable[int], tau: int) -> None:
    for sid in sids:
        if taus.get(sid, 0) < tau:
            taus[sid] = tau
