"""Coded journals: the rules of design sections 6.4 and 6.5, one by one and at random."""

from __future__ import annotations

from random import Random

import pytest

from meridian.journal import core as journal
from meridian.journal.coded import StreamLog, StreamPosition, body_of, shard_of, shards_of
from meridian.journal.coded_reader import Adoption, CodedPosition, CodedReader
from meridian.journal.coded_writer import CodedWriter
from meridian.journal.core import JournalError, Reader, make
from meridian.journal.places import Place, Places, later
from meridian.journal.record import Record
from meridian.sim import mutants_coded as mutants
from tests.journal.three_streams import LEASE, Owner, Stream, accept

ONE, TWO, THREE = (1, 11), (2, 22), (3, 33)
TXID = b"t" * 16
Kinds = tuple[type[CodedReader], type[CodedWriter]]


def body(n: int, chunk: bytes, epoch: tuple[int, int] = ONE, seq: int = 0) -> Record:
    return make(epoch, n, journal.Body(seq, chunk), txid=TXID)


def lease(n: int, epoch: tuple[int, int] = ONE, until: int = LEASE) -> Record:
    return make(epoch, n, journal.Lease(until))


def begun(epoch: tuple[int, int] = ONE, base: int = 0, prior: tuple[int, int] = (0, 0)) -> list:
    seal = journal.Seal(LEASE, LEASE, base, prior)
    return [make(epoch, 0, journal.Marker(0)), make(epoch, base + 1, seal)]


def opened(*streams: int) -> CodedReader:
    reader = CodedReader()
    for stream in streams or (0, 1, 2):
        reader.take(stream, begun())
    reader.ready()
    return reader


def ns(records: list[Record]) -> list[int]:
    return [record.n for record in records]


# Shards


@pytest.mark.parametrize("size", [0, 1, 2, 3, 10, 1001])
def test_any_two_shards_give_the_body(size: int) -> None:
    record = body(7, Random(size).randbytes(size))
    parts = shards_of(record)
    for left in range(3):
        assert body_of([parts[left]]) is None
        for right in range(3):
            if left != right:
                assert body_of([parts[left], parts[right]]) == record


def test_parity_goes_round() -> None:
    indexes = [[shard_of(one).index for one in shards_of(body(n, b"ab"))] for n in range(3)]
    assert indexes == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]


def test_shards_of_other_epochs_or_bodies_do_not_combine() -> None:
    mine, other = shards_of(body(7, b"abcd")), shards_of(body(7, b"wxyz"))
    deposed = shards_of(body(7, b"abcd", TWO))
    elsewhere = shards_of(body(10, b"abcd"))
    for wrong in (other, deposed, elsewhere):
        assert body_of([mine[0], wrong[1]]) is None
    assert body_of([mine[0], other[1], mine[2]]) == body(7, b"abcd")


def test_a_damaged_shard_is_outvoted() -> None:
    parts = shards_of(body(7, b"abcdef"))
    payload = bytearray(parts[1].payload)
    payload[-1] ^= 1
    bad = parts[1]._replace(payload=bytes(payload))
    assert body_of([parts[0], bad]) is None
    assert body_of([parts[0], bad, parts[2]]) == body(7, b"abcdef")


# One stream


def test_what_follows_a_gap_is_void_and_skip_closes_one() -> None:
    log = StreamLog()
    for record in begun():
        assert log.accept(record)
    assert not log.accept(lease(3))
    assert log.accept(lease(2))
    assert not log.accept(make(ONE, 5, journal.Skip(4))), "3 is missing"
    assert log.accept(make(ONE, 5, journal.Skip(3)))
    assert log.accept(lease(6))
    assert (log.n, log.void_count) == (6, 2)


def test_a_seal_without_what_it_adopted_is_void() -> None:
    log = StreamLog()
    log.accept(make(TWO, 0, journal.Marker(0)))
    assert not log.accept(make(TWO, 9, journal.Seal(LEASE, LEASE, base=7)))
    assert not log.accept(lease(10, TWO))


def test_what_a_seal_adopts_may_be_sent_again_from_the_first_one() -> None:
    """The first ones did not arrive, those behind them did; then the owner sends all again."""
    old = [lease(n) for n in (2, 3, 4)]
    marker, *run, seal = _taken_over(TWO, 1, ONE, *old)
    log = StreamLog()
    assert log.accept(marker) and [log.accept(one) for one in run[1:]] == [True, True]
    assert not log.accept(seal)
    assert not log.accept(marker)
    assert all(log.accept(one) for one in (*run, seal, lease(6, TWO)))
    assert log.n == 6


