"""The catalog image in storage: reading it, and replacing deltas by it (RFC point 10).

System relation SID_CATALOG_IMAGE holds the pieces of one image: `k` = its version and the number
of the piece (8 and 4 bytes big-endian), `c1` = the piece. SID_CATALOG_AUDIT keeps the texts of the
statements whose deltas are gone: `k` = version, `c1` = text. One transaction writes a new image
and deletes the old one and the deltas behind it, so that readers see the one or the other.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meridian.catalog.image import MergeError, merge, pack, unpack
from meridian.gateway.aio import AsyncClient
from meridian.gateway.client import GatewayError
from meridian.limits import S
from meridian.wire import frames
from meridian.wire.ops import (
    SID_CATALOG,
    SID_CATALOG_AUDIT,
    SID_CATALOG_IMAGE,
    Big,
    Delete,
    Op,
    Put,
    conflict_hash,
    encode_chunk,
)

AGE_NS = 305 * S
"""Only deltas older than this are replaced: a running transaction may still need what is younger
compared (5 min and some slack), and storage can still be read as of then."""
TAIL_VERSIONS = 128
"""So many deltas of that age behind the image, or none, make a new image worth it."""
VERSIONS_AT_ONCE = 512
"""Deltas that one transaction replaces."""
LOOK_S = 10.0
RETRY_S = 60.0
CONNECT_S = 10.0
PIECE_BYTES = 4 * 1024 * 1024
CHUNK_OPS_BYTES = 4 * 1024 * 1024
PAGE_BYTES = 4 * 1024 * 1024
INLINE_BYTES = 2048
"""Longer values travel as BIG."""
_VERSION_BYTES = 8
_PIECE_BYTES = 4

Rows = list[list[Any]]


def version_key(version: int) -> bytes:
    """Key of the catalog log."""
    return version.to_bytes(_VERSION_BYTES, "big")


async def read_image(client: AsyncClient, tau: int = 0) -> tuple[int, bytes]:
    """(version, delta from version 0) as of tau; (0, b"") where there is none.

    Raises OSError, GatewayError, MergeError.
    """
    rows = await _scan(client, SID_CATALOG_IMAGE, tau, b"", [1])
    if not rows:
        return 0, b""
    keys = [row[0] for row in rows]
    version = int.from_bytes(keys[0][:_VERSION_BYTES], "big")
    if keys != [_piece_key(version, number) for number in range(len(rows))]:
        raise MergeError("pieces of the catalog image are missing")
    return version, await asyncio.to_thread(unpack, b"".join(row[1] for row in rows))


async def image_version(client: AsyncClient, tau: int = 0) -> int:
    """Of the image as of tau, 0 without one. Raises OSError, GatewayError."""
    rows = await _scan(client, SID_CATALOG_IMAGE, tau, b"", [])
    return int.from_bytes(rows[0][0][:_VERSION_BYTES], "big") if rows else 0


async def newest_version(client: AsyncClient) -> int:
    """The catalog version in force, 0 if there never was a schema change. Raises likewise."""
    bounds: tuple[Any, ...] = (b"", None, frames.SCAN_DESCENDING, [], None, 1, PAGE_BYTES)
    _, _, rows = await client.call(frames.SCAN, 0, 0, SID_CATALOG, *bounds, 0, [], None, None, None)
    return int.from_bytes(rows[0][0], "big") if rows else await image_version(client)


async def compact(client: AsyncClient, age_ns: int = AGE_NS, tail: int = TAIL_VERSIONS) -> int:
    """Replace deltas older than `age_ns` by an image if there are `tail` of them; the oldest first.

    The version of the new image, 0 if nothing was done. Raises OSError, GatewayError (40001 when
    another one did it at the same time), MergeError.
    """
    now = int((await client.call(frames.BEGIN, 0))[0])
    then = now - age_ns
    before = await image_version(client, now)
    lo = version_key(before + 1)
    keys = await _scan(client, SID_CATALOG, then, lo, [])
    if len(keys) < tail:
        return 0
    _, old = await read_image(client, now)
    hi = version_key(before + 1 + VERSIONS_AT_ONCE)
    rows = await _scan(client, SID_CATALOG, then, lo, [1, 2], hi)
    _check_gapless(rows, before)
    image = pack(await asyncio.to_thread(merge, [*([old] if old else []), *(r[1] for r in rows)]))
    version = int.from_bytes(rows[-1][0], "big")
    stale = [row[0] for row in await _scan(client, SID_CATALOG_IMAGE, now, b"", [])]
    await _commit(client, now, _ops(version, image, stale, rows))
    return version


def _check_gapless(rows: Rows, before: int) -> None:
    wanted = [version_key(before + 1 + at) for at in range(len(rows))]
    if [row[0] for row in rows] != wanted:
        raise MergeError(f"catalog versions are missing behind {before}")


def _ops(version: int, image: bytes, stale: list[bytes], rows: Rows) -> list[list[Op]]:
    """The write set, in groups of bounded size."""
    pieces = range(0, len(image), PIECE_BYTES)
    groups = [
        _put(SID_CATALOG_IMAGE, _piece_key(version, number), image[at : at + PIECE_BYTES])
        for number, at in enumerate(pieces)
    ]
    if stale:
        groups.append([_delete(SID_CATALOG_IMAGE, stale)])
    texts = [_put(SID_CATALOG_AUDIT, row[0], row[2] or b"") for row in rows]
    return [*groups, *texts, [_delete(SID_CATALOG, [row[0] for row in rows])]]


def _put(sid: int, key: bytes, value: bytes) -> list[Op]:
    hashes = _hashes(sid, [key])
    if len(value) <= INLINE_BYTES:
        return [Put(sid, 0, (1,), [key], hashes, b"", [(value,)])]
    put = Put(sid, 0, (1,), [key], hashes, b"", [("b",)])
    return [put, Big(sid, 1, [key], [value])]


def _delete(sid: int, keys: list[bytes]) -> Op:
    return Delete(sid, 0, keys, _hashes(sid, keys), b"")


def _hashes(sid: int, keys: list[bytes]) -> bytes:
    return b"".join(conflict_hash(sid, 0, key).to_bytes(8, "little") for key in keys)


def _piece_key(version: int, number: int) -> bytes:
    return version_key(version) + number.to_bytes(_PIECE_BYTES, "big")


async def _commit(client: AsyncClient, tau: int, groups: list[list[Op]]) -> None:
    txid = secrets.token_bytes(frames.TXID_SIZE_BYTES)
    *parts, last = _chunks(groups)
    for seq, part in enumerate(parts):
        await client.post(frames.PART, txid, seq, part, tau)
    flags = frames.COMMIT_HAS_SCHEMA | (frames.COMMIT_HAS_PARTS if parts else 0)
    await client.call(frames.COMMIT, 0, tau, txid, flags, 0, last)


def _chunks(groups: list[list[Op]]) -> list[bytes]:
    """Encoded chunks of about CHUNK_OPS_BYTES; a group stays together."""
    chunks: list[bytes] = []
    ops: list[Op] = []
    size_bytes = 0
    for group in groups:
        group_bytes = len(encode_chunk(group))
        if ops and size_bytes + group_bytes > CHUNK_OPS_BYTES:
            chunks.append(encode_chunk(ops))
            ops, size_bytes = [], 0
        ops += group
        size_bytes += group_bytes
    return [*chunks, encode_chunk(ops)]


async def _scan(
    client: AsyncClient, sid: int, tau: int, lo: bytes, cols: list[int], hi: bytes | None = None
) -> Rows:
    """All rows [k, c...] from `lo` to before `hi`, as of one tau."""
    rows: Rows = []
    flags, more = 0, True
    while more:
        fields: tuple[Any, ...] = (lo, hi, flags, cols, None, 0, PAGE_BYTES, 0, [])
        fields += (None, None, None)
        tau, more, page = await client.call(frames.SCAN, 0, tau, sid, *fields)
        rows += page
        if more:
            lo, flags = page[-1][0], frames.SCAN_LO_EXCLUSIVE
    return rows


async def run(gateway: Path, report: Callable[[str], None]) -> None:
    """Keep the tail of deltas short, until cancelled. `report` hears when that fails for good."""
    while True:
        pause_s = LOOK_S
        try:
            client = await AsyncClient.connect(gateway, timeout_s=CONNECT_S)
            try:
                while await compact(client):
                    pass
            finally:
                client.close()
        except MergeError as error:
            report(f"the catalog's image cannot be written: {error}")
            pause_s = RETRY_S
        except (OSError, GatewayError):
            # Not needed now: the deltas are simply kept, and tried again.
            pause_s = RETRY_S
        await asyncio.sleep(pause_s)
