"""MVCC storage of one shard replica (design section 8)."""

from meridian.storage.apply import check_ops
from meridian.storage.engine import Engine
from meridian.storage.errors import RebuildNeeded, StorageError
from meridian.storage.types import Page, SampleRequest, ScanRequest, Statistics

__all__ = [
    "Engine",
    "Page",
    "RebuildNeeded",
    "SampleRequest",
    "ScanRequest",
    "Statistics",
    "StorageError",
    "check_ops",
]
