"""Trust in files, crashes, checkpoints, verification, limits of a replica file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from meridian.storage import (
    Engine,
    RebuildNeeded,
    SampleRequest,
    ScanRequest,
    check_ops,
    query,
    schema,
)
from meridian.storage import engine as engine_module
from meridian.storage.checkpoint import read_manifest
from meridian.storage.errors import (
    BadRequest,
    BadWriteSet,
    BelowHorizon,
    Busy,
    Cancelled,
    Corrupt,
    Failed,
    UnknownRelation,
)
from meridian.storage.readers import WAITING_MAX
from meridian.wire import ops

decode = msgspec.msgpack.decode
T, X = 2000, 2001
TABLE = ops.Create(T, ops.KIND_TABLE, [(1, 1), (2, 2)], 0)
INDEX = ops.Create(X, ops.KIND_INDEX, [(1, 1)], T, ops.COMPLETE)


def put(sid: int, rows: dict[bytes, tuple[Any, ...]], flags: int = 0, base: int = 1) -> ops.Put:
    width = len(next(iter(rows.values())))
    attnums = tuple(range(base, base + width))
    return ops.Put(sid, flags, attnums, list(rows), b"", b"", list(rows.values()))


def key(i: int) -> bytes:
    return i.to_bytes(8, "big")


def numbered(start: int, stop: int) -> dict[bytes, tuple[Any, ...]]:
    return {key(i): (i, b"v%d" % i) for i in range(start, stop)}


def rows_at(engine: Engine, tau: int, sid: int = T, cols: tuple[int, ...] = (1, 2)) -> Any:
    return decode(engine.scan(ScanRequest(tau, sid, cols=cols))[1])


def filled(path: Path) -> Engine:
    engine = Engine.create(path, boot_id="boot")
    entries = {b"\1" + key(i): (key(i), i) for i in range(20)}
    engine.apply(
        [(100, [TABLE, INDEX, put(T, numbered(0, 20), 1), put(X, entries, 1, 0)])], {0: 5}, b"note"
    )
    return engine


# Trust


def test_same_boot_is_trusted_after_a_crash(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    engine.abandon()
    engine = Engine.open(tmp_path / "s.db", boot_id="boot", durable={0: 5})
    assert (engine.positions, engine.note, engine.applied_tau) == ({0: 5}, b"note", 100)
    assert len(rows_at(engine, 100)) == 20


def test_other_boot_is_trusted_only_after_a_clean_close(tmp_path: Path) -> None:
    filled(tmp_path / "s.db").close()
    engine = Engine.open(tmp_path / "s.db", boot_id="next", durable={0: 5})
    engine.abandon()
    with pytest.raises(RebuildNeeded, match="restarted"):
        Engine.open(tmp_path / "s.db", boot_id="third", durable={0: 5})


def test_pages_are_synced_before_the_clean_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages copied back by the thread are not synced yet: the mark must not outrun them."""
    order: list[str] = []
    sync, mark = os.fsync, schema._mark
    monkeypatch.setattr(schema.os, "fsync", lambda fd: (order.append("sync"), sync(fd)))
    monkeypatch.setattr(
        schema, "_mark", lambda db, **kw: (order.append(f"clean={kw['clean']}"), mark(db, **kw))
    )
    filled(tmp_path / "s.db").close()
    assert order == ["sync", "clean=True"]


def test_a_file_ahead_of_the_journal_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "s.db").close()
    for durable in ({0: 4}, {}, {1: 9}):
        with pytest.raises(RebuildNeeded, match="ahead"):
            Engine.open(tmp_path / "s.db", boot_id="boot", durable=durable)
    Engine.open(tmp_path / "s.db", boot_id="boot", durable={0: 6}).abandon()


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with pytest.raises(RebuildNeeded):
        Engine.open(path, boot_id="boot", durable=None)
    engine = filled(path)
    engine._db.execute("UPDATE file SET format = 3").fetchall()
    engine.close()
    with pytest.raises(RebuildNeeded, match="format 3"):
        Engine.open(path, boot_id="boot", durable=None)
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(RebuildNeeded):
        Engine.open(path, boot_id="boot", durable=None)
    path.write_bytes(b"")
    with pytest.raises(RebuildNeeded):
        Engine.open(path, boot_id="boot", durable=None)


