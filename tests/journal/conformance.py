"""What every journal backend must do. A backend's tests derive from `Conformance`."""

from __future__ import annotations

import queue
import threading
from typing import Any
from zlib import crc32

import pytest

from meridian.errors import Kind, MeridianError
from meridian.journal import core
from meridian.journal.interface import Journal, Writer
from meridian.journal.record import Record

WAIT_S = 10


class Appender:
    """A writer with its callbacks; `durable_n` follows what it was told."""

    def __init__(self, journal: Journal) -> None:
        self.reader: Any = journal.read()
        self.tail: list[Record] = list(self.reader)
        self.batches: queue.SimpleQueue[list[Record]] = queue.SimpleQueue()
        self.failures: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.writer: Writer = journal.open_writer(
            self.reader, self.tail, self.batches.put, self.failures.put
        )
        self.n = self.tail[-1].n if self.tail else 0
        self.durable_n = self.n

    def append(self, payload: core.Payload, epoch: tuple[int, int] = (1, 1), **kw: Any) -> Record:
        self.n += 1
        record = core.make(epoch, self.n, payload, **kw)
        self.writer.append(record)
        return record

    def wait(self, n: int | None = None) -> None:
        """Until everything through n is durable."""
        while self.durable_n < (self.n if n is None else n):
            batch = self.batches.get(timeout=WAIT_S)
            assert [r.n for r in batch] == list(
                range(self.durable_n + 1, self.durable_n + 1 + len(batch))
            )
            self.durable_n = batch[-1].n

    def body(self, size_bytes: int = 10, seq: int = 0) -> Record:
        return self.append(core.Body(seq, bytes(size_bytes)), txid=b"t" * 16)


def ns(journal: Journal, from_n: int = 0) -> list[int]:
    return [record.n for record in journal.read(from_n)]


