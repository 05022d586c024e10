"""Which journals exist (ADD, records of journal 0), and whether the own one has ended (4.7)."""

from __future__ import annotations

from meridian.adjudicator.ledger import Change
from meridian.clock.tau import ASSIGNER_MASK
from meridian.journal.core import Add, Close, Position


class Membership:
    """What the own journal says, and the changes that wait to be appended.

    `members` maps a journal to a tau that all of its own must exceed.  `closing`: no decision is
    made here any more; `closed_tau`: CLOSE is durable.
    """

    def __init__(self, start: Position) -> None:
        self.members: dict[int, int] = dict.fromkeys(start.members, start.tau)
        self.closing = start.closed
        self.closed_tau = start.tau if start.closed else 0
        self.waiting: list[Add | Close] = []
        self._under_way: set[int] = set()

    def ask(self, journal: int) -> bool:
        """Whether `journal` is to be added: neither there nor under way, and a number that fits."""
        assert 0 < journal <= ASSIGNER_MASK, journal
        if self.closing or journal in self.members or journal in self._under_way:
            return False
        self._under_way.add(journal)
        self.waiting.append(Add(journal))
        return True

    def close(self) -> None:
        """From here on nothing is decided; CLOSE goes last."""
        assert not self.closing
        self.closing = True
        self.waiting.append(Close())

    def durable(self, change: Change) -> None:
        """The record of a change is durable."""
        self.read(change.payload, change.tau)

    def read(self, payload: Add | Close, tau: int) -> None:
        """A record of the own journal says so."""
        if isinstance(payload, Add):
            self.members[payload.journal] = tau
            self._under_way.discard(payload.journal)
        else:
            self.closing = True
            self.closed_tau = tau
