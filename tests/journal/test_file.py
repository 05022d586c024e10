"""The file backend: conformance, torn tails, damage, failing disks."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from meridian.errors import Kind, MeridianError
from meridian.journal import core
from meridian.journal import file as file_backend
from meridian.journal.file import FileJournal
from meridian.journal.record import HEADER_SIZE_BYTES, PREFIX_SIZE_BYTES
from meridian.journal.segments import list_segments
from tests.journal.conformance import WAIT_S, Appender, Conformance, ns
from tests.journal.faults import FaultyFiles


class TestFileBackend(Conformance):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "journal"

    short = 0

    def open(self) -> FileJournal:
        self.files = FaultyFiles(short=self.short)
        return FileJournal(self.directory, 0, self.files)

    def break_next_append(self, *, landed: bool) -> None:
        if landed:
            # Written, the sync fails, and so does the attempt to cut it off.
            self.files.fail("fdatasync", times=2)
            self.files.fail("truncate")
        else:
            self.files.fail("write")


class TestShortWrites(TestFileBackend):
    short = 13


class TestManySegments(TestFileBackend):
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(file_backend, "JOURNAL_SEGMENT_BYTES", 600)
        monkeypatch.setattr(file_backend, "JOURNAL_BATCH_BYTES", 200)


def filled(directory: Path, batches: int = 3, per_batch: int = 2) -> list[int]:
    """One segment; returns the offsets of its records."""
    appender = Appender(FileJournal(directory, 0))
    for _ in range(batches):
        for _ in range(per_batch):
            appender.body(50)
        appender.writer.flush()
        appender.wait()
    appender.writer.close()
    data = list_segments(directory)[-1].path.read_bytes()
    offsets, at = [], HEADER_SIZE_BYTES
    while at < len(data):
        offsets.append(at)
        at += PREFIX_SIZE_BYTES + struct.unpack_from("<I", data, at)[0]
    assert len(offsets) == batches * per_batch and at == len(data)
    return offsets


def test_torn_tail_at_every_byte(tmp_path: Path) -> None:
    offsets = filled(tmp_path)
    path = list_segments(tmp_path)[0].path
    data = path.read_bytes()
    for size in range(offsets[-2], len(data)):
        path.write_bytes(data[:size])
        journal = FileJournal(tmp_path, 0)
        reader = journal.read()
        found = [record.n for record in reader]
        assert found == [1, 2, 3, 4] + ([5] if size >= offsets[-1] else [])
        assert reader.scanned is not None
        assert (reader.scanned.torn is None) == (size in offsets)


@pytest.mark.parametrize("garbage", [b"\0" * 4096, b"\xff" * 4096, b"garbage", b"\1"])
def test_garbage_behind_the_tail_is_cut(tmp_path: Path, garbage: bytes) -> None:
    filled(tmp_path)
    path = list_segments(tmp_path)[0].path
    path.write_bytes(path.read_bytes() + garbage)
    appender = Appender(FileJournal(tmp_path, 0))
    assert appender.reader.scanned.torn.size_bytes == len(garbage)
    assert appender.reader.scanned.torn.n == 7
    appender.body()
    appender.writer.close()
    assert ns(FileJournal(tmp_path, 0)) == [1, 2, 3, 4, 5, 6, 7]


def test_hole_in_an_unsynced_batch_is_torn(tmp_path: Path) -> None:
    """Pages of the last batch may reach the disk in any order: its later record survived."""
    offsets = filled(tmp_path)
    path = list_segments(tmp_path)[0].path
    data = bytearray(path.read_bytes())
    data[offsets[4] : offsets[5]] = bytes(offsets[5] - offsets[4])
    path.write_bytes(data)
    assert ns(FileJournal(tmp_path, 0)) == [1, 2, 3, 4]


@pytest.mark.parametrize("index", range(4))
def test_damage_in_the_middle_names_the_record(tmp_path: Path, index: int) -> None:
    offsets = filled(tmp_path)
    path = list_segments(tmp_path)[0].path
    whole = path.read_bytes()
    for position in range(offsets[index], offsets[index + 1]):
        data = bytearray(whole)
        data[position] ^= 0x5A
        path.write_bytes(data)
        with pytest.raises(MeridianError) as refusal:
            ns(FileJournal(tmp_path, 0))
        assert refusal.value.kind is Kind.JOURNAL_DAMAGED
        assert refusal.value.fields["n"] == index + 1
        assert refusal.value.fields["offset"] == offsets[index]
        assert str(path) in str(refusal.value)


def test_damage_in_an_older_segment(tmp_path: Path) -> None:
    filled(tmp_path)
    first = list_segments(tmp_path)[0].path
    appender = Appender(FileJournal(tmp_path, 0))
    appender.body()
    appender.writer.close()
    data = bytearray(first.read_bytes())
    data[HEADER_SIZE_BYTES + 20] ^= 1
    first.write_bytes(data)
    with pytest.raises(MeridianError) as refusal:
        ns(FileJournal(tmp_path, 0))
    assert refusal.value.fields["n"] == 1


def test_missing_segment(tmp_path: Path) -> None:
    filled(tmp_path)
    for _ in range(2):
        _one_more(tmp_path)
    assert len(list_segments(tmp_path)) == 3
    list_segments(tmp_path)[1].path.unlink()
    with pytest.raises(MeridianError) as refusal:
        ns(FileJournal(tmp_path, 0))
    assert refusal.value.kind is Kind.JOURNAL_DAMAGED


def _one_more(directory: Path) -> None:
    appender = Appender(FileJournal(directory, 0))
    for _ in range(3):
        appender.body()
        appender.writer.flush()
        appender.wait()
    appender.writer.close()


def test_unknown_version_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    path = list_segments(tmp_path)[0].path
    data = bytearray(path.read_bytes())
    data[8] = 99
    path.write_bytes(data)
    with pytest.raises(MeridianError) as refusal:
        ns(FileJournal(tmp_path, 0))
    assert refusal.value.kind is Kind.UNKNOWN_FORMAT


def test_another_journals_segment_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(MeridianError):
        ns(FileJournal(tmp_path, 1))


def test_unproven_tail_is_made_durable_by_the_next_owner(tmp_path: Path) -> None:
    """The last batch may sit in memory only, after a failed sync: it is written anew."""
    filled(tmp_path)
    before = [one.path for one in list_segments(tmp_path)]
    appender = Appender(FileJournal(tmp_path, 0))
    after = list_segments(tmp_path)
    assert len(after) == 2 and after[1].first_n == 5
    # Even with the old copies gone, they are there.
    data = before[0].read_bytes()
    assert after[1].path.read_bytes()[HEADER_SIZE_BYTES:].count(bytes(50)) == 2 and data
    appender.writer.close()


def test_crash_while_a_segment_is_made(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "new.tmp").write_bytes(b"half a header")
    appender = Appender(FileJournal(tmp_path, 0))
    appender.body()
    appender.writer.close()
    assert ns(FileJournal(tmp_path, 0)) == list(range(1, 8))


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_failure_poisons_the_writer(tmp_path: Path, call: str) -> None:
    files = FaultyFiles()
    appender = Appender(FileJournal(tmp_path, 0, files))
    appender.body()
    appender.writer.flush()
    appender.wait()
    files.fail(call)
    appender.body()
    appender.writer.flush()
    failure = appender.failures.get(timeout=WAIT_S)
    assert failure.nothing_written == (call == "write")
    calls = dict(files.calls)
    appender.body()
    appender.writer.flush()
    appender.writer.close()
    assert files.calls == calls, "a poisoned writer touches nothing"
    following = Appender(FileJournal(tmp_path, 0, files))
    landed = 1 if call == "write" else 2
    assert following.n == landed
    following.body()
    following.writer.close()
    assert ns(FileJournal(tmp_path, 0)) == list(range(1, landed + 2))


def test_disk_full_leaves_nothing_behind(tmp_path: Path) -> None:
    files = FaultyFiles()
    appender = Appender(FileJournal(tmp_path, 0, files))
    appender.body()
    appender.writer.flush()
    appender.wait()
    size_bytes = FileJournal(tmp_path, 0).size_bytes()
    files.room_bytes = 30
    appender.body(1000)
    appender.writer.flush()
    failure = appender.failures.get(timeout=WAIT_S)
    assert failure.error.errno == errno.ENOSPC and failure.nothing_written
    assert FileJournal(tmp_path, 0).size_bytes() == size_bytes
    assert file_backend.segment_error(failure.error).kind is Kind.DISK_FULL
    with pytest.raises(OSError, match="No space"):
        Appender(FileJournal(tmp_path, 0, files))
    files.room_bytes = None
    following = Appender(FileJournal(tmp_path, 0, files))
    assert following.n == 1
    following.body()
    following.writer.close()


def test_failed_cut_is_not_called_certain(tmp_path: Path) -> None:
    files = FaultyFiles()
    appender = Appender(FileJournal(tmp_path, 0, files))
    files.fail("write", error=errno.ENOSPC)
    files.fail("truncate")
    appender.body()
    appender.writer.flush()
    assert not appender.failures.get(timeout=WAIT_S).nothing_written


@pytest.mark.parametrize("call", ["create", "rename", "fsync_dir", "write", "fdatasync"])
def test_failure_while_rolling(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_backend, "JOURNAL_SEGMENT_BYTES", 300)
    files = FaultyFiles()
    appender = Appender(FileJournal(tmp_path, 0, files))
    for _ in range(2):
        appender.body(100)
        appender.writer.flush()
        appender.wait()
    files.fail(call)
    appender.body(100)
    appender.writer.flush()
    assert appender.failures.get(timeout=WAIT_S).nothing_written
    following = Appender(FileJournal(tmp_path, 0, files))
    assert following.n == 2
    following.body()
    following.writer.close()
    assert ns(FileJournal(tmp_path, 0)) == [1, 2, 3]


def test_bodies_survive_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_backend, "JOURNAL_SEGMENT_BYTES", 3000)
    appender = Appender(FileJournal(tmp_path, 0))
    for seq in range(20):
        appender.append(core.Body(seq, bytes(1000)), txid=b"t" * 16)
        appender.writer.flush()
        appender.wait()
    appender.writer.close()
    assert len(list_segments(tmp_path)) > 5
    assert ns(FileJournal(tmp_path, 0)) == list(range(1, 21))
