"""The crossbar: merges the journals of a cluster by tau and feeds subscribers (design section 7).

Pure: `step(event) -> effects`.  Each subscriber gets the transactions of all journals in one total
order, by tau, and the tau through which it is complete.
"""

from __future__ import annotations

import msgspec

from meridian.journal.core import Payload, Position
from meridian.journal.record import Record


class Transaction(msgspec.Struct, frozen=True):
    """One committed transaction as its journal holds it.

    `bodies` are the n of its BODY records in `journal`, in order; `chunk` is its last (often only)
    chunk.
    """

    tau: int
    journal: int
    n: int
    txid: bytes
    flags: int
    bodies: tuple[int, ...]
    chunk: bytes


# Events


class AddJournal(msgspec.Struct, frozen=True):
    """A journal to merge; its next record follows `position`."""

    journal: int
    position: Position


class Accepted(msgspec.Struct, frozen=True):
    """Durable records that a journal.core.Reader accepted, in order, with their payloads."""

    journal: int
    records: list[tuple[Record, Payload]]


class Beat(msgspec.Struct, frozen=True):
    """A heartbeat of a journal's owner (4.6)."""

    journal: int
    epoch: tuple[int, int]
    n: int
    tau: int


class Subscribe(msgspec.Struct, frozen=True):
    """A subscriber that holds everything through `tau` and takes up to `credit` bytes unasked."""

    subscriber: int
    tau: int
    credit: int


class Credit(msgspec.Struct, frozen=True):
    """The subscriber has taken `size_bytes` of what was delivered."""

    subscriber: int
    size_bytes: int


class Unsubscribe(msgspec.Struct, frozen=True):
    """The subscriber is gone."""

    subscriber: int


Event = AddJournal | Accepted | Beat | Subscribe | Credit | Unsubscribe

# Effects


class Body(msgspec.Struct, frozen=True):
    """One chunk of a large transaction that is still open, as it arrives."""

    txid: bytes
    journal: int
    n: int
    seq: int
    chunk: bytes


class Dropped(msgspec.Struct, frozen=True):
    """An open large transaction that will never commit."""

    txid: bytes
    journal: int
    n: int


Item = Transaction | Body | Dropped


class Deliver(msgspec.Struct, frozen=True):
    """`items` in order, then: complete through `tau`.

    `positions` are (journal, n) through which everything was delivered.
    """

    subscriber: int
    items: list[Item]
    tau: int
    positions: tuple[tuple[int, int], ...]


class CutLoose(msgspec.Struct, frozen=True):
    """The subscriber is too slow: it must catch up from journal or snapshot and subscribe again."""

    subscriber: int
    reason: str


Effect = Deliver | CutLoose
