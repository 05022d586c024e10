"""The collapse of a crossbar whose every reader needs every host, and what this design does.

Clients run in a closed loop: read as of now, commit, again.  A read needs what every journal holds
through its start.  Hosts stall for a second now and then, as a process does whose garbage is
collected.  The stalls are the same for all designs; the merge of the designs that cut slow readers
loose is the real crossbar core.

The article gives three numbers for 40 hosts (1,000,000 expected, 6,000 reached, tail from 1 s to
10 s), not how often a host stalls, nor how readers wait.  Two things follow from them.  Readers are
not held up while no host stalls, so that must be the case less than 0.6% of the time: with 40 hosts
each stands still for an eighth of it at least, a second in every eight.  And a tail of ten stalls
says that stalls add up: a reader waits for one host after the other, as a merge does that takes
from one stream at a time.  (Asked all at once, 40 hosts cost one stall, whatever their number.)
So the model has one free number, how often hosts stall.  It is fitted to the throughput; the tail
is what comes out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from random import Random

import msgspec

from meridian.crossbar.core import (
    Accepted,
    AddJournal,
    Beat,
    Credit,
    Crossbar,
    CutLoose,
    Deliver,
    Subscribe,
)
from meridian.journal import core as journal
from meridian.sim.experiments.report import Figure, Report

TICK_S = 0.01
"""One transaction of a client that waits for nothing."""
CLIENTS = 250
"""Per host: 25,000 transactions per second, 1,000,000 with 40 hosts."""
STALL_S = 1.0
EVERY_S = 6.0
"""Mean time from a stall of a host to its next: the one number fitted to the published ones."""
RARER_S = (15.0, 30.0, 100.0, 300.0)
GROUPS = 10
"""Clients of a host that read in turn move in so many groups, each with a start of its own."""
BUFFER_BYTES = 700_000
"""Of the real crossbar: less than a second of this traffic."""
CATCH_UP = 5
"""A replica reads history so much faster than it comes."""
REPLICAS = 8
HOSTS = (1, 3, 6, 12, 24, 40)
SECONDS = 300.0
"""Of the design that collapses."""
CORE_SECONDS = 20.0
TAIL = 0.9999
EPOCH = (1, 1)


class Outcome(msgspec.Struct, frozen=True):
    """What clients saw."""

    per_s: float
    p50_ms: float
    tail_ms: float


class Stalls:
    """Which hosts stand still in which ticks; the same for every design."""

    def __init__(self, seed: int, hosts: int, every_s: float, ticks: int) -> None:
        self.spans: list[list[tuple[int, int]]] = []
        for host in range(hosts):
            random, at, spans = Random(f"{seed}/{host}/{every_s}"), 0.0, []
            while True:
                at += random.expovariate(1 / every_s)
                begin = int(at / TICK_S)
                if begin >= ticks:
                    break
                at += STALL_S
                spans.append((begin, int(at / TICK_S)))
            self.spans.append(spans)
        self._next = [0] * hosts

    def at(self, tick: int) -> list[bool]:
        """Per host; ticks must not go back."""
        out = []
        for host, spans in enumerate(self.spans):
            at = self._next[host]
            while at < len(spans) and spans[at][1] <= tick:
                at += 1
            self._next[host] = at
            out.append(at < len(spans) and spans[at][0] <= tick)
        return out

    def over(self, host: int, at: float) -> float:
        """When the host goes on that is asked at this time; of any order."""
        spans, tick = self.spans[host], int(at / TICK_S)
        found = bisect_right(spans, (tick, 1 << 60)) - 1
        return spans[found][1] * TICK_S if found >= 0 and tick < spans[found][1] else at


class Clients:
    """A closed loop: how many of each journal's clients wait since when."""

    def __init__(self, hosts: int) -> None:
        self._waiting: list[dict[int, int]] = [{0: CLIENTS} for _ in range(hosts)]
        self._latencies: dict[int, int] = {}

    def commit(self, number: int, tick: int, complete: int) -> int:
        """Those of a journal whose reads are complete commit and begin anew: how many."""
        waiting = self._waiting[number]
        done = 0
        for start in [start for start in waiting if start <= complete]:
            count = waiting.pop(start)
            done += count
            ticks = tick + 1 - start
            self._latencies[ticks] = self._latencies.get(ticks, 0) + count
        if done:
            waiting[tick + 1] = waiting.get(tick + 1, 0) + done
        return done

    def outcome(self, ticks: int) -> Outcome:
        """Throughput and latencies; who still waits at the end counts with what it has waited."""
        latencies = dict(self._latencies)
        total = sum(latencies.values())
        for waiting in self._waiting:
            for start, count in waiting.items():
                age = max(ticks - start, 1)
                latencies[age] = latencies.get(age, 0) + count
        p50, tail = (_percentile(latencies, share) * TICK_S * 1000 for share in (0.5, TAIL))
        return Outcome(total / (ticks * TICK_S), p50, tail)


