"""tau: int64 nanoseconds whose low 8 bits are the assigner's number (design 4.1)."""

from __future__ import annotations

from typing import NamedTuple

ASSIGNER_BITS = 8
ASSIGNER_MASK = (1 << ASSIGNER_BITS) - 1
TAU_MAX = (1 << 63) - 1
"""`te` of a current version; CLOSE is a heartbeat at it."""


class Interval(NamedTuple):
    """A clock reading: true time lies in [earliest, latest], both ns since the epoch."""

    earliest: int
    latest: int


def next_tau(bound: int, assigner: int) -> int:
    """The smallest tau above `bound` that bears the assigner's number (design 4.1)."""
    assert 0 <= assigner <= ASSIGNER_MASK, assigner
    tau = (bound & ~ASSIGNER_MASK) | assigner
    if tau <= bound:
        tau += 1 << ASSIGNER_BITS
    assert bound < tau < TAU_MAX, (bound, tau)
    return tau


def assigner_of(tau: int) -> int:
    """The number of the journal's adjudicator that assigned this tau."""
    return tau & ASSIGNER_MASK
