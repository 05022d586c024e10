"""Several storage files in one data plane: what the node takes for one engine.

Every place belongs to one shard; each file says in its own database what it owns (design section
8). All of them are fed by one crossbar subscription, cut by range (`shard_feed.py`), and a read is
answered once all are complete through its tau. Reads of one shard go straight to its engine, others
through the router (`meridian.routing`), as they would to other machines.

The files are trusted, checkpointed and restored as one: a hole between them means all are rebuilt.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from meridian.clock.clock import Clock
from meridian.control.assign import SYSTEM_SHARD, shard_of_new
from meridian.dataplane import recovery
from meridian.gateway.paging import join_pages
from meridian.journal.core import Position
from meridian.routing.map import Shard, ShardMap
from meridian.routing.shell import Reads
from meridian.storage import Engine, RebuildNeeded, checkpoint, schema
from meridian.storage.checkpoint import CheckpointInfo
from meridian.storage.engine import LookupShape
from meridian.storage.errors import Cancelled, Failed, WrongPlace
from meridian.storage.readers import ReadJob
from meridian.storage.types import Page, ReadRequest, SampleRequest, ScanRequest, Statistics
from meridian.storage.verify import Report
from meridian.wire.ops import Create
from meridian.wire.ranges import (
    ALL,
    EVERYTHING,
    Owned,
    Range,
    Scanned,
    asked,
    cover,
    place,
    span,
    without,
)

log = logging.getLogger("meridian.shards")

SHARDS_MAX = 64
HOMES = 65_536
"""Relations whose shard is remembered."""
SET_NAME = "set.json"
SET_VERSION = 1


class SetInfo(msgspec.Struct, frozen=True):
    """`set.json` of a checkpoint, written last: so many shards, in `shard-<n>`."""

    version: int
    shards: int


def shard_path(directory: Path, number: int) -> Path:
    """The file of a shard."""
    return directory / f"shard-{number}.db"


def existing(directory: Path) -> int:
    """How many shards there are: the highest number in a file name, and one."""
    numbers = [int(path.stem.removeprefix("shard-")) for path in directory.glob("shard-*.db")]
    return max(numbers, default=-1) + 1


def checkpoint_shards(path: Path | None) -> int:
    """How many shards a checkpoint has; 0: it is one of a single file, or none."""
    if path is None or not (path / SET_NAME).exists():
        return 0
    info = msgspec.json.decode((path / SET_NAME).read_bytes(), type=SetInfo)
    if info.version != SET_VERSION:
        raise RebuildNeeded(f"checkpoint set version {info.version} is not known")
    return info.shards


def found(directory: Path, path: Path | None) -> int:
    """Shards that are there, as files or in the checkpoint."""
    try:
        return max(existing(directory), checkpoint_shards(path))
    except (RebuildNeeded, msgspec.MsgspecError, OSError):
        # Opening it will say what is wrong.
        return 2


class _Local:
    """A shard as the router's replica."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def get(
        self, tau: int, sid: int, cols: tuple[int, ...], keys: Sequence[bytes], where: Any
    ) -> Page:
        return self.engine.get_filtered(tau, sid, cols, keys, where)

    async def scan(self, request: ScanRequest) -> tuple[Page, Scanned]:
        part = self.engine.try_scan_part(request)
        if part is not None:
            return part
        job = self.engine.readers.submit(request, clip=True)
        try:
            page = await asyncio.wrap_future(job.future)
        finally:
            job.cancel()
        return page, job.scanned

    async def sample(self, request: SampleRequest) -> Page:
        job = self.engine.readers.submit(request)
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            job.cancel()

    async def stats(self, sids: Sequence[int]) -> Sequence[tuple[int, int]]:
        return self.engine.stats(sids)


