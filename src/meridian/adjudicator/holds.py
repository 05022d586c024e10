"""Keys held for transactions that other adjudicators decide (design 5.3, 5.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

import msgspec

from meridian.adjudicator.ahead import SentAhead
from meridian.adjudicator.footprint import Footprint
from meridian.adjudicator.window import Draft, Keys, keys_of
from meridian.wire.reach import GLOBAL
from meridian.wire.votes import Ask, EpochId, Vote

Age = tuple[int, bytes]
"""(tau_start, id): of two transactions the one with the smaller age is the older."""


class Meeting(Enum):
    """What a transaction does that meets holds of others."""

    PASS = 0
    WAIT = 1
    """It is older than all of them: they end soon."""
    RETRY = 2
    """It is younger than one of them."""


class Hold:
    """One promise: nothing that conflicts with these keys commits at or below tau_max.

    Unless the outcome became known.  `unresolved`: the clock has passed tau_max, but the hold
    changes the catalog, so what became of it must be read first.
    """

    __slots__ = (
        "ask",
        "everywhere",
        "footprint",
        "sent",
        "shares",
        "tau_max",
        "unresolved",
        "vote",
        "writes",
    )

    def __init__(
        self, ask: Ask, footprint: Footprint, vote: Vote, sent: SentAhead | None = None
    ) -> None:
        self.ask = ask
        self.sent = sent
        """Keys that came before the question; they are held too."""
        self.footprint = footprint
        self.vote = vote
        self.tau_max = vote.tau_max
        self.everywhere = ask.everywhere
        self.writes = frozenset(keys_of(footprint.writes))
        # What is only checked is held as a share is, but not recorded when the hold ends.
        self.shares = frozenset(keys_of(footprint.shares + footprint.checks))
        self.unresolved = False

    def absorb(self, earlier: Hold) -> None:
        """This promise is made over an earlier one for the same transaction."""
        self.tau_max = max(self.tau_max, earlier.tau_max)
        self.everywhere = self.everywhere or earlier.everywhere
        self.sent = self.sent or earlier.sent
        assert earlier.sent in (None, self.sent), "keys are sent ahead once"
        if earlier.footprint != self.footprint:
            self.footprint = msgspec.structs.replace(
                self.footprint,
                writes=self.footprint.writes + earlier.footprint.writes,
                shares=self.footprint.shares + earlier.footprint.shares,
            )
            self.writes |= earlier.writes
            self.shares |= earlier.shares

    @property
    def age(self) -> Age:
        return self.ask.tau_start, self.ask.txid

    @property
    def version(self) -> tuple[EpochId, int]:
        """A later attempt, or one of a later leader, has a higher one."""
        return self.ask.epoch, self.ask.attempt

    def meets(self, writes: Keys, shares: Keys, print_: Footprint, *, everywhere: bool) -> bool:
        """Whether the two may not both commit without seeing each other (5.1, 5.2)."""
        if not (
            self.writes.isdisjoint(writes)
            and self.shares.isdisjoint(writes)
            and self.writes.isdisjoint(shares)
        ):
            return True
        if self.sent is not None and self.sent.draft.meets(writes, shares):
            return True
        return self._meets_relations(print_, everywhere=everywhere)

    def _meets_relations(self, print_: Footprint, *, everywhere: bool) -> bool:
        if not self.everywhere and not everywhere:
            return False
        if self.everywhere and everywhere:
            return True
        schema, rows = (self.footprint, print_) if self.everywhere else (print_, self.footprint)
        return concerns(schema, rows)

    def meets_draft(self, draft: Draft, prints: Iterable[Footprint], *, everywhere: bool) -> bool:
        """The same for a large transaction, whose keys lie in sets."""
        if self.sent is not None:
            # Set against set would take too long: one of them waits.  Conflicts are found later,
            # when the keys that were held are recorded.
            sids = frozenset(self.footprint.sids)
            if any(not sids.isdisjoint(one.sids) for one in prints):
                return True
        for part in (*draft.writes, *draft.shares):
            if not self.writes.isdisjoint(part):
                return True
        for part in draft.writes:
            if not self.shares.isdisjoint(part):
                return True
        return any(self._meets_relations(one, everywhere=everywhere) for one in prints)


def concerns(schema: Footprint, rows: Footprint) -> bool:
    """Whether a schema change or relation lock concerns who writes or locks these rows."""
    reach = schema.reach
    if reach is not None and reach.kind == GLOBAL and rows.sids:
        return True
    touched = {*schema.schema.touched, *schema.schema.read, *(reach.sids if reach else ())}
    return not (
        touched.isdisjoint(rows.sids)
        and frozenset(schema.locked).isdisjoint(rows.sids)
        and frozenset(schema.shared).isdisjoint(rows.written)
    )


class Holds:
    """All holds of one voter, by transaction id; at most one each."""

    def __init__(self) -> None:
        self._holds: dict[bytes, Hold] = {}

    def __len__(self) -> int:
        return len(self._holds)

    def __iter__(self) -> Iterator[Hold]:
        return iter(list(self._holds.values()))

    def get(self, txid: bytes) -> Hold | None:
        """The hold of a transaction."""
        return self._holds.get(txid)

    def add(self, hold: Hold) -> None:
        """A promise is given."""
        assert hold.ask.txid not in self._holds
        self._holds[hold.ask.txid] = hold

    def remove(self, txid: bytes) -> None:
        """The promise has ended."""
        del self._holds[txid]

    def tau_max(self) -> int:
        """The highest promise."""
        return max((hold.tau_max for hold in self._holds.values()), default=0)

    def meet(
        self, age: Age, print_: Footprint, *, everywhere: bool, sent: SentAhead | None = None
    ) -> Meeting:
        """What a transaction must do now."""
        if not self._holds:
            return Meeting.PASS
        writes, shares = keys_of(print_.writes), keys_of(print_.shares + print_.checks)
        return self._judge(
            age,
            [
                hold
                for hold in self._holds.values()
                if hold.ask.txid != age[1]
                and (
                    hold.meets(writes, shares, print_, everywhere=everywhere)
                    or (
                        sent is not None
                        and hold.meets_draft(sent.draft, (print_,), everywhere=everywhere)
                    )
                )
            ],
        )

    def meet_draft(
        self, age: Age, draft: Draft, prints: Sequence[Footprint], *, everywhere: bool
    ) -> Meeting:
        """The same for a large transaction of this adjudicator."""
        return self._judge(
            age,
            [
                hold
                for hold in self._holds.values()
                if hold.ask.txid != age[1]
                and hold.meets_draft(draft, prints, everywhere=everywhere)
            ],
        )

    @staticmethod
    def _judge(age: Age, met: list[Hold]) -> Meeting:
        if not met:
            return Meeting.PASS
        return Meeting.WAIT if all(age < hold.age for hold in met) else Meeting.RETRY
