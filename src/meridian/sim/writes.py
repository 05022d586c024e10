"""What a transaction writes, until it commits: the twin in Python of the extension's write buffer.

The rules and the bytes are those of pgext/src/writebuf.c, undo.c, locks.c, encode.c and frames.c
(`cwrites.py` runs these themselves); a property test holds the two against each other.  Used where
there is no C compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import msgspec

from meridian.wire import frames
from meridian.wire import ops as wire

BASE_PRESENT = 1
"""Storage has a live version of the key."""
BLIND = 2
IDENTITY = 4
"""The identity key is written, too."""
INDEX = 8
HIDDEN = 16
"""Of a table keyed by hidden ids."""

KEY_SHARE, SHARE, NO_KEY_UPDATE, UPDATE = range(4)
"""Modes of row locks, weakest first."""

NEVER = (1 << 64) - 1
"""Limit of commands that no command reaches."""
KEYS_PER_OP = 8192
KEY_OVERHEAD = 16
BIG_BYTES = 2048
SID_USER = 1000
ROW, IDENTITY_KEY = 0, 1
_ZERO = bytes(8)
_encode = msgspec.msgpack.Encoder().encode


class Writes(Protocol):
    """One transaction at a time."""

    def begin(self, tau: int) -> None:
        """A new transaction; what is left of the last one is forgotten."""

    def put(
        self,
        sid: int,
        key: bytes,
        values: Sequence[bytes],
        attnums: Sequence[int] = (1,),
        flags: int = 0,
        cid: int = 0,
    ) -> None:
        """A new version of a row, columns ascending; the last write of a key wins."""

    def delete(self, sid: int, key: bytes, flags: int = 0, cid: int = 0) -> None:
        """The row ends."""

    def lock(self, sid: int, key: bytes, mode: int) -> None:
        """A row lock; `b""` is the relation."""

    def check(self, sid: int, key: bytes) -> None:
        """The row must not have been written since tau_start; one relation, keys ascending."""

    def schema(self, op: bytes) -> None:
        """CREATE, ADD, DROP or ALTER, encoded."""

    def savepoint(self, number: int) -> None:
        """A subtransaction begins."""

    def rollback(self, number: int) -> None:
        """The innermost subtransaction is taken back."""

    def release(self, number: int) -> None:
        """The innermost subtransaction becomes part of the one around it."""

    def visible(self, sid: int, key: bytes, below: int = NEVER) -> bytes | bool:
        """The encoded row that commands before `below` wrote, False: deleted, True: as stored."""

    def size(self) -> int:
        """Bytes as the limit of a transaction counts them."""

    def commit(self, txid: bytes, catver: int, chunk_bytes: int) -> bytes:
        """PART frames and the COMMIT frame."""

    def status(self, txid: bytes, tau: int) -> bytes:
        """A STATUS frame."""

    def answer(self, frames: bytes, step: int) -> tuple[int, int]:
        """Type of the answer to the last request, and its tau, outcome or packed SQLSTATE.

        The frames arrive at most `step` bytes at a time.
        """


def packed(sqlstate: str) -> int:
    """A SQLSTATE as the server packs it into an integer."""
    return sum(((ord(char) - 48) & 0x3F) << (6 * at) for at, char in enumerate(sqlstate))


@lru_cache(maxsize=8192)
def hash_of(sid: int, kind: int, key: bytes) -> bytes:
    """A conflict hash as it travels."""
    return wire.conflict_hash(sid, kind, key).to_bytes(8, "little")


class _Version:
    __slots__ = ("attnums", "cid", "entry", "values")

    def __init__(
        self, entry: _Entry, values: tuple[bytes, ...] | None, attnums: tuple[int, ...], cid: int
    ) -> None:
        self.entry = entry
        self.values = values
        """None: deleted."""
        self.attnums = attnums
        self.cid = cid

    @property
    def size(self) -> int:
        return len(_encode(self.values)) if self.values is not None else 0


class _Entry:
    """The versions of one key, oldest first."""

    __slots__ = ("base_present", "blind", "identity", "key", "versions")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.base_present = self.identity = self.blind = False
        self.versions: list[_Version] = []


class _Buffer:
    """The writes of one relation."""

    def __init__(self, sid: int, is_index: bool) -> None:
        self.sid = sid
        self.is_index = is_index
        self.hidden = False
        self.entries: dict[bytes, _Entry] = {}


class _Builder:
    """An op that grows."""

    def __init__(self, op: int, sid: int, flags: int, more: tuple[int, ...]) -> None:
        self.name = (op, sid, flags, more)
        self.keys: list[bytes] = []
        self.w: list[bytes] = []
        self.i: list[bytes] = []
        self.rows: list[object] = []

    def add_key(self, sid: int, key: bytes, *, blind: bool, identity: bool) -> None:
        if not blind:
            self.w.append(hash_of(sid, ROW, key))
            if identity:
                self.i += [_ZERO] * (len(self.keys) - len(self.i))
                self.i.append(hash_of(sid, IDENTITY_KEY, key))
            elif self.i:
                self.i += [_ZERO] * (len(self.keys) + 1 - len(self.i))
        self.keys.append(key)

    def op(self) -> wire.Op:
        kind, sid, flags, more = self.name
        w, i = b"".join(self.w), b"".join(self.i)
        if kind == 1:
            rows: wire.Rows = self.rows  # type: ignore[assignment]
            return wire.Put(sid, flags, more, self.keys, w, i, rows)
        if kind == 2:
            return wire.Delete(sid, flags, self.keys, w, i)
        values: list[bytes] = self.rows  # type: ignore[assignment]
        return wire.Big(sid, more[0], self.keys, values)


class PythonWrites:
    """The twin; see `Writes`."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, tau: int) -> None:
        """See `Writes`."""
        self._tau = tau
        self._buffers: dict[int, _Buffer] = {}
        self._undo: list[_Version] = []
        self._savepoints: list[tuple[int, int, int]] = []
        self._schema: list[bytes] = []
        self._locks: dict[tuple[int, bytes], int] = {}
        self._checks: tuple[int, list[bytes]] | None = None
        self._next_id = 0

    # Writes

    def _push(
        self,
        sid: int,
        key: bytes,
        values: tuple[bytes, ...] | None,
        attnums: tuple[int, ...],
        flags: int,
        cid: int,
    ) -> None:
        buffer = self._buffers.get(sid)
        if buffer is None:
            buffer = self._buffers[sid] = _Buffer(sid, bool(flags & INDEX))
        buffer.hidden = bool(flags & HIDDEN)
        entry = buffer.entries.get(key)
        if entry is None:
            entry = buffer.entries[key] = _Entry(key)
        if not entry.versions:
            entry.base_present = bool(flags & BASE_PRESENT)
            entry.blind, entry.identity = bool(flags & BLIND), False
        entry.identity = entry.identity or bool(flags & IDENTITY)
        version = _Version(entry, values, attnums, cid)
        entry.versions.append(version)
        self._undo.append(version)

    def put(
        self,
        sid: int,
        key: bytes,
        values: Sequence[bytes],
        attnums: Sequence[int] = (1,),
        flags: int = 0,
        cid: int = 0,
    ) -> None:
        """See `Writes`."""
        self._push(sid, key, tuple(values), tuple(attnums), flags, cid)

    def delete(self, sid: int, key: bytes, flags: int = 0, cid: int = 0) -> None:
        """See `Writes`."""
        self._push(sid, key, None, (), flags, cid)

    def lock(self, sid: int, key: bytes, mode: int) -> None:
        """See `Writes`."""
        bits = {KEY_SHARE: 8, SHARE: 4, NO_KEY_UPDATE: 1, UPDATE: 3}[mode]
        self._locks[sid, key] = self._locks.get((sid, key), 0) | bits

    def check(self, sid: int, key: bytes) -> None:
        """See `Writes`."""
        if self._checks is None:
            self._checks = sid, []
        assert self._checks[0] == sid, "row checks of two tables"
        self._checks[1].append(key)

    def schema(self, op: bytes) -> None:
        """See `Writes`."""
        self._schema.append(op)

    # Savepoints

    def savepoint(self, number: int) -> None:
        """See `Writes`."""
        self._savepoints.append((number, len(self._undo), len(self._schema)))

    def rollback(self, number: int) -> None:
        """Locks stay: they can only make the commit more careful."""
        if not self._savepoints or self._savepoints[-1][0] != number:
            return
        _, undo, schema = self._savepoints.pop()
        while len(self._undo) > undo:
            version = self._undo.pop()
            assert version.entry.versions.pop() is version
        del self._schema[schema:]

    def release(self, number: int) -> None:
        """See `Writes`."""
        if self._savepoints and self._savepoints[-1][0] == number:
            self._savepoints.pop()

    def visible(self, sid: int, key: bytes, below: int = NEVER) -> bytes | bool:
        """See `Writes`."""
        buffer = self._buffers.get(sid)
        entry = buffer.entries.get(key) if buffer is not None else None
        for version in reversed(entry.versions if entry is not None else []):
            if version.cid < below:
                return _encode(version.values) if version.values is not None else False
        return True

    # Encoding

    def _named(self, tag: int) -> list[int]:
        """Storage ids of the schema ops of a kind."""
        decoded = (msgspec.msgpack.decode(op) for op in self._schema)
        return [op[1] for op in decoded if op[0] == tag]

    def _entries(self, buffer: _Buffer) -> list[_Entry]:
        return [buffer.entries[key] for key in sorted(buffer.entries)]

    def size(self) -> int:
        """See `Writes`."""
        dropped = self._named(8)
        return sum(
            len(entry.key) + entry.versions[-1].size + KEY_OVERHEAD
            for buffer in self._buffers.values()
            if buffer.sid not in dropped
            for entry in buffer.entries.values()
            if entry.versions and (entry.versions[-1].values is not None or entry.base_present)
        )

    def commit(self, txid: bytes, catver: int, chunk_bytes: int) -> bytes:
        """See `Writes`."""
        encoder = _Encoder(chunk_bytes)
        for op in self._schema:
            encoder.add(op)
        for locked in self._lock_ops():
            encoder.add_ended(_encode(locked))
        if self._checks is not None:
            sid, keys = self._checks
            hashes = b"".join(hash_of(sid, ROW, key) for key in keys)
            encoder.add_ended(_encode(wire.Check(sid, keys, hashes)))
        created, dropped = self._named(6), self._named(8)
        for buffer in self._buffers.values():
            if buffer.sid not in dropped:
                for entry in self._entries(buffer):
                    encoder.entry(buffer, entry, created=buffer.sid in created)
        chunks = encoder.end()
        parts = [
            frames.frame((frames.PART, self._id(), txid, seq, chunk, self._tau))
            for seq, chunk in enumerate(chunks[:-1])
        ]
        flags = frames.COMMIT_HAS_SCHEMA if self._schema or 1 in self._buffers else 0
        flags |= frames.COMMIT_HAS_PARTS if parts else 0
        last = frames.frame(
            (frames.COMMIT, self._id(), catver, self._tau, txid, flags, encoder.rows, chunks[-1])
        )
        return b"".join((*parts, last))

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _lock_ops(self) -> list[wire.Op]:
        """Keys of one op ascend; an op holds locks of one kind in one relation."""
        ops: list[wire.Op] = []
        for bit in (1, 4, 8):
            found: dict[int, list[tuple[bytes, int]]] = {}
            for (sid, key), want in sorted(self._locks.items()):
                if want & bit:
                    found.setdefault(sid, []).append((key, want))
            for sid, all_ in found.items():
                for at in range(0, len(all_), KEYS_PER_OP):
                    ops.append(_lock_op(bit, sid, all_[at : at + KEYS_PER_OP]))
        return ops

    # Frames

    def status(self, txid: bytes, tau: int) -> bytes:
        """See `Writes`."""
        self._next_id = 0
        return frames.frame((frames.STATUS, self._id(), txid, tau))

    def answer(self, frames: bytes, step: int) -> tuple[int, int]:
        """See `Writes`."""
        at = 0
        while at < len(frames):
            size = int.from_bytes(frames[at : at + 4], "little")
            message = msgspec.msgpack.decode(frames[at + 4 : at + 4 + size])
            at += 4 + size
            if message[1] == self._next_id:
                error = message[0] == ERROR
                return message[0], packed(message[3]) if error else message[2]
        raise ValueError("no answer")


