"""Reads of several shards in one process: as replicas of the router, or straight to one's pool."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from meridian.storage import Engine
from meridian.storage.errors import Cancelled, WrongPlace
from meridian.storage.readers import ReadJob
from meridian.storage.types import Page, ReadRequest, SampleRequest, ScanRequest
from meridian.wire.ranges import Scanned

if TYPE_CHECKING:
    from meridian.dataplane.shards import ShardedEngine


class LocalShard:
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


class ShardReaders:
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
