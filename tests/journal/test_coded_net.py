"""What the owner of a coded journal counts durable is what every reader concludes."""

from __future__ import annotations

import pytest

from meridian.journal import core as journal
from meridian.journal.chain import Chain
from meridian.journal.coded import ADOPT, STREAMS, StreamLog, StreamPosition
from meridian.journal.coded_writer import CodedWriter
from meridian.journal.core import JournalError
from meridian.journal.record import Record
from meridian.sim import mutants_coded as mutants
from tests.journal.coded_net import Net
from tests.journal.coded_owner import Kinds

STEPS = 300


@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_what_is_counted_is_what_is_concluded(first: int) -> None:
    durable = 0
    for seed in range(first, first + 100):
        net = Net(seed, Kinds())
        net.run(STEPS)
        durable += len(net.durable)
    assert durable > 300, "too little became durable to prove anything"


# The runs can fail


class CountsBehindRejected(Chain):
    """Goes on behind a message that was refused."""

    def rejected(self, number: int, place: int, generation: int = 0) -> None:
        if self._flying and number == self._flying[0].number and generation == self.generation:
            self._flying.popleft()


class CountsAnyOrder(Chain):
    """Counts an answer before those of older messages."""

    def stored(self, number: int, place: int, generation: int = 0) -> list[list[Record]]:
        found = [one for one in self._flying if one.number == number]
        for one in found:
            self._flying.remove(one)
        return [one.records for one in found]


class NoWitness(CodedWriter):
    """Writes on in a stream that came back, though a higher marker may be gone with its tail."""

    def returned(self, stream: int, end: StreamPosition) -> list[int]:
        self.opened(stream, end)
        return []


MUTANTS: dict[str, tuple[Kinds, int]] = {
    "delivers one copy": (Kinds(reader=mutants.OneCopy), 0),
    "believes one SEAL": (Kinds(reader=mutants.OneSeal), 0),
    "drops what it finds once": (Kinds(reader=mutants.DropsFoundOnce), 0),
    "ignores the highest SEAL": (Kinds(reader=mutants.LowerSeal), 0),
    "fences one stream": (Kinds(reader=mutants.FencesOne), 0),
    "combines any shards": (Kinds(reader=mutants.AnyShards), 0),
    "durable on one": (Kinds(writer=mutants.DurableOnOne), 0),
    "commit before its bodies": (Kinds(writer=mutants.CommitFirst), 0),
    "skips what one other holds": (Kinds(writer=mutants.SkipsFreely), 0),
    "seals what it has not copied": (Kinds(writer=mutants.NoAdoption), 0),
    "trusts a stream that lost": (Kinds(writer=mutants.TrustsOldAnswers), 0),
    "trusts a stream filled up again": (Kinds(chain=mutants.AnyGeneration), 100),
    "counts behind a rejected one": (Kinds(chain=CountsBehindRejected), 0),
    "counts in any order": (Kinds(chain=CountsAnyOrder), 0),
    "no witness": (Kinds(writer=NoWitness), 2600),
}


def _found(kinds: Kinds, first: int) -> int | None:
    for seed in range(first, first + 100):
        try:
            Net(seed, kinds).run(STEPS)
        except (AssertionError, JournalError, KeyError, IndexError):
            return seed
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_found(name: str) -> None:
    assert _found(*MUTANTS[name]) is not None


def test_a_run_of_adopted_records_that_may_not_begin_anew_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Simulation seed 12171."""
    take = StreamLog._take_unsealed

    def once(self: StreamLog, record: Record) -> bool:
        adopting = record.kind == ADOPT and self._adopting
        if adopting and record.n != next(reversed(self._adopting)) + 1:
            return False
        return take(self, record)

    monkeypatch.setattr(StreamLog, "_take_unsealed", once)
    assert _found(Kinds(), 400) is not None


# One by one


def _calm() -> Net:
    net = Net(1, Kinds())
    net.loss = net.doubled = net.shuffled = net.shrinks = 0.0
    net.lag_bytes = 10**9
    return net


@pytest.mark.parametrize("known", [True, False], ids=["opened before", "opened late"])
def test_a_stream_that_came_back_without_a_marker_needs_a_witness(known: bool) -> None:
    """Another owner took over by a marker that is gone: the old one must not go on by it."""
    net = _calm()
    old = net.own()
    for _ in range(3):
        net.round(old, (0, 1, 2) if known else (0, 1))
    old.holds[2].known = 0
    net.flying.clear()
    old.append(journal.Lease(7))
    net.round(old, (1,))
    assert old.durable_n == 1, "its second record is on one stream"
    net.flying.clear()
    new = net.own(2)
    net.flying.clear()
    for streams in ((0, 2), (0, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2)):
        net.round(new, streams)
    assert new.durable_n == 2, "a SEAL that does not know that record"
    lost = net.servers[2]
    while any(record.epoch == new.epoch for record in lost.records()):
        net.shrink(2)
    for _ in range(8):
        net.round(old, (2,))
    assert old.durable_n == 1
    assert all(record.kind != journal.LEASE for record in lost.records()), "nor may it be found"
    for _ in range(8):
        net.round(old, range(STREAMS))
    assert old.dead
    net.run(0)


def test_a_stream_that_came_back_is_written_again_with_a_witness() -> None:
    """No marker was lost: one other stream is enough to prove it."""
    net = _calm()
    owner = net.own()
    for _ in range(3):
        net.round(owner, range(STREAMS))
    owner.append(journal.Lease(7))
    for _ in range(3):
        net.round(owner, range(STREAMS))
    assert [len(server.messages) for server in net.servers] == [3, 3, 3]
    net.servers[2].lose(2)
    owner.append(journal.Lease(8))
    for _ in range(4):
        net.round(owner, (2,))
    assert owner.durable_n == 2
    for _ in range(4):
        net.round(owner, (1, 2))
    assert owner.durable_n == 3
    assert net.servers[2].records()[-1] == owner.told[3]
    net.run(0)
