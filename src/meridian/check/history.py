"""Strong snapshot isolation of a recorded history (docs/history.md): pure, linear in its size."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec

Key = str | int
Op = tuple[str | int | None, ...]
Label = tuple[str, str]
"""An edge: kind ("ww", "wr", "rw", "rt") and key (empty for rt)."""

Node = str | int
"""A transaction by its name, or an instant by its number."""

STATUSES = ("committed", "aborted", "unknown")


class Transaction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a history. Instants are whole numbers where they were written so: nanoseconds
    since 1970 do not fit into a float."""

    txn: str
    status: str
    begin: int | float
    ops: list[Op]
    end: int | float | None = None
    commit: int | None = None

    def written(self) -> dict[Key, int]:
        """Keys written, and how many versions of each."""
        counts: dict[Key, int] = {}
        for op in self.ops:
            if op[0] == "w":
                key = _key(op)
                counts[key] = counts.get(key, 0) + 1
        return counts

    def reads(self) -> Iterator[tuple[Key, str | None, int | None]]:
        """(key, transaction read from or None, its n-th version or None for the last)."""
        for op in self.ops:
            if op[0] == "r":
                source = op[2]
                nth = op[3] if len(op) > 3 else None
                yield _key(op), None if source is None else str(source), nth  # type: ignore[misc]


class Anomaly(msgspec.Struct, frozen=True):
    """`name` of docs/history.md, and the transactions or edges that show it."""

    name: str
    story: str


class HistoryError(ValueError):
    """The history itself is malformed; the message names the line or transaction."""


def _key(op: Op) -> Key:
    assert op[1] is not None, "parse() admits no operation without a key"
    return op[1]


def _is_operation(op: Op) -> bool:
    """Of the documented form: what is not understood must not pass as harmless."""
    if not 2 <= len(op) <= 4 or op[1] is None:
        return False
    if op[0] == "w":
        return len(op) == 2
    if op[0] != "r" or len(op) == 2:
        return False
    source, nth = op[2], op[3] if len(op) > 3 else 1
    if source is None:
        return len(op) == 3
    return isinstance(source, str) and isinstance(nth, int) and nth > 0


def _flaw(found: Transaction) -> str:
    """What is wrong with a line, empty if nothing is."""
    if found.status not in STATUSES:
        return f"status {found.status!r} is none of {', '.join(STATUSES)}"
    if found.end is not None and found.end < found.begin:
        return f"transaction {found.txn} ended before it began"
    wrong = next((op for op in found.ops if not _is_operation(op)), None)
    return "" if wrong is None else f"not an operation: {msgspec.json.encode(wrong).decode()}"


def parse(lines: Iterable[str | bytes]) -> list[Transaction]:
    """The transactions of a history. Raises HistoryError."""
    history, decoder = [], msgspec.json.Decoder(Transaction)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = decoder.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise HistoryError(f"line {number}: {error}") from None
        flaw = _flaw(found)
        if flaw:
            raise HistoryError(f"line {number}: {flaw}")
        history.append(found)
    return history


class _Graph:
    """Edges over transactions and, for real time, over a chain of instants."""

    def __init__(self) -> None:
        self.edges: dict[Node, dict[Node, Label]] = defaultdict(dict)
        self.anti: dict[Node, dict[Node, Label]] = defaultdict(dict)

    def add(self, kind: str, source: Node, target: Node, key: Key = "") -> None:
        """A dependency; of several between two nodes the first is kept."""
        if source != target:
            edges = self.anti if kind == "rw" else self.edges
            edges[source].setdefault(target, (kind, str(key)))

    def only(self, kinds: set[str]) -> _Graph:
        """The same graph with edges of some kinds."""
        part = _Graph()
        for whole, kept in ((self.edges, part.edges), (self.anti, part.anti)):
            for source, targets in whole.items():
                kept[source] = {t: label for t, label in targets.items() if label[0] in kinds}
        return part

    def cycle(self) -> list[tuple[Node, Label]] | None:
        """A cycle in which every rw edge follows another edge, or None.

        A state is (node, may an rw edge follow?); the walk is iterative.
        """
        state: dict[tuple[Node, bool], int] = {}
        for root in [*self.edges, *self.anti]:
            found = self._walk((root, False), state)
            if found:
                return found
        return None

    def _next(self, node: tuple[Node, bool]) -> Iterator[tuple[tuple[Node, bool], Label]]:
        name, may_follow = node
        for target, label in self.edges.get(name, {}).items():
            yield (target, True), label
        if may_follow:
            for target, label in self.anti.get(name, {}).items():
                yield (target, False), label

    def _walk(
        self,
        root: tuple[Node, bool],
        state: dict[tuple[Node, bool], int],
    ) -> list[tuple[Node, Label]] | None:
        if state.get(root):
            return None
        path: list[tuple[tuple[Node, bool], Label]] = [(root, ("", ""))]
        stack = [self._next(root)]
        state[root] = 1
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
                state[path.pop()[0]] = 2
                continue
            target, label = step
            if state.get(target) == 1:
                start = [node for node, _ in path].index(target)
                return [(node[0], mark) for node, mark in [*path[start + 1 :], (target, label)]]
            if not state.get(target):
                state[target] = 1
                path.append((target, label))
                stack.append(self._next(target))
        return None


