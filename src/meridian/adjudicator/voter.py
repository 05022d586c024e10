"""The voting half of an adjudicator: promises for transactions that others lead (design 5.3-5.5).

A promise says: nothing that conflicts commits here at or below tau_max.  It ends with the leader's
verdict, or with the clock; then the keys count as written at tau_max, because the leader may have
committed (5.4).  What changes the catalog is not forgotten so: its outcome is read from the
catalog.
"""

from __future__ import annotations

import msgspec

from meridian.adjudicator.ahead import SentAhead
from meridian.adjudicator.cut import tally, unpack
from meridian.adjudicator.events import Code, Effect, Expired, Send, WantCatalog
from meridian.adjudicator.footprint import Footprint
from meridian.adjudicator.gates import Gates
from meridian.adjudicator.holds import Hold, Holds, Meeting
from meridian.adjudicator.ledger import Ledger
from meridian.adjudicator.ranges import Ranges
from meridian.adjudicator.relations import Relations
from meridian.adjudicator.window import Window, keys_of
from meridian.clock.tau import Interval
from meridian.limits import (
    AHEAD_TRANSACTIONS,
    CONFLICT_WINDOW_NS,
    HOLD_KEYS,
    HOLD_NS,
    HOLDS,
    TAU_FUTURE_NS,
)
from meridian.wire.votes import Ahead, Ask, Forget, Verdict, Vote, leader_of


