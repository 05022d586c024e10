"""The crossbar: merges the journals of a cluster by tau and feeds subscribers (design section 7).

Pure: `step(event) -> effects`.  Each subscriber gets the transactions of all journals in one total
order, by tau, and the tau through which it is complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec

from meridian.clock.tau import TAU_MAX
from meridian.crossbar.cut import NOTHING, Cutter, ranges_of
from meridian.journal import core as journal
from meridian.journal.core import EpochId, Payload, Position
from meridian.journal.record import Record
from meridian.wire.ranges import Owned, Ranges

BUFFER_BYTES = 64 * 1024 * 1024
"""What is kept for the slowest subscriber; one that needs more is cut loose."""
BEATS = 64
"""Heartbeats that wait for the record they name, per journal."""
ITEM_BYTES = 128
"""What an item costs beside its chunk."""


class Transaction(msgspec.Struct, frozen=True):
    """One committed transaction as its journal holds it.

    `bodies` are the n of its BODY records in `journal`, in order; `chunk` is its last (often only)
    chunk.
    """

    tau: int
    journal: int
    n: int
    txid: bytes
    flags: int
    bodies: tuple[int, ...]
    chunk: bytes


# Events


class AddJournal(msgspec.Struct, frozen=True):
    """A journal to merge; its next record follows `position`.

    Commits through the position's tau are known to everybody; read again, they are skipped.
    A journal trimmed beyond `position` must not be added: what is missing is in a checkpoint only.
    """

    journal: int
    position: Position


class Accepted(msgspec.Struct, frozen=True):
    """Durable records that a journal.core.Reader accepted, in order, with their payloads.

    Those at or before the journal's position are skipped.
    """

    journal: int
    records: list[tuple[Record, Payload]]


class Beat(msgspec.Struct, frozen=True):
    """A heartbeat of a journal's owner (4.6)."""

    journal: int
    epoch: tuple[int, int]
    n: int
    tau: int


class Subscribe(msgspec.Struct, frozen=True):
    """A subscriber that holds everything through `tau` and takes about `credit` bytes unasked.

    It wants the keys of `ranges`; none named: all.  `positions`: through which record of each
    journal it holds the chunks of large transactions, as deliveries told it.
    """

    subscriber: int
    tau: int
    credit: int
    ranges: tuple[Owned, ...] = ()
    positions: tuple[tuple[int, int], ...] = ()


class Credit(msgspec.Struct, frozen=True):
    """The subscriber has taken `size_bytes` (of chunks) of what was delivered."""

    subscriber: int
    size_bytes: int


class Unsubscribe(msgspec.Struct, frozen=True):
    """The subscriber is gone."""

    subscriber: int


Event = AddJournal | Accepted | Beat | Subscribe | Credit | Unsubscribe

# Effects


class Body(msgspec.Struct, frozen=True):
    """One chunk of a large transaction that is still open, as it arrives.

    What it names exists: commits at or below its tau_start come before it.
    """

    txid: bytes
    journal: int
    n: int
    seq: int
    chunk: bytes
    tau_start: int = 0


class Dropped(msgspec.Struct, frozen=True):
    """An open large transaction that will never commit."""

    txid: bytes
    journal: int
    n: int


Item = Transaction | Body | Dropped


class Deliver(msgspec.Struct, frozen=True):
    """`items` in order, then: the subscriber is complete through `tau`.

    Everything of a journal through n was delivered, for each (journal, n) of `positions`.  Of an
    item only the length of its chunk counts against the credit.
    """

    subscriber: int
    items: list[Item]
    tau: int
    positions: tuple[tuple[int, int], ...]


class CutLoose(msgspec.Struct, frozen=True):
    """The subscriber is too slow: it must catch up from journal or snapshot and subscribe again."""

    subscriber: int
    reason: str


Effect = Deliver | CutLoose


