"""Feeds of instances: new catalog versions and notifications (docs/protocol.md, CATALOG).

An instance keeps one CATALOG request open; its next one says what it has applied, and that it
has got the answer before. Notifications wait in a queue of bounded size. Where some may have been
lost (the queue was full, the instance did not ask for long, this process is new, an outcome is
unknown) the next answer begins with a row [-1]: the instance must then end the sessions that
listen, which connect again as after any lost connection. Nothing is lost silently.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from meridian.errors import Kind, MeridianError
from meridian.limits import (
    CATALOG_ACK_MS,
    FEED_LAPSE_MS,
    FEED_LIVE_MS,
    FEED_NOTIFICATION_BYTES,
    FEED_NOTIFICATIONS,
    FEED_PAGE,
    FEED_WAIT_MS,
    INSTANCES,
)
from meridian.wire.frames import FEED_LOST, FEED_NOTIFICATION
from meridian.wire.ops import Notify, Op

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

log = logging.getLogger("meridian.feeds")

_TRANSACTIONS = 4_096
"""Transactions whose notifications are told once only, although their COMMIT came again."""

Note = tuple[bytes, bytes]
"""channel, payload"""
Answer = Callable[[list[list[Any]]], None]


class Feed:
    """One instance, from its first CATALOG request until it has not asked for long."""

    def __init__(self, instance_id: int) -> None:
        self.instance_id = instance_id
        self.applied = 0
        self.lost = True
        """Nobody knows what it missed before its first request."""
        self.source: object | None = None
        """The connection of its last request; None once that is gone."""
        self.asked_at = 0.0
        self.answer: Answer | None = None
        """Of the open request."""
        self.timer: asyncio.TimerHandle | None = None
        self.notes: deque[Note] = deque()
        self.size_bytes = 0
        self.sent = 0
        """So many notes at the head, and whether `lost`, are in an answer not yet confirmed."""
        self.sent_lost = False

    def push(self, note: Note) -> bool:
        """One more; False: there is no room, and what waited is gone too."""
        self.size_bytes += len(note[0]) + len(note[1])
        full = len(self.notes) >= FEED_NOTIFICATIONS
        if full or self.size_bytes > FEED_NOTIFICATION_BYTES:
            self.lose()
            return False
        self.notes.append(note)
        return True

    def lose(self) -> None:
        """Notifications may have been lost."""
        self.notes.clear()
        self.size_bytes = self.sent = 0
        self.lost, self.sent_lost = True, False

    def confirm(self) -> None:
        """The last answer has arrived."""
        for _ in range(self.sent):
            channel, payload = self.notes.popleft()
            self.size_bytes -= len(channel) + len(payload)
        self.sent = 0
        if self.sent_lost:
            self.lost = self.sent_lost = False

    def page(self) -> list[list[Any]]:
        """What waits for it, as rows of an answer."""
        rows: list[list[Any]] = [[FEED_LOST]] if self.lost else []
        self.sent_lost = self.lost
        self.sent = min(len(self.notes), FEED_PAGE)
        return rows + [[FEED_NOTIFICATION, *self.notes[at]] for at in range(self.sent)]


class _Waiter:
    """A DDL whose answer waits until the other instances have its version."""

    def __init__(self, version: int, origin: int, done: Callable[[], None]) -> None:
        self.version = version
        self.origin = origin
        self.done = done
        self.timer: asyncio.TimerHandle | None = None


class Feeds:
    """One per node, on the event loop's thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._feeds: dict[int, Feed] = {}
        self._waiters: list[_Waiter] = []
        self._notified: OrderedDict[bytes, None] = OrderedDict()

    # Instances

    def poll(
        self, instance_id: int, applied: int, wait_ms: int, source: object, answer: Answer
    ) -> Callable[[], None]:
        """Calls `answer` once with rows; returns how to give up.

        Raises TOO_MANY_CONNECTIONS, PROTOCOL_VIOLATION.
        """
        self._lapse()
        feed = self._feed(instance_id)
        if feed.source is source:
            feed.confirm()
        if feed.answer is not None:
            # A newer request of the instance takes its place; the older one ends empty.
            self._answer(feed, [])
        feed.applied, feed.source = applied, source
        feed.asked_at = asyncio.get_running_loop().time()
        self._look_at_waiters()
        feed.answer = answer
        rows = self._rows(feed)
        if rows or wait_ms <= 0:
            self._answer(feed, rows)
            return _nothing
        delay_s = min(wait_ms, FEED_WAIT_MS) / 1000
        loop = asyncio.get_running_loop()
        feed.timer = loop.call_later(delay_s, self._expire, feed, answer)
        return lambda: self._give_up(feed, answer)

    def _feed(self, instance_id: int) -> Feed:
        if not 0 < instance_id < 1 << 62:
            raise MeridianError(Kind.PROTOCOL_VIOLATION, why="an instance id is positive")
        feed = self._feeds.get(instance_id)
        if feed is None:
            if len(self._feeds) >= INSTANCES:
                raise MeridianError(Kind.TOO_MANY_CONNECTIONS)
            feed = self._feeds[instance_id] = Feed(instance_id)
        return feed

    def _lapse(self) -> None:
        """Forgets instances that have not asked for long, with what waits for them."""
        oldest = asyncio.get_running_loop().time() - FEED_LAPSE_MS / 1000
        for feed in list(self._feeds.values()):
            if feed.answer is None and feed.asked_at < oldest:
                del self._feeds[feed.instance_id]

    def _rows(self, feed: Feed) -> list[list[Any]]:
        versions = self.node.catalog.after(feed.applied, FEED_PAGE)
        notes = feed.page()
        lost, rest = (notes[:1], notes[1:]) if feed.lost else ([], notes)
        return [*lost, *([version] for version in versions), *rest]

    def _answer(self, feed: Feed, rows: list[list[Any]]) -> None:
        answer, feed.answer = feed.answer, None
        if feed.timer is not None:
            feed.timer.cancel()
            feed.timer = None
        assert answer is not None
        answer(rows)

    def _expire(self, feed: Feed, answer: Answer) -> None:
        if feed.answer is answer:
            self._answer(feed, [])

    def _give_up(self, feed: Feed, answer: Answer) -> None:
        if feed.answer is answer:
            feed.answer = None
            if feed.timer is not None:
                feed.timer.cancel()
                feed.timer = None

    def closed(self, source: object) -> None:
        """A connection ended: nobody waits for the instance that asked on it, until it returns."""
        for feed in self._feeds.values():
            if feed.source is source:
                feed.source = feed.answer = None
                if feed.timer is not None:
                    feed.timer.cancel()
                    feed.timer = None
                self._look_at_waiters()

    def _wake(self) -> None:
        """Answers open requests that have something to tell."""
        for feed in self._feeds.values():
            if feed.answer is not None:
                rows = self._rows(feed)
                if rows:
                    self._answer(feed, rows)

    def is_live(self, feed: Feed) -> bool:
        """Does it follow the catalog now?"""
        if feed.source is None:
            return False
        age_s = asyncio.get_running_loop().time() - feed.asked_at
        return feed.answer is not None or age_s * 1000 < FEED_LIVE_MS

    # Catalog versions

    def catalog_grew(self) -> None:
        """Storage holds newer versions."""
        self._wake()

    def wait_applied(self, version: int, origin: int, done: Callable[[], None]) -> None:
        """Calls `done` when every live instance but `origin` has the version, or after a time."""
        waiter = _Waiter(version, origin, done)
        if self._is_applied(waiter):
            done()
            return
        loop = asyncio.get_running_loop()
        waiter.timer = loop.call_later(CATALOG_ACK_MS / 1000, self._end, waiter)
        self._waiters.append(waiter)

    def _is_applied(self, waiter: _Waiter) -> bool:
        return all(
            feed.applied >= waiter.version or feed.instance_id == waiter.origin
            for feed in self._feeds.values()
            if self.is_live(feed)
        )

    def _look_at_waiters(self) -> None:
        for waiter in list(self._waiters):
            if self._is_applied(waiter):
                assert waiter.timer is not None
                waiter.timer.cancel()
                self._waiters.remove(waiter)
                waiter.done()

    def _end(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self.node.counters.catalog_waits_expired += 1
            waiter.done()

    # Notifications

    def notify(self, txid: bytes, notes: Sequence[Note]) -> None:
        """The notifications of a durable transaction, in the order of commits."""
        if txid in self._notified:
            return
        self._notified[txid] = None
        if len(self._notified) > _TRANSACTIONS:
            self._notified.popitem(last=False)
        self._lapse()
        self.node.counters.notifications += len(notes)
        for feed in self._feeds.values():
            for note in notes:
                if not feed.push(note):
                    log.warning("notifications lost", extra={"instance": feed.instance_id})
                    self.node.counters.notifications_lost += 1
        self._wake()

    def notifications_lost(self) -> None:
        """The outcome of a transaction with notifications is unknown."""
        self.node.counters.notifications_lost += len(self._feeds)
        for feed in self._feeds.values():
            feed.lose()
        self._wake()

    # Status

    def status(self) -> list[dict[str, Any]]:
        """A map per instance."""
        newest = self.node.catalog.version
        now = asyncio.get_running_loop().time()
        return [
            {
                "instance": feed.instance_id,
                "applied": feed.applied,
                "lag": max(0, newest - feed.applied),
                "live": self.is_live(feed),
                "asked_ms": round((now - feed.asked_at) * 1000),
                "notifications": len(feed.notes),
            }
            for _, feed in sorted(self._feeds.items())
        ]


def notes_of(ops: Sequence[Op]) -> list[Note]:
    """The notifications of a chunk."""
    return [(op.channel, op.payload) for op in ops if type(op) is Notify]


def _nothing() -> None:
    """It was answered."""
