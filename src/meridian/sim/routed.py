"""How a model query processor reads where replicas hold ranges: through the router's core."""

from __future__ import annotations

from collections.abc import Generator
from random import Random
from typing import Any, NamedTuple

from meridian.routing import core as routing
from meridian.routing.map import ShardMap
from meridian.sim.messages import AskShards, Get, Got, Key, Page, Parts, Scan, TheseShards, Unread
from meridian.sim.shard_replica import row_bytes
from meridian.sim.world import MS, Node, S
from meridian.wire.ranges import Range, place

ROUTED = "routed"
"""What a generator waits for: an answer to any of its questions."""
ATTEMPT_NS = 300 * MS
LOST_NS = 20 * S

Wait = Generator[tuple[int, object], Any, Any]


class Scanned(NamedTuple):
    """What a scan told: `rows` in its order; `more`: it was ended before the end of `wanted`."""

    wanted: Range
    tau: int
    descending: bool
    rows: tuple[tuple[Key, bytes], ...]
    more: bool


class RoutedReads:
    """The reads of one process, one at a time."""

    def __init__(self, node: Node, parts: Parts, random: Random) -> None:
        self._node = node
        self._parts = parts
        self._random = random
        self._request = 0
        self.forget()

    def forget(self) -> None:
        """A new process: it knows no map."""
        self._router = self._parts.router(ShardMap(0, ()), attempt_ns=ATTEMPT_NS)
        self._token = 0
        self._attempts: dict[int, int] = {}
        """Request to attempt."""
        self._pages: dict[int, Any] = {}
        self._result: routing.Done | routing.Fail | None = None
        self._timer = 0
        self._map_request = 0

    def get(self, tau: int, keys: list[Key], patience_ns: int) -> Wait:
        """Values by key, or a Fail."""
        named = {place(*key): key for key in keys}
        places = tuple(sorted(named))
        wanted = Range(places[0], places[-1] + b"\0")
        ask = routing.Ask(self._next(), wanted, self._deadline(patience_ns), keys=places)

        def request(send: routing.Send, number: int) -> Get:
            return Get(number, tau, tuple(named[one] for one in places[send.start : send.stop]))

        done = yield from self._run(ask, request)
        if isinstance(done, routing.Fail):
            return done
        found: dict[Key, bytes | None] = {}
        for attempt in done.attempts:
            got_keys, got = self._pages[attempt]
            found.update(zip(got_keys, got.values, strict=True))
        return found

    def scan(self, tau: int, wanted: Range, patience_ns: int, *, limit: int = 0) -> Wait:
        """All of a range or `limit` rows, page by page, up or down; a Scanned or a Fail."""
        random = self._random
        descending = random.random() < 0.4
        rows: list[tuple[Key, bytes]] = []
        rest, more = wanted, True
        while more and (not limit or len(rows) < limit):
            left = limit - len(rows) if limit else 0
            size = random.choice((0, 40, 200))
            ask = routing.Ask(
                self._next(), rest, self._deadline(patience_ns), descending=descending,
                limit=left, page_bytes=size,
            )  # fmt: skip

            def request(send: routing.Send, number: int) -> Scan:
                lo, hi = send.part
                return Scan(number, tau, lo, hi, descending, send.limit, send.page_bytes)

            done = yield from self._run(ask, request)
            if isinstance(done, routing.Fail):
                return done
            more = done.more
            for attempt in done.attempts:
                rows += self._pages[attempt][1].rows
            if more:
                last = place(*rows[-1][0])
                rest = Range(rest.lo, last) if descending else Range(last + b"\0", rest.hi)
                more = rest.lo < rest.hi
        return Scanned(wanted, tau, descending, tuple(rows), more)

    def _next(self) -> int:
        self._token += 1
        return self._token

    def _deadline(self, patience_ns: int) -> int:
        return self._node.clock.now().earliest + patience_ns

    def _run(self, ask: routing.Ask, request: Any) -> Wait:
        """Until the core says Done or Fail."""
        self._result = None
        self._pages, self._attempts = {}, {}
        self._step(ask, request)
        while self._result is None:
            timeout = max(self._timer - self._node.clock.now().earliest, 1_000)
            message = yield timeout, ROUTED
            event = self._event(message)
            if event is not None:
                self._step(event, request)
        return self._result

    def _event(self, message: Any) -> routing.Event | None:
        match message:
            case None:
                return routing.TimerFired()
            case TheseShards():
                return routing.MapChanged(message.map)
        attempt = self._attempts.get(message.request)
        if attempt is None:
            return None
        if isinstance(message, Unread):
            return routing.Refused(attempt, message.reason)
        asked, part = self._pages[attempt]
        if not isinstance(part, Range):
            # A doubled request may be answered otherwise: the router counted the first answer.
            return None
        if isinstance(message, Page):
            self._pages[attempt] = (asked, message)
            size = sum(row_bytes(*row) for row in message.rows)
            return routing.Answered(attempt, message.scanned, message.more, len(message.rows), size)
        assert isinstance(message, Got)
        self._pages[attempt] = (asked, message)
        return routing.Answered(attempt, part, False, len(message.values), len(message.values))

    def _step(self, event: routing.Event, request: Any) -> None:
        node = self._node
        for effect in self._router.step(node.clock.now(), event):
            match effect:
                case routing.Send():
                    self._request += 1
                    self._attempts[self._request] = effect.attempt
                    message = request(effect, self._request)
                    keys = message.keys if isinstance(message, Get) else ()
                    self._pages[effect.attempt] = (keys, effect.part)
                    if f"r{effect.replica}" in node.world.nodes:
                        node.world.send(node.name, f"r{effect.replica}", message)
                case routing.Done() | routing.Fail():
                    self._result = effect
                case routing.WantMap():
                    self._map_request += 1
                    node.world.send(node.name, "p", AskShards(self._map_request))
                case routing.SetTimer():
                    self._timer = effect.at
                case routing.Abandon():
                    pass
        self._router.check()
