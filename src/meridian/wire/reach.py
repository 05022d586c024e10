"""The reach of a catalog delta: whom it concerns (docs/rfcs, "Catalog coherence", point 1)."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

COLUMN_REACH: Final = 3
"""The column of the catalog log that holds it."""

ADDITIVE: Final = 0
"""Nothing that existed means something else afterwards."""
RELATIONS: Final = 1
"""Only users of these relations are concerned."""
GLOBAL: Final = 2
"""Anybody may be."""

_decode = msgspec.msgpack.Decoder(tuple[int, list[int]]).decode


class Reach(NamedTuple):
    """`sids`: storage ids concerned; empty unless the kind is RELATIONS."""

    kind: int
    sids: tuple[int, ...] = ()


EVERYBODY: Final = Reach(GLOBAL)


def decode_reach(data: object) -> Reach:
    """The reach in column 3; a row without one concerns everybody. Raises ValueError."""
    if data is None:
        return EVERYBODY
    if not isinstance(data, bytes):
        raise ValueError("a reach is bin")
    try:
        kind, sids = _decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    if kind not in (ADDITIVE, RELATIONS, GLOBAL):
        raise ValueError(f"a reach of the unknown kind {kind}")
    return Reach(kind, tuple(dict.fromkeys(sids)) if kind == RELATIONS else ())


def encode_reach(reach: Reach) -> bytes:
    """Column 3 of the catalog log."""
    return msgspec.msgpack.encode((reach.kind, list(reach.sids)))