ERROR = frames.ERROR


def _lock_op(bit: int, sid: int, keys: list[tuple[bytes, int]]) -> wire.Op:
    names = [key for key, _ in keys]
    rows = b"" if bit == 8 else b"".join(hash_of(sid, ROW, key) for key in names)
    identities: list[bytes] = [
        hash_of(sid, IDENTITY_KEY, key) if bit == 8 or (bit == 1 and want & 2) else _ZERO
        for key, want in keys
    ]
    i = b"".join(identities) if any(map(any, identities)) else b""
    return (wire.Lock if bit == 1 else wire.Share)(sid, names, rows, i)


class _Encoder:
    """Ops grow side by side and are closed together, the newest first, when a chunk is full."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._builders: list[_Builder] = []
        self._ops: list[bytes] = []
        self._pending = 0
        self._chunks: list[bytes] = []
        self.rows = 0

    def add(self, op: bytes) -> None:
        self._ops.append(op)

    def add_ended(self, op: bytes) -> None:
        self._ops.append(op)
        if sum(map(len, self._ops)) > self._chunk_bytes:
            self._ship()

    def entry(self, buffer: _Buffer, entry: _Entry, *, created: bool) -> None:
        if not entry.versions:
            return
        version, sid = entry.versions[-1], buffer.sid
        deletes = version.values is None
        if deletes and not entry.base_present:
            return
        was_deleted = any(one.values is None for one in entry.versions)
        identity = not buffer.is_index and sid >= SID_USER
        identity = identity and (deletes or not entry.base_present or entry.identity or was_deleted)
        blind = created or entry.blind or (buffer.hidden and not entry.base_present)
        flags = wire.BLIND if blind else 0
        if deletes:
            builder = self._builder(2, sid, flags, ())
        else:
            flags |= 0 if entry.base_present else wire.FRESH
            builder = self._builder(1, sid, flags, version.attnums)
        builder.add_key(sid, entry.key, blind=blind, identity=identity)
        if version.values is not None:
            builder.rows.append(self._row(sid, entry.key, version))
        self.rows += not buffer.is_index
        self._pending += len(entry.key) + version.size + KEY_OVERHEAD
        if self._pending > self._chunk_bytes:
            self._ship()

    def _row(self, sid: int, key: bytes, version: _Version) -> list[object]:
        """Big values travel in ops of their own; the row holds a marker for each."""
        row: list[object] = []
        for attnum, value in zip(version.attnums, version.values or (), strict=True):
            if len(value) > BIG_BYTES:
                big = self._builder(5, sid, 0, (attnum,))
                big.keys.append(key)
                big.rows.append(value)
                row.append("b")
            else:
                row.append(value)
        return row

    def _builder(self, op: int, sid: int, flags: int, more: tuple[int, ...]) -> _Builder:
        name = (op, sid, flags, more)
        for builder in self._builders:
            if builder.name == name:
                return builder
        self._builders.append(_Builder(*name))
        return self._builders[-1]

    def _ship(self, *, last: bool = False) -> None:
        self._ops += [_encode(builder.op()) for builder in reversed(self._builders)]
        self._builders, self._pending = [], 0
        if self._ops or last:
            count = len(self._ops)
            head = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
            self._chunks.append(head + b"".join(self._ops))
        self._ops = []

    def end(self) -> list[bytes]:
        self._ship(last=True)
        return self._chunks
