"""Where reading a journal over shared streams may begin once it is trimmed (design section 6.7).

Everything before a place lies in a durable snapshot.  It carries the highest SEAL (epoch) of the
history and of each stream, the lease, membership, and an index into each stream; and it never lies
inside of an open large transaction, whose bodies would be gone when its commit record comes.

Pure: the reader that takes the snapshot notes places on its way; the newest one that the snapshot
covers is stored beside it, durable, before any stream is cut.
"""

from __future__ import annotations

from collections import deque

import msgspec

from meridian.journal.coded_reader import CodedPosition
from meridian.journal.core import Position, Reader

PLACES = 64
"""Places remembered; every second one goes when there are more."""


UNREAD = -1
"""The generation of a stream of which nothing was read behind the last place."""


class Place(msgspec.Struct, array_like=True, frozen=True):
    """`history`: where the journal's Reader stands; `streams`: where each stream's does.

    A journal of one stream has one entry in `streams.streams`, of which the index counts.
    `generations` tell which incarnation of each stream the indexes are of.
    """

    history: Position = Position()
    streams: CodedPosition = CodedPosition()
    generations: tuple[int, ...] = ()


def later(old: Place, new: Place) -> Place:
    """The place that follows `old` once `new`, further on in history, is durable too.

    Two readers may lag in different streams: of each stream the higher index counts.  Nothing
    before it was needed by the reader of the older place, and the newer one has more behind it.
    """
    assert new.history.n >= old.history.n
    pairs = zip(old.streams.streams, new.streams.streams, strict=True)
    streams = tuple(two if two.index >= one.index else one for one, two in pairs)
    return Place(
        new.history, CodedPosition(new.streams.epoch, new.streams.n, streams), new.generations
    )


class Places:
    """Places that one reader of one journal has passed, ascending."""

    def __init__(self) -> None:
        self._places: deque[Place] = deque()

    def note(self, reader: Reader, streams: CodedPosition, generations: tuple[int, ...]) -> None:
        """All that the streams gave so far was accepted by `reader`."""
        assert streams.n == reader.n, (streams.n, reader.n)
        if reader.open_n() is not None:
            return
        if self._places and self._places[-1].history.n == reader.n:
            # The same history, with less to read again.
            self._places.pop()
        self._places.append(Place(reader.position(), streams, generations))
        if len(self._places) > PLACES:
            kept = list(self._places)
            self._places = deque([*kept[:-1][::2], kept[-1]])

    def newest(self, through_n: int) -> Place | None:
        """The last place with nothing beyond record `through_n` before it."""
        found = None
        for place in self._places:
            if place.history.n > through_n:
                break
            found = place
        return found
