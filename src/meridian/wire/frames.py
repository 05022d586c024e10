"""Frames between a query processor and its gateway (docs/protocol.md, version 1)."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from meridian.errors import Kind, MeridianError
from meridian.limits import FRAME_SIZE_BYTES

PROTOCOL_VERSION = 1

HELLO = 1
BEGIN = 2
GET = 3
SCAN = 4
COMMIT = 5
PART = 6
STATUS = 7
LEASE = 8
STATS = 9
SAMPLE = 10
CANCEL = 11
SEQUENCE = 12
SETVAL = 13
PEEKSEQ = 14
CATALOG = 15
GATE = 16
ADVISORY = 17
ADMIN = 20

RESULT = 64
COMMITTED = 65
LEASED = 66
OUTCOME = 67
WELCOME = 68
VALUES = 69
ERROR = 127

OUTCOME_UNKNOWN = 0
OUTCOME_COMMITTED = 1
OUTCOME_ABORTED = 2

COMMIT_HAS_SCHEMA = 1
"""COMMIT flag: the write set holds CREATE/ADD/DROP or rows of sid 1."""
COMMIT_HAS_PARTS = 2
"""COMMIT flag: PART frames of this transaction came before."""
SCAN_DESCENDING = 1
SCAN_LO_EXCLUSIVE = 2

FEED_NOTIFICATION = 0
"""First value of a row of CATALOG's answer: a notification follows; above 0 it is a version."""
FEED_LOST = -1
"""The same: notifications may have been lost, those who listen must be told."""

LEASE_ROW = 1
LEASE_SID = 2
LEASE_OID = 3

HEADER = struct.Struct("<I")
HEADER_SIZE_BYTES = HEADER.size

TXID_SIZE_BYTES = 16

# Requests as typed tuples: msgspec checks types and lengths while it decodes. Chunks are bin.
Hello = tuple[int, int, int, int, int]
Begin = tuple[int, int, int]
Get = tuple[int, int, int, int, int, tuple[int, ...], list[bytes]]
Scan = tuple[
    int,  # type
    int,  # id
    int,  # catver
    int,  # tau
    int,  # sid
    bytes,  # lo
    bytes | None,  # hi
    int,  # flags
    tuple[int, ...],  # cols
    Any,  # filter
    int,  # limit
    int,  # page_bytes
    int,  # row_sid
    tuple[int, ...],  # row_cols
    Any,  # row_filter
    Any,  # group: list of attnums or nil
    Any,  # aggs: list of [fn, attnum] or nil
]
Commit = tuple[int, int, int, int, bytes, int, int, bytes]
Part = tuple[int, int, bytes, int, bytes, int]
Status = tuple[int, int, bytes, int]
Lease = tuple[int, int, int, int]
Stats = tuple[int, int, list[int]]
Sample = tuple[int, int, int, int, int, int, tuple[int, ...]]
Cancel = tuple[int, int, int]
Sequence = tuple[int, int, int, int, int, int, int, int, bool | int]
SetVal = tuple[int, int, int, int, bool | int]
PeekSeq = tuple[int, int, int]
Catalog = tuple[int, int, int, int, int]
Gate = tuple[int, int, bytes, list[int], int]
Advisory = tuple[int, int, int, int, int, int]
Admin = tuple[int, int, str, dict[str, Any]]

REQUESTS: dict[int, Any] = {
    HELLO: Hello,
    BEGIN: Begin,
    GET: Get,
    SCAN: Scan,
    COMMIT: Commit,
    PART: Part,
    STATUS: Status,
    LEASE: Lease,
    STATS: Stats,
    SAMPLE: Sample,
    CANCEL: Cancel,
    SEQUENCE: Sequence,
    SETVAL: SetVal,
    ADMIN: Admin,
    PEEKSEQ: PeekSeq,
    CATALOG: Catalog,
    GATE: Gate,
    ADVISORY: Advisory,
}

_encode = msgspec.msgpack.Encoder().encode
DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(shape) for kind, shape in REQUESTS.items()
}


def frame(message: Any) -> bytes:
    """Header and body of one message. Raises FRAME_TOO_LARGE above the limit."""
    body: bytes = _encode(message)
    if len(body) > FRAME_SIZE_BYTES:
        raise MeridianError(Kind.FRAME_TOO_LARGE, size_bytes=len(body))
    return HEADER.pack(len(body)) + body


def request_type(body: bytes | memoryview) -> int:
    """Type byte of a request; types fit a positive fixint, the array header one or three bytes."""
    if len(body) > 3:
        first = body[0]
        if 0x90 <= first <= 0x9F:
            return body[1]
        if first == 0xDC:
            return body[3]
    raise MeridianError(Kind.PROTOCOL_VIOLATION, why="not a request")


def decode_request(body: bytes | memoryview) -> Any:
    """One request as a tuple of its type's shape. Raises PROTOCOL_VIOLATION."""
    kind = request_type(body)
    decoder = DECODERS.get(kind)
    if decoder is None:
        raise MeridianError(Kind.PROTOCOL_VIOLATION, why=f"unknown request type {kind}")
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise MeridianError(Kind.PROTOCOL_VIOLATION, why=str(error)) from None


def result_frame(request_id: int, tau: int, more: bool, rows: bytes) -> bytes:
    """RESULT around rows that storage encoded already (one msgpack array)."""
    head = _encode((RESULT, request_id, tau, more))
    # An array of four becomes an array of five: only the first byte differs.
    return HEADER.pack(len(head) + len(rows)) + b"\x95" + head[1:] + rows


def error_frame(request_id: int, error: MeridianError, profile: str) -> bytes:
    """ERROR as the profile words it."""
    return frame((ERROR, request_id, *error.for_profile(profile)))
