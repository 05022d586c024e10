"""Ranges that move between owners while commits go on (design 5.8), and the cut of write sets."""

from __future__ import annotations

import random

import pytest

from meridian.adjudicator.cut import cut, owners_of
from meridian.adjudicator.events import (
    CatalogKnown,
    Closed,
    CloseJournal,
    Code,
    Commit,
    Effect,
    Heard,
    Move,
    Moved,
    Outcome,
    Part,
    StillOwner,
    Unmoved,
)
from meridian.adjudicator.footprint import BadWriteSet
from meridian.adjudicator.ranges import Ranges
from meridian.wire.ops import Create, Lock, Put, Share, encode_chunk
from meridian.wire.partition import (
    FIRST,
    LAST,
    NOBODY,
    PartitionMap,
    Place,
    Span,
    covers,
    whole_map,
)
from meridian.wire.votes import Acquired, Ask, Declined, Released

from .cluster import SID, Cluster, place
from .driver import MS, hashes, put, share


def moved(cluster: Cluster, source: int, target: int, lo: Place, hi: Place) -> None:
    """Moves a range and publishes the map."""
    cluster.move(source, target, lo, hi)
    for _ in range(4):
        cluster.sync()
        cluster.deliver()
        for node in cluster.nodes:
            for tau in node.wanted:
                node.step(CatalogKnown(tau, 0))
            node.wanted.clear()
    cluster.map = cluster.map.moved(lo, hi, target)


def test_a_range_moves_and_its_commits_follow() -> None:
    two = Cluster("m")
    start = two.now
    tau = two.commit(1, put("z"), start).tau
    moved(two, 1, 0, place("y"), LAST)
    assert two.nodes[0].core.ranges.floor_max >= tau
    assert two.commit(2, put("z"), start).code is Code.FLOOR, "what it missed it refuses"
    answer = two.commit(3, put("z"))
    assert answer.outcome is Outcome.COMMITTED and answer.tau & 0xFF == 0
    assert two.commit(4, put("n")).tau & 0xFF == 1


def test_the_old_owner_refuses_at_once_even_before_the_record_is_durable() -> None:
    two = Cluster("m")
    two.move(1, 0, place("y"), LAST)
    two.nodes[1].step(Commit(50, two.txid(5, 1), two.now, 0, 0, 0, put("z")))
    answer = two.nodes[1].answers[50]
    assert (answer.code, answer.version) == (Code.PLACE, two.map.version + 1)
    two.settle(3)
    assert two.nodes[1].records[-1].kind != 2


def test_a_release_lies_above_promises() -> None:
    two = Cluster("m")
    start = two.now
    two.ask(1, put("a", "z"), start)
    two.nodes[1].step(Heard(two.sent.pop()[1]))
    (hold,) = two.nodes[1].core.voter.holds
    moved(two, 1, 0, place("y"), LAST)
    assert two.nodes[0].core.ranges.floor_max >= hold.tau_max


def test_a_vote_from_before_a_move_is_not_used_by_the_new_owner() -> None:
    two = Cluster("m")
    start = two.now
    leader, to = two.ask(1, put("a", "z"), start)
    (ask,) = [m for _, m in two.sent if isinstance(m, Ask)]
    two.sent.clear()
    two.nodes[1].step(Heard(ask))
    (vote,) = [m for _, m in two.sent]
    two.sent.clear()
    moved(two, 1, 0, place("y"), LAST)
    floor = two.nodes[0].core.ranges.floor_max
    two.nodes[0].step(Heard(vote))
    two.settle()
    # The key is the leader's own by now, and the vote is for a key that it does not lack.
    assert leader.answers[to].code is Code.PLACE
    assert two.commit(2, put("z"), start).code is Code.FLOOR
    two.settle(250)
    assert two.now > floor
    assert two.commit(3, put("z")).outcome is Outcome.COMMITTED


def test_a_large_transaction_whose_foreign_keys_became_own_is_aborted() -> None:
    two = Cluster("m")
    start = two.now
    leader = two.nodes[0]
    txid = two.txid(1, 0)
    leader.step(Part(txid, start, 0, put("a", "z")))
    moved(two, 1, 0, place("m"), LAST)
    leader.step(Commit(500, txid, start, 0, 0, 1, put("b")))
    two.settle()
    assert leader.answers[500].code is Code.MOVED


