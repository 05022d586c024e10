"""Snapshots of storage files in an object store (design sections 6.7 and 8)."""

from meridian.snapshots.errors import SnapshotUnusable
from meridian.snapshots.manifest import Manifest
from meridian.snapshots.objects import Objects, open_objects
from meridian.snapshots.restore import newest, restore
from meridian.snapshots.writer import write

__all__ = [
    "Manifest",
    "Objects",
    "SnapshotUnusable",
    "newest",
    "open_objects",
    "restore",
    "write",
]
