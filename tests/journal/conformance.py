"""What every journal backend must do. A backend's tests derive from `Conformance`."""

from __future__ import annotations

import queue
import threading
from typing import Any

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
    """`open()` gives the journal under test, again and again the same one."""

    def open(self) -> Journal:
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
