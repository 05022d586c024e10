"""What storage refuses: shorthands for lines of the one error table (`meridian.errors`)."""

from __future__ import annotations

from meridian.errors import Kind, MeridianError


class StorageError(MeridianError):
    """Base of all refusals of the storage engine."""

    @property
    def sqlstate(self) -> str:
        """SQLSTATE in the `standard` profile."""
        return self.kind.sqlstate


class BadRequest(StorageError):
    """The request is malformed: unknown column, wrong value class, too large a filter."""

    def __init__(self, why: str) -> None:
        super().__init__(Kind.BAD_REQUEST, why=why)


class BadWriteSet(StorageError):
    """An op that must not reach the journal (`check_ops`)."""

    def __init__(self, why: str) -> None:
        super().__init__(Kind.BAD_WRITE_SET, why=why)


class UnknownRelation(StorageError):
    """No such storage id at this tau: the client's catalog is stale (OC001)."""

    def __init__(self, sid: int) -> None:
        super().__init__(Kind.SCHEMA_CHANGED, detail=f"storage id {sid} does not exist")


class BelowHorizon(StorageError):
    """tau lies below what this replica still holds (design section 8)."""

    def __init__(self) -> None:
        super().__init__(Kind.SNAPSHOT_TOO_OLD)


class WrongPlace(StorageError):
    """The file does not own the places asked for: the gateway asks another replica."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(Kind.WRONG_PLACE, detail=detail)


class OutOfRange(StorageError):
    """An exact sum does not fit into int64; SQLite raises instead of wrapping."""

    def __init__(self, why: str) -> None:
        super().__init__(Kind.OUT_OF_RANGE, why=why)


class Cancelled(StorageError):
    """The reader asked to stop."""

    def __init__(self) -> None:
        super().__init__(Kind.CANCELED)


class Busy(StorageError):
    """The bounded queue of long reads is full."""

    def __init__(self) -> None:
        super().__init__(Kind.STORAGE_BUSY)


class Failed(StorageError):
    """SQLite failed (disk full, I/O error); the transaction was rolled back."""

    def __init__(self, why: str) -> None:
        super().__init__(Kind.STORAGE_FAILED, why=why)


class Corrupt(StorageError):
    """The feed or the file contradicts itself; the replica must stop and be rebuilt."""

    def __init__(self, why: str) -> None:
        super().__init__(Kind.STORAGE_FAILED, why=why)


class RebuildNeeded(Exception):
    """The file must be discarded and rebuilt from checkpoint and journal; `args[0]` says why."""
