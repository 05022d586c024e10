"""Commits that came together, decided together when nothing stands in their way.

The same decisions, in the same order, as one by one (`Adjudicator.step`), with loops in C: all keys
are compared with the window in one go.  Whatever may need a closer look, a conflict above all, is
left to that way: `Together.decide` then has done nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING

from meridian.adjudicator.events import AppendAll, Commit, Effect
from meridian.adjudicator.footprint import NO_SCHEMA, Footprint, plain_writes
from meridian.adjudicator.ledger import Decision
from meridian.clock.tau import Interval
from meridian.journal.record import Record
from meridian.limits import TAU_FUTURE_NS

if TYPE_CHECKING:
    from meridian.adjudicator.core import Adjudicator

KEYS = 4_096
"""Keys of one go."""
COMMITS = 8
"""Fewer commits are decided one by one."""


class Together:
    """Of one adjudicator; `fewest` commits are decided together, fewer one by one."""

    def __init__(self) -> None:
        self.fewest = COMMITS

    def commits(self, core: Adjudicator, now: Interval, events: Sequence[Commit]) -> list[Effect]:
        """Decides commits that came together.  Where something stands in the way, half and half."""
        if len(events) < self.fewest or not core.is_quiet():
            return [effect for event in events for effect in core.step(now, event)]
        records = self.decide(core, now, events)
        if records is not None:
            core.count_commits(now, len(records))
            return [AppendAll(records)]
        half = len(events) // 2
        first = self.commits(core, now, events[:half])
        return first + self.commits(core, now, events[half:])

    def decide(
        self, core: Adjudicator, now: Interval, events: Sequence[Commit]
    ) -> list[Record] | None:
        """Commits all of these, or (None) does nothing."""
        txids = [event.txid for event in events]
        starts = [event.tau_start for event in events]
        first, last = min(starts), max(starts)
        if core.ledger.under_way + len(events) > core.in_flight or any(map(_is_special, events)):
            return None
        if first < core.window.floor or core.window.receiving or last > now.latest + TAU_FUTURE_NS:
            return None
        if not self.are_new(core, txids, first):
            return None
        found = plain_writes([event.chunk for event in events])
        if found is None:
            return None
        writes, counts, sids = found
        if sum(counts) > KEYS or self.stands_against(core, events, first, tuple(sids)):
            return None
        taus = core.ledger.taus_for(now, last, len(events))
        if taus is None:
            return None
        keys = memoryview(writes).cast("Q").tolist()
        recorded = dict(zip(keys, chain.from_iterable(map(repeat, taus, counts)), strict=True))
        if self.meet(keys, recorded) or core.window.conflicts(first, keys, ()):
            return None
        waiting = [[event.to] for event in events]
        decisions = list(map(Decision, txids, starts, taus, repeat(0), waiting))
        if not core.live_all(txids, decisions):
            return None
        # From here on nothing fails.
        core.window.record_all(taus[0], taus[-1], recorded)
        written = {sid: taus[number] for sid, number in sids.items()}
        core.relations.record_writes(written, core.window.floor)
        core.outcomes.add_all(txids, taus, last)
        return core.ledger.commit_all(now, decisions, events)

    # What may stand in the way

    def are_new(self, core: Adjudicator, txids: list[bytes], first: int) -> bool:
        """Nothing was told of any of them, or is forgotten (5.6)."""
        return core.outcomes.has_none(txids, first)

    def meet(self, keys: list[int], recorded: dict[int, int]) -> bool:
        """Whether two of them write one key."""
        return len(recorded) < len(keys)

    def stands_against(
        self, core: Adjudicator, events: Sequence[Commit], first: int, sids: tuple[int, ...]
    ) -> bool:
        """Whether a schema change or a lock may, for one of them: judged by the oldest."""
        versions = [event.catver for event in events if event.catver]
        prints = (Footprint(b"", b"", b"", sids, NO_SCHEMA, 0, sids),)
        oldest = min(versions, default=0)
        stale = core.relations.stale(first, oldest, prints)
        return stale or core.relations.conflict(first, prints)


def _is_special(event: Commit) -> bool:
    return bool(event.voters or event.parts)