class Conformance:
    """`open()` gives the journal under test, again and again the same one, each as a new process.

    `contended`: several processes may append, and the backend tells a deposed one.
    """

    contended = False

    def open(self) -> Journal:
        raise NotImplementedError

    def break_next_append(self, *, landed: bool) -> None:
        """The next batch of the newest `open()` is not confirmed; it is in, or it is not."""
        raise NotImplementedError

    def test_empty(self) -> None:
        assert ns(self.open()) == []

    def test_append_reads_back(self) -> None:
        appender = Appender(self.open())
        written = [appender.body(size) for size in (0, 1, 100, 70_000)]
        appender.writer.flush()
        appender.wait()
        appender.writer.close()
        assert list(self.open().read()) == written

    def test_read_from_n(self) -> None:
        appender = Appender(self.open())
        for _ in range(10):
            appender.body()
        appender.writer.close()
        assert ns(self.open(), 7) == [7, 8, 9, 10]

    def test_durable_means_readable(self) -> None:
        appender = Appender(self.open())
        for _ in range(20):
            appender.body()
            appender.writer.flush()
            appender.wait()
            assert ns(self.open())[-1] == appender.durable_n

    def test_batches_keep_order(self) -> None:
        appender = Appender(self.open())
        for number in range(500):
            appender.body(number)
            if number % 7 == 0:
                appender.writer.flush()
        appender.writer.flush()
        appender.wait()
        appender.writer.close()
        assert ns(self.open()) == list(range(1, 501))

    def test_close_writes_what_waits(self) -> None:
        appender = Appender(self.open())
        appender.body()
        appender.writer.close()
        assert ns(self.open()) == [1]

    def test_next_owner_goes_on(self) -> None:
        for owner in range(1, 6):
            appender = Appender(self.open())
            appender.append(core.Marker(0), (owner, owner))
            appender.append(core.Seal(10**18, 10**18), (owner, owner))
            appender.writer.close()
        reader = core.Reader()
        assert all(reader.accept(record) is not None for record in self.open().read())
        assert reader.n == 10 and reader.epoch == (5, 5)

    def test_abandoned_owner_loses_nothing_durable(self) -> None:
        """The process dies: nothing is closed."""
        for _ in range(3):
            appender = Appender(self.open())
            appender.body()
            appender.writer.flush()
            appender.wait()
        assert ns(self.open()) == [1, 2, 3]

    def test_lower_epochs_are_void(self) -> None:
        appender = Appender(self.open())
        appender.append(core.Marker(0), (2, 2))
        appender.append(core.Seal(0, 10**18), (2, 2))
        appender.append(core.Lease(10**18), (1, 1))
        appender.append(core.Marker(0), (1, 1))
        appender.writer.close()
        reader = core.Reader()
        accepted = [record.n for record in self.open().read() if reader.accept(record)]
        assert accepted == [1, 2] and reader.epoch == (2, 2)

    def test_equal_numbers_with_other_nonces_are_other_epochs(self) -> None:
        appender = Appender(self.open())
        appender.append(core.Marker(0), (1, 7))
        appender.append(core.Seal(0, 10**18), (1, 7))
        appender.append(core.Marker(0), (1, 8))
        appender.append(core.Lease(10**18), (1, 8))
        appender.writer.close()
        reader = core.Reader()
        assert [record.n for record in self.open().read() if reader.accept(record)] == [1, 2]

    def test_a_gap_is_refused(self) -> None:
        """What follows a gap is void, so none may be written (6.2)."""
        appender = Appender(self.open())
        appender.body()
        appender.n += 1
        with pytest.raises(AssertionError):
            appender.body()
        appender.writer.close()
        assert ns(self.open()) == [1]

    def test_large_transaction(self) -> None:
        """Bodies in their order, then the commit record that names them, across batches."""
        appender = Appender(self.open())
        appender.append(core.Marker(0))
        appender.append(core.Seal(0, 10**18))
        crc, bodies, chunks = 0, [], []
        for seq in range(6):
            chunk = bytes((seq,)) * (700_000 + seq)
            bodies.append(appender.append(core.Body(seq, chunk), txid=b"t" * 16).n)
            appender.append(core.Lease(10**18))
            crc = crc32(chunk, crc)
            chunks.append(chunk)
            appender.writer.flush()
        commit = core.Commit(10**18, 0, 0, 0, tuple(bodies), crc32(b"last", crc), b"last")
        appender.append(commit, tau=5, txid=b"t" * 16)
        appender.writer.close()
        reader = core.Reader()
        payloads = [reader.accept(record) for record in self.open().read()]
        assert [one.chunk for one in payloads if isinstance(one, core.Body)] == chunks
        assert payloads[-1] == commit and reader.open_n() is None

    def test_large_transaction_ends_with_its_epoch(self) -> None:
        appender = Appender(self.open())
        appender.append(core.Marker(0))
        appender.append(core.Seal(0, 10**18))
        appender.append(core.Body(0, b"chunk"), txid=b"t" * 16)
        appender.writer.close()
        appender = Appender(self.open())
        appender.append(core.Marker(0), (2, 2))
        appender.append(core.Seal(10**18, 10**18), (2, 2))
        commit = core.Commit(10**18, 0, 0, 0, (3,), crc32(b"chunk"), b"")
        appender.append(commit, (2, 2), tau=5, txid=b"t" * 16)
        appender.writer.close()
        reader = core.Reader()
        with pytest.raises(core.JournalError):
            for record in self.open().read():
                reader.accept(record)

    @pytest.mark.parametrize("landed", [True, False])
    def test_unknown_outcome(self, landed: bool) -> None:
        """Never told durable, and the next owner sees what landed and goes on behind it (6.8)."""
        appender = Appender(self.open())
        appender.body()
        appender.writer.flush()
        appender.wait()
        self.break_next_append(landed=landed)
        appender.body()
        appender.writer.flush()
        assert appender.failures.get(timeout=WAIT_S) is not None
        assert appender.batches.empty()
        following = Appender(self.open())
        assert following.n in ((2,) if landed else (1, 2))
        following.body()
        following.writer.close()
        assert ns(self.open()) == list(range(1, following.n + 1))

    def test_a_failed_writer_stays_failed(self) -> None:
        appender = Appender(self.open())
        self.break_next_append(landed=False)
        appender.body()
        appender.writer.flush()
        appender.failures.get(timeout=WAIT_S)
        appender.body()
        appender.writer.flush()
        appender.writer.close()
        assert appender.failures.empty() and appender.batches.empty()

    def test_deposed_owner_changes_nothing(self) -> None:
        """What it was told durable is there; what it writes afterwards counts for no reader."""
        old = Appender(self.open())
        old.append(core.Marker(0))
        old.append(core.Seal(0, 10**18))
        old.writer.flush()
        old.wait()
        new = Appender(self.open())
        new.append(core.Marker(0), (2, 2))
        new.writer.flush()
        new.wait()
        for _ in range(3):
            old.append(core.Lease(10**18))
            old.writer.flush()
        new.append(core.Seal(10**18, 10**18), (2, 2))
        new.append(core.Lease(2 * 10**18), (2, 2))
        new.writer.flush()
        new.wait()
        old.writer.close()
        new.writer.close()
        reader = core.Reader()
        accepted = [record for record in self.open().read() if reader.accept(record)]
        assert [(record.n, record.epoch[0]) for record in accepted] == [
            (1, 1), (2, 1), (3, 2), (4, 2), (5, 2),
        ]  # fmt: skip
        if self.contended:
            assert old.failures.get(timeout=WAIT_S) is not None
            assert old.batches.empty(), "told durable after it was deposed"

    def test_trim(self) -> None:
        for _ in range(4):
            appender = Appender(self.open())
            appender.body()
            appender.writer.close()
        journal = self.open()
        journal.trim(3)
        assert ns(journal, 3) == [3, 4]
        with pytest.raises(MeridianError) as refusal:
            ns(journal, 1)
        assert refusal.value.kind is Kind.JOURNAL_TRIMMED
        appender = Appender2(journal, 3)
        appender.body()
        appender.writer.close()
        assert ns(self.open(), 3) == [3, 4, 5]

    def test_appends_while_syncing(self) -> None:
        """What arrives during a sync becomes the next batch, without another flush."""
        appender = Appender(self.open())
        appender.body()
        appender.writer.flush()
        threads = [threading.Event()]
        for _ in range(50):
            appender.body()
        appender.writer.flush()
        appender.wait()
        assert threads and appender.durable_n == 51
        appender.writer.close()


class Appender2(Appender):
    """Follows a trimmed journal."""

    def __init__(self, journal: Journal, from_n: int) -> None:
        self.from_n = from_n
        super().__init__(_From(journal, from_n))  # type: ignore[arg-type]


class _From:
    def __init__(self, journal: Journal, from_n: int) -> None:
        self.journal = journal
        self.from_n = from_n
        self.open_writer = journal.open_writer

    def read(self) -> Any:
        return self.journal.read(self.from_n)