def _effective(history: list[Transaction]) -> dict[str, Transaction]:
    """Committed transactions, and unknown ones that somebody read from."""
    by_name = {}
    for transaction in history:
        if transaction.txn in by_name:
            raise HistoryError(f"transaction {transaction.txn} appears twice")
        by_name[transaction.txn] = transaction
    read_from = {source for t in history if t.status != "aborted" for _, source, _ in t.reads()}
    kept = {
        name: t
        for name, t in by_name.items()
        if t.status == "committed" or (t.status == "unknown" and name in read_from)
    }
    for name, transaction in kept.items():
        if transaction.written() and transaction.commit is None:
            raise HistoryError(f"transaction {name} wrote but has no commit position")
    return kept


def _read_anomalies(history: list[Transaction]) -> Iterator[Anomaly]:
    by_name = {t.txn: t for t in history}
    for reader in history:
        for key, source, nth in reader.reads():
            if source is None or source == reader.txn:
                continue
            writer = by_name.get(source)
            if writer is None or key not in writer.written():
                raise HistoryError(f"{reader.txn} read {key} from {source}, which never wrote it")
            where = f"{reader.txn} read {key} from {source}"
            if writer.status == "aborted":
                yield Anomaly("G1a", f"{where}, which aborted")
            elif nth is not None and nth != writer.written()[key]:
                yield Anomaly("G1b", f"{where}, version {nth} of {writer.written()[key]}")
            elif reader.end is not None and writer.begin > reader.end:
                yield Anomaly("future-read", f"{where}, which began after {reader.txn} ended")


def _version_orders(kept: dict[str, Transaction]) -> dict[Key, list[str]]:
    orders: dict[Key, list[tuple[int, str]]] = defaultdict(list)
    for name, transaction in kept.items():
        for key in transaction.written():
            assert transaction.commit is not None
            orders[key].append((transaction.commit, name))
    return {key: [name for _, name in sorted(versions)] for key, versions in orders.items()}


def _ties(kept: dict[str, Transaction]) -> Iterator[Anomaly]:
    """Versions of one key at one position: which one is the later is not known."""
    seen: dict[tuple[Key, int | None], str] = {}
    for name, transaction in kept.items():
        for key in transaction.written():
            other = seen.setdefault((key, transaction.commit), name)
            if other != name:
                where = f"{other} and {name} both wrote {key} at {transaction.commit}"
                yield Anomaly("version-order", where)


def _lost_updates(kept: dict[str, Transaction]) -> Iterator[Anomaly]:
    seen: dict[tuple[Key, str | None], str] = {}
    for name, transaction in kept.items():
        written = transaction.written()
        bases = dict.fromkeys(
            (key, source)
            for key, source, _ in transaction.reads()
            if key in written and source != name
        )
        for key, source in bases:
            other = seen.setdefault((key, source), name)
            if other != name:
                yield Anomaly(
                    "lost-update",
                    f"{other} and {name} both read {key} of {source or 'the start'} and wrote it",
                )


def _dependencies(kept: dict[str, Transaction]) -> _Graph:
    graph, orders = _Graph(), _version_orders(kept)
    following: dict[tuple[Key, str | None], str] = {}
    for key, versions in orders.items():
        for earlier, later in itertools.pairwise([None, *versions]):
            following[key, earlier] = str(later)
            if earlier is not None:
                graph.add("ww", earlier, str(later), key)
    for name, transaction in kept.items():
        for key, source, _ in transaction.reads():
            if source is not None:
                graph.add("wr", source, name, key)
            overwriter = following.get((key, source))
            if overwriter is not None:
                graph.add("rw", name, overwriter, key)
    return graph


def _add_real_time(graph: _Graph, kept: dict[str, Transaction]) -> None:
    """rt edges through a chain of instants: as many edges as transactions, not their square."""
    instants = sorted({t.end for t in kept.values() if t.end is not None})
    numbers = {instant: number for number, instant in enumerate(instants)}
    for number in range(1, len(instants)):
        graph.add("rt", number - 1, number)
    for name, transaction in kept.items():
        if transaction.end is not None:
            graph.add("rt", name, numbers[transaction.end])
    position = 0
    for transaction in sorted(kept.values(), key=lambda t: t.begin):
        while position < len(instants) and instants[position] < transaction.begin:
            position += 1
        if position:
            graph.add("rt", position - 1, transaction.txn)


def _tell(cycle: list[tuple[Node, Label]]) -> str:
    """The cycle from a transaction back to it; instants on the way are left out."""
    told = [(node, label) for node, label in cycle if isinstance(node, str)]
    steps = [f"-{kind}{'(' + key + ')' if key else ''}-> {node}" for node, (kind, key) in told]
    return " ".join([told[-1][0], *steps])


def _rw_edges(cycle: list[tuple[Node, Label]]) -> int:
    return sum(kind == "rw" for _, (kind, _) in cycle)


def check(history: list[Transaction]) -> list[Anomaly]:
    """All local anomalies, and one cycle of the worst kind there is. Raises HistoryError."""
    kept = _effective(history)
    ties = list(_ties(kept))
    anomalies = [*_read_anomalies(history), *_lost_updates(kept), *ties]
    if ties:
        return anomalies
    graph = _dependencies(kept)
    ladder = (("G0", {"ww"}), ("G1c", {"ww", "wr"}), ("G-SI", {"ww", "wr", "rw"}))
    for name, kinds in ladder:
        cycle = graph.only(kinds).cycle()
        if cycle:
            single = name == "G-SI" and _rw_edges(cycle) == 1
            return [*anomalies, Anomaly("G-single" if single else name, _tell(cycle))]
    _add_real_time(graph, kept)
    cycle = graph.cycle()
    return [*anomalies, Anomaly("real-time", _tell(cycle))] if cycle else anomalies
