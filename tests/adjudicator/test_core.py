"""The adjudicator's rules (design sections 4-6), one test each."""

from __future__ import annotations

import pytest

from meridian.adjudicator.events import (
    Appended,
    AppendFailed,
    Code,
    Discard,
    Fatal,
    Outcome,
    Part,
    Refused,
    SetTimer,
    Status,
    TimerFired,
    WantHeartbeat,
)
from meridian.clock.tau import assigner_of
from meridian.journal import core as journal
from meridian.journal.record import RecordKind
from meridian.wire.ops import (
    BUILDING,
    KIND_INDEX,
    KIND_TABLE,
    Add,
    Create,
    Drop,
    Put,
    encode_chunk,
)
from meridian.wire.reach import ADDITIVE, Reach
from tests.adjudicator.driver import MS, START, Driver, catalog, check, lock, put, share, txid


def test_commit_is_acknowledged_only_when_durable(driver: Driver) -> None:
    to = driver.ask(1, put("a"), driver.now)
    driver.now += 2000 * MS
    driver.step(TimerFired("ack"))
    assert to not in driver.answers
    driver.sync()
    assert driver.outcome(to) is Outcome.COMMITTED
    assert driver.answers[to].tau == driver.records[-1].tau
    assert assigner_of(driver.answers[to].tau) == 1


def test_acknowledgement_waits_until_tau_has_certainly_passed(driver: Driver) -> None:
    driver.error = 5 * MS
    to = driver.ask(1, put("a"), driver.now)
    tau = driver.records[-1].tau
    driver.sync()
    if tau > driver.now - driver.error:
        assert to not in driver.answers
        assert SetTimer("ack", tau) in driver.effects
    driver.now = tau + driver.error - 1
    driver.step(TimerFired("ack"))
    assert to not in driver.answers
    driver.now += 1
    driver.step(TimerFired("ack"))
    assert driver.outcome(to) is Outcome.COMMITTED


def test_write_conflict_has_no_upper_limit(driver: Driver) -> None:
    start = driver.now
    first = driver.ask(1, put("a"), start)
    # The first is in flight and its tau lies ahead of the clock: rule 5.1 counts it all the same.
    second = driver.ask(2, put("a"), start)
    driver.sync()
    driver.now += 2000 * MS
    driver.step(TimerFired("ack"))
    assert driver.outcome(first) is Outcome.COMMITTED
    assert driver.outcome(second) is Outcome.ABORTED
    assert driver.answers[second].code is Code.CONFLICT
    assert driver.commit(3, put("a")).outcome is Outcome.COMMITTED


def test_abort_is_told_only_when_durable(driver: Driver) -> None:
    start = driver.now
    driver.commit(1, put("a"))
    to = driver.ask(2, put("a"), start)
    assert to not in driver.answers
    driver.sync()
    assert driver.outcome(to) is Outcome.ABORTED


@pytest.mark.parametrize("write_first", [True, False])
def test_share_against_key_write_aborts_in_either_order(driver: Driver, write_first: bool) -> None:
    start = driver.now
    chunks = [put("parent", identity=True), share("parent")]
    first, second = chunks if write_first else reversed(chunks)
    assert driver.commit(1, first, start).outcome is Outcome.COMMITTED
    assert driver.commit(2, second, start).outcome is Outcome.ABORTED


def test_shares_pass_each_other_and_writes_of_other_columns(driver: Driver) -> None:
    start = driver.now
    assert driver.commit(1, share("parent"), start).outcome is Outcome.COMMITTED
    assert driver.commit(2, share("parent"), start).outcome is Outcome.COMMITTED
    assert driver.commit(3, put("parent"), start).outcome is Outcome.COMMITTED


