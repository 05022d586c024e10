"""The router's protocol: a read is cut by range, asked of replicas, put together in key order.

Pure (design section 3). The shell (`shell.py`) carries requests and pages; this core only knows
ranges, replicas and times. A part that a replica answers for less than was asked is followed by a
part with the rest; a replica that refuses (wrong place), is behind or dead is followed by another
one, and when nobody is left by a pause and a newer map. A part that takes longer than most is asked
of a second replica too: the first answer wins, and a budget bounds the extra load. Everything ends
at the read's deadline.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from meridian.clock.tau import Interval
from meridian.limits import MS, S
from meridian.routing.map import ShardMap
from meridian.wire.ranges import Range

PARALLEL = 4
"""Parts of one read under way at once."""
READS_MAX = 100_000
HEDGE_START_NS = 20 * MS
HEDGE_MIN_NS = 1 * MS
HEDGE_MAX_NS = 1 * S
HEDGE_CREDIT = 64
"""Second questions that may be saved up."""
HEDGE_EVERY = 16
"""First questions that earn one second question."""
PAUSE_MIN_NS = 10 * MS
PAUSE_MAX_NS = 500 * MS
SUSPECT_NS = 1 * S
"""A replica that failed is asked last for so long."""

# Events


class Ask(msgspec.Struct, frozen=True):
    """A read of the places `wanted`; `keys` (places, ascending): a GET of exactly these.

    `limit` rows and `page_bytes` end a scan; 0: none. `deadline`: tau of the clock's earliest.
    """

    token: int
    wanted: Range
    deadline: int
    descending: bool = False
    keys: tuple[bytes, ...] = ()
    limit: int = 0
    page_bytes: int = 0


class Answered(msgspec.Struct, frozen=True):
    """An attempt's page: it speaks of `scanned`; `more`: it ends before the end of that."""

    attempt: int
    scanned: Range
    more: bool
    rows: int
    size_bytes: int


class Refused(msgspec.Struct, frozen=True):
    """An attempt failed: `reason` is one of the constants below."""

    attempt: int
    reason: int


WRONG_PLACE, BEHIND, DEAD, FINAL, TOO_OLD = 1, 2, 3, 4, 5
"""FINAL: every replica would say the same (bad request, unknown relation). TOO_OLD: below the base
of this copy; another may hold older versions, but waiting brings none back."""


class MapChanged(msgspec.Struct, frozen=True):
    """A map; older ones than the newest are ignored."""

    map: ShardMap


class Cancel(msgspec.Struct, frozen=True):
    """The reader gave up; unknown tokens are fine."""

    token: int


class TimerFired(msgspec.Struct, frozen=True):
    """The timer of SetTimer fired. Late, early and double firings are harmless."""


Event = Ask | Answered | Refused | MapChanged | Cancel | TimerFired

# Effects


class Send(msgspec.Struct, frozen=True):
    """Ask `replica` for `part`, of a GET keys[start:stop]; `limit` and `page_bytes` left (0: none).

    Answer with Answered or Refused of `attempt`.
    """

    attempt: int
    token: int
    replica: int
    part: Range
    start: int
    stop: int
    limit: int
    page_bytes: int


class Abandon(msgspec.Struct, frozen=True):
    """Nobody waits for this attempt any more; what it still says is ignored."""

    attempt: int


class Done(msgspec.Struct, frozen=True):
    """The answer is the pages of these attempts, in this order; `more`: there is more to ask."""

    token: int
    attempts: tuple[int, ...]
    more: bool


class Fail(msgspec.Struct, frozen=True):
    """The read failed with the reason of `attempt`; 0: nobody was there to ask in time."""

    token: int
    attempt: int
    reason: int


class WantMap(msgspec.Struct, frozen=True):
    """A map newer than `version` would help."""

    version: int


class SetTimer(msgspec.Struct, frozen=True):
    """TimerFired once the clock's earliest reaches `at`; a later one replaces an earlier one."""

    at: int