def test_messages_of_a_move_may_be_lost_and_doubled() -> None:
    two = Cluster("m")
    two.move(1, 0, place("y"), LAST)
    two.sync()
    two.nodes[1].fire()
    assert two.deliver(lambda m: not isinstance(m, Released))
    two.now += 150 * MS
    two.nodes[1].fire()
    released = [m for _, m in two.sent if isinstance(m, Released)]
    assert released
    two.deliver()
    two.sync()
    assert two.deliver(lambda m: not isinstance(m, Acquired))
    spans = two.nodes[0].core.ranges.spans
    for _ in range(3):
        two.nodes[0].step(Heard(released[0]))
    assert two.nodes[0].core.ranges.spans == spans
    assert [m for _, m in two.sent if isinstance(m, Acquired)]
    two.deliver()
    assert not two.nodes[1].core.ranges.pending


@pytest.mark.parametrize("who", [0, 1])
def test_a_move_survives_take_overs_of_either_side(who: int) -> None:
    two = Cluster("m")
    two.commit(1, put("z"))
    two.move(1, 0, place("y"), LAST)
    two.sync()
    if who == 0:
        two.deliver()
        two.sync()
    two.sent.clear()
    two.restart(who)
    two.settle(250)
    assert two.nodes[0].core.ranges.covers([(place("y"), LAST)])
    assert not two.nodes[1].core.ranges.covers([(place("y"), LAST)])
    two.map = two.map.moved(place("y"), LAST, 0)
    assert two.commit(2, put("z")).tau & 0xFF == 0


def test_one_move_at_a_time_and_asked_again_it_tells() -> None:
    two = Cluster("m")
    two.move(1, 0, place("y"), LAST)
    two.move(1, 0, place("t"), place("u"))
    assert two.nodes[1].core.ranges.covers([(place("t"), place("u"))])
    two.settle(5)
    (told,) = two.nodes[1].step(Move(place("y"), LAST, 0, two.map.version + 1))
    assert isinstance(told, Moved) and told.handover.target == 0


def test_a_merge_leaves_an_owner_without_keys_that_still_answers() -> None:
    two = Cluster("m")
    committed = two.commit(1, put("z"))
    moved(two, 1, 0, place("m"), LAST)
    assert two.nodes[1].core.ranges.spans == ()
    assert two.status(1, 1, two.now).tau == committed.tau
    start = two.now
    leader, to = two.ask(2, put("z"), start, leader=1)
    two.settle()
    assert leader.answers[to].outcome is Outcome.COMMITTED


def test_a_new_owner_without_keys_learns_the_catalog_first() -> None:
    two = Cluster("m")
    moved(two, 1, 0, place("m"), LAST)
    two.move(0, 1, place("m"), LAST)
    two.sync()
    two.deliver()
    assert two.nodes[1].wanted and not two.nodes[1].core.ranges.spans
    (tau,) = two.nodes[1].wanted
    two.nodes[1].step(CatalogKnown(tau, 7))
    two.sync()
    two.deliver()
    two.map = two.map.moved(place("m"), LAST, 1)
    assert two.nodes[1].core.ranges.spans
    stale = Commit(60, two.txid(6, 1), two.now, 6, 0, 0, put("z"))
    two.nodes[1].step(stale)
    two.settle()
    assert two.nodes[1].answers[60].code is Code.CATALOG


# The map and the cut


def test_cuts_agree_with_the_map_key_by_key() -> None:
    rng = random.Random(3)
    for _ in range(200):
        names = sorted({f"{rng.randrange(50):02}" for _ in range(rng.randint(1, 12))})
        map_ = whole_map(0)
        for _ in range(rng.randint(0, 5)):
            lo, hi = sorted(rng.sample(range(60), 2))
            ends = place(f"{lo:02}"), rng.choice([place(f"{hi:02}"), LAST, (SID + 1, b"")])
            map_ = map_.moved(*ends, rng.randrange(4))
        chunk = put(*names, identity=True)
        found = cut(chunk, map_)
        for owner, part in found.parts.items():
            own = [name for name in names if map_.owner(place(name)) == owner]
            both = hashes(*own) + hashes(*own, kind=1)
            assert sorted(_split(part.footprint.writes)) == sorted(_split(both))
            assert part.tally.writes == 2 * len(own)
        assert sum(part.tally.writes for part in found.parts.values()) == 2 * len(names)
        assert owners_of([found], map_) == sorted(found.parts)


