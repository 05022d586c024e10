"""Answers for the transactions of journals that have ended (design 5.6, 4.7).

A closed journal never changes, so whoever has read it to its CLOSE knows every outcome that its
leader ever gave: what it holds is the first outcome, and what it does not hold can never commit.
Only what was trimmed before the reading began is unknown.
"""

from __future__ import annotations

from meridian.adjudicator.events import Absorb, Absorbed, Code, Outcome
from meridian.adjudicator.outcomes import Outcomes
from meridian.journal import core as journal


class _Reading:
    """One journal: its outcomes through record `n`."""

    def __init__(self, start: journal.Position) -> None:
        self.start = start
        self.n = start.n
        # What was decided before a trim is not in the records.
        self.outcomes = Outcomes(start.tau if start.n else 0)

    def take(self, event: Absorb) -> None:
        record, payload = event.record, event.payload
        if record.n <= self.n:
            # Read again.
            return
        assert isinstance(payload, journal.Marker) or record.n == self.n + 1, "a gap"
        self.n = record.n
        if isinstance(payload, journal.Commit):
            self.outcomes.add(record.txid, payload.tau_start, record.tau, record.tau)
        elif isinstance(payload, journal.Abort):
            self.outcomes.add(record.txid, payload.tau_start, -payload.code, 0)


class Absorber:
    """The closed journals that one adjudicator answers for, by number; all of it is volatile."""

    def __init__(self) -> None:
        self._reading: dict[int, _Reading] = {}
        self._known: dict[int, Outcomes] = {}

    def read(self, event: Absorb) -> None:
        """The next accepted record of a journal that has ended."""
        if event.journal in self._known:
            return
        one = self._reading.get(event.journal)
        if one is None or one.start != event.start:
            one = self._reading[event.journal] = _Reading(event.start)
        one.take(event)

    def end(self, event: Absorbed) -> None:
        """It was read through its CLOSE: from here on its transactions are answered."""
        if event.journal in self._known:
            return
        one = self._reading.pop(event.journal, None) or _Reading(event.position)
        assert event.position.closed, "only what cannot change any more is answered for"
        assert one.n == event.position.n, "it was read to its end"
        self._known[event.journal] = one.outcomes

    def find(
        self, journal_number: int, txid: bytes, tau_start: int, earliest: int
    ) -> tuple[Outcome, int, Code] | None:
        """(outcome, tau, code) of a transaction that named this journal; None: not absorbed."""
        outcomes = self._known.get(journal_number)
        if outcomes is None:
            return None
        value = outcomes.find(txid, tau_start)
        if value is not None and value > earliest:
            # Ahead of the clock: the answer waits, as its own leader's would (4.4).
            return Outcome.RETRY, 0, Code.STARTING
        if value is not None:
            committed = value > 0
            return (
                (Outcome.COMMITTED, value, Code.NONE)
                if committed
                else (Outcome.ABORTED, 0, Code(-value))
            )
        if tau_start < outcomes.floor:
            return Outcome.UNKNOWN, 0, Code.NONE
        return Outcome.ABORTED, 0, Code.CLOSED
