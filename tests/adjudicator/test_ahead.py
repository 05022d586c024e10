"""Keys that voters are sent before they are asked to hold them (design section 5.3)."""

from __future__ import annotations

import msgspec
import pytest

from meridian.adjudicator.cut import Cut, cut, pack
from meridian.adjudicator.events import Answer, Code, Commit, Heard, Outcome
from meridian.limits import CONFLICT_WINDOW_NS
from meridian.wire.votes import Ahead, Ask, Forget, Verdict, Vote

from .cluster import Cluster
from .driver import MS, put


@pytest.fixture
def cluster() -> Cluster:
    return Cluster("m")


def found(cluster: Cluster, *keys: str) -> Cut:
    return cut(put(*keys), cluster.map)


def ahead(cluster: Cluster, txid: bytes, tau: int, seq: int, *keys: str) -> None:
    """The keys of node 1, whose vote is wanted."""
    part = found(cluster, *keys).part(1)
    print_ = part.footprint
    message = Ahead(txid, tau, seq, print_.writes, print_.shares + print_.checks, part.bounds)
    cluster.sent.append((1, message))


def ask(cluster: Cluster, txid: bytes, tau: int, attempt: int, count: int, *keys: str) -> int:
    """COMMIT to node 0 and the question to node 1, which has `count` messages; the asker."""
    cluster._to += 1
    epoch = cluster.nodes[0].core.ledger.epoch
    event = Commit(cluster._to, txid, tau, 0, 0, 0, put(*keys), attempt, epoch, (1,))
    cluster.nodes[0].step(event)
    print_ = found(cluster, *keys).part(1).footprint
    print_ = msgspec.structs.replace(print_, writes=b"", shares=b"", checks=b"")
    cluster.sent.append((1, Ask(txid, attempt, epoch, tau, 0, pack(print_), (), False, count)))
    return cluster._to


def commit(cluster: Cluster, txid: bytes, tau: int, *keys: str) -> Answer:
    for seq, key in enumerate(key for key in keys if key >= "m"):
        ahead(cluster, txid, tau, seq, key)
    count = sum(key >= "m" for key in keys)
    to = ask(cluster, txid, tau, 1, count, *keys)
    cluster.settle()
    return cluster.nodes[0].answers[to]


def test_they_count_as_written_when_it_commits(cluster: Cluster) -> None:
    began = cluster.now
    told = commit(cluster, cluster.txid(1, 0), began, "a", "n", "o", "p")
    assert told.outcome is Outcome.COMMITTED
    assert cluster.commit(2, put("o"), began).code is Code.CONFLICT
    assert cluster.commit(3, put("q"), began).outcome is Outcome.COMMITTED
    assert cluster.commit(4, put("o")).outcome is Outcome.COMMITTED
    assert not cluster.nodes[1].core.voter._sent


def test_what_was_written_before_or_after_they_came_is_a_conflict(cluster: Cluster) -> None:
    began, txid = cluster.now, cluster.txid(1, 0)
    cluster.commit(2, put("n"))
    assert commit(cluster, txid, began, "a", "n").code is Code.CONFLICT
    began, txid = cluster.now, cluster.txid(3, 0)
    ahead(cluster, txid, began, 0, "n")
    cluster.settle()
    cluster.commit(4, put("n"))
    to = ask(cluster, txid, began, 1, 1, "a", "n")
    cluster.settle()
    assert cluster.nodes[0].answers[to].code is Code.CONFLICT


def test_they_are_held_until_the_outcome(cluster: Cluster) -> None:
    began, txid = cluster.now, cluster.txid(1, 0)
    ahead(cluster, txid, began, 0, "n")
    cluster.settle()
    to = ask(cluster, txid, began, 1, 1, "a", "n")
    cluster.deliver(lambda message: not isinstance(message, Vote))
    node, younger = cluster.ask(2, put("n"), cluster.now)
    assert node.answers[younger].code is Code.HELD
    # The promise ends without a verdict: written as far as is known here.
    for _ in range(300):
        cluster.deliver(lambda message: not isinstance(message, Vote | Verdict))
        cluster.nodes[0].fire()
        cluster.nodes[1].fire()
        cluster.now += MS
    assert cluster.nodes[0].answers[to].outcome is Outcome.RETRY
    assert cluster.commit(3, put("n"), began).code is Code.CONFLICT


