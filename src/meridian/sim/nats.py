"""A model of a JetStream stream with three replicas, as it was measured (facts of journal engines).

What it gets right on purpose, because the protocol must survive it:

- An expected-last-sequence that does not match is refused and costs nothing; a pipelined chain of
  them does not fence.
- A message id seen within the window is answered with the place of the first message that bore it,
  whatever the body, also when the expectation is stale.
- While a leader is elected (4-9 s) nothing is answered.  What was on its way may be stored or not.
- A leader that was stopped and goes on answers reads from the past for a while, and tells a
  length that is too small.  Only an append that succeeds proves where the stream ends.
- Reading from a place that was purged silently begins at the first one left.
- A stream that does not sync always forgets what it acknowledged when all its servers fail.
"""

from __future__ import annotations

from random import Random

import msgspec

from meridian.journal.record import Record

MS = 1_000_000
S = 1_000 * MS
ELECTION_NS = (4 * S, 9 * S)
STEPDOWN_NS = (50 * MS, 300 * MS)
STALE_NS = 1 * S
"""How long a leader that was stopped believes in itself."""
DUPLICATES_NS = 120 * S
"""Window in which message ids are remembered."""
MESSAGE_BYTES_MAX = 1024 * 1024 + 64 * 1024
"""Larger messages are refused (`max_payload`)."""


class Ack(msgspec.Struct, frozen=True):
    """What a publisher hears.  `place`: messages in the stream through this one."""

    stored: bool
    place: int
    duplicate: bool = False


class JetStream:
    """The stream's state; times are passed in.  Messages are lists of records."""

    def __init__(
        self,
        random: Random,
        duplicates_ns: int = DUPLICATES_NS,
        *,
        sync_always: bool = True,
    ) -> None:
        self.sync_always = sync_always
        self.messages: list[list[Record]] = []
        """All that are stored; purged ones too, for the checkers."""
        self.first = 1
        """Place of the first message that was not purged."""
        self._random = random
        self._duplicates_ns = duplicates_ns
        self._seen: dict[str, tuple[int, int]] = {}
        self._synced = 0
        self._down_until = 0
        self._stale_until = 0
        self._stale_length = 0

    # Faults

    def elect(self, now: int, within_ns: tuple[int, int] = ELECTION_NS) -> int:
        """The leader is gone: nobody answers until the time returned."""
        self._down_until = max(self._down_until, now + self._random.randint(*within_ns))
        return self._down_until

    def step_down(self, now: int) -> int:
        """The leader hands over."""
        return self.elect(now, STEPDOWN_NS)

    def stop_leader(self, now: int, within_ns: tuple[int, int] = ELECTION_NS) -> int:
        """The leader is stopped (SIGSTOP): another is elected, later the old one goes on."""
        self._stale_length = len(self.messages)
        up = self.elect(now, within_ns)
        self._stale_until = up + STALE_NS
        return up

    def fail_all(self, now: int, within_ns: tuple[int, int] = ELECTION_NS) -> int:
        """All servers lose power.  Returns when they are back."""
        if not self.sync_always:
            del self.messages[self._synced :]
        return self.elect(now, within_ns)

    def lose_tail(self, count: int) -> None:
        """The last messages are gone (restored from an old copy); never in a healthy setup."""
        if count:
            del self.messages[-count:]
            kept = len(self.messages)
            self._seen = {key: seen for key, seen in self._seen.items() if seen[0] <= kept}

    def heal(self) -> None:
        """Everything is well at once."""
        self._down_until = self._stale_until = 0

    # Requests

    def up(self, now: int) -> bool:
        """Whether there is a leader."""
        return now >= self._down_until

    def publish(
        self, now: int, message_id: str, expected: int | None, records: list[Record]
    ) -> Ack | None:
        """What the publisher hears, None if nothing.

        In an election the message is lost, or stored by the next leader without an answer.
        """
        if sum(len(record.payload) for record in records) > MESSAGE_BYTES_MAX:
            return Ack(False, 0)
        seen = self._seen.get(message_id)
        if seen is not None and now - seen[1] <= self._duplicates_ns:
            return Ack(True, seen[0], duplicate=True) if self.up(now) else None
        if not self.up(now) and self._random.random() < 0.7:
            return None
        if expected is not None and expected != len(self.messages):
            return Ack(False, len(self.messages)) if self.up(now) else None
        self.messages.append(records)
        if self.sync_always:
            self._synced = len(self.messages)
        self._seen[message_id] = (len(self.messages), now)
        return Ack(True, len(self.messages)) if self.up(now) else None

    def length(self, now: int) -> int | None:
        """Messages so far, as a server believes; None if nobody answers."""
        if not self.up(now):
            return None
        if now < self._stale_until and self._random.random() < 0.5:
            return min(self._stale_length, len(self.messages))
        return len(self.messages)

    def read(self, now: int, place: int, count: int) -> tuple[int, list[list[Record]]] | None:
        """(place of the first, messages) from `place` on; None if nobody answers.

        Silently begins later if they were purged: compare with what was asked for.
        """
        length = self.length(now)
        if length is None:
            return None
        begin = max(place, self.first)
        return begin, self.messages[begin - 1 : min(length, begin - 1 + count)]

    def purge(self, before_place: int) -> None:
        """Messages before this place are gone for readers."""
        self.first = max(self.first, min(before_place, len(self.messages) + 1))
