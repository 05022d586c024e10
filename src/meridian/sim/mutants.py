"""Cores with one rule broken each.  The simulation must find every one within its number of seeds.

A mutant that is not found means that the world does not exercise its rule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from meridian.adjudicator import events as ev
from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.ledger import Decision, Ledger
from meridian.adjudicator.window import Draft, Keys, Layer, Span, Window
from meridian.clock.tau import TAU_MAX, Interval, next_tau
from meridian.crossbar import core as xb
from meridian.journal import core as journal
from meridian.journal.chain import Chain
from meridian.journal.core import Position, Reader
from meridian.journal.record import Record
from meridian.sim import (
    gate_mutants,
    must_mutants,
    shard_mutants,
    steering_mutants,
    together_mutants,
    topology_mutants,
    vote_mutants,
)
from meridian.sim.messages import Parts
from meridian.sim.mutants_coded import CODED_MUTANTS
from meridian.storage import core as st
from meridian.wire import partition

Spans = tuple[partition.Span, ...]
WHOLE: Spans = (partition.EVERYTHING,)


class Mutant(msgspec.Struct, frozen=True):
    """A broken part; `rule` of the design, `seeds` within which it must be found."""

    name: str
    rule: str
    seeds: int
    parts: Parts


def _forgets_start(
    number: int, start: Position | None = None, keys: int = 1 << 20, spans: Spans = WHOLE
) -> Adjudicator:
    return Adjudicator(number, None, keys, spans)


def _adjudicator(
    *,
    window: type[Window] | None = None,
    ledger: type[Ledger] | None = None,
    base: type[Adjudicator] = Adjudicator,
) -> Parts:
    def make(
        number: int, start: Position | None = None, keys: int = 1 << 20, spans: Spans = WHOLE
    ) -> Adjudicator:
        core = base(number, start, keys, spans)
        if window is not None:
            core.window = window(core.window.floor, keys)
        if ledger is not None:
            core.ledger = ledger(number)
        core.voter.window, core.voter.ledger = core.window, core.ledger
        return core

    return Parts(adjudicator=make)


# The conflict window


def _without(keys: Keys) -> list[int]:
    return [key for key in keys if key % 1000]


class _OneInThousand(Window):
    def conflicts(self, tau_start: int, writes: Keys, shares: Keys) -> bool:
        return super().conflicts(tau_start, _without(writes), _without(shares))


class _UpperBound(Adjudicator):
    """Counts only writes that the clock has passed."""

    def step(self, now: Interval, event: ev.Event) -> list[ev.Effect]:
        self.window.upper = now.earliest  # type: ignore[attr-defined]
        return super().step(now, event)


class _BoundedWindow(Window):
    upper = TAU_MAX

    def conflicts(self, tau_start: int, writes: Keys, shares: Keys) -> bool:
        spans: list[Any] = [*self._closed, self._open]
        hidden: list[tuple[dict[int, int], int, int]] = []
        for span in spans:
            for keys in (span.writes, span.shares) if isinstance(span.writes, dict) else ():
                late = [(key, tau) for key, tau in keys.items() if tau > self.upper]
                hidden += [(keys, key, tau) for key, tau in late]
                for key, _ in late:
                    keys[key] = 0
        found = super().conflicts(tau_start, writes, shares)
        for keys, key, tau in hidden:
            keys[key] = tau
        return found


class _NoShareRecord(Window):
    def record(self, tau: int, writes: Keys, shares: Keys) -> None:
        super().record(tau, writes, ())


class _NoShareCheck(Window):
    def conflicts(self, tau_start: int, writes: Keys, shares: Keys) -> bool:
        return super().conflicts(tau_start, writes, ())


class _FloorStays(Window):
    def _forget(self) -> None:
        floor = self.floor
        super()._forget()
        self.floor = floor


class _NoReplay(Window):
    """A new owner that does not rebuild the window from the journal."""

    live = False

    def record(self, tau: int, writes: Keys, shares: Keys) -> None:
        super().record(tau, writes if self.live else (), shares if self.live else ())


class _NoReplayAdjudicator(Adjudicator):
    def _replayed(self, now: Interval, event: ev.Replayed) -> list[ev.Effect]:
        assert isinstance(self.window, _NoReplay)
        self.window.live = True
        return super()._replayed(now, event)


class _BlindDraft(Draft):
    def observe(self, writes: Keys, shares: Keys) -> None:
        pass


class _ForgetfulDraft(Draft):
    def _plan(self, part: Keys, is_write: bool, span: Span) -> None:
        pass


class _LonelyDraft(Draft):
    def observe_layer(self, layer: Layer) -> None:
        pass


def _drafts(kind: type[Draft]) -> type[Window]:
    class Mutated(Window):
        def open_draft(self, tau_start: int) -> Draft:
            draft = kind(tau_start)
            self._drafts.append(draft)
            return draft

    return Mutated


# Durability, outcomes and time


class _AcksEarly(Adjudicator):
    def step(self, now: Interval, event: ev.Event) -> list[ev.Effect]:
        effects = super().step(now, event)
        if isinstance(event, ev.Commit) and event.txid in self._live:
            live = self._live[event.txid]
            if live.tau:
                told = [
                    ev.Answer(to, event.txid, ev.Outcome.COMMITTED, live.tau) for to in live.waiting
                ]
                live.waiting.clear()
                return [*effects, *told]
        return effects


class _AbortsEarly(Adjudicator):
    def _abort(
        self, now: Interval, txid: bytes, tau_start: int, code: ev.Code, waiting: list[int]
    ) -> list[ev.Effect]:
        effects = super()._abort(now, txid, tau_start, code, waiting)
        told = [ev.Answer(to, txid, ev.Outcome.ABORTED, 0, code) for to in waiting]
        waiting.clear()
        return [*effects, *told]


class _AcksBeforeTau(Ledger):
    def due(self, now: Interval) -> list[Decision]:
        return super().due(Interval(TAU_MAX, TAU_MAX))


class _ForgetsOutcomes(Adjudicator):
    """Outcomes are not read back from the journal."""

    def _replayed(self, now: Interval, event: ev.Replayed) -> list[ev.Effect]:
        self.outcomes._recent.clear()
        self.outcomes._settled.clear()
        return super()._replayed(now, event)


class _StatusGuesses(Adjudicator):
    """Says "aborted" of an unknown id and lets its commit pass later."""

    def _status(self, now: Interval, event: ev.Status) -> list[ev.Effect]:
        known = self._known(now, event.to, event.txid, event.tau_start)
        if known is not None:
            return known
        return [ev.Answer(event.to, event.txid, ev.Outcome.ABORTED)]


class _SameTau(Ledger):
    def tau_for(self, now: Interval, tau_start: int) -> int:
        return max(self.last_tau, tau_start)


class _NoCatalog(Adjudicator):
    def _refusal(self, tau_start: int, catver: int, prints: Any) -> ev.Code | None:
        return ev.Code.FLOOR if tau_start < self.window.floor else None


class _NoCatver(Adjudicator):
    def _refusal(self, tau_start: int, catver: int, prints: Any) -> ev.Code | None:
        return super()._refusal(tau_start, 0, prints)


# Promises


class _BeatsAboveUndurable(Ledger):
    def heartbeat(self) -> list[ev.Effect]:
        commits, self._commits = self._commits, deque()
        effects = super().heartbeat()
        self._commits = commits
        return effects

    def check(self) -> None:
        pass


class _ForgetsPromises(Ledger):
    def tau_for(self, now: Interval, tau_start: int) -> int:
        return next_tau(max(self.last_tau, tau_start, now.earliest), self.number)

    def commit(self, now: Interval, decision: Decision, *rest: Any) -> ev.Append:
        self.promised = 0
        beat, self.beat = self.beat, 0
        effect = super().commit(now, decision, *rest)
        self.beat = beat
        return effect

    def check(self) -> None:
        pass


class _IgnoresOldLease(Ledger):
    def begin(
        self, now: Interval, epoch: tuple[int, int], n: int, lease_old: int, *, marked: bool
    ) -> list[ev.Effect]:
        effects = super().begin(now, epoch, n, lease_old, marked=marked)
        self.last_tau = self.promised = 0
        return effects


class _IgnoresLease(Ledger):
    """Commits beyond the durable lease."""

    def tau_for(self, now: Interval, tau_start: int) -> int:
        tau = super().tau_for(now, tau_start)
        self.lease_durable = max(self.lease_durable, tau)
        self.lease_appended = max(self.lease_appended, tau)
        return tau


# Journal and crossbar


class _DeafBeats(xb.Crossbar):
    """Takes a heartbeat before it has read the record that it names."""

    @staticmethod
    def _ripe(one: Any, beat: xb.Beat) -> bool:
        return True


class _NoMergeWait(xb.Crossbar):
    """Complete as far as the fastest journal."""

    def _merge(self) -> None:
        newest = max((one.tau for one in self._journals.values()), default=0)
        for one in self._journals.values():
            one.tau = max(one.tau, newest)
        super()._merge()


class _DeafToAdd(xb.Crossbar):
    """Serves past a journal that it has not read."""

    def _take(self, number: int, one: Any, record: Record, payload: journal.Payload) -> None:
        known = set(self._journals)
        super()._take(number, one, record, payload)
        for journal_number in [n for n in self._journals if n not in known]:
            del self._journals[journal_number]

    def _add_journal(self, event: xb.AddJournal) -> None:
        tau, self.tau = self.tau, 0
        super()._add_journal(event)
        self.tau = tau


class _ForgetsMembers(xb.Crossbar):
    """Membership does not go with the positions: a replica that restarts must find it anew."""

    def _deliver(self, number: int, one: Any) -> Any:
        for effect in super()._deliver(number, one):
            if isinstance(effect, xb.Deliver):
                held = tuple(pair for pair in effect.positions if pair[1] > 0)
                effect = msgspec.structs.replace(effect, positions=held)
            yield effect


class _IgnoresAddTau(Adjudicator):
    """A new journal starts at its own clock."""

    def _replayed(self, now: Interval, event: ev.Replayed) -> list[ev.Effect]:
        if event.position.n <= 1:
            position = msgspec.structs.replace(event.position, tau=0, lease=0)
            event = ev.Replayed(position, event.epoch)
        return super()._replayed(now, event)


class _CommitsAfterClose(Adjudicator):
    def step(self, now: Interval, event: ev.Event) -> list[ev.Effect]:
        effects = super().step(now, event)
        self.membership.closing = self.ledger.closed = False
        return effects


class _CloseEndsNothing(xb.Crossbar):
    """CLOSE is no heartbeat."""

    def _take(self, number: int, one: Any, record: Record, payload: journal.Payload) -> None:
        tau = one.tau
        super()._take(number, one, record, payload)
        if isinstance(payload, journal.Close):
            one.tau = tau


class _ChunksAtOnce(xb.Crossbar):
    """Hands on chunks of large transactions before what other journals committed earlier."""

    def _take(self, number: int, one: Any, record: Record, payload: journal.Payload) -> None:
        tau, self.tau = self.tau, TAU_MAX
        super()._take(number, one, record, payload)
        self.tau = tau


class _ReadsLeave(st.Core):
    """Answers reads of commits that the clock has not passed."""

    def _answer(self, now: Interval, effects: list[st.Effect]) -> None:
        super()._answer(Interval(max(now.earliest, self.complete_tau), now.latest), effects)


class _ReadsIncomplete(st.Core):
    """Answers reads before it is complete through their tau."""

    def _answer(self, now: Interval, effects: list[st.Effect]) -> None:
        complete, self.complete_tau = self.complete_tau, TAU_MAX
        super()._answer(now, effects)
        self.complete_tau = complete


class _NoFence(Reader):
    """Accepts what an owner that was deposed got stored, wherever it lies."""

    def accept(self, record: Record) -> journal.Payload | None:
        if record.kind != journal.EPOCH and record.epoch < self.epoch:
            record = record._replace(epoch=self.epoch, n=self.n + 1)
        return super().accept(record)


class _ZombieChain(Chain):
    """Takes the answers of its chain one by one, whatever became of the others."""

    def stored(self, number: int, place: int, generation: int = 0) -> list[list[Record]]:
        done = [one.records for one in self._flying if one.number == number]
        self._flying = deque(one for one in self._flying if one.number != number)
        return done

    def rejected(self, number: int, place: int, generation: int = 0) -> None:
        if any(one.number == number and place > (one.expected or 0) for one in self._flying):
            self._flying = deque(one for one in self._flying if one.number != number)


class _TrustingChain(Chain):
    """Does not compare the place at which a message was stored."""

    def stored(self, number: int, place: int, generation: int = 0) -> list[list[Record]]:
        for one in self._flying:
            if one.number == number and one.expected is not None:
                place = one.expected + 1
        return super().stored(number, place, generation)


def _one_id(name: str, incarnation: int) -> str:
    return name


class _SkipsBodies(Reader):
    """Does not hold a commit record against its bodies."""

    def accept(self, record: Record) -> journal.Payload | None:
        payload = super().accept(record)
        if isinstance(payload, journal.Commit) and payload.bodies:
            return msgspec.structs.replace(payload, bodies=())
        return payload


CONTENDED: dict[str, object] = {
    "owners": 1,
    "partitioned": False,
    "sharded": False,
    "controllers": 0,
    "streams": False,
    "adds": 0,
    "closes": 0,
    "moves": 0,
    "moves_at_votes": 0.0,
    "crash_at_vote": 0.0,
    "rots": 0,
    "gates": 0.0,
    "checkpoints": 0,
    "drop": 0.0,
    "clients": 6,
    "window_keys": 1 << 20,
    "weights": (0, 3, 3, 0, 1, 1, 0, 0, 0),
}
"""One owner, six clients, fresh hot keys all the time: many hashes meet in one seed."""


MUTANTS = (
    Mutant(
        "ignores one key in a thousand",
        "5.1",
        100,
        msgspec.structs.replace(_adjudicator(window=_OneInThousand), swarm=CONTENDED),
    ),
    Mutant(
        "checks conflicts with an upper bound",
        "5.1",
        20,
        _adjudicator(base=_UpperBound, window=_BoundedWindow),
    ),
    Mutant("does not record shares", "5.2", 50, _adjudicator(window=_NoShareRecord)),
    Mutant("does not check shares", "5.2", 50, _adjudicator(window=_NoShareCheck)),
    Mutant("forgets without raising the floor", "5", 50, _adjudicator(window=_FloorStays)),
    Mutant(
        "does not rebuild the window",
        "5.7",
        50,
        _adjudicator(base=_NoReplayAdjudicator, window=_NoReplay),
    ),
    Mutant("large: blind to later commits", "5.1", 100, _adjudicator(window=_drafts(_BlindDraft))),
    Mutant(
        "large: forgets earlier ones", "5.1", 100, _adjudicator(window=_drafts(_ForgetfulDraft))
    ),
    Mutant("large: blind to large ones", "5.1", 400, _adjudicator(window=_drafts(_LonelyDraft))),
    Mutant("acknowledges before durable", "3", 20, _adjudicator(base=_AcksEarly)),
    Mutant("tells aborts before durable", "5.6", 50, _adjudicator(base=_AbortsEarly)),
    Mutant("acknowledges before tau has passed", "4.4", 50, _adjudicator(ledger=_AcksBeforeTau)),
    Mutant("forgets outcomes at a restart", "5.6", 20, _adjudicator(base=_ForgetsOutcomes)),
    Mutant("guesses outcomes", "5.6", 150, _adjudicator(base=_StatusGuesses)),
    Mutant("ignores where the journal begins", "5.6", 100, Parts(adjudicator=_forgets_start)),
    Mutant("uses a tau twice", "4.1", 5, _adjudicator(ledger=_SameTau)),
    Mutant("ignores schema changes", "9", 50, _adjudicator(base=_NoCatalog)),
    Mutant("ignores the client's catalog version", "9", 50, _adjudicator(base=_NoCatver)),
    Mutant(
        "heartbeat above an undurable commit", "4.6", 20, _adjudicator(ledger=_BeatsAboveUndurable)
    ),
    Mutant("commits below a promise", "4.4", 20, _adjudicator(ledger=_ForgetsPromises)),
    Mutant(
        "ignores the lease of its predecessor", "6.6", 100, _adjudicator(ledger=_IgnoresOldLease)
    ),
    Mutant("commits beyond the durable lease", "4.4", 200, _adjudicator(ledger=_IgnoresLease)),
    Mutant("takes heartbeats ahead of their record", "4.6", 20, Parts(crossbar=_DeafBeats)),
    Mutant("merges without waiting", "7", 20, Parts(crossbar=_NoMergeWait)),
    Mutant("serves past a journal unheard of", "4.7", 100, Parts(crossbar=_DeafToAdd)),
    Mutant("positions without membership", "6.7", 400, Parts(crossbar=_ForgetsMembers)),
    Mutant("new journal below its ADD", "4.7", 200, _adjudicator(base=_IgnoresAddTau)),
    Mutant("commits after CLOSE", "4.7", 100, _adjudicator(base=_CommitsAfterClose)),
    Mutant("CLOSE is no heartbeat", "4.7", 100, Parts(crossbar=_CloseEndsNothing)),
    Mutant("chunks before what they may name", "6.3", 50, Parts(crossbar=_ChunksAtOnce)),
    Mutant("accepts records of a deposed owner", "6.1", 150, Parts(reader=_NoFence)),
    Mutant("a chain that goes on after a rejection", "6", 100, Parts(chain=_ZombieChain)),
    Mutant(
        "message ids used twice",
        "6",
        50,
        Parts(writer_id=_one_id, chain=_TrustingChain),
    ),
    Mutant("takes commits without their bodies", "6.3", 20, Parts(reader=_SkipsBodies)),
    Mutant("reads leave before their commits", "4.5", 400, Parts(storage=_ReadsLeave)),
    Mutant("reads before completeness", "4.7", 10, Parts(storage=_ReadsIncomplete)),
    *(Mutant(*row) for row in CODED_MUTANTS),
    Mutant("tau_start is the lower edge", "4.3", 50, Parts(tau_start_latest=False)),
    *(Mutant(*row) for row in vote_mutants.MUTANTS),
    *(Mutant(*row) for row in topology_mutants.MUTANTS),
    *(Mutant(*row) for row in gate_mutants.MUTANTS),
    *(Mutant(*row) for row in steering_mutants.MUTANTS),
    *(Mutant(*row) for row in must_mutants.MUTANTS),
    *(Mutant(*row) for row in shard_mutants.MUTANTS),
    Mutant(
        "ranges: serves past a journal unheard of",
        "4.7, 8",
        100,
        Parts(crossbar=_DeafToAdd, swarm=shard_mutants.GROWN),
    ),
    *(Mutant(*row) for row in together_mutants.MUTANTS),
)


def find(mutant: Mutant, run: Callable[[int, Parts], str], start: int = 0) -> int | None:
    """The number of seeds after which the mutant was found, None if it was not."""
    for seed in range(start, start + mutant.seeds):
        if run(seed, mutant.parts):
            return seed - start + 1
    return None


def table(
    found: Callable[[Mutant], int | None], chosen: tuple[Mutant, ...] | list[Mutant] = MUTANTS
) -> str:
    """The mutants as Markdown: rule, number of seeds that found it, and the bound."""
    rows = ["| what is broken | rule | found after | within |", "|---|---|---|---|"]
    for mutant in chosen:
        after = found(mutant)
        told = "not found" if after is None else str(after)
        rows.append(f"| {mutant.name} | {mutant.rule} | {told} | {mutant.seeds} |")
    return "\n".join(rows) + "\n"