class _Journal:
    """What was read of one journal: through record `n`, complete through `tau`."""

    __slots__ = ("base", "beats", "epoch", "held", "n", "open", "queue", "tau")

    def __init__(self, tau: int) -> None:
        self.base = tau
        self.epoch: EpochId = journal.NO_EPOCH
        self.n = 0
        self.tau = tau
        self.queue: deque[Transaction] = deque()
        self.beats: deque[Beat] = deque(maxlen=BEATS)
        self.held: list[Body] = []
        """Chunks that wait for commits of other journals at or below their tau_start, by n."""
        self.open: dict[bytes, int] = {}
        """Large transactions whose bodies come in: txid to the n of the newest body."""

    def merged_n(self) -> int:
        """Everything through this record is in the buffer."""
        n = self.queue[0].n - 1 if self.queue else self.n
        return min(n, self.held[0].n - 1) if self.held else n


class _Subscriber:
    __slots__ = ("credit", "cursor", "positions", "ranges", "sent_tau", "tau", "unused")

    def __init__(self, cursor: int, tau: int, credit: int, ranges: Ranges | None) -> None:
        self.ranges = ranges
        self.cursor = cursor
        self.tau = tau
        self.credit = credit
        self.unused = credit
        self.sent_tau = tau
        self.positions: dict[int, int] = {}


