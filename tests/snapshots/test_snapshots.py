"""Snapshots: taken under load, whole or not there, damaged ones found, rebuilt with the journal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from meridian.errors import MeridianError
from meridian.journal.core import Position
from meridian.snapshots import (
    Manifest,
    Objects,
    SnapshotUnusable,
    manifest,
    newest,
    open_objects,
    restore,
    retention,
    write,
    writer,
)
from meridian.snapshots.objects import Entry
from meridian.storage import Engine, schema
from meridian.storage.errors import BadRequest, Cancelled
from meridian.wire.ranges import ALL, END, Owned, place
from tests.storage.feed import KEYS, SIDS, Feed, gathered, rows_of


def build(path: Path, feed: Feed, owned: Any = ALL, through: int | None = None) -> Engine:
    engine = Engine.create(path, boot_id="boot", owned=owned)
    feed.feed(engine, through)
    return engine


def start_of(feed: Feed, engine: Engine) -> dict[int, Position]:
    n = max(one for one in feed.boundaries if one <= engine.positions[0])
    return {0: Position(epoch=(3, 77), n=n, sealed=True, tau=engine.applied_tau, members=(1,))}


def take(engine: Engine, feed: Feed, objects: Objects, nonce: str = "a", **how: Any) -> Any:
    scratch = engine.path.with_name(f"scratch-{nonce}.db")
    return write(
        engine.path, objects, shard="s0", nonce=nonce, starts=start_of(feed, engine),
        scratch=scratch, **how,
    )  # fmt: skip


def opened(path: Path) -> Engine:
    # A restored file is clean: any boot may trust it.
    return Engine.open(path, boot_id="another", durable=None)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PART_BYTES", 40_000)


@pytest.mark.parametrize("seed", range(10))
def test_snapshot_and_journal_give_the_file_back(seed: int, tmp_path: Path) -> None:
    feed = Feed(seed)
    for _ in range(100):
        feed.grow()
    engine = build(tmp_path / "a.db", feed)
    objects = open_objects(tmp_path / "objects")
    name, taken = take(engine, feed, objects)
    assert taken.tau == engine.applied_tau and len(taken.parts) > 3
    assert taken.starts[0].epoch == (3, 77) and taken.starts[0].members == (1,)
    for _ in range(60):
        feed.grow()
    feed.feed(engine)
    found = restore(objects, name, tmp_path / "b.db")
    assert found == taken and not (tmp_path / "scratch-a.db").exists()
    copy = opened(tmp_path / "b.db")
    assert copy.generation != engine.generation and copy.unresolved() == []
    assert copy.positions[0] >= found.starts[0].n and copy.verify().damages == []
    feed.feed(copy)
    for tau in (taken.tau, feed.tau, (taken.tau + feed.tau) // 2, 1001):
        for sid in SIDS:
            assert rows_of(copy, tau, sid) == rows_of(engine, tau, sid)
    copy.abandon()
    engine.abandon()


def test_without_history_reads_below_the_snapshot_are_refused(tmp_path: Path) -> None:
    """A digest that agrees says nothing of versions replaced before its tau (rot)."""
    feed = Feed(3)
    for _ in range(60):
        feed.grow()
    engine = build(tmp_path / "a.db", feed)
    objects = open_objects(tmp_path / "objects")
    name, taken = take(engine, feed, objects)
    restore(objects, name, tmp_path / "b.db", history=False)
    copy = opened(tmp_path / "b.db")
    assert copy.horizon == taken.tau > engine.horizon
    assert rows_of(copy, taken.tau, SIDS[0]) == rows_of(engine, taken.tau, SIDS[0])
    assert rows_of(copy, taken.tau - 1, SIDS[0]) == "BelowHorizon"
    copy.abandon()
    engine.abandon()


def test_a_snapshot_is_taken_while_applying_goes_on(tmp_path: Path) -> None:
    feed = Feed(5)
    for _ in range(300):
        feed.grow()
    engine = build(tmp_path / "a.db", feed, through=100)
    objects = open_objects(tmp_path / "objects")
    results: list[tuple[str, Manifest]] = []
    starts = start_of(feed, engine)
    gate = threading.Event()

    def snapshot(number: int) -> None:
        gate.wait(5)
        results.append(
            write(
                engine.path, objects, shard="s0", nonce=f"{number}", starts=starts,
                scratch=tmp_path / f"scratch-{number}.db",
            )
        )  # fmt: skip

    threads = [threading.Thread(target=snapshot, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    gate.set()
    for item in feed.items[engine.positions[0] :]:
        item.perform(engine)
        engine.settle(2)
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for number, (name, taken) in enumerate(results):
        restore(objects, name, tmp_path / f"r{number}.db")
        copy = opened(tmp_path / f"r{number}.db")
        for sid in SIDS:
            assert rows_of(copy, taken.tau, sid) == rows_of(engine, taken.tau, sid)
        feed.feed(copy)
        for sid in SIDS:
            assert rows_of(copy, feed.tau, sid) == rows_of(engine, feed.tau, sid)
        assert copy.verify().damages == []
        copy.abandon()


@pytest.mark.parametrize("seed", range(6))
def test_a_shard_is_split_and_merged_by_snapshots(seed: int, tmp_path: Path) -> None:
    """The new replicas come from snapshots cut to their ranges, and one tau for the merge."""
    feed = Feed(seed)
    for _ in range(150):
        feed.grow()
    engine = build(tmp_path / "a.db", feed)
    objects = open_objects("memory://")
    cut = place(2001, KEYS[feed.random.randrange(len(KEYS))])
    halves = [[Owned(b"", cut)], [Owned(cut, END)]]
    names = []
    for number, owned in enumerate(halves):
        names.append(take(engine, feed, objects, f"{number}", owned=owned)[0])
        for _ in range(30):
            feed.grow()
        feed.feed(engine)
    parts = []
    for number, name in enumerate(names):
        restore(objects, name, tmp_path / f"p{number}.db")
        part = opened(tmp_path / f"p{number}.db")
        assert part.ranges.owned == tuple(halves[number])
        feed.feed(part)
        parts.append(part)
    for sid in SIDS:
        assert gathered(parts, feed.tau, sid) == rows_of(engine, feed.tau, sid)
    # Back together: both as of one tau, whatever each has applied since.
    tau = parts[0].applied_tau
    merged, manifests = [], []
    starts = start_of(feed, parts[0])
    for _ in range(30):
        feed.grow()
    feed.feed(parts[1])
    for number, part in enumerate(parts):
        name, found = write(
            part.path, objects, shard="m", nonce=f"{number}", starts=starts, tau=tau,
            scratch=tmp_path / "scratch.db",
        )  # fmt: skip
        manifests.append(found)
        restore(objects, name, tmp_path / f"m{number}.db")
        merged.append(opened(tmp_path / f"m{number}.db"))
    assert manifests[0].tau == manifests[1].tau == tau
    merged[1].close()
    merged[0].import_ranges(tmp_path / "m1.db")
    feed.feed(merged[0])
    feed.feed(engine)
    for sid in SIDS:
        assert gathered([merged[0]], feed.tau, sid) == rows_of(engine, feed.tau, sid)
    while merged[0].settle():
        pass
    assert merged[0].verify().damages == []
    with pytest.raises(BadRequest):
        take(engine, feed, objects, "z", owned=[Owned(b"\x81", b"\x82")])


class Breaking(Objects):
    """Ends after so many puts; the last one may leave half an object."""

    def __init__(self, inner: Objects, puts: int, half: bool) -> None:
        self.inner = inner
        self.left = puts
        self.half = half

    def put(self, name: str, data: bytes) -> None:
        if self.left == 0:
            if self.half:
                self.inner.put(name, data[: len(data) // 2])
            raise KeyboardInterrupt
        self.left -= 1
        self.inner.put(name, data)


def test_a_crash_at_any_moment_leaves_no_half_snapshot(tmp_path: Path) -> None:
    feed = Feed(2)
    for _ in range(80):
        feed.grow()
    engine = build(tmp_path / "a.db", feed)
    objects = open_objects(tmp_path / "objects")
    before, first = take(engine, feed, objects, "000")
    puts = len(first.parts) + 1
    for number in range(2 * puts):
        with pytest.raises(KeyboardInterrupt):
            breaking = Breaking(objects, number // 2, number % 2 == 1)
            take(engine, feed, breaking, f"c{number:02}")
        usable = [name for name, found in newest(objects, "s0") if isinstance(found, Manifest)]
        assert usable == [before]
    # Half a manifest is found out; the one before it serves.
    name, found = next(iter(newest(objects, "s0")))
    assert isinstance(found, SnapshotUnusable) and name.endswith(f"c{2 * puts - 1}")
    after = take(engine, feed, objects, "d")[0]
    assert next(iter(newest(objects, "s0")))[0] == after
    with pytest.raises(Cancelled):
        take(engine, feed, objects, "e", stop=lambda: True)
    assert not list(tmp_path.glob("scratch*"))


def test_a_kill_leaves_no_half_snapshot(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, sys, obstore
        from pathlib import Path
        from meridian.snapshots import objects as o, open_objects, write, writer
        from meridian.storage import Engine
        writer.PART_BYTES = 40_000
        root, count = Path(sys.argv[1]), int(sys.argv[2])
        engine = Engine.create(root / "a.db", boot_id="boot")
        sync = o._sync_file
        def dying(*arguments):
            global count
            count -= 1
            if count < 0:
                os._exit(9)
            sync(*arguments)
        o._sync_file = dying
        write(engine.path, open_objects(root / "objects"), shard="s0", nonce=str(count),
              starts={}, scratch=root / "scratch.db")
        print("whole")
        """
    )
    environment = dict(os.environ, PYTHONPATH="src")
    whole = 0
    for count in range(8):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), str(count)],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        found = dict(newest(open_objects(tmp_path / "objects"), "s0"))
        whole += done.stdout == "whole\n"
        # One whose manifest was in place but not yet acknowledged may count: it is whole.
        assert all(isinstance(one, Manifest) for one in found.values()), found
        assert whole <= len(found)
        for name in found:
            restore(open_objects(tmp_path / "objects"), name, tmp_path / "b.db")
            opened(tmp_path / "b.db").abandon()
    assert whole >= 1