def test_a_check_sees_earlier_writes_and_disturbs_no_later_one(driver: Driver) -> None:
    start = driver.now
    assert driver.commit(1, check("a"), start).outcome is Outcome.COMMITTED
    assert driver.commit(2, put("a"), start).outcome is Outcome.COMMITTED
    assert driver.commit(3, check("a"), start).code is Code.CONFLICT
    assert driver.commit(4, check("b"), start).outcome is Outcome.COMMITTED
    again = Driver(driver.records, driver.now)
    again.sync()
    assert again.commit(5, put("b"), start).outcome is Outcome.COMMITTED
    assert again.commit(6, check("a"), start).code is Code.CONFLICT


def test_lock_conflicts_like_a_write(driver: Driver) -> None:
    start = driver.now
    assert driver.commit(1, lock("a"), start).outcome is Outcome.COMMITTED
    assert driver.commit(2, put("a"), start).outcome is Outcome.ABORTED


def test_repeated_commit_gets_its_first_outcome(driver: Driver) -> None:
    start = driver.now
    first = driver.commit(1, put("a"), start)
    again = driver.commit(1, put("a"), start)
    assert (again.outcome, again.tau) == (first.outcome, first.tau)
    lost = driver.commit(2, put("a"), start)
    assert lost.outcome is Outcome.ABORTED
    assert driver.commit(2, put("b"), start).outcome is Outcome.ABORTED


def test_repeated_commit_while_the_first_is_in_flight(driver: Driver) -> None:
    count = len(driver.records)
    first = driver.ask(1, put("a"), driver.now)
    second = driver.ask(1, put("a"), driver.now)
    assert len(driver.records) == count + 1
    driver.settle()
    assert driver.answers[first].tau == driver.answers[second].tau > 0


def test_outcomes_and_conflicts_survive_a_restart(driver: Driver) -> None:
    start = driver.now
    first = driver.commit(1, put("a"), start)
    aborted = driver.commit(2, put("a"), start)
    assert aborted.outcome is Outcome.ABORTED
    other = Driver(driver.records, driver.now)
    other.sync()
    assert other.commit(1, put("a"), start).tau == first.tau
    assert other.commit(2, put("b"), start).outcome is Outcome.ABORTED
    assert other.commit(3, put("a"), start).outcome is Outcome.ABORTED
    assert other.commit(4, put("c"), start).outcome is Outcome.COMMITTED


def test_a_new_owner_commits_above_the_old_lease(driver: Driver) -> None:
    lease = driver.core.ledger.lease_appended
    other = Driver(driver.records, driver.now)
    to = other.ask(1, put("a"), other.now)
    assert other.answers[to].outcome is Outcome.RETRY, "not before the SEAL is durable"
    other.sync()
    assert other.beats[0].tau == lease
    assert other.commit(1, put("a")).tau > lease


def test_a_successor_does_not_acknowledge_before_tau_has_passed_either(driver: Driver) -> None:
    start = driver.now
    lease = driver.core.ledger.lease_durable
    driver.step(WantHeartbeat(driver.now + 900 * MS))
    driver.ask(1, put("a"), start)
    tau = driver.records[-1].tau
    assert start + 900 * MS < tau <= lease
    other = Driver(driver.records, driver.now)
    other.sync()
    to = other.ask(1, put("a"), start)
    again = other.ask(1, put("a"), start)
    other.step(Status(77, txid(1), start))
    assert not other.answers
    assert SetTimer("ack", tau) in other.effects
    other.now = tau
    other.step(TimerFired("ack"))
    assert [other.answers[asked].tau for asked in (to, again, 77)] == [tau] * 3


def test_who_is_asked_for_a_promise_again_shows_that_it_is_the_owner_still(driver: Driver) -> None:
    """One that was fenced while it had nothing to write would repeat its promise for ever."""
    asked = driver.now
    driver.step(WantHeartbeat(asked))
    driver.sync()
    written = len(driver.records)
    driver.step(WantHeartbeat(asked))
    assert len(driver.records) == written, "its lease lasts"
    driver.now = driver.core.ledger.lease_appended + 1
    beats = len(driver.beats)
    driver.step(WantHeartbeat(asked))
    driver.step(WantHeartbeat(asked))
    assert len(driver.beats) == beats + 2
    assert len(driver.records) == written + 1, "once, until the next lease is over"


