"""What must hold after every run.  The truth is what the journals' disks hold."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence

from meridian.adjudicator.events import Code
from meridian.check import history
from meridian.clock.tau import assigner_of
from meridian.journal import core as journal
from meridian.journal.core import Reader
from meridian.sim.client import Txn
from meridian.sim.disk import Disk
from meridian.sim.messages import Key
from meridian.sim.plans import CATALOG, SID_FIRST, ConflictKey, version_of, writer_of
from meridian.sim.replica import Replica
from meridian.sim.routed import Scanned
from meridian.sim.shard_checks import check_replicas, check_scan, check_scans
from meridian.sim.shard_replica import RangeReplica
from meridian.sim.store import Store
from meridian.sim.stream import SharedJournal
from meridian.sim.world import SimulationError
from meridian.wire.ops import decode_chunk
from meridian.wire.partition import FIRST, LAST, Span
from meridian.wire.reach import GLOBAL
from meridian.wire.votes import leader_of

EVERYBODY = 0
"""Stands for all relations."""
EXCLUDED = {
    "written": ("locked", "shared"),
    "rows": ("locked",),
    "locked": ("written", "rows", "locked", "shared"),
    "shared": ("written", "locked"),
    "read": ("written",),
}
"""What a use of a relation excludes (docs/rfcs, "Catalog coherence", point 7; read: builds)."""
FALSE_ABORTS = (Code.FLOOR, Code.PARTS, Code.RESOLVED, Code.CLOSED, Code.MOVED)

Journal = Disk | SharedJournal


class Truth:
    """All committed transactions of all journals in the order of tau, and the aborted ids."""

    def __init__(self, journals: list[Journal]) -> None:
        self.taus: dict[bytes, int] = {}
        self.aborted: dict[bytes, int] = {}
        self.journal_of: dict[bytes, int] = {}
        self.closed: set[int] = set()
        """Journals that ended: what they do not hold is aborted for good."""
        self.store = Store()
        commits: list[tuple[int, bytes, list[bytes]]] = []
        for number, one in enumerate(journals):
            if self._read(number, one, commits).closed:
                self.closed.add(number)
        commits.sort()
        for tau, txid, chunks in commits:
            if txid in self.taus:
                raise SimulationError(f"exactly once: {txid.hex()} is in the journals twice")
            self.taus[txid] = tau
            self.store.apply(tau, [op for chunk in chunks for op in decode_chunk(chunk)])

    def _read(
        self, number: int, one: Journal, commits: list[tuple[int, bytes, list[bytes]]]
    ) -> Reader:
        reader = Reader(one.born)
        bodies: dict[int, bytes] = {}
        for record in one.history():
            match reader.accept(record):
                case journal.Body(chunk=chunk):
                    bodies[record.n] = chunk
                case journal.Commit(bodies=numbers, chunk=chunk):
                    self.journal_of[record.txid] = number
                    commits.append((record.tau, record.txid, [*map(bodies.get, numbers), chunk]))  # type: ignore[list-item]
                case journal.Abort(code=code):
                    self.aborted[record.txid] = code
        return reader


def check_all(
    journals: list[Journal],
    replicas: list[Replica],
    log: list[Txn],
    *,
    real_time: bool,
    expired: dict[bytes, list[int]],
    leaders: bool,
    ranged: Sequence[RangeReplica] = (),
    probes: Sequence[Scanned] = (),
) -> dict[str, int]:
    """Raises SimulationError, or returns counts (commits, false aborts, ...)."""
    truth = Truth(journals)
    _durability(truth, log)
    _snapshots(truth, log)
    if leaders:
        _leaders(truth)
    _conflicts(truth, log, expired)
    _catalog(truth, log)
    _rewrites(truth, log)
    _foreign_keys(truth)
    if real_time:
        _real_time(truth, log)
    for replica in replicas:
        if replica.store.versions != truth.store.versions:
            raise SimulationError(f"{replica.name} does not hold what the journals hold")
    check_replicas(truth.store, ranged)
    scans = check_scans(truth.store, log)
    for probe in probes:
        check_scan(truth.store, b"probe", probe)
    _history(truth, log, real_time=real_time)
    return {**_count(truth, log), "scans": scans}


def _durability(truth: Truth, log: list[Txn]) -> None:
    for txn in log:
        tau = truth.taus.get(txn.txid)
        if txn.status == "committed" and txn.writes and tau != txn.tau:
            raise SimulationError(f"durability: {txn.name!r} was told {txn.tau}, truth is {tau}")
        if txn.status == "aborted" and tau is not None:
            raise SimulationError(f"durability: {txn.name!r} was told aborted, truth is {tau}")
        final = txn.txid in truth.aborted
        if txn.code is Code.CLOSED and txn.owner in truth.closed:
            final = True
        if txn.status == "aborted" and txn.code and not final:
            raise SimulationError(f"durability: the abort of {txn.name!r} is not final")


def _snapshots(truth: Truth, log: list[Txn]) -> None:
    """Reads at tau_start saw exactly the state as of tau_start."""
    for txn in log:
        for key, value in txn.seen.items():
            expected, _ = truth.store.get(key, txn.tau_start)
            if value != expected:
                raise SimulationError(
                    f"snapshot: {txn.name!r} read {key} as {value!r}, was {expected!r}"
                )


def _leaders(truth: Truth) -> None:
    """Only the leader that a transaction's id names commits it, with its number in tau (5.6)."""
    for txid, tau in truth.taus.items():
        if not truth.journal_of[txid] == leader_of(txid) == assigner_of(tau):
            raise SimulationError(f"leader: {txid.hex()} is in journal {truth.journal_of[txid]}")


