"""A coded journal over three modelled streams: conformance as a journal backend."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from meridian.errors import Kind, MeridianError
from meridian.journal import core
from meridian.journal.coded import STREAMS
from meridian.journal.interface import Journal
from meridian.sim.coded_journal import CodedJournal, CodedJournalWriter, ThreeStreams
from meridian.sim.nats import JetStream
from meridian.sim.nats_journal import VirtualTime
from tests.journal.conformance import WAIT_S, Appender, Conformance
from tests.journal.test_nats_model import _Shaky


class _Down(JetStream):
    """Never answers."""

    def publish(self, now: int, *rest: object) -> None:
        return None

    def length(self, now: int) -> None:
        return None


class TestCoded(Conformance):
    """A coded journal takes nothing before a SEAL, so every appender is an owner of its own."""

    contended = True
    opening = (core.EPOCH, core.SEAL)

    @pytest.fixture(autouse=True)
    def _streams(self) -> None:
        self.time = VirtualTime()
        self.use([JetStream(Random(index)) for index in range(STREAMS)])
        self.opened = self.owners = 0

    def use(self, streams: list[JetStream]) -> None:
        self.shared = ThreeStreams(streams)

    def open(self) -> CodedJournal:
        self.opened += 1
        for stream in self.shared.streams:
            vars(stream).pop("publish", None)
        return CodedJournal(self.shared, self.time, f"process {self.opened}")

    def appender(self, journal: Journal | None = None, from_n: int = 0) -> Appender:
        appender = super().appender(journal, from_n)
        self.owners += 1
        self.claim(appender, (self.owners, self.owners))
        appender.append(core.Seal(10**18, 10**18))
        return appender

    def claim(self, appender: Appender, epoch: tuple[int, int]) -> None:
        """A marker has no n; what it finds comes before the SEAL."""
        writer = appender.writer
        assert isinstance(writer, CodedJournalWriter)
        appender.epoch = epoch
        writer.append(core.make(epoch, 0, core.Marker(0)))
        appender.tail += writer.found
        appender.n = appender.durable_n = writer.next_n - 1

    def break_next_append(
        self, *, landed: bool, streams: tuple[int, ...] = tuple(range(STREAMS))
    ) -> None:
        for index, stream in enumerate(self.shared.streams):
            stream.heal()
            stores = landed and index in streams
            stream.publish = _unanswered(stream, stores)  # type: ignore[method-assign]

    # Overridden: the suite writes records of two epochs by one writer, which one of a coded journal
    # refuses (`CodedWriter.append` asserts its epoch).  Here another owner comes with the second.

    def test_lower_epochs_are_void(self) -> None:
        """Who claims the lower epoch may write nothing."""
        self._void_claim((2, 2), (1, 1))

    def test_equal_numbers_with_other_nonces_are_other_epochs(self) -> None:
        """Of two that claim the same number the second has lost."""
        self._void_claim((1, 7), (1, 8))

    def _void_claim(self, first: tuple[int, int], second: tuple[int, int]) -> None:
        owner = self.owner(first)
        owner.writer.flush()
        owner.wait()
        late = Appender(self.open())
        self.claim(late, second)
        assert late.failures.get(timeout=WAIT_S) is not None
        late.append(core.Seal(10**18, 10**18))
        late.writer.flush()
        owner.append(core.Lease(10**18))
        owner.writer.close()
        read = list(self.open().read())
        assert [one.kind for one in read] == [core.EPOCH, core.SEAL, core.LEASE]
        assert {one.epoch for one in read} == {first} and late.batches.empty()

    @pytest.mark.parametrize("stream", range(STREAMS))
    def test_found_once(self, stream: int) -> None:
        """On one stream only: not durable, no reader shows it; a new owner that sees it adopts."""
        old = self.owner((1, 1))
        old.writer.flush()
        old.wait()
        self.break_next_append(landed=True, streams=(stream,))
        record = old.append(core.Lease(2 * 10**18))
        old.writer.flush()
        assert old.failures.get(timeout=WAIT_S) is not None
        assert [one.kind for one in self.open().read()] == [core.EPOCH, core.SEAL]
        new = Appender(self.open())
        self.claim(new, (2, 2))
        found = new.tail[-1] == record
        new.append(core.Seal(2 * 10**18, 2 * 10**18))
        new.writer.close()
        read = list(self.open().read())
        assert found == (record in read)
        assert self.seen(stream) in (None, found)
        core_reader = core.Reader()
        assert all(core_reader.accept(one) is not None for one in read)
        assert core_reader.n == new.n and core_reader.epoch == (2, 2)

    def seen(self, stream: int) -> bool | None:
        """Whether a new owner takes over by this stream; None: by chance."""
        return True

    def test_a_body_before_the_seal_is_refused(self) -> None:
        appender = Appender(self.open())
        self.claim(appender, (1, 1))
        appender.body()
        with pytest.raises(AssertionError):
            appender.writer.flush()


def _unanswered(stream: JetStream, stores: bool) -> Callable[..., None]:
    def publish(*args: object) -> None:
        if stores:
            JetStream.publish(stream, *args)  # type: ignore[arg-type]

    return publish


@pytest.mark.parametrize("down", range(STREAMS))
class TestOneDown(TestCoded):
    """Two streams are enough for everything."""

    @pytest.fixture(autouse=True)
    def _one_down(self, down: int, _streams: None) -> None:
        self.down = down
        kinds = [_Down if index == down else JetStream for index in range(STREAMS)]
        self.use([kind(Random(index)) for index, kind in enumerate(kinds)])

    def seen(self, stream: int) -> bool:
        return stream != self.down


@pytest.mark.parametrize("seed", range(5))
class TestElections(TestCoded):
    """Leaders go all the time, so that each stream lags, breaks and is claimed again."""

    @pytest.fixture(autouse=True)
    def _elections(self, seed: int, _streams: None) -> None:
        self.use([_Shaky(Random(f"{seed}/{index}")) for index in range(STREAMS)])

    def open(self) -> CodedJournal:
        """A new process that reads once stopped leaders know better."""
        self.time.now = max(self.time.now, *(s._stale_until for s in self.shared.streams))
        return super().open()

    def seen(self, stream: int) -> None:
        return None


class TestForgetfulIds(TestElections):
    """Ids are forgotten before a repetition comes: a chain ends, its stream is claimed again."""

    @pytest.fixture(autouse=True)
    def _elections(self, seed: int, _streams: None) -> None:
        self.use([_Shaky(Random(f"{seed}/{index}"), 0) for index in range(STREAMS)])


def test_two_streams_down_are_told() -> None:
    streams = [_Down(Random(0)), _Down(Random(1)), JetStream(Random(2))]
    journal = CodedJournal(ThreeStreams(streams), VirtualTime(), "process")
    with pytest.raises(MeridianError) as refusal:
        list(journal.read())
    assert refusal.value.kind is Kind.JOURNAL_UNAVAILABLE
