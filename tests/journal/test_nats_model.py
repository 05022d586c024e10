"""The model of JetStream: conformance as a journal backend, and its measured quirks."""

from __future__ import annotations

from random import Random

import pytest

from meridian.errors import Kind, MeridianError
from meridian.journal import core
from meridian.journal.chain import Chain
from meridian.journal.record import Record
from meridian.sim.nats import MESSAGE_BYTES_MAX, JetStream
from meridian.sim.nats_journal import NatsJournal, VirtualTime
from tests.journal.conformance import Appender, Conformance


class TestModel(Conformance):
    contended = True

    @pytest.fixture(autouse=True)
    def _stream(self) -> None:
        self.time = VirtualTime()
        self.stream = self.make()
        self.opened = 0

    def make(self) -> JetStream:
        return JetStream(Random(1))

    def open(self) -> NatsJournal:
        self.opened += 1
        return NatsJournal(self.stream, self.time, f"process {self.opened}")

    def break_next_append(self, *, landed: bool) -> None:
        publish = self.stream.publish

        def broken(now: int, *rest: object) -> None:
            if landed:
                publish(now, *rest)  # type: ignore[arg-type]
            # Nobody answers for longer than ids are remembered and writers wait.
            self.stream.elect(now, (10**12, 10**12))
            self.stream._seen.clear()
            self.stream.publish = lambda *args: None  # type: ignore[method-assign]

        self.stream.publish = broken  # type: ignore[method-assign,assignment]
        opening = self.open

        def healed() -> NatsJournal:
            self.stream.publish = publish  # type: ignore[method-assign]
            self.stream.heal()
            return opening()

        self.open = healed  # type: ignore[method-assign]


