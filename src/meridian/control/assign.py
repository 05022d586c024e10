"""Where new relations go when the shards of one machine are a fixed number (pure)."""

from __future__ import annotations

from collections.abc import Sequence

SYSTEM_SHARD = 0
"""Holds the system's relations, and whatever nobody was chosen for."""


def shard_of_new(sizes_bytes: Sequence[int], relations: Sequence[int]) -> int:
    """The shard for a relation that is about to be made: the smallest, then that with fewest.

    Shard 0 takes one only when it is alone. Freshly made relations are empty: their number counts
    like a little data, so that a schema spreads before its rows come.
    """
    assert len(sizes_bytes) == len(relations) >= 1
    if len(sizes_bytes) == 1:
        return SYSTEM_SHARD
    return min(
        range(1, len(sizes_bytes)),
        key=lambda shard: (sizes_bytes[shard] >> 20, relations[shard], shard),
    )


def cut_wanted(
    sizes_bytes: Sequence[int], largest_rows: Sequence[int], bound_rows: int
) -> tuple[int, int] | None:
    """(source, target): the source's largest relation shall give its upper half to the target.

    Only a relation above the bound is cut, and only towards a shard that is half as large at most:
    what was moved does not come back.
    """
    others = range(1, len(sizes_bytes))
    large = [shard for shard, rows in enumerate(largest_rows) if rows > bound_rows]
    if not large or not others:
        return None
    source = max(large, key=lambda shard: (sizes_bytes[shard], -shard))
    target = min(others, key=lambda shard: (sizes_bytes[shard], shard))
    if target == source or 2 * sizes_bytes[target] > sizes_bytes[source]:
        return None
    return source, target