def test_kill_9_while_applying(tmp_path: Path) -> None:
    """Whatever the position says was applied is there, whole, and nothing else."""
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from tests.storage.test_files import *
        engine = Engine.create(Path({str(tmp_path / "s.db")!r}), boot_id="boot")
        engine.apply([(100, [TABLE])], {{0: 1}})
        print("ready", flush=True)
        for i in range(1, 1_000_000):
            rows = {{key(j): (i, b"x" * 500) for j in range(20)}}
            engine.apply([(100 + i, [put(T, rows)])], {{0: 1 + i}})
            engine.stage(bytes(16), i - 1, [put(T, {{key(1000 + i): (i, b"")}}, 1)], {{1: i}})
        """
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    for _ in range(3):
        worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env)
        assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
        threading.Event().wait(0.3)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        engine = Engine.open(tmp_path / "s.db", boot_id="boot", durable=None)
        i = engine.positions[0] - 1
        assert i > 0 and engine.applied_tau == 100 + i
        assert {row[1] for row in rows_at(engine, 1 << 40)} == {i}
        staged = engine._db.execute("SELECT chunks FROM staged").fetchall()
        assert staged == [(engine.positions[1],)]
        assert engine.verify().damages == []
        engine.abandon()


# Apply


def test_apply_is_idempotent(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    commits = [(110, [put(T, {key(1): (7, b"")})]), (120, [ops.Delete(T, 0, [key(2)], b"", b"")])]
    for _ in range(3):
        engine.apply(commits, {0: 7})
    engine.apply(commits[:1], {0: 6})
    assert engine.positions == {0: 7}
    assert engine.stats([T])[0].rows == 19
    assert len(rows_at(engine, 110)) == 20 and len(rows_at(engine, 120)) == 19
    assert [line for line in engine.verify().damages if "index" not in line] == []


def test_the_log_stays_short_under_steady_writes(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    for i in range(400):
        rows = {key(j): (i, b"x" * 1000) for j in range(i * 300, i * 300 + 300)}
        engine.apply([(200 + i, [put(T, rows, 1 if i else 0)])], {0: 6 + i})
        # Reads between them share a snapshot that ends with the next write.
        for j in (i * 300, i * 300 + 299):
            assert decode(engine.get(200 + i, T, (1,), [key(j)])[1]) == [[key(j), i]]
        assert engine._pinned and engine._db.in_transaction
    written = (tmp_path / "s.db").stat().st_size
    assert written > 100 << 20
    assert (tmp_path / "s.db-wal").stat().st_size < 40 << 20
    assert engine._wal._thread is not None
    engine.close()
    engine = Engine.open(tmp_path / "s.db", boot_id="next", durable=None)
    assert engine.stats([T])[0].rows == 120_000


def test_short_reads_share_a_snapshot_until_the_next_write(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    shape = (T, 0, 0, (1,), ())

    def seen(tau: int) -> Any:
        page = engine.try_lookup(tau, key(1), key(1) + b"\0", 2, 1 << 20, shape)
        assert page is not None and engine._db.in_transaction
        assert page[1] == engine.get(tau, T, (1,), [key(1)])[1]
        return decode(page[1])[0][1]

    for tau in range(110, 130):
        engine.apply([(tau, [put(T, {key(1): (tau, b"")})])], {0: tau})
        assert not engine._db.in_transaction
        assert [seen(tau), seen(tau), seen(tau - 1) if tau > 110 else tau - 1] == [
            tau,
            tau,
            tau - 1,
        ]
    # A write that fails goes back to what was there before, and so do the reads.
    with pytest.raises(Corrupt):
        engine.apply(
            [(130, [put(T, {key(1): (130, b"")}), ops.Delete(9, 0, [key(1)], b"", b"")])], {}
        )
    assert seen(131) == 129
    # The log is copied and starts over although nobody writes and a snapshot is open.
    second = apsw.Connection(str(engine.path))
    second.execute("SELECT * FROM state").fetchall()
    assert second.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)[0] > 0
    engine.apply([(132, [put(T, {key(1): (132, b"")})])], {0: 132})
    assert second.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)[0] < 10
    assert seen(132) == 132
    # One that is given up, and one that fails, leave nothing behind.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "SHORT_STEPS", 1)
        assert engine.try_lookup(132, key(1), key(1) + b"\0", 2, 1 << 20, shape) is None
    with pytest.raises(TypeError):
        engine.get(132, T, (1,), [object()])  # type: ignore[list-item]
    assert seen(132) == 132
    # What ends the snapshot by itself does no harm.
    engine._db.execute("ROLLBACK")
    assert decode(engine.get(132, T, (1,), [key(1)])[1])[0][1] == 132
    engine.apply([(133, [put(T, {key(1): (133, b"")})])], {0: 133})
    assert seen(133) == 133
    engine.close()
    again = Engine.open(tmp_path / "s.db", boot_id="next", durable=None)
    assert decode(again.get(133, T, (1,), [key(1)])[1])[0][1] == 133
    again.close()


def test_a_failed_batch_leaves_nothing(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    before = rows_at(engine, 1000)
    with pytest.raises(Corrupt):
        engine.apply(
            [
                (110, [ops.Create(5000, 0, [(1, 1)], 0), put(T, {key(1): (7, b"")})]),
                (111, [put(9999, {key(1): (7,)})]),
            ],
            {0: 7},
        )
    assert rows_at(engine, 1000) == before
    assert (engine.positions, engine.applied_tau) == ({0: 5}, 100)
    with pytest.raises(UnknownRelation):
        engine.get(1000, 5000, (), [b"x"])
    engine.apply([(110, [ops.Create(5000, 0, [(1, 1)], 0)])], {0: 6})
    assert decode(engine.get(1000, 5000, (), [b"x"])[1]) == []


def test_full_disk_rolls_back_and_recovers(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    pages = engine._db.execute("PRAGMA page_count").fetchall()[0][0]
    engine._db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall()
    rows = {key(i): (i, b"x" * 2000) for i in range(1000, 1500)}
    with pytest.raises(Failed, match="full"):
        engine.apply([(110, [put(T, rows)])], {0: 6})
    assert len(rows_at(engine, 1000)) == 20 and engine.positions == {0: 5}
    engine._db.execute("PRAGMA max_page_count = 1000000").fetchall()
    engine.apply([(110, [put(T, rows)])], {0: 6})
    assert len(decode(engine.scan(ScanRequest(1000, T))[1])) == 520
    assert engine.verify().damages[1:] == []  # the 500 rows have no index entries: one damage


def test_columns_added_and_relations_dropped(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    long = b"d" * 5000
    for attnum, default in ((3, -(1 << 63)), (4, long), (5, None), (6, b""), (7, (1 << 63) - 1)):
        column_class = 1 if isinstance(default, int) else 2
        engine.apply([(110 + attnum, [ops.Add(T, attnum, column_class, default)])], {0: 10})
    engine.apply([(130, [put(T, {key(1): (7, b"new")})])], {0: 11})
    row = [key(0), -(1 << 63), long, None, b"", (1 << 63) - 1]
    assert rows_at(engine, 200, cols=(3, 4, 5, 6, 7))[0] == row
    assert rows_at(engine, 200, cols=(3, 4, 5, 6, 7))[1][2] == long
    engine.apply([(140, [ops.Drop(T), ops.Drop(X)])], {0: 12})
    assert len(rows_at(engine, 139)) == 20
    for tau in (140, 1000):
        with pytest.raises(UnknownRelation):
            engine.get(tau, T, (1,), [key(1)])
        with pytest.raises(UnknownRelation):
            rows_at(engine, tau)
    engine.raise_floor(139)
    while engine.collect(5):
        pass
    assert len(rows_at(engine, 139)) == 20
    engine.raise_floor(140)
    while engine.collect(5):
        pass
    tables = engine._db.execute("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'r2%'")
    assert tables.fetchall() == [(0,)]
    assert engine.known_columns(T) is None
    with pytest.raises(BelowHorizon):
        rows_at(engine, 139)


def test_a_large_dropped_relation_goes_in_slices(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    rows = {key(i): (i, "b" if i % 10 == 0 else b"") for i in range(100, 6000)}
    big = [k for k, v in rows.items() if v[1] == "b"]
    chunk = [put(T, rows), ops.Big(T, 2, big, [b"z" * 3000] * len(big)), ops.Drop(T)]
    engine.apply([(110, chunk)], {0: 6})
    engine.raise_floor(200)
    slices = 0
    while engine.collect(500):
        slices += 1
    assert slices >= 6
    assert engine._db.execute("SELECT count(*) FROM big").fetchall() == [(0,)]


# Large transactions with DDL


def test_staged_ddl_is_invisible_until_resolved(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    made, added = bytes(16), b"1" * 16
    new = ops.Create(5000, 0, [(1, 1)], 0)
    engine.stage(made, 0, [put(5000, {b"a": (1,)}, 1), new, ops.Drop(T)], {0: 6})
    engine.stage(made, 1, [put(5000, {b"b": (2,)}, 1)], {0: 7})
    with pytest.raises(UnknownRelation):
        rows_at(engine, 1000, 5000, (1,))
    assert len(rows_at(engine, 1000)) == 20
    engine.abandon()
    engine = Engine.open(tmp_path / "s.db", boot_id="boot", durable=None)
    engine.resolve(made, 2, 150, {0: 8})
    assert rows_at(engine, 150, 5000, (1,)) == [[b"a", 1], [b"b", 2]]
    with pytest.raises(UnknownRelation):
        rows_at(engine, 150)
    assert len(rows_at(engine, 149)) == 20
    while engine.settle():
        pass
    assert rows_at(engine, 150, 5000, (1,)) == [[b"a", 1], [b"b", 2]]
    engine.stage(added, 0, [ops.Add(5000, 2, 1, 7), put(5000, {b"c": (3, 4)}, 1)], {0: 9})
    engine.apply([(160, [put(5000, {b"d": (5,)})])], {0: 10})
    engine.resolve(added, 1, 170, {0: 11})
    expected = [[b"a", 1, 7], [b"b", 2, 7], [b"c", 3, 4], [b"d", 5, 7]]
    assert rows_at(engine, 170, 5000, (1, 2)) == expected


def test_discarded_ddl_leaves_the_names_free(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    txid = bytes(16)
    new = ops.Create(5000, 0, [(1, 1)], 0)
    engine.stage(txid, 0, [new, put(5000, {b"a": (1,)}, 1), ops.Add(T, 3, 1, 7)], {0: 6})
    engine.discard(txid, {0: 7})
    while engine.settle() or engine.collect():
        pass
    assert engine.known_columns(5000) is None
    engine.apply([(150, [ops.Add(T, 3, 2, b"other")])], {0: 8})
    assert rows_at(engine, 150, cols=(3,))[0] == [key(0), b"other"]
    engine.abandon()
    engine = Engine.open(tmp_path / "s.db", boot_id="boot", durable=None)
    assert rows_at(engine, 150, cols=(3,))[0] == [key(0), b"other"]


def test_two_stagings_add_the_same_column(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    first, second = b"1" * 16, b"2" * 16
    engine.stage(first, 0, [ops.Add(T, 3, 1, 7)], {0: 6})
    engine.stage(second, 0, [ops.Add(T, 3, 1, 8)], {0: 7})
    engine.discard(second, {0: 8})
    engine.resolve(first, 1, 150, {0: 9})
    assert rows_at(engine, 150, cols=(3,))[0] == [key(0), 7]


def test_missing_chunks_are_noticed(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    engine.stage(bytes(16), 0, [put(T, {key(50): (1, b"")}, 1)], {0: 6})
    with pytest.raises(Corrupt):
        engine.stage(bytes(16), 2, [put(T, {key(51): (1, b"")}, 1)], {0: 8})
    for txid, chunks in ((bytes(16), 2), (b"x" * 16, 1)):
        with pytest.raises(Corrupt):
            engine.resolve(txid, chunks, 150, {0: 9})
    assert len(rows_at(engine, 150)) == 20
    engine.resolve(bytes(16), 1, 150, {0: 9})
    engine.resolve(bytes(16), 1, 150, {0: 9})
    assert len(rows_at(engine, 150)) == 21


def test_chunks_read_again_after_settling_leave_nothing(tmp_path: Path) -> None:
    """The position may lag behind a large transaction that is settled already."""
    engine = filled(tmp_path / "s.db")
    chunk = [put(T, {key(1): (7, b"new"), key(50): (1, b"")})]
    for _ in range(3):
        engine.stage(bytes(16), 0, chunk, {})
        engine.resolve(bytes(16), 1, 150, {})
        while engine.settle():
            pass
        assert engine.unresolved() == []
        assert len(rows_at(engine, 150)) == 21 and engine.stats([T])[0].rows == 21
    numbered = f"SELECT count(*) FROM r{T} WHERE ts >= {1 << 62}"
    assert engine._db.execute(numbered).fetchall() == [(0,)]


# Reads


def test_reads_refuse_nonsense(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    with pytest.raises(BadRequest):
        engine.get(100, T, (9,), [key(1)])
    with pytest.raises(BadRequest):
        engine.scan(ScanRequest(100, T, row_sid=X))
    with pytest.raises(BadRequest):
        engine.scan(ScanRequest(100, T, row_filter=[4, 1]))
    with pytest.raises(BadRequest):
        engine.scan(ScanRequest(100, T, limit=-1))
    with pytest.raises(BadRequest):
        engine.scan(ScanRequest(100, T, flags=64))
    with pytest.raises(BadRequest):
        engine.scan(ScanRequest(100, T, group=(), aggs=()))
    with pytest.raises(BadRequest):
        engine.get(100, T, (1,), [1, 2])  # type: ignore[list-item]
    with pytest.raises(UnknownRelation):
        engine.get(99, T, (1,), [key(1)])
    assert decode(engine.get(100, T, (1,), [])[1]) == []


def test_get_pages_by_size(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    keys = [key(i) for i in range(30, 40)]
    rows = dict.fromkeys(keys, (1, "b"))
    engine.apply([(110, [put(T, rows), ops.Big(T, 2, keys, [b"x" * (1 << 20)] * 10)])], {0: 6})
    got: list[Any] = []
    while True:
        more, page = engine.get(110, T, (2,), keys[len(got) :])
        assert len(page) <= 4 << 20
        got += decode(page)
        if not more:
            break
    assert [row[0] for row in got] == keys and all(len(row[1]) == 1 << 20 for row in got)


def test_hot_rows_are_scanned_by_skipping(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    for i in range(400):
        engine.apply([(200 + i, [put(T, {key(j): (i, b"") for j in range(5)})])], {0: 6 + i})
    relation = engine._relations[T]
    assert relation.crowded and relation.superseded == 2000
    full = ScanRequest(600, T, cols=(1,))
    seeks = engine._db.execute(*_plan(engine, full)).fetchall()
    assert any("RECURSIVE" in row[3] for row in seeks)
    assert [row[1] for row in rows_at(engine, 250, cols=(1,))[:6]] == [50] * 5 + [5]
    engine.apply([(700, [ops.Delete(T, 0, [key(i) for i in range(20)], b"", b"")])], {0: 500})
    assert rows_at(engine, 700) == [] and len(rows_at(engine, 699)) == 20
    rows = {key(i): (i, b"") for i in range(1000)}
    engine.apply([(710, [put(T, rows, 1)])], {0: 501})
    engine.apply([(711, [ops.Delete(T, 0, list(rows), b"", b"")])], {0: 502})
    assert not engine._relations[T].crowded, "one version per dead key: read them all"


def _plan(engine: Engine, request: ScanRequest) -> tuple[str, tuple[Any, ...]]:
    statement = query.scan(engine._snapshot, request)
    return "EXPLAIN QUERY PLAN " + statement.sql, statement.values


def test_sample_and_stats(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    engine.apply([(110, [put(T, {key(i): (i, b"x" * 90) for i in range(100, 20100)}, 1)])], {0: 6})
    rows, size_bytes = engine.stats([T])[0]
    assert rows == 20020 and 100 < size_bytes / rows < 125
    assert engine.stats([777]) == [(0, 0)]
    sampled = decode(engine.sample(110, T, 2000, (1,))[1])
    assert 1600 < len(sampled) < 2400 and sampled == sorted(sampled)
    job = engine.readers.submit(SampleRequest(110, T, 100_000))
    assert len(decode(job.future.result(10)[1])) == 20020
    assert engine.try_scan(ScanRequest(110, T)) is None
    never = [6, 1, 3, -1]
    assert engine.try_scan(ScanRequest(110, T, key(0), key(1 << 40), filter=never)) is None
    few = ScanRequest(110, T, key(0), key(5), cols=(1,), filter=[6, 1, 3, 3])
    assert (
        engine.try_scan(few)
        == engine.scan(few)
        == (False, b"\x91\x92" + b"\xc4\x08" + key(3) + b"\x03")
    )
    assert len(decode(engine.scan(ScanRequest(110, T, cols=()))[1])) == 20020


def test_a_sample_that_does_not_fit_is_thinned(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    rows = {key(i): (i, b"x" * 2000) for i in range(100, 20100)}
    engine.apply([(110, [put(T, rows, 1)])], {0: 6})
    more, page = engine.sample(110, T, 20_000, (1, 2))
    numbers = [row[1] for row in decode(page)]
    assert not more and len(page) <= 12 << 20 and len(numbers) > 3000
    assert sum(n > 10_100 for n in numbers) > 0.4 * len(numbers), "not only the first keys"


def test_long_reads_can_be_cancelled(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    rows = {key(i): (i, b"") for i in range(100, 100_000)}
    engine.apply([(110, [put(T, rows, 1)])], {0: 6})
    never: Any = [6, 1, 3, -1]
    for _ in range(10):
        never = [2, never, [1, [6, 1, 1, -5], [6, 2, 3, b"y"]]]
    jobs = [engine.readers.submit(ScanRequest(110, T, filter=never)) for _ in range(40)]
    for job in jobs[:39]:
        job.cancel()
    for job in jobs[:39]:
        with pytest.raises(Cancelled):
            job.future.result(20)
    assert jobs[39].future.result(20) == (False, b"\x90")
    jobs = [engine.readers.submit(ScanRequest(110, T, filter=never)) for _ in range(3)]
    engine.close()
    for job in jobs:
        with pytest.raises(Cancelled):
            job.future.result(20)


def test_the_queue_of_long_reads_is_bounded(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    request = ScanRequest(100, T)
    with pytest.raises(Busy):
        for _ in range(WAITING_MAX + 100_000):
            engine.readers.submit(request)
    engine.close()
    with pytest.raises(Busy):
        engine.readers.submit(request)


def test_long_reads_see_their_snapshot_while_others_write(tmp_path: Path) -> None:
    """A reader thread never sees half of a settling transaction."""
    engine = filled(tmp_path / "s.db")
    txid = bytes(16)
    changed = {key(i): (i + 1000, b"new") for i in range(0, 3000)}
    engine.apply([(110, [put(T, numbered(20, 3000), 1)])], {0: 6})
    engine.stage(txid, 0, [put(T, changed)], {0: 7})
    engine.resolve(txid, 1, 120, {0: 8})
    wanted = {110: (b"v7", 3000), 120: (b"new", 3000)}
    jobs = []
    while engine.settle(50):
        tau = 110 + 10 * (len(jobs) % 2)
        jobs.append((tau, engine.readers.submit(ScanRequest(tau, T, cols=(2,)))))
    assert len(jobs) > 20
    for tau, job in jobs:
        rows = decode(job.future.result(20)[1])
        assert (rows[7][1], len(rows)) == wanted[tau]
    engine.close()


# Checkpoints and verification


def test_checkpoint_restores_everything(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    engine.stage(bytes(16), 0, [put(T, {key(50): (1, "b")}, 1)], {0: 6})
    engine.stage(bytes(16), 1, [ops.Big(T, 2, [key(50)], [b"big" * 1000])], {0: 7})
    info = engine.checkpoint(tmp_path / "c1")
    assert (info.positions, info.applied_tau, info.note) == ({0: 7}, 100, b"note")
    assert read_manifest(tmp_path / "c1") == info
    engine.apply([(200, [put(T, {key(1): (7, b"later")})])], {0: 8})
    engine.abandon()
    with pytest.raises(FileExistsError):
        engine.checkpoint(tmp_path / "c1")
    engine = Engine.restore(
        tmp_path / "c1", tmp_path / "s.db", boot_id="another machine", durable={0: 9}
    )
    assert len(rows_at(engine, 300)) == 20 and engine.unresolved() == [bytes(16)]
    engine.resolve(bytes(16), 2, 210, {0: 9})
    assert rows_at(engine, 210)[-1] == [key(50), 1, b"big" * 1000]
    while engine.settle():
        pass
    assert rows_at(engine, 210)[-1] == [key(50), 1, b"big" * 1000]
    engine.close()
    with pytest.raises(RebuildNeeded, match="ahead"):
        Engine.restore(tmp_path / "c1", tmp_path / "s.db", boot_id="x", durable={0: 6})


def test_checkpoint_while_writing(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    rows = {key(i): (0, b"x" * 1000) for i in range(1000, 16000)}
    engine.apply([(110, [put(T, rows, 1)])], {0: 6})
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(engine.checkpoint(tmp_path / "c")))
    thread.start()
    i = 0
    while thread.is_alive():
        i += 1
        engine.apply([(110 + i, [put(T, {key(j): (i, b"") for j in range(20)})])], {0: 6 + i})
    thread.join()
    copy = Engine.restore(tmp_path / "c", tmp_path / "copy.db", boot_id="b", durable=None)
    at = results[0].positions[0] - 6
    assert i > 3 and copy.applied_tau == 110 + at
    expected = {at} if at else set(range(20))
    assert {row[1] for row in rows_at(copy, 1 << 40)[:20]} == expected


def test_incomplete_checkpoints_are_refused(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    with pytest.raises(Cancelled):
        engine.checkpoint(tmp_path / "stopped", stop=lambda: True)
    engine.checkpoint(tmp_path / "short")
    os.truncate(tmp_path / "short" / "storage.db", 16384)
    engine.checkpoint(tmp_path / "new")
    manifest = tmp_path / "new" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"version":1', b'"version":2'))
    for name in ("stopped", "short", "new", "absent"):
        with pytest.raises(RebuildNeeded):
            Engine.restore(tmp_path / name, tmp_path / "r.db", boot_id="b", durable=None)


DAMAGES = {
    "entry without a row": f"DELETE FROM r{T} WHERE k = x'0000000000000003'",
    "row without an entry": f"DELETE FROM r{X} WHERE c1 = 3",
    "two entries": f"INSERT INTO r{X} SELECT k || x'00', ts, te, c0, c1 FROM r{X} WHERE c1 = 3",
    "overlapping": f"INSERT INTO r{T} SELECT k, ts - 1, te, c1, c2 FROM r{T} WHERE c1 = 3",
    "counter says": f"UPDATE relations SET rows = 7 WHERE sid = {T}",
    "big value is missing": f"UPDATE r{T} SET c2 = 'b' WHERE c1 = 3",
    "big value without its row": f"INSERT INTO big VALUES({T}, x'55', 100, 2, x'00')",
    "big values of unknown": "INSERT INTO big VALUES(77, x'55', 100, 2, x'00')",
    "table is missing": f"DROP TABLE r{T}",
    "no byte string": f"UPDATE r{T} SET te = 'x' WHERE c1 = 3",
    "unknown transaction": f"UPDATE r{T} SET ts = {(1 << 62) + 5} WHERE c1 = 3",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_damage(tmp_path: Path, damage: str) -> None:
    engine = filled(tmp_path / "s.db")
    sound = engine.verify()
    assert (sound.damages, sound.notes, sound.rows, sound.relations) == ([], [], 40, 2)
    engine._db.execute(DAMAGES[damage]).fetchall()
    assert any(damage in line for line in engine.verify().damages), engine.verify()


def test_verify_reports_a_damaged_page(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    rows = {key(i): (i, b"x" * 500) for i in range(1000, 3000)}
    engine.apply([(110, [put(T, rows, 1)])], {0: 6})
    engine.close()
    with (tmp_path / "s.db").open("r+b") as file:
        file.seek(-5 * 16384, os.SEEK_END)
        file.write(os.urandom(3 * 16384))
    engine = Engine.open(tmp_path / "s.db", boot_id="boot", durable=None)
    assert engine.verify().damages
    engine.abandon()


def test_partial_indexes_give_notes(tmp_path: Path) -> None:
    engine = filled(tmp_path / "s.db")
    partial = ops.Create(3000, ops.KIND_INDEX, [(1, 1)], T)
    engine.apply([(110, [partial, put(3000, {b"e": (key(1), 1)}, 1, 0)])], {0: 6})
    report = engine.verify()
    assert report.damages == [] and "19 rows" in report.notes[0]


# Write sets that must not reach the journal


GOOD = put(T, numbered(0, 3))


@pytest.mark.parametrize(
    "op",
    [
        put(T, {b"b": (1, b""), b"a": (1, b"")}),
        ops.Put(T, 0, (1, 2), [b"a", b"a"], b"", b"", [(1, b""), (1, b"")]),
        ops.Put(T, 0, (1, 2), [b"a"], b"", b"", []),
        ops.Put(T, 0, (1, 2), [b"a"], b"", b"", [(1,)]),
        ops.Put(T, 0, (1, 1), [b"a"], b"", b"", [(1, 1)]),
        put(T, {b"a": (1.5, b"")}),
        put(T, {b"a": (1, "text")}),
        put(T, {b"a": (1, [1])}),
        put(T, {b"a": (1 << 63, b"")}),
        ops.Big(T, 2, [b"a"], []),
        ops.Big(T, 2, [b"a"], ["b"]),  # type: ignore[list-item]
        ops.Delete(T, 0, [b"b", b"a"], b"", b""),
        ops.Delete(T, 0, ["a"], b"", b""),  # type: ignore[list-item]
        ops.Add(T, 3, 1, 1.5),
        ops.Add(T, 3, 1, 1 << 63),
        ops.Add(T, 3, 9, None),
        ops.Create(T, 9, [], 0),
        ops.Create(T, 0, [(1, 9)], 0),
        ops.Create(T, 0, [(1, 1), (1, 1)], 0),
        ops.Create(T, 0, [(-1, 1)], 0),
    ],
)
def test_bad_write_sets_are_refused(op: ops.Op) -> None:
    check_ops([GOOD])
    with pytest.raises(BadWriteSet):
        check_ops([GOOD, op])
