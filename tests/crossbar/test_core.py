"""The crossbar's merge, promises and subscribers (design sections 4.6, 4.7, 7)."""

from __future__ import annotations

import random

import pytest

from meridian.clock.tau import TAU_MAX
from meridian.crossbar.core import (
    Accepted,
    AddJournal,
    Beat,
    Body,
    Credit,
    Crossbar,
    CutLoose,
    Deliver,
    Dropped,
    Effect,
    Subscribe,
    Transaction,
)
from meridian.journal import core as journal
from meridian.journal.core import Payload, Position, make

EPOCH = (1, 1)


class Source:
    """Writes the records of one journal."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.n = 0
        self.epoch = EPOCH

    def write(self, payload: Payload, tau: int = 0, txid: bytes = bytes(16)) -> Accepted:
        self.n += 1
        record = make(self.epoch, self.n, payload, tau, txid)
        return Accepted(self.number, [(record, payload)])

    def commit(self, tau: int, chunk: bytes = b"x", bodies: tuple[int, ...] = ()) -> Accepted:
        return self.write(
            journal.Commit(0, 0, 0, 0, bodies, 0, chunk), tau, tau.to_bytes(16, "big")
        )


def crossbar(count: int, credit: int = 10**9, buffer: int = 10**9) -> tuple[Crossbar, list[Source]]:
    bar = Crossbar(buffer)
    sources = [Source(number) for number in range(count)]
    for number in range(count):
        if number:
            add = make(EPOCH, sources[0].n + 1, journal.Add(number), number)
            sources[0].n += 1
            bar.step(Accepted(0, [(add, journal.Add(number))]))
        bar.step(AddJournal(number, Position(EPOCH, 0, True)))
    bar.step(Subscribe(1, 0, credit))
    return bar, sources


def taus(effects: list[Effect]) -> list[int]:
    return [
        item.tau
        for effect in effects
        if isinstance(effect, Deliver)
        for item in effect.items
        if isinstance(item, Transaction)
    ]


def test_one_journal_passes_through() -> None:
    bar, (source,) = crossbar(1)
    effects = bar.step(source.commit(10))
    assert taus(effects) == [10]
    assert isinstance(effects[0], Deliver)
    assert effects[0].tau == 10
    assert effects[0].positions == ((0, 1),)


def test_merge_waits_for_every_journal() -> None:
    bar, (a, b) = crossbar(2)
    assert taus(bar.step(a.commit(30))) == []
    assert taus(bar.step(b.commit(20))) == [20]
    assert bar.lagging(30) == [1]
    effects = bar.step(Beat(1, EPOCH, 1, 35))
    assert taus(effects) == [30]
    assert bar.tau == 30


def test_heartbeat_counts_only_once_its_record_was_read() -> None:
    bar, (a,) = crossbar(1)
    bar.step(Beat(0, EPOCH, 1, 50))
    assert bar.tau == 0
    effects = bar.step(a.commit(10))
    assert taus(effects) == [10]
    assert bar.tau == 50


def test_heartbeat_of_an_older_epoch_is_void() -> None:
    bar, (a,) = crossbar(1)
    a.epoch = (2, 9)
    bar.step(a.write(journal.Marker(1)))
    bar.step(Beat(0, EPOCH, 0, 50))
    assert bar.tau == 0
    bar.step(Beat(0, (2, 9), 1, 60))
    assert bar.tau == 60


def test_a_commit_below_a_promise_is_an_error() -> None:
    bar, (a,) = crossbar(1)
    bar.step(Beat(0, EPOCH, 0, 50))
    with pytest.raises(journal.JournalError):
        bar.step(a.commit(40))


def test_an_added_journal_holds_back_until_it_is_read() -> None:
    bar, (a,) = crossbar(1)
    bar.step(a.write(journal.Add(7), 100))
    bar.step(a.commit(200))
    assert bar.tau == 100
    bar.step(AddJournal(7, Position()))
    late = Source(7)
    effects = bar.step(late.commit(150))
    assert taus(effects) == [150]
    assert taus(bar.step(late.write(journal.Close(), 160))) == [200]
    assert bar.lagging(TAU_MAX) == [0]


def test_slow_subscriber_is_cut_loose_and_holds_nobody_back() -> None:
    bar, (a,) = crossbar(1, credit=100, buffer=4000)
    bar.step(Subscribe(2, 0, 10**9))
    slow, quick = [], []
    cut = False
    for tau in range(1, 200):
        for effect in bar.step(a.commit(tau, b"y" * 50)):
            if isinstance(effect, CutLoose):
                assert effect.subscriber == 1
                cut = True
            else:
                (slow if effect.subscriber == 1 else quick).append(effect)
    assert cut
    assert taus(quick) == list(range(1, 200))
    assert taus(slow) == [1, 2]
    assert bar.backlog_bytes <= 4000
    assert isinstance(bar.step(Subscribe(1, 2, 100))[0], CutLoose)


def test_credit_resumes_a_subscriber() -> None:
    bar, (a,) = crossbar(1, credit=10)
    for tau in range(1, 10):
        bar.step(a.commit(tau, b"y" * 10))
    effects = bar.step(Credit(1, 10))
    assert taus(effects) == [2]
    assert isinstance(effects[0], Deliver)
    assert effects[0].tau == 2
    assert effects[0].positions == ((0, 2),)


def test_bodies_arrive_early_and_are_dropped_with_their_epoch() -> None:
    bar, (a,) = crossbar(1)
    txid = bytes(15) + b"z"
    effects = bar.step(a.write(journal.Body(0, b"chunk"), 0, txid))
    assert isinstance(effects[0], Deliver)
    assert effects[0].items == [Body(txid, 0, 1, 0, b"chunk")]
    a.epoch = (2, 2)
    effects = bar.step(a.write(journal.Marker(1)))
    assert isinstance(effects[0], Deliver)
    assert effects[0].items == [Dropped(txid, 0, 1)]


@pytest.mark.parametrize("seed", range(20))
def test_random_merge_is_the_sorted_union(seed: int) -> None:
    rng = random.Random(seed)
    bar, sources = crossbar(3, credit=rng.choice([20, 10**9]))
    everything: list[int] = []
    got: list[int] = []
    tau = 10
    complete = 0

    def take(effects: list[Effect]) -> None:
        nonlocal complete
        for effect in effects:
            assert isinstance(effect, Deliver)
            got.extend(taus([effect]))
            assert effect.tau >= complete
            complete = effect.tau
            assert got == sorted(got)
            # Complete means: nothing at or below it is missing.
            assert [t for t in everything if t <= complete] == got

    for _ in range(300):
        tau += rng.randint(1, 5)
        source = rng.choice(sources)
        if rng.random() < 0.5:
            everything.append(tau)
            take(bar.step(source.commit(tau)))
        else:
            take(bar.step(Beat(source.number, EPOCH, source.n, tau)))
        if rng.random() < 0.5:
            take(bar.step(Credit(1, rng.randint(1, 20))))
    for source in sources:
        take(bar.step(Beat(source.number, EPOCH, source.n, tau + 1)))
    for _ in range(300):
        take(bar.step(Credit(1, 20)))
    assert got == everything


def test_what_is_read_again_after_a_restart_is_skipped() -> None:
    """The position of a replica's file may lag behind its newest commit: see docs/bugs.md."""
    bar = Crossbar()
    bar.step(AddJournal(0, Position(EPOCH, 3, True, tau=50)))
    bar.step(Subscribe(1, 50, 10**9))
    source = Source(0)
    source.n = 3
    assert taus(bar.step(source.commit(40))) == []
    large = (45).to_bytes(16, "big")
    effects = bar.step(source.write(journal.Body(0, b"chunk"), 0, large))
    assert isinstance(effects[0], Deliver)
    assert effects[0].items == [Body(large, 0, 5, 0, b"chunk")]
    effects = bar.step(source.commit(45, bodies=(5,)))
    assert isinstance(effects[0], Deliver)
    assert effects[0].items == [Dropped(large, 0, 5)], "staged anew, resolved long ago"
    assert taus(bar.step(source.commit(60))) == [60]