def _percentile(counts: dict[int, int], share: float) -> int:
    left = sum(counts.values()) * share
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return max(counts)


def in_turn(hosts: int, every_s: float, seed: int) -> Outcome:
    """Each transaction takes what it needs from one host after the other, its own first."""
    ticks = int(SECONDS / TICK_S)
    stalls = Stalls(seed, hosts, every_s, ticks)
    calm = [not any(stalls.at(tick)) for tick in range(ticks)] + [False, False]
    latencies: dict[int, int] = {}
    done = 0
    for host in range(hosts):
        for group in range(GROUPS):
            begin = TICK_S * group / GROUPS
            while (end := _visit(stalls, calm, host, begin)) < SECONDS:
                done += 1
                took = round((end - begin) / TICK_S)
                latencies[took] = latencies.get(took, 0) + 1
                begin = end
    p50, tail = (_percentile(latencies, share) * TICK_S * 1000 for share in (0.5, TAIL))
    return Outcome(done * CLIENTS / GROUPS / SECONDS, p50, tail)


def _visit(stalls: Stalls, calm: list[bool], first: int, begin: float) -> float:
    """When a transaction that begins then has been at every host."""
    tick, hosts = int(begin / TICK_S), len(stalls.spans)
    if calm[tick] and calm[tick + 1]:
        return begin + TICK_S
    at = begin
    for number in range(hosts):
        at = stalls.over((first + number) % hosts, at) + TICK_S / hosts
    return at


class Replica:
    """A subscriber of the real crossbar, on a host that may stall."""

    def __init__(self, number: int, host: int) -> None:
        self.number, self.host = number, host
        self.tau = 0
        self.unpaid = 0
        self.loose = False
        self.caught_up = 0.0

    def take(self, effect: Deliver) -> None:
        """What comes while the host stands still is looked at later: it is not paid for."""
        self.tau = effect.tau
        self.unpaid += sum(len(getattr(item, "chunk", b"")) for item in effect.items)


