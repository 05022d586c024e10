"""Self-check of a replica: do its copies hold what it holds? (pure; design section 8, D6)

Every so often a replica takes the digest of its range as of a tau that it is complete through, and
asks the other replicas of the range for theirs. Who differs from a strict majority of the copies
removes itself: it is rebuilt from snapshot and journal, which are the truth. Without a majority
(two copies, one of them wrong) nobody knows who is: the copy that was rebuilt longest ago goes
first, one at a time, until they agree.

Rotten bits may be read before they are found: the check bounds for how long, not whether.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import msgspec

from meridian.clock.tau import Interval
from meridian.limits import S

EVERY_NS = 60 * S
PATIENCE_NS = 30 * S
"""For the answers of the others; who has not answered has no vote."""
SCHEMA_TRIES = 3
"""Differences of schema that count as one: DDL that one copy has not applied yet passes by."""

# Events


class Due(msgspec.Struct, frozen=True):
    """Time for a check: the replica is complete through `tau`, `peers` hold its range too."""

    tau: int
    peers: tuple[int, ...]


class Counted(msgspec.Struct, frozen=True):
    """A digest of check `number`: (schema, content), own or of a peer; None: it cannot tell.

    `built`: when (tau) the copy was last built from snapshot and journal.
    """

    number: int
    replica: int
    built: int
    schema: Hashable
    content: Hashable


class TimerFired(msgspec.Struct, frozen=True):
    """The timer of SetTimer fired; late, early and double firings are harmless."""


Event = Due | Counted | TimerFired

# Effects


class Count(msgspec.Struct, frozen=True):
    """Take the digest of the range as of `tau`; for oneself or, asked over the wire, a peer."""

    number: int
    replica: int
    tau: int


class RemoveSelf(msgspec.Struct, frozen=True):
    """This copy is wrong: discard the file, rebuild it from snapshot and journal."""

    number: int
    tau: int


class Suspect(msgspec.Struct, frozen=True):
    """Copies differ and no majority says which is right; one of the others is rebuilt first."""

    number: int
    replicas: tuple[int, ...]


class Agreed(msgspec.Struct, frozen=True):
    """This copy and others, `copies` in all, a strict majority, are equal as of `tau`."""

    number: int
    tau: int
    copies: int


class SetTimer(msgspec.Struct, frozen=True):
    """TimerFired once the clock's earliest reaches `at`."""

    at: int


Effect = Count | RemoveSelf | Suspect | Agreed | SetTimer


class SelfCheck:
    """The checks of one replica, one at a time."""

    def __init__(self, replica: int, patience_ns: int = PATIENCE_NS) -> None:
        self.replica = replica
        self._patience_ns = patience_ns
        self._number = 0
        self._tau = 0
        self._waiting: dict[int, None] = {}
        self._votes: dict[int, tuple[Hashable, Hashable]] = {}
        self._built: dict[int, int] = {}
        self._deadline = 0
        self._schema_misses = 0

    @property
    def busy(self) -> bool:
        """A check is under way."""
        return self._deadline > 0

    def step(self, now: Interval, event: Event) -> list[Effect]:
        """React to one event."""
        effects: list[Effect] = []
        match event:
            case Due():
                self._begin(now, event, effects)
            case Counted():
                if event.number == self._number and event.replica in self._waiting:
                    del self._waiting[event.replica]
                    if event.content is not None:
                        self._votes[event.replica] = (event.schema, event.content)
                        self._built[event.replica] = event.built
            case TimerFired():
                pass
        if self.busy and (not self._waiting or self._deadline <= now.earliest):
            self._deadline = 0
            self._decide(effects)
        return effects

    def _begin(self, now: Interval, due: Due, effects: list[Effect]) -> None:
        if self.busy or not due.peers:
            return
        assert self.replica not in due.peers
        self._number += 1
        self._tau = due.tau
        self._votes = {}
        self._waiting = dict.fromkeys((self.replica, *due.peers))
        self._deadline = now.earliest + self._patience_ns
        effects += [Count(self._number, one, due.tau) for one in self._waiting]
        effects.append(SetTimer(self._deadline))

    def _decide(self, effects: list[Effect]) -> None:
        mine = self._votes.get(self.replica)
        self._waiting = {}
        if mine is None or len(self._votes) < 2:
            return
        votes = list(self._votes.values())
        equal = votes.count(mine)
        if len(_different([schema for schema, _ in votes])) > 1:
            self._schema_misses += 1
            if self._schema_misses < SCHEMA_TRIES:
                return
        self._schema_misses = 0
        if 2 * equal > len(votes):
            effects.append(Agreed(self._number, self._tau, equal))
            return
        majority = any(2 * votes.count(vote) > len(votes) for vote in votes)
        oldest = min(self._votes, key=lambda replica: (self._built[replica], replica))
        if majority or oldest == self.replica:
            effects.append(RemoveSelf(self._number, self._tau))
        else:
            effects.append(Suspect(self._number, tuple(sorted(self._votes))))


def _different(values: Sequence[Hashable]) -> list[Hashable]:
    return list(dict.fromkeys(values))
