"""What the control core is told, and what it may ask for (pure)."""

from __future__ import annotations

import msgspec

from meridian.wire.ranges import Range, cover

# Reports: what somebody says of itself, at a time of the clock. Older ones never replace newer.


class HostReport(msgspec.Struct, frozen=True):
    """A host that can take replicas and owners."""

    host: int
    at: int
    zone: int = 0


class ReplicaReport(msgspec.Struct, frozen=True):
    """A storage replica: what it owns, and whether it is complete enough to serve it.

    Writes are what comes anew.  What it reads to catch up, or a second time, is no load: a copy
    that was just built would be split, and the cold halves merged into the next one.
    """

    replica: int
    host: int
    at: int
    lo: bytes
    hi: bytes
    complete: bool
    size_bytes: int = 0
    reads_per_s: int = 0
    writes_per_s: int = 0
    middle: bytes = b""
    """A place near the middle of its data (or of its heat); empty: it cannot be split."""

    @property
    def range(self) -> Range:
        """Its places."""
        return Range(self.lo, self.hi)


class AdjudicatorReport(msgspec.Struct, frozen=True):
    """The owner of a journal, from the host where it runs; from its SEAL on, before it serves.

    A new owner may wait for the old lease to end: whoever takes it for silent until then makes it
    start anew, again and again.
    """

    adjudicator: int
    host: int
    at: int
    commits_per_s: int = 0
    middle: bytes = b""


Report = HostReport | ReplicaReport | AdjudicatorReport

# Actions: each has a number, which its performer answers with, and a reason for people.


class AddReplica(msgspec.Struct, frozen=True):
    """Build a replica of a range on a host, from snapshot and journal."""

    action: int
    replica: int
    host: int
    lo: bytes
    hi: bytes
    reason: str


class Shrink(msgspec.Struct, frozen=True):
    """A replica keeps [lo, hi) only.

    Performed only while the map in force (the metadata store is asked) is `map_version`, and not
    after `expires`: a map never takes from a replica what that very map says it has.
    """

    action: int
    replica: int
    lo: bytes
    hi: bytes
    map_version: int
    expires: int
    reason: str


class Remove(msgspec.Struct, frozen=True):
    """A replica ends; its file goes. Performed only as Shrink is."""

    action: int
    replica: int
    map_version: int
    expires: int
    reason: str


class Publish(msgspec.Struct, frozen=True):
    """Make this the map, if the one in force is version - 1 (compare and set); not after
    `expires`."""

    action: int
    shards: tuple[tuple[bytes, bytes, tuple[int, ...]], ...]
    version: int
    expires: int
    reason: str


class TakeOver(msgspec.Struct, frozen=True):
    """A host shall own a journal whose owner is silent: it fences the old one (6.5)."""

    action: int
    adjudicator: int
    host: int
    reason: str


class MoveKeys(msgspec.Struct, frozen=True):
    """An adjudicator shall release its keys from `at` on to another one (5.8)."""

    action: int
    source: int
    target: int
    at: bytes
    reason: str


Action = AddReplica | Shrink | Remove | Publish | TakeOver | MoveKeys


class Placed(msgspec.Struct, frozen=True, array_like=True):
    """A shard of the map."""

    lo: bytes
    hi: bytes
    replicas: tuple[int, ...]

    @property
    def range(self) -> Range:
        """Its places."""
        return Range(self.lo, self.hi)


def whole(shards: tuple[Placed, ...]) -> bool:
    """Do the shards leave no hole?"""
    return cover([one.range for one in shards], Range(b"", b"\x80"))
