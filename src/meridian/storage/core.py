"""The storage replica's protocol: what to apply next, how far it is complete, which reads may run.

Pure (design section 3): `step(now, event) -> effects`. The shell performs at most one piece of
work at a time (`Apply`, `Stage`, `Resolve`, `Discard`) and answers each with `Performed`; the
simulator does the same with a store in memory.

Two lanes. Commits go first, in tau order; chunks of large transactions fill the time between them,
so that a large transaction never holds up a small one. A large commit waits for its chunks, and
what comes behind it waits for it. The position given with a piece of work never passes a chunk
that still waits: after a crash the journal is read again from there, and everything is idempotent.
"""

from __future__ import annotations

import heapq
from collections import deque

import msgspec

from meridian.clock.tau import Interval
from meridian.limits import GC_HORIZON_NS, S

GROUP_COMMITS = 256
GROUP_BYTES = 64 * 1024
"""Small commits that share one SQLite transaction."""
READS_WAITING_MAX = 100_000
FLOOR_STEP_NS = 5 * S
"""The floor rises in steps: each one is a write."""

Positions = tuple[tuple[int, int], ...]
"""(journal, n): everything through record n of the journal is in."""

# Events


class Committed(msgspec.Struct, frozen=True):
    """A committed transaction; `bodies` chunks came before `chunk`, its last."""

    tau: int
    journal: int
    n: int
    txid: bytes
    bodies: int
    chunk: bytes


class Chunk(msgspec.Struct, frozen=True):
    """Chunk `seq` of a large transaction whose outcome is not known yet."""

    txid: bytes
    journal: int
    n: int
    seq: int
    chunk: bytes


class Dropped(msgspec.Struct, frozen=True):
    """A large transaction that will never commit."""

    txid: bytes
    journal: int
    n: int


Item = Committed | Chunk | Dropped


class Delivered(msgspec.Struct, frozen=True):
    """`items` in order, then: the replica has been told everything through `tau`."""

    items: tuple[Item, ...]
    tau: int
    positions: Positions


class Performed(msgspec.Struct, frozen=True):
    """The piece of work under way is in the file."""


class Read(msgspec.Struct, frozen=True):
    """A read as of `tau` wants to run, before the clock's earliest reaches `deadline`."""

    token: int
    tau: int
    deadline: int


class CancelRead(msgspec.Struct, frozen=True):
    """The reader gave up; unknown tokens are fine."""

    token: int


class TimerFired(msgspec.Struct, frozen=True):
    """The timer of SetTimer fired. Late, early and double firings are harmless."""


Event = Delivered | Performed | Read | CancelRead | TimerFired

# Effects


class Apply(msgspec.Struct, frozen=True):
    """Small commits, (tau, chunk) ascending, in one SQLite transaction with the positions."""

    commits: tuple[tuple[int, bytes], ...]
    positions: Positions


class Stage(msgspec.Struct, frozen=True):
    """Write a chunk under the transaction's provisional number."""

    txid: bytes
    seq: int
    chunk: bytes
    positions: Positions


class Resolve(msgspec.Struct, frozen=True):
    """Stage `chunk` as chunk `seq`, the last one, then make all of them visible at `tau`."""

    txid: bytes
    seq: int
    chunk: bytes
    tau: int
    positions: Positions


class Discard(msgspec.Struct, frozen=True):
    """Forget a staged transaction."""

    txid: bytes
    positions: Positions


class Serve(msgspec.Struct, frozen=True):
    """The read may run now, and its result may leave (design 4.5)."""

    token: int


class Refuse(msgspec.Struct, frozen=True):
    """The read will not run: `reason` is one of the constants below."""

    token: int
    reason: int


TOO_OLD, TOO_LATE, TOO_MANY = 1, 2, 3


class Want(msgspec.Struct, frozen=True):
    """A read waits for heartbeats through `tau` (design 4.6)."""

    tau: int


class RaiseFloor(msgspec.Struct, frozen=True):
    """Refuse reads below `floor` and collect what only they could see (C6)."""

    floor: int


class Took(msgspec.Struct, frozen=True):
    """`size_bytes` of what was delivered are in: credit for the crossbar."""

    size_bytes: int


class SetTimer(msgspec.Struct, frozen=True):
    """TimerFired once the clock's earliest reaches `at`; a later one replaces an earlier one."""

    at: int


