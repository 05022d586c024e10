"""Who must take part in a commit over several adjudicators, and what each must hold (5.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from meridian.adjudicator import events as ev
from meridian.adjudicator.cut import Bounds, Cut, Part, cut, owners_of, pack
from meridian.adjudicator.footprint import BadWriteSet, Footprint, Schema
from meridian.errors import Kind, MeridianError
from meridian.limits import AHEAD_KEYS, AHEAD_SEND_KEYS
from meridian.wire.partition import PartitionMap
from meridian.wire.votes import Ahead, Ask

_HASH_BYTES = 8


class Share:
    """What one voter must hold: the keys that are its own, those sent ahead excepted."""

    __slots__ = ("ahead", "bounds", "hashes_bytes", "prints", "total_bytes")

    def __init__(self) -> None:
        self.prints: list[Footprint] = []
        self.bounds: list[Bounds] = []
        self.hashes_bytes = 0
        self.total_bytes = 0
        self.ahead = 0
        """Messages sent so far."""

    def add(self, part: Part) -> None:
        """Raises KEYS_ELSEWHERE."""
        print_ = part.footprint
        size_bytes = len(print_.writes) + len(print_.shares) + len(print_.checks)
        self.prints.append(print_)
        self.bounds.append(part.bounds)
        self.hashes_bytes += size_bytes
        self.total_bytes += size_bytes
        if self.total_bytes > _HASH_BYTES * AHEAD_KEYS:
            raise MeridianError(Kind.KEYS_ELSEWHERE, limit=AHEAD_KEYS)

    def all_bounds(self) -> Bounds:
        """Of the keys that are still here."""
        return tuple(bound for some in self.bounds for bound in some)

    def hashes(self) -> tuple[bytes, bytes, bytes]:
        """(written, shared, checked)."""
        return (
            b"".join(one.writes for one in self.prints),
            b"".join(one.shares for one in self.prints),
            b"".join(one.checks for one in self.prints),
        )

    def send_ahead(self, txid: bytes, tau_start: int) -> Ahead:
        """The message with all keys that are here; they are forgotten."""
        writes, shares, checks = self.hashes()
        message = Ahead(txid, tau_start, self.ahead, writes, shares + checks, self.all_bounds())
        self.ahead += 1
        self.hashes_bytes = 0
        self.prints.clear()
        self.bounds.clear()
        return message


class Plan:
    """The voters of one transaction, whose leader is known; `txid` is what its leader calls it.

    Keys beyond AHEAD_SEND_KEYS of one voter leave by `ahead`, chunk by chunk, so that a plan stays
    small whatever the transaction.
    """

    def __init__(self, leader: int, txid: bytes = b"", tau_start: int = 0) -> None:
        self.leader = leader
        self.txid = txid
        self.tau_start = tau_start
        self.voters: tuple[int, ...] = ()
        self.everywhere = False
        self.sent: dict[int, None] = {}
        """Voters that got keys ahead."""
        self._shares: dict[int, Share] = {}
        self._wholes: list[Footprint] = []
        self._packed: list[tuple[int, bytes, Bounds, int]] = []

    def add(self, found: Cut) -> None:
        """One more chunk. Raises KEYS_ELSEWHERE."""
        self.everywhere = self.everywhere or found.everywhere
        whole = msgspec.structs.replace(found.whole, writes=b"", shares=b"", checks=b"")
        if not self._wholes or self._wholes[-1] != whole:
            self._wholes.append(whole)
        for owner, part in found.parts.items():
            if owner != self.leader:
                self._shares.setdefault(owner, Share()).add(part)

    def ahead(self) -> Iterator[tuple[int, Ahead]]:
        """What goes to voters now, before they are asked."""
        for voter, share in self._shares.items():
            if share.hashes_bytes > _HASH_BYTES * AHEAD_SEND_KEYS:
                self.sent[voter] = None
                yield voter, share.send_ahead(self.txid, self.tau_start)

    def close(self, map_: PartitionMap) -> Plan | None:
        """All chunks are known; None: the leader alone decides."""
        owners: Iterable[int] = map_.everybody() if self.everywhere else sorted(self._shares)
        self.voters = tuple(owner for owner in owners if owner != self.leader)
        whole = _relations(self._wholes)
        for voter in self.voters:
            share = self._shares.get(voter) or Share()
            writes, shares, checks = share.hashes()
            print_ = msgspec.structs.replace(whole, writes=writes, shares=shares, checks=checks)
            self._packed.append((voter, pack(print_), share.all_bounds(), share.ahead))
        self._shares.clear()
        self._wholes.clear()
        return self if self.voters else None

    def asks(self, event: ev.Commit) -> Iterator[tuple[int, Ask]]:
        """What goes to each voter for this attempt."""
        for voter, print_, bounds, ahead in self._packed:
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
                    ahead,
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


def leader_of_small(found: Cut, map_: PartitionMap) -> int:
    """Who decides a transaction of one chunk: the lowest of its owners (5.3)."""
    return owners_of([found], map_)[0]


def leader_of_large(found: Cut, map_: PartitionMap) -> int:
    """Who decides a large transaction, by its first chunk: the owner of most of its keys.

    What voters must hold is sent to them; the following chunks are probably like the first.
    """
    if not found.parts:
        return owners_of([found], map_)[0]
    return max(found.parts, key=lambda owner: (_count(found, owner), -owner))


def _count(found: Cut, owner: int) -> int:
    print_ = found.parts[owner].footprint
    return len(print_.writes) + len(print_.shares) + len(print_.checks)