def test_status_of_an_unknown_transaction_aborts_it(driver: Driver) -> None:
    start = driver.now
    driver.step(Status(99, txid(1), start))
    assert 99 not in driver.answers
    driver.sync()
    assert driver.answers[99].code is Code.RESOLVED
    assert driver.commit(1, put("a"), start).outcome is Outcome.ABORTED
    committed = driver.commit(2, put("a"), start)
    driver.step(Status(100, txid(2), start))
    assert driver.answers[100].tau == committed.tau


def test_tau_start_in_the_future_is_refused_without_outcome(driver: Driver) -> None:
    start = driver.now + 1001 * MS
    to = driver.ask(1, put("a"), start)
    assert (driver.answers[to].outcome, driver.answers[to].code) == (Outcome.RETRY, Code.CLOCK)
    driver.now += 10 * MS
    answer = driver.commit(1, put("a"), start)
    assert answer.outcome is Outcome.COMMITTED
    assert answer.tau > start


def test_a_commit_waits_for_a_durable_lease(driver: Driver) -> None:
    driver.now += 3600 * 1000 * MS
    to = driver.ask(1, put("a"), driver.now)
    assert driver.records[-1].kind == RecordKind.LEASE
    driver.step(Appended(driver.records[-1].n))
    assert driver.records[-1].kind == RecordKind.COMMIT
    driver.settle()
    assert driver.outcome(to) is Outcome.COMMITTED


def test_heartbeat_stays_below_every_commit_not_known_durable(driver: Driver) -> None:
    driver.ask(1, put("a"), driver.now)
    tau = driver.records[-1].tau
    driver.step(WantHeartbeat(tau + 5))
    assert driver.beats[-1].tau < tau
    driver.ask(2, put("b"), driver.now)
    assert driver.records[-1].tau > tau + 5, "what is promised is not assigned any more"
    driver.step(Appended(driver.records[-2].n))
    assert driver.beats[-1].tau >= tau + 5
    assert driver.beats[-1].n == driver.records[-2].n


def test_heartbeat_waits_for_the_lease(driver: Driver) -> None:
    driver.now += 3600 * 1000 * MS
    before = len(driver.beats)
    driver.step(WantHeartbeat(driver.now))
    assert all(beat.tau < driver.now for beat in driver.beats[before:])
    driver.sync()
    assert driver.beats[-1].tau >= driver.now
    assert driver.beats[-1].tau <= driver.core.ledger.lease_durable


def test_heartbeat_beyond_the_maximum_lead_is_not_promised(driver: Driver) -> None:
    driver.step(WantHeartbeat(driver.now + 3600 * 1000 * MS))
    driver.sync()
    assert driver.beats[-1].tau <= driver.now + 1000 * MS


def test_failed_append_is_unknown_never_failed(driver: Driver) -> None:
    to = driver.ask(1, put("a"), driver.now)
    effects = driver.step(AppendFailed("disk"))
    assert driver.outcome(to) is Outcome.UNKNOWN
    assert isinstance(effects[-1], Fatal)
    assert driver.step(Appended(driver.records[-1].n)) == []


def test_malformed_write_set(driver: Driver) -> None:
    assert driver.commit(1, b"\x93").code is Code.MALFORMED
    chunk = encode_chunk([Put(1000, 0, (1,), [b"k"], b"odd", b"", [(1,)])])
    assert driver.commit(2, chunk).code is Code.MALFORMED


