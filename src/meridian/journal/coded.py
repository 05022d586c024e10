"""A journal over three streams (design section 6.4): what one stream holds, and the shards.

Everything but the bodies of large transactions is a full copy on each stream.  A body is cut in two
halves and their XOR, one per stream, so that any two streams give it back.

Pure, as all cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TypeVar
from zlib import crc32

import msgspec

from meridian.journal import core as journal
from meridian.journal.core import PAYLOAD_VERSION, EpochId, JournalError, Seal, payload_of
from meridian.journal.record import Record, RecordKind

STREAMS = 3
SHARD = int(RecordKind.SHARD)
ADOPT = int(RecordKind.ADOPT)


class Shard(msgspec.Struct, array_like=True, frozen=True):
    """SHARD: part `index` of a body; 0 and 1 are the halves, 2 their XOR.

    `size_bytes` and `crc` (CRC-32) are the body's, `seq` its place in its transaction.
    """

    seq: int
    index: int
    size_bytes: int
    crc: int
    tau_start: int
    data: bytes


class Adopt(msgspec.Struct, array_like=True, frozen=True):
    """ADOPT: the record with this n of an older epoch belongs to history (6.5)."""

    number: int
    nonce: int
    kind: int
    payload: bytes


_T = TypeVar("_T")
_VERSION = bytes((PAYLOAD_VERSION,))
_encode = msgspec.msgpack.Encoder().encode
_shard = msgspec.msgpack.Decoder(Shard)
_adopt = msgspec.msgpack.Decoder(Adopt)


def shard_of(record: Record) -> Shard:
    """The payload of a SHARD record.  Raises JournalError."""
    assert record.kind == SHARD
    return _decode(record, _shard)


def _decode(record: Record, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    if record.payload[:1] != _VERSION:
        raise JournalError(f"record {record.n}: unknown payload version")
    try:
        return decoder.decode(memoryview(record.payload)[1:])
    except msgspec.DecodeError as error:
        raise JournalError(f"record {record.n}: malformed payload: {error}") from error


def shards_of(record: Record) -> list[Record]:
    """The SHARD records of a BODY record, one per stream; parity goes round."""
    body = payload_of(record)
    assert isinstance(body, journal.Body)
    chunk, crc = body.chunk, crc32(body.chunk)
    half = (len(chunk) + 1) // 2
    low, high = chunk[:half], chunk[half:].ljust(half, b"\0")
    parts = (low, high, _xor(low, high))
    indexes = [(stream + record.n) % STREAMS for stream in range(STREAMS)]
    payloads = [
        Shard(body.seq, index, len(chunk), crc, body.tau_start, parts[index]) for index in indexes
    ]
    return [record._replace(kind=SHARD, payload=_VERSION + _encode(one)) for one in payloads]


def body_of(copies: Iterable[Record]) -> Record | None:
    """The BODY record of which these are shards; None while there are too few that agree.

    Shards combine only with equal (epoch, n, CRC) (6.4); a damaged one is outvoted by two others.
    """
    groups: dict[tuple[EpochId, int, int, int], dict[int, tuple[Record, Shard]]] = {}
    for record in copies:
        shard = shard_of(record)
        same = (record.epoch, record.n, shard.crc, shard.size_bytes)
        groups.setdefault(same, {})[shard.index] = (record, shard)
    for (epoch, n, crc, _), found in groups.items():
        for left in found:
            for right in found:
                if left < right:
                    chunk = _join(found[left][1], found[right][1])
                    if crc32(chunk) == crc:
                        record, shard = found[left]
                        body = journal.Body(shard.seq, chunk, shard.tau_start)
                        return journal.make(epoch, n, body, txid=record.txid)
    return None


def _xor(one: bytes, other: bytes) -> bytes:
    assert len(one) == len(other)
    number = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
    return number.to_bytes(len(one), "little")


def _join(left: Shard, right: Shard) -> bytes:
    """The chunk of two shards, left.index < right.index."""
    if len(left.data) != len(right.data):
        return b""
    if right.index != 2:
        halves = left.data, right.data
    elif left.index == 0:
        halves = left.data, _xor(left.data, right.data)
    else:
        halves = _xor(left.data, right.data), left.data
    return b"".join(halves)[: left.size_bytes]


def adopted(epoch: EpochId, record: Record) -> Record:
    """The ADOPT record that carries `record` into `epoch`."""
    assert record.epoch < epoch
    payload = Adopt(*record.epoch, record.kind, record.payload)
    return record._replace(kind=ADOPT, epoch=epoch, payload=_VERSION + _encode(payload))


def _original(record: Record) -> Record:
    payload = _decode(record, _adopt)
    epoch = (payload.number, payload.nonce)
    return record._replace(kind=payload.kind, epoch=epoch, payload=payload.payload)


class StreamPosition(msgspec.Struct, array_like=True, frozen=True):
    """Where a reader of one stream stands: after its message `index`, in what state."""

    index: int = 0
    epoch: EpochId = journal.NO_EPOCH
    n: int = 0
    sealed: bool = False


class Segment:
    """What one stream holds from one valid SEAL on, as far as it is not delivered."""

    __slots__ = ("adopted", "base", "epoch", "prior", "records", "seal", "skips")

    def __init__(self, epoch: EpochId, seal: Record | None, adopted: dict[int, Record]) -> None:
        self.epoch = epoch
        self.seal = seal
        self.adopted = adopted
        self.base = 0
        self.prior = journal.NO_EPOCH
        if seal is not None:
            payload = payload_of(seal)
            assert isinstance(payload, Seal)
            self.base, self.prior = payload.base, payload.prior
        self.records: dict[int, Record] = {}
        self.skips: list[tuple[int, int]] = []

    def skipped(self, n: int) -> bool:
        """Whether the stream left n out: then both others hold it."""
        return any(first <= n <= last for first, last in self.skips)


class StreamLog:
    """Accepts or voids the records of one of the three streams, in its order (6.1, 6.2).

    A record is valid if its epoch equals the highest marker before it, a valid SEAL of that epoch
    came before, and its n is the next one.  A SEAL is valid if the adopted records that it names
    stand between its marker and it.
    """

    def __init__(self, start: StreamPosition | None = None) -> None:
        start = start or StreamPosition()
        self.index, self.epoch = start.index, start.epoch
        self.n, self.sealed = start.n, start.sealed
        self.segments: list[Segment] = [Segment(start.epoch, None, {})] if start.sealed else []
        self.void_count = 0
        self.buffered_bytes = 0
        self._adopting: dict[int, Record] = {}
        self._marked = start
        """Right after the highest marker."""
        self._marks: deque[tuple[EpochId, int, int, StreamPosition]] = deque()
        """Epoch, n, size of each entry that is not delivered, and where the stream stood before."""

    def position(self) -> StreamPosition:
        """From where a reader must go on to miss nothing that is not delivered yet."""
        if self._marks:
            return self._marks[0][3]
        return self._marked if self._adopting else self.position_now()

    def position_now(self) -> StreamPosition:
        """Where the stream stands, delivered or not."""
        return StreamPosition(self.index, self.epoch, self.n, self.sealed)

    def accept(self, record: Record) -> bool:
        """Takes the stream's next record; whether it is valid."""
        # A SEAL is judged by what stands between its marker and it: both are read again.
        before = self.position_now() if self.sealed else self._marked
        self.index += 1
        valid = self._take(record)
        if valid and record.kind != journal.EPOCH:
            size_bytes = len(record.payload)
            self._marks.append((record.epoch, record.n, size_bytes, before))
            self.buffered_bytes += size_bytes
        self.void_count += not valid
        return valid

    def _take(self, record: Record) -> bool:
        if record.kind == journal.EPOCH:
            if record.epoch[0] <= self.epoch[0]:
                return False
            self.epoch, self.sealed, self._adopting = record.epoch, False, {}
            self._marked = self.position_now()
            return True
        if record.epoch != self.epoch:
            return False
        if not self.sealed:
            return self._take_unsealed(record)
        segment = self.segments[-1]
        if record.kind == journal.SKIP:
            payload = payload_of(record)
            assert isinstance(payload, journal.Skip)
            if payload.first != self.n + 1 or record.n < payload.first:
                return False
            segment.skips.append((payload.first, record.n))
        elif record.n != self.n + 1 or record.kind in (journal.SEAL, ADOPT):
            return False
        else:
            segment.records[record.n] = record
        self.n = record.n
        return True

    def _take_unsealed(self, record: Record) -> bool:
        if record.kind == ADOPT:
            if self._adopting and record.n != next(reversed(self._adopting)) + 1:
                # Some did not arrive, or its owner sends them all again: a new run, and the SEAL
                # counts only behind one that is whole.
                self._adopting = {}
            self._adopting[record.n] = _original(record)
            return True
        if record.kind != journal.SEAL:
            return False
        segment = Segment(record.epoch, record, self._adopting)
        if list(self._adopting) != list(range(segment.base + 1, record.n)):
            return False
        self.segments.append(segment)
        self._adopting = {}
        self.sealed, self.n = True, record.n
        return True

    def segment(self, epoch: EpochId) -> Segment | None:
        """What the stream holds under the SEAL of an epoch."""
        return next((one for one in self.segments if one.epoch == epoch), None)

    def forget(self, epoch: EpochId, n: int) -> None:
        """Everything through n of `epoch`, and of lower epochs, was delivered or is void."""
        while self._marks and self._marks[0][:2] <= (epoch, n):
            self.buffered_bytes -= self._marks.popleft()[2]
        # The stream may lag behind the SEAL: the segment it is in stays, what comes is void.
        self.segments = [s for s in self.segments if s.epoch >= epoch or s is self.segments[-1]]
        for one in self.segments:
            if one.epoch < epoch:
                one.records, one.skips, one.adopted = {}, [], {}
            elif one.epoch == epoch:
                one.adopted = {}
                one.skips = [span for span in one.skips if span[1] > n]
                while one.records and (first := next(iter(one.records))) <= n:
                    del one.records[first]


def check_same(copies: list[Record]) -> None:
    """Full copies are equal.  Raises JournalError."""
    if any(copy != copies[0] for copy in copies):
        raise JournalError(f"record {copies[0].n}: its copies differ")
