"""Requests and results of the storage engine (docs/protocol.md)."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from meridian.clock.tau import TAU_MAX
from meridian.limits import SCAN_PAGE_BYTES

TS_MAX = TAU_MAX
"""te of a version that nothing has ended."""

PROVISIONAL = 1 << 62
"""ts of staged rows start here: above every tau."""

NEVER = PROVISIONAL - 1
"""born of a relation that no read may see (its creator was discarded)."""

GET_BYTES_MAX = SCAN_PAGE_BYTES
"""A GET, SCAN or SAMPLE answer ends at this size, or holds one larger row."""

DESCENDING = 1
LO_EXCLUSIVE = 2

Aggregate = tuple[int, int]
Page = tuple[bool, bytes]
"""(more, rows): rows is an encoded msgpack array of arrays."""


class ScanRequest(msgspec.Struct, frozen=True):
    """SCAN of docs/protocol.md. `limit` in rows (0 = none), `page_bytes` 0 = GET_BYTES_MAX.

    With `row_sid`, `filter` and `cols` speak of the index, `row_filter` and `row_cols` of the row;
    `group` and `aggs` of the row.
    """

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

    @property
    def grouped(self) -> bool:
        """It asks for groups or aggregates: `limit` bounds groups, `more` means "discard"."""
        return self.group is not None or self.aggs is not None


class SampleRequest(msgspec.Struct, frozen=True):
    """SAMPLE of docs/protocol.md: about `count` random rows of the file's, of lo <= k < hi."""

    tau: int
    sid: int
    count: int
    cols: tuple[int, ...] = ()
    lo: bytes | None = None
    hi: bytes | None = None


ReadRequest = ScanRequest | SampleRequest


class Statistics(NamedTuple):
    """Estimates: live rows and their bytes."""

    rows: int
    size_bytes: int
