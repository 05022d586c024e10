"""Requests and results of the storage engine (docs/protocol.md)."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

TS_MAX = (1 << 63) - 1
"""te of a version that nothing has ended."""

PROVISIONAL = 1 << 62
"""ts of staged rows start here: above every tau."""

GET_BYTES_MAX = 8 << 20
"""A GET, SCAN or SAMPLE answer stops at about this size (frames are limited to 16 MiB)."""

DESCENDING = 1
LO_EXCLUSIVE = 2

Aggregate = tuple[int, int]
Page = tuple[bool, bytes]
"""(more, rows): rows is an encoded msgpack array of arrays."""


class ScanRequest(msgspec.Struct, frozen=True):
    """SCAN of docs/protocol.md. `limit` in rows (0 = none), `page_bytes` 0 = GET_BYTES_MAX."""

    tau: int
    sid: int
    lo: bytes | None = None
    hi: bytes | None = None
    flags: int = 0
    cols: tuple[int, ...] = ()
    filter: Any = None
    limit: int = 0
    page_bytes: int = 0
    row_sid: int = 0
    row_cols: tuple[int, ...] = ()
    row_filter: Any = None
    group: tuple[int, ...] | None = None
    aggs: tuple[Aggregate, ...] | None = None


class SampleRequest(msgspec.Struct, frozen=True):
    """SAMPLE of docs/protocol.md: about `count` random rows."""

    tau: int
    sid: int
    count: int
    cols: tuple[int, ...] = ()


class Statistics(NamedTuple):
    """Estimates: live rows and their bytes."""

    rows: int
    size_bytes: int
