"""Joining encoded msgpack arrays of rows without decoding them."""

from __future__ import annotations


def array_of(page: bytes) -> tuple[int, int]:
    """(number of elements, size of the header) of an encoded msgpack array."""
    first = page[0]
    if 0x90 <= first <= 0x9F:
        return first & 0x0F, 1
    if first == 0xDC:
        return int.from_bytes(page[1:3], "big"), 3
    assert first == 0xDD, first
    return int.from_bytes(page[1:5], "big"), 5


def join_pages(pages: list[bytes]) -> bytes:
    """One array with the elements of all."""
    if len(pages) == 1:
        return pages[0]
    count = 0
    parts = [b""]
    for page in pages:
        elements, header = array_of(page)
        count += elements
        parts.append(page[header:])
    parts[0] = b"\xdd" + count.to_bytes(4, "big")
    return b"".join(parts)
