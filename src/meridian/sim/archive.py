"""The world's object store: snapshots cut by range, some of them torn, and trims behind them.

Names, manifests, what is kept and how far the journals may be trimmed are the real ones
(`meridian.snapshots`); only the objects are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import google_crc32c

from meridian.journal.core import Position
from meridian.sim.messages import Parts
from meridian.sim.store import Store
from meridian.sim.world import MS, Node, SimulationError
from meridian.snapshots import manifest as manifests
from meridian.snapshots import retention
from meridian.snapshots.errors import SnapshotUnusable
from meridian.snapshots.manifest import MANIFEST_NAME, Manifest
from meridian.snapshots.objects import Entry
from meridian.wire.ranges import Owned, Range, subtract

if TYPE_CHECKING:
    from meridian.sim.fleet import Fleet

PARTS = 3
FORMAT = 1


class Objects:
    """Objects by name, in memory."""

    def __init__(self) -> None:
        self.data: dict[str, tuple[bytes, int]] = {}

    def put(self, name: str, data: bytes, now: int) -> None:
        """Whole, or not at all."""
        self.data[name] = (data, now)

    def get(self, name: str) -> bytes:
        """Raises KeyError."""
        return self.data[name][0]

    def list(self, prefix: str) -> list[Entry]:
        """All objects below a directory name, by name."""
        found = sorted(name for name in self.data if name.startswith(prefix + "/"))
        return [Entry(n, len(self.data[n][0]), self.data[n][1] / 1e9) for n in found]


def shard_name(part: Range) -> str:
    """The directory of a range's snapshots."""
    return f"{part.lo.hex()}-{part.hi.hex()}"


