"""Messages between the nodes of the world, and which parts a run is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.events import (
    Added,
    AddJournal,
    Answer,
    Closed,
    CloseJournal,
    Commit,
    Discard,
    Gate,
    Gated,
    Move,
    Moved,
    Part,
    Status,
    Unmoved,
)
from meridian.control.core import Control, Policy
from meridian.control.performer import Performer
from meridian.control.views import Action, Report
from meridian.crossbar.core import Crossbar
from meridian.journal.chain import Chain
from meridian.journal.coded_reader import CodedPosition, CodedReader
from meridian.journal.coded_writer import CodedWriter
from meridian.journal.core import Position, Reader
from meridian.journal.record import Record
from meridian.routing.core import Router
from meridian.routing.map import ShardMap
from meridian.sim.machine import Machine
from meridian.sim.world import World
from meridian.snapshots.manifest import Manifest, intact
from meridian.snapshots.manifest import Part as SnapshotPart
from meridian.snapshots.retention import trim_positions
from meridian.storage.core import Core
from meridian.wire.partition import PartitionMap
from meridian.wire.ranges import Owned, Range, Ranges
from meridian.wire.votes import Message


class Ask(msgspec.Struct, frozen=True):
    """A query processor to an owner."""

    event: Commit | Part | Status | Discard | Gate


class Submit(msgspec.Struct, frozen=True):
    """A query processor's COMMIT for the owner `target`, to its gateway."""

    target: str
    event: Commit


class Frame(msgspec.Struct, frozen=True):
    """A gateway to an owner: COMMITs of several, each with who asks, decided in one go."""

    asks: tuple[tuple[str, Commit], ...]


class Told(msgspec.Struct, frozen=True):
    """An owner to a query processor."""

    answer: Answer
    attempt: int = 0
    """Which was asked for: giving up an earlier one says nothing of the one under way."""


class GateTold(msgspec.Struct, frozen=True):
    """Owner `number` to a query processor that asked for a gate."""

    number: int
    effect: Gated


class Change(msgspec.Struct, frozen=True):
    """The registrar or the mapper to an owner."""

    event: AddJournal | CloseJournal | Move


class Changed(msgspec.Struct, frozen=True):
    """The owner of `journal` to whoever wanted it."""

    journal: int
    effect: Added | Closed | Moved | Unmoved


class Peer(msgspec.Struct, frozen=True):
    """One adjudicator to another, or a query processor's Ask to a voter."""

    message: Message


class AskMap(msgspec.Struct, frozen=True):
    """A query processor wants the partition map."""


class ThisMap(msgspec.Struct, frozen=True):
    """The mapper's answer."""

    map: PartitionMap


class AskJournals(msgspec.Struct, frozen=True):
    """A control core wants to know which journals need an owner."""


class TheseJournals(msgspec.Struct, frozen=True):
    """The registrar's answer; `ended`: those that take no commits any more."""

    journals: tuple[int, ...]
    ended: tuple[int, ...] = ()


class Fetch(msgspec.Struct, frozen=True):
    """Somebody wants the durable records of a journal after the index `after`.

    A record's index is its n in a file, its place in a stream.
    """

    after: int


class Records(msgspec.Struct, frozen=True):
    """Durable records of a journal, in order, the first at index `first`."""

    journal: int
    first: int
    records: list[Record]
    stream: int = 0
    """Of the three of a coded journal."""
    generation: int = 0
    """Another one: the stream came back with less than it had."""


class StreamPut(msgspec.Struct, frozen=True):
    """An owner appends one message to a stream; in the order of `number` per `writer`.

    `expected` is the number of messages that must lie before it; None = any.
    """

    writer: str
    number: int
    expected: int | None
    records: list[Record]
    generation: int | None = None
    """Of the stream that is meant; another one refuses it (JetStream: the expected stream)."""


class Stored(msgspec.Struct, frozen=True):
    """What became of StreamPut `number`, and the stream's length in messages and records."""

    writer: str
    number: int
    accepted: bool
    messages: int
    records: int
    stream: int = 0
    generation: int = 0


class Trimmed(msgspec.Struct, frozen=True):
    """What was asked for was trimmed: a replica must start from a checkpoint."""

    journal: int
    stream: int = 0


class Beat(msgspec.Struct, frozen=True):
    """A heartbeat on its way to a replica."""

    journal: int
    epoch: tuple[int, int]
    n: int
    tau: int