class RoutedJob:
    """A read over several shards; as ReadJob."""

    def __init__(self) -> None:
        self.future: concurrent.futures.Future[Page] = concurrent.futures.Future()
        self.inner: ReadJob | None = None
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Ask it to stop: the future then ends with Cancelled, unless it was done already."""
        self.cancelled = True
        if self.inner is not None:
            self.inner.cancel()
        if self.task is not None:
            self.task.cancel()


class _Readers:
    """`Engine.readers`: straight to a shard's pool, or through the router."""

    def __init__(self, shards: ShardedEngine) -> None:
        self._shards = shards
        self._jobs: set[RoutedJob] = set()

    def submit(self, request: ReadRequest) -> RoutedJob:
        """On the event loop's thread. Raises Busy."""
        engine = self._shards.engine_of(request)
        job = RoutedJob()
        self._jobs.add(job)
        if engine is None:
            self._route(job, request)
            return job
        job.inner = engine.readers.submit(request)
        loop = asyncio.get_running_loop()
        job.inner.future.add_done_callback(
            lambda future: loop.call_soon_threadsafe(self._read, job, request, future)
        )
        return job

    def _read(
        self, job: RoutedJob, request: ReadRequest, future: concurrent.futures.Future[Page]
    ) -> None:
        """One shard has answered; its range may have moved while the read waited."""
        error = future.exception()
        if isinstance(error, WrongPlace):
            self._route(job, request)
            return
        self._jobs.discard(job)
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(future.result())

    def _route(self, job: RoutedJob, request: ReadRequest) -> None:
        job.task = asyncio.get_running_loop().create_task(self._run(job, request))
        if job.cancelled:
            job.task.cancel()

    async def _run(self, job: RoutedJob, request: ReadRequest) -> None:
        reads = self._shards.reads()
        try:
            if isinstance(request, SampleRequest):
                page = await reads.sample(request)
            else:
                page = await reads.scan(request)
            job.future.set_result(page)
        except asyncio.CancelledError:
            job.future.set_exception(Cancelled())
        except BaseException as error:
            job.future.set_exception(error)
        finally:
            self._jobs.discard(job)

    def close(self) -> None:
        for job in list(self._jobs):
            job.cancel()


