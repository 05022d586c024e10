"""How a replica reads a journal: from one source, or from the three streams of a coded one."""

from __future__ import annotations

from meridian.journal.coded import StreamPosition
from meridian.journal.coded_reader import CodedPosition
from meridian.journal.core import EpochId, Reader
from meridian.journal.places import UNREAD
from meridian.journal.record import Record
from meridian.sim.messages import Fetch, Parts, Records
from meridian.sim.stream import SharedJournal


class Feed:
    """A file, by its owner.  `at`: index of the last record read."""

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


class StreamFeed(Feed):
    """A shared stream, from where its journal begins."""

    def __init__(self, journal: SharedJournal, parts: Parts) -> None:
        start = journal.place.streams.streams[0]
        super().__init__(journal.streams[0].name, start.index)

    def position(self, reader: Reader) -> CodedPosition:
        """Where another one may go on, with all that was given accepted by `reader`."""
        return CodedPosition(reader.epoch, reader.n, (StreamPosition(self._at),))

    def generations(self) -> tuple[int, ...]:
        """Of the streams, as far as they were read."""
        return (UNREAD,)


class CodedFeed(StreamFeed):
    """Three streams; what is durable for certain comes out."""

    def __init__(self, journal: SharedJournal, parts: Parts) -> None:
        place = journal.place.streams
        starts = zip(journal.streams, place.streams, strict=True)
        self._feeds = [Feed(stream.name, start.index) for stream, start in starts]
        self._generations = [UNREAD] * len(self._feeds)
        self._reader = parts.coded_reader(place)

    def position(self, reader: Reader) -> CodedPosition:
        """Where another one may go on."""
        return self._reader.position()

    def generations(self) -> tuple[int, ...]:
        """Of the streams, as far as they were read."""
        return tuple(self._generations)

    def fetches(self) -> list[tuple[str, Fetch]]:
        """One question to each stream."""
        return [fetch for feed in self._feeds for fetch in feed.fetches()]

    def take(self, message: Records) -> list[Record] | None:
        """A stream that came back with less than it had is read from its beginning."""
        known = self._generations[message.stream]
        if known not in (UNREAD, message.generation):
            return None
        self._generations[message.stream] = message.generation
        records = self._feeds[message.stream].take(message)
        self._reader.take(message.stream, records or ())
        return self._reader.ready()

    def cover(self, epoch: EpochId, n: int) -> list[Record]:
        """One copy is enough for what a heartbeat covers."""
        self._reader.cover(epoch, n)
        return self._reader.ready()
