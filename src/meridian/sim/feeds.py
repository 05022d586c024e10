"""How a replica reads a journal: from one source, or from the three streams of a coded one."""

from __future__ import annotations

from meridian.journal.core import EpochId
from meridian.journal.record import Record
from meridian.sim.messages import Fetch, Parts, Records


class Feed:
    """A file, by its owner, or a stream.  `at`: index of the last record read."""

    def __init__(self, source: str, at: int) -> None:
        self._source = source
        self._at = at

    def fetches(self) -> list[tuple[str, Fetch]]:
        """What to ask whom for."""
        return [(self._source, Fetch(self._at))]

    def take(self, message: Records) -> list[Record] | None:
        """The records that follow; None: begin again."""
        new = self._at + 1 - message.first
        if not 0 <= new < len(message.records):
            return []
        records = message.records[new:]
        self._at += len(records)
        return records

    def cover(self, epoch: EpochId, n: int) -> list[Record]:
        """A heartbeat says that everything through n is durable."""
        return []


class CodedFeed(Feed):
    """Three streams; what is durable for certain comes out."""

    def __init__(self, number: int, parts: Parts) -> None:
        self._feeds = [Feed(f"l{number}.{index}", 0) for index in range(3)]
        self._generations = [-1, -1, -1]
        self._reader = parts.coded_reader()

    def fetches(self) -> list[tuple[str, Fetch]]:
        """One question to each stream."""
        return [fetch for feed in self._feeds for fetch in feed.fetches()]

    def take(self, message: Records) -> list[Record] | None:
        """A stream that came back with less than it had is read from its beginning."""
        known = self._generations[message.stream]
        if known not in (-1, message.generation):
            return None
        self._generations[message.stream] = message.generation
        records = self._feeds[message.stream].take(message)
        self._reader.take(message.stream, records or ())
        return self._reader.ready()

    def cover(self, epoch: EpochId, n: int) -> list[Record]:
        """One copy is enough for what a heartbeat covers."""
        self._reader.cover(epoch, n)
        return self._reader.ready()
