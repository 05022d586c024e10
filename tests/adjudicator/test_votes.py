"""Transactions over several owners (design 5.3-5.7), by hand."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from meridian.adjudicator.cut import cut, pack
from meridian.adjudicator.events import CatalogKnown, Code, Commit, Heard, Outcome, Part
from meridian.journal.core import Reader
from meridian.journal.record import RecordKind
from meridian.limits import HOLD_NS
from meridian.wire.ops import KIND_INDEX, Create, Op, Put, decode_chunk, encode_chunk
from meridian.wire.votes import Ask, Verdict, Vote

from .cluster import Cluster, Node
from .driver import MS, put, share


@pytest.fixture
def two() -> Cluster:
    return Cluster("m")


def commits(node: Node) -> list[int]:
    return [record.tau for record in node.records if record.kind == RecordKind.COMMIT]


def test_the_whole_transaction_is_one_record_of_the_leader(two: Cluster) -> None:
    answer = two.commit(1, put("a", "z"))
    assert answer.outcome is Outcome.COMMITTED
    assert commits(two.nodes[0]) == [answer.tau] and commits(two.nodes[1]) == []
    assert not two.nodes[1].core.voter.holds


def test_both_owners_remember_the_commit(two: Cluster) -> None:
    start = two.now
    tau = two.commit(1, put("a", "z"), start).tau
    for id_, key in ((2, "a"), (3, "z")):
        assert two.commit(id_, put(key), start).code is Code.CONFLICT
        assert two.commit(id_ + 10, put(key), max(tau, two.now)).outcome is Outcome.COMMITTED


def test_a_conflict_at_a_voter_aborts_for_good(two: Cluster) -> None:
    start = two.now
    two.commit(1, put("z"), start)
    assert two.commit(2, put("a", "z"), start).code is Code.CONFLICT
    assert two.status(2, 0, start).code is Code.CONFLICT
    assert two.commit(3, put("a"), start).outcome is Outcome.COMMITTED, "nothing stays held"


def test_a_conflict_at_the_leader_frees_the_voter(two: Cluster) -> None:
    start = two.now
    two.commit(1, put("a"), start)
    assert two.commit(2, put("a", "z"), start).code is Code.CONFLICT
    assert two.commit(3, put("z"), start).outcome is Outcome.COMMITTED


def test_votes_may_come_before_the_commit(two: Cluster) -> None:
    start = two.now
    leader, to = two.ask(1, put("a", "z"), start)
    (ask,) = [m for _, m in two.sent if isinstance(m, Ask)]
    other = Cluster("m")
    other.sent.append((1, ask))
    other.deliver()
    leader, to = other.ask(1, put("a", "z"), start, attempt=1)
    other.settle()
    assert leader.answers[to].outcome is Outcome.COMMITTED


def test_a_lost_ask_ends_the_attempt_and_the_next_one_commits(two: Cluster) -> None:
    start = two.now
    leader, to = two.ask(1, put("a", "z"), start)
    assert two.deliver(lambda m: not isinstance(m, Ask))
    two.settle(150)
    assert leader.answers[to].code is Code.VOTES
    assert two.commit(1, put("a", "z"), start).outcome is Outcome.COMMITTED


def test_a_lost_go_ahead_counts_as_written_at_tau_max(two: Cluster) -> None:
    start = two.now
    leader, to = two.ask(1, put("a", "z"), start)
    two.deliver()
    two.sync()
    lost = two.deliver(lambda m: not isinstance(m, Verdict))
    assert [m.tau for m in lost if isinstance(m, Verdict)] == [commits(leader)[0]]
    voter = two.nodes[1]
    (hold,) = voter.core.voter.holds
    two.settle(int(HOLD_NS / MS) + 5)
    assert leader.answers[to].outcome is Outcome.COMMITTED
    assert [one.tau for one in voter.expired] == [hold.tau_max]
    assert two.commit(2, put("z"), start).code is Code.CONFLICT
    assert two.commit(3, put("z"), hold.tau_max - 1).code is Code.CONFLICT
    last = two.commit(4, put("z"), hold.tau_max)
    assert last.outcome is Outcome.COMMITTED and last.tau > hold.tau_max


def test_a_vote_that_comes_too_late_is_not_used(two: Cluster) -> None:
    start = two.now
    leader, to = two.ask(1, put("a", "z"), start)
    two.nodes[0].timers.clear()
    (message,) = [m for _, m in two.sent]
    two.sent.clear()
    assert isinstance(message, Ask)

    two.nodes[1].step(Heard(message))
    (vote,) = [m for _, m in two.sent]
    assert isinstance(vote, Vote) and vote.code == 0
    two.sent.clear()
    two.now = vote.tau_max + 1
    two.nodes[0].step(Heard(vote))
    assert leader.answers[to].code is Code.VOTES
    assert commits(leader) == []
    two.nodes[1].fire()
    assert two.nodes[1].expired


def test_tau_commit_exceeds_what_the_voter_said(two: Cluster) -> None:
    two.heartbeat(1, two.now + 50 * MS)
    promised = two.nodes[1].core.ledger.promised
    assert promised >= two.now + 50 * MS
    assert two.commit(1, put("a", "z")).tau > promised


def test_the_older_waits_and_the_younger_is_sent_away(two: Cluster) -> None:
    start = two.now
    two.ask(1, put("a", "z"), start + 5)
    two.deliver(lambda m: isinstance(m, Ask) or not isinstance(m, Vote))
    voter = two.nodes[1]
    assert len(voter.core.voter.holds) == 1
    node, older = two.ask(2, put("z"), start)
    assert older not in node.answers
    node, younger = two.ask(3, put("z"), start + 9)
    assert node.answers[younger].code is Code.HELD
    two.settle(150)
    # The vote was lost: the attempt was given up, and who waited passes.
    assert voter.answers[older].outcome is Outcome.COMMITTED


def test_who_waited_for_a_commit_conflicts_with_it(two: Cluster) -> None:
    start = two.now
    two.ask(1, put("a", "z"), start + 5)
    (to, ask), two.sent[:] = two.sent[0], []
    two.sent.append((to, ask))

    two.nodes[1].step(Heard(two.sent.pop(0)[1]))
    node, older = two.ask(2, put("z"), start)
    assert older not in node.answers
    two.settle()
    assert node.answers[older].code is Code.CONFLICT


def test_mutual_holds_end(two: Cluster) -> None:
    """Two transactions that hold each other's keys: both end, at least one commits."""
    three = Cluster("h", "p")
    start = three.now

    one, to_one = three.ask(1, put("a", "k", "z"), start)
    other, to_other = three.ask(2, put("b", "k", "z"), start + 1)
    asks = {(to, m.txid): m for to, m in three.sent if isinstance(m, Ask)}
    three.sent.clear()
    first, second = one.core.ballots, three.txid(2, 0)
    assert len(first) == 2
    three.nodes[1].step(Heard(asks[1, three.txid(1, 0)]))
    three.nodes[2].step(Heard(asks[2, second]))
    three.nodes[1].step(Heard(asks[1, second]))
    three.nodes[2].step(Heard(asks[2, three.txid(1, 0)]))
    three.settle(100)
    assert one.answers[to_one].outcome is Outcome.COMMITTED
    assert other.answers[to_other].code in (Code.HELD, Code.CONFLICT)
    assert three.commit(2, put("b", "k", "z"), start + 1).code is Code.CONFLICT