Effect = Send | Abandon | Done | Fail | WantMap | SetTimer


class _Part:
    """A piece of a read: waiting, asked of one or two replicas, or answered."""

    __slots__ = (
        "answer", "asked", "hedge_at", "hedged", "pause_ns", "range", "retry_at", "sent", "tried",
    )  # fmt: skip

    def __init__(self, part: Range) -> None:
        self.range = part
        self.sent: dict[int, int] = {}
        """Attempts under way: replica of each."""
        self.asked = 0
        """When the newest was sent."""
        self.tried: dict[int, int] = {}
        """Replicas that refused since the last pause, and why."""
        self.hedge_at = 0
        self.hedged = False
        self.retry_at = 0
        self.pause_ns = PAUSE_MIN_NS
        self.answer: Answered | None = None


class _Read:
    __slots__ = ("ask", "parts", "planned_to", "reason")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.parts: list[_Part] = []
        """In the order of the answer."""
        self.planned_to: Range | None = ask.wanted
        """What has no part yet."""
        self.reason = (0, DEAD)
        """The newest refusal: (attempt, reason)."""


class Router:
    """All reads of one gateway. `hedge_ns` adapts to what 19 of 20 answers take.

    `attempt_ns`: after this an attempt counts as lost; 0: the transport tells what it loses.
    """

    def __init__(self, shard_map: ShardMap, *, hedging: bool = True, attempt_ns: int = 0) -> None:
        self.map = shard_map
        self._attempt_ns = attempt_ns
        self.hedge_ns = HEDGE_START_NS
        self.hedges = 0
        self.retries = 0
        self._hedging = hedging
        self._credit = HEDGE_CREDIT * HEDGE_EVERY
        self._reads: dict[int, _Read] = {}
        self._attempts: dict[int, tuple[int, _Part]] = {}
        self._next = 0
        self._suspects: dict[int, int] = {}
        self._wanted_version = 0
        self._due: list[tuple[int, int]] = []
        """(time, token): when to look at a read again; stale entries are harmless."""
        self._timer = 0

    def step(self, now: Interval, event: Event) -> list[Effect]:
        """React to one event."""
        effects: list[Effect] = []
        match event:
            case Ask():
                self._ask(now, event, effects)
            case Answered():
                self._answered(now, event, effects)
            case Refused():
                self._refused(now, event, effects)
            case MapChanged():
                self._map_changed(now, event, effects)
            case Cancel():
                self._end(event.token, effects)
            case TimerFired():
                self._timer = 0
                self._expire(now, effects)
        self._set_timer(now, effects)
        return effects

    def check(self) -> None:
        """Invariants between steps."""
        for token, read in self._reads.items():
            assert read.ask.token == token
            last: Range | None = None
            moving = False
            for part in read.parts:
                assert part.range.lo < part.range.hi
                assert not (part.answer and part.sent)
                moving = moving or bool(part.sent or part.retry_at)
                assert part.answer or moving, "a part that nothing moves on"
                assert not part.retry_at or (part.retry_at, token) in self._due
                assert all(self._attempts[one] == (token, part) for one in part.sent)
                if last is not None and read.ask.descending:
                    assert part.range.hi <= last.lo
                elif last is not None:
                    assert last.hi <= part.range.lo
                last = part.range
            assert moving
            assert len([part for part in read.parts if part.sent]) <= PARALLEL
        assert all(token in self._reads for token, _ in self._attempts.values())

    # Reads

    def _ask(self, now: Interval, ask: Ask, effects: list[Effect]) -> None:
        assert ask.token not in self._reads
        if len(self._reads) >= READS_MAX:
            effects.append(Fail(ask.token, 0, BEHIND))
            return
        if ask.wanted.lo >= ask.wanted.hi:
            effects.append(Done(ask.token, (), False))
            return
        read = self._reads[ask.token] = _Read(ask)
        heapq.heappush(self._due, (ask.deadline, ask.token))
        self._advance(now, read, effects)

    def _end(self, token: int, effects: list[Effect]) -> None:
        """The read is over: nobody waits for its attempts."""
        read = self._reads.pop(token, None)
        if read is not None:
            for part in read.parts:
                self._drop_attempts(part, effects)
        if not self._reads:
            self._due.clear()

    def _drop_attempts(self, part: _Part, effects: list[Effect]) -> None:
        for attempt in part.sent:
            del self._attempts[attempt]
            effects.append(Abandon(attempt))
        part.sent = {}

    def _advance(self, now: Interval, read: _Read, effects: list[Effect]) -> None:
        """Finish the read if its pages are together, else see to it that parts are asked."""
        rows = size_bytes = 0
        ask = read.ask
        pages: list[int] = []
        for part in read.parts:
            answer = part.answer
            if answer is None:
                break
            pages.append(answer.attempt)
            rows += answer.rows
            size_bytes += answer.size_bytes
            full = (0 < ask.limit <= rows) or (0 < ask.page_bytes <= size_bytes)
            if answer.more or (full and not self._is_last(read, part)):
                self._finish(read, pages, True, effects)
                return
        waiting = [part for part in read.parts if part.answer is None]
        if not waiting and read.planned_to is None:
            self._finish(read, pages, False, effects)
            return
        # A limit counts rows over all parts, so that they can only be asked one by one.
        window = 1 if ask.limit else PARALLEL
        while len(waiting) < window and (planned := self._plan(read)) is not None:
            waiting.append(planned)
        if not waiting:
            self._finish(read, pages, False, effects)
        under_way = len([part for part in waiting if part.sent or part.retry_at])
        idle = [part for part in waiting if not part.sent and not part.retry_at]
        self._send_all(now, read, idle[: max(0, window - under_way)], effects)

    def _send_all(
        self, now: Interval, read: _Read, parts: Sequence[_Part], effects: list[Effect]
    ) -> None:
        """Ask for those that nobody is asked for; one that cannot be answered ends the read."""
        for part in parts:
            if not part.sent and not part.retry_at and read.ask.token in self._reads:
                self._send(now, read, part, effects)

    def _is_last(self, read: _Read, part: _Part) -> bool:
        return read.planned_to is None and part is read.parts[-1]

    def _finish(self, read: _Read, pages: Sequence[int], more: bool, effects: list[Effect]) -> None:
        self._end(read.ask.token, effects)
        effects.append(Done(read.ask.token, tuple(pages), more))

    def _plan(self, read: _Read) -> _Part | None:
        """The next part of what has none yet; None: no key lies in the rest."""
        ask = read.ask
        while read.planned_to is not None:
            found, _ = self.map.part_at(read.planned_to, descending=ask.descending)
            read.planned_to = _rest(read.planned_to, found, ask.descending)
            if ask.keys and not _holds_key(ask.keys, found):
                continue
            part = _Part(found)
            read.parts.append(part)
            return part
        return None

    def _left(self, read: _Read, until: _Part) -> tuple[int, int]:
        """(limit, page_bytes) that earlier parts left."""
        limit, page_bytes = read.ask.limit, read.ask.page_bytes
        for part in read.parts:
            if part is until:
                break
            if part.answer is not None:
                limit -= part.answer.rows if limit else 0
                page_bytes -= part.answer.size_bytes if page_bytes else 0
        # What is full was finished before; later parts may be asked while earlier ones are out.
        return (max(1, limit) if read.ask.limit else 0), max(1, page_bytes) if page_bytes else 0

    # Attempts

    def _candidates(self, now: Interval, part: _Part, descending: bool) -> list[int]:
        """Replicas to ask for this part, best first."""
        _, replicas = self.map.part_at(part.range, descending=descending)
        busy = part.sent.values()
        free = [one for one in replicas if one not in part.tried and one not in busy]
        good = [one for one in free if self._suspects.get(one, 0) <= now.earliest]
        return good + [one for one in free if one not in good]

    def _send(
        self, now: Interval, read: _Read, part: _Part, effects: list[Effect], hedge: bool = False
    ) -> bool:
        """Ask the next replica; with nobody left, pause. False: nobody was asked."""
        if not hedge:
            self._cut_again(read, part)
        candidates = self._candidates(now, part, read.ask.descending)
        if not candidates:
            if not hedge:
                self._pause(now, read, part, effects)
            return False
        self._next += 1
        attempt, replica = self._next, candidates[0]
        part.sent[attempt] = replica
        part.asked = now.earliest
        part.retry_at = 0
        self._hedge_later(now, read, part, HEDGE_MAX_NS if hedge else self.hedge_ns)
        self._attempts[attempt] = (read.ask.token, part)
        if self._attempt_ns:
            heapq.heappush(self._due, (now.earliest + self._attempt_ns, read.ask.token))
        if not hedge:
            self._credit = min(self._credit + 1, HEDGE_CREDIT * HEDGE_EVERY)
        limit, page_bytes = self._left(read, part)
        start, stop = _keys_in(read.ask.keys, part.range)
        effects.append(
            Send(attempt, read.ask.token, replica, part.range, start, stop, limit, page_bytes)
        )
        return True

    def _cut_again(self, read: _Read, part: _Part) -> None:
        """The map may be newer than the part: one that no replica holds whole is cut."""
        ask = read.ask
        found, _ = self.map.part_at(part.range, descending=ask.descending)
        rest = _rest(part.range, found, ask.descending)
        while rest is not None and ask.keys and not _holds_key(ask.keys, found):
            found, _ = self.map.part_at(rest, descending=ask.descending)
            rest = _rest(rest, found, ask.descending)
        part.range = found
        if rest is not None:
            self._insert_rest(read, part, rest)

    def _pause(self, now: Interval, read: _Read, part: _Part, effects: list[Effect]) -> None:
        """Everybody was asked in vain: a newer map, or the same again a little later."""
        if part.tried and not frozenset(part.tried.values()) - {TOO_OLD}:
            self._end(read.ask.token, effects)
            effects.append(Fail(read.ask.token, *read.reason))
            return
        part.retry_at = now.earliest + part.pause_ns
        heapq.heappush(self._due, (part.retry_at, read.ask.token))
        part.pause_ns = min(2 * part.pause_ns, PAUSE_MAX_NS)
        if self._wanted_version <= self.map.version:
            self._wanted_version = self.map.version + 1
            effects.append(WantMap(self.map.version))

    def _answered(self, now: Interval, event: Answered, effects: list[Effect]) -> None:
        found = self._attempts.pop(event.attempt, None)
        if found is None:
            return
        token, part = found
        read = self._reads[token]
        replica = part.sent.pop(event.attempt)
        self._suspects.pop(replica, None)
        if not part.hedged:
            self._learn(now.earliest - part.asked)
        self._drop_attempts(part, effects)
        part.answer = event
        part.hedge_at = part.retry_at = 0
        rest = _rest(part.range, event.scanned, read.ask.descending)
        assert part.range.covers(event.scanned) and (
            event.scanned.hi == part.range.hi
            if read.ask.descending
            else event.scanned.lo == part.range.lo
        ), "an answer to another question"
        if rest is not None and not event.more:
            part.range = event.scanned
            self._insert_rest(read, part, rest)
        self._advance(now, read, effects)

    def _insert_rest(self, read: _Read, part: _Part, rest: Range) -> None:
        """What a narrower replica left: the next part in the order of the answer."""
        if read.ask.keys and not _holds_key(read.ask.keys, rest):
            return
        read.parts.insert(read.parts.index(part) + 1, _Part(rest))

    def _refused(self, now: Interval, event: Refused, effects: list[Effect]) -> None:
        found = self._attempts.pop(event.attempt, None)
        if found is None:
            return
        token, part = found
        read = self._reads[token]
        replica = part.sent.pop(event.attempt)
        read.reason = (event.attempt, event.reason)
        if event.reason == FINAL:
            self._end(token, effects)
            effects.append(Fail(token, event.attempt, FINAL))
            return
        self.retries += 1
        part.tried[replica] = event.reason
        if event.reason in (DEAD, BEHIND):
            self._suspects[replica] = now.earliest + SUSPECT_NS
        elif self._wanted_version <= self.map.version:
            # The map is wrong here: others need a newer one as well.
            self._wanted_version = self.map.version + 1
            effects.append(WantMap(self.map.version))
        if not part.sent:
            self._send(now, read, part, effects)

    def _learn(self, latency_ns: int) -> None:
        """Moves `hedge_ns` towards what 19 of 20 answers stay below."""
        step = max(1, self.hedge_ns // 320)
        moved = self.hedge_ns + (19 * step if latency_ns > self.hedge_ns else -step)
        self.hedge_ns = min(max(moved, HEDGE_MIN_NS), HEDGE_MAX_NS)

    # The map

    def _map_changed(self, now: Interval, event: MapChanged, effects: list[Effect]) -> None:
        if event.map.version <= self.map.version:
            return
        self.map = event.map
        for read in list(self._reads.values()):
            for part in read.parts:
                part.tried = {}
                part.retry_at = 0
            self._advance(now, read, effects)

    # Time

    def _expire(self, now: Interval, effects: list[Effect]) -> None:
        tokens: dict[int, None] = {}
        while self._due and self._due[0][0] <= now.earliest:
            tokens[heapq.heappop(self._due)[1]] = None
        for token in tokens:
            read = self._reads.get(token)
            if read is not None:
                self._look_at(now, read, effects)

    def _look_at(self, now: Interval, read: _Read, effects: list[Effect]) -> None:
        if read.ask.deadline <= now.earliest:
            self._end(read.ask.token, effects)
            effects.append(Fail(read.ask.token, *read.reason))
            return
        for part in read.parts:
            if part.retry_at and part.retry_at <= now.earliest:
                part.tried = {}
                part.retry_at = 0
                # A map may be wanted again: the last question or its answer may be lost.
                self._wanted_version = 0
                self._send_all(now, read, (part,), effects)
            elif part.sent and 0 < self._attempt_ns <= now.earliest - part.asked:
                part.tried.update(dict.fromkeys(part.sent.values(), DEAD))
                self._drop_attempts(part, effects)
                self._send_all(now, read, (part,), effects)
            elif part.hedge_at and part.hedge_at <= now.earliest:
                self._hedge(now, read, part, effects)

    def _hedge_later(self, now: Interval, read: _Read, part: _Part, delay_ns: int) -> None:
        part.hedge_at = now.earliest + delay_ns
        heapq.heappush(self._due, (part.hedge_at, read.ask.token))

    def _hedge(self, now: Interval, read: _Read, part: _Part, effects: list[Effect]) -> None:
        part.hedge_at = 0
        if not self._hedging:
            return
        if self._credit < HEDGE_EVERY:
            self._hedge_later(now, read, part, HEDGE_MAX_NS)
        elif self._send(now, read, part, effects, hedge=True):
            part.hedged = True
            self._credit -= HEDGE_EVERY
            self.hedges += 1

    def _set_timer(self, now: Interval, effects: list[Effect]) -> None:
        at = self._due[0][0] if self._due else 0
        if at and (not self._timer or at < self._timer):
            self._timer = at
            effects.append(SetTimer(at))


def _rest(wanted: Range, done: Range, descending: bool) -> Range | None:
    """What of a range follows the part that was done; None: nothing."""
    rest = Range(wanted.lo, done.lo) if descending else Range(done.hi, wanted.hi)
    return rest if rest.lo < rest.hi else None


def _keys_in(keys: Sequence[bytes], part: Range) -> tuple[int, int]:
    return bisect_left(keys, part.lo), bisect_left(keys, part.hi)


def _holds_key(keys: Sequence[bytes], part: Range) -> bool:
    start, stop = _keys_in(keys, part)
    return start < stop
