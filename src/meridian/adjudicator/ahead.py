"""Keys of a large transaction that a voter gets before it is asked to hold them (design 5.3).

They are compared slice by slice as they arrive, as a leader does with its own; the vote that
follows costs the same whatever their number.  Nothing is promised before that vote.
"""

from __future__ import annotations

from meridian.adjudicator.cut import Bounds, tally
from meridian.adjudicator.ranges import Ranges
from meridian.adjudicator.window import Draft, keys_of
from meridian.limits import AHEAD_KEYS
from meridian.wire.partition import Span
from meridian.wire.votes import Ahead, Tally


class SentAhead:
    """The keys of one transaction, compared up to now; `count` messages brought them."""

    __slots__ = ("bounds", "count", "draft", "floor", "forgotten", "spans", "tally", "until")

    def __init__(self, draft: Draft, until: int) -> None:
        self.draft = draft
        self.count = 0
        self.tally = Tally()
        self.bounds: list[Bounds] = []
        self.until = until
        """Dropped then (earliest), if nobody does it before."""
        self.forgotten = False
        """Its client has heard the outcome, or gave it up: it goes with the hold."""
        self.spans: tuple[Span, ...] | None = None
        self.floor: int | None = None

    @property
    def too_many(self) -> bool:
        """More keys than one voter holds for one transaction."""
        return self.draft.count > AHEAD_KEYS

    def take(self, message: Ahead) -> None:
        """The next message."""
        self.count += 1
        self.tally += tally(message.writes, message.shares)
        self.bounds.append(message.bounds)
        self.spans = None
        if not self.too_many:
            self.draft.add(keys_of(message.writes), keys_of(message.shares))

    def floor_in(self, ranges: Ranges) -> int | None:
        """The highest floor of the ranges that hold the keys; None if one is not owned."""
        if self.spans is not ranges.spans:
            self.floor = ranges.floor(bound for some in self.bounds for bound in some)
            self.spans = ranges.spans
        return self.floor
