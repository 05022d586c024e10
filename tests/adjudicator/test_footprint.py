"""Hashes of a write set: identity keys are parallel to the keys, 0 where there is none."""

from __future__ import annotations

from meridian.adjudicator.footprint import footprint
from meridian.wire.ops import Delete, Lock, Put, Share, encode_chunk


def packed(*hashes: int) -> bytes:
    return b"".join(one.to_bytes(8, "little") for one in hashes)


def test_zeros_among_identity_hashes_are_no_keys() -> None:
    keys = [b"a", b"b", b"c"]
    rows = [(1,)] * 3
    chunk = encode_chunk(
        [
            Put(1000, 0, (1,), keys, packed(1, 2, 3), packed(0, 12, 0), rows),
            Delete(1000, 0, [b"d"], packed(4), packed(14)),
            Lock(1000, [b"e", b"f"], packed(5, 6), packed(15, 0)),
            Share(1000, [b"g", b"h"], packed(0, 7), packed(17, 0)),
        ]
    )
    found = footprint(chunk)
    assert found.writes == packed(1, 2, 3, 12, 4, 14, 5, 6, 15)
    assert found.shares == packed(7, 17)


def test_a_zero_byte_within_hashes_is_none() -> None:
    """Eight zero bytes may also straddle two hashes."""
    one, other = 1 << 60 | 5, 0x0700000000000000
    straddling = packed(0x0000000000000001, other)
    chunk = encode_chunk([Put(1000, 0, (1,), [b"a", b"b"], packed(one, 2), straddling, [(1,)] * 2)])
    assert footprint(chunk).writes == packed(one, 2) + straddling