def test_schema_change_refuses_older_writers_and_lagging_clients(driver: Driver) -> None:
    start = driver.now
    ddl = catalog(5, Add(1000, 7, 1, None), reach=Reach(ADDITIVE))
    assert driver.commit(1, ddl, start, catver=4).outcome is Outcome.COMMITTED
    assert driver.commit(2, put("a"), start, catver=4).code is Code.CATALOG
    assert driver.commit(3, put("a", sid=1001), start, catver=4).outcome is Outcome.COMMITTED
    assert driver.commit(4, put("a"), catver=4).code is Code.CATALOG
    assert driver.commit(5, put("a"), catver=5).outcome is Outcome.COMMITTED


def test_catalog_versions_before_a_trimmed_journal_still_count(driver: Driver) -> None:
    version = (5).to_bytes(8, "big")
    log = Put(1, 0, (1, 2), [version], b"catalog!", b"", [(b"d", b"t")])
    ddl = encode_chunk([Add(1000, 7, 1, None), log])
    assert driver.commit(1, ddl, catver=4).outcome is Outcome.COMMITTED
    reader = journal.Reader()
    for record in driver.records:
        reader.accept(record)
    other = Driver([], driver.now, reader.position())
    other.sync()
    assert other.commit(2, put("a"), catver=4).code is Code.CATALOG
    assert other.commit(3, put("a"), catver=5).outcome is Outcome.COMMITTED


def test_index_build_and_rewrite_require_no_write_since_tau_start(driver: Driver) -> None:
    start = driver.now
    assert driver.commit(1, put("a"), start).outcome is Outcome.COMMITTED
    index = encode_chunk([Create(2000, KIND_INDEX, [(0, 2)], 1000)])
    rewrite = encode_chunk([Create(2001, KIND_TABLE, [(1, 1)], 0), Drop(1000)])
    assert driver.commit(2, index, start).code is Code.CATALOG
    assert driver.commit(3, rewrite, start).code is Code.CATALOG
    assert driver.commit(4, encode_chunk([Drop(1000)]), start).outcome is Outcome.COMMITTED


def test_a_building_index_requires_only_that_writers_know_it(driver: Driver) -> None:
    start = driver.now
    assert driver.commit(1, put("a"), start).outcome is Outcome.COMMITTED
    building = encode_chunk([Create(2002, KIND_INDEX, [(0, 2)], 1000, BUILDING)])
    assert driver.commit(2, building, start).outcome is Outcome.COMMITTED
    assert driver.commit(3, put("b"), start).code is Code.CATALOG, "it does not know the index"


# Large transactions


def parts(driver: Driver, id_: int, start: int, *chunks: bytes) -> None:
    for seq, chunk in enumerate(chunks):
        driver.step(Part(txid(id_), start, seq, chunk))


def test_large_transaction_is_one_commit_record_after_its_bodies(driver: Driver) -> None:
    start = driver.now
    parts(driver, 1, start, put("a"), put("b"))
    to = driver.ask(1, put("c"), start, parts=2)
    driver.settle()
    assert driver.outcome(to) is Outcome.COMMITTED
    kinds = [record.kind for record in driver.records]
    at = kinds.index(RecordKind.COMMIT)
    assert kinds[at - 2 : at] == [RecordKind.BODY] * 2
    payload = journal.payload_of(driver.records[at])
    assert isinstance(payload, journal.Commit)
    assert payload.bodies == (driver.records[at - 2].n, driver.records[at - 1].n)
    for id_, key in enumerate("abc", 2):
        assert driver.commit(id_, put(key), start).outcome is Outcome.ABORTED
    assert driver.commit(9, put("d"), start).outcome is Outcome.COMMITTED
    # The next owner accepts the journal and refuses the same, by floor.
    other = Driver(driver.records, driver.now)
    other.sync()
    assert other.commit(10, put("b"), start).outcome is Outcome.ABORTED


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_large_transaction_conflicts_whenever_the_other_commits(driver: Driver, when: str) -> None:
    start = driver.now
    if when == "before":
        driver.commit(2, put("b"), start)
    driver.step(Part(txid(1), start, 0, put("a")))
    if when == "between":
        driver.step(TimerFired("work"))
        driver.commit(2, put("b"), start)
    driver.step(Part(txid(1), start, 1, put("b")))
    if when == "after":
        driver.step(TimerFired("work"))
        driver.commit(2, put("b"), start)
    to = driver.ask(1, put("c"), start, parts=2)
    driver.settle()
    assert driver.answers[to].code is Code.CONFLICT