def test_a_subscriber_skips_what_it_holds() -> None:
    bar, (a,) = crossbar(1)
    bar.step(Subscribe(2, 45, 10**9))
    large = (45).to_bytes(16, "big")
    effects = bar.step(a.write(journal.Body(0, b"chunk"), 0, large))
    effects += bar.step(a.commit(45, bodies=(1,)))
    effects += bar.step(a.commit(46))
    mine = [e for e in effects if isinstance(e, Deliver) and e.subscriber == 2]
    seen = [item for effect in mine for item in effect.items]
    assert seen[:2] == [Body(large, 0, 1, 0, b"chunk"), Dropped(large, 0, 2)]
    assert taus([*mine]) == [46]


def test_skipped_records_tell_the_epoch() -> None:
    bar = Crossbar()
    bar.step(AddJournal(0, Position(n=1)))
    source = Source(0)
    bar.step(source.write(journal.Marker(0)))
    bar.step(Beat(0, EPOCH, 1, 70))
    assert bar.tau == 70


def test_membership_goes_with_positions() -> None:
    """Who starts from a delivery's positions knows every journal that they lie behind."""
    bar, (a,) = crossbar(1, credit=1)
    bar.step(a.commit(10, b"y" * 10))
    bar.step(a.write(journal.Add(7), 20))
    bar.step(AddJournal(7, Position(tau=20)))
    bar.step(Beat(7, journal.NO_EPOCH, 0, 100))
    for tau in range(30, 35):
        bar.step(a.commit(tau))
    effects = bar.step(Credit(1, 10))
    assert isinstance(effects[0], Deliver)
    assert effects[0].positions == ((0, 3), (7, 0))