class Archive:
    """Snapshots of all shards."""

    def __init__(self, fleet: Fleet, parts: Parts, random: Random) -> None:
        self.objects = Objects()
        self.keep = fleet.world.swarm.keeps
        self._fleet = fleet
        self._parts = parts
        self._random = random
        self._nonce = 0
        self._rotten: dict[str, None] = {}
        """Snapshots of which an object has rotted."""

    # Writing

    def write(self, node: Node, store: Store, starts: dict[int, Position]) -> None:
        """Sends a copy in parts, the manifest last; a crash of the node tears it."""
        data = store.dump()
        size = len(data) // PARTS + 1
        blocks = [data[at : at + size] for at in range(0, len(data), size)]
        owned = store.ranges.owned
        shard = shard_name(Range(owned[0].lo, owned[-1].hi))
        self._nonce += 1
        name = manifests.directory_name(shard, store.complete, f"{self._nonce:04d}")
        manifest = Manifest(
            shard=shard,
            tau=store.complete,
            horizon=store.horizon,
            owned=owned,
            positions={journal: start.n for journal, start in starts.items()},
            starts=starts,
            storage_format=FORMAT,
            size_bytes=len(data),
            parts=tuple(manifests.Part(len(one), google_crc32c.value(one)) for one in blocks),
        )
        named = [(manifests.part_name(name, n), one) for n, one in enumerate(blocks)]
        last = (f"{name}/{MANIFEST_NAME}", manifests.encode(manifest))
        order = [*named, last] if self._parts.manifest_last else [last, *named]
        self._put(node, order, shard)

    def _put(self, node: Node, order: list[tuple[str, bytes]], shard: str) -> None:
        """One object after the other, each a while after the one before."""

        def put() -> None:
            name, data = order[0]
            self.objects.put(name, data, node.world.now)
            if name.endswith(MANIFEST_NAME):
                node.world.trace("snapshot", node.name, name)
                self._tidy(shard)
                self.trim()
            self._put(node, order[1:], shard)

        if order:
            node.after(self._random.randint(MS, 60 * MS), put)

    def _tidy(self, shard: str) -> None:
        """Old snapshots of a shard go."""
        entries = self.objects.list(shard)
        starts = {number: one.beginning for number, one in enumerate(self._fleet.journals)}

        now_s = self._fleet.world.now / 1e9
        readable = partial(self._reads_on_from, starts=starts)
        for name in retention.removable(entries, now_s, self.keep, readable):
            del self.objects.data[name]

    def trim(self) -> None:
        """Journals are cut behind what the kept snapshots of every shard of a map hold."""
        map_ = self._fleet.some_map()
        shards = list(dict.fromkeys(one.range for one in map_.shards))
        kept = [self._whole(shard_name(part)) for part in shards]
        positions = self._parts.trim(kept)
        for node in self._fleet.living():
            node.cut({journal: position.n for journal, position in positions.items()})
        for journal, position in positions.items():
            for owner in self._fleet.owners:
                if owner.number == journal:
                    owner.trim(position.n)

    def _reads_on_from(self, name: str, starts: dict[int, Position]) -> bool:
        """Whether the journals hold what follows a snapshot."""
        manifest = self._manifest(name)
        return manifest is not None and all(_reads_on(manifest, *one) for one in starts.items())

    def rot(self, random: Random) -> None:
        """A bit of an object of a snapshot changes, unnoticed, where its shard has a sound one.

        Both are kept, two at least, so that what the sound one needs is not trimmed.
        """
        shards = dict.fromkeys(name.rpartition("/")[0] for name, _ in self._all())
        self._rotten = {name: None for name in self._rotten if self.objects.list(name)}
        taken = {name.rpartition("/")[0] for name in self._rotten}
        starts = {number: one.beginning for number, one in enumerate(self._fleet.journals)}
        victims: list[str] = []
        for shard in shards:
            found = [name for name, one in self._all() if name.startswith(f"{shard}/")]
            useful = [n for n in found if self._reads_on_from(n, starts)]
            if shard not in taken and len(useful) > 1:
                victims += useful
        if not victims or self._fleet.world.healed:
            return
        name = random.choice(victims)
        object_ = random.choice([entry.name for entry in self.objects.list(name)])
        data, written = self.objects.data[object_]
        at, bit = random.randrange(len(data)), 1 << random.randrange(8)
        self.objects.data[object_] = data[:at] + bytes((data[at] ^ bit,)) + data[at + 1 :], written
        self._rotten[name] = None
        self._fleet.world.trace("object rot", name, object_.rpartition("/")[2], at, bit)

    # Reading

    def _whole(self, shard: str) -> list[Manifest]:
        """Those that the journals go on from: one that was behind a trim is none."""
        found = [one for name, one in self._all() if name.rpartition("/")[0] == shard]
        starts = {number: one.beginning for number, one in enumerate(self._fleet.journals)}
        return [one for one in found if all(_reads_on(one, j, p) for j, p in starts.items())]

    def _all(self) -> list[tuple[str, Manifest]]:
        """Every whole snapshot with its directory."""
        objects = sorted(name for name in self.objects.data if name.endswith(MANIFEST_NAME))
        found = [(name, self._manifest(name)) for name in (o.rpartition("/")[0] for o in objects)]
        return [(name, manifest) for name, manifest in found if manifest is not None]

    def _manifest(self, name: str) -> Manifest | None:
        """None if it is damaged."""
        try:
            return manifests.decode(self.objects.get(f"{name}/{MANIFEST_NAME}"))
        except SnapshotUnusable:
            self._fleet.world.count("damaged manifests seen")
            return None

    def build(self, part: Range, starts: dict[int, Position]) -> list[Store]:
        """A replica of a range: from snapshots of which the journals hold what follows.

        Several where no one snapshot holds all of it: each part then has a completeness of its own.
        Raises SimulationError where nothing holds what was trimmed.
        """
        left, stores = [part], []
        for name, manifest in self._candidates(starts):
            if not left:
                break
            try:
                for owned in manifest.owned:
                    wanted = _common(left, owned)
                    stores += [self._restore(name, manifest, one) for one in wanted]
                    left = subtract(left, owned.range)
            except SnapshotUnusable:
                self._fleet.world.count(
                    "rotten snapshots refused" if name in self._rotten else "torn snapshots refused"
                )
                continue
        if left and any(start.n for start in starts.values()):
            raise SimulationError("trimmed: no snapshot holds what the journals do not")
        stores += [Store([Owned(one.lo, one.hi, 0)]) for one in left]
        return sorted(stores, key=lambda store: store.ranges.owned[0].lo)

    def _candidates(self, starts: dict[int, Position]) -> list[tuple[str, Manifest]]:
        """Usable snapshots, the newest first; sometimes an old one comes first."""
        usable = [
            (name, manifest)
            for name, manifest in self._all()
            if all(_reads_on(manifest, j, start) for j, start in starts.items())
        ]
        usable.sort(key=lambda one: (-one[1].tau, one[0]))
        if usable and self._random.random() < 0.3:
            usable.insert(0, usable.pop(self._random.randrange(len(usable))))
        return usable

    def _restore(self, name: str, manifest: Manifest, part: Owned) -> Store:
        """The file of a snapshot, cut to a range. Raises SnapshotUnusable."""
        blocks = []
        for number, known in enumerate(manifest.parts):
            try:
                data = self.objects.get(manifests.part_name(name, number))
            except KeyError:
                raise SnapshotUnusable(f"snapshot {name} lacks part {number}") from None
            if not self._parts.intact(known, data):
                raise SnapshotUnusable(f"snapshot {name}: part {number} is damaged")
            blocks.append(data)
        store = Store(manifest.owned)
        store.load(b"".join(blocks))
        store.positions = dict(manifest.positions)
        store.own([part])
        if self._random.random() < 0.5:
            store.collect(store.complete)
        return store


def _reads_on(manifest: Manifest, journal: int, start: Position) -> bool:
    """Whether the journal still holds what follows the snapshot."""
    held = manifest.starts.get(journal)
    return held.n >= start.n if held is not None else start.n == 0


def _common(left: Sequence[Range], owned: Owned) -> list[Owned]:
    """The parts that a snapshot's range has of what is wanted."""
    parts = [Range(max(one.lo, owned.lo), min(one.hi, owned.hi)) for one in left]
    return [Owned(one.lo, one.hi, owned.base) for one in parts if one.lo < one.hi]
