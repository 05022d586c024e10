"""Gates: commits held for a DDL statement (docs/rfcs, coherence 8). None loses its answer."""

from __future__ import annotations

import pytest

from meridian.adjudicator import gates as module
from meridian.adjudicator.events import (
    AppendFailed,
    Code,
    Gate,
    Gated,
    Outcome,
    Part,
    SetTimer,
    Status,
    TimerFired,
)
from meridian.limits import GATE_HOLD_MS
from meridian.wire.ops import KIND_INDEX, Create
from meridian.wire.reach import RELATIONS, Reach
from tests.adjudicator.driver import MS, Driver, catalog, put, share, txid

DDL = 900


def gate(driver: Driver, id_: int = DDL, *sids: int, hold_ms: int = 10_000) -> Gated:
    effects = driver.step(Gate(5, txid(id_), sids or (1000,), hold_ms * MS))
    answers = [effect for effect in effects if isinstance(effect, Gated)]
    assert len(answers) == 1 and answers[0].to == 5
    return answers[0]


def tick(driver: Driver) -> None:
    driver.step(TimerFired("gate"))
    driver.sync()
    driver.now += 100 * MS
    driver.step(TimerFired("ack"))


def index(version: int) -> bytes:
    ops = [Create(2000 + version, KIND_INDEX, [(0, 2)], 1000)]
    return catalog(version, *ops, reach=Reach(RELATIONS, (1000,)))


def test_ddl_gets_through_under_a_writer_that_never_stops(driver: Driver) -> None:
    """Without the gate each commit in between would refuse it."""
    answer = gate(driver)
    assert answer.code is Code.NONE
    driver.now = max(driver.now, answer.tau) + 1
    start = driver.now
    writers = []
    for number in range(5):
        driver.now += MS
        writers.append(driver.ask(number, put(f"k{number}"), driver.now, catver=0))
    other = driver.ask(50, put("a", sid=1001), driver.now)
    driver.sync()
    assert not any(to in driver.answers for to in writers)
    driver.now += 10 * MS
    driver.step(TimerFired("ack"))
    assert driver.outcome(other) is Outcome.COMMITTED, "other relations are not concerned"
    to = driver.ask(DDL, index(1), start)
    assert SetTimer("gate", 0) in driver.effects
    tick(driver)
    assert driver.outcome(to) is Outcome.COMMITTED
    # They began before its tau: they must be replayed on the new catalog.
    assert {driver.answers[to].code for to in writers} == {Code.CATALOG}
    assert len(driver.core.gates) == 0
    assert driver.commit(60, put("z")).outcome is Outcome.COMMITTED


def test_without_a_gate_the_writer_wins(driver: Driver) -> None:
    start = driver.now
    driver.commit(1, put("k"), start)
    assert driver.commit(DDL, index(1), start).code is Code.CATALOG


def test_the_answer_lies_above_what_was_decided(driver: Driver) -> None:
    driver.core.ledger.lead = 40 * MS
    to = driver.ask(1, put("a"), driver.now)
    tau = driver.records[-1].tau
    assert tau > driver.now, "in flight and ahead of the clock"
    assert gate(driver).tau == tau
    assert gate(driver, DDL, 1001).tau == 0
    driver.settle()
    assert driver.outcome(to) is Outcome.COMMITTED


@pytest.mark.parametrize("how", ["aborted", "ended", "resolved"])
def test_held_commits_pass_when_the_gate_ends_without_ddl(driver: Driver, how: str) -> None:
    gate(driver)
    start = driver.now
    to = driver.ask(1, put("a"), start)
    again = driver.ask(1, put("a"), start)
    driver.step(Status(77, txid(1), start))
    assert len(driver.core.gates.held) == 1
    if how == "aborted":
        driver.ask(DDL, b"\x93", start)
    elif how == "ended":
        gate(driver, DDL, 1000, hold_ms=0)
    else:
        driver.step(Status(78, txid(DDL), start))
    tick(driver)
    assert [driver.outcome(asked) for asked in (to, again, 77)] == [Outcome.COMMITTED] * 3


def test_a_gate_ends_by_time(driver: Driver) -> None:
    gate(driver, hold_ms=500)
    at = driver.now + 500 * MS
    assert SetTimer("gate", at) in driver.effects
    driver.now += 400 * MS
    to = driver.ask(1, put("a"), driver.now)
    driver.now = at - 1
    tick(driver)
    driver.now = at
    tick(driver)
    assert driver.outcome(to) is Outcome.COMMITTED
    assert len(driver.core.gates) == 0


