"""What journal records hold and the rules by which a reader accepts them (design section 6).

A journal is one totally ordered stream of records.  A record is accepted or void; which of the two
depends only on the records before it, so every reader of a stream accepts the same ones.

- A marker (EPOCH) is accepted if its number is higher than that of every marker before it (6.1).
- Any other record is accepted only if its epoch equals the highest marker before it (6.1), the
  SEAL of that epoch came first (6.5), and its n is the next one (6.2).
"""

from __future__ import annotations

from zlib import crc32

import msgspec

from meridian.journal.record import NO_TXID, Record, RecordKind
from meridian.wire.partition import Holding

EPOCH = int(RecordKind.EPOCH)
COMMIT = int(RecordKind.COMMIT)
BODY = int(RecordKind.BODY)
LEASE = int(RecordKind.LEASE)
SEAL = int(RecordKind.SEAL)
ADD = int(RecordKind.ADD)
CLOSE = int(RecordKind.CLOSE)
SKIP = int(RecordKind.SKIP)
ABORT = int(RecordKind.ABORT)
RELEASE = int(RecordKind.RELEASE)
ACQUIRE = int(RecordKind.ACQUIRE)

PAYLOAD_VERSION = 1
"""First byte of every payload; another version is refused."""

EpochId = tuple[int, int]
"""(number, nonce): number grows with every take-over, nonce tells two claims of one apart."""
NO_EPOCH: EpochId = (0, 0)


class JournalError(Exception):
    """The stream breaks a rule that no crash explains: damage, or a bug of a writer."""


class Marker(msgspec.Struct, array_like=True, frozen=True):
    """EPOCH: `owner` writes from here on.  n = 0: its writer does not know where history ends."""

    owner: int


class Seal(msgspec.Struct, array_like=True, frozen=True):
    """SEAL: history ended one before it, the old lease at `lease_old`; `lease` is the first.

    In a coded journal (6.5): everything through `base`, where the epoch `prior` was in force, was
    valid on two streams; what lies between `base` and the SEAL was adopted and comes before it.
    """

    lease_old: int
    lease: int
    base: int = 0
    prior: EpochId = NO_EPOCH


class Lease(msgspec.Struct, array_like=True, frozen=True):
    """LEASE: durable before any promise up to `lease` (6.6)."""

    lease: int


class Body(msgspec.Struct, array_like=True, frozen=True):
    """BODY: one chunk of a large transaction, without tau (6.3).

    It may name relations that another journal's commit made, at or below `tau_start`.
    """

    seq: int
    chunk: bytes
    tau_start: int = 0


class Commit(msgspec.Struct, array_like=True, frozen=True):
    """COMMIT: a committed transaction: its bodies in order, then `chunk`.

    `bodies` are the n of its BODY records, `crc` the CRC-32 over their chunks and then `chunk` (0
    without bodies); `lease` renews the lease on the way.
    """

    lease: int
    tau_start: int
    catver: int
    flags: int
    bodies: tuple[int, ...]
    crc: int
    chunk: bytes
    catalog: int = 0
    """The catalog version that this transaction makes, 0 if none."""


class Abort(msgspec.Struct, array_like=True, frozen=True):
    """ABORT: the transaction will never commit; outcomes are final across take-overs too (5.6)."""

    lease: int
    tau_start: int
    code: int


class Add(msgspec.Struct, array_like=True, frozen=True):
    """ADD, a record of journal 0: `journal` exists, all its taus exceed the record's tau (4.7)."""

    journal: int


class Close(msgspec.Struct, array_like=True, frozen=True):
    """CLOSE: the journal's last record, an infinite heartbeat (4.7)."""


class Release(msgspec.Struct, array_like=True, frozen=True):
    """RELEASE: the range of `holding.released` is not the writer's any more (5.8)."""

    lease: int
    holding: Holding


class Acquire(msgspec.Struct, array_like=True, frozen=True):
    """ACQUIRE: a released range is the writer's from here on (5.8)."""

    lease: int
    holding: Holding


class Skip(msgspec.Struct, array_like=True, frozen=True):
    """SKIP: records `first` through the own n are not here (6.2).

    In one of three streams: both others hold them.  In a journal: one body of a transaction that
    never commits.
    """

    first: int


Payload = Marker | Seal | Lease | Body | Commit | Abort | Add | Close | Release | Acquire | Skip

_TYPES: dict[int, type[Payload]] = {
    EPOCH: Marker,
    SEAL: Seal,
    LEASE: Lease,
    BODY: Body,
    COMMIT: Commit,
    ABORT: Abort,
    ADD: Add,
    CLOSE: Close,
    RELEASE: Release,
    ACQUIRE: Acquire,
    SKIP: Skip,
}
_KINDS = {payload: kind for kind, payload in _TYPES.items()}
_DECODERS = {kind: msgspec.msgpack.Decoder(payload) for kind, payload in _TYPES.items()}
_encode = msgspec.msgpack.Encoder().encode
_VERSION = bytes((PAYLOAD_VERSION,))


def make(epoch: EpochId, n: int, payload: Payload, tau: int = 0, txid: bytes = NO_TXID) -> Record:
    """The record of a payload."""
    fields = _KINDS[type(payload)], epoch, n, tau, txid, _VERSION + _encode(payload)
    # What Record(*fields) does, without its interpreted constructor.
    return tuple.__new__(Record, fields)


