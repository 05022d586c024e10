"""The runner's decisions: what to step, how large, when to rest, when to give up."""

from __future__ import annotations

import pytest

from meridian.jobs import core
from meridian.jobs.core import (
    Core,
    Done,
    Effect,
    Fail,
    Listed,
    ListJobs,
    Prune,
    Refused,
    Step,
    Stepped,
    Wait,
    Woken,
)


class Driver:
    """A core with a clock; `ask` steps it and returns its one effect."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.core = Core()

    def ask(self, event: core.Event) -> Effect:
        (effect,) = self.core.step(self.now, event)
        return effect

    def start(self, *ids: str) -> Effect:
        assert self.ask(Woken()) == ListJobs()
        return self.ask(Listed(ids))

    def past(self, effect: Effect) -> Effect:
        """Sits out waits, and lists the jobs it has when asked to."""
        while isinstance(effect, Wait | ListJobs):
            if isinstance(effect, ListJobs):
                effect = self.ask(Listed(list(self.core.jobs)))
            else:
                self.now += effect.ms
                effect = self.ask(Woken())
        return effect


def stepped(id_: str, phase: str, rows: int, elapsed_ms: float) -> Stepped:
    """A step that waited for nothing."""
    return Stepped(id_, phase, rows, elapsed_ms, elapsed_ms)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_idle_waits_until_the_next_look(driver: Driver) -> None:
    assert driver.start() == Wait(core.LIST_MS)
    driver.now += core.LIST_MS
    assert driver.ask(Woken()) == ListJobs()


def test_an_announced_job_is_looked_for_at_once(driver: Driver) -> None:
    driver.start()
    assert driver.ask(Woken(announced=True)) == ListJobs()
    assert driver.ask(Listed(["a"])) == Step("a", core.BUDGET_FIRST_ROWS)


def test_steps_grow_to_their_time_and_rest_as_long(driver: Driver) -> None:
    step = driver.start("a")
    seen = []
    for _ in range(20):
        assert isinstance(step, Step)
        seen.append(step.budget)
        # 50 rows a millisecond.
        wait = driver.ask(stepped("a", "build", step.budget, step.budget / 50))
        assert isinstance(wait, Wait | ListJobs)
        if isinstance(wait, Wait):
            assert wait.ms >= core.REST * step.budget / 50 or wait.ms <= core.LIST_MS
        step = driver.past(wait)
    assert seen[:4] == [100, 200, 400, 800]
    assert seen[-1] == 50 * core.STEP_MS


def test_a_short_step_at_the_end_does_not_change_the_size(driver: Driver) -> None:
    step = driver.start("a")
    assert isinstance(step, Step)
    again = driver.past(driver.ask(stepped("a", "finish", 3, 20.0)))
    assert again == step


def test_conflicts_shrink_the_step_to_one_row_and_never_end_the_job(driver: Driver) -> None:
    step = driver.start("a")
    for _ in range(100):
        assert isinstance(step, Step)
        step = driver.past(driver.ask(Refused("a", "40001", "conflict", "", 5.0)))
    assert step == Step("a", 1, gate=True)
    assert driver.past(driver.ask(stepped("a", "build", 1, 1.0))) == Step("a", 2)


def test_an_error_of_the_job_ends_it_with_its_words(driver: Driver) -> None:
    driver.start("a")
    refused = Refused("a", "22012", "division by zero", "why", 5.0)
    assert driver.past(driver.ask(refused)) == Fail("a", "22012", "division by zero", "why")
    assert driver.past(driver.ask(Done())) == Step("a", core.BUDGET_FIRST_ROWS)


@pytest.mark.parametrize("sqlstate", ["08006", "57014", "XX000", "53200"])
def test_failures_around_the_job_are_borne_for_a_while(driver: Driver, sqlstate: str) -> None:
    driver.start("a")
    for _ in range(core.ODD_FAILURES_MAX - 1):
        assert isinstance(driver.past(driver.ask(Refused("a", sqlstate, "x", "", 1.0))), Step)
    assert isinstance(driver.past(driver.ask(Refused("a", sqlstate, "x", "", 1.0))), Fail)


def test_a_step_that_came_too_early_is_made_again_after_a_pause(driver: Driver) -> None:
    step = driver.start("a")
    assert driver.ask(stepped("a", "again", 0, 0.1)) == Wait(core.PAUSE_FIRST_MS)
    driver.now += core.PAUSE_FIRST_MS
    assert driver.ask(Woken()) == step


def test_jobs_take_turns(driver: Driver) -> None:
    step = driver.start("a", "b", "c")
    turns = []
    for _ in range(30):
        assert isinstance(step, Step)
        turns.append(step.id)
        driver.now += 10
        step = driver.past(driver.ask(stepped(step.id, "build", 1, 10.0)))
    assert {turns.count(id_) for id_ in "abc"} <= {9, 10, 11}


def test_ended_and_unlisted_jobs_are_forgotten(driver: Driver) -> None:
    driver.start("a", "b", "c")
    driver.ask(stepped("a", "completed", 0, 1.0))
    driver.ask(Listed(["c"]))
    assert list(driver.core.jobs) == ["c"]
    driver.ask(stepped("b", "build", 0, 1.0))
    driver.ask(Refused("b", "22012", "x", "", 1.0))
    assert list(driver.core.jobs) == ["c"]


def test_finished_jobs_are_pruned_at_times(driver: Driver) -> None:
    effect, pruned = driver.start(), 0
    for _ in range(int(5 * core.PRUNE_MS / core.LIST_MS)):
        if isinstance(effect, Wait):
            driver.now += effect.ms
            effect = driver.ask(Woken())
        elif isinstance(effect, ListJobs):
            effect = driver.ask(Listed([]))
        else:
            assert effect == Prune()
            pruned += 1
            effect = driver.ask(Done())
    assert pruned in (2, 3)


def test_a_step_too_large_for_a_transaction_is_made_smaller(driver: Driver) -> None:
    step = driver.start("a")
    budgets = []
    while isinstance(step, Step):
        budgets.append(step.budget)
        step = driver.past(driver.ask(Refused("a", "54000", "too large", "", 1.0)))
    assert budgets == [100, 25, 6, 1]
    assert step == Fail("a", "54000", "too large", "")


@pytest.mark.parametrize(("row_ms", "least"), [(0.0, core.BUDGET_FIRST_ROWS), (50.0, 1)])
def test_a_busy_machine_makes_no_tiny_steps(driver: Driver, row_ms: float, least: int) -> None:
    """Each step costs 300 ms whatever it does: fewer rows in it would only make more of them."""
    step = driver.start("a")
    budgets = []
    for _ in range(10):
        assert isinstance(step, Step)
        budgets.append(step.budget)
        taken = 300.0 + row_ms * step.budget
        step = driver.past(driver.ask(stepped("a", "build", step.budget, taken)))
    assert min(budgets) == least


def test_who_waits_long_makes_large_steps(driver: Driver) -> None:
    """Large commits of others lie before each step: more rows in it cost nothing more."""
    step = driver.start("a")
    for _ in range(10):
        assert isinstance(step, Step)
        before = driver.now
        event = Stepped("a", "build", step.budget, 3000.0, step.budget / 1000)
        step = driver.past(driver.ask(event))
        assert driver.now - before <= core.REST * core.REST_OF_MS
    assert step == Step("a", core.BUDGET_MAX_ROWS)
