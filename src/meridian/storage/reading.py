"""Running read statements: pages cut by size, rows encoded in C."""

from __future__ import annotations

from itertools import islice
from typing import Any

import apsw
import msgspec

from meridian.storage import query
from meridian.storage.errors import BadRequest, Cancelled, Failed, OutOfRange, StorageError
from meridian.storage.relations import Snapshot, load_snapshot
from meridian.storage.types import GET_BYTES_MAX, Page, ReadRequest, SampleRequest, ScanRequest

encode = msgspec.msgpack.Encoder().encode

EMPTY: bytes = encode([])
CHUNK_ROWS_FIRST = 64
CHUNK_ROWS_BIG = 2
CHUNK_ROWS_MAX = 4096


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


def _body(rows: list[Any]) -> bytes:
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
        body = _body(rows)
        cut = False
        while count + len(rows) > 1 and size_bytes + len(body) > page_bytes:
            cut = True
            if len(rows) == 1:
                return _page(parts, count, True)
            rows = rows[: len(rows) // 2]
            body = _body(rows)
        parts.append(body)
        count += len(rows)
        size_bytes += len(body)
        if cut or size_bytes >= page_bytes:
            return _page(parts, count, True)
        if len(rows) < chunk_rows:
            return _page(parts, count, limit > 0 and count >= limit)
        if not big:
            fitting = (page_bytes - size_bytes) * count // size_bytes
            chunk_rows = max(1, min(CHUNK_ROWS_MAX, 2 * chunk_rows, fitting + 1))


def _page(parts: list[bytes], count: int, more: bool) -> Page:
    return more, array_header(count) + b"".join(parts)


def page_size(requested: int) -> int:
    """The page a request gets: what it asks for, within the limit."""
    return min(requested, GET_BYTES_MAX) if requested > 0 else GET_BYTES_MAX


def run(db: apsw.Connection, snapshot: Snapshot, request: ReadRequest) -> Page:
    """One SCAN or SAMPLE on a connection whose state `snapshot` describes."""
    if isinstance(request, SampleRequest):
        statement, limit, page_bytes = query.sample(snapshot, request), 0, GET_BYTES_MAX
    else:
        statement = query.scan(snapshot, request)
        limit = request.limit + request.grouped if request.limit else 0
        page_bytes = page_size(request.page_bytes)
    cursor = None
    try:
        cursor = db.execute(*statement)
        big = any(snapshot.relations[sid].has_big for sid in sids_of(request))
        return collect_page(cursor, page_bytes, limit=limit, big=big)
    except apsw.Error as error:
        raise translate(error) from error
    finally:
        if cursor is not None:
            cursor.close(True)


def sids_of(request: ReadRequest) -> tuple[int, ...]:
    """Relations a request touches."""
    if isinstance(request, ScanRequest) and request.row_sid:
        return (request.sid, request.row_sid)
    return (request.sid,)


def run_in_snapshot(db: apsw.Connection, request: ReadRequest) -> Page:
    """One request in its own SQLite snapshot, metadata included (design section 8)."""
    try:
        db.execute("BEGIN")
        try:
            return run(db, load_snapshot(db, sids_of(request)), request)
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
    except apsw.Error as error:
        raise translate(error) from error
