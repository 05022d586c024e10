"""Running read statements: pages cut by size, rows encoded in C."""

from __future__ import annotations

from itertools import islice
from typing import Any

import apsw
import msgspec

from meridian.limits import FRAME_SIZE_BYTES
from meridian.storage import owning, query
from meridian.storage.errors import (
    BadRequest,
    BelowHorizon,
    Cancelled,
    Failed,
    OutOfRange,
    StorageError,
    WrongPlace,
)
from meridian.storage.relations import Snapshot, load_snapshot
from meridian.storage.schema import load_generation
from meridian.storage.types import (
    DESCENDING,
    GET_BYTES_MAX,
    LO_EXCLUSIVE,
    Page,
    ReadRequest,
    SampleRequest,
    ScanRequest,
)
from meridian.wire.ranges import Scanned, asked, keys_of, span

encode = msgspec.msgpack.Encoder().encode

EMPTY: bytes = encode([])
CHUNK_ROWS_FIRST = 32
CHUNK_ROWS_MAX = 4096
CHUNK_ROWS_BIG = 2
CHUNK_ROWS_MAX_BIG = 16
"""Rows read ahead of the size check: they bound the memory of a page."""
SAMPLE_BYTES_MAX = FRAME_SIZE_BYTES * 3 // 4


def translate(error: apsw.Error) -> StorageError:
    """What a SQLite error of a read means to the client."""
    if isinstance(error, apsw.InterruptError):
        return Cancelled()
    if isinstance(error, apsw.TooBigError):
        return BadRequest(str(error))
    if isinstance(error, apsw.SQLError) and "integer overflow" in str(error):
        return OutOfRange(str(error))
    return Failed(str(error))


