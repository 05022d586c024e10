"""Reading journal segments: order, checksums, torn tail or damage (design section 6).

A segment is named by the n of its first record. A later segment supersedes the records with
n >= its first n in earlier segments: a new owner copies the tail that nothing proves durable
into a segment of its own before it appends anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from meridian.errors import Kind, MeridianError
from meridian.journal.record import (
    HEADER_SIZE_BYTES,
    BadRecord,
    Record,
    decode,
    decode_header,
    later_durable_claim,
)

SUFFIX = ".seg"
_NAME = re.compile(r"^(\d{20})\.seg$")


class Segment(NamedTuple):
    """One segment file; it holds records first_n up to before_n (None: the last one)."""

    path: Path
    first_n: int
    before_n: int | None


class Torn(NamedTuple):
    """Where the last segment stops being readable; `size_bytes` of garbage follow."""

    path: Path
    offset: int
    n: int
    size_bytes: int
    why: str


class Scanned(NamedTuple):
    """What a full scan found beside the records themselves."""

    first_n: int
    next_n: int
    durable_n: int
    """Highest n that a record claims to be durable; those above are unproven."""
    torn: Torn | None


def segment_path(directory: Path, first_n: int) -> Path:
    """File of the segment that begins at `first_n`."""
    return directory / f"{first_n:020d}{SUFFIX}"


def list_segments(directory: Path) -> list[Segment]:
    """All segments in order of n; other files are ignored."""
    firsts = sorted(
        int(match.group(1))
        for entry in directory.iterdir()
        if (match := _NAME.match(entry.name)) is not None
    )
    ends: list[int | None] = [*firsts[1:], None]
    return [
        Segment(segment_path(directory, first), first, end)
        for first, end in zip(firsts, ends, strict=False)
    ]


class SegmentReader:
    """Reads a journal's records from `from_n`; `scanned` is filled once it has run to the end.

    Raises JOURNAL_DAMAGED (naming file, n and offset) for anything but a torn tail,
    JOURNAL_TRIMMED when `from_n` is no longer there, UNKNOWN_FORMAT.
    """

    def __init__(self, directory: Path, journal_id: int, from_n: int = 0) -> None:
        self.directory = directory
        self.journal_id = journal_id
        self.from_n = from_n
        self.scanned: Scanned | None = None
        self.firsts: frozenset[int] = frozenset()
        """First n of every segment that is read."""
        self.offset = 0
        """Of the record yielded last, in its segment."""
        self.durable_n = 0
        """Highest n that a record read so far claims to be durable."""

    def __iter__(self) -> Iterator[Record]:
        segments = list_segments(self.directory)
        first_n = segments[0].first_n if segments else 1
        if segments and self.from_n < first_n and self.from_n > 0:
            raise MeridianError(
                Kind.JOURNAL_TRIMMED, journal=self.journal_id, first=first_n, n=self.from_n
            )
        wanted = [s for s in segments if s.before_n is None or s.before_n > self.from_n]
        self.firsts = frozenset(segment.first_n for segment in wanted)
        state = _State(wanted[0].first_n if wanted else first_n)
        for segment in wanted:
            for record in self._segment(segment, state):
                if record.n >= self.from_n:
                    yield record
        self.scanned = Scanned(first_n, state.next_n, state.durable_n, state.torn)

    def _segment(self, segment: Segment, state: _State) -> Iterator[Record]:
        data = segment.path.read_bytes()
        last = segment.before_n is None
        try:
            header = decode_header(data, str(segment.path))
        except BadRecord as bad:
            # Segments get their name after their header is durable: never a torn write.
            raise self._damaged(segment, segment.first_n, 0, bad.why) from None
        if header.journal_id != self.journal_id or header.first_n != segment.first_n:
            raise self._damaged(segment, segment.first_n, 0, "header names another segment")
        if segment.first_n != state.next_n:
            raise self._damaged(segment, state.next_n, 0, f"record {state.next_n} is missing")
        offset = HEADER_SIZE_BYTES
        while offset < len(data) and (last or state.next_n < (segment.before_n or 0)):
            try:
                record, durable_n, after = decode(data, offset)
                if record.n != state.next_n:
                    raise BadRecord(f"record bears number {record.n}")
            except BadRecord as bad:
                if last:
                    state.torn = self._torn(segment, data, offset, state, bad.why)
                    return
                raise self._damaged(segment, state.next_n, offset, bad.why) from None
            self.durable_n = state.durable_n = max(state.durable_n, durable_n)
            self.offset = offset
            state.next_n += 1
            offset = after
            yield record
        if not last and state.next_n != segment.before_n:
            raise self._damaged(segment, state.next_n, offset, "records are missing at the end")

    def _torn(self, segment: Segment, data: bytes, offset: int, state: _State, why: str) -> Torn:
        claim = max(state.durable_n, later_durable_claim(data, offset, state.next_n))
        if claim >= state.next_n:
            raise self._damaged(segment, state.next_n, offset, why)
        return Torn(segment.path, offset, state.next_n, len(data) - offset, why)

    def _damaged(self, segment: Segment, n: int, offset: int, why: str) -> MeridianError:
        return MeridianError(Kind.JOURNAL_DAMAGED, path=segment.path, n=n, offset=offset, why=why)


class _State:
    """Progress of a scan over several segments."""

    def __init__(self, next_n: int) -> None:
        self.next_n = next_n
        self.durable_n = 0
        self.torn: Torn | None = None
