"""Broken rules of storage in ranges: owning, completeness, orders, routing, cuts, snapshots."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import msgspec

from meridian.clock.tau import Interval
from meridian.control import performer as perform
from meridian.control.performer import Performer
from meridian.control.views import Remove, Shrink
from meridian.crossbar import core as xb
from meridian.journal.core import Position
from meridian.routing import core as routing
from meridian.sim.messages import Parts
from meridian.sim.world import MS
from meridian.snapshots.manifest import Manifest
from meridian.snapshots.retention import trim_positions
from meridian.wire.ops import Big, Delete, Op, Put, decode_chunk, encode_chunk
from meridian.wire.ranges import END, START, Owned, Range, Ranges, place


class _OwnsEverything(Ranges):
    """Answers for places that lie elsewhere: nothing is there, it believes."""

    def at(self, where: bytes) -> Owned | None:
        return super().at(where) or Owned(START, END)

    def clip(self, wanted: Range, *, descending: bool) -> tuple[Range, int] | None:
        return wanted, 0


class _NoBase(Ranges):
    """Answers from versions that were collected."""

    def at(self, where: bytes) -> Owned | None:
        found = super().at(where)
        return None if found is None else Owned(found.lo, found.hi)

    def clip(self, wanted: Range, *, descending: bool) -> tuple[Range, int] | None:
        found = super().clip(wanted, descending=descending)
        return None if found is None else (found[0], 0)


class _TrustsOrders(Performer):
    """Never asks for the map in force."""

    def _reduce(
        self, now: Interval, do: perform.Do, action: Shrink | Remove
    ) -> list[perform.Effect]:
        if self._done(action) is not None:
            return super()._reduce(now, do, action)
        return [*self._perform(action), perform.Answer(do.source, action.action, True)]


class _NoExpiry(Performer):
    """Performs what should be void by now."""

    def _reduce(
        self, now: Interval, do: perform.Do, action: Shrink | Remove
    ) -> list[perform.Effect]:
        late = msgspec.structs.replace(action, expires=1 << 62)
        return super()._reduce(now, perform.Do(do.source, late), late)


class _WholePart(routing.Router):
    """Takes what a replica answered for as all that it was asked for."""

    def _answered(
        self, now: Interval, event: routing.Answered, effects: list[routing.Effect]
    ) -> None:
        found = self._attempts.get(event.attempt)
        if found is not None:
            event = msgspec.structs.replace(event, scanned=found[1].range)
        super()._answered(now, event, effects)


class _PagesOutOfOrder(routing.Router):
    """Joins pages in the order in which they came."""

    def _finish(
        self,
        read: routing._Read,
        pages: Sequence[int],
        more: bool,
        effects: list[routing.Effect],
    ) -> None:
        super()._finish(read, sorted(pages), more, effects)


class _DropsBorder(xb.Crossbar):
    """A range does not hold its lower end."""

    def _cut(
        self, number: int, item: xb.Transaction | xb.Body, ranges: Ranges
    ) -> xb.Transaction | xb.Body | None:
        cut = super()._cut(number, item, ranges)
        if cut is None:
            return None
        los = [one.lo for one in ranges.owned]
        ops = [_without(op, los) for op in decode_chunk(cut.chunk)]
        return msgspec.structs.replace(cut, chunk=encode_chunk(ops))


def _without(op: Op, places: list[bytes]) -> Op:
    if not isinstance(op, Put | Delete) or isinstance(op, Big):
        return op
    names = [place(op.sid, key) for key in op.keys]
    for border in places:
        at = bisect_left(names, border)
        if at < len(names) and names[at] == border:
            keys = [*op.keys[:at], *op.keys[at + 1 :]]
            w, i = op.w[: 8 * at] + op.w[8 * at + 8 :], op.i[: 8 * at] + op.i[8 * at + 8 :]
            if isinstance(op, Delete):
                return Delete(op.sid, op.flags, keys, w, i)
            rows = [*op.rows[:at], *op.rows[at + 1 :]]
            return Put(op.sid, op.flags, op.attnums, keys, w, i, rows)
    return op


def _some_shards(kept: Sequence[Sequence[Manifest]]) -> dict[int, Position]:
    return trim_positions([shard for shard in kept if shard])


def _newest_only(kept: Sequence[Sequence[Manifest]]) -> dict[int, Position]:
    """As if the newest snapshot of all were that of every shard."""
    every = [manifest for shard in kept for manifest in shard]
    return trim_positions([[max(every, key=lambda one: one.tau)]]) if every else {}


def _known_to_some(kept: Sequence[Sequence[Manifest]]) -> dict[int, Position]:
    """Trims a journal behind the snapshots that know it, whatever the others lack."""
    manifests = [manifest for shard in kept for manifest in shard]
    journals = sorted({journal for one in manifests for journal in one.starts})
    knowing = {j: [one.starts[j] for one in manifests if j in one.starts] for j in journals}
    trimmed = {j: min(starts, key=lambda start: start.n) for j, starts in knowing.items()}
    return {**trimmed, **trim_positions(kept)} if all(kept) else {}


GROWN: dict[str, object] = {
    "sharded": True, "colocated": False, "streams": False, "coded": False, "checkpoints": 0,
    "false_bounds": False, "rots": 0, "controllers": 0, "deaths": 0, "zone_crashes": 0,
    "one_way_cuts": 0, "steerer_crashes": 0, "long_pauses": 0, "safety_ns": 5_000 * MS,
    "clock_error": 20_000, "adds": 3, "closes": 1, "hosts": 3, "zones": 2, "shards": 3,
    "copies": 2, "disturbers": 2, "snapshots": 60, "keeps": 1, "crashes": 3, "host_crashes": 3,
    "clients": 4, "weights": (1, 3, 1, 1, 0, 0, 0, 0, 0),
}  # fmt: skip
"""Journals that come while ranges move, are copied and built anew from snapshots."""


def _grown(**parts: Any) -> Parts:
    return Parts(swarm=GROWN, **parts)


ROTTING: dict[str, object] = {
    "sharded": True, "colocated": False, "machine": False, "adds": 0, "closes": 0, "controllers": 0,
    "hosts": 3, "zones": 1, "copies": 2, "shards": 2, "disturbers": 2, "host_crashes": 3,
    "snapshots": 40, "keeps": 2, "object_rots": 30, "rots": 0, "checkpoints": 0, "gateways": 0,
}  # fmt: skip
"""Ranges move while objects of their snapshots rot."""


MUTANTS = (
    ("answers for places it does not own", "8", 100, Parts(ranges=_OwnsEverything)),
    ("reads below the base of a range", "8", 200, Parts(ranges=_NoBase)),
    ("serves an added range before it is complete", "8", 400, Parts(lanes_apart=False)),
    (
        "gives up ranges without asking for the map",
        "8",
        50,
        Parts(performer=_TrustsOrders),
    ),
    ("performs orders after their time", "8", 150, Parts(performer=_NoExpiry)),
    ("router: a part's answer is the whole answer", "8", 50, Parts(router=_WholePart)),
    ("router: pages in the order they came", "8", 50, Parts(router=_PagesOutOfOrder)),
    ("crossbar: a range without its lower end", "7", 50, Parts(crossbar=_DropsBorder)),
    ("snapshot: the manifest before the parts", "6.7", 250, Parts(manifest_last=False)),
    (
        "snapshot: takes damaged parts",
        "6.7",
        60,
        Parts(intact=lambda part, data: True, swarm=ROTTING),
    ),
    ("trim: a shard without a snapshot", "6.7", 100, Parts(trim=_some_shards)),
    (
        "trim: behind the newest snapshot of any shard",
        "6.7",
        100,
        Parts(trim=_newest_only),
    ),
    ("snapshot: forgets journals without records", "6.7", 200, _grown(snapshot_members=False)),
    ("trim: a journal that a snapshot does not know", "6.7", 200, _grown(trim=_known_to_some)),
)
