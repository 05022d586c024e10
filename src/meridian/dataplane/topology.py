"""How many adjudicators and journals a cluster has, and who owns which keys in the beginning.

An *adjudicator* here is a share of the keys; a journal has one writer, an adjudicator core with the
journal's number. With more shares than journals a core owns several of them; with more journals
than shares some journals are idle. The first partition map follows from the two numbers by a rule
(`first_map`), which is never changed: a journal without RELEASE and ACQUIRE records belongs to
whom the rule says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from meridian.errors import Kind, MeridianError
from meridian.limits import ADJUDICATORS_MAX, JOURNALS_MAX
from meridian.metadata.identities import get_value, set_value
from meridian.metadata.store import MetadataStore
from meridian.wire.partition import EVERYTHING, FIRST, LAST, NOBODY, PartitionMap, Place, Span

TOPOLOGY_KEY: Final = "topology"
"""Metadata: the `Topology` that the directory was made with; it never changes."""
WANTED_KEY: Final = "topology/wanted"
"""Metadata: the `Topology` that it has or is on its way to, and whether it has arrived.

A hint: what is owned is said by the journals, and the way goes on from what they say.
"""
VERSION = 1

_SID_FIRST = 1_000
_SIDS_CUT = 512
"""Relations from the first on whose keys are cut inside."""
_GROUP = 32
"""Following relations that have the same owner of most of their keys: a table and its indexes."""
_GROUPS = 256
_SEQUENCES_SID = 2
_SEQUENCES_CUT = 64
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, int]).decode
_decode_wanted = msgspec.msgpack.Decoder(tuple[int, int, int, bool]).decode


class Topology(msgspec.Struct, frozen=True):
    """Shards of the key space, and journals."""

    adjudicators: int = 1
    journals: int = 1

    def check(self) -> Topology:
        """Raises BAD_TOPOLOGY."""
        if not 1 <= self.adjudicators <= ADJUDICATORS_MAX:
            raise _bad(f"--adjudicators must be 1 to {ADJUDICATORS_MAX}")
        if not 1 <= self.journals <= JOURNALS_MAX:
            raise _bad(f"--journals must be 1 to {JOURNALS_MAX}")
        return self


def _bad(why: str) -> MeridianError:
    return MeridianError(Kind.BAD_TOPOLOGY, why=why)


ADJUDICATORS_VARIABLE = "MERIDIAN_ADJUDICATORS"
JOURNALS_VARIABLE = "MERIDIAN_JOURNALS"
"""Environment: the topology of directories that are made where none is given; for tests."""


def _wanted_first(adjudicators: int | None, journals: int | None) -> Topology:
    """Of a new directory. Raises BAD_TOPOLOGY."""
    return Topology(
        adjudicators or _from_environment(ADJUDICATORS_VARIABLE, 1),
        journals or _from_environment(JOURNALS_VARIABLE, 1),
    ).check()


def _from_environment(name: str, fallback: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else fallback


class Settled(msgspec.Struct, frozen=True):
    """What a directory was made with, and what it is to be."""

    made: Topology
    wanted: Topology
    done: bool
    """It is as wanted, as far as is known."""


def settle(
    store: MetadataStore, adjudicators: int | None, journals: int | None, *, used: bool
) -> Settled:
    """The directory's topology; a new directory gets the one that is wanted.

    `used`: there is a journal already. None: as it is. Raises BAD_TOPOLOGY, UNKNOWN_FORMAT.
    """
    found = get_value(store, TOPOLOGY_KEY)
    if found is None:
        # Directories from before this was written have one of each.
        made = Topology() if used else _wanted_first(adjudicators, journals)
        set_value(store, TOPOLOGY_KEY, _encode((VERSION, made.adjudicators, made.journals)))
    else:
        version, *numbers = _decode(found)
        if version != VERSION:
            raise _bad(f"the directory's topology has the unknown version {version}")
        made = Topology(*numbers)
    now, done = _wanted(store) or (made, True)
    wanted = Topology(adjudicators or now.adjudicators, journals or now.journals).check()
    if wanted != now:
        want(store, wanted, done=False)
        done = False
    return Settled(made, wanted, done)


def _wanted(store: MetadataStore) -> tuple[Topology, bool] | None:
    found = get_value(store, WANTED_KEY)
    if found is None:
        return None
    version, adjudicators, journals, done = _decode_wanted(found)
    if version != VERSION:
        raise _bad(f"the topology wanted has the unknown version {version}")
    return Topology(adjudicators, journals), done


def want(store: MetadataStore, wanted: Topology, *, done: bool) -> None:
    """Remembers what the directory is to be, or is."""
    value = (VERSION, wanted.adjudicators, wanted.journals, done)
    set_value(store, WANTED_KEY, _encode(value))


Range = tuple[Place, Place]

# The first map

_INTEGER = b"\x01\x80" + bytes(6)
"""Begins the keys of integers below 256 (docs/formats.md, "Keys"); one byte follows."""
_INSIDE: Final = (
    # First key, next one, and how many shares further on: the numbers 3 through 9 and 16 through
    # 19, as hidden ids and as the first column of a key; text from m through o.
    (bytes(7) + b"\x03", bytes(7) + b"\x0a", 1),
    (b"\x01m", b"\x01p", 1),
    (_INTEGER + b"\x03", _INTEGER + b"\x0a", 1),
    (_INTEGER + b"\x10", _INTEGER + b"\x14", 2),
)


def first_map(topology: Topology, journals: Sequence[int] = ()) -> PartitionMap:
    """Version 1 of the partition map; `journals`: their numbers, if not 0, 1, ...

    Most keys of a relation have one owner, and so do those of the relations made about then: a
    table is loaded into one owner's ranges together with its indexes. Small keys of the first
    relations lie elsewhere, so that small databases too use all owners. It is a beginning: ranges
    move by RELEASE and ACQUIRE.
    """
    shares = topology.adjudicators
    numbers = journals or range(topology.journals)
    starts: list[Place] = []
    owners: list[int] = []
    for place, share in _borders(shares):
        owner = numbers[share % shares % topology.journals]
        if not owners or owners[-1] != owner:
            starts.append(place)
            owners.append(owner)
    return PartitionMap(1, tuple(starts), tuple(owners))


def _borders(shares: int) -> Iterator[tuple[Place, int]]:
    yield FIRST, 0
    if shares == 1:
        return
    for number in range(_SEQUENCES_CUT):
        yield (_SEQUENCES_SID, (_SID_FIRST + 4 * number).to_bytes(8, "big")), number
    yield (_SEQUENCES_SID + 1, b""), 0
    for number in range(_SIDS_CUT):
        sid, share = _SID_FIRST + number, number // _GROUP
        yield (sid, b""), share
        for lo, hi, further in _INSIDE:
            yield (sid, lo), share + further
            yield (sid, hi), share
    for group in range(_SIDS_CUT // _GROUP, _GROUPS):
        yield (_SID_FIRST + group * _GROUP, b""), group


def spans_of(map_: PartitionMap, owner: int) -> tuple[Span, ...]:
    """What one adjudicator is made with."""
    if map_.owners == (owner,):
        return (EVERYTHING,)
    ends = [*map_.starts[1:], LAST]
    rows = zip(map_.starts, ends, map_.owners, strict=True)
    return tuple(Span(lo, hi) for lo, hi, whose in rows if whose == owner)


def joined(version: int, spans: Sequence[tuple[int, Sequence[Span]]]) -> PartitionMap:
    """The map of (owner, its spans); what nobody has, because it moves, is NOBODY's."""
    found = sorted(((span.lo, span.hi, owner) for owner, some in spans for span in some))
    starts: list[Place] = []
    owners: list[int] = []
    reached = FIRST

    def add(place: Place, owner: int) -> None:
        if not owners or owners[-1] != owner:
            starts.append(place)
            owners.append(owner)

    for lo, hi, owner in found:
        if lo > reached:
            add(reached, NOBODY)
        add(max(lo, reached), owner)
        reached = max(hi, reached)
    if reached < LAST:
        add(reached, NOBODY)
    return PartitionMap(version, tuple(starts), tuple(owners))


