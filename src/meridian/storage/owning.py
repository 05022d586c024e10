"""Whether a file may answer a read: it owns the places, and is not below their base (pure).

Checked by every read in the very state that it reads, for ranges shrink while reads wait (design
section 8); the simulated replicas use the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence

from meridian.storage.errors import BelowHorizon, WrongPlace
from meridian.wire.ranges import Range, Ranges


def check_keys(ranges: Ranges, tau: int, sid: int, keys: Sequence[bytes]) -> None:
    """May sorted keys be read as of tau? Raises WrongPlace, BelowHorizon."""
    base = ranges.base_of_keys(sid, keys)
    if base is None:
        raise WrongPlace()
    if tau < base:
        raise BelowHorizon()


def scan_part(ranges: Ranges, tau: int, wanted: Range, *, descending: bool, clip: bool) -> Range:
    """The part of `wanted` that a scan as of tau may speak of: where it begins, as far as owned.

    Without `clip` all of it or WrongPlace. Raises WrongPlace, BelowHorizon.
    """
    found = ranges.clip(wanted, descending=descending)
    if found is None or (found[0] != wanted and not clip):
        raise WrongPlace()
    if tau < found[1]:
        raise BelowHorizon()
    return found[0]
