"""Everything in one process: the embedded data plane.

Starts from a directory, owns its journals, answers reads once storage is complete through their
tau. A journal whose write failed gets a new owner (a higher epoch, `seat.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import apsw

from meridian.adjudicator import events as ev
from meridian.clock.clock import Clock
from meridian.crossbar import core as crossbar
from meridian.dataplane import (
    admin,
    recovery,
    selfcheck,
    shard_files,
    shards,
    system_relations,
    topology,
)
from meridian.dataplane.catalog import Catalog
from meridian.dataplane.commits import CommitPath
from meridian.dataplane.counters import Counters
from meridian.dataplane.feeds import Feeds
from meridian.dataplane.gates import Gates
from meridian.dataplane.heat import Heat
from meridian.dataplane.housekeeping import Housekeeping
from meridian.dataplane.leases import Leases
from meridian.dataplane.merge import Merge
from meridian.dataplane.owner import Owner
from meridian.dataplane.recovery import JOURNAL
from meridian.dataplane.replica import Replica, Resume
from meridian.dataplane.reshape import Reshape
from meridian.dataplane.seat import Seat
from meridian.dataplane.selfcheck import SelfCheck
from meridian.dataplane.sequences import Sequences
from meridian.dataplane.shard_feed import ShardedReplica
from meridian.dataplane.topology import Topology
from meridian.errors import Kind, MeridianError
from meridian.journal.core import Body, Payload, Position
from meridian.journal.file import AppendError, segment_error
from meridian.journal.files import Files
from meridian.journal.record import Record
from meridian.journal.segments import list_segments
from meridian.limits import (
    OWNER_RETRY_S,
    READ_WAIT_MS,
    SERVING_WAIT_S,
    TAU_FUTURE_NS,
    Limits,
)
from meridian.metadata.identities import cluster_id, get_value
from meridian.metadata.ownership import DirectoryLock, boot_id
from meridian.metadata.store import MetadataStore
from meridian.storage import Engine
from meridian.wire.frames import COMMIT_HAS_SCHEMA
from meridian.wire.ops import encode_chunk
from meridian.wire.partition import PartitionMap, Span
from meridian.wire.votes import Message

log = logging.getLogger("meridian.node")

_SOON_S = 0.02
_AGAIN_S = 0.1


SHARDS_VARIABLE = "MERIDIAN_STORAGE_SHARDS"
"""Environment: number of storage shards where none is given; tests run with several by it."""


class Node:
    """Everything runs on the event loop's thread; disk syncs and long reads do not."""

    def __init__(
        self,
        directory: Path,
        *,
        profile: str,
        limits: Limits,
        ephemeral: bool = False,
        adjudicators: int | None = None,
        journals: int | None = None,
        storage_shards: int = 0,
        files: Files | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.directory = directory
        self.profile = profile
        self.limits = limits
        self.ephemeral = ephemeral
        self.storage_shards = storage_shards or int(os.environ.get(SHARDS_VARIABLE, "1"))
        self.report = report
        self.counters = Counters()
        self.clock = Clock()
        self.files = files or Files(sync=not ephemeral)
        self.engine: Engine
        self.replica: Replica
        self.merge: Merge
        self.topology: Topology
        """What it is, or is on its way to."""
        self.reshape: Reshape
        self._wanted_topology = adjudicators, journals
        self.seats: list[Seat] = []
        """One per journal, by number."""
        self.map: PartitionMap
        """Who owns which keys; a hint (design section 5.8)."""
        self.wanted_tau = 0
        """The highest tau through which somebody wanted storage to be complete."""
        self.catalog = Catalog(self.counters)
        self.feeds = Feeds(self)
        self.gates = Gates(self)
        self.commits = CommitPath(self)
        self.heat = Heat(self)
        self.selfcheck = SelfCheck(self)
        self.sequences = Sequences(self)
        self.leases: Leases
        self.fatal: asyncio.Future[str]
        """Set when this process must end; the supervisor starts another."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._added: dict[int, asyncio.Future[int]] = {}
        """Journals that are being added, and at which tau."""
        self.closing = False

    # Start and end

    async def start(self) -> None:
        """Locks the directory, recovers, takes the journal. Raises MeridianError, OSError."""
        self.fatal = asyncio.get_running_loop().create_future()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = DirectoryLock(self.directory)
        self.store = MetadataStore(self.directory / "metadata.db", sync=not self.ephemeral)
        self.cluster = cluster_id(self.store)
        self.leases = Leases(self.store)
        self.storage_path = self.directory / "storage" / "shard-0.db"
        self.boot = boot_id()
        self._take_seats()
        await self._start_owners(await self._recover())
        self.reshape.check_start()
        await self._bootstrap()
        self.housekeeping = Housekeeping(self)
        self.spawn(self.housekeeping.run())
        self.spawn(self.housekeeping.run_checkpoints())
        self.spawn(self.reshape.run())
        self.spawn(self.heat.run())
        self.spawn(self.selfcheck.run())

    def _take_seats(self) -> None:
        """Raises BAD_TOPOLOGY."""
        first = self.directory / "journal" / str(JOURNAL)
        used = first.is_dir() and bool(list_segments(first))
        settled = topology.settle(self.store, *self._wanted_topology, used=used)
        self.topology = settled.wanted
        self.reshape = Reshape(self, done=settled.done)
        made = topology.first_map(settled.made)
        retired = recovery.retired_journals(self.store)
        added = [*recovery.journals_with_records(self.directory / "journal"), *retired]
        for number in range(max(settled.made.journals, *(number + 1 for number in (*added, 0)))):
            self.seats.append(Seat(self, number, topology.spans_of(made, number)))

    def checkpoint_path(self) -> Path | None:
        """The last whole checkpoint."""
        name = get_value(self.store, recovery.CHECKPOINT_KEY)
        return None if name is None else self.directory / "checkpoint" / name.decode()

    def journal_bytes_written(self) -> int:
        """By this process, over all journals and owners."""
        return sum(seat.bytes_written() for seat in self.seats)

    def journal_bytes(self) -> int:
        """Of all segments."""
        return sum(seat.journal.size_bytes() for seat in self.seats)

    # Recovery

    async def _recover(self) -> dict[int, recovery.Reading]:
        """Reads the journals that exist; storage holds what they hold."""
        starts = [seat.trim_position() for seat in self.seats]
        for seat, start in zip(self.seats, starts, strict=True):
            seat.trim(start)
        damaged = selfcheck.remembered(self.store)
        if damaged.heal:
            self.report("storage is damaged: it is made anew from checkpoint and journal")
        self._open_storage(starts, trusted=not damaged.heal)
        readings = await self._read()
        # Before a replica is discarded: it may be the last copy of what a journal has lost.
        for number, reading in readings.items():
            self.seats[number].check_whole(reading)
        if any(self.replica.furthest(n) > one.reader.n for n, one in readings.items()):
            # A replica ahead of a durable journal must be discarded (design section 8).
            self.report("storage is ahead of the journal: it is rebuilt")
            self.engine.abandon()
            self._open_storage(starts, trusted=False)
            readings = await self._read()
        self._promise(readings)
        recovery.discard_open(self.engine, readings)
        self.merge.start()
        if damaged.heal:
            selfcheck.remember(self.store, selfcheck.Found(False, damaged.damages))
            self.counters.storage_healed += 1
            log.warning("storage was made anew", extra={"damages": damaged.damages[:3]})
        return readings

    def _open_storage(self, starts: list[Position], *, trusted: bool) -> None:
        directory, checkpoint = self.storage_path.parent, self.checkpoint_path()
        if max(self.storage_shards, shard_files.found(directory, checkpoint)) > 1:
            several = shards.open_set(
                directory,
                checkpoint,
                self.boot,
                starts,
                self.clock,
                trusted=trusted,
                count=self.storage_shards,
            )
            # They do what one engine and its replica do, for all who use them here.
            self.engine = cast(Engine, several)
            self.replica = cast(Replica, ShardedReplica(several, self.clock))
        else:
            self.engine = recovery.open_storage(
                self.storage_path, checkpoint, self.boot, starts, trusted=trusted
            )
            self.replica = Replica(self.engine, self.clock)
        self.replica.advanced = self._advanced
        self.replica.failed = self._apply_failed
        self.replica.want = self.want

    async def _read(self) -> dict[int, recovery.Reading]:
        """What exists: journal 0, and those with records or an ADD record in it (4.7)."""
        readings = {
            seat.number: seat.reading()
            for seat in self.seats
            if seat.number == JOURNAL
            or list_segments(seat.journal.directory)
            or seat.trim_position().closed
        }
        starts = {number: one.start for number, one in readings.items()}
        self.merge = Merge(self.replica, starts)
        self.merge.cut = self._cut
        self.merge.delivered = self.commits.merged
        await recovery.read_journals(list(readings.values()), self.merge, self.clock, self.report)
        members = readings[JOURNAL].adjudicator.membership.members
        for number in sorted({*readings, *members} - {JOURNAL}):
            while number >= len(self.seats):
                # Added, and ended before its first record.
                self.seats.append(Seat(self, len(self.seats), ()))
            if number not in members:
                path = self.seats[number].journal.directory
                why = "journal 0 has no record that adds it"
                raise MeridianError(Kind.JOURNAL_DAMAGED, path=path, n=1, offset=0, why=why)
            if number not in readings:
                readings[number] = self._read_new(number, members[number])
        return readings

    def _read_new(self, number: int, tau: int) -> recovery.Reading:
        """A journal that was added at `tau` and has no records yet."""
        reading = self.seats[number].reading()
        reading.read_some(recovery.Progress(self.report))
        assert reading.ended and reading.reader.n == 0
        reading.promised = tau
        return reading

    def _promise(self, readings: dict[int, recovery.Reading]) -> None:
        """All that was read of the journals is merged: the clock has passed it."""
        for number, reading in readings.items():
            if number != JOURNAL and reading.reader.n == 0:
                self._begin(reading)
        if len(readings) > 1:
            for reading in readings.values():
                recovery.promise(reading, self.merge, self.clock)

    def _begin(self, reading: recovery.Reading) -> None:
        """A journal's first record is to come."""
        reading.promised = max(reading.promised, self.merge.core.tau)
        self.merge.add(reading.number, reading.promised)

    # Owners

    async def _start_owners(self, readings: dict[int, recovery.Reading]) -> None:
        """All at once: each needs heartbeats of the others before it serves (5.7)."""
        for reading in readings.values():
            self.catalog.load(reading.start.catalog, reading.catalog)
        self._read_reaches()
        await asyncio.gather(*(self.seats[n].own(reading) for n, reading in readings.items()))
        for number in range(len(self.seats)):
            if number not in readings:
                await self._add(self.seats[number])
        self.read_map()
        floors = [span.floor for owner in self.owners() for span in owner.adjudicator.ranges.spans]
        self.commits.map_was_changed(max(floors, default=0))

    def read_map(self) -> None:
        """Who owns what, as the owners' journals say; what is on its way is its new owner's."""
        owners = [seat.owner for seat in self.seats if seat.owner is not None]
        spans: list[tuple[int, Sequence[Span]]] = []
        version = self.map.version if hasattr(self, "map") else 1
        for owner in owners:
            ranges = owner.adjudicator.ranges
            spans.append((owner.number, ranges.spans))
            version = max(version, ranges.version)
            gone = ranges.released
            if gone is not None and gone.n > self._acquired_n(gone.target, owner.number):
                spans.append((gone.target, [Span(lo, hi) for lo, hi in gone.parts()]))
        self.map = topology.joined(version, spans)

    def _acquired_n(self, target: int, source: int) -> int:
        """Up to which RELEASE of the source the target has acquired ranges."""
        owner = self.seats[target].owner
        return 0 if owner is None else owner.adjudicator.ranges.seen.get(source, 0)

    async def add_journal(self, number: int) -> None:
        """One more, without ranges; known to others once it serves. Raises TimeoutError, OSError,
        MeridianError.
        """
        assert number == len(self.seats)
        seat = Seat(self, number, ())
        await self._add(seat)
        self.commits.grown()
        self.seats.append(seat)
        # What landed meanwhile waits for a word of the new one.
        self.want(self.clock.now_ns())

    async def _add(self, seat: Seat) -> None:
        """ADD in journal 0, then its first owner (4.7)."""
        number = seat.number
        added = self._added[number] = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(SERVING_WAIT_S):
            while not added.done():
                self.step(JOURNAL, ev.AddJournal(number))
                await asyncio.wait({added}, timeout=_AGAIN_S)
        reading = seat.reading()
        progress = recovery.Progress(self.report)
        accepted: list[tuple[Record, Payload]] = []
        while not reading.ended:
            # Left by an owner that did not get far: the crossbar has heard of it then.
            accepted += reading.read_some(progress)
        if reading.reader.n == 0:
            reading.promised = added.result()
            self._begin(reading)
        else:
            self.merge.cross(crossbar.Accepted(number, accepted))
        await seat.own(reading)

    def open_journals(self) -> list[int]:
        """Numbers of those that have not ended, ascending."""
        return [seat.number for seat in self.seats if not seat.closed]

    def owners(self) -> list[Owner]:
        """Of the journals that have not ended."""
        return [seat.owner for seat in self.seats if seat.owner is not None and not seat.closed]

    def step(self, number: int, event: ev.Event) -> None:
        """An event for whoever owns this journal; lost if nobody does."""
        owner = self.seats[number].owner
        if owner is not None:
            owner.step(event)

    def _owner(self, number: int) -> Owner:
        owner = self.seats[number].owner
        assert owner is not None
        return owner

    def journal_added(self, effect: ev.Added) -> None:
        """The Added effect of journal 0's owner."""
        waiting = self._added.get(effect.journal)
        if waiting is not None and not waiting.done():
            waiting.set_result(effect.tau)

    def tell(self, number: int, message: Message) -> None:
        """A message to whoever owns this journal; lost if nobody does."""
        if 0 <= number < len(self.seats):
            self.step(number, ev.Heard(message))

    def landed(self, number: int, accepted: list[tuple[Record, Payload]]) -> None:
        """Durable records of a journal, before anybody is told of their commits."""
        self.merge.cross(crossbar.Accepted(number, accepted))
        if len(self.seats) > 1:
            # Commits are answered, and chunks staged, once the others have said so far.
            tau = max((_tau_of(record, payload) for record, payload in accepted), default=0)
            if tau > self.merge.core.tau:
                self.want(tau)

    async def _bootstrap(self) -> None:
        """The system relations that a new cluster, or one of an earlier version, lacks."""
        ops = system_relations.missing(self.engine.known_columns)
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
        for seat in self.seats:
            seat.close()
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

    # Failures

    def failure(self, number: int = JOURNAL) -> AppendError | None:
        """Why the last owner of a journal ended, until there is a new one."""
        return self.seats[number].failure

    @property
    def owned(self) -> bool:
        """Every journal has an owner."""
        return all(seat.serves for seat in self.seats)

    def unavailable(self, number: int = JOURNAL) -> MeridianError:
        """Why commits are not taken now at this journal."""
        failing = self.replica.failing
        if failing is not None:
            full = isinstance(failing.__cause__, apsw.FullError)
            return MeridianError(Kind.DISK_FULL) if full else failing
        failure = self.failure(number)
        if failure is not None:
            return segment_error(failure.error)
        return MeridianError(Kind.NOT_READY)

    def _cut(self, reason: str) -> None:
        self.die(f"storage was cut loose: {reason}")

    def _apply_failed(self, error: Exception) -> None:
        log.error("storage failed", exc_info=error)
        self.die(f"storage failed: {error}")

    # Time and completeness

    def tau_start(self) -> int:
        """The tau_start of a transaction that begins now (design 4.3)."""
        replica = self.replica
        if replica.failing is not None:
            # Nothing was acknowledged beyond this since the disk failed: as fresh as now.
            return replica.complete_tau
        for seat in self.seats:
            # Every transaction comes through here: no properties.
            owner = seat.owner
            if owner is None or owner.dead:
                return replica.complete_tau
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
        if tau > replica.complete_tau:
            self.want(tau)
        # Rule 4.5: results leave only once the clock has certainly passed what they show.
        return tau <= replica.complete_tau and tau <= now.earliest

    def want(self, tau: int) -> None:
        """Asks for heartbeats through tau where they are missing (4.6)."""
        self.wanted_tau = max(self.wanted_tau, tau)
        for number in self.merge.core.lagging(tau):
            if number < len(self.seats):
                owner = self.seats[number].owner
                if owner is not None:
                    owner.want(tau)

    def when_complete(self, tau: int, done: Callable[[int], None]) -> None:
        """Calls `done(tau)` once storage is complete through tau, however long that takes."""
        self.spawn(self._when_complete(tau, done))

    async def _when_complete(self, tau: int, done: Callable[[int], None]) -> None:
        while True:
            try:
                await self.wait_until_ready(tau, READ_WAIT_MS)
            except MeridianError as error:
                if error.kind is Kind.SNAPSHOT_TOO_OLD:
                    break
                if self.closing:
                    return
                # A lease ends later than reads may ask for.
                future = error.kind is Kind.TAU_IN_FUTURE
                await asyncio.sleep(_SOON_S if future else OWNER_RETRY_S)
                continue
            break
        done(tau)

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
        self.commits.applied()
        if self.commits.large.waiting:
            self.commits.large.pump()

    def _read_reaches(self) -> None:
        """Tells instances of catalog versions that they may read now."""
        if self.catalog.unread and self.catalog.read_reaches(self.engine):
            self.feeds.catalog_grew()

    async def admin(self, command: str, arguments: dict[str, Any]) -> Any:
        """An ADMIN request. Raises NOT_SUPPORTED for unknown commands."""
        return await admin.run(self, command, arguments)


def _tau_of(record: Record, payload: Payload) -> int:
    """Through which tau storage must be complete to take this record."""
    return payload.tau_start if isinstance(payload, Body) else record.tau