class Voter:
    """The holds of one adjudicator, and the asks that wait."""

    def __init__(
        self,
        number: int,
        ledger: Ledger,
        window: Window,
        relations: Relations,
        ranges: Ranges,
        gates: Gates,
    ) -> None:
        self.number = number
        self.ledger = ledger
        self.window = window
        self.relations = relations
        self.ranges = ranges
        self.gates = gates
        self.holds = Holds()
        self.expired_count = 0
        self._waiting: dict[bytes, tuple[Ask, int]] = {}
        """Asks that wait for older holds, for a lease or for work, and until when (earliest)."""
        self._sent: dict[bytes, SentAhead] = {}

    # Keys sent ahead

    def ahead(self, now: Interval, message: Ahead) -> bool:
        """Takes the next keys of a large transaction; False: they are of no use."""
        sent = self._sent.get(message.txid)
        if sent is None:
            future = message.tau_start > now.latest + TAU_FUTURE_NS
            full = len(self._sent) >= AHEAD_TRANSACTIONS
            if message.seq or full or future or message.tau_start < self.window.floor:
                return False
            draft = self.window.open_draft(message.tau_start)
            sent = self._sent[message.txid] = SentAhead(draft, now.latest + CONFLICT_WINDOW_NS)
        if message.seq != sent.count or message.tau_start != sent.draft.tau_start:
            return False
        sent.take(message)
        return True

    def forget(self, message: Forget) -> None:
        """Nobody asks for this transaction any more; what is promised stays so."""
        sent = self._sent.get(message.txid)
        if sent is not None:
            sent.forgotten = True
            self._drop_sent(message.txid)

    def _drop_sent(self, txid: bytes) -> None:
        if self.holds.get(txid) is None:
            self.window.drop(self._sent.pop(txid).draft)

    @property
    def busy(self) -> bool:
        """Keys sent ahead wait to be compared."""
        return any(not sent.draft.ready for sent in self._sent.values())

    def work(self, now: Interval) -> list[Effect]:
        """One slice of that work, in turn; who waits for the last one is answered."""
        for txid, sent in list(self._sent.items()):
            if sent.draft.ready:
                continue
            self._sent[txid] = self._sent.pop(txid)
            self.window.work(sent.draft)
            waiting = self._waiting.get(txid)
            if waiting is not None and sent.draft.ready:
                del self._waiting[txid]
                return self._answer(now, *waiting)
            break
        return []

    # Asks

    def ask(self, now: Interval, ask: Ask) -> list[Effect]:
        """Holds the keys and votes, waits, or refuses."""
        held = self.holds.get(ask.txid)
        if held is not None:
            version = ask.epoch, ask.attempt
            if version < held.version:
                return []
            if version == held.version:
                return [_send(held.vote)]
        waiting = self._waiting.get(ask.txid)
        if waiting is not None:
            if (waiting[0].epoch, waiting[0].attempt) >= (ask.epoch, ask.attempt):
                return []
            del self._waiting[ask.txid]
        return self._answer(now, ask, now.latest + HOLD_NS)

    def _answer(self, now: Interval, ask: Ask, until: int) -> list[Effect]:
        try:
            print_ = unpack(ask.footprint)
        except msgspec.DecodeError:
            return [self._refuse(ask, Code.MALFORMED)]
        sent = self._sent.get(ask.txid) if ask.ahead else None
        code = self._code(now, ask, print_, sent)
        if code is not None:
            return [self._refuse(ask, code)]
        if sent is not None and not sent.draft.ready:
            self._waiting[ask.txid] = ask, until
            return []
        age = ask.tau_start, ask.txid
        meeting = self.holds.meet(age, print_, everywhere=ask.everywhere, sent=sent)
        held = self.holds.get(ask.txid)
        if held is not None and held.unresolved:
            return [self._refuse(ask, Code.HELD)]
        if self.gates.blocks(ask.txid, (print_,)):
            return [self._refuse(ask, Code.HELD)]
        if meeting is Meeting.RETRY or len(self.holds) + len(self._waiting) >= HOLDS:
            return [self._refuse(ask, Code.HELD)]
        if meeting is Meeting.WAIT:
            self._waiting[ask.txid] = ask, until
            return []
        tau_max = min(now.latest + HOLD_NS, self.ledger.lease_durable)
        if tau_max < now.latest + HOLD_NS // 2:
            # Rule 6.6: a lease is durable before any promise up to it.
            self._waiting[ask.txid] = ask, until
            return self.ledger.renew(now, now.latest + HOLD_NS)
        return self._hold(ask, print_, tau_max, sent)

    def _code(
        self, now: Interval, ask: Ask, print_: Footprint, sent: SentAhead | None
    ) -> Code | None:
        """Why the vote must be no, whoever else holds what."""
        if ask.ahead and (
            sent is None or sent.count != ask.ahead or sent.draft.tau_start != ask.tau_start
        ):
            # Keys from before the floor are not taken, however often they are sent.
            return Code.FLOOR if ask.tau_start < self.window.floor else Code.PARTS
        if sent is not None and sent.too_many:
            return Code.KEYS
        if len(print_.writes) + len(print_.shares) + len(print_.checks) > 8 * HOLD_KEYS:
            return Code.KEYS
        floor = self.ranges.floor(ask.bounds)
        if sent is not None and floor is not None:
            sent_floor = sent.floor_in(self.ranges)
            floor = None if sent_floor is None else max(floor, sent_floor)
        if floor is None or not self.ranges.spans:
            return Code.PLACE
        if ask.everywhere:
            floor = self.ranges.floor_max
        if ask.tau_start < max(floor, self.window.floor):
            return Code.FLOOR
        if ask.tau_start > now.latest + TAU_FUTURE_NS:
            return Code.CLOCK
        if self.relations.stale(ask.tau_start, ask.catver, (print_,)):
            return Code.CATALOG
        if self.relations.conflict(ask.tau_start, (print_,)):
            return Code.CONFLICT
        if sent is not None and sent.draft.conflict:
            return Code.CONFLICT
        writes, unwritten = keys_of(print_.writes), keys_of(print_.shares + print_.checks)
        if self.window.conflicts(ask.tau_start, writes, unwritten):
            return Code.CONFLICT
        return None

    def _hold(
        self, ask: Ask, print_: Footprint, tau_max: int, sent: SentAhead | None
    ) -> list[Effect]:
        ledger = self.ledger
        held = tally(print_.writes, print_.shares + print_.checks)
        vote = Vote(
            self.number,
            ask.txid,
            ask.attempt,
            ask.epoch,
            ask.tau_start,
            0,
            max(ledger.last_tau, ledger.promised, ledger.beat),
            tau_max,
            held if sent is None else held + sent.tally,
            self.ranges.spans if ask.everywhere else (),
        )
        assert tau_max <= ledger.lease_durable
        hold = Hold(ask, print_, vote, sent)
        earlier = self.holds.get(ask.txid)
        if earlier is not None:
            # An earlier attempt may have committed for all that is known here: its promise stays
            # in force as part of the new one.
            hold.absorb(earlier)
            self.holds.remove(ask.txid)
        self.holds.add(hold)
        return [_send(vote)]

    def _refuse(self, ask: Ask, code: Code) -> Effect:
        return _send(
            Vote(
                self.number,
                ask.txid,
                ask.attempt,
                ask.epoch,
                ask.tau_start,
                int(code),
                version=self.ranges.version,
            )
        )

    def refuse(self, ask: Ask, code: Code) -> list[Effect]:
        """This owner does not serve."""
        return [self._refuse(ask, code)]

    def again(self, now: Interval) -> list[Effect]:
        """A hold ended or a lease became durable: asks that waited are looked at again."""
        effects: list[Effect] = []
        waiting, self._waiting = self._waiting, {}
        for ask, until in sorted(waiting.values(), key=_age):
            effects += self._answer(now, ask, until)
        return effects

    # Ends of promises

    def verdict(self, verdict: Verdict) -> bool:
        """Whether a hold ended.  An outcome is final whatever the attempt; giving up is not."""
        waiting = self._waiting.get(verdict.txid)
        if waiting is not None and (
            verdict.tau or (waiting[0].attempt, waiting[0].epoch) == _attempt(verdict)
        ):
            del self._waiting[verdict.txid]
        hold = self.holds.get(verdict.txid)
        if hold is None:
            return False
        if verdict.tau == 0 and (hold.ask.attempt, hold.ask.epoch) != _attempt(verdict):
            return False
        self.holds.remove(verdict.txid)
        if verdict.tau:
            assert verdict.tau <= hold.tau_max or hold.ask.attempt != verdict.attempt
            self._record(hold, verdict.tau)
        elif hold.sent is not None and hold.sent.forgotten:
            self._drop_sent(verdict.txid)
        return True

    def _record(self, hold: Hold, tau: int) -> None:
        """The keys count as written and shared at `tau` (5.4)."""
        print_ = hold.footprint
        self.window.record_late(tau, keys_of(print_.writes), keys_of(print_.shares))
        if hold.sent is not None:
            del self._sent[hold.ask.txid]
            self.window.publish_late(hold.sent.draft, tau)
        self.relations.record(tau, (print_,), self.window.floor)
        self.ledger.exceed(tau)

    def due(self, now: Interval) -> tuple[list[Effect], bool]:
        """Ends what the clock has passed; the flag says whether a hold ended."""
        effects: list[Effect] = []
        ended = False
        for hold in self.holds:
            if hold.tau_max >= now.earliest or hold.unresolved:
                continue
            if hold.footprint.catalog_version:
                hold.unresolved = True
                effects.append(WantCatalog(hold.tau_max))
                continue
            ended = True
            effects.append(self._expire(hold))
        for txid, sent in list(self._sent.items()):
            if sent.until < now.earliest:
                # Whoever sent them is gone.
                sent.forgotten = True
                self._drop_sent(txid)
        for ask, until in list(self._waiting.values()):
            if until < now.earliest:
                del self._waiting[ask.txid]
                effects.append(self._refuse(ask, Code.HELD))
        return effects, ended

    def _expire(self, hold: Hold) -> Effect:
        self.holds.remove(hold.ask.txid)
        self.expired_count += 1
        self._record(hold, hold.tau_max)
        return Expired(hold.ask.txid, hold.tau_max)

    def catalog(self, tau: int, version: int) -> tuple[list[Effect], bool]:
        """The newest catalog version at or below `tau` is `version`."""
        effects: list[Effect] = []
        ended = False
        for hold in self.holds:
            if hold.unresolved and hold.tau_max <= tau:
                ended = True
                if hold.footprint.catalog_version <= version:
                    effects.append(self._expire(hold))
                    continue
                self.holds.remove(hold.ask.txid)
                if hold.sent is not None and hold.sent.forgotten:
                    self._drop_sent(hold.ask.txid)
        return effects, ended

    def deadline(self) -> int | None:
        """When the next promise or wait ends."""
        taus = [hold.tau_max for hold in self.holds if not hold.unresolved]
        taus += [until for _, until in self._waiting.values()]
        held = self.holds.get
        taus += [sent.until for txid, sent in self._sent.items() if held(txid) is None]
        return min(taus, default=None)

    def drop_waiting(self) -> list[Effect]:
        """This owner ends: those who wait must ask the next one."""
        waiting, self._waiting = self._waiting, {}
        return [self._refuse(ask, Code.STARTING) for ask, _ in waiting.values()]


def _attempt(verdict: Verdict) -> tuple[int, tuple[int, int]]:
    return verdict.attempt, verdict.epoch


def _age(entry: tuple[Ask, int]) -> tuple[int, bytes]:
    return entry[0].tau_start, entry[0].txid


def _send(vote: Vote) -> Effect:
    return Send(leader_of(vote.txid), vote)