def test_a_commit_is_held_for_a_bounded_time(driver: Driver) -> None:
    gate(driver)
    to = driver.ask(1, put("a"), driver.now)
    at = driver.now + GATE_HOLD_MS * MS
    assert SetTimer("gate", at) in driver.effects
    driver.now = at - 1
    driver.step(TimerFired("gate"))
    driver.sync()
    assert to not in driver.answers
    driver.now = at
    tick(driver)
    assert driver.answers[to].code is Code.GATED
    assert driver.commit(1, put("a")).code is Code.GATED, "final"
    late = driver.ask(2, put("b"), driver.now)
    gate(driver, DDL, 1000, hold_ms=0)
    tick(driver)
    assert driver.outcome(late) is Outcome.COMMITTED


def test_shares_and_schema_changes_are_held_too(driver: Driver) -> None:
    gate(driver)
    asked = [driver.ask(1, share("a"), driver.now), driver.ask(2, index(1), driver.now)]
    driver.sync()
    assert not any(to in driver.answers for to in asked)
    gate(driver, DDL, 1000, hold_ms=0)
    tick(driver)
    assert all(driver.outcome(to) is Outcome.COMMITTED for to in asked)


def test_a_refused_commit_is_not_held(driver: Driver) -> None:
    start = driver.now
    driver.commit(1, put("a"), start)
    gate(driver)
    assert driver.commit(2, put("a"), start).code is Code.CONFLICT


def test_two_gates(driver: Driver) -> None:
    assert gate(driver, DDL, 1000, 1001).code is Code.NONE
    assert gate(driver, DDL + 1, 1001, 1002).code is Code.GATED, "they would wait for each other"
    assert gate(driver, DDL + 1, 1002).code is Code.NONE
    both = put("a", sid=1000)
    first = driver.ask(1, both, driver.now)
    second = driver.ask(2, put("a", sid=1002), driver.now)
    assert gate(driver, DDL, 1001).code is Code.NONE, "the same one again"
    tick(driver)
    gate(driver, DDL + 1, 1002, hold_ms=0)
    tick(driver)
    assert driver.outcome(second) is Outcome.COMMITTED
    gate(driver, DDL, 1001, hold_ms=0)
    tick(driver)
    assert driver.outcome(first) is Outcome.COMMITTED


def test_a_gate_grows(driver: Driver) -> None:
    gate(driver, DDL, 1000)
    assert gate(driver, DDL, 1001).code is Code.NONE
    asked = [driver.ask(1, put("a"), driver.now), driver.ask(2, put("a", sid=1001), driver.now)]
    driver.sync()
    assert not any(to in driver.answers for to in asked)
    gate(driver, DDL, hold_ms=0)
    tick(driver)
    assert all(driver.outcome(to) is Outcome.COMMITTED for to in asked)


def test_large_transactions_are_held(driver: Driver) -> None:
    gate(driver)
    start = driver.now
    for id_ in (1, 2):
        driver.step(Part(txid(id_), start, 0, put(f"a{id_}")))
    held = driver.ask(1, put("b1"), start, parts=1)
    for _ in range(10):
        driver.step(TimerFired("work"))
        driver.sync()
    assert held not in driver.answers
    gate(driver, DDL, 1000, hold_ms=0)
    tick(driver)
    assert driver.outcome(held) is Outcome.COMMITTED
    gate(driver)
    late = driver.ask(2, put("b2"), start, parts=1)
    for _ in range(10):
        driver.step(TimerFired("work"))
    driver.now += GATE_HOLD_MS * MS
    tick(driver)
    assert driver.answers[late].code is Code.GATED
    assert not driver.core.gates.large


def test_bounds(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATED_COMMITS", 3)
    monkeypatch.setattr(module, "GATES", 2)
    gate(driver)
    asked = [driver.ask(number, put(f"k{number}"), driver.now) for number in range(4)]
    driver.sync()
    assert [to in driver.answers for to in asked] == [False, False, False, True]
    assert driver.answers[asked[3]].code is Code.GATED
    assert gate(driver, DDL + 1, 1001).code is Code.NONE
    assert gate(driver, DDL + 2, 1002).code is Code.BUSY


def test_failure_and_restart_answer_everybody(driver: Driver) -> None:
    early = driver.step(Gate(5, txid(DDL), (1000,), 0))
    assert isinstance(early[0], Gated)
    gate(driver)
    to = driver.ask(1, put("a"), driver.now)
    driver.step(AppendFailed("disk"))
    assert (driver.answers[to].outcome, driver.answers[to].code) == (Outcome.RETRY, Code.STARTING)
    other = Driver(driver.records, driver.now)
    assert gate(other).code is Code.STARTING
    other.sync()
    assert other.commit(1, put("a")).outcome is Outcome.COMMITTED, "gates are volatile"