class Merge:
    """The crossbar core with its sources and replicas."""

    def __init__(self, hosts: int) -> None:
        self.bar = Crossbar(BUFFER_BYTES)
        self.cut_count = 0
        self._n = [0] * hosts
        for number in range(hosts):
            if number:
                self._write(0, journal.Add(number), number)
            self.bar.step(AddJournal(number, journal.Position(EPOCH, 0, True)))
        self.replicas = [
            Replica(number, number * hosts // REPLICAS) for number in range(min(REPLICAS, hosts))
        ]
        for one in self.replicas:
            self._do(Subscribe(one.number, 0, BUFFER_BYTES // 4))

    def _do(self, event: Accepted | Beat | Credit | Subscribe) -> None:
        for effect in self.bar.step(event):
            one = self.replicas[effect.subscriber]
            if isinstance(effect, CutLoose):
                one.loose, one.caught_up = True, float(one.tau)
                self.cut_count += 1
            elif isinstance(effect, Deliver):
                one.take(effect)

    def _write(self, number: int, payload: journal.Payload, tau: int) -> None:
        self._n[number] += 1
        record = journal.make(EPOCH, self._n[number], payload, tau, tau.to_bytes(16, "big"))
        for effect in self.bar.step(Accepted(number, [(record, payload)])):
            if isinstance(effect, Deliver):
                self.replicas[effect.subscriber].take(effect)

    def beat(self, number: int, tick: int) -> None:
        """Everything of the journal through this tick is there."""
        self._do(Beat(number, EPOCH, self._n[number], tick << 8 | 255))

    def commit(self, number: int, tick: int, count: int) -> None:
        """One record for `count` commits in the next tick."""
        payload = journal.Commit(0, 0, 0, 0, (), 0, bytes(count))
        self._n[number] += 1
        tau = tick + 1 << 8 | number
        record = journal.make(EPOCH, self._n[number], payload, tau, tau.to_bytes(16, "big"))
        self._do(Accepted(number, [(record, payload)]))

    def read(self, stalled: list[bool]) -> int:
        """The tick through which the best replica that answers is complete."""
        best = -1
        for one in self.replicas:
            if stalled[one.host]:
                continue
            if one.loose:
                self._catch_up(one)
            elif one.unpaid:
                paid, one.unpaid = one.unpaid, 0
                self._do(Credit(one.number, paid))
            if not one.loose:
                best = max(best, one.tau >> 8)
        return best

    def _catch_up(self, one: Replica) -> None:
        """From the journal, until the crossbar still holds what comes next."""
        one.caught_up = min(one.caught_up + (CATCH_UP << 8), float(self.bar.tau))
        if one.caught_up >= self.bar.forgotten_tau:
            one.loose, one.tau, one.unpaid = False, int(one.caught_up), 0
            self._do(Subscribe(one.number, one.tau, BUFFER_BYTES // 4))


def cut_loose(hosts: int, every_s: float, seed: int, streams: int = 1) -> Outcome:
    """The real crossbar; a journal needs 1 stream, or 2 of 3 on hosts of its group."""
    ticks = int(CORE_SECONDS / TICK_S)
    stalls, clients, merge = Stalls(seed, hosts, every_s, ticks), Clients(hosts), Merge(hosts)
    for tick in range(1, ticks):
        stalled = stalls.at(tick)
        able = [number for number in range(hosts) if _able(stalled, number, streams)]
        # In this order completeness moves once per tick, not with every journal.
        for number in reversed(able):
            merge.beat(number, tick)
        complete = merge.read(stalled)
        for number in able:
            count = clients.commit(number, tick, complete)
            if count:
                merge.commit(number, tick, count)
    return clients.outcome(ticks)


def _able(stalled: list[bool], number: int, streams: int) -> bool:
    if streams == 1 or len(stalled) < 3:
        return not stalled[number]
    # Groups of three hosts; what is left over joins the last group.
    group = min(number // 3, len(stalled) // 3 - 1)
    first = 3 * group
    return sum(stalled[first : first + 3]) <= 1


def coded(hosts: int, every_s: float, seed: int) -> Outcome:
    """2 of 3 streams, and slow readers are cut loose."""
    return cut_loose(hosts, every_s, seed, streams=3)


DESIGNS: dict[str, Callable[[int, float, int], Outcome]] = {
    "in turn": in_turn,
    "cut loose": cut_loose,
    "2 of 3": coded,
}


def _titles(what: str) -> list[str]:
    return [name + what for name in DESIGNS]


def run(seed: int) -> Report:
    """Table over hosts, then over how rare the stalls are."""
    cases = [(hosts, EVERY_S) for hosts in HOSTS] + [(HOSTS[-1], every) for every in RARER_S]
    rows: list[tuple[object, ...]] = []
    expected = [(float(hosts), float(hosts * CLIENTS / TICK_S)) for hosts in HOSTS]
    series: dict[str, list[tuple[float, float]]] = {"expected": expected}
    for hosts, every_s in cases:
        outcomes = {name: design(hosts, every_s, seed) for name, design in DESIGNS.items()}
        rates = [round(one.per_s) for one in outcomes.values()]
        tails = [one.tail_ms / 1000 for one in outcomes.values()]
        rows.append((hosts, every_s, round(hosts * CLIENTS / TICK_S), *rates, *tails))
        if every_s == EVERY_S:
            for name, one in outcomes.items():
                series.setdefault(name, []).append((hosts, one.per_s))
    return Report(
        name="crossbar",
        title="Transactions per second when hosts stall for a second",
        model=(
            f"{CLIENTS} clients per host in a closed loop, {TICK_S * 1000:.0f} ms per transaction"
            " where nobody stalls; a transaction needs what every journal holds through its"
            " start.\nin turn: it takes that from one host after the other, so the stalls that it"
            " meets add up.\n"
            "cut loose: the real crossbar core; slow readers catch up from the journal, reads go to"
            " a replica that answers.\n"
            "2 of 3: the same, and each journal lies in three streams on three hosts, any two of"
            " which are enough.\n"
            f"{SECONDS:.0f} s of virtual time in turn, {CORE_SECONDS:.0f} s with the real core."
            f" Tail: {TAIL:.2%}. Hosts hold streams and replicas; adjudicators, which send the"
            " heartbeats, do not stall here.\nPublished for 40 hosts: 1,000,000 expected, about"
            " 6,000 reached, tail from 1 s to 10 s; not how often hosts stall.\nWhere nobody"
            " stalls nobody waits, so that may be so 0.6% of the time at most: each host stands"
            f" still for an eighth of it. Every {EVERY_S:.0f} s is fitted to the throughput;"
            " the tail is what comes out.\nTwenty seconds are few stalls: over seeds 1 to 3 the"
            " rates differ (cut loose up to 4 times, in turn 2, 2 of 3 1.4 times); no tail with"
            " the real core is above 2.4 s."
        ),
        header=("hosts", "stall every s", "expected/s", *_titles("/s"), *_titles(" tail s")),
        rows=rows,
        figure=Figure("hosts", "transactions per second", series, log_y=True),
    )
