"""Reads over shards and replicas on asyncio: carries the core's requests and pages."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple, Protocol

import msgspec

from meridian.clock.alarm import Alarm
from meridian.clock.clock import Clock
from meridian.errors import Kind, MeridianError
from meridian.gateway.paging import array_of, join_pages
from meridian.limits import READ_WAIT_MS
from meridian.routing import combine, core
from meridian.routing.map import ShardMap
from meridian.storage.types import (
    DESCENDING,
    GET_BYTES_MAX,
    LO_EXCLUSIVE,
    Page,
    SampleRequest,
    ScanRequest,
)
from meridian.wire.ranges import Range, Scanned, asked, keys_of, place, span

log = logging.getLogger("meridian.routing")

EMPTY = b"\x90"
JOIN_FIRST, JOIN_MOST = 64, 4096
"""Index entries whose rows are fetched at once: more each time, so that a page stays bounded."""

_REASONS = {
    Kind.WRONG_PLACE: core.WRONG_PLACE,
    Kind.WAIT_TIMEOUT: core.BEHIND,
    Kind.STORAGE_BUSY: core.BEHIND,
    Kind.TOO_MANY_REQUESTS: core.BEHIND,
    Kind.NOT_READY: core.BEHIND,
    Kind.SNAPSHOT_TOO_OLD: core.TOO_OLD,
    Kind.SHUTTING_DOWN: core.DEAD,
    Kind.STORAGE_FAILED: core.DEAD,
}


class ReplicaClient(Protocol):
    """One replica, near or far. A read waits until it is complete through its tau.

    Raises MeridianError (WRONG_PLACE: not here; WAIT_TIMEOUT: behind), OSError: not reached.
    """

    async def get(
        self, tau: int, sid: int, cols: tuple[int, ...], keys: Sequence[bytes], where: Any
    ) -> Page:
        """Rows of these keys that pass the filter (None: all)."""
        ...

    async def scan(self, request: ScanRequest) -> tuple[Page, Scanned]:
        """As far as the replica owns the range, and the keys it speaks of."""
        ...

    async def sample(self, request: SampleRequest) -> Page:
        """Random rows of what the replica has of the range."""
        ...

    async def stats(self, sids: Sequence[int]) -> Sequence[tuple[int, int]]:
        """(rows, bytes) of each relation, as far as it is here."""
        ...


class _Answer(NamedTuple):
    page: bytes
    more: bool
    scanned: Range


Perform = Callable[[core.Send], Awaitable[_Answer]]


class _Waiting(NamedTuple):
    future: asyncio.Future[tuple[list[bytes], bool]]
    perform: Perform


class Reads:
    """All reads of one gateway; on one event loop.

    `fetch_map`: asks the control plane for the newest map; None: the map never changes but by
    `update_map`.
    """

    def __init__(
        self,
        shard_map: ShardMap,
        replicas: Mapping[int, ReplicaClient],
        clock: Clock,
        *,
        fetch_map: Callable[[], Awaitable[ShardMap]] | None = None,
        hedging: bool = True,
    ) -> None:
        self.core = core.Router(shard_map, hedging=hedging)
        self.replicas = replicas
        self.clock = clock
        self._fetch_map = fetch_map
        self._tokens = count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._pages: dict[int, dict[int, bytes]] = {}
        """Pages of a read by attempt, until it is done."""
        self._errors: dict[int, MeridianError] = {}
        """The newest refusal of each read."""
        self._mapping: asyncio.Task[None] | None = None
        self._alarm = Alarm(clock, self._fire)

    @property
    def map(self) -> ShardMap:
        """The newest map heard of."""
        return self.core.map

    def update_map(self, shard_map: ShardMap) -> None:
        """A map from the control plane; older ones are ignored."""
        self._step(core.MapChanged(shard_map))

    def close(self) -> None:
        """End all reads with SHUTTING_DOWN."""
        for token, waiting in list(self._waiting.items()):
            self._step(core.Cancel(token))
            if not waiting.future.done():
                waiting.future.set_exception(MeridianError(Kind.SHUTTING_DOWN))
        if self._mapping is not None:
            self._mapping.cancel()
        self._alarm.cancel()

    # Reads

    async def get(
        self,
        tau: int,
        sid: int,
        cols: tuple[int, ...],
        keys: Sequence[bytes],
        where: Any = None,
        *,
        timeout_ms: int = READ_WAIT_MS,
    ) -> Page:
        """GET over shards; as `Engine.get`. Raises MeridianError."""
        if not keys:
            return False, EMPTY
        places = tuple(map(place(sid).__add__, keys))
        wanted = Range(places[0], places[-1] + b"\0")

        async def perform(send: core.Send) -> _Answer:
            part = keys[send.start : send.stop]
            more, page = await self._client(send).get(tau, sid, cols, part, where)
            return _Answer(page, more, send.part)

        ask = core.Ask(
            next(self._tokens), wanted, self._deadline(timeout_ms), keys=places,
            page_bytes=GET_BYTES_MAX,
        )  # fmt: skip
        pages, more = await self._run(ask, perform)
        return more, join_pages(pages) if pages else EMPTY

    async def scan(self, request: ScanRequest, *, timeout_ms: int = READ_WAIT_MS) -> Page:
        """SCAN over shards; as `Engine.scan`. Raises MeridianError."""
        if not request.row_sid:
            return await self._scan(request, timeout_ms)
        wanted = asked(request.sid, request.lo, request.hi)
        rows = span(request.row_sid)
        if any(one.range.covers(wanted) and one.range.covers(rows) for one in self.map.shards):
            try:
                return await self._scan(request, timeout_ms)
            except MeridianError as error:
                if error.kind != Kind.WRONG_PLACE:
                    raise
        return await self._join(request, timeout_ms)

    async def _scan(self, request: ScanRequest, timeout_ms: int) -> Page:
        sid, limit = request.sid, 0 if request.grouped else request.limit
        page_bytes = request.page_bytes or GET_BYTES_MAX
        wanted = asked(sid, request.lo, request.hi)

        async def perform(send: core.Send) -> _Answer:
            part = keys_of(sid, send.part)
            flags = request.flags
            if send.part.lo != wanted.lo:
                flags &= ~LO_EXCLUSIVE
            change: dict[str, Any] = {"lo": part.lo, "hi": part.hi, "flags": flags}
            if not request.grouped:
                change |= {"limit": send.limit, "page_bytes": send.page_bytes}
            cut = msgspec.structs.replace(request, **change)
            (more, page), scanned = await self._client(send).scan(cut)
            return _Answer(page, more, asked(sid, *scanned))

        ask = core.Ask(
            token=next(self._tokens),
            wanted=wanted,
            deadline=self._deadline(timeout_ms),
            descending=bool(request.flags & DESCENDING),
            limit=limit,
            page_bytes=0 if request.grouped else page_bytes,
        )
        pages, more = await self._run(ask, perform)
        if request.grouped and (more or len(pages) != 1):
            return self._aggregate(request, pages, more)
        return more, join_pages(pages) if pages else EMPTY

    @staticmethod
    def _aggregate(request: ScanRequest, pages: list[bytes], more: bool) -> Page:
        """`more`: a part had too many groups, and the answer is to be discarded."""
        if more:
            return True, EMPTY
        group, aggs = request.group or (), request.aggs or ()
        many, page = combine.aggregate(pages, len(group), aggs, request.limit)
        return many or len(page) > (request.page_bytes or GET_BYTES_MAX), page

    # Joins whose index and rows lie on different shards

    async def _join(self, request: ScanRequest, timeout_ms: int) -> Page:
        """Entries first, then their rows, until a page has rows or the range ends."""
        if request.grouped:
            # Not here: the query processor aggregates the rows itself.
            return True, EMPTY
        size = JOIN_FIRST
        index = msgspec.structs.replace(
            request, cols=(0, *request.cols), row_sid=0, row_cols=(), row_filter=None
        )
        rows: list[bytes] = []
        total = 0
        limit = request.limit
        page_bytes = request.page_bytes or GET_BYTES_MAX
        while True:
            most = min(size, limit) if limit and request.row_filter is None else size
            index = msgspec.structs.replace(index, limit=most)
            more, page = await self._scan(index, timeout_ms)
            entries = combine.decode(page)
            if entries:
                matched = await self._rows_of(request, entries, timeout_ms)
                if limit and len(matched) > limit:
                    matched, more = matched[:limit], True
                if matched:
                    rows.append(combine.encode(matched))
                    total += len(rows[-1])
                    limit -= len(matched) if limit else 0
            reached = request.limit > 0 and limit <= 0
            if reached or not more or total >= page_bytes // 2:
                return more or reached, join_pages(rows) if rows else EMPTY
            index = _after(index, entries[-1][0])
            size = min(2 * size, JOIN_MOST)

    async def _rows_of(
        self, request: ScanRequest, entries: list[list[Any]], timeout_ms: int
    ) -> list[list[Any]]:
        keys = combine.row_keys(entries)
        pages: list[bytes] = []
        while keys:
            more, page = await self.get(
                request.tau, request.row_sid, request.row_cols, keys, request.row_filter,
                timeout_ms=timeout_ms,
            )  # fmt: skip
            pages.append(page)
            last = combine.decode(page)[-1][0] if more else b""
            keys = keys[bisect_right(keys, last) :] if more else []
        return combine.match(entries, pages)

    # Samples and estimates

    async def sample(self, request: SampleRequest, *, timeout_ms: int = READ_WAIT_MS) -> Page:
        """SAMPLE over shards: each gives its share of the rows. Raises MeridianError."""
        sid = request.sid
        total = max(1, (await self.stats([sid]))[0][0])

        async def perform(send: core.Send) -> _Answer:
            client = self._client(send)
            here = (await client.stats([sid]))[0][0]
            part = keys_of(sid, send.part)
            share = -(-request.count * here // total)
            cut = msgspec.structs.replace(request, count=share, lo=part.lo, hi=part.hi)
            _, page = await client.sample(cut)
            return _Answer(page, False, send.part)

        ask = core.Ask(
            next(self._tokens), asked(sid, request.lo, request.hi), self._deadline(timeout_ms)
        )
        pages, more = await self._run(ask, perform)
        return more, join_pages(pages) if pages else EMPTY

    async def stats(self, sids: Sequence[int]) -> list[tuple[int, int]]:
        """Estimates, summed over shards; one that does not answer is left out."""
        asked_of = [one.replicas[0] for one in self.map.shards if one.replicas]
        clients = [self.replicas[one] for one in dict.fromkeys(asked_of) if one in self.replicas]
        found = await asyncio.gather(*(one.stats(sids) for one in clients), return_exceptions=True)
        columns = [one for one in found if not isinstance(one, BaseException)]
        return [
            (sum(row[0] for row in rows), sum(row[1] for row in rows))
            for rows in zip(*columns, strict=True)
        ] or [(0, 0)] * len(sids)

    # The core

    def _deadline(self, timeout_ms: int) -> int:
        return self.clock.now().earliest + timeout_ms * 1_000_000

    def _client(self, send: core.Send) -> ReplicaClient:
        client = self.replicas.get(send.replica)
        if client is None:
            raise MeridianError(Kind.WRONG_PLACE)
        return client

    async def _run(self, ask: core.Ask, perform: Perform) -> tuple[list[bytes], bool]:
        future: asyncio.Future[tuple[list[bytes], bool]]
        future = asyncio.get_running_loop().create_future()
        self._waiting[ask.token] = _Waiting(future, perform)
        self._pages[ask.token] = {}
        try:
            self._step(ask)
            return await future
        finally:
            del self._waiting[ask.token]
            self._step(core.Cancel(ask.token))
            self._pages.pop(ask.token, None)
            self._errors.pop(ask.token, None)

    def _step(self, event: core.Event) -> None:
        for effect in self.core.step(self.clock.now(), event):
            match effect:
                case core.Send():
                    task = asyncio.get_running_loop().create_task(self._attempt(effect))
                    self._tasks[effect.attempt] = task
                    task.add_done_callback(partial(self._over, effect.attempt))
                case core.Abandon():
                    task_or_none = self._tasks.get(effect.attempt)
                    if task_or_none is not None:
                        task_or_none.cancel()
                case core.Done():
                    pages = self._pages.get(effect.token, {})
                    self._resolve(effect.token, ([pages[a] for a in effect.attempts], effect.more))
                case core.Fail():
                    error = self._errors.get(effect.token)
                    self._resolve(effect.token, error or MeridianError(Kind.WRONG_PLACE))
                case core.WantMap():
                    self._want_map()
                case core.SetTimer():
                    self._alarm.set(effect.at)

    def _over(self, attempt: int, task: asyncio.Task[None]) -> None:
        self._tasks.pop(attempt, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("a read's answer could not be taken", exc_info=task.exception())

    def _resolve(self, token: int, result: tuple[list[bytes], bool] | MeridianError) -> None:
        waiting = self._waiting.get(token)
        if waiting is None or waiting.future.done():
            return
        if isinstance(result, MeridianError):
            waiting.future.set_exception(result)
        else:
            waiting.future.set_result(result)

    async def _attempt(self, send: core.Send) -> None:
        waiting = self._waiting[send.token]
        try:
            answer = await waiting.perform(send)
        except MeridianError as error:
            self._refuse(send, _REASONS.get(error.kind, core.FINAL), error)
            return
        except OSError as error:
            refusal = MeridianError(Kind.STORAGE_FAILED, why=str(error))
            self._refuse(send, core.DEAD, refusal)
            return
        except Exception as error:
            log.exception("read failed")
            self._refuse(send, core.FINAL, MeridianError(Kind.INTERNAL, why=repr(error)))
            return
        pages = self._pages.get(send.token)
        if pages is not None:
            pages[send.attempt] = answer.page
        rows = array_of(answer.page)[0]
        size_bytes = len(answer.page) if rows else 0
        self._step(core.Answered(send.attempt, answer.scanned, answer.more, rows, size_bytes))

    def _refuse(self, send: core.Send, reason: int, error: MeridianError) -> None:
        if send.token in self._waiting:
            self._errors[send.token] = error
        self._step(core.Refused(send.attempt, reason))

    def _want_map(self) -> None:
        if self._fetch_map is not None and self._mapping is None:
            self._mapping = asyncio.get_running_loop().create_task(self._map(self._fetch_map))

    async def _map(self, fetch: Callable[[], Awaitable[ShardMap]]) -> None:
        """Wrong or unreachable: the core asks again after its pause."""
        try:
            found = await fetch()
        except (MeridianError, OSError) as error:
            log.warning("no shard map: %s", error)
            return
        finally:
            self._mapping = None
        self.update_map(found)

    def _fire(self) -> None:
        self._step(core.TimerFired())


def _after(request: ScanRequest, key: bytes) -> ScanRequest:
    """The rest of a scan behind a key."""
    if request.flags & DESCENDING:
        return msgspec.structs.replace(request, hi=key)
    return msgspec.structs.replace(request, lo=key, flags=request.flags | LO_EXCLUSIVE)
