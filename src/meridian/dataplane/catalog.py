"""The history of catalog versions: which one was in force when, and whom each concerned.

Every read says which version its instance has applied; it is compared here (docs/rfcs, "Catalog
coherence", points 1, 2 and 4). Versions and taus grow together: the adjudicator refuses a delta
that does not follow the last one.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING

import msgspec

from meridian.errors import Kind, MeridianError
from meridian.limits import CATALOG_HISTORY, CONFLICT_WINDOW_NS
from meridian.wire.ops import SID_CATALOG
from meridian.wire.reach import (
    ADDITIVE,
    COLUMN_REACH,
    EVERYBODY,
    GLOBAL,
    RELATIONS,
    Reach,
    decode_reach,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meridian.dataplane.counters import Counters
    from meridian.storage import Engine

log = logging.getLogger("meridian.catalog")

_KEY_BYTES = 8
_decode_rows = msgspec.msgpack.Decoder(list[tuple[bytes, bytes | None]]).decode


class Catalog:
    """One per node. A request of version `v` as of `t` needs no look here, hence no call, when

        v == 0 or (v == catalog.version and t >= catalog.tau)

    Invariant: a version is added when its record is durable, so before storage is complete through
    its tau and before any instance can have applied it. What its reach is, is read from storage
    once the row is there; until then it counts as global.
    """

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.version = 0
        """The newest."""
        self.tau = 0
        """Its tau_commit."""
        self._base = 0
        """In force before all that is remembered."""
        self._versions: list[int] = []
        self._taus: list[int] = []
        self._reaches: list[Reach] = []
        self._global: list[int] = []
        """Versions that concern everybody, ascending; `_by_sid`: those that concern a relation."""
        self._by_sid: dict[int, list[int]] = {}
        self.unread: list[int] = []
        """Versions whose reach has not been read."""

    def __len__(self) -> int:
        return len(self._versions)

    # Comparison

    def compare(self, catver: int, tau: int, sids: tuple[int, ...]) -> None:
        """May a client with version `catver` read these relations as of tau?

        `tau` is such that every version through it has been added. Raises SCHEMA_CHANGED.
        """
        if catver == 0:
            return
        in_force = self.in_force(tau)
        if catver < in_force:
            self.counters.catalog_stale += 1
        elif catver > in_force and self._too_new(in_force, catver, sids):
            self.counters.catalog_too_new += 1
        else:
            return
        raise self.refusal(tau)

    def _too_new(self, in_force: int, catver: int, sids: tuple[int, ...]) -> bool:
        """Does a version in (in_force, catver] concern the reader?"""
        if catver > self.version or _any_between(self._global, in_force, catver):
            # Nobody has applied what is not in the journal: such a cache must be made anew.
            return True
        by_sid = self._by_sid
        return any(_any_between(by_sid.get(sid, []), in_force, catver) for sid in sids)

    def in_force(self, tau: int) -> int:
        """The newest version at or before tau."""
        at = bisect_right(self._taus, tau)
        return self._versions[at - 1] if at else self._base

    def refusal(self, tau: int) -> MeridianError:
        """OC001; its detail lets the client wait for its instance (docs/protocol.md)."""
        detail = f"catalog {self.in_force(tau)} {tau}"
        return MeridianError(Kind.SCHEMA_CHANGED, detail=detail)

    def made_at(self, tau: int) -> int:
        """The version that the transaction with this tau_commit made, 0 if none."""
        at = bisect_left(self._taus, tau)
        return self._versions[at] if at < len(self._taus) and self._taus[at] == tau else 0

    def after(self, applied: int, limit: int) -> list[int]:
        """Versions above `applied`, ascending; of those forgotten only the last one."""
        first = [self._base] if applied < self._base else []
        at = bisect_right(self._versions, applied)
        return first + self._versions[at : at + limit]

    # Growth

    def load(self, base: int, made: Iterable[tuple[int, int]]) -> None:
        """At start: `base` was in force before the journal begins, `made` is in the journal.

        Again with a new owner: only what is newer counts, the rest is known.
        """
        if not self.version:
            self._base = max(self._base, base)
            self.version = max(self.version, base)
        for version, tau in made:
            self.add(version, tau)

    def add(self, version: int, tau: int) -> None:
        """A durable record makes this version at tau.

        Records of several journals become known in any order; known ones change nothing.
        """
        at = bisect_left(self._versions, version)
        if version <= self._base or version in self._versions[at : at + 1]:
            return
        if at != bisect_left(self._taus, tau):
            # The adjudicator refuses it; journals from before it did may hold some.
            log.error("catalog versions out of order", extra={"catver": version, "tau": tau})
            return
        self._versions.insert(at, version)
        self._taus.insert(at, tau)
        self._reaches.insert(at, EVERYBODY)
        insort(self._global, version)
        insort(self.unread, version)
        if version > self.version:
            self.version, self.tau = version, tau
        if self._taus[0] < self.tau - CONFLICT_WINDOW_NS or len(self._taus) > CATALOG_HISTORY:
            self._forget(self.tau - CONFLICT_WINDOW_NS)

    def _forget(self, before: int) -> None:
        count = bisect_left(self._taus, before)
        count = max(count, len(self._taus) - CATALOG_HISTORY)
        for version, reach in zip(self._versions[:count], self._reaches[:count], strict=True):
            self._unindex(version, reach)
        self._base = self._versions[count - 1]
        del self._versions[:count], self._taus[:count], self._reaches[:count]
        self.unread = [version for version in self.unread if version > self._base]

    def _unindex(self, version: int, reach: Reach) -> None:
        if reach.kind == GLOBAL:
            self._global.remove(version)
        for sid in reach.sids:
            versions = self._by_sid[sid]
            versions.remove(version)
            if not versions:
                del self._by_sid[sid]

    def read_reaches(self, engine: Engine) -> bool:
        """Looks up the reach of versions that storage holds by now; True if there were any."""
        applied_tau = engine.applied_tau
        ready = [version for version in self.unread if self._tau_of(version) <= applied_tau]
        if not ready:
            return False
        try:
            reaches = _reaches(engine, applied_tau, ready)
        except MeridianError as error:
            # Until storage can be read they concern everybody.
            log.error("reaches cannot be read", extra={"error": str(error)})
            return False
        # Ready ones come first: taus grow with the versions.
        del self.unread[: len(ready)]
        for version, reach in reaches:
            self._learn(version, reach)
        return True

    def _tau_of(self, version: int) -> int:
        return self._taus[bisect_left(self._versions, version)]

    def _learn(self, version: int, reach: Reach) -> None:
        at = bisect_left(self._versions, version)
        assert self._versions[at] == version and self._reaches[at].kind == GLOBAL
        self._unindex(version, self._reaches[at])
        self._reaches[at] = reach
        if reach.kind == GLOBAL:
            insort(self._global, version)
        for sid in reach.sids:
            insort(self._by_sid.setdefault(sid, []), version)

    def check(self) -> None:
        """Invariants, for tests."""
        assert self._versions == sorted(set(self._versions))
        assert self._taus == sorted(set(self._taus))
        assert len(self._versions) == len(self._taus) == len(self._reaches)
        by_kind = {kind: [r.kind for r in self._reaches].count(kind) for kind in (ADDITIVE, GLOBAL)}
        assert by_kind[GLOBAL] == len(self._global)
        indexed = {version for versions in self._by_sid.values() for version in versions}
        related = [r for r in self._reaches if r.kind == RELATIONS and r.sids]
        assert len(indexed) == len(related)


def _any_between(versions: list[int], after: int, through: int) -> bool:
    return bisect_right(versions, after) < bisect_right(versions, through)


def _reaches(engine: Engine, tau: int, versions: list[int]) -> list[tuple[int, Reach]]:
    """What column 3 of the catalog log says; a version without a row concerns everybody."""
    columns = engine.known_columns(SID_CATALOG)
    if columns is None or COLUMN_REACH not in columns:
        return []
    keys = [version.to_bytes(_KEY_BYTES, "big") for version in versions]
    found: list[tuple[int, Reach]] = []
    while keys:
        more, rows = engine.get(tau, SID_CATALOG, (COLUMN_REACH,), keys)
        decoded = _decode_rows(rows)
        for key, data in decoded:
            version = int.from_bytes(key, "big")
            try:
                found.append((version, decode_reach(data)))
            except ValueError as error:
                # It concerns everybody: nothing is taken for narrower than it may be.
                log.error("reach of a version", extra={"catver": version, "error": str(error)})
        if not more or not decoded:
            break
        keys = [key for key in keys if key > decoded[-1][0]]
    return found