def array_header(count: int) -> bytes:
    """msgpack header of an array of `count` elements."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def rows_body(rows: list[Any]) -> bytes:
    """Encoded rows without the array header."""
    count = len(rows)
    header = 1 if count < 16 else 3 if count < 1 << 16 else 5
    encoded: bytes = encode(rows)
    return encoded[header:]


def collect_page(cursor: Any, page_bytes: int, *, limit: int, big: bool) -> Page:
    """Rows of a cursor until the page is full; a page holds at least one row.

    `more` is True when the page was cut or ended exactly at `limit`.
    """
    rows_iter = iter(cursor)
    parts: list[bytes] = []
    count, size_bytes = 0, 0
    chunk_rows = CHUNK_ROWS_BIG if big else CHUNK_ROWS_FIRST
    while True:
        rows = list(islice(rows_iter, chunk_rows))
        if not rows:
            return _page(parts, count, limit > 0 and count >= limit)
        body = rows_body(rows)
        cut = False
        while count + len(rows) > 1 and size_bytes + len(body) > page_bytes:
            cut = True
            if len(rows) == 1:
                return _page(parts, count, True)
            rows = rows[: len(rows) // 2]
            body = rows_body(rows)
        parts.append(body)
        count += len(rows)
        size_bytes += len(body)
        if cut or size_bytes >= page_bytes:
            return _page(parts, count, True)
        if len(rows) < chunk_rows:
            return _page(parts, count, limit > 0 and count >= limit)
        fitting = (page_bytes - size_bytes) * count // size_bytes
        most = CHUNK_ROWS_MAX_BIG if big else CHUNK_ROWS_MAX
        chunk_rows = max(1, min(most, 2 * chunk_rows, fitting + 1))


def _page(parts: list[bytes], count: int, more: bool) -> Page:
    return more, array_header(count) + b"".join(parts)


def page_size(requested: int) -> int:
    """The page a request gets: what it asks for, within the limit."""
    return min(requested, GET_BYTES_MAX) if requested > 0 else GET_BYTES_MAX


def run(db: apsw.Connection, snapshot: Snapshot, request: ReadRequest) -> Page:
    """One SCAN or SAMPLE on a connection whose state `snapshot` describes."""
    if isinstance(request, SampleRequest):
        return _run_sample(db, snapshot, request)
    statement = query.scan(snapshot, request)
    limit = request.limit + request.grouped if request.limit else 0
    big = _has_big(snapshot, request.sid, request.cols)
    big = big or _has_big(snapshot, request.row_sid, request.row_cols)
    return _run_page(db, statement, page_size(request.page_bytes), limit, big)


def _has_big(snapshot: Snapshot, sid: int, cols: tuple[int, ...]) -> bool:
    return sid != 0 and any(snapshot.relations[sid].columns[c].big for c in cols)


def _run_page(
    db: apsw.Connection, statement: query.Statement, page_bytes: int, limit: int, big: bool
) -> Page:
    cursor = None
    try:
        cursor = db.execute(*statement)
        return collect_page(cursor, page_bytes, limit=limit, big=big)
    except apsw.Error as error:
        raise translate(error) from error
    except OverflowError as error:
        raise BadRequest(f"a number exceeds int64: {error}") from error
    finally:
        if cursor is not None:
            cursor.close(True)


def _run_sample(db: apsw.Connection, snapshot: Snapshot, request: SampleRequest) -> Page:
    """Thinned until it fits: a page cut in key order would be no random sample."""
    while True:
        statement = query.sample(snapshot, request)
        big = _has_big(snapshot, request.sid, request.cols)
        more, rows = _run_page(db, statement, SAMPLE_BYTES_MAX, 0, big)
        fitting = element_count(rows)
        if not more or fitting <= 1:
            return False, rows
        request = msgspec.structs.replace(request, count=min(request.count, fitting) * 3 // 4)


def element_count(page: bytes) -> int:
    """Rows of an encoded page."""
    first = page[0]
    if first == 0xDC:
        return int.from_bytes(page[1:3], "big")
    return int.from_bytes(page[1:5], "big") if first == 0xDD else first & 0x0F


EVERY_KEY = Scanned(b"", None)


def place_request(
    snapshot: Snapshot, request: ReadRequest, *, clip: bool
) -> tuple[ReadRequest, Scanned]:
    """The request as far as the file owns its range, and the keys that it then speaks of.

    Raises WrongPlace, BelowHorizon: checked in the SQLite snapshot that is read.
    """
    ranges = snapshot.ranges
    if isinstance(request, SampleRequest):
        # Each shard samples what it has.
        if not ranges.whole and not ranges.meets(asked(request.sid, request.lo, request.hi)):
            raise WrongPlace()
        return request, Scanned(request.lo or b"", request.hi)
    wanted = Scanned(request.lo or b"", request.hi)
    if ranges.whole:
        return request, wanted
    if request.row_sid:
        base = ranges.base_of(span(request.row_sid))
        if base is None:
            raise WrongPlace("the rows of the index lie elsewhere")
        if request.tau < base:
            raise BelowHorizon()
    asked_for = asked(request.sid, request.lo, request.hi)
    descending = bool(request.flags & DESCENDING)
    found = owning.scan_part(ranges, request.tau, asked_for, descending=descending, clip=clip)
    if found == asked_for:
        return request, wanted
    part = keys_of(request.sid, found)
    flags = request.flags if part.lo == (request.lo or b"") else request.flags & ~LO_EXCLUSIVE
    narrowed = msgspec.structs.replace(request, lo=part.lo, hi=part.hi, flags=flags)
    return narrowed, part


def sids_of(request: ReadRequest) -> tuple[int, ...]:
    """Relations a request touches."""
    if isinstance(request, ScanRequest) and request.row_sid:
        return (request.sid, request.row_sid)
    return (request.sid,)


def run_in_snapshot(
    db: apsw.Connection, request: ReadRequest, generation: bytes, *, clip: bool = False
) -> tuple[Page, Scanned]:
    """One request in its own SQLite snapshot, metadata included (design section 8).

    `generation`: of the file the caller means; another one that took its path is refused. With
    `clip` a scan that leaves what the file owns ends there. Raises WrongPlace and what `run` does.
    """
    try:
        db.execute("BEGIN")
        try:
            if load_generation(db) != generation:
                raise WrongPlace("another file took its place")
            snapshot = load_snapshot(db, sids_of(request))
            request, scanned = place_request(snapshot, request, clip=clip)
            return run(db, snapshot, request), scanned
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
    except apsw.Error as error:
        raise translate(error) from error
