"""The one table of limits: those of a profile (sent in WELCOME) and those of the process.

Sources: design sections 5 and 9, facts of the reference's published quotas for `dsql`.
Names end in their unit; counts have none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

MIB = 1024 * 1024
MS = 1_000_000
"""Nanoseconds in a millisecond."""
S = 1_000_000_000
"""Nanoseconds in a second."""


@dataclass(frozen=True)
class Limits:
    """What one transaction, row, relation or cluster may have in a profile."""

    txn_rows: int
    """Rows mutated per transaction; index entries are not counted."""
    txn_size_bytes: int
    """Write set of one transaction."""
    txn_age_ms: int
    """From tau_start to COMMIT."""
    key_size_bytes: int
    row_size_bytes: int
    column_size_bytes: int
    key_columns: int
    table_columns: int
    table_indexes: int
    schemas: int
    tables: int
    views: int
    sequences: int
    view_size_bytes: int
    query_memory_bytes: int
    connections: int
    connection_rate_per_s: int
    connection_burst: int
    connection_age_ms: int

    def as_map(self) -> dict[str, int]:
        """The map of WELCOME."""
        return asdict(self)

    def with_overrides(self, overrides: dict[str, int]) -> Limits:
        """The operator's settings on top. Raises TypeError on an unknown name."""
        return replace(self, **overrides)


STANDARD = Limits(
    txn_rows=2_000_000,
    txn_size_bytes=512 * MIB,
    txn_age_ms=300_000,
    key_size_bytes=64 * 1024,
    row_size_bytes=12 * MIB,
    column_size_bytes=8 * MIB,
    key_columns=32,
    table_columns=1_600,
    table_indexes=1_000,
    schemas=100_000,
    tables=100_000,
    views=100_000,
    sequences=100_000,
    view_size_bytes=64 * MIB,
    query_memory_bytes=1024 * MIB,
    connections=10_000,
    connection_rate_per_s=100,
    connection_burst=1_000,
    connection_age_ms=3_600_000,
)

DSQL = Limits(
    txn_rows=3_000,
    txn_size_bytes=10 * MIB,
    txn_age_ms=300_000,
    key_size_bytes=2_000,
    row_size_bytes=2 * MIB,
    column_size_bytes=1 * MIB,
    key_columns=8,
    table_columns=255,
    table_indexes=24,
    schemas=10,
    tables=1_000,
    views=5_000,
    sequences=5_000,
    view_size_bytes=2 * MIB,
    query_memory_bytes=128 * MIB,
    connections=10_000,
    connection_rate_per_s=100,
    connection_burst=1_000,
    connection_age_ms=3_600_000,
)

PROFILES: dict[str, Limits] = {"standard": STANDARD, "dsql": DSQL}

# The rest bounds the processes and holds in every profile.

FRAME_SIZE_BYTES = 16 * MIB
"""Largest frame body between a query processor and its gateway."""
CHUNK_SIZE_BYTES = 1 * MIB
"""Target size of a write set chunk; a chunk holds at most this plus one row."""
GATEWAY_CONNECTIONS = 2_000
CONNECTION_REQUESTS = 256
"""Requests under way on one connection; more are refused."""
CONNECTION_OUTPUT_BYTES = 64 * MIB
"""Unsent answers of one connection; a client that lets more pile up is cut."""
CONNECTION_STALL_MS = 60_000
"""A client that reads nothing for this long while answers wait for it is cut."""
CONNECTION_LARGE_COMMITS = 16
"""Large commits that one connection may have begun; one that begins more is cut."""
GET_KEYS = 100_000
"""Keys in one GET."""
SCAN_PAGE_BYTES = 4 * MIB
"""Largest page a SCAN may ask for."""
SAMPLE_ROWS = 1_000_000
STATS_SIDS = 10_000
LEASE_COUNT = 1 << 20
"""Numbers in one LEASE."""

LARGE_COMMITS = 16
"""Large commits under way at once in one process."""
LARGE_WAITING = 128
"""Large commits under way or waiting for their turn; more are refused."""