def moved(map_: PartitionMap, parts: Sequence[Range], target: int) -> PartitionMap:
    """The next version, by which `target` has these ranges (ascending, disjoint) too."""
    ends = [*map_.starts[1:], LAST]
    spans: dict[int, list[Span]] = {}
    at = 0
    for lo, hi, owner in zip(map_.starts, ends, map_.owners, strict=True):
        reached = lo
        while at < len(parts) and parts[at][1] <= lo:
            at += 1
        inside = at
        while inside < len(parts) and parts[inside][0] < hi:
            if reached < parts[inside][0]:
                spans.setdefault(owner, []).append(Span(reached, parts[inside][0]))
            reached = max(reached, min(parts[inside][1], hi))
            inside += 1
        if reached < hi:
            spans.setdefault(owner, []).append(Span(reached, hi))
    spans.setdefault(target, []).extend(Span(lo, hi) for lo, hi in parts)
    return joined(map_.version + 1, sorted(spans.items()))


def differences(now: PartitionMap, wanted: PartitionMap) -> dict[tuple[int, int], list[Range]]:
    """What must move: (from, to) to ranges, ascending, neighbours joined."""
    found: dict[tuple[int, int], list[Range]] = {}
    borders = sorted({*now.starts, *wanted.starts})
    for lo, hi in zip(borders, [*borders[1:], LAST], strict=True):
        source, target = now.owner(lo), wanted.owner(lo)
        if source == target:
            continue
        parts = found.setdefault((source, target), [])
        if parts and parts[-1][1] == lo:
            parts[-1] = (parts[-1][0], hi)
        else:
            parts.append((lo, hi))
    return dict(sorted(found.items()))
