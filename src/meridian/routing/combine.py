"""Pages of several shards as one answer: joined, aggregated, matched; no Python per row.

Aggregates go through an in-memory SQLite table, so that they mean the same as in storage: binary
comparison of bytes, exact integers, NULLs ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import add, itemgetter
from typing import Any

import apsw
import msgspec

from meridian.errors import Kind, MeridianError

COUNT_ROWS, COUNT, MINIMUM, MAXIMUM, SUM, SUM_HALVES = range(1, 7)
_MERGE = {
    COUNT_ROWS: ("coalesce(sum({}), 0)",),
    COUNT: ("coalesce(sum({}), 0)",),
    MINIMUM: ("min({})",),
    MAXIMUM: ("max({})",),
    SUM: ("sum({})",),
    SUM_HALVES: ("sum({})", "sum({})"),
}

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode
_key = itemgetter(0)
_row_key = itemgetter(1)
_values = itemgetter(slice(1, None))


def aggregate(
    pages: Sequence[bytes], groups: int, aggs: Sequence[tuple[int, int]], limit: int
) -> tuple[bool, bytes]:
    """One grouped page from the pages of parts: rows are `[group values..., aggregates...]`.

    More than `limit` groups (0: no limit): (True, ...), to be discarded. Raises OUT_OF_RANGE.
    """
    merge = [word for function, _ in aggs for word in _MERGE[function]]
    columns = [f"c{i}" for i in range(groups + len(merge))]
    group = ", ".join(columns[:groups])
    cells = [word.format(column) for word, column in zip(merge, columns[groups:], strict=True)]
    db = apsw.Connection(":memory:")
    try:
        db.execute(f"CREATE TABLE t({', '.join(columns)})")
        insert = f"INSERT INTO t VALUES({', '.join('?' * len(columns))})"
        with db:
            for page in pages:
                db.executemany(insert, _decode(page))
        tail = f" GROUP BY {group}" if group else ""
        tail += f" LIMIT {limit + 1}" if limit else ""
        rows = db.execute(
            f"SELECT {', '.join([*columns[:groups], *cells])} FROM t{tail}"
        ).fetchall()
    except apsw.SQLError as error:
        raise MeridianError(Kind.OUT_OF_RANGE, why=str(error)) from error
    finally:
        db.close(True)
    return 0 < limit < len(rows), _encode(rows)


def row_keys(entries: list[list[Any]]) -> list[bytes]:
    """The distinct row keys of index entries `[k, row key, ...]`, ascending."""
    return sorted(set(map(_row_key, entries)))


def match(entries: list[list[Any]], pages: Sequence[bytes]) -> list[list[Any]]:
    """Index entries joined to their rows: `[index k, row k, index cols..., row cols...]`.

    Entries whose row is not in the pages (it did not pass the filter) are left out.
    """
    rows: dict[bytes, list[Any]] = {}
    for page in pages:
        found = _decode(page)
        rows.update(zip(map(_key, found), map(_values, found), strict=True))
    keys = list(map(_row_key, entries))
    here = list(map(rows.__contains__, keys))
    return list(map(add, compress(entries, here), map(rows.__getitem__, compress(keys, here))))


def decode(page: bytes) -> list[list[Any]]:
    """The rows of a page."""
    return _decode(page)


def encode(rows: list[list[Any]]) -> bytes:
    """A page of rows."""
    return _encode(rows)
