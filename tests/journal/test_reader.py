"""Which records a reader of a journal accepts (design section 6)."""

from __future__ import annotations

from zlib import crc32

import pytest

from meridian.journal import core as journal
from meridian.journal.core import JournalError, Payload, Position, Reader, make
from meridian.journal.record import Record

ONE, TWO = (1, 11), (2, 22)
TXID = b"t" * 16


def commit(
    n: int, tau: int, epoch: tuple[int, int] = ONE, bodies: tuple[int, ...] = (), crc: int = 0
) -> Record:
    payload = journal.Commit(0, 1, 0, 0, bodies, crc, b"last")
    return make(epoch, n, payload, tau, TXID)


def opened(lease: int = 1000) -> Reader:
    reader = Reader()
    assert reader.accept(make(ONE, 1, journal.Marker(0))) is not None
    assert reader.accept(make(ONE, 2, journal.Seal(0, lease))) is not None
    return reader


def take_over(reader: Reader, epoch: tuple[int, int], lease: int = 2000) -> None:
    n = reader.n
    assert reader.accept(make(epoch, n + 1, journal.Marker(0))) is not None
    seal = journal.Seal(max(reader.lease, reader.tau), lease)
    assert reader.accept(make(epoch, n + 2, seal)) is not None


def test_records_of_the_newest_epoch_only() -> None:
    reader = opened()
    assert reader.accept(commit(3, 10)) is not None
    take_over(reader, TWO)
    assert reader.accept(commit(6, 20)) is None, "the old owner is fenced"
    assert reader.accept(commit(6, 1500, TWO)) is not None


def test_same_number_other_nonce_is_another_epoch() -> None:
    reader = opened()
    assert reader.accept(make((1, 99), 3, journal.Marker(0))) is None
    assert reader.accept(commit(3, 10, (1, 99))) is None
    assert reader.accept(commit(3, 10)) is not None


def test_lower_markers_are_void() -> None:
    reader = opened()
    take_over(reader, (5, 1))
    assert reader.accept(make((4, 1), 5, journal.Marker(0))) is None
    assert reader.epoch == (5, 1)


def test_nothing_counts_before_the_seal() -> None:
    reader = opened()
    reader.accept(make(TWO, 3, journal.Marker(0)))
    assert reader.accept(commit(4, 10, TWO)) is None
    assert reader.accept(make(TWO, 4, journal.Seal(1000, 2000))) is not None
    assert reader.accept(make(TWO, 5, journal.Seal(2000, 3000))) is None


def test_what_follows_a_gap_is_void() -> None:
    reader = opened()
    assert reader.accept(commit(4, 10)) is None
    assert reader.accept(commit(3, 10)) is not None
    assert reader.accept(commit(3, 20)) is None, "doubled"
    assert reader.n == 3


def test_a_marker_may_not_know_its_n() -> None:
    reader = opened()
    assert reader.accept(make(TWO, 0, journal.Marker(0))) is not None
    assert reader.accept(make(TWO, 3, journal.Seal(1000, 2000))) is not None
    with pytest.raises(JournalError):
        reader.accept(make((3, 3), 9, journal.Marker(0)))


def test_taus_grow_and_stay_within_the_lease() -> None:
    reader = opened(lease=100)
    assert reader.accept(commit(3, 50)) is not None
    with pytest.raises(JournalError, match="does not exceed"):
        reader.accept(commit(4, 50))
    with pytest.raises(JournalError, match="passes the lease"):
        reader.accept(commit(4, 101))
    assert reader.accept(make(ONE, 4, journal.Lease(200))) is not None
    assert reader.accept(commit(5, 101)) is not None


def test_a_seal_that_forgets_the_old_lease_is_an_error() -> None:
    reader = opened(lease=1000)
    reader.accept(make(TWO, 3, journal.Marker(0)))
    with pytest.raises(JournalError, match="forgets"):
        reader.accept(make(TWO, 4, journal.Seal(999, 2000)))


def body(n: int, seq: int, chunk: bytes, epoch: tuple[int, int] = ONE) -> Record:
    return make(epoch, n, journal.Body(seq, chunk), 0, TXID)


def test_a_commit_names_its_bodies() -> None:
    crc = crc32(b"last", crc32(b"b", crc32(b"a")))
    reader = opened()
    reader.accept(body(3, 0, b"a"))
    reader.accept(body(4, 1, b"b"))
    assert reader.open_n() == 3
    assert reader.accept(commit(5, 10, bodies=(3, 4), crc=crc)) is not None
    assert reader.open_n() is None


@pytest.mark.parametrize(("bodies", "crc"), [((3,), 0), ((3, 4), 1), ((), 0)])
def test_a_commit_with_other_bodies_is_an_error(bodies: tuple[int, ...], crc: int) -> None:
    reader = opened()
    reader.accept(body(3, 0, b"a"))
    reader.accept(body(4, 1, b"b"))
    with pytest.raises(JournalError):
        reader.accept(commit(5, 10, bodies=bodies, crc=crc))


def test_bodies_of_another_epoch_do_not_count() -> None:
    reader = opened()
    reader.accept(body(3, 0, b"a"))
    take_over(reader, TWO)
    assert reader.open_n() is None
    with pytest.raises(JournalError):
        reader.accept(commit(6, 1500, TWO, bodies=(3,), crc=crc32(b"last", crc32(b"a"))))


def test_a_position_carries_everything() -> None:
    reader = opened()
    reader.accept(commit(3, 10))
    reader.accept(make(ONE, 4, journal.Add(7), 20))
    position = reader.position()
    assert position == Position(ONE, 4, True, 1000, 20, (7,), False)
    other = Reader(position)
    assert other.accept(commit(5, 30)) is not None
    assert other.accept(make(ONE, 6, journal.Close(), 40)) is not None
    assert other.closed
    assert other.accept(commit(7, 50)) is None
    assert other.accept(make(TWO, 7, journal.Marker(0))) is None


@pytest.mark.parametrize(
    "data", [b"", b"\x02\x91\x01", b"\x01", b"\x01\xc1", b"\x01\x92\x01"], ids=repr
)
def test_malformed_payloads_are_refused(data: bytes) -> None:
    payload: Payload | None = None
    with pytest.raises(JournalError):
        payload = journal.payload_of(Record(journal.SEAL, ONE, 2, 0, bytes(16), data))
    assert payload is None