def payload_of(record: Record) -> Payload:
    """The payload of a record.  Raises JournalError on unknown versions and malformed bytes."""
    data = record.payload
    decoder = _DECODERS.get(record.kind)
    if decoder is None or len(data) == 0 or data[0] != PAYLOAD_VERSION:
        raise JournalError(f"record {record.n}: unknown kind {record.kind} or payload version")
    try:
        payload: Payload = decoder.decode(memoryview(data)[1:])
    except msgspec.DecodeError as error:
        raise JournalError(f"record {record.n}: malformed payload: {error}") from error
    return payload


class Position(msgspec.Struct, array_like=True, frozen=True):
    """Where a reader stands or a trimmed journal begins (6.7): everything through `n` lies before.

    `epoch` is the highest marker, `sealed` whether its SEAL was read, `lease` the highest lease,
    `tau` the newest commit, `members` the journals added so far (journal 0 only), `closed` after
    CLOSE.
    """

    epoch: EpochId = NO_EPOCH
    n: int = 0
    sealed: bool = False
    lease: int = 0
    tau: int = 0
    members: tuple[int, ...] = ()
    closed: bool = False
    catalog: int = 0
    holding: Holding | None = None
    """What the writer owns, if ranges have come or gone."""


class Reader:
    """Accepts or voids the records of one journal stream, in order.

    Of an open large transaction only the n and the running CRC of its bodies are kept.
    """

    def __init__(self, position: Position | None = None) -> None:
        start = position or Position()
        self.epoch = start.epoch
        self.n = start.n
        self.sealed = start.sealed
        self.lease = start.lease
        self.tau = start.tau
        self.members = start.members
        self.closed = start.closed
        self.catalog = start.catalog
        self.holding = start.holding
        self.void_count = 0
        self._open: dict[bytes, tuple[list[int], int]] = {}

    def position(self) -> Position:
        """Where this reader stands.  A trim position only while `open_n()` is None."""
        return Position(
            self.epoch,
            self.n,
            self.sealed,
            self.lease,
            self.tau,
            self.members,
            self.closed,
            self.catalog,
            self.holding,
        )

    def open_n(self) -> int | None:
        """The first n of the oldest open large transaction; trim must stay below it (6.7)."""
        return min((bodies[0] for bodies, _ in self._open.values()), default=None)

    def accept(self, record: Record) -> Payload | None:
        """The payload of an accepted record, None for a void one.

        Raises JournalError on what only damage or a writer's bug explains.
        """
        if record.kind == EPOCH:
            return self._accept_marker(record)
        if record.epoch != self.epoch or self.closed or record.n != self.n + 1:
            self.void_count += 1
            return None
        if self.sealed == (record.kind == SEAL):
            self.void_count += 1
            return None
        payload = payload_of(record)
        self._check(record, payload)
        self.n = record.n
        return payload

    def _accept_marker(self, record: Record) -> Payload | None:
        if record.epoch[0] <= self.epoch[0] or self.closed:
            self.void_count += 1
            return None
        if record.n not in (0, self.n + 1):
            raise JournalError(f"marker {record.n} does not follow record {self.n}")
        self.epoch = record.epoch
        self.sealed = False
        self.n = max(self.n, record.n)
        # Bodies and their commit record share an epoch: open ones can never be completed (6.3).
        self._open.clear()
        return payload_of(record)

    def _check(self, record: Record, payload: Payload) -> None:
        match payload:
            case Commit():
                self._check_commit(record, payload)
                self._renew(payload.lease)
                self.catalog = max(self.catalog, payload.catalog)
            case Body():
                self._check_body(record, payload)
            case Abort():
                self._open.pop(record.txid, None)
                self._renew(payload.lease)
            case Lease():
                self._renew(payload.lease)
            case Seal():
                if payload.lease_old < max(self.lease, self.tau):
                    raise JournalError(f"record {record.n}: SEAL forgets a lease or a commit")
                self.sealed = True
                self._renew(payload.lease)
            case Add():
                self._check_tau(record)
                self.members = (*self.members, payload.journal)
            case Close():
                self._check_tau(record)
                self.closed = True
            case Release() | Acquire():
                self.holding = payload.holding
                self._renew(payload.lease)
            case Skip():
                if payload.first != record.n:
                    raise JournalError(f"record {record.n}: records before it are missing")
            case Marker():
                raise AssertionError("markers are accepted elsewhere")

    def _renew(self, lease: int) -> None:
        self.lease = max(self.lease, lease)

    def _check_tau(self, record: Record) -> None:
        if record.tau <= self.tau:
            raise JournalError(f"record {record.n}: tau does not exceed {self.tau}")
        # Rule 4.4: nothing passes the lease that was durable before it.
        if record.tau > self.lease:
            raise JournalError(f"record {record.n}: tau passes the lease {self.lease}")
        self.tau = record.tau

    def _check_body(self, record: Record, body: Body) -> None:
        numbers, crc = self._open.setdefault(record.txid, ([], 0))
        if body.seq != len(numbers):
            raise JournalError(f"record {record.n}: body {body.seq} is out of order")
        numbers.append(record.n)
        self._open[record.txid] = (numbers, crc32(body.chunk, crc))

    def _check_commit(self, record: Record, commit: Commit) -> None:
        self._check_tau(record)
        numbers, crc = self._open.pop(record.txid, ([], 0))
        if tuple(numbers) != commit.bodies:
            raise JournalError(f"record {record.n}: its bodies are not those it names")
        if numbers and crc32(commit.chunk, crc) != commit.crc:
            raise JournalError(f"record {record.n}: its bodies fail their checksum")