# Delivery


def test_two_valid_copies_deliver() -> None:
    reader = opened()
    reader.take(0, [lease(2)])
    assert reader.ready() == []
    reader.take(2, [lease(2)])
    assert ns(reader.ready()) == [2]


def test_a_covering_heartbeat_delivers_one_copy() -> None:
    reader = opened()
    reader.take(0, [lease(2), lease(3)])
    reader.cover(TWO, 3)
    assert reader.ready() == []
    reader.cover(ONE, 2)
    assert ns(reader.ready()) == [2]


def test_a_heartbeat_does_not_replace_a_shard() -> None:
    reader = opened()
    reader.take(0, [shards_of(body(2, b"abc"))[0]])
    reader.cover(ONE, 2)
    assert reader.ready() == []
    reader.take(1, [shards_of(body(2, b"abc"))[1]])
    assert reader.ready() == [body(2, b"abc")]


def test_a_skip_proves_that_the_others_hold_it() -> None:
    reader = opened()
    reader.take(0, [lease(2), lease(3)])
    reader.take(1, [make(ONE, 2, journal.Skip(2))])
    assert ns(reader.ready()) == [2]


def test_a_seal_found_once_delivers_nothing() -> None:
    reader = opened()
    reader.take(0, [lease(2)])
    reader.take(1, [*_taken_over(TWO, 1, ONE, lease(2))])
    assert reader.ready() == []
    reader.take(2, [*_taken_over(TWO, 1, ONE, lease(2))])
    assert ns(reader.ready()) == [2, 0, 3]
    assert reader.epoch == TWO


def _taken_over(
    epoch: tuple[int, int], base: int, prior: tuple[int, int], *records: Record
) -> list[Record]:
    writer = CodedWriter(epoch, Adoption(base, prior, tuple(records)))
    n = base + len(records) + 1
    writer.append(make(epoch, n, journal.Seal(LEASE, LEASE)))
    writer.opened(0, StreamPosition(epoch=epoch))
    return [make(epoch, 0, journal.Marker(0)), *writer.take(0, 1000)]


def test_older_records_outside_the_highest_seal_stay_void() -> None:
    reader = opened()
    reader.take(2, [lease(2), lease(3)])
    for stream in (0, 1):
        reader.take(stream, _taken_over(TWO, 1, ONE))
    assert ns(reader.ready()) == [0, 2]
    reader.take(0, [lease(3, TWO, LEASE + 1)])
    assert reader.ready() == [], "the third stream has another record 3"
    reader.take(1, [lease(3, TWO, LEASE + 1)])
    assert reader.ready() == [lease(3, TWO, LEASE + 1)]


def test_a_durable_seal_proves_what_lies_below_its_base() -> None:
    reader = opened()
    reader.take(0, [lease(2), lease(3)])
    for stream in (1, 2):
        reader.take(stream, _taken_over(TWO, 3, ONE))
    assert ns(reader.ready()) == [2, 3, 0, 4]


def test_copies_that_differ_are_damage() -> None:
    reader = opened()
    reader.take(0, [lease(2)])
    reader.take(1, [lease(2, until=LEASE + 1)])
    with pytest.raises(JournalError):
        reader.ready()


def test_a_seal_that_forgets_a_durable_record_is_an_error() -> None:
    reader = opened()
    for stream in (0, 1):
        reader.take(stream, [lease(2)])
    reader.ready()
    for stream in (0, 1):
        reader.take(stream, _taken_over(TWO, 1, ONE))
    with pytest.raises(JournalError, match="forgets"):
        reader.ready()


# Take-over


def test_a_record_found_once_is_adopted_up_to_the_first_gap() -> None:
    reader = opened()
    reader.take(0, [lease(2), lease(3)])
    reader.take(1, [])
    reader.ready()
    found = reader.adopt((0, 1))
    assert found == Adoption(1, ONE, (lease(2), lease(3)))


def test_records_of_the_stream_that_is_not_fenced_do_not_count() -> None:
    reader = opened()
    reader.take(2, [lease(2)])
    reader.ready()
    found = reader.adopt((0, 1))
    assert found is not None and found.records == ()


