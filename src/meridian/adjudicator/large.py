"""A large transaction on its way: its chunks are journaled and compared as they arrive (6.3)."""

from __future__ import annotations

from zlib import crc32

import msgspec

from meridian.adjudicator.cut import Bounds, Cut
from meridian.adjudicator.events import Commit
from meridian.adjudicator.footprint import Footprint
from meridian.adjudicator.ranges import Ranges
from meridian.adjudicator.window import Draft, keys_of
from meridian.wire.partition import NOBODY, Span
from meridian.wire.votes import Tally

LARGE_KEYS = 4_096
"""A write set with more keys is compared with the window in slices."""


class Large:
    """Its keys lie in `draft`, its relations in `prints`, its chunks in the journal at `bodies`."""

    __slots__ = (
        "alone",
        "bodies",
        "bounds",
        "crc",
        "draft",
        "everywhere",
        "final",
        "floor",
        "floor_spans",
        "foreign",
        "last",
        "prints",
        "spans",
        "tau_start",
        "waiting",
    )

    def __init__(self, tau_start: int, draft: Draft, *, alone: bool) -> None:
        self.tau_start = tau_start
        self.draft = draft
        self.prints: list[Footprint] = []
        self.bodies: list[int] = []
        self.crc = 0
        self.final: Commit | None = None
        self.waiting: list[int] = []
        self.last: bytes | None = None
        """The chunk of COMMIT once it was taken: an earlier attempt may have brought it."""
        self.alone = alone
        """It was not cut by range: this adjudicator owned everything."""
        self.spans: tuple[Span, ...] = ()
        """What this adjudicator owned when the first chunk came."""
        self.bounds: list[Bounds] = []
        self.floor: int | None = None
        self.floor_spans: tuple[Span, ...] | None = None
        """For which ranges `floor` was found; None: for none."""
        self.foreign = Tally()
        self.everywhere = False

    def take(self, chunk: bytes, print_: Footprint) -> None:
        """The next chunk, the last one included."""
        self.crc = crc32(chunk, self.crc)
        # Recording a check as a share can only make others more careful.
        self.draft.add(keys_of(print_.writes), keys_of(print_.shares + print_.checks))
        relations = without_keys(print_)
        if not self.prints or self.prints[-1] != relations:
            self.prints.append(relations)

    def take_cut(self, chunk: bytes, found: Cut, number: int) -> None:
        """The same of one owner among several."""
        own = found.part(number)
        self.take(chunk, own.footprint)
        self.bounds.append(own.bounds)
        self.floor_spans = None
        self.everywhere = self.everywhere or found.everywhere
        if NOBODY in found.parts:
            self.foreign += found.parts[NOBODY].tally

    def floor_in(self, ranges: Ranges) -> int | None:
        """The highest floor of the ranges that hold its keys; None if one is not owned."""
        if self.floor_spans is not ranges.spans:
            self.floor = ranges.floor(bound for some in self.bounds for bound in some)
            self.floor_spans = ranges.spans
        return self.floor


def without_keys(print_: Footprint) -> Footprint:
    """Only the relations of a footprint."""
    return msgspec.structs.replace(print_, writes=b"", shares=b"", checks=b"")


def is_large(print_: Footprint) -> bool:
    """Whether it is compared in slices although it came in one chunk."""
    return len(print_.writes) + len(print_.shares) + len(print_.checks) > 8 * LARGE_KEYS
