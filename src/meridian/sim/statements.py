"""A model query processor runs its statements.

What a transaction writes goes into the write buffer of the extension (or its twin), with everything
that must leave no trace in what is sent: values that are written over, rows deleted and inserted
again, savepoints rolled back.

Beside the buffer stands the plain model: dictionaries.  After every statement what the transaction
sees of its own writes must be what the model says; what is sent is held against it by the
checkers, through the journals.  A backend has its write buffer for itself and nobody sees it before
COMMIT, so the statements need no virtual time.
"""

from __future__ import annotations

from random import Random

import msgspec

from meridian.adjudicator import events as ev
from meridian.dataplane.asker import abort_error
from meridian.sim import writes as wb
from meridian.sim.messages import Key
from meridian.sim.plans import REWRITTEN, SID_FIRST, Plan, WriteSet
from meridian.sim.world import SimulationError
from meridian.sim.writes import Writes
from meridian.wire import frames
from meridian.wire import ops as wire
from meridian.wire.reach import encode_reach

JUNK = b"junk/"
"""Begins values that nobody may ever read."""


class Session:
    """One transaction's statements. `seen` is what it read as of tau_start."""

    def __init__(
        self,
        writes: Writes,
        random: Random,
        name: bytes,
        seen: dict[Key, bytes | None],
        tau_start: int,
    ) -> None:
        self._writes = writes
        self._random = random
        self._name = name
        self._seen = seen
        self._own: dict[Key, bytes | None] = {}
        """The model: what the transaction sees of its own writes."""
        self._out = WriteSet()
        self._cid = 0
        self._depth = 0
        writes.begin(tau_start)

    def run(self, wanted: WriteSet) -> WriteSet:
        """Writes what is wanted; returns it with the keys that this conflicts with (5.1, 5.2)."""
        out = self._out
        out.rows, out.tables, out.reach = wanted.rows, wanted.tables, wanted.reach
        out.schema, out.shares, out.rewritten = wanted.schema, wanted.shares, wanted.rewritten
        if wanted.rows and not wanted.plain and self._random.random() < 0.3:
            self._detour(wanted)
        for op in wanted.schema:
            self._writes.schema(wire.encode_chunk([op])[1:])
        for (sid, key), mode in wanted.locks.items():
            self._lock(sid, key, mode)
        for sid, key in wanted.shares:
            self._writes.lock(sid, key, wb.KEY_SHARE)
        for sid, exclusive in wanted.tables.items():
            self._writes.lock(sid, b"", wb.NO_KEY_UPDATE if exclusive else wb.SHARE)
        for at, (row, value) in enumerate(wanted.rows.items()):
            nested = self._random.random() < 0.2
            if nested:
                self._savepoint()
            if wanted.plain:
                self._write(row, value)
            else:
                self._row(row, value)
            if nested and (at + 1 == len(wanted.rows) or self._random.random() < 0.5):
                self._writes.release(self._depth)
            self._look()
        return out

    def _savepoint(self) -> None:
        self._depth += 1
        self._writes.savepoint(self._depth)

    def _lock(self, sid: int, key: bytes, mode: int) -> None:
        self._out.lock((sid, key), mode)
        self._writes.lock(sid, key, mode)

    def _detour(self, wanted: WriteSet) -> None:
        """A subtransaction that is rolled back: its locks stay, nothing else does."""
        random, before = self._random, dict(self._own)
        self._savepoint()
        depth = self._depth
        for row in wanted.rows:
            if random.random() < 0.6:
                self._write(row, None if random.random() < 0.3 else JUNK + self._name)
        inner = random.random() < 0.3
        if inner:
            self._savepoint()
            self._write(next(iter(wanted.rows)), JUNK)
            self._look()
            self._writes.release(self._depth)
        sid, key = next(iter(wanted.rows))
        if random.random() < 0.2 and sid >= SID_FIRST:
            self._lock(sid, key, random.choice((wb.NO_KEY_UPDATE, wb.UPDATE)))
        if wanted.schema:
            self._writes.schema(msgspec.msgpack.encode(wire.Drop(sid)))
        self._look()
        self._writes.rollback(depth)
        self._own = before
        self._look()

    def _row(self, row: Key, value: bytes | None) -> None:
        """The last write wins; a row that ends and comes back has another identity."""
        dice = self._random.random()
        if dice < 0.15:
            self._write(row, JUNK)
        elif dice < 0.3 and self._present(row):
            self._write(row, None)
            self._out.identify(row)
        self._write(row, value)
        if value is None or not self._base(row):
            self._out.identify(row)

    def _base(self, row: Key) -> bool:
        """Has storage a row?  Rows that were not read are written as if they were there."""
        if row[0] == wire.SID_CATALOG or row[0] >= REWRITTEN:
            return False
        return self._seen.get(row, b"") is not None

    def _present(self, row: Key) -> bool:
        return (self._own[row] is not None) if row in self._own else self._base(row)

    def _write(self, row: Key, value: bytes | None) -> None:
        self._cid += 1
        flags = wb.BASE_PRESENT if self._base(row) else 0
        if value is None:
            self._writes.delete(*row, flags, self._cid)
        elif row[0] == wire.SID_CATALOG:
            reach = self._out.reach
            assert reach is not None
            self._writes.put(*row, (value, encode_reach(reach)), (1, 3), flags, self._cid)
        else:
            self._writes.put(*row, (value,), (1,), flags, self._cid)
        self._own[row] = value

    def _look(self) -> None:
        """The transaction reads its own writes, and no later command's."""
        for row, value in self._own.items():
            found = self._writes.visible(*row)
            if isinstance(found, bytes):
                found = msgspec.msgpack.decode(found)[0]
            if found != (False if value is None else value):
                raise SimulationError(f"own writes: {self._name!r} sees {found!r} at {row}")
        if self._own and self._writes.visible(*next(iter(self._own)), 0) is not True:
            raise SimulationError(f"own writes: {self._name!r} sees a later command's")