class Want(msgspec.Struct, frozen=True):
    """A replica waits for a journal to be complete through tau."""

    tau: int


class CountAsked(msgspec.Struct, frozen=True):
    """A replica asks another one for the digest of what it holds as of tau (check `number`).

    Of the places of [lo, hi), where replicas hold ranges.
    """

    number: int
    tau: int
    lo: bytes = b""
    hi: bytes = b""


class CountTold(msgspec.Struct, frozen=True):
    """The digest; None: not complete through that tau."""

    number: int
    replica: int
    built: int
    content: int | None


Key = tuple[int, bytes]
"""(storage id, key)"""


class Get(msgspec.Struct, frozen=True):
    """A query processor reads keys as of tau."""

    request: int
    tau: int
    keys: tuple[Key, ...]


class Got(msgspec.Struct, frozen=True):
    """The values, None where there is no row."""

    request: int
    values: tuple[bytes | None, ...]


class Scan(msgspec.Struct, frozen=True):
    """A query processor reads the rows of [lo, hi) as of tau, in the order of places or against it.

    `limit` rows and `page_bytes` end a page; 0: none.
    """

    request: int
    tau: int
    lo: bytes
    hi: bytes
    descending: bool
    limit: int
    page_bytes: int


class Page(msgspec.Struct, frozen=True):
    """The rows of `scanned`, a part of what was asked; `more`: the page ends before its end."""

    request: int
    rows: tuple[tuple[Key, bytes], ...]
    scanned: Range
    more: bool


class Unread(msgspec.Struct, frozen=True):
    """A replica of a range refuses a read: a reason of the router's."""

    request: int
    reason: int


# Between hosts, the metadata store and whoever controls them


class Order(msgspec.Struct, frozen=True):
    """An action for its performer: a host, the metadata node (Publish), an owner's host."""

    action: Action


class Ordered(msgspec.Struct, frozen=True):
    """What became of the action with this number.

    Performed, now or before, or refused. An AddReplica is performed once the host has taken it
    on; whether it is complete shows in reports.
    """

    action: int
    ok: bool


class Said(msgspec.Struct, frozen=True):
    """A host to the controllers, every few hundred ms: what it says of itself or a replica."""

    report: Report


class AskShards(msgspec.Struct, frozen=True):
    """Somebody wants the shard map. `in_force`: the one that is; else an old one will do."""

    request: int
    in_force: bool = False


class TheseShards(msgspec.Struct, frozen=True):
    """The metadata node's answer to `request`."""

    request: int
    map: ShardMap


class Parts(msgspec.Struct, frozen=True):
    """The cores under test; mutants replace one of them."""

    adjudicator: Callable[..., Adjudicator] = Adjudicator
    crossbar: Callable[[], Crossbar] = Crossbar
    reader: Callable[[Position], Reader] = Reader
    storage: Callable[[int, int, dict[int, int]], Core] = Core
    coded_reader: Callable[[CodedPosition], CodedReader] = CodedReader
    coded_writer: Callable[..., CodedWriter] = CodedWriter
    coded_fences: int = 2
    """Streams that a new owner reads through its own marker before it begins."""
    swarm: dict[str, object] = {}
    """What of the seed's mix of faults is fixed."""
    router: Callable[..., Router] = Router
    performer: Callable[[int, dict[int, Range], dict[int, None]], Performer] = Performer
    ranges: Callable[[Sequence[Owned]], Ranges] = Ranges
    """By which a replica decides what it may answer."""
    lanes_apart: bool = True
    """A range that came later is not served before it is complete itself."""
    manifest_last: bool = True
    """A snapshot's manifest comes after its parts."""
    snapshot_members: bool = True
    """A snapshot knows every journal that its file knew, also those of which it holds nothing."""
    intact: Callable[[SnapshotPart, bytes], bool] = intact
    """Whether an object is a part of a snapshot as it was written."""
    trim: Callable[[Sequence[Sequence[Manifest]]], dict[int, Position]] = trim_positions
    chain: Callable[..., Chain] = Chain
    control: Callable[[Policy, int], Control] = Control
    writer_id: Callable[[str, int], str] = "{}.{}".format
    """Names an incarnation of an owner: the first part of its message ids."""
    machine: Callable[[World], Machine] = Machine
    heartbeats_wait: bool = False
    """Breaks rule 5.9: an owner gives no heartbeat before every other one has given one."""
    tau_start_latest: bool = True
    """Rule 4.3: tau_start is the upper edge of the clock."""
