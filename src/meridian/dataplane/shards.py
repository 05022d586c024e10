"""Several storage files in one data plane: what the node takes for one engine.

Every place belongs to one shard; each file says in its own database what it owns (design section
8). All of them are fed by one crossbar subscription, cut by range (`shard_feed.py`), and a read is
answered once all are complete through its tau. Reads of one shard go straight to its engine, others
through the router (`meridian.routing`), as they would to other machines.

The files are trusted, checkpointed and restored as one: a hole between them means all are rebuilt.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

from meridian.clock.clock import Clock
from meridian.control.assign import SYSTEM_SHARD, shard_of_new
from meridian.dataplane import shard_files
from meridian.dataplane.shard_reads import LocalShard, ShardReaders
from meridian.gateway.paging import join_pages
from meridian.journal.core import Position
from meridian.routing.map import Shard, ShardMap
from meridian.routing.shell import Reads
from meridian.storage import Engine
from meridian.storage.checkpoint import CheckpointInfo
from meridian.storage.engine import LookupShape
from meridian.storage.errors import Failed
from meridian.storage.types import Page, ReadRequest, ScanRequest, Statistics
from meridian.storage.verify import Report
from meridian.wire.ops import Create
from meridian.wire.ranges import (
    Owned,
    Range,
    asked,
    place,
    span,
    without,
)

log = logging.getLogger("meridian.shards")

HOMES = 65_536
"""Relations whose shard is remembered."""


class ShardedEngine:
    """`Engine` over several files; on one thread, as an engine."""

    def __init__(self, engines: Sequence[Engine], clock: Clock) -> None:
        self.engines = list(engines)
        self.clock = clock
        self.readers = ShardReaders(self)
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
            clients = {number: LocalShard(engine) for number, engine in enumerate(self.engines)}
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
        return shard_files.held(self.engines)

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
            return shard_files.seal_set(target_dir, infos)
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
    """See `shard_files.open_files`."""
    engines = shard_files.open_files(
        directory, checkpoint_dir, boot, starts, trusted=trusted, count=count
    )
    return ShardedEngine(engines, clock)
