"""The manifest of a snapshot: what it holds and where to read on. Format 1 (pure).

An object `manifest`: `MSNP`, one byte version, CRC-32C of the rest (4 bytes big-endian), then
msgpack. It is written last: without a whole manifest there is no snapshot.
"""

from __future__ import annotations

import google_crc32c
import msgspec

from meridian.journal.core import Position
from meridian.snapshots.errors import SnapshotUnusable
from meridian.storage.selfcheck import Digest
from meridian.wire.ranges import Owned

MAGIC = b"MSNP"
VERSION = 1
MANIFEST_NAME = "manifest"
PART_BYTES = 8 << 20
"""Parts of a file: what one request carries, and one thread holds in memory."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One object of the file, in order."""

    size_bytes: int
    crc: int


class Manifest(msgspec.Struct, frozen=True):
    """A storage file as of `tau`.

    `positions`: last record of each journal that is in. `starts`: where reading each journal begins
    (6.7): epoch, SEAL, lease, members; at or before its position, outside of open transactions.
    """

    shard: str
    tau: int
    horizon: int
    """Reads below are refused: older versions are gone. Each range may have a higher base."""
    owned: tuple[Owned, ...]
    positions: dict[int, int]
    starts: dict[int, Position]
    storage_format: int
    size_bytes: int
    parts: tuple[Part, ...]
    digest: Digest | None = None
    """Of the one range it holds, as of `tau`: other replicas say whether the copy was sound.

    A snapshot of a rotten copy has right checksums; journals are trimmed only behind one whose
    digest a second copy confirmed, or where there is no second copy. It says nothing of versions
    replaced before `tau`: see `restore(history=False)`.
    """

    def __post_init__(self) -> None:
        assert sum(part.size_bytes for part in self.parts) == self.size_bytes
        assert self.positions.keys() <= self.starts.keys(), "a journal without a place to begin"
        assert all(self.starts[j].n <= n for j, n in self.positions.items()), "begins too late"


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Manifest).decode


def encode(manifest: Manifest) -> bytes:
    """The object's bytes."""
    body = _encode(manifest)
    crc: int = google_crc32c.value(body)
    return MAGIC + bytes((VERSION,)) + crc.to_bytes(4, "big") + body


def decode(data: bytes) -> Manifest:
    """Raises SnapshotUnusable on anything but a whole manifest of a known version."""
    if data[:4] != MAGIC or len(data) < 9:
        raise SnapshotUnusable("it has no manifest of ours")
    if data[4] != VERSION:
        raise SnapshotUnusable(f"snapshot version {data[4]} is not known")
    if google_crc32c.value(data[9:]) != int.from_bytes(data[5:9], "big"):
        raise SnapshotUnusable("its manifest fails its checksum")
    try:
        return _decode(data[9:])
    except (msgspec.MsgspecError, AssertionError) as error:
        raise SnapshotUnusable(f"its manifest is malformed: {error}") from error


def intact(part: Part, data: bytes) -> bool:
    """Whether `data` is the object that was written as this part."""
    return len(data) == part.size_bytes and google_crc32c.value(data) == part.crc


def directory_name(shard: str, tau: int, nonce: str) -> str:
    """Where its objects lie; names of one shard sort by tau. The nonce tells attempts apart."""
    return f"{shard}/{tau:020d}-{nonce}"


def part_name(directory: str, number: int) -> str:
    """The object of a part."""
    return f"{directory}/part-{number:06d}"


def tau_of(directory: str) -> int:
    """The tau in a directory's name. Raises ValueError."""
    return int(directory.rpartition("/")[2].partition("-")[0])
