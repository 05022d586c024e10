"""What of a transaction concerns a subscriber that holds some ranges of keys (design section 7)."""

from __future__ import annotations

from collections import OrderedDict

from meridian.wire.ops import Op, decode_chunk, encode_chunk
from meridian.wire.ranges import Owned, Ranges, cut_ops

DECODED = 64
"""Chunks kept decoded, for the other subscribers."""
NOTHING = encode_chunk([])


class Cutter:
    """Cuts chunks by ranges of (storage id, k); keys ascend, so an op costs two bisections."""

    def __init__(self) -> None:
        self._decoded: OrderedDict[int, list[Op]] = OrderedDict()

    def cut(self, number: int, chunk: bytes, ranges: Ranges) -> bytes:
        """The chunk with these keys only; `number` names it.  NOTHING: none of it.

        Untouched if all of it is concerned.  Raises msgspec.DecodeError on malformed chunks.
        """
        ops = self._decoded.get(number)
        if ops is None:
            ops = self._decoded[number] = decode_chunk(chunk)
            if len(self._decoded) > DECODED:
                self._decoded.popitem(last=False)
        part = cut_ops(ops, ranges)
        if len(part) == len(ops) and all(map(_same, part, ops)):
            return chunk
        return encode_chunk(part) if part else NOTHING


def _same(one: Op, other: Op) -> bool:
    return one is other


def ranges_of(owned: tuple[Owned, ...]) -> Ranges | None:
    """None: everything, nothing is cut.  Raises ValueError if they overlap."""
    return Ranges(owned) if owned else None