def test_two_large_transactions_conflict(driver: Driver) -> None:
    start = driver.now
    parts(driver, 1, start, put("a"), put("b"))
    parts(driver, 2, start, put("b"), put("c"))
    parts(driver, 3, start, put("x"), put("y"))
    asked = [driver.ask(id_, put(f"z{id_}"), start, parts=2) for id_ in (1, 2, 3)]
    driver.settle()
    outcomes = [driver.outcome(to) for to in asked]
    assert outcomes == [Outcome.COMMITTED, Outcome.ABORTED, Outcome.COMMITTED]


def test_a_conflict_found_while_the_last_keys_are_compared_is_told(driver: Driver) -> None:
    driver.core.window.work_keys = 1
    start = driver.now
    driver.commit(7, put("x"), start)
    driver.step(WantHeartbeat(driver.now))
    driver.sync()
    parts(driver, 1, start, put("a"), put("b"))
    driver.step(TimerFired("work"))
    large = driver.ask(1, put("c"), start, parts=2)
    assert not driver.core._large[txid(1)].draft.ready
    small = driver.ask(2, put("a"), start)
    driver.step(TimerFired("work"))
    assert driver.records[-1].kind == RecordKind.ABORT
    driver.settle()
    assert driver.outcome(small) is Outcome.COMMITTED
    assert driver.answers[large].code is Code.CONFLICT


def test_missing_parts_abort_for_good(driver: Driver) -> None:
    start = driver.now
    driver.step(Part(txid(1), start, 0, put("a")))
    driver.step(Part(txid(1), start, 2, put("c")))
    to = driver.ask(1, put("d"), start, parts=3)
    driver.settle()
    assert driver.answers[to].code is Code.PARTS
    to = driver.ask(2, put("d"), start, parts=1)
    driver.settle()
    assert driver.answers[to].code is Code.PARTS
    assert driver.commit(1, put("d"), start).code is Code.PARTS


def test_a_late_part_of_a_forgotten_transaction_decides_nothing(driver: Driver) -> None:
    start = driver.now
    parts(driver, 1, start, put("a"))
    committed = driver.ask(1, put("b"), start, parts=1)
    driver.settle()
    assert driver.outcome(committed) is Outcome.COMMITTED
    reader = journal.Reader()
    for record in driver.records:
        reader.accept(record)
    other = Driver([], driver.now, reader.position())
    other.sync()
    count = len(other.records)
    parts(other, 1, start, put("a"))
    parts(other, 2, other.now + 3000 * MS, put("a"))
    other.step(TimerFired("work"))
    assert len(other.records) == count
    assert other.commit(1, put("b"), start, parts=1).outcome is Outcome.UNKNOWN


def test_discard_ends_a_large_transaction(driver: Driver) -> None:
    start = driver.now
    parts(driver, 1, start, put("a"))
    assert any(isinstance(effect, Refused) for effect in driver.step(Discard(txid(1))))
    driver.settle()
    assert driver.commit(2, put("a"), start).outcome is Outcome.COMMITTED


def test_start_refuses_what_lies_before_a_trimmed_journal() -> None:
    driver = Driver()
    driver.sync()
    old = driver.now - 5
    driver.core.outcomes.floor = driver.core.window.floor = driver.now
    assert driver.commit(1, put("a"), old).outcome is Outcome.UNKNOWN
    driver.core.outcomes.floor = START - 10**9
    assert driver.commit(1, put("a"), old).code is Code.FLOOR
