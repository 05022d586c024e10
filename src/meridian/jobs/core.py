"""Which job makes its next step, of how many rows, and when (design section 9, "Index builds").

Pure. One thing is under way at a time: every event is answered with one effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

LIST_MS = 2_000
"""Jobs that nobody announced are found this often: those of other instances, or of before."""
PRUNE_MS = 600_000
BUDGET_FIRST_ROWS = 100
BUDGET_MAX_ROWS = 2_000
STEP_MS = 40.0
"""A step aims at this: short, for what is written meanwhile makes it be made again."""
SLOW_STEP_MS = 1_000.0
"""Up to this a step of BUDGET_FIRST_ROWS may take, on a machine that is busy otherwise."""
REST = 0.5
"""Rest after a step, in units of its duration: others keep well over half of everything."""
REST_OF_MS = 400.0
"""Of a longer step only so much counts."""
PAUSE_FIRST_MS = 10.0
PAUSE_LAST_MS = 1_000.0
CONFLICTS_MAX = 5
"""Steps of a single row that lost in a row, before the next one holds up writers."""
ODD_FAILURES_MAX = 20
"""Failures in a row that may pass by themselves, before the job is given up."""

_CONFLICTS = ("40001", "40P01", "55P03")
"""Others were there first: again, without end, for each of them made progress."""
_TOO_LARGE = "54000"
"""The step does not fit a transaction: again, smaller."""
_PASSING = ("08", "53", "57", "58", "25", "XX")
"""Classes of failures of what is around the job."""
AGAIN = "again"
"""Nothing was done: the instance does not know the index yet, or another runner was there."""
ENDED = ("completed", "failed", "cancelled", "gone")


@dataclass(frozen=True)
class Listed:
    """The ids of all unfinished jobs."""

    ids: Sequence[str]


@dataclass(frozen=True)
class Stepped:
    """A step was committed: `next` is the job's phase now, or its status at its end.

    `busy_ms`: the part of `elapsed_ms` that grows with its rows. The rest is waiting: for storage
    to be complete, for its commit.
    """

    id: str
    next: str
    rows: int
    elapsed_ms: float
    busy_ms: float


@dataclass(frozen=True)
class Refused:
    """A step, or Fail, had no effect. `sqlstate` is empty when the session broke."""

    id: str
    sqlstate: str
    message: str
    detail: str
    elapsed_ms: float


@dataclass(frozen=True)
class Woken:
    """A wait is over; `announced`: because a job was ordered."""

    announced: bool = False


@dataclass(frozen=True)
class Done:
    """Prune or Fail has ended."""


Event = Listed | Stepped | Refused | Woken | Done


@dataclass(frozen=True)
class ListJobs:
    """Ask for all unfinished jobs: Listed."""


@dataclass(frozen=True)
class Step:
    """Make a step of at most `budget` rows: Stepped or Refused.

    `gate`: the commits of writers wait for it, so that it cannot lose against them again.
    """

    id: str
    budget: int
    gate: bool = False


@dataclass(frozen=True)
class Fail:
    """Give up a job for this reason: Done or Refused."""

    id: str
    sqlstate: str
    message: str
    detail: str


@dataclass(frozen=True)
class Prune:
    """Forget old finished jobs: Done."""


@dataclass(frozen=True)
class Wait:
    """Nothing to do for so long, unless a job is announced: Woken."""

    ms: float


Effect = ListJobs | Step | Fail | Prune | Wait


@dataclass
class _Pace:
    budget: int = BUDGET_FIRST_ROWS
    due_ms: float = 0.0
    failures: int = 0
    conflicts: int = 0
    """In a row, with the smallest budget."""
    given_up: Refused | None = None


@dataclass
class Core:
    """Feed `step` with the outcome of the last effect; times are any monotonic milliseconds."""

    jobs: dict[str, _Pace] = field(default_factory=dict)
    _list_ms: float = 0.0
    _prune_ms: float | None = None

    def step(self, now_ms: float, event: Event) -> list[Effect]:
        """The one thing to do next."""
        match event:
            case Listed():
                self._listed(now_ms, event.ids)
            case Stepped():
                self._stepped(now_ms, event)
            case Refused():
                self._refused(now_ms, event)
            case Woken():
                if event.announced:
                    self._list_ms = now_ms
            case Done():
                pass
        return [self._next(now_ms)]

    def _listed(self, now_ms: float, ids: Sequence[str]) -> None:
        self.jobs = {id_: self.jobs.get(id_) or _Pace(due_ms=now_ms) for id_ in ids}
        self._list_ms = now_ms + LIST_MS

    def _stepped(self, now_ms: float, event: Stepped) -> None:
        pace = self.jobs.get(event.id)
        if pace is None:
            return
        if event.next in ENDED:
            del self.jobs[event.id]
            return
        if event.next == AGAIN:
            pace.due_ms = now_ms + PAUSE_FIRST_MS
            return
        pace.failures = pace.conflicts = 0
        # Who waited long has not kept others from anything all the while.
        pace.due_ms = now_ms + REST * min(event.elapsed_ms, REST_OF_MS)
        if event.rows >= pace.budget:
            fitting = int(event.rows * STEP_MS / max(event.busy_ms, 0.1))
            # What each step costs anyway must not shrink it until it gets nowhere.
            least = BUDGET_FIRST_ROWS if event.busy_ms < SLOW_STEP_MS else 1
            pace.budget = max(1, min(max(fitting, least), 2 * pace.budget, BUDGET_MAX_ROWS))

    def _refused(self, now_ms: float, event: Refused) -> None:
        pace = self.jobs.get(event.id)
        if pace is None:
            return
        pace.failures += 1
        pause_ms = min(PAUSE_LAST_MS, PAUSE_FIRST_MS * 2 ** min(pace.failures - 1, 10))
        pace.due_ms = now_ms + max(pause_ms, REST * event.elapsed_ms)
        if event.sqlstate in _CONFLICTS:
            pace.conflicts += pace.budget == 1
            pace.budget = max(1, pace.budget // 4)
            return
        if event.sqlstate == _TOO_LARGE and pace.budget > 1:
            pace.budget = max(1, pace.budget // 4)
            return
        passing = not event.sqlstate or event.sqlstate.startswith(_PASSING)
        # A session that broke is no failure of the job.
        if event.sqlstate and (not passing or pace.failures >= ODD_FAILURES_MAX):
            pace.given_up = event

    def _next(self, now_ms: float) -> Effect:
        if self._prune_ms is None:
            self._prune_ms = now_ms + PRUNE_MS
        if now_ms >= self._list_ms:
            # Asked once; the answer says when to ask again.
            self._list_ms = now_ms + LIST_MS
            return ListJobs()
        due = min(self.jobs, key=lambda id_: self.jobs[id_].due_ms, default=None)
        if due is not None and self.jobs[due].due_ms <= now_ms:
            return self._of_job(due)
        if now_ms >= self._prune_ms:
            self._prune_ms = now_ms + PRUNE_MS
            return Prune()
        until = self._list_ms if due is None else min(self._list_ms, self.jobs[due].due_ms)
        return Wait(max(0.0, min(until, self._prune_ms) - now_ms))

    def _of_job(self, id_: str) -> Effect:
        pace = self.jobs[id_]
        why = pace.given_up
        if why is not None:
            pace.given_up = None
            return Fail(id_, why.sqlstate, why.message, why.detail)
        assert 1 <= pace.budget <= BUDGET_MAX_ROWS, pace.budget
        return Step(id_, pace.budget, gate=pace.conflicts >= CONFLICTS_MAX)