class ShardedEngine:
    """`Engine` over several files; on one thread, as an engine."""

    def __init__(self, engines: Sequence[Engine], clock: Clock) -> None:
        self.engines = list(engines)
        self.clock = clock
        self.readers = _Readers(self)
        self.work: Callable[[], bool] = lambda: False
        """More background work, a slice at a time."""
        self.complete: Callable[[], int] = self._lowest_applied
        """The tau through which all shards are complete; set by whoever feeds them."""
        self._reads: Reads | None = None
        self._version = 0
        self._los: list[bytes] = []
        self._numbers: list[int] = []
        self.frozen = 0
        """Checkpoints under way: nothing changes hands."""
        self._relations = [len(engine.ranges.owned) for engine in self.engines]
        self.refresh()

    # Where things are

    def refresh(self) -> None:
        """Ranges have changed."""
        assert not self.broken, "a place may have two owners"
        parts = sorted(
            (one.lo, one.hi, number)
            for number, engine in enumerate(self.engines)
            for one in engine.ranges.owned
        )
        self._los = [lo for lo, _, _ in parts]
        self._numbers = [number for _, _, number in parts]
        self._version += 1
        shards = tuple(Shard(i, lo, hi, (number,)) for i, (lo, hi, number) in enumerate(parts))
        self.map = ShardMap(self._version, shards)
        self._homes: dict[int, int] = {}
        if self._reads is not None:
            self._reads.update_map(self.map)

    def reads(self) -> Reads:
        """The router; on the running loop."""
        if self._reads is None:
            clients = {number: _Local(engine) for number, engine in enumerate(self.engines)}
            # One copy of each range: there is nobody to ask a second time.
            self._reads = Reads(
                self.map, clients, self.clock, fetch_map=self._fetch_map, hedging=False
            )
        return self._reads

    async def _fetch_map(self) -> ShardMap:
        return self.map

    def number_at(self, where: bytes) -> int:
        """The shard that owns a place."""
        return self._numbers[bisect_right(self._los, where) - 1]

    def numbers_in(self, wanted: Range) -> list[int]:
        """The shards that own parts of a range, in its order, each once."""
        first = bisect_right(self._los, wanted.lo) - 1
        last = max(first + 1, bisect_left(self._los, wanted.hi))
        return list(dict.fromkeys(self._numbers[first:last]))

    def _home(self, sid: int) -> int:
        """The shard that has all of a relation, -1: several have parts of it."""
        home = self._homes.get(sid)
        if home is None:
            numbers = self.numbers_in(span(sid))
            home = self._homes[sid] = numbers[0] if len(numbers) == 1 else -1
            if len(self._homes) > HOMES:
                self._homes.clear()
        return home

    def engine_of(self, request: ReadRequest) -> Engine | None:
        """The engine that has all of a read; None: several do."""
        numbers = self.numbers_in(asked(request.sid, request.lo, request.hi))
        if isinstance(request, ScanRequest) and request.row_sid:
            numbers = list(dict.fromkeys([*numbers, *self.numbers_in(span(request.row_sid))]))
        return self.engines[numbers[0]] if len(numbers) == 1 else None

    def assign(self, op: Create) -> None:
        """A relation is about to be made: give it a shard, if the system's still has its place.

        Its places were never written, so that they change hands at once: first the new owner, then
        the old one; after a crash between the two `settle_owners` ends it.
        """
        whole = span(op.sid)
        if op.sid < 1000 or self.frozen or self.broken:
            return
        if self.numbers_in(whole) != [SYSTEM_SHARD]:
            return
        home = self.numbers_in(span(op.table_sid)) if op.table_sid else []
        if len(home) == 1 and home[0] != SYSTEM_SHARD:
            # With its table: joins stay on one shard.
            number = home[0]
        else:
            sizes = [engine.path.stat().st_size for engine in self.engines]
            number = shard_of_new(sizes, self._relations)
        self._relations[number] += 1
        if number == SYSTEM_SHARD or self.engines[SYSTEM_SHARD].known_columns(op.sid) is not None:
            return
        target = self.engines[number]
        try:
            target.adopt(Owned(*whole))
            self.give_up(self.engines[SYSTEM_SHARD], target, whole)
        except Failed as error:
            # It is only a matter of balance: the relation stays where its place is now.
            log.warning("no home for a relation", extra={"sid": op.sid, "error": str(error)})

    def give_up(self, source: Engine, target: Engine, part: Range) -> None:
        """The second half of a move: the target has just taken the part. Raises Failed.

        Then the part is the source's alone as before, or, when even that could not be written, the
        target takes no commits any more (`broken`): the next start settles who owns it, and reads
        for the target what it has missed.
        """
        try:
            source.shrink(without(source.ranges.owned, part))
        except Failed:
            try:
                target.shrink(without(target.ranges.owned, part))
            except Failed as error:
                target.break_off(f"it could not give back what it had taken: {error}")
            raise
        self.refresh()

    # State

    def _lowest_applied(self) -> int:
        return min(engine.applied_tau for engine in self.engines)

    @property
    def applied_tau(self) -> int:
        """Every commit through this tau is in all shards."""
        return self.complete()

    @property
    def horizon(self) -> int:
        return max(engine.horizon for engine in self.engines)

    @property
    def positions(self) -> dict[int, int]:
        """Per journal, what all shards hold."""
        return _held(self.engines)

    @property
    def broken(self) -> bool:
        return any(engine.broken for engine in self.engines)

    def unresolved(self) -> list[bytes]:
        return list(dict.fromkeys(t for engine in self.engines for t in engine.unresolved()))

    def discard(self, txid: bytes, positions: Mapping[int, int]) -> None:
        for engine in self.engines:
            engine.discard(txid, positions)

    def known_columns(self, sid: int) -> Container[int] | None:
        return self.engines[self.number_at(place(sid))].known_columns(sid)

    def stats(self, sids: Sequence[int]) -> list[Statistics]:
        columns = zip(*(engine.stats(sids) for engine in self.engines), strict=True)
        return [Statistics(sum(r for r, _ in one), sum(b for _, b in one)) for one in columns]

    # Reads

    def get(self, tau: int, sid: int, cols: tuple[int, ...], keys: Sequence[bytes]) -> Page:
        if not keys:
            return self.engines[self.number_at(place(sid))].get(tau, sid, cols, keys)
        prefix = place(sid)
        pages: list[bytes] = []
        start, more = 0, False
        while start < len(keys) and not more:
            at = bisect_right(self._los, prefix + keys[start])
            stop = len(keys)
            if at < len(self._los) and self._los[at] <= prefix + keys[-1]:
                stop = bisect_left(keys, self._los[at][8:], start)
            part = keys[start:stop] if start or stop < len(keys) else keys
            more, page = self.engines[self._numbers[at - 1]].get(tau, sid, cols, part)
            pages.append(page)
            start = stop
        return more, join_pages(pages)

    def try_lookup(
        self, tau: int, lo: bytes, hi: bytes, limit: int, page_bytes: int, shape: LookupShape
    ) -> Page | None:
        sid, row_sid = shape[0], shape[1]
        number = self._home(sid)
        if number < 0:
            numbers = self.numbers_in(asked(sid, lo, hi))
            number = numbers[0] if len(numbers) == 1 else -1
        if number < 0 or (row_sid and self._home(row_sid) != number):
            return None
        return self.engines[number].try_lookup(tau, lo, hi, limit, page_bytes, shape)

    def try_scan(self, request: ReadRequest) -> Page | None:
        engine = self.engine_of(request)
        return None if engine is None else engine.try_scan(request)

    # Maintenance

    def collect(self, budget_rows: int = 500) -> bool:
        return self.work() or any(
            engine.purge(budget_rows) or engine.collect(budget_rows) for engine in self.engines
        )

    def checkpoint(
        self, target_dir: Path, stop: Callable[[], bool] = lambda: False
    ) -> CheckpointInfo:
        """All shards, one after the other; nothing changes hands meanwhile."""
        self.frozen += 1
        try:
            target_dir.mkdir(parents=True, exist_ok=False)
            infos = [
                engine.checkpoint(target_dir / f"shard-{number}", stop)
                for number, engine in enumerate(self.engines)
            ]
            info = SetInfo(SET_VERSION, len(infos))
            checkpoint.write_durably(target_dir / SET_NAME, msgspec.json.encode(info))
            checkpoint.fsync_dir(target_dir)
            checkpoint.fsync_dir(target_dir.parent)
            return together(infos)
        finally:
            self.frozen -= 1

    def verify(self, stop: Callable[[], bool] = lambda: False) -> Report:
        total = Report(applied_tau=self.applied_tau)
        for number, engine in enumerate(self.engines):
            report = engine.verify(stop)
            total.relations += report.relations
            total.rows += report.rows
            total.damages += [f"shard {number}: {line}" for line in report.damages]
            total.notes += [f"shard {number}: {line}" for line in report.notes]
        return total

    def close(self) -> None:
        self.readers.close()
        for engine in self.engines:
            engine.close()

    def abandon(self) -> None:
        self.readers.close()
        for engine in self.engines:
            engine.abandon()


