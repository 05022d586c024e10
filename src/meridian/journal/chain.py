"""Appends to a stream that others may append to as well (facts of the NATS backend; design 6.5).

Each message names how many must lie before it.  That alone does not fence: once an interloper's
message has filled the place of a rejected one, later messages of a deposed owner match again and
are stored.  Four rules make it safe, together with the readers' epochs:

- answers count strictly in the order of the chain, the oldest first;
- the oldest being rejected ends the chain for good, and later answers are discarded;
- an answer counts only with the very place that was expected: a server that takes a message for a
  repetition answers with the place of another one;
- answers of another generation of the stream end the chain: once it has come back with less than
  it had and others have filled it up again, places match as if nothing had happened.

Pure: the shell sends `Publish`, repeats what is not answered, and reports answers.
"""

from __future__ import annotations

from collections import deque

import msgspec

from meridian.journal.record import Record

WINDOW = 32
"""Messages on their way at once."""
MESSAGE_BYTES = 512 * 1024
"""One message holds about this much, at least one record."""


SHORT_ANSWERS = 3
"""So many answers that tell of fewer messages than were acknowledged end a chain."""


class Publish(msgspec.Struct, frozen=True):
    """One message; `number` within its chain makes its id, the same when it is repeated.

    `expected` messages must lie before it; None: any (a marker).
    """

    number: int
    expected: int | None
    records: list[Record]
    generation: int | None = None
    """Of the stream that is meant; another one must refuse it (JetStream: the expected stream)."""


class Chain:
    """One owner's messages to one stream, from the place `tail` on."""

    def __init__(
        self,
        tail: int,
        first: int = 0,
        window: int = WINDOW,
        message_bytes: int = MESSAGE_BYTES,
        generation: int | None = 0,
    ) -> None:
        self.generation = generation
        """Of the stream, which gets another one (another name) when it is made from a copy."""
        self.tail = tail
        """Messages in the stream once all on their way are stored."""
        self.broken = False
        self.waiting_bytes = 0
        self._number = first
        self._window = window
        self._message_bytes = message_bytes
        self._waiting: deque[Record] = deque()
        self._flying: deque[Publish] = deque()
        self._short = 0
        self._answers: dict[int, int] = {}
        """Places of messages stored ahead of an older one that is not answered."""

    @property
    def idle(self) -> bool:
        """Everything appended is stored."""
        return not self._waiting and not self._flying

    @property
    def next_number(self) -> int:
        """Of the next message: ids are never used twice, in whichever chain of one process."""
        return self._number

    def append(self, record: Record) -> None:
        """Queues a record."""
        assert not self.broken
        self._waiting.append(record)
        self.waiting_bytes += len(record.payload)

    def publish(self) -> list[Publish]:
        """New messages, as many as the window lets through; what waits meanwhile is grouped."""
        out: list[Publish] = []
        while self._waiting and len(self._flying) < self._window and not self.broken:
            message = Publish(self._number, self.tail, self._batch(), self.generation)
            self._number += 1
            self.tail += 1
            self._flying.append(message)
            out.append(message)
        return out

    def _batch(self) -> list[Record]:
        batch: list[Record] = []
        size_bytes = 0
        while self._waiting and (not batch or size_bytes < self._message_bytes):
            record = self._waiting.popleft()
            size_bytes += len(record.payload)
            batch.append(record)
        self.waiting_bytes -= size_bytes
        return batch

    def unanswered(self) -> list[Publish]:
        """To be sent again after a while, oldest first."""
        return [one for one in self._flying if one.number not in self._answers]

    def stored(self, number: int, place: int, generation: int = 0) -> list[list[Record]]:
        """The message is in the stream as its `place`-th.  Returns batches that count now."""
        self._compare(generation)
        if self.broken or not self._flying or number < self._flying[0].number:
            return []
        self._answers[number] = place
        done: list[list[Record]] = []
        while self._flying and self._flying[0].number in self._answers:
            message = self._flying[0]
            expected = message.expected
            assert expected is not None
            if self._answers.pop(message.number) != expected + 1:
                self.broken = True
                return done
            self._flying.popleft()
            self._short = 0
            done.append(message.records)
        return done

    def _compare(self, generation: int) -> None:
        self.broken = self.broken or generation != self.generation

    def rejected(self, number: int, place: int, generation: int = 0) -> None:
        """The message did not find its place: `place` messages were in the stream.

        Behind one that is not answered that proves nothing: the older one may have been lost on the
        way, and both are sent again.
        """
        self._compare(generation)
        if self.broken or not self._flying or number != self._flying[0].number:
            return
        expected = self._flying[0].expected
        assert expected is not None
        # Fewer than expected: an answer that was overtaken, or the stream lost its tail.
        self._short += place < expected
        self.broken = place >= expected or self._short >= SHORT_ANSWERS