def test_the_highest_seal_rules_even_if_found_once() -> None:
    reader = opened()
    reader.take(0, [lease(2), lease(3)])
    reader.take(1, _taken_over(TWO, 1, ONE, lease(2)))
    reader.ready()
    found = reader.adopt((0, 1))
    assert found is not None and (found.base, found.prior) == (1, ONE)
    assert [(one.n, one.epoch) for one in found.records] == [(2, ONE), (3, TWO)]


def test_bodies_without_commit_are_dropped_and_with_one_needed() -> None:
    reader = opened()
    parts = shards_of(body(2, b"abc"))
    reader.take(0, [parts[0]])
    reader.ready()
    found = reader.adopt((0, 1))
    assert found is not None and found.records[0].kind == journal.SKIP
    reader = opened()
    commit = make(ONE, 3, journal.Commit(LEASE, 0, 0, 0, (2,), 0, b""), 5, TXID)
    reader.take(0, [parts[0], commit])
    reader.ready()
    assert reader.adopt((0, 1)) is None, "its other shard is on the third stream"
    reader.take(2, [parts[2]])
    assert reader.ready() == [body(2, b"abc")]
    found = reader.adopt((0, 1))
    assert found is not None and found.records == (commit,)


# Writer


def writing(**options: int) -> CodedWriter:
    writer = CodedWriter(ONE, Adoption(0, (0, 0), ()), **options)
    writer.append(make(ONE, 1, journal.Seal(0, LEASE)))
    for stream in range(3):
        assert writer.opened(stream, StreamPosition(epoch=ONE))
    return writer


def push(writer: CodedWriter, stream: int) -> list[Record]:
    batch = writer.take(stream, 10**6)
    writer.stored(stream, len(batch))
    return batch


def test_durable_is_valid_on_two() -> None:
    writer = writing()
    push(writer, 0)
    assert writer.durable_n == 0
    push(writer, 2)
    assert writer.durable_n == 1


def test_a_commit_follows_bodies_that_are_durable() -> None:
    writer = writing()
    writer.append(body(2, b"abc"))
    writer.append(make(ONE, 3, journal.Commit(LEASE, 0, 0, 0, (2,), 0, b""), 5, TXID))
    writer.append(lease(4))
    assert ns(push(writer, 0)) == [1, 2]
    assert push(writer, 0) == []
    assert ns(push(writer, 1)) == [1, 2]
    assert ns(push(writer, 1)) == [3, 4]
    assert writer.durable_n == 2
    push(writer, 0)
    assert writer.durable_n == 4


def test_a_stream_that_lags_skips_only_what_both_others_hold() -> None:
    writer = writing(lag_bytes=0)
    for n in range(2, 6):
        writer.append(lease(n))
    push(writer, 0)
    assert ns(push(writer, 2)[:2]) == [1, 2], "only one other held them"
    writer = writing(lag_bytes=0)
    push(writer, 2)
    for n in range(2, 6):
        writer.append(lease(n))
    push(writer, 0)
    push(writer, 1)
    writer.append(lease(6))
    batch = push(writer, 2)
    assert [(one.n, one.kind) for one in batch] == [(5, journal.SKIP), (6, journal.LEASE)]
    assert journal.payload_of(batch[0]) == journal.Skip(2)


def test_a_stream_that_lost_its_tail_is_repaired() -> None:
    writer = writing()
    logs = [StreamLog() for _ in range(3)]
    for log in logs:
        log.accept(make(ONE, 0, journal.Marker(0)))
    for n in range(2, 6):
        writer.append(lease(n))
    for stream in range(3):
        for record in push(writer, stream):
            assert logs[stream].accept(record)
    writer.append(lease(6))
    push(writer, 0)
    push(writer, 1)
    # Stream 1 comes back with less; 6 is only in stream 0 and the writer's memory.
    assert writer.opened(1, StreamPosition(3, ONE, 3, True))
    batch = push(writer, 1)
    assert [(one.n, one.kind) for one in batch] == [(5, journal.SKIP), (6, journal.LEASE)]
    # It lost its marker too and was claimed again.
    assert writer.opened(1, StreamPosition(1, ONE, 0, False))
    kinds = [(one.n, one.kind) for one in push(writer, 1)]
    assert kinds == [(1, journal.SEAL), (5, journal.SKIP), (6, journal.LEASE)]