class Crossbar:
    """Merge of all journals of a cluster.

    Invariants: the merged order is by tau; nothing at or below `tau` is merged later; a journal
    that ADD named holds `tau` back until it is read (4.7).
    """

    def __init__(self, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.tau = 0
        self.forgotten_tau = 0
        """Transactions through this tau are not in the buffer any more."""
        self.backlog_bytes = 0
        """Size of the buffer: the shell reads no further while it is nearly full."""
        self._buffer_bytes = buffer_bytes
        self._journals: dict[int, _Journal] = {}
        self._subscribers: dict[int, _Subscriber] = {}
        self._items: deque[Item] = deque()
        self._through: deque[int] = deque()
        """Per item: everything of its journal through this n is in the buffer, up to the item."""
        self._first = 0
        """Number of the first item in the buffer."""
        self._forgotten: dict[bytes, tuple[int, int]] = {}
        """(journal, n) of chunks that left the buffer before their transaction did."""
        self._cutter = Cutter()

    def step(self, event: Event) -> list[Effect]:
        """What to send.  Raises JournalError if a journal breaks the order of taus."""
        match event:
            case Accepted():
                self._accepted(event)
            case Beat():
                self._beat(event)
            case Credit():
                if not self._credit(event):
                    return []
            case AddJournal():
                self._add_journal(event)
            case Subscribe():
                return self._subscribe(event) + self._flush()
            case Unsubscribe():
                self._subscribers.pop(event.subscriber, None)
        self._merge()
        return self._flush()

    def lagging(self, tau: int) -> list[int]:
        """Journals that are not known to be complete through `tau`: ask their owners (4.6)."""
        return [number for number, one in self._journals.items() if one.tau < tau]

    def positions(self) -> tuple[tuple[int, int], ...]:
        """(journal, n) read so far."""
        return tuple((number, one.n) for number, one in self._journals.items())

    # In

    def _add_journal(self, event: AddJournal) -> None:
        one = self._journals.get(event.journal)
        position = event.position
        if one is None:
            assert position.tau >= self.tau, "its taus may lie below what was said to be complete"
            one = self._journals[event.journal] = _Journal(position.tau)
            self.forgotten_tau = max(self.forgotten_tau, position.tau)
        assert one.n == 0 and not one.queue, "a journal is added once"
        one.epoch, one.n = position.epoch, position.n
        one.base = position.tau
        one.tau = TAU_MAX if position.closed else max(one.tau, position.tau)
        for member in position.members:
            # Added before the position: unheard of so far, and holding back as after its ADD.
            self._journals.setdefault(member, _Journal(position.tau))

    def _accepted(self, event: Accepted) -> None:
        one = self._journals[event.journal]
        for record, payload in event.records:
            # Every accepted record bears the epoch in force, those that are skipped too.
            one.epoch = max(one.epoch, record.epoch)
            if record.n <= one.n:
                # A marker in a shared stream bears no number, and a CLOSE may be read again.
                if isinstance(payload, journal.Marker):
                    self._drop_open(event.journal, one)
                elif isinstance(payload, journal.Close):
                    one.tau = TAU_MAX
                continue
            assert record.n == one.n + 1, (record.n, one.n)
            one.n = record.n
            self._take(event.journal, one, record, payload)
        ripe = [beat for beat in one.beats if self._ripe(one, beat)]
        if ripe:
            one.tau = max(one.tau, *(beat.tau for beat in ripe))
            one.beats = deque((beat for beat in one.beats if beat not in ripe), BEATS)

    def _take(self, number: int, one: _Journal, record: Record, payload: Payload) -> None:
        match payload:
            case journal.Commit() if record.tau <= one.base:
                # Its chunks, if they came again, have been staged anew.
                self._drop(number, one, record.txid)
            case journal.Commit():
                self._advance(one, record)
                one.open.pop(record.txid, None)
                one.queue.append(_transaction(number, record, payload))
            case journal.Body():
                one.open[record.txid] = record.n
                tau = payload.tau_start
                body = Body(record.txid, number, record.n, payload.seq, payload.chunk, tau)
                # In one journal the commit that made what it names lies before it.
                if tau <= self.tau or len(self._journals) == 1:
                    self._buffer(body)
                else:
                    one.held.append(body)
            case journal.Abort():
                self._drop(number, one, record.txid)
            case journal.Marker():
                self._drop_open(number, one)
            case journal.Add():
                if record.tau > one.base:
                    self._advance(one, record)
                # All taus of the new journal exceed this one (4.7); those through the base are in.
                tau = max(record.tau, one.base)
                self._journals.setdefault(payload.journal, _Journal(tau))
            case journal.Close():
                self._drop_open(number, one)
                one.tau = TAU_MAX
            case journal.Seal() | journal.Lease() | journal.Release() | journal.Acquire():
                pass
            case journal.Skip():
                pass

    def _advance(self, one: _Journal, record: Record) -> None:
        if record.tau <= one.tau:
            raise journal.JournalError(
                f"record {record.n}: tau {record.tau} comes after completeness through {one.tau}"
            )
        one.tau = record.tau

    def _drop_open(self, number: int, one: _Journal) -> None:
        for txid in list(one.open):
            self._drop(number, one, txid)

    def _drop(self, number: int, one: _Journal, txid: bytes) -> None:
        n = one.open.pop(txid, None)
        if n is not None:
            one.held = [body for body in one.held if body.txid != txid]
            self._buffer(Dropped(txid, number, n))

    def _beat(self, beat: Beat) -> None:
        one = self._journals.get(beat.journal)
        if one is None or beat.epoch < one.epoch:
            return
        if self._ripe(one, beat):
            one.tau = max(one.tau, beat.tau)
        else:
            one.beats.append(beat)

    @staticmethod
    def _ripe(one: _Journal, beat: Beat) -> bool:
        return beat.epoch == one.epoch and beat.n <= one.n

    def _merge(self) -> None:
        """Moves what is complete into the buffer, by tau."""
        if not self._journals:
            return
        tau = min(one.tau for one in self._journals.values())
        if tau <= self.tau:
            return
        ripe: list[Transaction | Body] = []
        for one in self._journals.values():
            while one.queue and one.queue[0].tau <= tau:
                ripe.append(one.queue.popleft())
            if one.held:
                ripe += [body for body in one.held if body.tau_start <= tau]
        ripe.sort(key=_order)
        for item in ripe:
            if isinstance(item, Body):
                self._journals[item.journal].held.remove(item)
            else:
                assert item.tau > self.tau, "merged below what was said to be complete"
            self._buffer(item)
        self.tau = tau

    # Out

    def _buffer(self, item: Item) -> None:
        held = self._journals[item.journal].held
        self._items.append(item)
        self._through.append(min(item.n, held[0].n - 1) if held else item.n)
        self.backlog_bytes += size_bytes(item)

    def _subscribe(self, event: Subscribe) -> list[Effect]:
        if event.tau < self.forgotten_tau:
            return [CutLoose(event.subscriber, "its tau is not in the buffer any more")]
        held = dict(event.positions)
        if any(held.get(number, 0) < n for number, n in self._forgotten.values()):
            return [CutLoose(event.subscriber, "chunks it lacks are not in the buffer any more")]
        ranges = ranges_of(event.ranges)
        one = _Subscriber(self._first, event.tau, event.credit, ranges)
        self._subscribers[event.subscriber] = one
        return []

    def _credit(self, event: Credit) -> bool:
        """Whether something waits for this credit."""
        one = self._subscribers.get(event.subscriber)
        if one is None:
            return False
        one.unused = min(one.unused + event.size_bytes, one.credit)
        return one.cursor < self._first + len(self._items)

    def _flush(self) -> list[Effect]:
        effects: list[Effect] = []
        for number, one in self._subscribers.items():
            effects += self._deliver(number, one)
        self._forget()
        for number in [n for n, one in self._subscribers.items() if one.cursor < self._first]:
            del self._subscribers[number]
            effects.append(CutLoose(number, "it is too slow"))
        return effects

    def _deliver(self, number: int, one: _Subscriber) -> Iterator[Effect]:
        end = self._first + len(self._items)
        if one.cursor == end and self.tau <= one.sent_tau and one.positions:
            return
        items: list[Item] = []
        while one.cursor < end and one.unused > 0:
            item = self._items[one.cursor - self._first]
            one.cursor += 1
            if isinstance(item, Transaction):
                if item.tau <= one.tau:
                    if item.bodies:
                        items.append(Dropped(item.txid, item.journal, item.n))
                    continue
                one.tau = item.tau
                through = self._through[one.cursor - 1 - self._first]
                one.positions[item.journal] = max(one.positions.get(item.journal, 0), through)
            if one.ranges is not None and not isinstance(item, Dropped):
                cut = self._cut(one.cursor - 1, item, one.ranges)
                if cut is None:
                    continue
                item = cut
            one.unused -= 0 if isinstance(item, Dropped) else len(item.chunk)
            items.append(item)
        for journal_number in self._journals:
            # Membership goes with the positions: who starts from them knows every journal (6.7).
            one.positions.setdefault(journal_number, 0)
        if one.cursor == end:
            one.tau = max(one.tau, self.tau)
            for journal_number, source in self._journals.items():
                one.positions[journal_number] = source.merged_n()
        if items or one.tau > one.sent_tau:
            one.sent_tau = one.tau
            yield Deliver(number, items, one.tau, tuple(one.positions.items()))

    def _cut(
        self, number: int, item: Transaction | Body, ranges: Ranges
    ) -> Transaction | Body | None:
        """The subscriber's part; None: nothing.  Large transactions keep all their chunks."""
        chunk = self._cutter.cut(number, item.chunk, ranges)
        if chunk is item.chunk:
            return item
        if chunk is NOTHING and isinstance(item, Transaction) and not item.bodies:
            return None
        return msgspec.structs.replace(item, chunk=chunk)

    def _forget(self) -> None:
        """Drops what every subscriber has, and what exceeds the buffer."""
        needed = min((one.cursor for one in self._subscribers.values()), default=self._first)
        while self._items and (self._first < needed or self.backlog_bytes > self._buffer_bytes):
            item = self._items.popleft()
            self._through.popleft()
            self._first += 1
            self.backlog_bytes -= size_bytes(item)
            if isinstance(item, Body):
                self._forgotten[item.txid] = (item.journal, item.n)
                continue
            self._forgotten.pop(item.txid, None)
            if isinstance(item, Transaction):
                self.forgotten_tau = item.tau
        assert self.backlog_bytes >= 0


def _transaction(number: int, record: Record, commit: journal.Commit) -> Transaction:
    return Transaction(
        record.tau, number, record.n, record.txid, commit.flags, commit.bodies, commit.chunk
    )


def _order(item: Transaction | Body) -> tuple[int, bool]:
    """By tau; a chunk behind the commits at its tau_start."""
    return (item.tau_start, True) if isinstance(item, Body) else (item.tau, False)


def size_bytes(item: Item) -> int:
    """What an item counts against credit and buffer."""
    return ITEM_BYTES if isinstance(item, Dropped) else ITEM_BYTES + len(item.chunk)
