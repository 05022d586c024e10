"""What a replica holds, as a few numbers that copies of it compare, and against the journal.

The digest of a range as of a tau: per relation the number of rows and the CRC-32C of their encoded
bytes, in key order. Reading, encoding and summing run in C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from operator import add
from typing import Any, NamedTuple

import apsw
import google_crc32c
import msgspec

from meridian.storage import query, reading
from meridian.storage.engine import Engine
from meridian.storage.errors import BelowHorizon, WrongPlace
from meridian.storage.readers import CACHE_BYTES, PROGRESS_STEPS
from meridian.storage.relations import Snapshot, load_snapshot
from meridian.storage.schema import connect_reader, load_generation
from meridian.storage.types import ScanRequest
from meridian.wire.ops import Big, Delete, Op, Put
from meridian.wire.ranges import Range, cut_ops, keys_of, span

ROWS = 1024
BIG_ROWS = 16
"""Rows fetched at once: they bound the memory."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode


class Sum(NamedTuple):
    """One relation of a digest."""

    sid: int
    rows: int
    crc: int


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """A range as of `tau`. `schema` covers relations and columns: columns have no tau, so copies
    that have applied different DDL differ there without being damaged; compare again later."""

    tau: int
    schema: int
    sums: tuple[Sum, ...]


def digest(
    engine: Engine, tau: int, wanted: Range, stop: Callable[[], bool] = lambda: False
) -> Digest:
    """The digest of what a file owns of a range; on its own connection, for a thread.

    The replica must be complete through tau. Raises WrongPlace, BelowHorizon, Cancelled, Failed.
    """
    try:
        db = connect_reader(engine.path, cache_bytes=CACHE_BYTES)
        try:
            db.set_progress_handler(stop, PROGRESS_STEPS)
            db.execute("BEGIN")
            if load_generation(db) != engine.generation:
                raise WrongPlace("another file took its place")
            return _digest(db, load_snapshot(db, ()), tau, wanted)
        finally:
            db.close(True)
    except apsw.Error as error:
        raise reading.translate(error) from error


def _digest(db: apsw.Connection, snapshot: Snapshot, tau: int, wanted: Range) -> Digest:
    base = snapshot.ranges.base_of(wanted)
    if base is None:
        raise WrongPlace()
    if tau < max(base, snapshot.horizon):
        raise BelowHorizon()
    schema: list[Any] = []
    sums = []
    for sid, relation in sorted(snapshot.relations.items()):
        whole = span(sid)
        part = Range(max(whole.lo, wanted.lo), min(whole.hi, wanted.hi))
        if part.lo >= part.hi or not relation.visible(tau):
            continue
        classes = [(a, c.column_class) for a, c in sorted(relation.columns.items())]
        schema.append([sid, relation.kind, relation.table_sid, classes])
        keys = keys_of(sid, part)
        request = ScanRequest(tau, sid, *keys, cols=tuple(a for a, _ in classes))
        sums.append(_sum(db, snapshot, request))
    return Digest(tau, google_crc32c.value(_encode(schema)), tuple(sums))


def _sum(db: apsw.Connection, snapshot: Snapshot, request: ScanRequest) -> Sum:
    """The sum of the rows' bytes: how many are fetched at once does not show in it."""
    relation = snapshot.relations[request.sid]
    cursor = db.execute(*query.scan(snapshot, request))
    count = crc = 0
    while rows := list(islice(cursor, BIG_ROWS if relation.has_big else ROWS)):
        count += len(rows)
        crc = google_crc32c.extend(crc, reading.rows_body(rows))
    return Sum(request.sid, count, crc)


def matches_journal(engine: Engine, tau: int, ops: Sequence[Op]) -> bool:
    """Does the file show at `tau` what a durable commit at `tau` wrote into its ranges?

    On the caller's thread. Raises BelowHorizon: too old to be told.
    """
    owned = cut_ops(ops, engine.ranges)
    values = {
        (op.sid, op.attnum, key): value
        for op in owned
        if isinstance(op, Big)
        for key, value in zip(op.keys, op.values, strict=True)
    }
    return all(_shows(engine, tau, op, values) for op in owned if isinstance(op, (Put, Delete)))


def _shows(
    engine: Engine, tau: int, op: Put | Delete, values: dict[tuple[int, int, bytes], bytes]
) -> bool:
    columns = engine.known_columns(op.sid)
    if columns is None:
        return False
    cols = op.attnums if isinstance(op, Put) else ()
    expected = list(map(list, map(add, zip(op.keys), op.rows))) if isinstance(op, Put) else []
    for row in expected if values else ():
        for at, attnum in enumerate(cols, 1):
            if row[at] == "b":
                row[at] = values.get((op.sid, attnum, row[0]), "b")
    keys, found = list(op.keys), []
    while keys:
        more, page = engine.get(tau, op.sid, cols, keys)
        rows = _decode(page)
        found += rows
        keys = keys[keys.index(rows[-1][0]) + 1 :] if more else []
    return found == expected