@pytest.mark.parametrize("older", [False, True])
def test_a_snapshot_names_every_journal_that_its_file_knows(older: bool, tmp_path: Path) -> None:
    feed = Feed(3)
    for _ in range(40):
        feed.grow()
    objects = open_objects(tmp_path / "objects")
    engine = build(tmp_path / "a.db", feed)
    engine.apply([], {**engine.positions, 1: 0})
    tau = engine.applied_tau - 1 if older else None
    with pytest.raises(AssertionError, match="a journal without a place to begin"):
        take(engine, feed, objects, tau=tau)
    assert list(newest(objects, "s0")) == []
    engine.abandon()


@pytest.mark.parametrize("what", ["flip", "cut", "gone", "swap", "manifest"])
def test_damage_is_found_and_the_snapshot_before_serves(what: str, tmp_path: Path) -> None:
    feed = Feed(3)
    for _ in range(60):
        feed.grow()
    engine = build(tmp_path / "a.db", feed)
    objects = open_objects(tmp_path / "objects")
    first = take(engine, feed, objects, "a")[0]
    feed.grow()
    feed.feed(engine)
    second, _ = take(engine, feed, objects, "b")
    directory = tmp_path / "objects" / second
    part = directory / "part-000001"
    data = bytearray(part.read_bytes())
    if what == "flip":
        data[1000] ^= 1
        part.write_bytes(data)
    elif what == "cut":
        part.write_bytes(data[:-1])
    elif what == "gone":
        part.unlink()
    elif what == "swap":
        shutil.copy(directory / "part-000002", part)
    else:
        data = bytearray((directory / "manifest").read_bytes())
        data[len(data) // 2] ^= 4
        (directory / "manifest").write_bytes(data)
    used = None
    for name, found in newest(objects, "s0"):
        try:
            if isinstance(found, SnapshotUnusable):
                raise found
            restore(objects, name, tmp_path / "b.db")
        except SnapshotUnusable as error:
            assert second in str(error)
            assert not (tmp_path / "b.db").exists() and not list(tmp_path.glob("*.restoring"))
            continue
        used = name
        break
    assert used == first
    copy = opened(tmp_path / "b.db")
    feed.feed(copy)
    assert rows_of(copy, feed.tau, 2000) == rows_of(engine, feed.tau, 2000)


def test_unknown_versions_are_refused(tmp_path: Path) -> None:
    feed = Feed(1)
    engine = build(tmp_path / "a.db", feed)
    objects = open_objects("memory://")
    name, found = take(engine, feed, objects)
    data = manifest.encode(found)
    assert manifest.decode(data) == found
    for bad, why in (
        (data[:4] + b"\2" + data[5:], "version 2"),
        (b"XXXX" + data[4:], "no manifest"),
        (data[:-1], "checksum"),
        (b"", "no manifest"),
    ):
        with pytest.raises(SnapshotUnusable, match=why):
            manifest.decode(bad)
    import msgspec

    other = msgspec.structs.replace(found, storage_format=schema.FORMAT + 1)
    objects.put(f"{name}/manifest", manifest.encode(other))
    with pytest.raises(SnapshotUnusable, match="format"):
        restore(objects, name, tmp_path / "b.db")
    with pytest.raises(SnapshotUnusable, match="not whole"):
        restore(objects, "s0/none", tmp_path / "b.db")
    with pytest.raises(ValueError):
        open_objects("nowhere://x")


def test_a_failing_store_is_an_error_of_its_kind(tmp_path: Path) -> None:
    objects = open_objects(tmp_path / "o")
    (tmp_path / "o").rmdir()
    (tmp_path / "o").write_bytes(b"")
    with pytest.raises(MeridianError, match="object store"):
        objects.put("a/b", b"x")
    assert open_objects(tmp_path / "p").list("none") == []
    with pytest.raises(KeyError):
        open_objects(tmp_path / "p").get("none")


# Retention


def entries(*names: str, age_s: float = 0.0) -> list[Entry]:
    return [Entry(name, 1, 1_000_000.0 - age_s) for name in names]


def test_retention_removes_manifests_first_and_spares_what_is_under_way() -> None:
    names = [f"s/{tau:020d}-x" for tau in range(4)]
    found = [e for n in names for e in entries(f"{n}/manifest", f"{n}/part-000000")]
    old = entries("s/00000000000000000009-dead/part-000000", age_s=retention.ORPHAN_AGE_S + 1)
    young = entries("s/00000000000000000010-new/part-000000", age_s=60)
    gone = retention.removable([*found, *old, *young], 1_000_000.0)
    assert gone == [
        f"{names[0]}/manifest", f"{names[0]}/part-000000",
        f"{names[1]}/manifest", f"{names[1]}/part-000000",
        old[0].name,
    ]  # fmt: skip
    assert retention.removable(found[:2], 1_000_000.0) == []


def test_a_late_snapshot_behind_a_trim_displaces_nothing() -> None:
    """A replica that lagged wrote it; the journals do not hold what follows it any more."""
    names = [f"s/{tau:020d}-x" for tau in range(4)]
    found = [e for n in names for e in entries(f"{n}/manifest", f"{n}/part-000000")]
    gone = retention.removable(found, 1_000_000.0, 1, lambda name: name == names[1])
    assert gone == [f"{n}/{what}" for n in (names[0], *names[2:]) for what in LAYOUT]
    # Where none is readable, none is worth another one's place.
    assert retention.removable(found, 1_000_000.0, 1, lambda name: False) == []


LAYOUT = ("manifest", "part-000000")


def test_journals_are_trimmed_behind_the_oldest_kept_snapshot() -> None:
    def one(**starts: int) -> Manifest:
        positions = {int(j[1:]): Position(n=n, epoch=(n, 1)) for j, n in starts.items()}
        return Manifest("s", 1, 0, ALL, {}, positions, 2, 0, ())

    a, b, c = one(j0=10, j1=7), one(j0=20, j1=9), one(j0=12, j1=3, j2=5)
    assert retention.trim_positions([[b, a], [c]]) == {
        0: Position(n=10, epoch=(10, 1)), 1: Position(n=3, epoch=(3, 1)),
    }  # fmt: skip
    assert retention.trim_positions([[a], []]) == {}
    assert retention.trim_positions([]) == {}