def test_what_a_stream_holds_without_an_answer_counts_once_it_is_read() -> None:
    """Nothing follows a commit record that waits, so no other answer would release it."""
    writer = writing()
    writer.append(body(2, b"abc"))
    writer.append(make(ONE, 3, journal.Commit(LEASE, 0, 0, 0, (2,), 0, b""), 5, TXID))
    push(writer, 0)
    assert ns(writer.take(1, 10**6)) == [1, 2]
    writer.closed(1)
    assert writer.opened(1, StreamPosition(4, ONE, 2, True))
    assert writer.durable_n == 2
    assert ns(push(writer, 0)) == [3]


def test_a_stream_that_cannot_be_repaired_stays_out() -> None:
    writer = writing(lag_bytes=0)
    for n in range(2, 6):
        writer.append(lease(n))
    push(writer, 0)
    push(writer, 1)
    assert not writer.opened(1, StreamPosition(3, ONE, 3, True)), "only stream 0 holds 4 and 5"
    assert writer.take(1, 1000) == []


def test_two_fenced_streams_end_the_epoch() -> None:
    writer = writing()
    writer.fenced(1)
    assert not writer.dead
    writer.fenced(0)
    assert writer.dead


# At random


class World:
    """Owners come and go, streams stall, readers lag; all from one seed."""

    def __init__(self, seed: int, kinds: Kinds) -> None:
        self.random = Random(seed)
        self.kinds = kinds
        self.streams = [Stream() for _ in range(3)]
        self.owners: list[Owner] = []
        self.durable: list[Record] = []
        self.readers = [CodedReader() for _ in range(3)] + [kinds[0]()]
        self.got: list[list[Record]] = [[] for _ in self.readers]
        self.at = [[0, 0, 0] for _ in self.readers]
        self.place = Place()
        self.places = [Places() for _ in self.readers]
        self.through: dict[int, list[Record]] = {}
        """What a checkpoint through n holds, as records."""
        self.lag_bytes = self.random.choice((0, 100, 10**9))

    def run(self, steps: int = 250) -> None:
        for _ in range(steps):
            self.step()
        for stream in self.streams:
            stream.stalled = False
        self.own(unique=True)
        assert self.owners[-1].writer is not None, "nobody can take over"
        for _ in range(60):
            for stream in range(3):
                self.owners[-1].send(stream)
        for index in range(len(self.readers)):
            for stream in range(3):
                self.read(index, stream, 10**9)
        self.check()

    def step(self) -> None:
        random = self.random
        dice = random.random()
        if not self.owners or dice < 0.03:
            self.own()
        elif dice < 0.06:
            random.choice(self.streams).stalled ^= True
            if sum(stream.stalled for stream in self.streams) > 1:
                for stream in self.streams:
                    stream.stalled = False
        elif dice < 0.2:
            random.choice(self.owners[-2:]).work()
        elif dice < 0.7:
            owner = random.choice(self.owners[-3:])
            owner.send(random.randrange(3))
            self.durable += owner.durable
        elif dice < 0.93:
            self.read(random.randrange(len(self.readers)), random.randrange(3), 8)
        elif dice < 0.95:
            self.beat()
        elif dice < 0.97:
            self.restart()
        else:
            self.cut()

    def own(self, *, unique: bool = False) -> None:
        number = 1 + max((owner.epoch[0] for owner in self.owners), default=0)
        if not unique and self.random.random() < 0.2 and number > 2:
            number -= self.random.randint(0, 1)
        epoch = (number, self.random.getrandbits(30))
        owner = Owner(
            self.streams, epoch, self.random, self.lag_bytes, self.kinds, lambda: self.place
        )
        self.owners.append(owner)

    def read(self, index: int, stream: int, count: int) -> None:
        if self.streams[stream].stalled:
            return
        at = self.at[index][stream]
        part = self.streams[stream].records[at : at + self.random.randint(0, count)]
        if count > 100:
            part = self.streams[stream].records[at:]
        self.at[index][stream] += len(part)
        self.readers[index].take(stream, part)
        self.got[index] += self.readers[index].ready()
        self.note(index)

    def note(self, index: int) -> None:
        core = Reader()
        for record in self.got[index]:
            accept(core, record)
        self.places[index].note(core, self.readers[index].position(), (0, 0, 0))
        self.through[core.n] = list(self.got[index])

    def cut(self) -> None:
        """The journal begins where some reader stood; who has not got that far, starts there."""
        index = self.random.randrange(len(self.readers) - 1)
        newest = max(self.through, default=0)
        place = self.places[index].newest(newest - self.random.randint(0, 3))
        if place is None or place.history.n <= self.place.history.n:
            return
        self.place = later(self.place, place)
        starts = [one.index for one in self.place.streams.streams]
        for stream, start in zip(self.streams, starts, strict=True):
            stream.records[:start] = [None] * start  # type: ignore[list-item]
        for number in range(len(self.readers)):
            self.follow_cut(number)

    def follow_cut(self, number: int) -> None:
        """A reader of what is not there any more begins with the checkpoint."""
        starts = [one.index for one in self.place.streams.streams]
        if any(at < start for at, start in zip(self.at[number], starts, strict=True)):
            self.readers[number] = type(self.readers[number])(self.place.streams)
            self.at[number] = list(starts)
            self.got[number] = list(self.through[self.place.history.n])
            self.places[number] = Places()

    def beat(self) -> None:
        owner = self.random.choice(self.owners[-2:])
        if owner.writer is not None and owner.writer.durable_n:
            reader = self.random.randrange(len(self.readers))
            self.readers[reader].cover(owner.epoch, owner.writer.durable_n)
            self.got[reader] += self.readers[reader].ready()

    def restart(self) -> None:
        """A reader goes on from its position."""
        index = self.random.randrange(len(self.readers) - 1)
        position = self.readers[index].position()
        self.readers[index] = CodedReader(position)
        self.at[index] = [stream.index for stream in position.streams]
        self.follow_cut(index)

    def check(self) -> None:
        histories = []
        for got in self.got:
            core = Reader()
            accepted: dict[int, Record] = {}
            open_: dict[bytes, list[int]] = {}
            for record in got:
                if record.epoch > core.epoch:
                    open_ = {}
                if record.kind == journal.EPOCH:
                    core.accept(record)
                    continue
                assert accept(core, record), record
                if record.kind == journal.BODY:
                    open_.setdefault(record.txid, []).append(record.n)
                elif record.kind == journal.COMMIT:
                    open_.pop(record.txid, None)
                accepted[record.n] = record
            histories.append(accepted)
        for history in histories:
            for n, record in histories[0].items():
                mine = history.get(n)
                assert mine is not None, "all read to the end"
                void = {mine.kind, record.kind} == {journal.BODY, journal.SKIP}
                assert mine == record or void or _same_seal(mine, record)
        for record in self.durable:
            found = histories[0].get(record.n)
            assert found is not None, "what was durable is lost"
            lost = found.kind == journal.SKIP and record.kind == journal.BODY
            assert found == record or lost or _same_seal(found, record)