def check_ranges(owned: list[tuple[Span, ...]]) -> None:
    """Every key has exactly one owner (5.8)."""
    spans = sorted((span for spans in owned for span in spans), key=lambda one: one.lo)
    reached = FIRST
    for span in spans:
        if span.lo != reached:
            raise SimulationError(f"ranges: owners of {span.lo} and {reached} do not meet")
        reached = span.hi
    if reached != LAST:
        raise SimulationError(f"ranges: nobody owns what follows {reached}")


def _conflicts(truth: Truth, log: list[Txn], expired: dict[bytes, list[int]]) -> None:
    """No commit wrote a key that another wrote or shared in (tau_start, tau_commit) (5.1, 5.2).

    And every abort for conflict has its reason: a commit, or a promise that expired (5.4).
    """
    written: dict[ConflictKey, list[int]] = {}
    shared: dict[ConflictKey, list[int]] = {}
    uses: dict[tuple[int, str], list[int]] = {}
    committed = sorted((truth.taus[t.txid], t.name, t) for t in log if t.txid in truth.taus)
    for tau, _, txn in committed:
        for target, keys in ((written, txn.writes.writes()), (shared, txn.writes.shared())):
            for key in keys:
                target.setdefault(key, []).append(tau)
        for mode in txn.writes.modes():
            uses.setdefault(mode, []).append(tau)
    for txn in log:
        own = truth.taus.get(txn.txid)
        if own is not None and _conflict(txn, own, written, shared):
            raise SimulationError(f"lost update: {txn.name!r} committed over a conflict")
        if own is not None and _excluded(txn, own, uses):
            raise SimulationError(f"relation lock: {txn.name!r} committed against one")
    for txn in log:
        for tau in expired.get(txn.txid, ()):
            for target, keys in ((written, txn.writes.writes()), (shared, txn.writes.shared())):
                for key in keys:
                    insort(target.setdefault(key, []), tau)
            for mode in txn.writes.modes():
                insort(uses.setdefault(mode, []), tau)
    for txn in log:
        if txn.code is not Code.CONFLICT or _excluded(txn, 1 << 63, uses):
            continue
        if not _conflict(txn, 1 << 63, written, shared) and not _lost_reason(truth, txn, log):
            raise SimulationError(f"abort without reason: {txn.name!r}")


def _lost_reason(truth: Truth, txn: Txn, log: list[Txn]) -> bool:
    """A voter's no may rest on a commit that its crash undid before it was durable.

    Alone, an owner's abort would have gone with it: its record comes later in the same journal.
    The vote, though, is in another owner's: it stays when the commit goes with the voter. In flight
    means in conflict (5.1), for uses of relations as for keys, so such an abort is allowed.
    """
    if txn.owners == 1:
        return False
    return any(
        other is not txn
        and other.txid not in truth.taus
        and (txn.end is None or other.begin < txn.end)
        and _at_odds(txn, other)
        for other in log
    )


def _at_odds(txn: Txn, other: Txn) -> bool:
    """Whether one's commit is a reason for the other's abort: keys, or uses of relations."""
    writes, shares = txn.writes.writes(), txn.writes.shared()
    if not writes.isdisjoint(other.writes.writes() | other.writes.shared()):
        return True
    if not shares.isdisjoint(other.writes.writes()):
        return True
    theirs = other.writes.modes()
    return any((sid, use) in theirs for sid, mode in txn.writes.modes() for use in EXCLUDED[mode])


def _after(taus: list[int], tau: int, before: int) -> bool:
    at = bisect_right(taus, tau)
    return at < len(taus) and taus[at] < before


def _excluded(txn: Txn, before: int, uses: dict[tuple[int, str], list[int]]) -> bool:
    """Whether a use of a relation that excludes the transaction's lies in its time."""
    return any(
        _after(uses.get((sid, other), []), txn.tau_start, before)
        for sid, mode in txn.writes.modes()
        for other in EXCLUDED[mode]
    )


def _conflict(
    txn: Txn,
    before: int,
    written: dict[ConflictKey, list[int]],
    shared: dict[ConflictKey, list[int]],
) -> bool:
    def hit(taus: dict[ConflictKey, list[int]], keys: set[ConflictKey]) -> bool:
        return any(_after(taus.get(key, []), txn.tau_start, before) for key in keys)

    writes = txn.writes.writes()
    return hit(written, writes | txn.writes.shared()) or hit(shared, writes)