def _split(data: bytes) -> list[bytes]:
    return [data[at : at + 8] for at in range(0, len(data), 8)]


def test_moved_maps_merge_neighbours() -> None:
    map_ = whole_map(0).moved(place("c"), place("f"), 1).moved(place("f"), LAST, 1)
    assert map_.starts == (FIRST, place("c")) and map_.owners == (0, 1)
    assert map_.moved(place("c"), LAST, 0) == whole_map(0, 4)
    assert map_.everybody() == [0, 1]


def test_relations_and_schema_are_everywhere_and_blind_keys_nowhere() -> None:
    map_ = PartitionMap(1, (FIRST, place("m")), (0, 1))
    assert cut(encode_chunk([Create(2000, 0, [(1, 1)], 0)]), map_).everywhere
    relation = cut(encode_chunk([Lock(SID, [b""], bytes(8), b"")]), map_)
    assert relation.everywhere and not relation.parts
    assert not cut(share("a"), map_).everywhere
    keys, w = [b"", b"a", b"z"], bytes(8) + hashes("a", "z")
    for op in (Lock(SID, keys, w, b""), Share(SID, keys, w, b"")):
        both = cut(encode_chunk([op]), map_)
        assert both.everywhere and sorted(both.parts) == [0, 1]
        dealt = [
            part.footprint.writes + part.footprint.shares for _, part in sorted(both.parts.items())
        ]
        assert dealt == [hashes("a"), hashes("z")]
    blind = cut(encode_chunk([Put(SID, 2, (1,), [b"a", b"z"], b"", b"", [(1,), (2,)])]), map_)
    assert blind.parts == {} and owners_of([blind], map_) == [0]


def test_hashes_that_are_not_parallel_are_refused() -> None:
    map_ = whole_map(0)
    chunk = encode_chunk([Put(SID, 0, (1,), [b"a", b"b"], bytes(16), bytes(8), [(1,), (2,)])])
    with pytest.raises(BadWriteSet):
        cut(chunk, map_)


def test_ranges_against_a_model() -> None:
    rng = random.Random(5)
    for _ in range(50):
        ranges = Ranges(1, (Span((0, b""), (50, b"")),))
        owned = dict.fromkeys(range(50), 0)
        for step in range(1, 20):
            borders = sorted(rng.sample(range(60), 2 * rng.choice((1, 1, 2, 5))))
            pairs = list(zip(borders[::2], borders[1::2], strict=True))
            parts = [((lo, b""), (hi, b"")) for lo, hi in pairs]
            places = [at for lo, hi in pairs for at in range(lo, hi)]
            assert ranges.covers(parts) == all(at in owned for at in places)
            if all(at not in owned for at in places):
                ranges.acquire(parts, step)
                owned.update(dict.fromkeys(places, step))
            else:
                ranges.release(parts)
                for at in places:
                    owned.pop(at, None)
        for _ in range(100):
            first, last = sorted((rng.randrange(60), rng.randrange(60)))
            found = ranges.floor([(first, b"", b""), (last, b"k", b"z")])
            both = [owned.get(first), owned.get(last)]
            assert found == (None if None in both else max(both))  # type: ignore[type-var]
            assert (ranges.map.owner((first, b"k")) == 1) == (first in owned)
        assert ranges.map.owner((70, b"")) == NOBODY


def test_coverage() -> None:
    assert covers([Span((5, b""), LAST), Span(FIRST, (5, b""))])
    assert not covers([Span((5, b"a"), LAST), Span(FIRST, (5, b""))])
    assert not covers([])


def closing(cluster: Cluster, number: int) -> list[Effect]:
    """CloseJournal, asked again after everything is durable."""
    node = cluster.nodes[number]
    first = node.step(CloseJournal())
    cluster.settle(3)
    return [*first, *node.step(CloseJournal())]