def perform(
    writes: Writes,
    random: Random,
    plan: Plan,
    name: bytes,
    seen: dict[Key, bytes | None],
    tau_start: int,
) -> WriteSet:
    """Runs a plan's statements. Raises SimulationError when own writes look wrong."""
    return Session(writes, random, name, seen, tau_start).run(plan.write_set(name, seen))


def send(
    writes: Writes, txid: bytes, tau_start: int, catver: int, chunk_bytes: int
) -> tuple[list[bytes], int]:
    """The chunks and flags of the transaction as its gateway decodes them from the frames."""
    sent, at = writes.commit(txid, catver, chunk_bytes), 0
    chunks: list[bytes] = []
    while True:
        size = int.from_bytes(sent[at : at + 4], "little")
        request = frames.decode_request(sent[at + 4 : at + 4 + size])
        at += 4 + size
        if request[0] == frames.COMMIT:
            break
        _, _, part_txid, seq, chunk, part_tau = request
        assert (part_txid, seq, part_tau) == (txid, len(chunks), tau_start)
        chunks.append(chunk)
    _, _, version, tau, commit_txid, flags, _, chunk = request
    assert at == len(sent)
    assert (version, tau, commit_txid) == (catver, tau_start, txid)
    assert bool(flags & frames.COMMIT_HAS_PARTS) == bool(chunks)
    return [*chunks, chunk], flags & frames.COMMIT_HAS_SCHEMA


def told(writes: Writes, random: Random, txid: bytes, tau_start: int, answer: ev.Answer) -> str:
    """What the query processor reads in its gateway's answer."""
    request = writes.status(txid, tau_start)
    _, number, asked, tau = frames.decode_request(request[4:])
    assert (asked, tau) == (txid, tau_start)
    # An answer to a request that was given up is dropped.
    stream = frames.frame((frames.COMMITTED, number + 1, 1))
    if answer.outcome is ev.Outcome.COMMITTED:
        stream += frames.frame((frames.COMMITTED, number, answer.tau))
    else:
        stream += frames.error_frame(number, abort_error(answer.code), "standard")
    kind, value = writes.answer(stream, random.choice((1, 7, 4096)))
    if kind == frames.COMMITTED and value == answer.tau:
        return "committed"
    assert kind == frames.ERROR and value != wb.packed("08007")
    return "aborted"