def test_shares_over_owners(two: Cluster) -> None:
    """A child here, its parent there: deleting the parent conflicts in either order."""
    start = two.now
    child = encode_chunk(
        [
            *_ops(put("a")),
            *_ops(share("z")),
        ]
    )
    assert two.commit(1, child, start).outcome is Outcome.COMMITTED
    assert two.commit(2, put("z", identity=True), start).code is Code.CONFLICT
    late = two.now
    assert two.commit(3, put("z", identity=True), late).outcome is Outcome.COMMITTED
    assert two.commit(4, child, late).code is Code.CONFLICT
    assert two.commit(5, put("z"), late).code is Code.CONFLICT


def _ops(chunk: bytes) -> list[Op]:

    return decode_chunk(chunk)


def test_the_id_names_the_leader(two: Cluster) -> None:
    node, to = two.ask(1, put("z"), two.now, leader=0)
    two.settle()
    assert node is two.nodes[0]
    assert node.answers[to].outcome is Outcome.COMMITTED, "it leads without owning a key"

    two.nodes[1].step(Commit(99, two.txid(9, 0), two.now, 0, 0, 0, put("z")))
    assert two.nodes[1].answers[99].code is Code.LEADER


def test_other_epochs_are_refused_without_outcome(two: Cluster) -> None:
    start = two.now
    two.ask(1, put("a", "z"), start)
    stale = list(two.sent)
    two.sent.clear()
    two.restart(0)
    for target, ask in stale:
        two.sent.append((target, ask))
    two.settle(20)
    # The vote names the old epoch: the voter is told that this attempt never commits.
    assert not two.nodes[1].core.voter.holds and not two.nodes[1].expired

    commit = Commit(50, two.txid(1, 0), start, 0, 0, 0, put("a", "z"), 2, (1, 7), (1,))
    two.nodes[0].step(commit)
    answer = two.nodes[0].answers[50]
    assert (answer.code, answer.epoch) == (Code.EPOCH, two.nodes[0].core.ledger.epoch)


