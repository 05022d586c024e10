"""The replica file: its metadata tables, trust and life cycle (design section 8).

Format 2 (1 had no ranges: such a file owns everything, and becomes one of format 2 when it is
opened). A file is trusted when its format is known and it was either closed cleanly or last used
in this very boot: WAL without fsync survives the death of a process, not of the machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import apsw
import msgspec

from meridian.storage.errors import Failed, RebuildNeeded
from meridian.storage.sql import fetch
from meridian.wire.ranges import ALL, Owned, Ranges

FORMAT = 2
FORMATS = (1, FORMAT)
APPLICATION_ID = 0x4D455244

_RANGES = """
CREATE TABLE ranges(lo BLOB PRIMARY KEY, hi BLOB, base INTEGER) WITHOUT ROWID;
CREATE TABLE purge(id INTEGER PRIMARY KEY, sid INTEGER, lo BLOB, hi BLOB);
"""

_TABLES = f"""
CREATE TABLE file(format INTEGER, boot_id TEXT, clean INTEGER, generation BLOB);
CREATE TABLE state(id INTEGER PRIMARY KEY, applied_tau INTEGER, horizon INTEGER,
  next_number INTEGER, positions BLOB, note BLOB);
CREATE TABLE relations(sid INTEGER PRIMARY KEY, kind INTEGER, table_sid INTEGER,
  born INTEGER, died INTEGER, rows INTEGER DEFAULT 0, dead INTEGER DEFAULT 0,
  superseded INTEGER DEFAULT 0,
  put_rows INTEGER DEFAULT 0, put_bytes INTEGER DEFAULT 0, origin INTEGER DEFAULT 0,
  complete INTEGER DEFAULT 0);
CREATE TABLE columns(sid INTEGER, attnum INTEGER, name TEXT, class INTEGER, big INTEGER,
  PRIMARY KEY(sid, attnum)) WITHOUT ROWID;
CREATE TABLE big(sid INTEGER, k BLOB, ts INTEGER, attnum INTEGER, v BLOB,
  PRIMARY KEY(sid, k, ts, attnum)) WITHOUT ROWID;
CREATE TABLE staged(number INTEGER PRIMARY KEY, txid BLOB UNIQUE, tau INTEGER, chunks INTEGER);
CREATE TABLE staged_ops(number INTEGER, seq INTEGER, n INTEGER, sid INTEGER, kind INTEGER,
  closes INTEGER, attnum INTEGER, count INTEGER, keys BLOB,
  PRIMARY KEY(number, seq, n)) WITHOUT ROWID;
CREATE TABLE gc(id INTEGER PRIMARY KEY, te INTEGER, sid INTEGER, superseded INTEGER,
  keys BLOB);
{_RANGES}
PRAGMA application_id = {APPLICATION_ID};
"""

_encode = msgspec.msgpack.Encoder().encode
_decode_positions = msgspec.msgpack.Decoder(dict[int, int]).decode


@dataclass(slots=True)
class State:
    """The one row of `state`."""

    applied_tau: int
    horizon: int
    next_number: int
    positions: dict[int, int]
    note: bytes


def connect(path: Path, *, cache_bytes: int) -> apsw.Connection:
    """The writing connection of a file, with the pragmas of the design."""
    db = apsw.Connection(str(path), statementcachesize=1000)
    db.set_busy_timeout(5000)
    for pragma in (
        "page_size = 16384",
        "journal_mode = WAL",
        "synchronous = OFF",
        f"cache_size = -{cache_bytes // 1024}",
        "wal_autocheckpoint = 0",
        "journal_size_limit = 67108864",
        "temp_store = MEMORY",
    ):
        db.execute(f"PRAGMA {pragma}").fetchall()
    return db


def connect_reader(path: Path, *, cache_bytes: int) -> apsw.Connection:
    """A read-only connection for another thread; its sorts spill to temporary files."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, statementcachesize=100)
    db.set_busy_timeout(5000)
    db.execute(f"PRAGMA cache_size = -{cache_bytes // 1024}").fetchall()
    return db


