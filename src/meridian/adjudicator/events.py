"""Events an adjudicator takes and effects it asks for (design section 3).

Times and taus are int64 nanoseconds.  `to` is an opaque number of the shell that says who asked;
the core hands it back in the answer.  The transport may drop, double, delay and reorder.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from meridian.journal.core import Payload, Position
from meridian.journal.record import Record
from meridian.wire.partition import Handover, Place, Span
from meridian.wire.votes import Message


class Outcome(IntEnum):
    """What an Answer says."""

    COMMITTED = 1
    """`tau` is tau_commit."""
    ABORTED = 2
    """Final: this transaction id never commits.  `code` says why."""
    UNKNOWN = 3
    """It may have committed, and this owner cannot find out (08007)."""
    RETRY = 4
    """No outcome: send the same request again after a short wait.  `code` says why."""


class Code(IntEnum):
    """Why a commit was aborted or has to be sent again."""

    NONE = 0
    CONFLICT = 1
    """40001 OC000: a key was written or shared after tau_start."""
    CATALOG = 2
    """40001 OC001: a relation's schema changed after tau_start, or the client lags behind it."""
    FLOOR = 3
    """40001: tau_start lies before the conflict window."""
    PARTS = 4
    """Chunks of a large write set are missing, doubled or too many."""
    MALFORMED = 5
    """08P01: the write set cannot be decoded."""
    RESOLVED = 6
    """Somebody asked for the outcome before the commit arrived: it was made an abort."""
    CLOSED = 7
    """The journal took its last record without this transaction: it can never commit."""
    GATED = 9
    """40001: held by the gate of a DDL statement for too long, or too many were."""
    MOVED = 10
    """40001: a key range moved while a large transaction arrived."""
    KEYS = 11
    """54000: too many keys outside of the leader's ranges (HOLD_KEYS)."""
    STARTING = 20
    """RETRY: this owner does not serve (yet)."""
    BUSY = 21
    """RETRY: too many commits or large transactions are under way."""
    CLOCK = 22
    """RETRY: tau_start lies more than TAU_FUTURE_NS beyond this owner's clock (4.3)."""
    EPOCH = 23
    """RETRY: the attempt named another epoch of this leader; the answer names the present one."""
    PLACE = 24
    """RETRY: keys are not where the partition map said; `version` of the answer exists."""
    LEADER = 25
    """RETRY: the transaction id names another leader (5.6)."""
    HELD = 26
    """RETRY: an older transaction holds a key (5.3); the next attempt may pass."""
    VOTES = 27
    """RETRY: votes are missing or came too late for their promises; make another attempt."""
    ATTEMPT = 28
    """RETRY: this attempt was given up; make another one with a higher number."""


# Events


class Replay(msgspec.Struct, frozen=True):
    """At start: an accepted record of the own journal and its payload, in order."""

    record: Record
    payload: Payload


class Replayed(msgspec.Struct, frozen=True):
    """At start: the journal was read to its end, where the reader stands at `position`.

    `epoch` is the new epoch: its number exceeds every marker's.  Where several may write one
    journal (a stream), the shell has appended the marker itself, with n 0, and `position` stands
    behind it: its epoch is the new one.
    """

    position: Position
    epoch: tuple[int, int]


class Appended(msgspec.Struct, frozen=True):
    """Every record through `n` is durable, and no higher marker came before it."""

    n: int


class AppendFailed(msgspec.Struct, frozen=True):
    """An append was rejected or its outcome is unknown: this owner is finished (6.8)."""

    reason: str


class Commit(msgspec.Struct, frozen=True):
    """COMMIT: the last chunk of a write set; `parts` chunks came before as Part."""

    to: int
    txid: bytes
    tau_start: int
    catver: int
    flags: int
    parts: int
    chunk: bytes
    attempt: int = 0
    """Of a transaction with voters: 1, 2, ...; each is given up before the next one counts."""
    epoch: tuple[int, int] = (0, 0)
    """Of a transaction with voters: the leader's epoch that this attempt is for."""
    voters: tuple[int, ...] = ()
    """The owners of the other keys, ascending; an Ask of this attempt goes to each."""


class Part(msgspec.Struct, frozen=True):
    """An earlier chunk of a large write set, `seq` from 0.

    The shell sends the next one of a transaction when its queue to the journal has room.
    """

    txid: bytes
    tau_start: int
    seq: int
    chunk: bytes


class Discard(msgspec.Struct, frozen=True):
    """The client of a large transaction went away before COMMIT."""

    txid: bytes


class AddJournal(msgspec.Struct, frozen=True):
    """The owner of journal 0 shall record that `journal` exists (4.7).  Ask until Added comes."""

    journal: int


class CloseJournal(msgspec.Struct, frozen=True):
    """The own journal shall end (4.7).  Ask until Closed comes.

    StillOwner: not before its ranges went to others.
    """


class Status(msgspec.Struct, frozen=True):
    """The outcome of a transaction whose answer was lost.  An unknown id is aborted for good."""

    to: int
    txid: bytes
    tau_start: int


class Gate(msgspec.Struct, frozen=True):
    """Hold commits of others that use these relations until `txid` is decided (gates.py).

    `hold_ns` 0 ends the gate.  Answered by Gated.
    """

    to: int
    txid: bytes
    sids: tuple[int, ...]
    hold_ns: int


class WantHeartbeat(msgspec.Struct, frozen=True):
    """A reader waits for this journal to be complete through `tau` (4.6)."""

    tau: int