def _same_seal(one: Record, other: Record) -> bool:
    return one.kind == other.kind == journal.SEAL and one.epoch == other.epoch


@pytest.mark.parametrize("seed", range(300))
def test_at_random(seed: int) -> None:
    World(seed, (CodedReader, CodedWriter)).run()


def _found(kinds: Kinds, seeds: int) -> bool:
    for seed in range(seeds):
        try:
            World(seed, kinds).run()
        except (AssertionError, JournalError, KeyError, IndexError):
            return True
    return False


MUTANTS: dict[str, Kinds] = {
    "delivers one copy": (mutants.OneCopy, CodedWriter),
    "believes one SEAL": (mutants.OneSeal, CodedWriter),
    "combines any shards": (mutants.AnyShards, CodedWriter),
    "drops what it finds once": (mutants.DropsFoundOnce, CodedWriter),
    "starts from a lower SEAL": (mutants.LowerSeal, CodedWriter),
    "durable on one": (CodedReader, mutants.DurableOnOne),
    "commit before its bodies": (CodedReader, mutants.CommitFirst),
    "skips what one other holds": (CodedReader, mutants.SkipsFreely),
    "seals what it has not copied": (CodedReader, mutants.NoAdoption),
}


@pytest.mark.parametrize("kinds", MUTANTS.values(), ids=list(MUTANTS))
def test_mutants_are_found(kinds: Kinds) -> None:
    assert _found(kinds, 300)


def test_a_position_is_all_a_reader_needs() -> None:
    assert CodedReader(CodedPosition()).position() == CodedPosition()