def _catalog(truth: Truth, log: list[Txn]) -> None:
    """No commit wrote a relation whose schema changed after its tau_start or its catalog."""
    changes: dict[int, list[tuple[int, int]]] = {}
    versions: list[tuple[int, int]] = []
    for txn in log:
        if txn.txid in truth.taus and txn.writes.reach is not None:
            change = truth.taus[txn.txid], version_of(txn.writes.rows[CATALOG])
            versions.append(change)
            reach = txn.writes.reach
            for sid in reach.sids or ((EVERYBODY,) if reach.kind == GLOBAL else ()):
                changes.setdefault(sid, []).append(change)
    if [version for _, version in sorted(versions)] != list(range(2, len(versions) + 2)):
        raise SimulationError(f"catalog: versions are not serial: {sorted(versions)}")
    for txn in log:
        tau = truth.taus.get(txn.txid)
        if tau is None or not txn.writes.sids():
            continue
        for sid in (*txn.writes.sids(), EVERYBODY):
            for changed, version in changes.get(sid, []):
                if changed < tau and (changed > txn.tau_start or version > txn.catver):
                    raise SimulationError(f"catalog: {txn.name!r} wrote under an old schema")


def _rewrites(truth: Truth, log: list[Txn]) -> None:
    """What moved to a new storage id is what the old one held at the commit."""
    for txn in log:
        tau = truth.taus.get(txn.txid)
        for key, value in txn.seen.items() if tau is not None else ():
            if key[0] == txn.writes.rewritten and truth.store.get(key, tau or 0)[0] != value:
                raise SimulationError(f"rewrite: {txn.name!r} lost a write of {key}")


def _foreign_keys(truth: Truth) -> None:
    """At no tau is there a child without its parent."""
    for key, (taus, values) in truth.store.versions.items():
        sid, name = key
        if sid < SID_FIRST or not name.startswith(b"c"):
            continue
        parent: Key = (sid, name[1:].split(b"/")[0])
        moments = {*taus, *truth.store.versions.get(parent, ([], []))[0]}
        for tau in sorted(moments):
            if truth.store.get(key, tau)[0] and truth.store.get(parent, tau)[0] is None:
                raise SimulationError(f"foreign key: {key} lost its parent at {tau}")
        assert len(taus) == len(values)


def _real_time(truth: Truth, log: list[Txn]) -> None:
    """Who begins after a commit was told, or a read was answered, sees at least as much (4.5)."""
    ended: list[tuple[int, int]] = []
    for txn in log:
        if txn.end is not None and txn.status == "committed":
            ended.append((txn.end, txn.tau))
        if txn.seen:
            read = (truth.store.get(key, txn.tau_start)[1] for key in txn.seen)
            ended.append((txn.read_at, max(read)))
    ended.sort()
    at, newest = 0, 0
    for txn in sorted(log, key=lambda t: t.begin):
        while at < len(ended) and ended[at][0] < txn.begin:
            newest = max(newest, ended[at][1])
            at += 1
        if txn.tau_start < newest:
            raise SimulationError(f"real time: {txn.name!r} began before what was known")


def _history(truth: Truth, log: list[Txn], *, real_time: bool) -> None:
    """The independent checker of histories agrees."""
    lines = []
    for txn in log:
        name = txn.name.decode()
        tau = truth.taus.get(txn.txid)
        ops: list[tuple[str | int | None, ...]] = []
        for key, value in txn.seen.items():
            if value is not None:
                ops.append(("r", _label(key), writer_of(value).decode()))
            elif truth.store.get(key, txn.tau_start)[1] == 0:
                ops.append(("r", _label(key), None))
        ops += [("w", _label(key)) for key in txn.writes.rows]
        status = txn.status if txn.end is not None else "unknown"
        if tau is not None:
            status = "committed"
        lines.append(
            history.Transaction(
                name,
                status,
                float(txn.begin - 10**18),
                ops,
                None if txn.end is None else float(txn.end - 10**18),
                tau,
            )
        )
    for anomaly in history.check(lines):
        if real_time or anomaly.name not in ("real-time", "future-read"):
            raise SimulationError(f"history: {anomaly.name}: {anomaly.story}")


def _label(key: Key) -> str:
    return f"{key[0]}/{key[1].decode('latin-1')}"


def _count(truth: Truth, log: list[Txn]) -> dict[str, int]:
    counts = {"transactions": len(log), "commits": len(truth.taus), "aborts": len(truth.aborted)}
    for txn in log:
        if txn.code in FALSE_ABORTS:
            counts["false aborts"] = counts.get("false aborts", 0) + 1
        if txn.status == "unknown":
            counts["unknown"] = counts.get("unknown", 0) + 1
    return counts
