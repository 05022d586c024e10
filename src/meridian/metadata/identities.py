"""Cluster id, node numbers, journal epochs and id leases, all by compare-and-set."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from meridian.errors import Kind, MeridianError
from meridian.metadata.store import MetadataStore
from meridian.wire.frames import LEASE_OID, LEASE_ROW, LEASE_SID

_ATTEMPTS = 1_000


class LeaseSpace(NamedTuple):
    """Numbers first..last of one kind; `block` are leased at a time."""

    first: int
    last: int
    block: int


LEASES: dict[int, LeaseSpace] = {
    LEASE_ROW: LeaseSpace(1, (1 << 63) - 1, 1 << 20),
    LEASE_SID: LeaseSpace(1_000, (1 << 62) - 1, 1 << 10),
    LEASE_OID: LeaseSpace(1 << 20, (1 << 32) - 1, 1 << 13),
}
"""OIDs begin far above what initdb and the first local objects use."""


def cluster_id(store: MetadataStore) -> str:
    """26 lowercase base32 characters, made once."""
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    fresh = "".join(secrets.choice(alphabet) for _ in range(26))
    store.put("cluster", fresh.encode(), 0)
    entry = store.get("cluster")
    assert entry is not None
    return entry.value.decode()


def next_epoch(store: MetadataStore, journal_id: int, at_least: int) -> tuple[int, int]:
    """A new (number, nonce) for a journal, above every number given out and >= at_least."""
    key = f"epoch/{journal_id}"
    for _ in range(_ATTEMPTS):
        entry = store.get(key)
        last = 0 if entry is None else int(entry.value)
        number = max(last + 1, at_least)
        if store.put(key, str(number).encode(), entry.revision if entry else 0) is not None:
            return number, secrets.randbits(63)
    raise MeridianError(Kind.BAD_METADATA, path=store.path, why="epoch cannot be raised")


def lease(store: MetadataStore, kind: int, count: int) -> tuple[int, int]:
    """`count` numbers of a kind, never given out before: (first, count). Raises LEASE_EXHAUSTED."""
    space = LEASES[kind]
    key = f"lease/{kind}"
    for _ in range(_ATTEMPTS):
        entry = store.get(key)
        first = space.first if entry is None else int(entry.value)
        if first + count - 1 > space.last:
            raise MeridianError(Kind.LEASE_EXHAUSTED, lease_kind=kind)
        value = str(first + count).encode()
        if store.put(key, value, entry.revision if entry else 0) is not None:
            return first, count
    raise MeridianError(Kind.BAD_METADATA, path=store.path, why="lease cannot be taken")


def get_value(store: MetadataStore, key: str) -> bytes | None:
    """The value of a key."""
    entry = store.get(key)
    return None if entry is None else entry.value


def set_value(store: MetadataStore, key: str, value: bytes) -> None:
    """Replaces it whatever it was (this process owns the directory)."""
    entry = store.get(key)
    done = store.put(key, value, entry.revision if entry else 0)
    assert done is not None, "the directory has one owner"
