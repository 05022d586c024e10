"""What every journal backend must do. A backend's tests derive from `Conformance`."""

from __future__ import annotations

import queue
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

    def __init__(self, journal: Journal, from_n: int = 0) -> None:
        self.reader: Any = journal.read(from_n)
        self.tail: list[Record] = list(self.reader)
        self.batches: queue.SimpleQueue[list[Record]] = queue.SimpleQueue()
        self.failures: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.writer: Writer = journal.open_writer(
            self.reader, self.tail, self.batches.put, self.failures.put
        )
        self.n = self.tail[-1].n if self.tail else 0
        self.durable_n = self.n
        self.epoch = (1, 1)

    def append(
        self, payload: core.Payload, epoch: tuple[int, int] | None = None, **kw: Any
    ) -> Record:
        self.n += 1
        record = core.make(epoch or self.epoch, self.n, payload, **kw)
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
    `opening`: kinds of the records that `appender` writes before those of the tests.
    """

    contended = False
    opening: tuple[int, ...] = ()

    def open(self) -> Journal:
        raise NotImplementedError

    def break_next_append(self, *, landed: bool) -> None:
        """The next batch of the newest `open()` is not confirmed; it is in, or it is not."""
        raise NotImplementedError

    def appender(self, journal: Journal | None = None, from_n: int = 0) -> Appender:
        """A new process, ready to append; it has read from `from_n` on."""
        return Appender(journal or self.open(), from_n)

    def claim(self, appender: Appender, epoch: tuple[int, int]) -> None:
        """The marker of an epoch of its own."""
        appender.epoch = epoch
        appender.append(core.Marker(0))

    def owner(self, epoch: tuple[int, int]) -> Appender:
        """A new process that has claimed and sealed."""
        appender = Appender(self.open())
        self.claim(appender, epoch)
        appender.append(core.Seal(10**18, 10**18))
        return appender

    def written(self, from_n: int = 0) -> list[Record]:
        """What is read, but for what `appender` writes on its own."""
        return [one for one in self.open().read(from_n) if one.kind not in self.opening]

    def test_empty(self) -> None:
        assert ns(self.open()) == []

    def test_append_reads_back(self) -> None:
        appender = self.appender()
        written = [appender.body(size) for size in (0, 1, 100, 70_000)]
        appender.writer.flush()
        appender.wait()
        appender.writer.close()
        assert self.written() == written

    def test_read_from_n(self) -> None:
        appender = self.appender()
        written = [appender.body() for _ in range(10)]
        appender.writer.close()
        assert list(self.open().read(written[6].n)) == written[6:]

    def test_durable_means_readable(self) -> None:
        appender = self.appender()
        for _ in range(20):
            appender.body()
            appender.writer.flush()
            appender.wait()
            assert ns(self.open())[-1] == appender.durable_n

    def test_batches_keep_order(self) -> None:
        appender = self.appender()
        written = []
        for number in range(500):
            written.append(appender.body(number))
            if number % 7 == 0:
                appender.writer.flush()
        appender.writer.flush()
        appender.wait()
        appender.writer.close()
        assert self.written() == written

    def test_close_writes_what_waits(self) -> None:
        appender = self.appender()
        record = appender.body()
        appender.writer.close()
        assert self.written() == [record]

    def test_next_owner_goes_on(self) -> None:
        for number in range(1, 6):
            appender = self.owner((number, number))
            appender.writer.close()
        reader = core.Reader()
        assert all(reader.accept(record) is not None for record in self.open().read())
        assert reader.n == appender.n and reader.epoch == (5, 5)

    def test_abandoned_owner_loses_nothing_durable(self) -> None:
        """The process dies: nothing is closed."""
        written = []
        for _ in range(3):
            appender = self.appender()
            written.append(appender.body())
            appender.writer.flush()
            appender.wait()
        assert self.written() == written

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
        appender = self.appender()
        record = appender.body()
        appender.n += 1
        with pytest.raises(AssertionError):
            appender.body()
        appender.writer.close()
        assert self.written() == [record]

    def test_large_transaction(self) -> None:
        """Bodies in their order, then the commit record that names them, across batches."""
        appender = self.owner((1, 1))
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
        appender = self.owner((1, 1))
        body = appender.append(core.Body(0, b"chunk"), txid=b"t" * 16)
        appender.writer.close()
        appender = self.owner((2, 2))
        commit = core.Commit(10**18, 0, 0, 0, (body.n,), crc32(b"chunk"), b"")
        appender.append(commit, tau=5, txid=b"t" * 16)
        appender.writer.close()
        reader = core.Reader()
        with pytest.raises(core.JournalError):
            for record in self.open().read():
                reader.accept(record)

    @pytest.mark.parametrize("landed", [True, False])
    def test_unknown_outcome(self, landed: bool) -> None:
        """Never told durable, and the next owner sees what landed and goes on behind it (6.8)."""
        appender = self.appender()
        told = appender.body()
        appender.writer.flush()
        appender.wait()
        self.break_next_append(landed=landed)
        unknown = appender.body()
        appender.writer.flush()
        assert appender.failures.get(timeout=WAIT_S) is not None
        assert appender.batches.empty()
        following = self.appender()
        last = following.body()
        following.writer.close()
        found = self.written()
        assert found == [told, unknown, last] or (not landed and found == [told, last])
        # 0: markers that have no n.
        assert [n for n in ns(self.open()) if n] == list(range(1, following.n + 1))

    def test_a_failed_writer_stays_failed(self) -> None:
        appender = self.appender()
        appender.writer.flush()
        appender.wait()
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
        old = self.owner((1, 1))
        old.writer.flush()
        old.wait()
        new = Appender(self.open())
        self.claim(new, (2, 2))
        new.writer.flush()
        new.wait()
        for _ in range(3):
            old.append(core.Lease(10**18))
            old.writer.flush()
        new.append(core.Seal(10**18, 10**18))
        new.append(core.Lease(2 * 10**18))
        new.writer.flush()
        new.wait()
        old.writer.close()
        new.writer.close()
        reader = core.Reader()
        accepted = [record for record in self.open().read() if reader.accept(record)]
        assert [(record.kind, record.epoch[0]) for record in accepted] == [
            (core.EPOCH, 1), (core.SEAL, 1), (core.EPOCH, 2), (core.SEAL, 2), (core.LEASE, 2),
        ]  # fmt: skip
        assert reader.n == new.n
        if self.contended:
            assert old.failures.get(timeout=WAIT_S) is not None
            assert old.batches.empty(), "told durable after it was deposed"

    def test_trim(self) -> None:
        written = []
        for _ in range(4):
            appender = self.appender()
            written.append(appender.body())
            appender.writer.close()
        journal = self.open()
        n = written[2].n
        journal.trim(n)
        assert self.written(n) == written[2:]
        with pytest.raises(MeridianError) as refusal:
            ns(journal, 1)
        assert refusal.value.kind is Kind.JOURNAL_TRIMMED
        appender = self.appender(journal, n)
        written.append(appender.body())
        appender.writer.close()
        assert self.written(n) == written[2:]

    def test_appends_while_syncing(self) -> None:
        """What arrives during a sync becomes the next batch, without another flush."""
        appender = self.appender()
        appender.body()
        appender.writer.flush()
        for _ in range(50):
            appender.body()
        appender.writer.flush()
        appender.wait()
        assert appender.durable_n == appender.n
        appender.writer.close()
