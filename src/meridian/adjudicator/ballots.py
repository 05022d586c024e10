"""The leading half: transactions that wait for the votes of other owners (design 5.3, 5.5)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

from meridian.adjudicator.events import Code, Commit, Effect, Send
from meridian.limits import ATTEMPTS_SPENT
from meridian.wire.votes import EpochId, Tally, Verdict, Vote

FINAL_CODES = (Code.CONFLICT, Code.CATALOG, Code.FLOOR, Code.MALFORMED, Code.KEYS)
"""A voter's no for one of these is the transaction's abort; for others the attempt's end."""


class Ballot:
    """One attempt of one transaction.  Without `event` its COMMIT has not arrived yet."""

    __slots__ = ("attempt", "deadline", "event", "tau_start", "txid", "votes", "waiting")

    def __init__(self, txid: bytes, tau_start: int, attempt: int, deadline: int) -> None:
        self.txid = txid
        self.tau_start = tau_start
        self.attempt = attempt
        self.deadline = deadline
        self.event: Commit | None = None
        self.waiting: list[int] = []
        self.votes: dict[int, Vote] = {}

    @property
    def complete(self) -> bool:
        """Whether everybody voted."""
        assert self.event is not None
        return all(voter in self.votes for voter in self.event.voters)

    def refusal(self) -> Vote | None:
        """A no; one that is the transaction's end comes before others."""
        refusals = [vote for vote in self.votes.values() if vote.code]
        final = [vote for vote in refusals if vote.code in FINAL_CODES]
        return next(iter(final or refusals), None)

    @property
    def agreed(self) -> bool:
        """Every voter has said yes."""
        return self.complete and not any(vote.code for vote in self.votes.values())

    def tally(self) -> Tally:
        """All keys that voters hold."""
        return reduce(Tally.__add__, (vote.tally for vote in self.votes.values()), Tally())

    def all_votes(self) -> list[Vote]:
        """Every vote so far."""
        return list(self.votes.values())

    @property
    def tau_a(self) -> int:
        """tau_commit must exceed this."""
        return max(vote.tau_a for vote in self.votes.values())

    @property
    def tau_max(self) -> int:
        """tau_commit must not exceed this."""
        return min(vote.tau_max for vote in self.votes.values())


class Ballots:
    """At most one live attempt per id; an attempt that was given up never comes back."""

    def __init__(self) -> None:
        self._ballots: dict[bytes, Ballot] = {}
        self._spent: dict[bytes, tuple[int, int]] = {}
        """Highest attempt given up, and tau_start."""

    def __len__(self) -> int:
        return len(self._ballots)

    @property
    def idle(self) -> bool:
        """No attempt is known, live or given up."""
        return not self._ballots and not self._spent

    def __iter__(self) -> Iterator[Ballot]:
        return iter(list(self._ballots.values()))

    def get(self, txid: bytes) -> Ballot | None:
        """The live attempt of a transaction."""
        return self._ballots.get(txid)

    def spent(self, txid: bytes) -> int:
        """Its highest attempt that was given up."""
        return self._spent.get(txid, (0, 0))[0]

    def add(self, ballot: Ballot) -> None:
        """An attempt begins."""
        assert ballot.txid not in self._ballots and ballot.attempt > self.spent(ballot.txid)
        self._ballots[ballot.txid] = ballot

    def give_up(self, ballot: Ballot) -> None:
        """This attempt never commits."""
        del self._ballots[ballot.txid]
        self._spent.pop(ballot.txid, None)
        self._spent[ballot.txid] = ballot.attempt, ballot.tau_start

    def end(self, txid: bytes) -> None:
        """The transaction has its outcome."""
        self._ballots.pop(txid, None)
        self._spent.pop(txid, None)

    def overflow(self) -> tuple[bytes, int] | None:
        """A transaction (id, tau_start) to be aborted, so that its attempts may be forgotten."""
        if len(self._spent) <= ATTEMPTS_SPENT:
            return None
        for txid, (_, tau_start) in self._spent.items():
            if txid not in self._ballots:
                return txid, tau_start
        return None

    def deadline(self) -> int | None:
        """When the next attempt has waited for long enough."""
        return min((one.deadline for one in self._ballots.values()), default=None)


def verdicts(voters: tuple[int, ...], ballot: Ballot, epoch: EpochId, tau: int) -> list[Effect]:
    """The outcome of one attempt, to its voters."""
    verdict = Verdict(ballot.txid, ballot.attempt, epoch, tau)
    return [Send(voter, verdict) for voter in voters]


def voters_of(ballot: Ballot) -> tuple[int, ...]:
    """Who may hold keys for this attempt, as far as is known."""
    return ballot.event.voters if ballot.event is not None else tuple(sorted(ballot.votes))