def test_an_owner_of_ranges_does_not_close() -> None:
    two = Cluster("m")
    assert {type(effect) for effect in closing(two, 1)} == {StillOwner}
    two.move(1, 0, place("m"), LAST)
    assert isinstance(closing(two, 1)[0], StillOwner), "nobody has acquired it yet"
    two.settle()
    assert isinstance(closing(two, 1)[-1], Closed)
    assert two.nodes[1].core.membership.closed_tau


def test_who_waits_for_the_catalog_of_a_range_does_not_close() -> None:
    two = Cluster("m")
    moved(two, 1, 0, place("m"), LAST)
    two.move(0, 1, place("q"), LAST)
    two.nodes[0].sync()
    two.deliver()
    assert two.nodes[1].wanted, "it reads the catalog before it acquires"
    assert {type(effect) for effect in closing(two, 1)} == {StillOwner}


def test_a_range_for_a_journal_that_ended_comes_back() -> None:
    two = Cluster("m")
    moved(two, 1, 0, place("m"), LAST)
    assert isinstance(closing(two, 1)[-1], Closed)
    two.move(0, 1, place("q"), LAST)
    zero = two.nodes[0]
    zero.sync()
    (released,) = [one.handover for _, one in two.sent if isinstance(one, Released)]
    two.deliver()
    assert zero.core.ranges.covers([(place("q"), LAST)]) and not zero.core.ranges.pending
    zero.sync()
    version = two.map.version + 1
    assert zero.step(Move(place("q"), LAST, 1, version)) == [Unmoved(version)]
    assert zero.core.ranges.floor_max == released.tau_m
    assert two.commit(8, put("z")).outcome is Outcome.COMMITTED
    two.restart(0)
    assert zero.core.ranges.covers([(place("q"), LAST)]), "its journal says so"


def test_a_move_before_the_end_of_the_journal_is_told_after_it_too() -> None:
    """Whoever ordered it missed the first answer: nothing else would ever tell it."""
    two = Cluster("m")
    moved(two, 1, 0, place("m"), LAST)
    version = two.map.version
    order = Move(place("m"), LAST, 0, version)
    assert isinstance(closing(two, 1)[-1], Closed)
    (told,) = two.nodes[1].step(order)
    assert isinstance(told, Moved) and told.handover.target == 0
    assert two.nodes[1].step(Move(place("m"), LAST, 0, version + 1)) == []


def test_only_the_end_of_the_journal_declines_a_range() -> None:
    """A CLOSE that is not durable may never have been: the range could be acquired after all."""
    two = Cluster("m")
    moved(two, 1, 0, place("m"), LAST)
    two.nodes[1].step(CloseJournal())
    two.move(0, 1, place("q"), LAST)
    two.nodes[0].sync()
    two.deliver()
    assert two.nodes[0].core.ranges.pending
    stale = Declined(1, 1)
    assert two.nodes[0].step(Heard(stale)) == [] and two.nodes[0].core.ranges.pending


def test_a_voter_that_ends_says_that_the_map_is_old() -> None:
    two = Cluster("m")
    old = two.map
    moved(two, 1, 0, place("m"), LAST)
    assert isinstance(closing(two, 1)[-1], Closed)
    two.map, version = old, two.map.version
    answer = two.commit(9, put("a", "z"))
    assert (answer.code, answer.version) == (Code.PLACE, version)


def test_a_deposed_owner_does_not_take_what_it_believes_to_own() -> None:
    """Its successor gave the range away and gets it back; the old one has slept through it all."""
    two = Cluster("m")
    zero, stale = two.nodes[0], two.nodes[0].core
    two.restart(0)
    moved(two, 0, 1, place("c"), place("m"))
    two.move(1, 0, place("c"), place("m"))
    two.nodes[1].sync()
    (released,) = [one for _, one in two.sent if isinstance(one, Released)]
    zero.core = stale
    assert zero.step(Heard(released)) == []


def test_a_new_owner_of_an_ended_journal_still_says_that_a_range_has_moved() -> None:
    two = Cluster("m")
    version = two.map.version + 1
    moved(two, 1, 0, place("m"), LAST)
    assert isinstance(closing(two, 1)[-1], Closed)
    two.nodes[1].start()
    (told,) = two.nodes[1].step(Move(place("m"), LAST, 0, version))
    assert isinstance(told, Moved)