Work = Apply | Stage | Resolve | Discard
Effect = Work | Serve | Refuse | Want | RaiseFloor | Took | SetTimer


class Core:
    """One replica. `applied_tau`, `horizon` and `positions` are those of its file at start."""

    def __init__(self, applied_tau: int, horizon: int, positions: dict[int, int]) -> None:
        self.complete_tau = applied_tau
        """Every commit with tau <= this is in the file."""
        self.applied_tau = applied_tau
        self.horizon = horizon
        self.positions = dict(positions)
        """Everything through these records was delivered and is in, but for chunks that wait."""
        self.backlog_bytes = 0
        self._commits: deque[Committed | Delivered] = deque()
        self._chunks: deque[Chunk | Dropped] = deque()
        self._newest: dict[bytes, int] = {}
        """The arrival of each open transaction's newest chunk."""
        self._arrived = 0
        self._staged = 0
        self._needs: deque[int] = deque()
        """Per large commit in the lane: the arrival of its last chunk, which comes before it.

        Chunks of others that arrived later may name relations that a commit behind it creates.
        """
        self._working: list[Committed | Delivered] | Chunk | Dropped | None = None
        self._reads: list[tuple[int, int]] = []
        self._waiting: dict[int, Read] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._wanted = 0
        self._timer = 0

    def step(self, now: Interval, event: Event) -> list[Effect]:
        """React to one event."""
        effects: list[Effect] = []
        match event:
            case Delivered():
                self._deliver(event)
            case Performed():
                self._performed(effects)
            case Read():
                self._read(now, event, effects)
            case CancelRead():
                self._waiting.pop(event.token, None)
            case TimerFired():
                self._timer = 0
        if self._working is None:
            self._next(effects)
        self._answer(now, effects)
        self._raise_floor(now, effects)
        self._set_timer(now, effects)
        return effects

    def check(self) -> None:
        """Invariants between steps."""
        assert self.horizon <= max(self.complete_tau, self.horizon)
        assert self.backlog_bytes >= 0
        assert self._staged <= self._arrived
        assert len(self._waiting) <= READS_WAITING_MAX
        assert self._working is not None or not (self._commits or self._chunks)

    @property
    def idle(self) -> bool:
        """Everything delivered is in the file."""
        return self._working is None

    # Work

    def _deliver(self, event: Delivered) -> None:
        for item in event.items:
            if isinstance(item, Committed):
                newest = self._newest.pop(item.txid, 0)
                if item.bodies:
                    self._needs.append(newest)
                self._commits.append(item)
            else:
                # An end without a commit follows its chunks and holds up no commit.
                self._chunks.append(item)
                self._arrived += 1
                if isinstance(item, Chunk):
                    self._newest[item.txid] = self._arrived
                else:
                    self._newest.pop(item.txid, None)
            self.backlog_bytes += _size_bytes(item)
        self._commits.append(Delivered((), event.tau, event.positions))

    def _next(self, effects: list[Effect]) -> None:
        """The next piece of work, if there is one; markers need none."""
        group = self._take_group()
        while group:
            commits = [item for item in group if isinstance(item, Committed)]
            if commits:
                self._working = group
                pairs = tuple((item.tau, item.chunk) for item in commits)
                effects.append(Apply(pairs, self._file_positions(group)))
                return
            self._finish(group, effects)
            group = self._take_group()
        if self._commits and self._needs[0] <= self._staged:
            self._needs.popleft()
            item = self._commits.popleft()
            assert not isinstance(item, Delivered)
            self._working = [item]
            held = self._file_positions([])
            effects.append(Resolve(item.txid, item.bodies, item.chunk, item.tau, held))
        elif self._chunks:
            chunk = self._chunks.popleft()
            self._working = chunk
            held = self._file_positions([])
            if isinstance(chunk, Dropped):
                effects.append(Discard(chunk.txid, held))
            else:
                effects.append(Stage(chunk.txid, chunk.seq, chunk.chunk, held))

    def _take_group(self) -> list[Committed | Delivered]:
        """Small commits and markers from the head of the lane."""
        group: list[Committed | Delivered] = []
        size_bytes = 0
        while self._commits and len(group) < GROUP_COMMITS and size_bytes < GROUP_BYTES:
            head = self._commits[0]
            if isinstance(head, Committed) and head.bodies:
                break
            size_bytes += 0 if isinstance(head, Delivered) else len(head.chunk)
            group.append(self._commits.popleft())
        return group

    def _file_positions(self, group: list[Committed | Delivered]) -> Positions:
        """What the file holds once this group is in: markers passed, minus chunks that wait.

        A chunk arrives before commits of smaller n that wait for other journals, so only the
        crossbar's markers say how far everything was delivered.
        """
        held = dict(self.positions)
        for item in group:
            if isinstance(item, Delivered):
                held.update(item.positions)
        for chunk in self._chunks:
            if chunk.journal in held:
                held[chunk.journal] = min(held[chunk.journal], chunk.n - 1)
        return tuple(held.items())

    def _performed(self, effects: list[Effect]) -> None:
        working, self._working = self._working, None
        assert working is not None, "Performed without work"
        if isinstance(working, Chunk | Dropped):
            self._staged += 1
            self._took(_size_bytes(working), effects)
        else:
            self._finish(working, effects)

    def _finish(self, items: list[Committed | Delivered], effects: list[Effect]) -> None:
        """These are in the file: account for them, move completeness."""
        size_bytes = 0
        for item in items:
            if isinstance(item, Delivered):
                assert item.tau >= self.complete_tau, "completeness never goes back"
                self.complete_tau = item.tau
                for journal, n in item.positions:
                    assert n >= self.positions.get(journal, n), "positions never go back"
                    self.positions[journal] = n
            else:
                size_bytes += _size_bytes(item)
                if isinstance(item, Committed) and item.tau > self.applied_tau:
                    assert item.tau > self.complete_tau, "a commit below what was promised"
                    self.applied_tau = item.tau
        self._took(size_bytes, effects)

    def _took(self, size_bytes: int, effects: list[Effect]) -> None:
        if size_bytes:
            self.backlog_bytes -= size_bytes
            effects.append(Took(size_bytes))

    # Reads

    def _read(self, now: Interval, read: Read, effects: list[Effect]) -> None:
        if len(self._waiting) >= READS_WAITING_MAX:
            effects.append(Refuse(read.token, TOO_MANY))
            return
        assert read.token not in self._waiting
        self._waiting[read.token] = read
        heapq.heappush(self._reads, (read.tau, read.token))
        heapq.heappush(self._deadlines, (read.deadline, read.token))
        if read.tau > max(self._wanted, self.complete_tau):
            self._wanted = read.tau
            effects.append(Want(read.tau))

    def _answer(self, now: Interval, effects: list[Effect]) -> None:
        """Serve what is complete and certainly past, expire what waited too long."""
        while self._reads and self._reads[0][0] <= min(self.complete_tau, now.earliest):
            tau, token = heapq.heappop(self._reads)
            if self._current(token, tau):
                del self._waiting[token]
                old = tau < self.horizon
                effects.append(Refuse(token, TOO_OLD) if old else Serve(token))
        while self._deadlines and self._deadlines[0][0] <= now.earliest:
            deadline, token = heapq.heappop(self._deadlines)
            read = self._waiting.get(token)
            if read is not None and read.deadline == deadline:
                del self._waiting[token]
                effects.append(Refuse(token, TOO_LATE))
        if not self._waiting:
            # Cancelled and answered reads leave no litter behind.
            self._reads.clear()
            self._deadlines.clear()

    def _current(self, token: int, tau: int) -> bool:
        read = self._waiting.get(token)
        return read is not None and read.tau == tau

    # Time

    def _raise_floor(self, now: Interval, effects: list[Effect]) -> None:
        """An idle system writes nothing: no version ended after the newest commit."""
        floor = min(now.earliest - GC_HORIZON_NS, self.complete_tau)
        if floor >= self.horizon + FLOOR_STEP_NS and self.applied_tau > self.horizon:
            self.horizon = floor
            effects.append(RaiseFloor(floor))

    def _set_timer(self, now: Interval, effects: list[Effect]) -> None:
        """For the next deadline, or the next read that only the clock holds back."""
        at = self._deadlines[0][0] if self._deadlines else 0
        if self._reads and now.earliest < self._reads[0][0] <= self.complete_tau:
            at = min(at, self._reads[0][0])
        # One that fires too early asks again: cheaper than a new timer per read.
        if at and (at < self._timer or not self._timer):
            self._timer = at
            effects.append(SetTimer(at))


def _size_bytes(item: Item | Delivered) -> int:
    return len(item.chunk) if isinstance(item, Committed | Chunk) else 0