def remove_file(path: Path) -> None:
    """Delete a replica file and its companions; absent ones are fine."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def create_file(
    path: Path, *, boot_id: str, base_tau: int, cache_bytes: int, owned: Sequence[Owned] = ALL
) -> apsw.Connection:
    """A new, empty replica file of these ranges; an older one at the path is deleted."""
    remove_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    db = connect(path, cache_bytes=cache_bytes)
    with db:
        db.execute(_TABLES).fetchall()
        db.execute("INSERT INTO file VALUES(?,?,0,?)", (FORMAT, boot_id, os.urandom(16))).fetchall()
        db.execute("INSERT INTO state VALUES(0,?,?,0,?,X'')", (base_tau, base_tau, _encode({})))
        save_ranges(db, owned)
    return db


def open_file(
    path: Path, *, boot_id: str, durable: Mapping[int, int] | None, cache_bytes: int
) -> apsw.Connection:
    """An existing file if it can be trusted. Raises RebuildNeeded, Failed (the disk is full).

    `durable`: last durable record of each journal; None skips that check (tests, inspection).
    """
    if not path.exists():
        raise RebuildNeeded("there is no storage file")
    try:
        db = connect(path, cache_bytes=cache_bytes)
        try:
            _check_trust(db, boot_id, durable)
            migrate(db)
            _mark(db, boot_id=boot_id, clean=False)
        except BaseException:
            db.close(True)
            raise
        return db
    except apsw.FullError as error:
        # The file is as good as it was, and a new one would not fit either.
        raise Failed(str(error)) from error
    except apsw.Error as error:
        raise RebuildNeeded(f"the storage file cannot be read: {error}") from error


def _check_trust(db: apsw.Connection, boot_id: str, durable: Mapping[int, int] | None) -> None:
    ours = fetch(db, "PRAGMA application_id")[0][0]
    if ours != APPLICATION_ID:
        raise RebuildNeeded("the file is not a storage file of ours")
    rows = fetch(db, "SELECT format, boot_id, clean FROM file")
    if len(rows) != 1 or rows[0][0] not in FORMATS:
        raise RebuildNeeded(f"storage format {rows[0][0] if rows else None} is not known")
    if rows[0][1] != boot_id and not rows[0][2]:
        raise RebuildNeeded("the machine restarted without a clean close of the storage file")
    if durable is None:
        return
    for journal, n in sorted(load_state(db).positions.items()):
        if n > durable.get(journal, -1):
            raise RebuildNeeded(f"the file is ahead of durable journal {journal}")


def migrate(db: apsw.Connection) -> None:
    """A file of format 1 owns everything."""
    if fetch(db, "SELECT format FROM file")[0][0] == FORMAT:
        return
    with db:
        db.execute(_RANGES).fetchall()
        save_ranges(db, ALL)
        db.execute("UPDATE file SET format = ?", (FORMAT,)).fetchall()


def _mark(db: apsw.Connection, *, boot_id: str, clean: bool) -> None:
    """Write the trust mark with a real fsync: it must never reach the disk out of order."""
    db.execute("PRAGMA synchronous = FULL").fetchall()
    db.execute("UPDATE file SET boot_id = ?, clean = ?", (boot_id, int(clean))).fetchall()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    db.execute("PRAGMA synchronous = OFF").fetchall()


def close_file(db: apsw.Connection, *, boot_id: str) -> None:
    """Make everything durable, then mark the file clean, then close it.

    Pages that were copied back without a sync earlier need one of their own. Closing any
    descriptor of the file would drop SQLite's locks on it, hence last.
    """
    db.execute("PRAGMA synchronous = FULL").fetchall()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    descriptor = os.open(db.filename, os.O_RDWR)
    try:
        os.fsync(descriptor)
        _mark(db, boot_id=boot_id, clean=True)
        db.close()
    finally:
        os.close(descriptor)


def load_ranges(db: apsw.Connection) -> Ranges:
    """What the file owns; inside a read transaction, as of that snapshot."""
    return Ranges([Owned(*row) for row in fetch(db, "SELECT lo, hi, base FROM ranges ORDER BY lo")])


def save_ranges(db: apsw.Connection, owned: Sequence[Owned]) -> None:
    """Replace what the file owns, in the caller's transaction."""
    db.execute("DELETE FROM ranges").fetchall()
    db.executemany(
        "INSERT INTO ranges VALUES(?, ?, ?)", [(one.lo, one.hi, one.base) for one in owned]
    )


def load_generation(db: apsw.Connection) -> bytes:
    """Tells this file from every other that was or will be at its path."""
    generation: bytes = fetch(db, "SELECT generation FROM file")[0][0]
    return generation


def renew_generation(path: Path) -> None:
    """A copy is another file than its source: readers of the one must not take the other's word."""
    db = apsw.Connection(str(path))
    try:
        db.execute("UPDATE file SET generation = ?", (os.urandom(16),)).fetchall()
    finally:
        db.close(True)


def raise_horizon(path: Path, tau: int) -> None:
    """Reads of a file that nobody has open are refused below `tau`."""
    db = apsw.Connection(str(path))
    try:
        db.execute("UPDATE state SET horizon = max(horizon, ?)", (tau,)).fetchall()
    finally:
        db.close(True)


def load_state(db: apsw.Connection) -> State:
    """The state row."""
    return load_state_of(db, "main")


def load_state_of(db: apsw.Connection, schema: str) -> State:
    """The state row of the file, or of one attached as `schema`."""
    columns = "applied_tau, horizon, next_number, positions, note"
    row = fetch(db, f"SELECT {columns} FROM {schema}.state")[0]
    return State(row[0], row[1], row[2], _decode_positions(row[3]), row[4])


def save_state(db: apsw.Connection, state: State) -> None:
    """The state row, in the caller's transaction."""
    db.execute(
        "UPDATE state SET applied_tau = ?, horizon = ?, next_number = ?, positions = ?, note = ?",
        (
            state.applied_tau,
            state.horizon,
            state.next_number,
            _encode(state.positions),
            state.note,
        ),
    )