def files_of(engine: Engine | ShardedEngine) -> list[Path]:
    """The storage files, by number of the shard."""
    return [one.path for one in getattr(engine, "engines", [engine])]


def together(infos: Sequence[CheckpointInfo]) -> CheckpointInfo:
    """What a set of checkpoints holds in all: as far as the one that is furthest behind."""
    journals = sorted({journal for info in infos for journal in info.positions})
    return CheckpointInfo(
        version=infos[0].version,
        applied_tau=min(info.applied_tau for info in infos),
        horizon=max(info.horizon for info in infos),
        positions={j: min(info.positions.get(j, 0) for info in infos) for j in journals},
        note=infos[0].note,
        size_bytes=sum(info.size_bytes for info in infos),
        generation=infos[0].generation,
    )


def check_set(path: Path) -> CheckpointInfo:
    """`checkpoint.check` of every shard of a set. Raises RebuildNeeded."""
    count = checkpoint_shards(path)
    return together([checkpoint.check(path / f"shard-{number}") for number in range(count)])


# From disk


def open_set(
    directory: Path,
    checkpoint_dir: Path | None,
    boot: str,
    starts: Sequence[Position],
    clock: Clock,
    *,
    trusted: bool,
    count: int,
) -> ShardedEngine:
    """The storage files, else those of the checkpoint, else empty ones; at least `count`.

    Raises JOURNAL_TRIMMED when what is left cannot be completed from the journal, Failed.
    """
    assert 1 <= count <= SHARDS_MAX
    reason = "they are ahead of the journal"
    if trusted:
        try:
            engines = _open_all(directory, boot)
            if recovery.missing(_held(engines), starts) is None:
                return _complete(directory, engines, boot, clock, count)
            _abandon(engines)
            reason = "a journal begins after them"
        except RebuildNeeded as refusal:
            reason = str(refusal)
    log.warning("storage is rebuilt", extra={"reason": reason})
    engines = _restore(directory, checkpoint_dir, boot)
    missing = recovery.missing(_held(engines), starts)
    if missing is not None:
        _abandon(engines)
        raise missing
    return _complete(directory, engines, boot, clock, count)


