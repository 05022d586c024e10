"""Journals that are added and closed while commits go on (design section 4.7)."""

from __future__ import annotations

import pytest

from meridian.adjudicator.events import (
    Added,
    AddJournal,
    Closed,
    CloseJournal,
    Code,
    Outcome,
    Part,
    Status,
    WantHeartbeat,
)
from meridian.journal import core as journal
from meridian.journal.core import JournalError, Position, Reader
from meridian.journal.record import RecordKind
from meridian.limits import LEASE_NS
from tests.adjudicator.driver import MS, START, Driver, put, txid


@pytest.fixture
def zero() -> Driver:
    driver = Driver(number=0)
    driver.sync()
    driver.now += 10
    return driver


def added(driver: Driver, number: int) -> Added:
    driver.step(AddJournal(number))
    driver.settle()
    return next(e for e in driver.effects if isinstance(e, Added) and e.journal == number)


def closed(driver: Driver) -> Closed:
    driver.step(CloseJournal())
    driver.settle()
    return next(effect for effect in driver.effects if isinstance(effect, Closed))


def test_add_is_told_once_durable_and_only_once_recorded(zero: Driver) -> None:
    zero.step(AddJournal(7))
    zero.step(AddJournal(7))
    assert not [effect for effect in zero.effects if isinstance(effect, Added)]
    zero.settle()
    records = [record for record in zero.records if record.kind == RecordKind.ADD]
    assert len(records) == 1
    assert added(zero, 7) == Added(7, records[0].tau)


def test_an_add_is_told_before_serving(zero: Driver) -> None:
    """No read passes the ADD until its journal is opened; a new owner may wait for a read."""
    tau = added(zero, 7).tau
    zero.core.serving = False
    assert zero.step(AddJournal(7)) == [Added(7, tau)]
    assert zero.step(AddJournal(8)) == []


def test_no_heartbeat_reaches_an_add_that_is_not_durable(zero: Driver) -> None:
    zero.step(AddJournal(7))
    tau = zero.records[-1].tau
    zero.step(WantHeartbeat(zero.now + 500 * MS))
    assert zero.beats[-1].tau < tau
    zero.sync()
    assert zero.beats[-1].tau >= zero.now


def test_a_successor_knows_the_members(zero: Driver) -> None:
    first = added(zero, 7)
    successor = Driver(zero.records, zero.now, number=0)
    successor.sync()
    successor.step(AddJournal(7))
    assert successor.effects[-1] == first
    trimmed = Position((5, 5), 100, True, zero.now, zero.now, (7,))
    later = Driver([], zero.now, trimmed, number=0)
    later.sync()
    later.step(AddJournal(7))
    assert later.effects[-1] == Added(7, zero.now), "any tau above its own is as good"


def test_taus_of_a_new_journal_exceed_its_add(zero: Driver) -> None:
    start = Position(tau=added(zero, 7).tau)
    # Its clock is behind that of the owner of journal 0.
    new = Driver([], START - 500 * MS, start, number=7)
    new.sync()
    to = new.ask(1, put("a"), start.tau)
    new.settle()
    new.now = start.tau + 2000 * MS
    new.settle()
    assert new.outcome(to) is Outcome.COMMITTED
    assert new.answers[to].tau > start.tau
    reader = Reader(Position(tau=start.tau + 10**12))
    with pytest.raises(JournalError):
        for record in new.records:
            reader.accept(record)


def test_a_new_journal_has_no_unknown_outcomes(zero: Driver) -> None:
    new = Driver([], START, Position(tau=START + 10), number=7)
    new.sync()
    answer = new.commit(1, put("a"), START - 5)
    assert (answer.outcome, answer.code) == (Outcome.ABORTED, Code.FLOOR)


def test_close_is_the_last_record_and_outcomes_stay(zero: Driver) -> None:
    committed = zero.commit(1, put("a"))
    tau = closed(zero).tau
    assert zero.records[-1].kind == RecordKind.CLOSE and zero.records[-1].tau == tau
    count = len(zero.records)
    answer = zero.commit(2, put("b"))
    assert (answer.outcome, answer.code) == (Outcome.ABORTED, Code.CLOSED)
    assert zero.commit(1, put("a"), START + 10).tau == committed.tau
    zero.step(WantHeartbeat(zero.now + 500 * MS))
    zero.step(Part(txid(9), zero.now, 0, put("x")))
    zero.settle()
    assert len(zero.records) == count
    reader = Reader()
    for record in zero.records:
        assert reader.accept(record) is not None
    assert reader.closed


def test_nothing_is_told_aborted_before_close_is_durable(zero: Driver) -> None:
    zero.step(CloseJournal())
    to = zero.ask(3, put("c"), zero.now)
    assert (zero.answers[to].outcome, zero.answers[to].code) == (Outcome.RETRY, Code.STARTING)


def test_a_successor_of_a_closed_journal_tells_outcomes_and_writes_nothing(zero: Driver) -> None:
    committed = zero.commit(1, put("a"))
    closed(zero)
    successor = Driver(zero.records, zero.now, number=0)
    assert len(successor.records) == len(zero.records)
    successor.step(Status(100, txid(1), START + 10))
    assert successor.answers[100].tau == committed.tau
    successor.step(Status(101, txid(2), START + 10))
    assert successor.answers[101].code is Code.CLOSED
    successor.step(CloseJournal())
    assert successor.effects[-1] == Closed(zero.records[-1].tau)
    successor.step(AddJournal(9))
    successor.step(WantHeartbeat(zero.now))
    assert len(successor.records) == len(zero.records)


def test_close_ends_what_is_open(zero: Driver) -> None:
    zero.step(Part(txid(5), zero.now, 0, put("x")))
    closed(zero)
    kinds = [record.kind for record in zero.records[-3:]]
    assert kinds == [RecordKind.BODY, RecordKind.ABORT, RecordKind.CLOSE]


def test_a_change_waits_for_a_lease_that_reaches_it(zero: Driver) -> None:
    zero.now += 2 * LEASE_NS
    zero.step(AddJournal(7))
    assert zero.records[-1].kind == RecordKind.LEASE
    zero.settle()
    assert any(record.kind == RecordKind.ADD for record in zero.records)
    zero.now += 2 * LEASE_NS
    zero.step(CloseJournal())
    assert zero.records[-1].kind == RecordKind.LEASE
    zero.settle()
    assert isinstance(journal.payload_of(zero.records[-1]), journal.Close)
