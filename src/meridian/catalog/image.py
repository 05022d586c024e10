"""Merging catalog deltas into one (docs/formats.md, "Catalog deltas" and "Catalog image").

Pure. Deltas merge row by row, the last writer of a primary key wins. The result is itself a
delta, from version 0: applied to a new directory it has the effect of all its parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import msgspec

from meridian.catalog.catalogs import BY_ID, FIRST_USER_OID, Catalog

DELTA_FORMAT = 1
IMAGE_FORMAT = 1
_HEAD = bytes([IMAGE_FORMAT])

Row = bytes
"""One row, as the delta has it: a msgpack array of all columns."""


class MergeError(ValueError):
    """These deltas do not belong together, or are none; the message is one clause."""


class _Part(msgspec.Struct, array_like=True):
    """One catalog of a delta."""

    id: int
    columns: int
    rows: list[msgspec.Raw]
    gone: list[msgspec.Raw]


class _Delta(msgspec.Struct, array_like=True):
    format: int
    catalog_version_no: int
    template: int
    database_oid: int
    catalogs: list[_Part]


_decode = msgspec.msgpack.Decoder(_Delta).decode
_decode_row = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_id = msgspec.msgpack.Decoder(int | bytes | None).decode
_encode = msgspec.msgpack.Encoder().encode


class _Rows:
    """What is known of one catalog.

    Invariant: `born` applied to the template after `gone` gives the catalog. `gone` holds only
    rows that a template may have.
    """

    def __init__(self, catalog: Catalog, columns: int) -> None:
        self.catalog = catalog
        self.columns = columns
        self.born: dict[bytes, list[Row]] = {}
        """By key; several equal rows only where there is no key."""
        self.gone: dict[bytes, list[Row]] = {}

    def take(self, part: _Part) -> None:
        """One more delta. Rows that went come before rows that came, as when it is applied."""
        for raw in part.gone:
            self._remove(bytes(raw))
        for raw in part.rows:
            self._add(bytes(raw))

    def _remove(self, row: Row) -> None:
        key, in_template = self._key(row)
        there = self.born.get(key)
        if there:
            there.pop()
            if not there:
                del self.born[key]
            if not self.catalog.key:
                return
        if in_template:
            same = self.gone.setdefault(key, [])
            if not same or not self.catalog.key:
                same.append(row)

    def _add(self, row: Row) -> None:
        key, _ = self._key(row)
        if self.catalog.key:
            self.born[key] = [row]
            # A new row replaces the row of its key.
            self.gone.pop(key, None)
        else:
            self.born.setdefault(key, []).append(row)

    def _key(self, row: Row) -> tuple[bytes, bool]:
        """What identifies it, and whether a template may have such a row."""
        columns = _decode_row(row)
        if len(columns) != self.columns:
            raise MergeError(f"a row of {self.catalog.name} has another width")
        oids = [_oid(columns[attnum - 1]) for attnum in self.catalog.oids]
        in_template = all(0 <= oid < FIRST_USER_OID for oid in oids)
        if not self.catalog.key:
            return row, in_template
        return b"".join(bytes(columns[attnum - 1]) for attnum in self.catalog.key), in_template

    def part(self) -> _Part | None:
        """As part of a delta."""
        rows = [msgspec.Raw(row) for same in self.born.values() for row in same]
        gone = [msgspec.Raw(row) for same in self.gone.values() for row in same]
        return _Part(self.catalog.id, self.columns, rows, gone) if rows or gone else None


def _oid(value: msgspec.Raw) -> int:
    """Of a column of type oid (an integer) or regproc (its bytes); 0 for NULL."""
    found = _decode_id(value)
    if isinstance(found, bytes):
        return int.from_bytes(found, "little")
    return found or 0


def merge(deltas: Iterable[bytes]) -> bytes:
    """One delta with the effect of `deltas`, the first of which follows version 0.

    Raises MergeError: of another PostgreSQL, template or database than the first, or malformed.
    """
    head: tuple[int, int, int] | None = None
    catalogs: dict[int, _Rows] = {}
    for data in deltas:
        delta = _decoded(data)
        mine = (delta.catalog_version_no, delta.template, delta.database_oid)
        if head is not None and mine != head:
            raise MergeError("a delta was made by another version of PostgreSQL or the extension")
        head = mine
        for part in delta.catalogs:
            _rows_of(catalogs, part).take(part)
    if head is None:
        raise MergeError("there is no delta")
    ordered = sorted(catalogs.values(), key=lambda rows: BY_ID[rows.catalog.id][0])
    parts = [merged for rows in ordered if (merged := rows.part()) is not None]
    return _encode(_Delta(DELTA_FORMAT, *head, parts))


def _decoded(data: bytes) -> _Delta:
    try:
        delta = _decode(data)
    except msgspec.MsgspecError as error:
        raise MergeError(f"not a catalog delta: {error}") from None
    if delta.format != DELTA_FORMAT:
        raise MergeError(f"catalog delta has unknown format {delta.format}")
    return delta


def _rows_of(catalogs: dict[int, _Rows], part: _Part) -> _Rows:
    if part.id not in catalogs:
        if part.id not in BY_ID:
            raise MergeError(f"catalog {part.id} is unknown")
        catalogs[part.id] = _Rows(BY_ID[part.id][1], part.columns)
    if catalogs[part.id].columns != part.columns:
        raise MergeError(f"catalog {part.id} has another shape")
    return catalogs[part.id]


def pack(delta: bytes) -> bytes:
    """As it is stored: a byte with the format, then zlib."""
    return _HEAD + zlib.compress(delta, 6)


def unpack(data: bytes) -> bytes:
    """The delta. Raises MergeError."""
    if data[:1] != _HEAD:
        raise MergeError("the catalog image has an unknown format")
    try:
        return zlib.decompress(data[1:])
    except zlib.error as error:
        raise MergeError(f"the catalog image is damaged: {error}") from None
