"""What adjudicators tell each other about a transaction over several owners (design 5.3-5.8).

A transaction id names its leader: its last byte is the leader's number.  Messages may be lost,
doubled, late and out of order; none of them is acted upon unless (id, attempt, leader epoch) match.
"""

from __future__ import annotations

import msgspec

from meridian.wire.partition import Handover, Span

EpochId = tuple[int, int]


def leader_of(txid: bytes) -> int:
    """The only adjudicator that may decide this transaction (5.6)."""
    return txid[-1]


def name_leader(random16: bytes, leader: int) -> bytes:
    """A transaction id that names its leader."""
    return random16[:-1] + bytes((leader,))


class Tally(msgspec.Struct, array_like=True, frozen=True):
    """Counts and sums (modulo 2^64) of conflict hashes: equal tallies hold the same keys.

    `shares` are those checked too.
    """

    writes: int = 0
    writes_sum: int = 0
    shares: int = 0
    shares_sum: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.writes + other.writes,
            (self.writes_sum + other.writes_sum) & _MASK,
            self.shares + other.shares,
            (self.shares_sum + other.shares_sum) & _MASK,
        )


_MASK = (1 << 64) - 1


class Ask(msgspec.Struct, frozen=True, tag=1):
    """To a voter, from whoever commits: hold these keys and tell the leader.

    `footprint`: packed, of the voter's keys only; `bounds`: (storage id, first key, last key) of
    each piece of it.  `everywhere`: the schema changes or a relation is locked, so that all owners
    must vote.
    """

    txid: bytes
    attempt: int
    epoch: EpochId
    tau_start: int
    catver: int
    footprint: bytes
    bounds: tuple[tuple[int, bytes, bytes], ...]
    everywhere: bool
    ahead: int = 0
    """So many Ahead messages brought further keys of this voter."""


class Vote(msgspec.Struct, frozen=True, tag=2):
    """To the leader.  `code` 0: the keys are held until the voter's clock passes `tau_max`.

    tau_commit must exceed `tau_a` and not exceed `tau_max`.  `spans`: what the voter owns, if it
    was asked as one of all owners.
    """

    voter: int
    txid: bytes
    attempt: int
    epoch: EpochId
    tau_start: int
    code: int
    tau_a: int = 0
    tau_max: int = 0
    tally: Tally = Tally()
    spans: tuple[Span, ...] = ()
    version: int = 0
    """A map version that the voter knows to exist, if the keys are not its own."""


class Verdict(msgspec.Struct, frozen=True, tag=3):
    """To the voters.  tau > 0: committed, and durable; 0: this attempt never commits."""

    txid: bytes
    attempt: int
    epoch: EpochId
    tau: int


class Released(msgspec.Struct, frozen=True, tag=4):
    """To the new owner of a range: RELEASE is durable.  Sent until Acquired comes."""

    handover: Handover


class Acquired(msgspec.Struct, frozen=True, tag=5):
    """To the old owner: ACQUIRE of its record `n` is durable."""

    target: int
    n: int


class Ahead(msgspec.Struct, frozen=True, tag=6):
    """To a voter: keys of a large transaction that it will be asked to hold; `seq` from 0.

    `writes`, `shares` (those checked too): hashes; `bounds` as in Ask.
    """

    txid: bytes
    tau_start: int
    seq: int
    writes: bytes
    shares: bytes
    bounds: tuple[tuple[int, bytes, bytes], ...]


class Forget(msgspec.Struct, frozen=True, tag=7):
    """To a voter: whoever sent keys ahead will not ask for this transaction again.

    A promise given for it stays.
    """

    txid: bytes


class Declined(msgspec.Struct, frozen=True, tag=8):
    """To the old owner: the journal of `target` has ended, so its record `n` is never acquired.

    The old owner takes the range back.
    """

    target: int
    n: int


Message = Ask | Vote | Verdict | Released | Acquired | Ahead | Forget | Declined
