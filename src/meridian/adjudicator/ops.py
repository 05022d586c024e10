"""Ops as an adjudicator reads them: hashes and relations, never rows (`wire/ops.py` has it all).

`Keys` is what becomes of an op's keys: `msgspec.Raw` leaves them undecoded, so that a chunk of many
rows costs little more than its hashes.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from meridian.wire.ops import Add, Drop

Keys = TypeVar("Keys")


class Put(msgspec.Struct, Generic[Keys], array_like=True, tag=1):
    """Row versions."""

    sid: int
    flags: int
    attnums: msgspec.Raw
    keys: Keys
    w: bytes
    i: bytes
    rows: msgspec.Raw


class Delete(msgspec.Struct, Generic[Keys], array_like=True, tag=2):
    """Rows that end."""

    sid: int
    flags: int
    keys: Keys
    w: bytes
    i: bytes


class Lock(msgspec.Struct, Generic[Keys], array_like=True, tag=3):
    """Keys conflict-written; the key b"" is the whole relation."""

    sid: int
    keys: Keys
    w: bytes
    i: bytes


class Share(msgspec.Struct, Generic[Keys], array_like=True, tag=4):
    """Keys shared; the key b"" is the whole relation."""

    sid: int
    keys: Keys
    r: bytes
    i: bytes


class Big(msgspec.Struct, array_like=True, tag=5):
    """Large values: nothing to check."""

    sid: int
    attnum: int
    keys: msgspec.Raw
    values: msgspec.Raw


class Create(msgspec.Struct, array_like=True, tag=6):
    """A new relation."""

    sid: int
    kind: int
    columns: Any
    table_sid: int
    flags: int = 0


class Notify(msgspec.Struct, array_like=True, tag=9):
    """Nothing to check."""

    channel: msgspec.Raw
    payload: msgspec.Raw


class Check(msgspec.Struct, Generic[Keys], array_like=True, tag=10):
    """Rows that must not have been written."""

    sid: int
    keys: Keys
    r: bytes


class Alter(msgspec.Struct, array_like=True, tag=11):
    """New flags of an index."""

    sid: int
    flags: int


Others = Create | Add | Drop | Alter | Big | Notify