TAU_FUTURE_NS = 1 * S
"""A tau_start further ahead of the owner's own latest than this is refused (design 4.3)."""
COMMIT_LEAD_MAX_NS = 50 * MS
"""Largest commit lead (design 4.4)."""
HEARTBEAT_AHEAD_NS = 200_000
"""A heartbeat that a reader asks for promises this far ahead of the clock."""
CONFLICT_WINDOW_NS = 310 * S
"""Transaction age limit and slack (design 5)."""
CONFLICT_KEYS = 4_000_000
"""Keys in one adjudicator's window; beyond it the oldest are forgotten and the floor rises."""
LEASE_NS = 1 * S
"""Length of one journal lease (design 6.6): acknowledgements after a restart may wait for it."""
HOLD_NS = 200 * MS
"""Longest promise of a voter (design 5.3): several round trips between regions."""
VOTE_WAIT_NS = 100 * MS
"""How long a leader waits for votes before it gives the attempt up."""
HOLD_KEYS = 65_536
"""Keys that one question to a voter names; those of a larger transaction are sent ahead."""
AHEAD_SEND_KEYS = 8_192
"""Keys for one voter that are gathered before they are sent ahead."""
AHEAD_KEYS = 16_000_000
"""Keys that one voter holds for one transaction, about 1.6 GB there; more are refused (54000)."""
AHEAD_TRANSACTIONS = 64
"""Transactions whose keys one voter has been sent ahead; those of more are not taken."""
ADJUDICATORS_MAX = 64
JOURNALS_MAX = 64
"""Of one cluster; an assigner's number has 8 bits."""
HOLDS = 8_192
"""Promises given and asked for at once at one adjudicator; more are asked to come again."""
BALLOTS = 8_192
"""Transactions that wait for votes at one leader; more are asked to come again."""
ATTEMPTS_SPENT = 65_536
"""Transactions without outcome whose attempts are remembered; the oldest are aborted for good."""
HANDOVER_RESEND_NS = 100 * MS
"""Between two messages that a range was released, until its new owner answers."""
CATALOG_WAIT_MS = 2_000
"""Longest wait of a session for its own instance to apply a catalog version."""
CATALOG_ACK_MS = 10_000
"""Longest wait of a schema change's COMMIT for the other instances: a new table that is not yet
there at the next endpoint is a wrong answer (42P01), so a busy machine is given time."""
CATALOG_LOCK_MS = 100
"""How long applying a delta waits for sessions that use its relations (design section 9)."""
GATE_HOLD_MS = 2_000
"""Longest time one commit is held by the gate of a DDL statement; then it gets 40001."""
GATE_MS = 60_000
"""Longest gate."""
GATED_COMMITS = 1_024
"""Commits held by gates; more are refused."""
ADVISORY_LOCKS = 200_000
"""Advisory locks held in the cluster, one per key and session; more get 53200."""
ADVISORY_LOCKS_PER_OWNER = 50_000
GATES = 64
"""Gates at once; more are refused."""
GATE_RELATIONS = 4_096
"""Relations of one gate."""
CATALOG_HISTORY = 65_536
"""Catalog versions remembered with their taus; older ones only count as in force."""
INSTANCES = 1_024
"""Instances that may follow the catalog; more are refused."""
FEED_WAIT_MS = 60_000
"""Longest wait of one CATALOG request."""
FEED_LIVE_MS = 10_000
"""DDL waits for an instance that has asked for the catalog within this time."""
FEED_LAPSE_MS = 60_000
"""An instance that has not asked for this long is forgotten with what waits for it."""
FEED_NOTIFICATIONS = 65_536
FEED_NOTIFICATION_BYTES = 16 * MIB
"""Notifications that wait for one instance; it is told when there were more."""
FEED_PAGE = 1_000
"""Notifications or versions in one answer."""
NOTIFY_CHANNEL_BYTES = 63
NOTIFY_PAYLOAD_BYTES = 7_999
"""As in PostgreSQL."""
GC_HORIZON_NS = 310 * S
"""Versions that ended longer ago than this may go (C6)."""

JOURNAL_BATCH_BYTES = 4 * MIB
"""Largest group commit."""
JOURNAL_SEGMENT_BYTES = 64 * MIB
JOURNAL_RECORD_BYTES = 32 * MIB
CHECKPOINT_JOURNAL_BYTES = 512 * MIB
"""Journal bytes after which a checkpoint is taken."""
CHUNK_BYTES_MAX = 14 * MIB
"""Largest chunk taken: CHUNK_SIZE_BYTES and one row of the largest size."""
SLICE_BYTES = 96 * 1024
SLICE_ROWS = 750
"""A chunk of a large commit is taken in pieces of at most this."""
STAGED_BACKLOG_BYTES = 256 * 1024
"""Chunks of large commits between gateway and storage; beyond it their clients wait."""
SERVING_WAIT_S = 30
"""How long a new owner may take to make its first records durable."""
OWNER_RETRY_S = 1
"""Between two attempts to own a journal that cannot be written."""
CROSSBAR_CREDIT_BYTES = 64 * MIB
"""Deliveries that storage takes before it must acknowledge some."""
COMMIT_WAIT_MS = 10_000
"""How long a commit is asked again while nobody owns the journal or the owner is busy."""
READ_WAIT_MS = 30_000
"""Longest wait of a read for storage to be complete through its tau."""
OUTCOMES = 2_000_000
"""Transaction outcomes kept in memory (about 30 bytes each); the oldest go first."""
SEQUENCE_LOGGED_AHEAD = 32
"""Values of a sequence logged ahead, as PostgreSQL does; a kill -9 may skip them."""
SEQUENCE_LOGGED_AHEAD_MAX = 4096
"""The same for a sequence that is drawn from fast: each time the values logged last were gone
within SEQUENCE_FAST_MS, twice as many are logged."""
SEQUENCE_FAST_MS = 100
SEQUENCES_CACHED = 10_000
SEQUENCE_ATTEMPTS = 20
"""Commits of one sequence row that may lose against others before the caller is told."""
LOG_FILE_BYTES = 16 * MIB
LOG_FILES = 4


def limits_of(profile: str) -> Limits:
    """The limits of a profile. Raises KeyError for an unknown one."""
    return PROFILES[profile]
