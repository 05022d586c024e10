"""Catalog coherence at the adjudicator (design section 9, "Coherence").

Per relation (storage id): the tau and catalog version of its last schema change, and its last
write.
"""

from __future__ import annotations

from collections.abc import Iterable

from meridian.adjudicator.footprint import Footprint

PRUNE_AT = 65_536
"""Relations remembered before those that no longer matter are looked for."""


class Relations:
    """Invariant: every schema change and write above the window's floor is here."""

    def __init__(self, catalog_version: int = 0) -> None:
        self._changed: dict[int, tuple[int, int]] = {}
        self._written: dict[int, int] = {}
        self._prune_at = PRUNE_AT
        self.catalog_version = catalog_version
        self._base = 0, catalog_version
        """Of what changed before the journal begins only the last version is known."""

    def stale(self, tau_start: int, catver: int, prints: Iterable[Footprint]) -> bool:
        """Whether a transaction must be refused with OC001.

        `catver` 0 = the client did not say.
        """
        for footprint in prints:
            for sid in footprint.sids:
                tau, version = self._changed.get(sid, self._base)
                if tau > tau_start or 0 < catver < version:
                    return True
            for sid in footprint.schema.read:
                if self._written.get(sid, 0) > tau_start:
                    return True
            for sid in footprint.schema.touched:
                if self._changed.get(sid, (0, 0))[0] > tau_start:
                    return True
        return False

    def record(self, tau: int, prints: Iterable[Footprint], floor: int) -> None:
        """A transaction commits at `tau`."""
        for footprint in prints:
            if footprint.catalog_version:
                self.catalog_version = max(self.catalog_version, footprint.catalog_version)
            for sid in footprint.sids:
                self._written[sid] = tau
        for footprint in prints:
            for sid in footprint.schema.touched:
                self._changed[sid] = (tau, self.catalog_version)
        if len(self._written) > self._prune_at:
            self._prune(floor)

    def _prune(self, floor: int) -> None:
        # Below the floor nothing is decided, so what happened there cannot matter; changes stay,
        # because a client may lag behind the catalog for longer than the window.
        self._written = {sid: tau for sid, tau in self._written.items() if tau > floor}
        self._prune_at = max(PRUNE_AT, 2 * len(self._written))