class Heard(msgspec.Struct, frozen=True):
    """A message of another adjudicator, or an Ask of whoever commits."""

    message: Message


class Move(msgspec.Struct, frozen=True):
    """Give [lo, hi) to `target` (5.8); a map of this `version` says so.

    Ask until Moved comes, or Unmoved: then the next version says that nothing changed.
    `more`: further ranges that go with it in the same record, above the first one, ascending.
    """

    lo: Place
    hi: Place
    target: int
    version: int
    more: tuple[tuple[Place, Place], ...] = ()

    def parts(self) -> tuple[tuple[Place, Place], ...]:
        """All ranges, ascending."""
        return ((self.lo, self.hi), *self.more)


class CatalogKnown(msgspec.Struct, frozen=True):
    """The answer to WantCatalog: the newest catalog version with a tau at or below `tau`."""

    tau: int
    version: int


class Absorb(msgspec.Struct, frozen=True):
    """An accepted record, in order, of another journal that has ended and begins after `start`.

    Whoever reads all of it answers for its transactions (5.6): see Absorbed.
    """

    journal: int
    start: Position
    record: Record
    payload: Payload


class Absorbed(msgspec.Struct, frozen=True):
    """The journal was read through its CLOSE, where its reader stands at `position`."""

    journal: int
    position: Position


class TimerFired(msgspec.Struct, frozen=True):
    """A timer set by SetTimer fired.  Late, early and double firings are harmless."""

    name: str


Event = (
    Replay
    | Replayed
    | Appended
    | AppendFailed
    | Commit
    | Part
    | Discard
    | Status
    | AddJournal
    | CloseJournal
    | Gate
    | Heard
    | Move
    | CatalogKnown
    | WantHeartbeat
    | Absorb
    | Absorbed
    | TimerFired
)

# Effects


class Append(msgspec.Struct, frozen=True):
    """Append to the own journal, in this order.  Group commit and fsync are the backend's."""

    record: Record


class AppendAll(msgspec.Struct, frozen=True):
    """Append of each of these, in order."""

    records: list[Record]


class Answer(msgspec.Struct, frozen=True):
    """The answer to Commit or Status `to`."""

    to: int
    txid: bytes
    outcome: Outcome
    tau: int = 0
    code: Code = Code.NONE
    epoch: tuple[int, int] = (0, 0)
    """The leader's epoch, for the next attempt of a transaction with voters."""
    version: int = 0
    """A version of the partition map that exists, with Code.PLACE."""


class Added(msgspec.Struct, frozen=True):
    """`journal` exists for every reader: it may be opened, and all its taus must exceed `tau`."""

    journal: int
    tau: int


class Closed(msgspec.Struct, frozen=True):
    """The own journal has ended, with CLOSE at `tau`; outcomes are still answered."""

    tau: int


class Gated(msgspec.Struct, frozen=True):
    """The answer to Gate `to`: all that happened to the relations so far is at or before `tau`.

    `code` NONE: held from here on.  GATED: another gate has one of them.  BUSY, STARTING: later.
    """

    to: int
    txid: bytes
    tau: int
    code: Code = Code.NONE


class Send(msgspec.Struct, frozen=True):
    """A message to whoever is adjudicator number `to` now."""

    to: int
    message: Message


class WantCatalog(msgspec.Struct, frozen=True):
    """Read the catalog version as of `tau` from storage, until it is complete; then CatalogKnown.

    Where storage holds nothing as old, as of a later tau, which CatalogKnown then names.
    A later WantCatalog does not replace an earlier one.
    """

    tau: int


class Expired(msgspec.Struct, frozen=True):
    """For the log: a promise ended without a verdict; its keys count as written at `tau`."""

    txid: bytes
    tau: int


class Moved(msgspec.Struct, frozen=True):
    """A range of the own has a new owner, who has acquired it."""

    handover: Handover


class Unmoved(msgspec.Struct, frozen=True):
    """The move of this map version did not happen and never will: its target's journal ended."""

    version: int


class StillOwner(msgspec.Struct, frozen=True):
    """CloseJournal is refused: these ranges, or one on its way, must go to others first (4.7)."""

    spans: tuple[Span, ...]


class Refused(msgspec.Struct, frozen=True):
    """A large transaction cannot commit any more: tell the client early, drop further parts."""

    txid: bytes
    code: Code


class Heartbeat(msgspec.Struct, frozen=True):
    """To the crossbar: every commit <= `tau` is at or before record `n` of `epoch` (4.6)."""

    epoch: tuple[int, int]
    n: int
    tau: int


class SetTimer(msgspec.Struct, frozen=True):
    """TimerFired(name) once the clock's earliest reaches `at`; 0 = right after other waiting work.

    A later SetTimer of the same name replaces an earlier one.
    """

    name: str
    at: int


class Serving(msgspec.Struct, frozen=True):
    """The SEAL is durable: commits are decided and heartbeats given from here on."""


class Fatal(msgspec.Struct, frozen=True):
    """This owner is finished: no more events.  Start anew with a higher epoch."""

    reason: str


Effect = (
    Append
    | AppendAll
    | Answer
    | Send
    | WantCatalog
    | Expired
    | Moved
    | Unmoved
    | StillOwner
    | Refused
    | Heartbeat
    | SetTimer
    | Serving
    | Added
    | Closed
    | Gated
    | Fatal
)
