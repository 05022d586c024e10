"""One shard of everything in one process: the embedded data plane.

Starts from a directory, owns its journal, answers reads once storage is complete through their
tau, and starts a new owner (a higher epoch) when a journal write failed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import apsw

from meridian.adjudicator.events import Replayed
from meridian.clock.clock import Clock
from meridian.dataplane import admin, recovery
from meridian.dataplane.catalog import Catalog
from meridian.dataplane.commits import CommitPath
from meridian.dataplane.counters import Counters
from meridian.dataplane.feeds import Feeds
from meridian.dataplane.gates import Gates
from meridian.dataplane.housekeeping import Housekeeping
from meridian.dataplane.leases import Leases
from meridian.dataplane.owner import Owner
from meridian.dataplane.recovery import JOURNAL
from meridian.dataplane.replica import Replica, Resume
from meridian.dataplane.sequences import COLUMN_IS_CALLED, COLUMN_LAST, SID_SEQUENCES, Sequences
from meridian.errors import Kind, MeridianError
from meridian.journal.core import Position
from meridian.journal.file import AppendError, FileJournal, segment_error
from meridian.journal.files import Files
from meridian.limits import (
    OWNER_RETRY_S,
    SERVING_WAIT_S,
    TAU_FUTURE_NS,
    Limits,
)
from meridian.metadata.identities import cluster_id, get_value, next_epoch, set_value
from meridian.metadata.ownership import DirectoryLock, boot_id
from meridian.metadata.store import MetadataStore
from meridian.storage import Engine
from meridian.wire.frames import COMMIT_HAS_SCHEMA
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
    Add,
    Create,
    Op,
    encode_chunk,
)
from meridian.wire.reach import COLUMN_REACH

log = logging.getLogger("meridian.node")

_PASSING = frozenset({Kind.DISK_FULL, Kind.BAD_METADATA, Kind.STORAGE_FAILED})
"""Refusals of a disk that may pass."""


class Node:
    """Everything runs on the event loop's thread; disk syncs and long reads do not."""

    def __init__(
        self,
        directory: Path,
        *,
        profile: str,
        limits: Limits,
        ephemeral: bool = False,
        files: Files | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.directory = directory
        self.profile = profile
        self.limits = limits
        self.ephemeral = ephemeral
        self.report = report
        self.counters = Counters()
        self.clock = Clock()
        self.files = files or Files(sync=not ephemeral)
        self.engine: Engine
        self.replica: Replica
        self.owner: Owner | None = None
        self.catalog = Catalog(self.counters)
        self.feeds = Feeds(self)
        self.gates = Gates(self)
        self.commits = CommitPath(self)
        self.sequences = Sequences(self)
        self.leases: Leases
        self.fatal: asyncio.Future[str]
        """Set when this process must end; the supervisor starts another."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._written_before = 0
        self.boundaries: list[Position] = []
        """Where segments begin outside of open large transactions: possible trim points."""
        self.closing = False
        self._owning = True
        """An owner is being made; nobody else makes one."""

    # Start and end

    async def start(self) -> None:
        """Locks the directory, recovers, takes the journal. Raises MeridianError, OSError."""
        self.fatal = asyncio.get_running_loop().create_future()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = DirectoryLock(self.directory)
        self.store = MetadataStore(self.directory / "metadata.db", sync=not self.ephemeral)
        self.cluster = cluster_id(self.store)
        self.leases = Leases(self.store)
        self.journal = FileJournal(self.directory / "journal" / "0", JOURNAL, self.files)
        self.storage_path = self.directory / "storage" / "shard-0.db"
        self.boot = boot_id()
        recovered = await self._recover()
        await self._own(recovered)
        self._owning = False
        await self._bootstrap()
        self.housekeeping = Housekeeping(self)
        self.spawn(self.housekeeping.run())
        self.spawn(self.housekeeping.run_checkpoints())

    def trim_position(self) -> Position:
        """Where the journal begins; everything before it lies in the checkpoint."""
        value = get_value(self.store, recovery.TRIM_KEY)
        return Position() if value is None else recovery.decode_position(value)

    def _checkpoint_path(self) -> Path | None:
        name = get_value(self.store, recovery.CHECKPOINT_KEY)
        return None if name is None else self.directory / "checkpoint" / name.decode()

    def journal_bytes_written(self) -> int:
        """By this process, over all of its owners."""
        writer = self.owner.writer if self.owner is not None else None
        return self._written_before + (writer.bytes_written if writer is not None else 0)

    async def _recover(self) -> recovery.Recovered:
        start = self.trim_position()
        self.journal.trim(start.n + 1)
        self._open_storage(start, trusted=True)
        recovered = await self._read(start)
        # Before a replica is discarded: it may be the last copy of what the journal has lost.
        self._check_whole(start.n, recovered)
        if self.engine.positions.get(JOURNAL, 0) > recovered.reader.n:
            # A replica ahead of the durable journal must be discarded (design section 8).
            self.report("storage is ahead of the journal: it is rebuilt")
            self.engine.abandon()
            self._open_storage(start, trusted=False)
            recovered = await self._read(start)
        self.clock.observe(recovered.reader.tau)
        return recovered

    def _check_whole(self, start_n: int, recovered: recovery.Recovered) -> None:
        """Raises JOURNAL_DAMAGED when records are gone that an owner knew to be durable."""
        sealed = int(get_value(self.store, recovery.SEALED_KEY) or 0)
        last_n = recovered.reader.n
        if start_n and not recovered.segments.firsts:
            # Trim keeps the segment that begins after it.
            sealed = max(sealed, start_n + 1)
        if last_n < sealed:
            raise MeridianError(
                Kind.JOURNAL_DAMAGED,
                path=self.journal.directory,
                n=last_n + 1,
                offset=0,
                why=f"it ends here, but records through {sealed} were durable",
            )

    def _open_storage(self, start: Position, *, trusted: bool) -> None:
        self.engine = recovery.open_storage(
            self.storage_path, self._checkpoint_path(), self.boot, start, trusted=trusted
        )
        self.replica = Replica(self.engine, self.clock)
        self.replica.advanced = self._advanced
        self.replica.failed = self._apply_failed

    async def _read(self, start: Position) -> recovery.Recovered:
        return await recovery.read_journal(
            self.journal, start, self.replica, self.clock, self.report
        )

    async def _own(self, recovered: recovery.Recovered) -> None:
        """A new epoch: marker and SEAL are durable when this returns. Raises OSError."""
        position = recovered.reader.position()
        self.catalog.load(self.trim_position().catalog, recovered.catalog)
        self._read_reaches()
        epoch = next_epoch(self.store, JOURNAL, position.epoch[0] + 1)
        owner = Owner(
            clock=self.clock,
            counters=self.counters,
            adjudicator=recovered.adjudicator,
            merge=recovered.merge,
            reader=recovered.reader,
            replica=self.replica,
            answered=self.commits.asker.answered,
            refused=self.commits.large.refused,
            lost=self._lost,
            catalog_made=self.catalog.add,
            gated=self.gates.answered,
        )
        owner.writer = self.journal.open_writer(
            recovered.segments, recovered.tail, owner.durable_in_thread, owner.failed_in_thread
        )
        self.boundaries = owner.boundaries = [*recovered.boundaries, position]
        self._written_before = self.journal_bytes_written()
        self.owner = owner
        self.counters.owners += 1
        owner.step(Replayed(position, epoch))
        try:
            await asyncio.wait_for(owner.settled.wait(), SERVING_WAIT_S)
        except TimeoutError:
            # What this writer still has in hand is void: the next one begins a segment below it.
            owner.stop()
            raise
        if owner.dead:
            raise OSError(f"the first records of epoch {epoch[0]} could not be written")
        self._remember_seal(position.n + 2)
        log.info("owns the journal", extra={"epoch": epoch[0], "n": position.n})

    def _remember_seal(self, n: int) -> None:
        """A journal that ends before record n has lost files: see `_check_whole`."""
        try:
            set_value(self.store, recovery.SEALED_KEY, str(n).encode())
        except MeridianError as error:
            log.warning("seal is not remembered", extra={"error": str(error)})

    async def _bootstrap(self) -> None:
        """The system relations that a new cluster, or one of an earlier version, lacks."""
        integers = [(COLUMN_LAST, CLASS_INTEGER), (COLUMN_IS_CALLED, CLASS_INTEGER)]
        catalog = [(1, CLASS_OPAQUE), (2, CLASS_BYTES), (COLUMN_REACH, CLASS_OPAQUE)]
        jobs = [(attnum, CLASS_BYTES) for attnum in range(1, JOB_COLUMNS + 1)]
        wanted: list[Create] = [
            Create(SID_CATALOG, KIND_TABLE, catalog, 0),
            Create(SID_SEQUENCES, KIND_TABLE, integers, 0),
            Create(SID_JOBS, KIND_TABLE, jobs, 0),
            Create(SID_CATALOG_IMAGE, KIND_TABLE, [(1, CLASS_OPAQUE)], 0),
            Create(SID_CATALOG_AUDIT, KIND_TABLE, [(1, CLASS_BYTES)], 0),
        ]
        known = self.engine.known_columns
        ops: list[Op] = [op for op in wanted if known(op.sid) is None]
        columns = known(SID_CATALOG)
        if columns is not None and COLUMN_REACH not in columns:
            ops.append(Add(SID_CATALOG, COLUMN_REACH, CLASS_OPAQUE, None))
        if not ops:
            return
        chunk = encode_chunk(ops)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int | MeridianError] = loop.create_future()
        txid = secrets.token_bytes(16)
        self.commits.commit(txid, 0, 0, COMMIT_HAS_SCHEMA, 0, chunk, done.set_result)
        result = await asyncio.wait_for(done, SERVING_WAIT_S)
        if isinstance(result, MeridianError):
            raise result

    async def close(self) -> None:
        """Clean end: what was appended is durable, storage is marked clean."""
        self.closing = True
        for task in list(self._tasks):
            task.cancel()
        if self.owner is not None:
            self.owner.close()
        self.replica.stop()
        self.engine.close()
        self.store.close()
        self._lock.release()

    def spawn(self, work: Any) -> None:
        """A background task; its failure ends the process."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed", exc_info=task.exception())
            self.die(f"background work failed: {task.exception()!r}")

    def die(self, reason: str) -> None:
        """This process cannot go on; the supervisor starts another, which recovers."""
        if not self.fatal.done():
            self.fatal.set_result(reason)

    # Owner

    @property
    def failure(self) -> AppendError | None:
        """Why the last owner ended, until there is a new one."""
        return None if self.owner is None else self.owner.failure

    def unavailable(self) -> MeridianError:
        """Why commits are not taken now."""
        failing = self.replica.failing
        if failing is not None:
            full = isinstance(failing.__cause__, apsw.FullError)
            return MeridianError(Kind.DISK_FULL) if full else failing
        if self.failure is not None:
            return segment_error(self.failure.error)
        return MeridianError(Kind.NOT_READY)

    def _lost(self, reason: str, failure: AppendError | None) -> None:
        if self.closing:
            return
        self.report(f"the journal's owner ended: {reason}")
        if failure is None:
            self.die(reason)
            return
        self.commits.owner_lost()
        if not self._owning:
            self._owning = True
            self.spawn(self._own_again())

    async def _own_again(self) -> None:
        """Reads what landed, then takes a new epoch; again and again while the disk refuses."""
        while self.owner is None or self.owner.dead:
            try:
                self.replica.drain()
                await self._own(await self._read(self.trim_position()))
                continue
            except (OSError, TimeoutError) as error:
                why = str(error)
            except MeridianError as error:
                if error.kind not in _PASSING:
                    raise
                why = str(error)
            log.warning("journal cannot be taken", extra={"error": why})
            await asyncio.sleep(OWNER_RETRY_S)
        self._owning = False

    def _apply_failed(self, error: Exception) -> None:
        log.error("storage failed", exc_info=error)
        self.die(f"storage failed: {error}")

    # Time and completeness

    def tau_start(self) -> int:
        """The tau_start of a transaction that begins now (design 4.3)."""
        owner = self.owner
        if owner is None or owner.dead or self.replica.failing is not None:
            # Nothing was acknowledged beyond this since the disk failed: as fresh as now.
            return self.replica.complete_tau
        return self.clock.now_ns()

    def ready(self, tau: int) -> bool:
        """May a read at tau run now? Asks the adjudicator where its promise does not reach.

        Raises TAU_IN_FUTURE.
        """
        replica = self.replica
        if tau <= replica.complete_tau and tau <= self.clock.last_ns:
            return True
        now = self.clock.now()
        if tau > now.latest + TAU_FUTURE_NS:
            raise MeridianError(Kind.TAU_IN_FUTURE)
        owner = self.owner
        if tau > replica.complete_tau and owner is not None:
            owner.want(tau)
        # Rule 4.5: results leave only once the clock has certainly passed what they show.
        return tau <= replica.complete_tau and tau <= now.earliest

    def wait(self, tau: int, timeout_ms: int, resume: Resume) -> Callable[[], None]:
        """Calls `resume` once `ready(tau)`, or with an error; returns how to give up."""
        token = self.replica.read(tau, timeout_ms, resume)
        return partial(self.replica.cancel_read, token)

    async def wait_until_ready(self, tau: int, timeout_ms: int) -> None:
        """`wait` for coroutines. Raises what `ready` raises, WAIT_TIMEOUT."""
        if self.ready(tau):
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def resume(error: MeridianError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        give_up = self.wait(tau, timeout_ms, resume)
        try:
            await future
        finally:
            give_up()

    def _advanced(self) -> None:
        """Storage has got further: answers commits, lets chunks of large ones in."""
        self._read_reaches()
        self.commits.asker.applied()
        if self.commits.large.waiting:
            self.commits.large.pump()

    def _read_reaches(self) -> None:
        """Tells instances of catalog versions that they may read now."""
        if self.catalog.unread and self.catalog.read_reaches(self.engine):
            self.feeds.catalog_grew()

    async def admin(self, command: str, arguments: dict[str, Any]) -> Any:
        """An ADMIN request. Raises NOT_SUPPORTED for unknown commands."""
        return await admin.run(self, command, arguments)
