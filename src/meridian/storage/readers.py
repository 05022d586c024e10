"""Long reads: a bounded pool of threads, each with a read-only connection of its own.

A job runs in one SQLite snapshot with the metadata of that snapshot; it blocks nobody, and a scan
pins its tau, not a lock. Pages bound how long a snapshot pins the write-ahead log.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from pathlib import Path

import apsw

from meridian.storage import reading, schema
from meridian.storage.errors import Busy, Cancelled
from meridian.storage.types import Page, ReadRequest

THREADS = 2
WAITING_MAX = 256
CACHE_BYTES = 32 << 20
PROGRESS_STEPS = 50_000
"""SQLite steps between two looks at the cancel flag: about a millisecond."""


class ReadJob:
    """A read under way; `future` gives its page or its error, `scanned` then what it covers."""

    def __init__(self, request: ReadRequest, *, clip: bool = False) -> None:
        self.request = request
        self.clip = clip
        self.scanned = reading.EVERY_KEY
        self.future: Future[Page] = Future()
        self.cancelled = False

    def cancel(self) -> None:
        """Ask it to stop: the future then ends with Cancelled, unless it was done already."""
        self.cancelled = True


class ReadPool:
    """Threads start with the first job. Any thread may submit."""

    def __init__(self, path: Path, generation: bytes, *, threads: int = THREADS) -> None:
        self._path = path
        self._generation = generation
        self._threads_max = threads
        self._threads: list[threading.Thread] = []
        self._queue: queue.Queue[ReadJob | None] = queue.Queue(WAITING_MAX)
        self._lock = threading.Lock()
        self._closed = False
        self._running: set[ReadJob] = set()

    def submit(self, request: ReadRequest, *, clip: bool = False) -> ReadJob:
        """Queue a read; `clip`: as `Engine.scan_part`. Raises Busy when WAITING_MAX jobs wait."""
        job = ReadJob(request, clip=clip)
        with self._lock:
            if self._closed:
                raise Busy()
            if len(self._threads) < self._threads_max:
                name = f"storage-read-{len(self._threads)}"
                thread = threading.Thread(target=self._serve, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise Busy() from None
        return job

    def close(self) -> None:
        """Cancel what runs and waits, end the threads, close their connections."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for job in running:
            job.cancel()
        try:
            while True:
                job_or_none = self._queue.get_nowait()
                if job_or_none is not None:
                    job_or_none.future.set_exception(Cancelled())
        except queue.Empty:
            pass
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _serve(self) -> None:
        db: apsw.Connection | None = None
        while (job := self._queue.get()) is not None:
            with self._lock:
                self._running.add(job)
                if self._closed:
                    job.cancel()
            try:
                if db is None:
                    db = schema.connect_reader(self._path, cache_bytes=CACHE_BYTES)
                job.future.set_result(self._run(db, job))
            except BaseException as error:
                job.future.set_exception(error)
            with self._lock:
                self._running.discard(job)
        if db is not None:
            db.close(True)

    def _run(self, db: apsw.Connection, job: ReadJob) -> Page:
        if job.cancelled:
            raise Cancelled()
        db.set_progress_handler(lambda: job.cancelled, PROGRESS_STEPS)
        try:
            page, job.scanned = reading.run_in_snapshot(
                db, job.request, self._generation, clip=job.clip
            )
            return page
        finally:
            db.set_progress_handler(None)
