"""What the gateway does about each request (docs/protocol.md).

A read runs at once when storage is complete through its tau, else when it becomes so. Short reads
run on the event loop (a point read takes microseconds), long ones in storage's reader threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from meridian.errors import Kind, MeridianError
from meridian.gateway.advisory import Advisory
from meridian.gateway.coherence import Coherence
from meridian.gateway.connection import Connection
from meridian.gateway.paging import join_pages
from meridian.limits import (
    CONNECTION_LARGE_COMMITS,
    GATEWAY_CONNECTIONS,
    GET_KEYS,
    LEASE_COUNT,
    READ_WAIT_MS,
    SAMPLE_ROWS,
    SCAN_PAGE_BYTES,
    STATS_SIDS,
)
from meridian.storage.types import SampleRequest, ScanRequest
from meridian.wire import frames

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

log = logging.getLogger("meridian.gateway")

_GET_SLICE = 512
"""Keys of one GET read in one go on the event loop."""

Handler = Callable[[Connection, Any], None]
Closed = Callable[[Connection], None]


class Requests:
    """All connections' requests; one instance per gateway, on the event loop's thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.profile = node.profile
        self.connections: set[Connection] = set()
        self.advisory = Advisory()
        self._tasks: set[asyncio.Task[None]] = set()
        handlers: dict[int, Handler] = {
            frames.HELLO: self._hello,
            frames.BEGIN: self._begin,
            frames.GET: self._get,
            frames.SCAN: self._scan,
            frames.COMMIT: self._commit,
            frames.PART: self._part,
            frames.STATUS: self._status,
            frames.LEASE: self._lease,
            frames.STATS: self._stats,
            frames.SAMPLE: self._sample,
            frames.CANCEL: self._cancel,
            frames.SEQUENCE: self._sequence,
            frames.SETVAL: self._setval,
            frames.PEEKSEQ: self._peekseq,
            frames.ADVISORY: self.advisory.handle,
            frames.ADMIN: self._admin,
        }
        self._known: dict[int, tuple[Callable[[bytes], Any], Handler]] = {}
        self._closed: list[Closed] = []
        for kind, handler in handlers.items():
            self.register(kind, handler)
        Coherence(self)

    def register(self, kind: int, handler: Handler, closed: Closed | None = None) -> None:
        """Who handles requests of a kind, and hears of connections that end."""
        assert kind not in self._known
        self._known[kind] = (frames.DECODERS[kind].decode, handler)
        if closed is not None:
            self._closed.append(closed)

    # Connections

    def opened(self, connection: Connection) -> None:
        """Refuses beyond the limit of connections."""
        self.connections.add(connection)
        if len(self.connections) > GATEWAY_CONNECTIONS:
            connection.send_error(0, MeridianError(Kind.TOO_MANY_CONNECTIONS))
            assert connection.transport is not None
            connection.transport.close()

    def closed(self, connection: Connection) -> None:
        """Large commits of the connection that never got their COMMIT are discarded."""
        self.connections.discard(connection)
        for txid in sorted(connection.staged):
            self.node.commits.large.discard(txid)
        connection.staged.clear()
        for closed in self._closed:
            closed(connection)
        if connection.committing == 0:
            self.advisory.close(connection)

    def log_cut(self, connection: Connection, why: str) -> None:
        """A connection is about to be aborted."""
        self.node.counters.connections_cut += 1
        log.warning("connection cut", extra={"connection": connection.number, "why": why})

    def close(self) -> None:
        """Ends all connections."""
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.abort()
        for task in list(self._tasks):
            task.cancel()

    # Requests

    def handle(self, connection: Connection, body: bytes) -> None:
        """One frame. Errors are answered, never raised, except what must cut the connection."""
        request_id = 0
        try:
            kind = frames.request_type(body)
            known = self._known.get(kind)
            if known is None:
                raise MeridianError(Kind.PROTOCOL_VIOLATION, why=f"unknown request type {kind}")
            request = known[0](body)
            request_id = request[1]
            if not connection.greeted and kind != frames.HELLO:
                raise MeridianError(Kind.PROTOCOL_VIOLATION, why="HELLO comes first")
            known[1](connection, request)
        except msgspec.MsgspecError as error:
            # The id is lost with the rest: nobody could tell whom an answer is for.
            refusal = MeridianError(Kind.PROTOCOL_VIOLATION, why=str(error))
            connection.send_error(0, refusal)
            connection.cut(str(refusal))
        except MeridianError as error:
            if request_id == 0:
                connection.send_error(0, error)
                connection.cut(str(error))
                return
            connection.send_error(request_id, error)
        except Exception as error:
            # A bug in one request must not take the others down; it is answered and logged.
            log.exception("request failed")
            connection.send_error(request_id, MeridianError(Kind.INTERNAL, why=repr(error)))

    def _hello(self, connection: Connection, request: frames.Hello) -> None:
        _, request_id, version, pid, instance_id = request
        if version != frames.PROTOCOL_VERSION:
            raise MeridianError(Kind.UNSUPPORTED_VERSION, version=version)
        connection.greeted = True
        connection.instance_id, connection.pid = instance_id, pid
        log.debug("hello", extra={"pid": pid, "instance": instance_id})
        limits = self.node.limits.as_map()
        connection.send(frames.frame((frames.WELCOME, request_id, version, self.profile, limits)))

    def _begin(self, connection: Connection, request: frames.Begin) -> None:
        catver = request[2]
        tau = self.node.tau_start()
        if catver:
            self._compare(catver, tau, 0, 0)
        connection.send(frames.frame((frames.RESULT, request[1], tau, False, [])))

    def _compare(self, catver: int, tau: int, sid: int, row_sid: int) -> None:
        """Every version through tau is known when storage is complete through it: not earlier.

        Raises SCHEMA_CHANGED.
        """
        catalog = self.node.catalog
        # The normal case costs no call.
        if catver != catalog.version or tau < catalog.tau:
            catalog.compare(catver, tau, (sid, row_sid))

    # Reads

    def _when_ready(
        self, connection: Connection, request_id: int, tau: int, read: Callable[[], None]
    ) -> None:
        """Runs `read` once storage is complete through tau."""
        if self.node.ready(tau):
            read()
        else:
            self._wait(connection, request_id, tau, read)

    def _wait(
        self, connection: Connection, request_id: int, tau: int, read: Callable[[], None]
    ) -> None:
        """Runs `read` when storage becomes complete through tau, for a bounded time."""
        self.node.counters.reads_waited += 1

        def resume(error: MeridianError | None) -> None:
            if connection.running.pop(request_id, None) is None:
                return
            try:
                if error is not None:
                    raise error
                read()
            except MeridianError as refusal:
                connection.send_error(request_id, refusal)

        connection.start(request_id, lambda: None)
        give_up = self.node.wait(tau, READ_WAIT_MS, resume)
        if request_id in connection.running:
            stop = partial(self._stop_waiting, connection, request_id, give_up)
            connection.running[request_id] = stop

    def _stop_waiting(
        self, connection: Connection, request_id: int, cancel: Callable[[], object]
    ) -> None:
        cancel()
        connection.finish_error(request_id, MeridianError(Kind.CANCELED))

    def _get(self, connection: Connection, request: frames.Get) -> None:
        _, request_id, catver, tau, sid, cols, keys = request
        node = self.node
        if tau == 0:
            tau = node.tau_start()
        if len(keys) <= _GET_SLICE and node.ready(tau):
            if catver and (catver != node.catalog.version or tau < node.catalog.tau):
                node.catalog.compare(catver, tau, (sid,))
            more, rows = node.engine.get(tau, sid, cols, keys)
            node.counters.gets += 1
            connection.send(frames.result_frame(request_id, tau, more, rows))
            return
        if len(keys) > GET_KEYS:
            raise MeridianError(Kind.REQUEST_TOO_LARGE, limit=GET_KEYS)
        read = partial(self._get_all, connection, request, tau)
        self._when_ready(connection, request_id, tau, read)

    def _get_all(self, connection: Connection, request: frames.Get, tau: int) -> None:
        _, request_id, catver, _, sid, cols, keys = request
        self._compare(catver, tau, sid, 0)
        self.spawn(connection, request_id, self._get_slices(tau, sid, cols, keys))

    async def _get_slices(
        self, tau: int, sid: int, cols: tuple[int, ...], keys: list[bytes]
    ) -> Callable[[int], bytes]:
        pages: list[bytes] = []
        size_bytes, more = 0, False
        for start in range(0, max(1, len(keys)), _GET_SLICE):
            more, rows = self.node.engine.get(tau, sid, cols, keys[start : start + _GET_SLICE])
            pages.append(rows)
            size_bytes += len(rows)
            self.node.counters.gets += 1
            rest = start + _GET_SLICE < len(keys)
            if more or (rest and size_bytes >= SCAN_PAGE_BYTES // 2 and len(rows) > 1):
                more = True
                break
            if rest:
                await asyncio.sleep(0)
        joined = join_pages(pages)
        return lambda request_id: frames.result_frame(request_id, tau, more, joined)

    def _scan(self, connection: Connection, request: frames.Scan) -> None:
        where, row_filter, group, aggs = request[9], request[14], request[15], request[16]
        tau = request[3] or self.node.tau_start()
        plain = where is None and row_filter is None and group is None and aggs is None
        if plain and request[5] and request[6] is not None:
            if self.node.ready(tau):
                self._look_up(connection, request, tau)
            else:
                read = partial(self._look_up, connection, request, tau)
                self._wait(connection, request[1], tau, read)
            return
        _, request_id, catver, _, sid, lo, hi, flags, cols, _, limit, page_bytes = request[:12]
        row_sid, row_cols = request[12], request[13]
        scan = ScanRequest(
            tau=tau,
            sid=sid,
            lo=lo,
            hi=hi,
            flags=flags,
            cols=cols,
            filter=where,
            limit=limit,
            page_bytes=min(page_bytes, SCAN_PAGE_BYTES) if page_bytes > 0 else SCAN_PAGE_BYTES,
            row_sid=row_sid,
            row_cols=row_cols,
            row_filter=row_filter,
            group=None if group is None else tuple(group),
            aggs=None if aggs is None else tuple(map(tuple, aggs)),
        )
        read = partial(self._read_range, connection, request_id, catver, scan)
        self._when_ready(connection, request_id, scan.tau, read)

    def _look_up(self, connection: Connection, request: frames.Scan, tau: int) -> None:
        """A range without filters or aggregates: most are short and of a shape seen before."""
        (_, request_id, catver, _, sid, lo, hi, flags, cols, _, limit, page_bytes, *rest) = request
        row_sid, row_cols, _, _, _ = rest
        page_bytes = min(page_bytes, SCAN_PAGE_BYTES) if page_bytes > 0 else SCAN_PAGE_BYTES
        shape = (sid, row_sid, flags, cols, row_cols)
        node = self.node
        if catver and (catver != node.catalog.version or tau < node.catalog.tau):
            node.catalog.compare(catver, tau, (sid, row_sid))
        assert hi is not None
        page = node.engine.try_lookup(tau, lo, hi, limit, page_bytes, shape)
        if page is not None:
            node.counters.scans += 1
            connection.send(frames.result_frame(request_id, tau, *page))
            return
        scan = ScanRequest(
            tau=tau,
            sid=sid,
            lo=lo,
            hi=hi,
            flags=flags,
            cols=shape[3],
            limit=limit,
            page_bytes=page_bytes,
            row_sid=row_sid,
            row_cols=shape[4],
        )
        self._read_range(connection, request_id, 0, scan)

    def _sample(self, connection: Connection, request: frames.Sample) -> None:
        _, request_id, catver, tau, sid, count, cols = request
        if not 0 <= count <= SAMPLE_ROWS:
            raise MeridianError(Kind.REQUEST_TOO_LARGE, limit=SAMPLE_ROWS)
        sample = SampleRequest(tau or self.node.tau_start(), sid, count, cols)
        read = partial(self._read_range, connection, request_id, catver, sample)
        self._when_ready(connection, request_id, sample.tau, read)

    def _read_range(
        self,
        connection: Connection,
        request_id: int,
        catver: int,
        request: ScanRequest | SampleRequest,
    ) -> None:
        if catver:
            row_sid = request.row_sid if isinstance(request, ScanRequest) else 0
            self._compare(catver, request.tau, request.sid, row_sid)
        engine = self.node.engine
        self.node.counters.scans += 1
        page = engine.try_scan(request)
        if page is not None:
            more, rows = page
            connection.send(frames.result_frame(request_id, request.tau, more, rows))
            return
        job = engine.readers.submit(request)
        connection.start(request_id, job.cancel)
        loop = asyncio.get_running_loop()
        done = partial(self._range_read, connection, request_id, request.tau)
        job.future.add_done_callback(lambda future: loop.call_soon_threadsafe(done, future))

    def _range_read(self, connection: Connection, request_id: int, tau: int, future: Any) -> None:
        try:
            more, rows = future.result()
        except MeridianError as error:
            connection.finish_error(request_id, error)
        except BaseException as error:
            log.error("scan failed", exc_info=error)
            connection.finish_error(request_id, MeridianError(Kind.INTERNAL, why=repr(error)))
        else:
            connection.finish(request_id, frames.result_frame(request_id, tau, more, rows))

    def _stats(self, connection: Connection, request: frames.Stats) -> None:
        _, request_id, sids = request
        if len(sids) > STATS_SIDS:
            raise MeridianError(Kind.REQUEST_TOO_LARGE, limit=STATS_SIDS)
        stats = self.node.engine.stats(sids)
        connection.send(frames.frame((frames.VALUES, request_id, stats)))

    # Commits

    def _commit(self, connection: Connection, request: frames.Commit) -> None:
        _, request_id, catver, tau, txid, flags, row_count, chunk = request
        connection.start(request_id, _uninterruptible)
        connection.staged.discard(txid)
        connection.committing += 1
        if flags & frames.COMMIT_HAS_SCHEMA:
            done = partial(self._schema_committed, connection, request_id)
        else:
            done = partial(self._committed, connection, request_id)
        try:
            self.node.commits.commit(txid, tau, catver, flags, row_count, chunk, done)
        except BaseException:
            connection.committing -= 1
            connection.running.pop(request_id, None)
            self.node.commits.large.discard(txid)
            raise

    def _committed(
        self, connection: Connection, request_id: int, result: int | MeridianError
    ) -> None:
        connection.committing -= 1
        if connection.transport is None and connection.committing == 0:
            self.advisory.close(connection)
        if isinstance(result, MeridianError):
            connection.finish_error(request_id, result)
        else:
            answer = frames.frame((frames.COMMITTED, request_id, result))
            connection.finish(request_id, answer)

    def _schema_committed(
        self, connection: Connection, request_id: int, result: int | MeridianError
    ) -> None:
        """DDL is answered when the other instances have it, so that it is there at the next."""
        answer = partial(self._committed, connection, request_id, result)
        version = 0 if isinstance(result, MeridianError) else self.node.catalog.made_at(result)
        if version:
            self.node.feeds.wait_applied(version, connection.instance_id, answer)
        else:
            answer()

    def _part(self, connection: Connection, request: frames.Part) -> None:
        _, request_id, txid, seq, chunk, tau = request
        connection.staged.add(txid)
        if len(connection.staged) > CONNECTION_LARGE_COMMITS:
            connection.cut("it began too many large commits")
            return
        # Reading stops until this chunk is on its way: that is the client's backpressure.
        connection.hold()
        done = partial(self._part_taken, connection, request_id, txid)
        try:
            self.node.commits.large.part(txid, seq, chunk, tau, done)
        except BaseException:
            connection.release()
            raise

    def _part_taken(
        self, connection: Connection, request_id: int, txid: bytes, error: MeridianError | None
    ) -> None:
        connection.release()
        if error is not None:
            connection.staged.discard(txid)
            connection.send_error(request_id, error)

    def _status(self, connection: Connection, request: frames.Status) -> None:
        _, request_id, txid, tau = request
        connection.start(request_id, _uninterruptible)

        def done(outcome: int, tau_commit: int) -> None:
            answer = (frames.OUTCOME, request_id, outcome, tau_commit)
            connection.finish(request_id, frames.frame(answer))

        try:
            self.node.commits.asker.status(txid, tau, done)
        except BaseException:
            connection.running.pop(request_id, None)
            raise

    # Leases, sequences, administration: rare enough for tasks

    def _lease(self, connection: Connection, request: frames.Lease) -> None:
        _, request_id, kind, count = request
        if not 1 <= count <= LEASE_COUNT:
            raise MeridianError(Kind.REQUEST_TOO_LARGE, limit=LEASE_COUNT)
        taken = self.node.leases.take_now(kind, count)
        if taken is not None:
            connection.send(frames.frame((frames.LEASED, request_id, *taken)))
            return

        async def take() -> Callable[[int], bytes]:
            first, granted = await self.node.leases.take(kind, count)
            return lambda rid: frames.frame((frames.LEASED, rid, first, granted))

        self.spawn(connection, request_id, take())

    def _sequence(self, connection: Connection, request: frames.Sequence) -> None:
        _, request_id, sid, cache, increment, minimum, maximum, start, cycle = request
        options = self.node.sequences.options(increment, minimum, maximum, start, bool(cycle))
        values = self.node.sequences.next_now(sid, cache, options)
        if values is not None:
            connection.send(frames.frame((frames.VALUES, request_id, values)))
            return
        work = self.node.sequences.next(sid, cache, options)
        self.spawn(connection, request_id, self.values(work))

    def _setval(self, connection: Connection, request: frames.SetVal) -> None:
        _, request_id, sid, value, is_called = request
        work = self.node.sequences.set(sid, value, bool(is_called))
        self.spawn(connection, request_id, self.values(work))

    def _peekseq(self, connection: Connection, request: frames.PeekSeq) -> None:
        work = self.node.sequences.peek(request[2])
        self.spawn(connection, request[1], self.values(work))

    def _admin(self, connection: Connection, request: frames.Admin) -> None:
        _, request_id, command, arguments = request
        if command == "advisory-locks":
            rows = self.advisory.rows()
            connection.send(frames.frame((frames.VALUES, request_id, rows)))
            return
        work = self.node.admin(command, arguments)
        self.spawn(connection, request_id, self.values(work))

    async def values(self, work: Coroutine[Any, Any, Any]) -> Callable[[int], bytes]:
        """An answer VALUES."""
        values = await work
        return lambda request_id: frames.frame((frames.VALUES, request_id, values))

    def spawn(
        self,
        connection: Connection,
        request_id: int,
        work: Coroutine[Any, Any, Callable[[int], bytes]],
    ) -> None:
        """Runs a request as a task that CANCEL may end."""
        task = asyncio.get_running_loop().create_task(self._run(connection, request_id, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            connection.start(request_id, task.cancel)
        except MeridianError:
            task.cancel()
            raise

    async def _run(
        self,
        connection: Connection,
        request_id: int,
        work: Coroutine[Any, Any, Callable[[int], bytes]],
    ) -> None:
        try:
            answer = await work
            connection.finish(request_id, answer(request_id))
        except MeridianError as error:
            connection.finish_error(request_id, error)
        except asyncio.CancelledError:
            connection.finish_error(request_id, MeridianError(Kind.CANCELED))
        except Exception as error:
            log.exception("request failed")
            connection.finish_error(request_id, MeridianError(Kind.INTERNAL, why=repr(error)))

    def _cancel(self, connection: Connection, request: frames.Cancel) -> None:
        stop = connection.running.get(request[2])
        if stop is not None:
            stop()


def _uninterruptible() -> None:
    """A commit that was sent has an outcome; nobody stops it."""
