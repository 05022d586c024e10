"""Frames between hosts and an adjudicator process (docs/protocol.md, version 1).

Many commits share a frame: what a frame costs is paid once for all of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from meridian.errors import Kind, MeridianError
from meridian.limits import FRAME_SIZE_BYTES
from meridian.wire.frames import HEADER

PROTOCOL_VERSION = 1


class Hello(msgspec.Struct, array_like=True, tag=1):
    """First frame of a connection."""

    version: int


class Ask(msgspec.Struct, array_like=True):
    """One COMMIT of a transaction of one chunk; `to` < 2^32 comes back in its answer."""

    to: int
    txid: bytes
    tau_start: int
    catver: int
    flags: int
    chunk: bytes


class Commits(msgspec.Struct, array_like=True, tag=2):
    """Transactions to decide, in order."""

    asks: list[Ask]


class AskStatus(msgspec.Struct, array_like=True):
    """What became of a transaction?"""

    to: int
    txid: bytes
    tau_start: int


class Statuses(msgspec.Struct, array_like=True, tag=3):
    """Transactions whose answers were lost."""

    asks: list[AskStatus]


class Welcome(msgspec.Struct, array_like=True, tag=64):
    """The answer to Hello: the adjudicator's number and epoch."""

    version: int
    number: int
    epoch: int


class Told(msgspec.Struct, array_like=True):
    """The answer to an Ask; outcome and code as in `adjudicator.events`."""

    to: int
    outcome: int
    tau: int
    code: int


class Answers(msgspec.Struct, array_like=True, tag=65):
    """Answers, in the order in which they became known."""

    told: list[Told]


class Sorry(msgspec.Struct, array_like=True, tag=127):
    """The connection ends: why."""

    message: str


Request = Hello | Commits | Statuses
Answer = Welcome | Answers | Sorry

_encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def frame(message: Any) -> bytes:
    """Header and body of one message. Raises FRAME_TOO_LARGE above the limit."""
    body: bytes = _encode(message)
    if len(body) > FRAME_SIZE_BYTES:
        raise MeridianError(Kind.FRAME_TOO_LARGE, size_bytes=len(body))
    return HEADER.pack(len(body)) + body