def _held(engines: Sequence[Engine]) -> dict[int, int]:
    """Per journal, the last record that all of them hold."""
    held = [engine.positions for engine in engines]
    journals = sorted({journal for one in held for journal in one})
    return {journal: min(one.get(journal, 0) for one in held) for journal in journals}


def _abandon(engines: Sequence[Engine]) -> None:
    for engine in engines:
        engine.abandon()


def _open_all(directory: Path, boot: str) -> list[Engine]:
    """All files, none missing, that together own everything. Raises RebuildNeeded, Failed."""
    engines: list[Engine] = []
    try:
        for number in range(max(1, existing(directory))):
            engines.append(Engine.open(shard_path(directory, number), boot_id=boot, durable=None))
        _check_cover(engines)
    except (RebuildNeeded, Failed):
        _abandon(engines)
        raise
    return engines


def _check_cover(engines: Sequence[Engine]) -> None:
    ranges = [one.range for engine in engines for one in engine.ranges.owned]
    if not cover(ranges, EVERYTHING):
        raise RebuildNeeded("the storage files do not hold everything together")


def _restore(directory: Path, path: Path | None, boot: str) -> list[Engine]:
    """From a checkpoint of one file or of several, or from nothing."""
    for number in range(existing(directory)):
        schema.remove_file(shard_path(directory, number))
    directory.mkdir(parents=True, exist_ok=True)
    if path is not None:
        engines: list[Engine] = []
        try:
            parts = [path / f"shard-{n}" for n in range(checkpoint_shards(path))] or [path]
            for number, part in enumerate(parts):
                target = shard_path(directory, number)
                engines.append(Engine.restore(part, target, boot_id=boot, durable=None))
            _check_cover(engines)
            return engines
        except (RebuildNeeded, msgspec.MsgspecError) as error:
            _abandon(engines)
            log.error("checkpoint cannot be used", extra={"error": str(error)})
            for number in range(existing(directory)):
                schema.remove_file(shard_path(directory, number))
    return [Engine.create(shard_path(directory, 0), boot_id=boot, owned=ALL)]


def _complete(
    directory: Path, engines: list[Engine], boot: str, clock: Clock, count: int
) -> ShardedEngine:
    """Empty files up to the number wanted, and one owner for every place."""
    base = min(engine.applied_tau for engine in engines)
    held = _held(engines)
    while len(engines) < count:
        path = shard_path(directory, len(engines))
        engine = Engine.create(path, boot_id=boot, base_tau=base, owned=())
        engine.apply([], held)
        engines.append(engine)
    settle_owners(engines)
    return ShardedEngine(engines, clock)


def settle_owners(engines: Sequence[Engine]) -> None:
    """Where a crash left two owners of a place, the later shard keeps it: it was given to it."""
    taken: list[Range] = []
    for engine in reversed(engines):
        owned = list(engine.ranges.owned)
        for part in taken:
            owned = without(owned, part)
        if owned != list(engine.ranges.owned):
            engine.shrink(owned)
        taken += [one.range for one in owned]


def remove_checkpoint(path: Path) -> None:
    """Any kind."""
    shutil.rmtree(path, ignore_errors=True)
