"""Sequences: small independent commits through the adjudicator, values handed out from memory.

State = one row per sequence in the system relation SID_SEQUENCES: key = the sequence's storage id
(8 bytes big-endian), c1 = the last value that may have been handed out, c2 = was any (is_called).
Like PostgreSQL, 32 values are logged ahead (more while they are drawn fast, as in a bulk load): a
kill -9 may skip values, never repeat one. The row is conflict-checked, so several gateways may
share a sequence.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from meridian.errors import Kind, MeridianError
from meridian.limits import (
    COMMIT_WAIT_MS,
    READ_WAIT_MS,
    SEQUENCE_ATTEMPTS,
    SEQUENCE_FAST_MS,
    SEQUENCE_LOGGED_AHEAD,
    SEQUENCE_LOGGED_AHEAD_MAX,
    SEQUENCES_CACHED,
)
from meridian.wire.ops import Put, conflict_hash, encode_chunk

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

SID_SEQUENCES = 2
COLUMN_LAST = 1
COLUMN_IS_CALLED = 2

_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_decode_rows = msgspec.msgpack.Decoder(list[tuple[bytes, int, int]]).decode


class Options(NamedTuple):
    """What CREATE SEQUENCE said."""

    increment: int
    minimum: int
    maximum: int
    start: int
    cycle: bool


class Range(NamedTuple):
    """`number` values from `next` on by increment, durable and not yet handed out."""

    next: int
    number: int
    options: Options


class Durable(NamedTuple):
    """The row as of tau; last None: there is no row."""

    tau: int
    last: int | None
    is_called: bool


def following(last: int | None, is_called: bool, count: int, options: Options) -> tuple[int, int]:
    """(first, number) of the next values, at most `count`; `number` >= 1.

    Raises SEQUENCE_EXHAUSTED_MAX/MIN at the end of a sequence that does not cycle.
    """
    if last is None:
        first = options.start
    elif not is_called:
        first = last
    else:
        first = last + options.increment
        if first > options.maximum and options.increment > 0:
            if not options.cycle:
                raise MeridianError(Kind.SEQUENCE_EXHAUSTED_MAX, limit=options.maximum)
            first = options.minimum
        elif first < options.minimum and options.increment < 0:
            if not options.cycle:
                raise MeridianError(Kind.SEQUENCE_EXHAUSTED_MIN, limit=options.minimum)
            first = options.maximum
    if options.increment > 0:
        room = (options.maximum - first) // options.increment
    else:
        room = (first - options.minimum) // -options.increment
    if not options.minimum <= first <= options.maximum:
        raise MeridianError(Kind.BAD_SEQUENCE, why="its value lies outside its bounds")
    return first, min(count, room + 1)


class Sequences:
    """One per node, on the event loop's thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._ranges: OrderedDict[int, Range] = OrderedDict()
        self._paces: OrderedDict[int, tuple[float, int]] = OrderedDict()
        self._locks: dict[int, tuple[asyncio.Lock, int]] = {}

    def options(
        self, increment: int, minimum: int, maximum: int, start: int, cycle: bool
    ) -> Options:
        """Checked options. Raises BAD_SEQUENCE."""
        bounds = (increment, minimum, maximum, start)
        if not all(_INT64_MIN <= value <= _INT64_MAX for value in bounds):
            raise MeridianError(Kind.BAD_SEQUENCE, why="a value exceeds int64")
        if increment == 0:
            raise MeridianError(Kind.BAD_SEQUENCE, why="increment is zero")
        if not minimum <= start <= maximum:
            raise MeridianError(Kind.BAD_SEQUENCE, why="start lies outside its bounds")
        return Options(increment, minimum, maximum, start, cycle)

    def next_now(self, sid: int, cache: int, options: Options) -> tuple[int, int] | None:
        """(first, last) from memory; None: a commit is needed."""
        held = self._ranges.get(sid)
        if held is None or held.options != options or cache < 1:
            return None
        granted = min(cache, held.number)
        last = held.next + (granted - 1) * options.increment
        if granted == held.number:
            del self._ranges[sid]
        else:
            self._ranges[sid] = Range(last + options.increment, held.number - granted, options)
        return held.next, last

    async def next(self, sid: int, cache: int, options: Options) -> tuple[int, int]:
        """(first, last), inclusive, up to `cache` values; 2200H at the end."""
        if cache < 1:
            raise MeridianError(Kind.BAD_SEQUENCE, why="cache is below one")
        lock = self._enter(sid)
        try:
            async with lock:
                values = self.next_now(sid, cache, options)
                if values is not None:
                    return values
                await self._log_ahead(sid, cache + self._ahead(sid), options)
                values = self.next_now(sid, cache, options)
                assert values is not None
                return values
        finally:
            self._leave(sid)

    async def _log_ahead(self, sid: int, count: int, options: Options) -> None:
        for _ in range(SEQUENCE_ATTEMPTS):
            held = self._ranges.pop(sid, None)
            durable = await self._read(sid)
            last, is_called = durable.last, durable.is_called
            if held is not None:
                # ALTER SEQUENCE: go on behind what was handed out, not behind what was logged.
                last, is_called = held.next - held.options.increment, True
            first, number = following(last, is_called, count, options)
            end = first + (number - 1) * options.increment
            if await self._write(sid, end, True, durable.tau):
                self._remember(sid, Range(first, number, options))
                return
        raise MeridianError(Kind.SEQUENCE_BUSY)

    async def set(self, sid: int, value: int, is_called: bool) -> list[int]:
        """setval: durable when it returns."""
        if not _INT64_MIN <= value <= _INT64_MAX:
            raise MeridianError(Kind.BAD_SEQUENCE, why="the value exceeds int64")
        lock = self._enter(sid)
        try:
            async with lock:
                for _ in range(SEQUENCE_ATTEMPTS):
                    tau = (await self._read(sid)).tau
                    self._ranges.pop(sid, None)
                    if await self._write(sid, value, is_called, tau):
                        return []
                raise MeridianError(Kind.SEQUENCE_BUSY)
        finally:
            self._leave(sid)

    async def peek(self, sid: int) -> list[int | bool]:
        """[last_value, is_called], [] if never used; what memory still holds does not count."""
        held = self._ranges.get(sid)
        if held is not None:
            previous = held.next - held.options.increment
            if held.next == held.options.start or not _in_bounds(previous, held.options):
                return [held.next, False]
            return [previous, True]
        durable = await self._read(sid)
        return [] if durable.last is None else [durable.last, durable.is_called]

    def _ahead(self, sid: int) -> int:
        """How many values to log beyond those asked for."""
        now = asyncio.get_running_loop().time()
        then, ahead = self._paces.pop(sid, (now - SEQUENCE_FAST_MS, SEQUENCE_LOGGED_AHEAD))
        fast = (now - then) * 1000 < SEQUENCE_FAST_MS
        ahead = min(2 * ahead, SEQUENCE_LOGGED_AHEAD_MAX) if fast else SEQUENCE_LOGGED_AHEAD
        self._paces[sid] = (now, ahead)
        if len(self._paces) > SEQUENCES_CACHED:
            self._paces.popitem(last=False)
        return ahead

    def _remember(self, sid: int, values: Range) -> None:
        self._ranges[sid] = values
        if len(self._ranges) > SEQUENCES_CACHED:
            self._ranges.popitem(last=False)

    def _enter(self, sid: int) -> asyncio.Lock:
        lock, users = self._locks.get(sid, (asyncio.Lock(), 0))
        self._locks[sid] = (lock, users + 1)
        return lock

    def _leave(self, sid: int) -> None:
        lock, users = self._locks[sid]
        if users == 1:
            del self._locks[sid]
        else:
            self._locks[sid] = (lock, users - 1)

    async def _read(self, sid: int) -> Durable:
        tau = self.node.tau_start()
        await self.node.wait_until_ready(tau, READ_WAIT_MS)
        columns = (COLUMN_LAST, COLUMN_IS_CALLED)
        _, rows = self.node.engine.get(tau, SID_SEQUENCES, columns, [_key(sid)])
        found = _decode_rows(rows)
        if not found:
            return Durable(tau, None, False)
        return Durable(tau, found[0][1], bool(found[0][2]))

    async def _write(self, sid: int, last: int, is_called: bool, tau: int) -> bool:
        """Commits the row; False: somebody else changed it since tau."""
        key = _key(sid)
        hashed = conflict_hash(SID_SEQUENCES, 0, key).to_bytes(8, "little")
        columns = (COLUMN_LAST, COLUMN_IS_CALLED)
        row = (last, int(is_called))
        chunk = encode_chunk([Put(SID_SEQUENCES, 0, columns, [key], hashed, b"", [row])])
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int | MeridianError] = loop.create_future()

        def done(result: int | MeridianError) -> None:
            if not future.done():
                future.set_result(result)

        self.node.commits.commit(secrets.token_bytes(16), tau, 0, 0, 1, chunk, done)
        self.node.counters.sequence_commits += 1
        # Shielded from CANCEL by its outcome: an abandoned range is only a gap.
        result = await asyncio.wait_for(future, 2 * COMMIT_WAIT_MS / 1000)
        if not isinstance(result, MeridianError):
            return True
        if result.kind in (Kind.CONFLICT, Kind.TAU_BELOW_FLOOR):
            return False
        raise result


def _in_bounds(value: int, options: Options) -> bool:
    return options.minimum <= value <= options.maximum


def _key(sid: int) -> bytes:
    if not 0 <= sid <= _INT64_MAX:
        raise MeridianError(Kind.BAD_SEQUENCE, why="its storage id exceeds int64")
    return sid.to_bytes(8, "big")
