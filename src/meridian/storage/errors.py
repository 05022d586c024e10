"""What storage refuses, and why."""

from __future__ import annotations


class StorageError(Exception):
    """Base of all refusals; `sqlstate` is what a client is told."""

    sqlstate = "XX000"


class BadRequest(StorageError):
    """The request is malformed: unknown column, wrong value class, too large a filter."""

    sqlstate = "08P01"


class UnknownRelation(StorageError):
    """No such storage id at this tau: the client's catalog is stale (OC001)."""

    sqlstate = "40001"


class BelowHorizon(StorageError):
    """tau lies below what this replica still holds (design section 8)."""

    sqlstate = "40001"


class Cancelled(StorageError):
    """The reader asked to stop."""

    sqlstate = "57014"


class Busy(StorageError):
    """A bounded queue of this replica is full."""

    sqlstate = "53000"


class OutOfRange(StorageError):
    """An exact sum does not fit (SQLite overflows with an error, never silently)."""

    sqlstate = "22003"


class MissingChunks(StorageError):
    """A commit record names more chunks than were staged: the feed has a gap."""

    sqlstate = "XX000"


class Corrupt(StorageError):
    """The file contradicts itself."""

    sqlstate = "XX001"


class RebuildNeeded(StorageError):
    """The file must be discarded and rebuilt from checkpoint and journal; `args[0]` says why."""

    sqlstate = "XX000"
