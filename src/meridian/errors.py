"""The one table of errors: number, SQLSTATE, sentence, retryable (numbers are never reused).

Every error that a client can see comes from here. `dsql_sentence` and `dsql_sqlstate` hold what
the `dsql` profile says instead, to the letter, where it differs.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class ErrorSpec(NamedTuple):
    """One line of the table. `sentence` may hold `{name}` fields filled at raise time."""

    code: int
    sqlstate: str
    sentence: str
    retryable: bool
    hint: str = ""
    dsql_sentence: str = ""
    dsql_sqlstate: str = ""


class Kind(Enum):
    """Every error of the data plane."""

    # Protocol
    PROTOCOL_VIOLATION = ErrorSpec(1, "08P01", "malformed request: {why}", False)
    FRAME_TOO_LARGE = ErrorSpec(2, "08P01", "frame of {size_bytes} bytes is too large", False)
    UNSUPPORTED_VERSION = ErrorSpec(3, "08P01", "protocol version {version} is not known", False)
    TOO_MANY_REQUESTS = ErrorSpec(
        4, "53000", "too many requests are waiting on this connection", True
    )
    NOT_SUPPORTED = ErrorSpec(5, "0A000", "{what} is not supported yet", False)
    CANCELED = ErrorSpec(6, "57014", "canceling statement due to user request", False)
    SHUTTING_DOWN = ErrorSpec(7, "57P01", "the data plane is shutting down", True)
    NOT_READY = ErrorSpec(8, "57P03", "the data plane is starting up", True)
    TOO_MANY_CONNECTIONS = ErrorSpec(
        9,
        "53300",
        "too many connections to the gateway",
        True,
        dsql_sentence="Unable to accept connection, too many open connections.",
    )

    # Transactions
    CONFLICT = ErrorSpec(
        20,
        "40001",
        "change conflicts with another transaction (OC000)",
        True,
        hint="Retry the transaction.",
    )
    SCHEMA_CHANGED = ErrorSpec(
        21,
        "40001",
        "schema has been updated by another transaction, please retry: (OC001)",
        True,
        hint="Retry the transaction.",
    )
    TAU_BELOW_FLOOR = ErrorSpec(
        22,
        "40001",
        "transaction is older than the conflict window (OC000)",
        True,
        hint="Retry the transaction.",
    )
    OUTCOME_UNKNOWN = ErrorSpec(
        23,
        "08007",
        "the outcome of this commit is unknown",
        False,
        hint="Read the data to see whether it was committed.",
        dsql_sentence="server unavailable",
        dsql_sqlstate="XX000",
    )
    TAU_IN_FUTURE = ErrorSpec(24, "22023", "tau_start lies in the future", False)
    SNAPSHOT_TOO_OLD = ErrorSpec(
        25,
        "40001",
        "snapshot is too old: its versions are gone",
        True,
        hint="Retry the transaction.",
    )
    TXN_ROW_LIMIT = ErrorSpec(
        26,
        "54000",
        "transaction row limit exceeded",
        False,
        hint="Write fewer than {limit} rows in one transaction.",
    )
    TXN_SIZE_LIMIT = ErrorSpec(
        27,
        "54000",
        "transaction size limit {limit_mb}mb exceeded",
        False,
    )
    TXN_AGE_LIMIT = ErrorSpec(28, "54000", "transaction age limit of {limit_s}s exceeded", False)
    TXN_ABORTED = ErrorSpec(
        29, "40001", "this transaction was aborted before", True, hint="Retry the transaction."
    )
    WAIT_TIMEOUT = ErrorSpec(
        30, "57014", "storage did not become complete through tau_start in time", True
    )
    CHUNK_TOO_LARGE = ErrorSpec(31, "54000", "a chunk of {size_bytes} bytes is too large", False)
    BAD_WRITE_SET = ErrorSpec(32, "08P01", "malformed write set: {why}", False)
    PART_OUT_OF_ORDER = ErrorSpec(
        33, "08P01", "chunk {seq} of the write set is missing or out of order", False
    )
    TOO_MANY_LARGE_COMMITS = ErrorSpec(
        34, "53000", "too many large commits are under way", True, hint="Retry the transaction."
    )
    KEYS_ELSEWHERE = ErrorSpec(
        46,
        "54000",
        "transaction writes or locks too many keys of several adjudicators",
        False,
        hint="Write fewer than {limit} rows in one transaction.",
    )
    REQUEST_TOO_LARGE = ErrorSpec(35, "54000", "request has more than {limit} keys", False)

    BAD_REQUEST = ErrorSpec(36, "08P01", "storage refuses the request: {why}", False)
    STORAGE_BUSY = ErrorSpec(37, "53000", "too many long reads are under way", True)
    OUT_OF_RANGE = ErrorSpec(38, "22003", "value out of range: {why}", False)
    RESULT_TOO_LARGE = ErrorSpec(39, "54000", "result is too large: {why}", False)
    WRONG_PLACE = ErrorSpec(
        45, "57P03", "this replica does not hold the range that was asked for", True
    )
    """The gateway asks another replica; a client sees it only when none has the range."""

    # Relations and sequences
    UNKNOWN_RELATION = ErrorSpec(50, "XX000", "storage id {sid} does not exist", True)
    SEQUENCE_EXHAUSTED_MAX = ErrorSpec(
        51, "2200H", "nextval: reached maximum value of sequence ({limit})", False
    )
    SEQUENCE_EXHAUSTED_MIN = ErrorSpec(
        52, "2200H", "nextval: reached minimum value of sequence ({limit})", False
    )
    SEQUENCE_BUSY = ErrorSpec(53, "40001", "sequence is changed by too many others", True)
    BAD_SEQUENCE = ErrorSpec(54, "22023", "invalid sequence parameters: {why}", False)
    LEASE_EXHAUSTED = ErrorSpec(
        55,
        "54000",
        "no {lease_kind} is left in this cluster: all through {last} have been given out",
        False,
        hint="Dump the database and restore it into a new cluster.",
    )

    # Advisory locks
    DEADLOCK = ErrorSpec(60, "40P01", "deadlock detected", True, hint="Retry the transaction.")
    ADVISORY_FULL = ErrorSpec(
        61, "53200", "too many advisory locks", True, hint="Release some of them."
    )

    # The machine
    DISK_FULL = ErrorSpec(
        70,
        "53100",
        "could not write the journal: no space left on device",
        True,
        hint="Free disk space; nothing of this transaction was written.",
        dsql_sentence="Current cluster size exceeds cluster size limit.",
    )
    JOURNAL_UNAVAILABLE = ErrorSpec(71, "58030", "the journal cannot be written: {why}", True)
    STORAGE_FAILED = ErrorSpec(72, "58030", "storage failed: {why}", True)
    INTERNAL = ErrorSpec(73, "XX000", "internal error: {why}", False)
    OUT_OF_MEMORY = ErrorSpec(74, "53200", "out of memory for this request", True)

    # Start-up (never sent to a client; the process ends with them)
    JOURNAL_DAMAGED = ErrorSpec(
        90,
        "XX001",
        "journal {path}: record {n} at offset {offset} is damaged: {why}",
        False,
        hint="Restore the file from a copy; nothing was changed.",
    )
    UNKNOWN_FORMAT = ErrorSpec(91, "XX000", "{what}: format version {version} is not known", False)
    DIR_IN_USE = ErrorSpec(92, "55006", "{path} is in use by process {pid}", False)
    BAD_METADATA = ErrorSpec(93, "XX001", "metadata store {path} is damaged: {why}", False)
    JOURNAL_FENCED = ErrorSpec(94, "55006", "journal {journal} has a newer owner", False)
    JOURNAL_TRIMMED = ErrorSpec(
        95, "XX001", "journal {journal} begins at record {first}, record {n} is needed", False
    )
    BAD_TOPOLOGY = ErrorSpec(96, "22023", "{why}", False)
    JOURNAL_NUMBERS_SPENT = ErrorSpec(
        97,
        "54000",
        "no more journals can be added: {left} of {most} numbers are left, {missing} more needed",
        False,
        hint="Closed journals keep their numbers. Use fewer journals, or dump the database and"
        " restore it into a new cluster.",
    )

    @property
    def code(self) -> int:
        """The number that travels in ERROR frames."""
        return self.value.code

    @property
    def sqlstate(self) -> str:
        """SQLSTATE in the `standard` profile."""
        return self.value.sqlstate

    @property
    def retryable(self) -> bool:
        """May the whole transaction be tried again as it is?"""
        return self.value.retryable


_codes = [kind.value.code for kind in Kind]
assert len(_codes) == len(set(_codes)), "error numbers are unique"


class MeridianError(Exception):
    """An error of the table with its fields filled in."""

    def __init__(self, kind: Kind, *, detail: str = "", **fields: object) -> None:
        self.kind = kind
        self.fields = fields
        self.detail = detail
        super().__init__(kind.value.sentence.format(**fields))

    def for_profile(self, profile: str) -> tuple[int, str, str, str, str]:
        """(code, sqlstate, message, detail, hint) as the given profile says it."""
        spec = self.kind.value
        dsql = profile == "dsql"
        sentence = spec.dsql_sentence if dsql and spec.dsql_sentence else spec.sentence
        sqlstate = spec.dsql_sqlstate if dsql and spec.dsql_sqlstate else spec.sqlstate
        hint = "" if dsql else spec.hint.format(**{"limit": "", **self.fields})
        return spec.code, sqlstate, sentence.format(**self.fields), self.detail, hint