def test_an_attempt_that_was_given_up_never_comes_back(two: Cluster) -> None:
    start = two.now
    leader, first = two.ask(1, put("a", "z"), start)
    (ask,) = [m for _, m in two.sent]
    two.settle(0)

    two.sent.clear()
    two.nodes[1].step(Heard(ask))
    (vote,) = [m for _, m in two.sent]
    two.sent.clear()
    # Given up for want of the vote; its hold is released; then everything arrives again.
    for _ in range(150):
        two.now += MS
        two.nodes[0].fire()
    assert leader.answers[first].code is Code.VOTES
    two.deliver()
    assert not two.nodes[1].core.voter.holds
    assert two.commit(7, put("z"), start).outcome is Outcome.COMMITTED
    leader, again = two.ask(1, put("a", "z"), start, attempt=1)
    two.sent.clear()
    two.nodes[0].step(Heard(vote))
    two.settle()
    assert leader.answers[again].code is Code.ATTEMPT
    assert len(commits(two.nodes[0])) == 0


def test_an_earlier_commit_after_votes_for_a_later_attempt(two: Cluster) -> None:
    start = two.now
    two.ask(1, put("a", "z"), start, attempt=2)
    (ask,) = [m for _, m in two.sent]
    fresh = Cluster("m")
    fresh.nodes[1].step(Heard(ask))
    fresh.deliver()
    leader, early = fresh.ask(1, put("a", "z"), start, attempt=1)
    assert leader.answers[early].code is Code.ATTEMPT
    fresh.sent.clear()
    leader, late = fresh.ask(1, put("a", "z"), start, attempt=2)
    fresh.settle()
    assert leader.answers[late].outcome is Outcome.COMMITTED


def test_take_over_of_the_leader_keeps_the_outcome(two: Cluster) -> None:
    start = two.now
    two.ask(1, put("a", "z"), start)
    two.deliver()
    node = two.nodes[0]
    tau = commits(node)[0]
    two.sent.clear()
    node.sync()
    two.sent.clear()
    two.restart(0)
    assert two.status(1, 0, start).tau == tau
    two.settle(int(HOLD_NS / MS) + 5)
    assert two.commit(2, put("z"), start).code is Code.CONFLICT
    assert two.commit(3, put("a"), start).code is Code.FLOOR


def test_take_over_of_the_voter_refuses_what_it_may_have_promised(two: Cluster) -> None:
    start = two.now
    two.ask(1, put("a", "z"), start)
    two.deliver(lambda m: not isinstance(m, Verdict))
    lease = two.nodes[1].core.ledger.lease_durable
    two.sent.clear()
    voter = two.restart(1)
    two.settle()
    assert two.nodes[0].core.outcomes.find(two.txid(1, 0), start)
    assert voter.core.window.floor >= lease
    assert two.commit(2, put("z"), start).code is Code.FLOOR
    two.now = lease + 2000 * MS
    assert two.commit(3, put("z")).outcome is Outcome.COMMITTED


def test_a_new_owner_serves_once_it_knows_the_catalog_but_beats_before(two: Cluster) -> None:
    node = two.nodes[1]
    two.commit(1, put("z"))
    node.start()
    node.sync()
    assert node.core.sealed and not node.core.serving
    assert node.wanted
    two.heartbeat(1, two.now)
    assert node.beats

    node.step(CatalogKnown(node.wanted[0], 0))
    assert node.core.serving


def test_a_wrong_place_is_refused_with_the_version_of_the_map(two: Cluster) -> None:

    two.nodes[0].step(Commit(70, two.txid(7, 0), two.now, 0, 0, 0, put("a", "z")))
    answer = two.nodes[0].answers[70]
    assert (answer.outcome, answer.code) == (Outcome.RETRY, Code.PLACE)
    assert answer.version == two.map.version


