"""Cluster id, node numbers, journal epochs and id leases, all by compare-and-set."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from meridian.errors import Kind, MeridianError
from meridian.metadata.store import MetadataStore
from meridian.wire.frames import LEASE_OID, LEASE_ROW, LEASE_SID

_ATTEMPTS = 1_000


class LeaseSpace(NamedTuple):
    """Numbers first..last of one kind; `block` are leased at a time, at most `granted` at once."""

    name: str
    first: int
    last: int
    block: int
    granted: int


LEASES: dict[int, LeaseSpace] = {
    LEASE_ROW: LeaseSpace("row id", 1, (1 << 63) - 1, 1 << 20, 1 << 20),
    LEASE_SID: LeaseSpace("storage id", 1_000, (1 << 62) - 1, 1 << 10, 1 << 20),
    LEASE_OID: LeaseSpace("object id (OID)", 1 << 20, (1 << 32) - 1, 1 << 13, 1 << 13),
}
"""OIDs begin far above those of the template, which every instance has, and are few: 2^32 must
last for the life of a cluster, so nobody gets many at once."""


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
    """Up to `count` numbers of a kind, never given out before: (first, granted).

    Raises LEASE_EXHAUSTED when none is left.
    """
    space = LEASES[kind]
    key = f"lease/{kind}"
    for _ in range(_ATTEMPTS):
        entry = store.get(key)
        first = space.first if entry is None else int(entry.value)
        granted = min(count, space.last - first + 1)
        if granted < 1:
            raise MeridianError(Kind.LEASE_EXHAUSTED, lease_kind=space.name, last=space.last)
        value = str(first + granted).encode()
        if store.put(key, value, entry.revision if entry else 0) is not None:
            return first, granted
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
