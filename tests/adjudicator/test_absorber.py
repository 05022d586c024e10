"""Who has read a closed journal answers for its transactions (design section 5.6)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from meridian.adjudicator.events import (
    Absorb,
    Absorbed,
    Answer,
    CloseJournal,
    Code,
    Commit,
    Move,
    Outcome,
    Part,
    Status,
)
from meridian.journal.core import Position, Reader
from meridian.journal.record import Record
from meridian.wire.partition import LAST

from .cluster import Cluster, Node, place
from .driver import MS, put


def retire(cluster: Cluster, number: int, target: int) -> None:
    """All its keys go to `target`, then CLOSE."""
    node = cluster.nodes[number]
    for span in node.core.ranges.spans:
        node.step(Move(span.lo, span.hi, target, cluster.map.version + 1))
        cluster.map = cluster.map.moved(span.lo, span.hi, target)
        cluster.settle()
    node.step(CloseJournal())
    cluster.settle()


def absorb(
    target: Node, number: int, records: Sequence[Record], start: Position | None = None
) -> None:
    reader = Reader(start)
    for record in records:
        payload = reader.accept(record)
        if payload is not None:
            target.step(Absorb(number, start or Position(), record, payload))
    target.step(Absorbed(number, reader.position()))


def ask(node: Node, to: int, txid: bytes, tau_start: int) -> Answer:
    node.step(Commit(to, txid, tau_start, 0, 0, 0, put("n")))
    node.step(Status(to + 1, txid, tau_start))
    commit, status = node.answers[to], node.answers[to + 1]
    assert (commit.outcome, commit.tau, commit.code) == (status.outcome, status.tau, status.code)
    return commit


@pytest.fixture
def cluster() -> Cluster:
    return Cluster("m")


def test_the_first_outcome_is_told_by_who_absorbed_it(cluster: Cluster) -> None:
    began = cluster.now
    committed = cluster.commit(1, put("n"))
    conflict = cluster.commit(2, put("n"), began)
    assert conflict.code is Code.CONFLICT
    retire(cluster, 1, 0)
    absorber, records = cluster.nodes[0], cluster.nodes[1].records
    before = ask(absorber, 100, cluster.txid(1, 1), began)
    assert (before.outcome, before.code) == (Outcome.RETRY, Code.LEADER)
    count = len(absorber.records)
    absorb(absorber, 1, records)
    told = ask(absorber, 110, cluster.txid(1, 1), began)
    assert (told.outcome, told.tau) == (Outcome.COMMITTED, committed.tau)
    told = ask(absorber, 120, cluster.txid(2, 1), began)
    assert (told.outcome, told.code) == (Outcome.ABORTED, Code.CONFLICT)
    told = ask(absorber, 130, cluster.txid(3, 1), began)
    assert (told.outcome, told.code) == (Outcome.ABORTED, Code.CLOSED)
    assert len(absorber.records) == count, "nothing is decided: the journal that ended says it all"
    other = ask(absorber, 140, cluster.txid(1, 7), began)
    assert (other.outcome, other.code) == (Outcome.RETRY, Code.LEADER)


def test_chunks_of_another_leader_s_transaction_are_not_taken(cluster: Cluster) -> None:
    retire(cluster, 1, 0)
    absorber = cluster.nodes[0]
    absorb(absorber, 1, cluster.nodes[1].records)
    count = len(absorber.records)
    absorber.step(Part(cluster.txid(5, 1), cluster.now, 0, put("n")))
    absorber.step(Part(cluster.txid(6, 9), cluster.now, 0, put("n")))
    cluster.settle()
    assert len(absorber.records) == count
    assert cluster.commit(7, put("n")).outcome is Outcome.COMMITTED, "its keys are owned here now"


def test_what_was_trimmed_is_unknown_not_aborted(cluster: Cluster) -> None:
    began = cluster.now
    cluster.commit(1, put("n"))
    node = cluster.nodes[1]
    reader = Reader()
    for record in node.records:
        reader.accept(record)
    start, kept = reader.position(), len(node.records)
    late = cluster.commit(2, put("o"))
    retire(cluster, 1, 0)
    absorber = cluster.nodes[0]
    absorb(absorber, 1, node.records[kept:], start)
    assert ask(absorber, 100, cluster.txid(1, 1), began).outcome is Outcome.UNKNOWN
    assert ask(absorber, 110, cluster.txid(2, 1), start.tau).tau == late.tau
    told = ask(absorber, 120, cluster.txid(3, 1), start.tau)
    assert (told.outcome, told.code) == (Outcome.ABORTED, Code.CLOSED)


def test_a_journal_that_can_still_grow_is_not_answered_for(cluster: Cluster) -> None:
    cluster.commit(1, put("n"))
    with pytest.raises(AssertionError):
        absorb(cluster.nodes[0], 1, cluster.nodes[1].records)


def test_a_commit_ahead_of_the_clock_is_not_told_yet(cluster: Cluster) -> None:
    began = cluster.now
    tau = cluster.commit(1, put("n")).tau
    retire(cluster, 1, 0)
    absorb(cluster.nodes[0], 1, cluster.nodes[1].records)
    cluster.now, later = tau - MS, cluster.now
    told = ask(cluster.nodes[0], 100, cluster.txid(1, 1), began)
    assert (told.outcome, told.code) == (Outcome.RETRY, Code.STARTING)
    cluster.now = later
    assert ask(cluster.nodes[0], 110, cluster.txid(1, 1), began).tau == tau


def test_reading_it_twice_changes_nothing(cluster: Cluster) -> None:
    began = cluster.now
    committed = cluster.commit(1, put("n"))
    retire(cluster, 1, 0)
    records = cluster.nodes[1].records
    for _ in range(2):
        absorb(cluster.nodes[0], 1, records)
    assert ask(cluster.nodes[0], 100, cluster.txid(1, 1), began).tau == committed.tau
    assert cluster.nodes[0].core.ranges.covers([(place("m"), LAST)])
