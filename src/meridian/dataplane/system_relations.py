"""The system relations of a cluster (docs/formats.md, "Storage ids"), and those that one lacks."""

from __future__ import annotations

from collections.abc import Callable, Container

from meridian.dataplane.sequences import COLUMN_IS_CALLED, COLUMN_LAST, SID_SEQUENCES
from meridian.wire.ops import (
    CLASS_BYTES,
    CLASS_INTEGER,
    CLASS_OPAQUE,
    JOB_COLUMNS,
    KIND_TABLE,
    SID_CATALOG,
    SID_CATALOG_AUDIT,
    SID_CATALOG_IMAGE,
    SID_JOBS,
    SID_STATISTICS,
    SID_STATISTICS_HEADS,
    STATISTICS_HEAD_COLUMNS,
    Add,
    Create,
    Op,
)
from meridian.wire.reach import COLUMN_REACH

_CATALOG = [(1, CLASS_OPAQUE), (2, CLASS_BYTES), (COLUMN_REACH, CLASS_OPAQUE)]
_SEQUENCES = [(COLUMN_LAST, CLASS_INTEGER), (COLUMN_IS_CALLED, CLASS_INTEGER)]
_JOBS = [(attnum, CLASS_BYTES) for attnum in range(1, JOB_COLUMNS + 1)]
_HEADS = [(attnum, CLASS_INTEGER) for attnum in range(1, STATISTICS_HEAD_COLUMNS + 1)]
RELATIONS = (
    Create(SID_CATALOG, KIND_TABLE, _CATALOG, 0),
    Create(SID_SEQUENCES, KIND_TABLE, _SEQUENCES, 0),
    Create(SID_JOBS, KIND_TABLE, _JOBS, 0),
    Create(SID_CATALOG_IMAGE, KIND_TABLE, [(1, CLASS_OPAQUE)], 0),
    Create(SID_CATALOG_AUDIT, KIND_TABLE, [(1, CLASS_BYTES)], 0),
    Create(SID_STATISTICS_HEADS, KIND_TABLE, _HEADS, 0),
    Create(SID_STATISTICS, KIND_TABLE, [(1, CLASS_OPAQUE)], 0),
)


def missing(known_columns: Callable[[int], Container[int] | None]) -> list[Op]:
    """What a new cluster, or one of an earlier version, lacks; `known_columns`: as `Engine`'s."""
    ops: list[Op] = [op for op in RELATIONS if known_columns(op.sid) is None]
    columns = known_columns(SID_CATALOG)
    if columns is not None and COLUMN_REACH not in columns:
        ops.append(Add(SID_CATALOG, COLUMN_REACH, CLASS_OPAQUE, None))
    return ops
