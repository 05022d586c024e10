"""Whatever befalls the bytes of a snapshot's objects is noticed (design 6.7)."""

from __future__ import annotations

from pathlib import Path
from random import Random

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meridian.journal.core import Position
from meridian.snapshots import SnapshotUnusable, open_objects, restore, writer
from meridian.snapshots import manifest as manifests
from meridian.snapshots.manifest import Manifest, Part
from meridian.storage import Engine
from meridian.wire.ranges import ALL
from tests.storage.feed import Feed

STARTS = {0: Position(epoch=(3, 77), n=5, sealed=True, tau=9, members=(1,))}
WHOLE = manifests.encode(Manifest("s0", 12, 3, ALL, {0: 7}, STARTS, 1, 6, (Part(4, 1), Part(2, 5))))


@pytest.mark.parametrize("mask", (1, 128, 255))
def test_every_flipped_byte_of_a_manifest(mask: int) -> None:
    for at in range(len(WHOLE)):
        data = bytearray(WHOLE)
        data[at] ^= mask
        with pytest.raises(SnapshotUnusable):
            manifests.decode(bytes(data))
    for size in range(len(WHOLE)):
        with pytest.raises(SnapshotUnusable):
            manifests.decode(WHOLE[:size])


def test_every_flipped_bit_of_a_part() -> None:
    data = Random(1).randbytes(700)
    part = Part(len(data), google_crc32c.value(data))
    assert manifests.intact(part, data)
    for bit in range(8 * len(data)):
        wrong = int.from_bytes(data, "big") ^ 1 << bit
        assert not manifests.intact(part, wrong.to_bytes(len(data), "big"))


@given(st.binary(min_size=1, max_size=300), st.data())
@settings(max_examples=300, deadline=None)
def test_any_run_of_damaged_bytes_up_to_the_checksum_s_length(
    data: bytes, draw: st.DataObject
) -> None:
    """And everything that changes a part's length."""
    part = Part(len(data), google_crc32c.value(data))
    at = draw.draw(st.integers(0, len(data) - 1))
    run = draw.draw(st.binary(min_size=1, max_size=4))
    wrong = data[:at] + run + data[at + len(run) :]
    assert manifests.intact(part, wrong) == (wrong == data)


def test_a_restore_tells_of_any_byte_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PART_BYTES", 40_000)
    feed = Feed(3)
    for _ in range(40):
        feed.grow()
    engine = Engine.create(tmp_path / "a.db", boot_id="boot", owned=ALL)
    feed.feed(engine)
    n = max(one for one in feed.boundaries if one <= engine.positions[0])
    starts = {0: Position(epoch=(3, 77), n=n, sealed=True, tau=engine.applied_tau, members=(1,))}
    objects = open_objects(tmp_path / "objects")
    name, manifest = writer.write(
        engine.path, objects, shard="s0", nonce="a", starts=starts, scratch=tmp_path / "scratch.db"
    )
    random, target = Random(7), tmp_path / "b.db"
    for number in [*range(len(manifest.parts))] * 8:
        object_ = manifests.part_name(name, number)
        data = objects.get(object_)
        at = random.choice((0, len(data) - 1, random.randrange(len(data))))
        bit = 1 << random.randrange(8)
        objects.put(object_, data[:at] + bytes((data[at] ^ bit,)) + data[at + 1 :])
        with pytest.raises(SnapshotUnusable, match=f"part {number} is damaged"):
            restore(objects, name, target)
        assert not target.exists() and not list(tmp_path.glob("*.restoring"))
        objects.put(object_, data)
    assert restore(objects, name, target) == manifest
