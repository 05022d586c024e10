"""Who must take part in a commit over several adjudicators, and what each must hold (5.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from meridian.adjudicator import events as ev
from meridian.adjudicator.cut import Bounds, Cut, cut, owners_of, pack
from meridian.adjudicator.footprint import BadWriteSet, Footprint, Schema
from meridian.errors import Kind, MeridianError
from meridian.limits import HOLD_KEYS
from meridian.wire.partition import PartitionMap
from meridian.wire.votes import Ask

_HASH_BYTES = 8


class Share:
    """What one voter must hold: the keys of all chunks so far that are its own."""

    __slots__ = ("bounds", "hashes_bytes", "prints")

    def __init__(self) -> None:
        self.prints: list[Footprint] = []
        self.bounds: Bounds = ()
        self.hashes_bytes = 0


class Plan:
    """The voters of one transaction, whose leader is known."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.voters: tuple[int, ...] = ()
        self.everywhere = False
        self._shares: dict[int, Share] = {}
        self._wholes: list[Footprint] = []
        self._packed: list[tuple[int, bytes, Bounds]] = []

    def add(self, found: Cut) -> None:
        """One more chunk. Raises KEYS_ELSEWHERE."""
        self.everywhere = self.everywhere or found.everywhere
        self._wholes.append(
            msgspec.structs.replace(found.whole, writes=b"", shares=b"", checks=b"")
        )
        for owner, part in found.parts.items():
            if owner == self.leader:
                continue
            share = self._shares.setdefault(owner, Share())
            print_ = part.footprint
            share.prints.append(print_)
            share.bounds += part.bounds
            share.hashes_bytes += len(print_.writes) + len(print_.shares) + len(print_.checks)
            if share.hashes_bytes > _HASH_BYTES * HOLD_KEYS:
                raise MeridianError(Kind.KEYS_ELSEWHERE, limit=HOLD_KEYS)

    def close(self, map_: PartitionMap) -> Plan | None:
        """All chunks are known; None: the leader alone decides."""
        owners: Iterable[int] = map_.everybody() if self.everywhere else sorted(self._shares)
        self.voters = tuple(owner for owner in owners if owner != self.leader)
        whole = _relations(self._wholes)
        for voter in self.voters:
            share = self._shares.get(voter) or Share()
            print_ = msgspec.structs.replace(
                whole,
                writes=b"".join(one.writes for one in share.prints),
                shares=b"".join(one.shares for one in share.prints),
                checks=b"".join(one.checks for one in share.prints),
            )
            self._packed.append((voter, pack(print_), share.bounds))
        self._shares.clear()
        self._wholes.clear()
        return self if self.voters else None

    def asks(self, event: ev.Commit) -> Iterator[tuple[int, Ask]]:
        """What goes to each voter for this attempt."""
        for voter, print_, bounds in self._packed:
            yield (
                voter,
                Ask(
                    event.txid,
                    event.attempt,
                    event.epoch,
                    event.tau_start,
                    event.catver,
                    print_,
                    bounds,
                    self.everywhere,
                ),
            )


def _relations(prints: Sequence[Footprint]) -> Footprint:
    """The relations of all chunks of a write set, without keys."""
    if len(prints) == 1:
        return prints[0]
    reaches = [one.reach for one in prints if one.reach is not None]
    return Footprint(
        b"",
        b"",
        b"",
        _union(one.sids for one in prints),
        Schema(
            _union(one.schema.touched for one in prints),
            _union(one.schema.read for one in prints),
        ),
        max(one.catalog_version for one in prints),
        _union(one.written for one in prints),
        _union(one.row_locked for one in prints),
        _union(one.locked for one in prints),
        _union(one.shared for one in prints),
        reaches[-1] if reaches else None,
    )


def _union(parts: Iterable[Iterable[int]]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(sid for part in parts for sid in part))


def cut_chunk(chunk: bytes, map_: PartitionMap) -> Cut:
    """Raises BAD_WRITE_SET."""
    try:
        return cut(chunk, map_)
    except BadWriteSet as error:
        raise MeridianError(Kind.BAD_WRITE_SET, why=str(error)) from None


def plan(chunks: Sequence[bytes], map_: PartitionMap, leader: int) -> Plan | None:
    """Who must vote on these chunks. Raises BAD_WRITE_SET, KEYS_ELSEWHERE."""
    made = Plan(leader)
    for chunk in chunks:
        made.add(cut_chunk(chunk, map_))
    return made.close(map_)


def leader_of_small(found: Cut, map_: PartitionMap) -> int:
    """Who decides a transaction of one chunk: the lowest of its owners (5.3)."""
    return owners_of([found], map_)[0]


def leader_of_large(found: Cut, map_: PartitionMap) -> int:
    """Who decides a large transaction, by its first chunk: the owner of most of its keys.

    Voters hold few keys (HOLD_KEYS), and the following chunks are probably like the first.
    """
    if not found.parts:
        return owners_of([found], map_)[0]
    return max(found.parts, key=lambda owner: (_count(found, owner), -owner))


def _count(found: Cut, owner: int) -> int:
    print_ = found.parts[owner].footprint
    return len(print_.writes) + len(print_.shares) + len(print_.checks)