def test_a_question_that_does_not_match_them_is_asked_again(cluster: Cluster) -> None:
    began, txid = cluster.now, cluster.txid(1, 0)
    ahead(cluster, txid, began, 1, "o")
    to = ask(cluster, txid, began, 1, 2, "a", "n", "o")
    cluster.settle()
    assert cluster.nodes[0].answers[to].code is Code.PARTS
    ahead(cluster, txid, began, 0, "n")
    ahead(cluster, txid, began, 0, "n")
    ahead(cluster, txid, began, 1, "o")
    to = ask(cluster, txid, began, 2, 2, "a", "n", "o")
    cluster.settle()
    assert cluster.nodes[0].answers[to].outcome is Outcome.COMMITTED


def test_keys_that_were_compared_are_compared_again_with_another_large_one(
    cluster: Cluster,
) -> None:
    """Its commit here is a layer to look through, and nobody else wakes the voter (seed 5582)."""
    began, first, second = cluster.now, cluster.txid(1, 0), cluster.txid(2, 0)
    ahead(cluster, first, began, 0, "n")
    ahead(cluster, second, began, 0, "o")
    cluster.settle()
    one = ask(cluster, first, began, 1, 1, "a", "n")
    cluster.settle()
    assert cluster.nodes[0].answers[one].outcome is Outcome.COMMITTED
    other = ask(cluster, second, began, 1, 1, "b", "o")
    cluster.settle()
    assert cluster.nodes[0].answers[other].outcome is Outcome.COMMITTED


def test_a_voter_that_restarts_has_lost_them(cluster: Cluster) -> None:
    began, txid = cluster.now, cluster.txid(1, 0)
    ahead(cluster, txid, began, 0, "n")
    cluster.settle()
    cluster.restart(1)
    to = ask(cluster, txid, began, 1, 1, "a", "n")
    cluster.settle()
    assert cluster.nodes[0].answers[to].code is Code.FLOOR, "it began before the restart"


def test_a_voter_whose_floor_has_passed_them_says_so(cluster: Cluster) -> None:
    """It takes no keys from before its floor: "send them again" would never end."""
    began, txid = cluster.now, cluster.txid(1, 0)
    cluster.commit(2, put("z"))
    cluster.restart(1)
    cluster.settle()
    assert cluster.nodes[1].core.window.floor > began
    assert commit(cluster, txid, began, "a", "n").code is Code.FLOOR


def test_nobody_s_keys_are_forgotten(cluster: Cluster) -> None:
    began, voter = cluster.now, cluster.nodes[1].core.voter
    ahead(cluster, cluster.txid(1, 0), began, 0, "n")
    ahead(cluster, cluster.txid(2, 0), began, 0, "o")
    cluster.settle()
    cluster.nodes[1].step(Heard(Forget(cluster.txid(1, 0))))
    assert list(voter._sent) == [cluster.txid(2, 0)]
    cluster.now += CONFLICT_WINDOW_NS + 1
    cluster.settle()
    assert not voter._sent and not cluster.nodes[1].core.window._drafts


def test_two_large_ones_that_wait_for_each_other_both_end(cluster: Cluster) -> None:
    """Each holds keys of the other's leader; the older one goes first."""
    many = [f"a{n:05}" for n in range(5_000)]
    others = [f"n{n:05}" for n in range(5_000)]
    began = cluster.now
    first = cluster.ask(1, put(*many, "n"), began, leader=0)
    second = cluster.ask(2, put("a", *others), began + 1, leader=1)
    cluster.settle()
    told = [node.answers[to] for node, to in (first, second)]
    assert told[0].outcome is Outcome.COMMITTED
    if told[1].outcome is Outcome.RETRY:
        node, to = cluster.ask(2, put("a", *others), began + 1, leader=1)
        cluster.settle()
        told[1] = node.answers[to]
    assert told[1].outcome is Outcome.COMMITTED