class _Shaky(JetStream):
    """Every few messages its leader goes, in one way or another."""

    def publish(self, now: int, *rest: object) -> object:  # type: ignore[override]
        if self.up(now) and self._random.random() < 0.3:
            kinds = (self.elect, self.step_down, self.stop_leader, self.fail_all)
            self._random.choice(kinds)(now)
        return super().publish(now, *rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
class TestElections(TestModel):
    @pytest.fixture(autouse=True)
    def _seed(self, seed: int, _stream: None) -> None:
        self.stream = _Shaky(Random(seed))

    def open(self) -> NatsJournal:
        """A new process that reads once stopped leaders know better; stale reads: see below."""
        self.time.now = max(self.time.now, self.stream._stale_until)
        return super().open()


class TestForgetfulIds(TestElections):
    """Ids are forgotten before a repetition comes: its chain ends, nothing is stored twice."""

    @pytest.fixture(autouse=True)
    def _seed(self, seed: int, _stream: None) -> None:
        self.stream = JetStream(Random(seed), duplicates_ns=0)


def lease(n: int) -> Record:
    return core.make((1, 1), n, core.Lease(10**18))


def test_a_chain_of_expectations_does_not_fence() -> None:
    """The zombie: one message is refused, the interloper takes its place, the others match."""
    stream = JetStream(Random(1))
    acks = [stream.publish(0, "a0", 0, [lease(1)]), stream.publish(0, "new", None, [lease(2)])]
    acks += [stream.publish(0, f"a{number}", number, [lease(number + 1)]) for number in (1, 2, 3)]
    assert [ack.stored for ack in acks if ack] == [True, True, False, True, True]


def test_the_chain_of_a_deposed_owner_ends_at_the_first_refusal() -> None:
    stream = JetStream(Random(1))
    chain = Chain(0, window=8, message_bytes=1)
    for n in range(1, 5):
        chain.append(lease(n))
    messages = chain.publish()
    stream.publish(0, "new", None, [lease(1)])
    for message in messages:
        ack = stream.publish(0, f"a{message.number}", message.expected, message.records)
        assert ack is not None
        if ack.stored:
            assert chain.stored(message.number, ack.place) == []
        else:
            chain.rejected(message.number, ack.place)
    assert chain.broken and len(stream.messages) == 4


def test_a_later_message_may_be_refused_because_an_older_one_was_lost() -> None:
    stream = JetStream(Random(1))
    chain = Chain(0, message_bytes=1)
    chain.append(lease(1))
    chain.append(lease(2))
    _, second = chain.publish()
    ack = stream.publish(0, "a1", second.expected, second.records)
    assert ack is not None and not ack.stored
    chain.rejected(second.number, ack.place)
    assert not chain.broken
    done = []
    for message in chain.unanswered():
        ack = stream.publish(0, f"a{message.number}", message.expected, message.records)
        assert ack is not None
        done += chain.stored(message.number, ack.place)
    assert done == [[lease(1)], [lease(2)]] and chain.idle


def test_a_stream_that_comes_back_shorter_ends_the_chain() -> None:
    stream = JetStream(Random(1))
    chain = Chain(0, message_bytes=1)
    for n in (1, 2):
        chain.append(lease(n))
        for message in chain.publish():
            ack = stream.publish(0, f"a{n}", message.expected, message.records)
            assert ack is not None
            chain.stored(message.number, ack.place)
    stream.lose_tail(1)
    chain.append(lease(3))
    (message,) = chain.publish()
    for _ in range(3):
        ack = stream.publish(0, "a3", message.expected, message.records)
        assert ack is not None and not ack.stored
        assert not chain.broken
        chain.rejected(message.number, ack.place)
    assert chain.broken


def test_a_stream_that_was_filled_up_again_by_others_ends_the_chain() -> None:
    """Places match again; only that it is another stream by now tells (simulation, seed 2407)."""
    chain = Chain(1, message_bytes=1, generation=4)
    for n in (2, 3):
        chain.append(lease(n))
    first, second = chain.publish()
    assert (first.generation, second.generation) == (4, 4), "another one must refuse them"
    assert chain.stored(first.number, 2, 4) == [[lease(2)]]
    assert chain.stored(second.number, 3, 5) == [] and chain.broken
    refused = Chain(1, generation=4)
    refused.append(lease(2))
    (message,) = refused.publish()
    refused.rejected(message.number, 0, 5)
    assert refused.broken and refused.unanswered() == [message]


def test_ids_answer_with_the_first_place_whatever_the_body() -> None:
    stream = JetStream(Random(1), duplicates_ns=100)
    stream.publish(0, "a", None, [lease(1)])
    stream.publish(0, "b", None, [lease(2)])
    again = stream.publish(50, "a", 7, [lease(9)])
    assert again is not None and (again.stored, again.place, again.duplicate) == (True, 1, True)
    chain = Chain(2)
    chain.append(lease(9))
    chain.publish()
    assert chain.stored(0, again.place) == [] and chain.broken, "another message's place"
    assert stream.publish(200, "a", None, [lease(1)]) is not None
    assert len(stream.messages) == 3


def test_a_leader_that_was_stopped_answers_from_the_past() -> None:
    stream = JetStream(Random(1))
    stream.publish(0, "a", None, [lease(1)])
    up = stream.stop_leader(0)
    assert stream.length(up - 1) is None
    stream.publish(up, "b", 1, [lease(2)])
    assert {stream.length(up) for _ in range(20)} == {1, 2}
    assert {stream.length(up + 10**9) for _ in range(20)} == {2}


def test_a_stale_read_does_not_lose_a_record() -> None:
    """A new owner that reads too little is refused at its first append, and reads again."""
    time, stream = VirtualTime(), JetStream(Random(3))
    appender = Appender(NatsJournal(stream, time, "one"))
    appender.body()
    appender.writer.flush()
    time.now = stream.stop_leader(time.now)
    appender.body()
    appender.writer.flush()
    appender.wait()
    outcomes = set()
    for number in range(20):
        following = Appender(NatsJournal(stream, time, f"next {number}"))
        stale = following.n < len(stream.messages)
        following.body()
        following.writer.flush()
        outcomes.add((stale, following.failures.empty()))
    assert outcomes == {(True, False), (False, True)}
    found = [record.n for record in NatsJournal(stream, VirtualTime(), "last").read()]
    assert found == list(range(1, len(found) + 1))


def test_reading_what_was_purged_is_noticed() -> None:
    time, stream = VirtualTime(), JetStream(Random(1))
    journal = NatsJournal(stream, time, "one")
    for number in range(4):
        stream.publish(0, f"{number}", None, [lease(number + 1)])
    assert journal.trim(3) == 2
    with pytest.raises(MeridianError) as refusal:
        list(journal.read(2))
    assert refusal.value.kind is Kind.JOURNAL_TRIMMED


def test_a_stream_that_does_not_sync_always_is_refused_and_why() -> None:
    stream = JetStream(Random(1), sync_always=False)
    assert stream.publish(0, "a", None, [lease(1)]) is not None
    stream.fail_all(0)
    assert stream.messages == [], "acknowledged, and gone"
    with pytest.raises(MeridianError):
        NatsJournal(stream, VirtualTime(), "one")


def test_messages_that_are_too_large_are_refused() -> None:
    stream = JetStream(Random(1))
    body = core.make((1, 1), 1, core.Body(0, bytes(MESSAGE_BYTES_MAX)))
    assert not stream.publish(0, "a", None, [body]).stored  # type: ignore[union-attr]