def test_keys_that_nobody_holds_do_not_commit(two: Cluster) -> None:
    """A voter that was asked for fewer keys than the leader lacks."""
    start = two.now
    leader, to = two.ask(1, put("a", "y", "z"), start)
    (_, ask), two.sent[:] = two.sent[0], []

    assert isinstance(ask, Ask)
    part = cut(put("z"), two.map).part(1)
    fewer = Ask(ask.txid, 1, ask.epoch, start, 0, pack(part.footprint), part.bounds, False)
    two.nodes[1].step(Heard(fewer))
    two.settle()
    assert leader.answers[to].code is Code.PLACE
    assert commits(leader) == []


def test_a_schema_change_needs_the_votes_of_all_owners(two: Cluster) -> None:
    start = two.now
    two.commit(1, put("z"), start)
    version = (5).to_bytes(8, "big")
    log = Put(1, 0, (1, 2), [version], b"catalog!", b"", [(b"d", b"t")])
    index = encode_chunk([Create(2000, KIND_INDEX, [(0, 2)], 1000), log])
    assert two.commit(2, index, start).code is Code.CATALOG, "a row was written over there"
    late = two.now
    assert two.commit(3, index, late).outcome is Outcome.COMMITTED
    assert two.commit(4, put("z"), late).code is Code.CATALOG


def test_a_schema_change_whose_outcome_is_lost_is_read_from_the_catalog(two: Cluster) -> None:

    version = (5).to_bytes(8, "big")
    log = Put(1, 0, (1, 2), [version], b"catalog!", b"", [(b"d", b"t")])
    index = encode_chunk([Create(2000, KIND_INDEX, [(0, 2)], 1000), log])
    for committed in (True, False):
        cluster = Cluster("m")
        start = cluster.now
        cluster.ask(2, index, start)
        cluster.deliver(lambda m: not isinstance(m, Vote))
        voter = cluster.nodes[1]
        cluster.now += HOLD_NS + MS
        voter.fire()
        (tau_max,) = voter.wanted
        assert len(voter.core.voter.holds) == 1
        node, to = cluster.ask(3, put("z"), start - 1)
        assert to not in node.answers, "older: it waits"
        voter.step(CatalogKnown(tau_max, 5 if committed else 4))
        assert not voter.core.voter.holds
        cluster.settle()
        expected = Outcome.ABORTED if committed else Outcome.COMMITTED
        assert node.answers[to].outcome is expected


def test_a_large_transaction_over_owners(two: Cluster) -> None:

    start = two.now
    leader = two.nodes[0]
    txid = two.txid(1, 0)
    chunks = [put("a", "x"), put("b", "y"), put("c")]
    for seq, chunk in enumerate(chunks[:2]):
        leader.step(Part(txid, start, seq, chunk))
    parts = [cut(chunk, two.map).part(1) for chunk in chunks]
    joined = replace(parts[0].footprint, writes=b"".join(part.footprint.writes for part in parts))
    bounds = tuple(bound for part in parts for bound in part.bounds)
    epoch = leader.core.ledger.epoch
    for attempt, asked in ((1, False), (2, True)):
        to = 1000 + attempt
        leader.step(Commit(to, txid, start, 0, 0, 2, chunks[2], attempt, epoch, (1,)))
        if asked:
            ask = Ask(txid, attempt, epoch, start, 0, pack(joined), bounds, False)
            two.sent.append((1, ask))
        two.settle(150)
    assert leader.answers[1001].code is Code.VOTES
    assert leader.answers[1002].outcome is Outcome.COMMITTED
    reader = Reader()
    assert all(reader.accept(record) for record in leader.records), "the checksum is right"
    for id_, key in enumerate("abcxy", 10):
        assert two.commit(id_, put(key), start).code is Code.CONFLICT


def test_a_refusal_that_comes_before_a_large_commit_is_its_end(two: Cluster) -> None:
    """Not a place where keys are missing: it would be asked again for as long as somebody asks."""
    start = two.now
    two.commit(9, put("x"), start)
    leader, txid = two.nodes[0], two.txid(1, 0)
    chunks = [put("a", "x"), put("b")]
    leader.step(Part(txid, start, 0, chunks[0]))
    two.settle()
    part = cut(chunks[0], two.map).part(1)
    epoch = leader.core.ledger.epoch
    two.sent.append((1, Ask(txid, 1, epoch, start, 0, pack(part.footprint), part.bounds, False)))
    two.deliver()
    leader.step(Commit(1001, txid, start, 0, 0, 1, chunks[1], 1, epoch, (1,)))
    two.settle(150)
    assert leader.answers[1001].code is Code.CONFLICT