def test_members_of_a_position_hold_back() -> None:
    bar = Crossbar()
    bar.step(Subscribe(1, 50, 10**9))
    bar.step(AddJournal(0, Position(EPOCH, 3, True, tau=50, members=(7,))))
    bar.step(Beat(0, EPOCH, 3, 90))
    assert bar.tau == 50
    bar.step(AddJournal(7, Position(tau=50)))
    late = Source(7)
    assert taus(bar.step(late.commit(60))) == [60]


def test_an_add_that_is_read_again_holds_back_too() -> None:
    bar = Crossbar()
    bar.step(AddJournal(0, Position(EPOCH, 3, True, tau=50)))
    source = Source(0)
    source.n = 3
    bar.step(source.write(journal.Add(7), 40))
    bar.step(source.commit(60))
    assert bar.tau == 50


def test_close_ends_open_transactions() -> None:
    bar, (a,) = crossbar(1)
    txid = bytes(15) + b"z"
    bar.step(a.write(journal.Body(0, b"chunk"), 0, txid))
    effects = bar.step(a.write(journal.Close(), 10))
    assert isinstance(effects[0], Deliver)
    assert effects[0].items == [Dropped(txid, 0, 1)]
    assert effects[0].tau == TAU_MAX


def test_a_close_that_is_read_again_is_still_an_infinite_heartbeat() -> None:
    bar = Crossbar()
    bar.step(AddJournal(0, Position(n=1, tau=50)))
    bar.step(Source(0).write(journal.Close(), 40))
    assert bar.tau == TAU_MAX


def test_a_marker_without_a_number_drops_open_transactions_too() -> None:
    """In a shared stream the marker's writer does not know its n: see docs/bugs.md."""
    bar, (a,) = crossbar(1)
    txid = bytes(15) + b"z"
    bar.step(a.write(journal.Body(0, b"chunk"), 0, txid))
    marker = make((2, 2), 0, journal.Marker(1))
    effects = bar.step(Accepted(0, [(marker, journal.Marker(1))]))
    assert isinstance(effects[0], Deliver)
    assert effects[0].items == [Dropped(txid, 0, 1)]


def chunk_of(source: Source, tau_start: int, seq: int = 0) -> Accepted:
    return source.write(journal.Body(seq, b"chunk", tau_start), 0, bytes(15) + b"z")


def items(effects: list[Effect]) -> list[object]:
    return [item for one in effects if isinstance(one, Deliver) for item in one.items]


def test_a_chunk_waits_for_what_other_journals_committed_before_it_began() -> None:
    """It may name a relation whose CREATE lies in another journal (6.3)."""
    bar, (a, b) = crossbar(2)
    bar.step(Beat(0, EPOCH, a.n, 90))
    bar.step(Beat(1, EPOCH, 0, 90))
    assert items(bar.step(chunk_of(b, 100))) == []
    assert items(bar.step(chunk_of(b, 100, 1))) == []
    assert items(bar.step(b.commit(95))) == []
    effects = bar.step(a.commit(98))
    assert taus(effects) == [95]
    assert isinstance(effects[0], Deliver)
    assert dict(effects[0].positions)[1] == 0, "its chunks are not delivered yet"
    effects = bar.step(b.commit(120, bodies=(1, 2)))
    effects += bar.step(Beat(0, EPOCH, a.n, 130))
    kinds = [(type(one).__name__, one.n) for one in items(effects)]  # type: ignore[attr-defined]
    assert kinds == [("Transaction", a.n), ("Body", 1), ("Body", 2), ("Transaction", 4)]
    assert isinstance(effects[-1], Deliver)
    assert dict(effects[-1].positions)[1] == 4


def test_a_chunk_that_waits_is_dropped_with_its_transaction() -> None:
    bar, (_, b) = crossbar(2)
    bar.step(chunk_of(b, 100))
    effects = bar.step(b.write(journal.Abort(0, 0, 1), 0, bytes(15) + b"z"))
    assert items(effects) == [Dropped(bytes(15) + b"z", 1, 1)]


def test_a_chunk_in_the_only_journal_does_not_wait() -> None:
    bar, (a,) = crossbar(1)
    assert len(items(bar.step(chunk_of(a, 100)))) == 1


def test_positions_of_a_restarted_subscriber_never_go_back() -> None:
    """Its file holds five records of each journal; one more commit, of which it has credit for."""
    bar = Crossbar(10**9)
    sources = [Source(0), Source(1)]
    for source in sources:
        bar.step(AddJournal(source.number, Position(EPOCH, 5, True, tau=100)))
        source.n = 5
    bar.step(Subscribe(1, 100, 1))
    effects = [*bar.step(sources[0].write(journal.Lease(500)))]
    effects += bar.step(sources[0].commit(200, b"x" * 10))
    effects += bar.step(sources[0].commit(210, b"x" * 10))
    effects += bar.step(sources[1].commit(300))
    found = [effect.positions for effect in effects if isinstance(effect, Deliver)]
    assert found
    for positions in found:
        assert all(n >= 5 for _, n in positions), positions
