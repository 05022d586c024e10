"""What model query processors do: kinds of transactions, as keys read and what is then written.

Every written value is the name of its transaction, so that a read tells whom it read from.
"""

from __future__ import annotations

from random import Random

from meridian.sim.messages import Key
from meridian.sim.writes import NO_KEY_UPDATE, UPDATE
from meridian.wire import ops as wire
from meridian.wire.reach import ADDITIVE, GLOBAL, RELATIONS, Reach

KINDS = ("read", "update", "blind", "large", "child", "parent", "lock", "schema", "table")
ROW, IDENTITY = 0, 1
SID_FIRST = 1000
SIDS = 2
"""Relations of a world whose key ranges have several owners."""
SID_VERSION = 2
CATALOG: Key = (SID_VERSION, b"v")
"""The row that holds the catalog version; the catalog log is sid 1."""
REWRITTEN = 20_000
"""Storage ids of rewritten relations, by catalog version; nobody writes them again."""
PARENTS = 2
CHILDREN = 2
HOT_CHANCE = 0.45
PLAIN_HOT_CHANCE = 0.15
CHUNK_BYTES = 1 << 20
"""After which a chunk of a write set ends, as the extension has it."""

ConflictKey = tuple[int, int, bytes]
"""(storage id, ROW or IDENTITY, key)"""


class WriteSet:
    """What a transaction writes, as the checkers know it."""

    def __init__(self) -> None:
        self.rows: dict[Key, bytes | None] = {}
        self.locks: dict[Key, int] = {}
        """Row locks and their modes (writes.py), those of rolled back subtransactions included."""
        self.shares: dict[Key, None] = {}
        self.identities: dict[Key, None] = {}
        self.schema: list[wire.Add | wire.Create] = []
        self.reach: Reach | None = None
        """Whom a new catalog version concerns."""
        self.rewritten: int | None = None
        """The relation whose rows moved to a new storage id."""
        self.plain = False
        """Nothing but writes of rows, as most transactions of most applications."""
        self.tables: dict[int, bool] = {}
        """Relations locked as a whole: exclusively, or only against writes."""

    def __bool__(self) -> bool:
        return bool(self.rows or self.locks or self.shares or self.schema or self.tables)

    def modes(self) -> list[tuple[int, str]]:
        """(relation, how it is used): written, its rows locked, locked, shared."""
        found = {(sid, "written"): None for sid, _ in self.rows if sid >= SID_FIRST}
        found |= {(sid, "rows"): None for sid, _ in (*self.locks, *self.shares)}
        found |= {(s, "locked" if x else "shared"): None for s, x in self.tables.items()}
        for op in self.schema:
            if isinstance(op, wire.Create) and op.table_sid:
                found[op.table_sid, "read"] = None
        return list(found)

    def writes(self) -> set[ConflictKey]:
        """Conflict keys written."""
        locks = [key for key, mode in self.locks.items() if mode >= NO_KEY_UPDATE]
        keys = {(sid, ROW, key) for sid, key in (*self.rows, *locks)}
        ends = [key for key, mode in self.locks.items() if mode == UPDATE]
        return keys | {(sid, IDENTITY, key) for sid, key in (*self.identities, *ends)}

    def shared(self) -> set[ConflictKey]:
        """Conflict keys shared."""
        return {(sid, IDENTITY, key) for sid, key in self.shares}

    def using(self) -> tuple[int, ...]:
        """Relations that a gate may hold this for: touched, or changed in their schema."""
        found = dict.fromkeys(self.sids())
        for op in self.schema:
            sid = op.table_sid if isinstance(op, wire.Create) else op.sid
            if sid:
                found[sid] = None
        return tuple(found)

    def lock(self, key: Key, mode: int) -> None:
        """The strongest lock of a key counts."""
        self.locks[key] = max(mode, self.locks.get(key, mode))

    def identify(self, key: Key) -> None:
        """Its row begins or ends: the identity key is written, too."""
        if key[0] >= SID_FIRST:
            self.identities[key] = None

    def sids(self) -> list[int]:
        """Relations touched, without the system's."""
        keys = (*self.rows, *self.locks, *self.shares)
        return sorted({*(sid for sid, _ in keys if sid >= SID_FIRST), *self.tables})


class Plan:
    """One transaction: what to read, and what to write then."""

    def __init__(
        self,
        random: Random,
        kind: str,
        sid: int,
        sids: list[int],
        keys: int,
        salts: tuple[bytes, bytes],
        *,
        wide: bool = False,
    ) -> None:
        self.kind = kind
        self.sid = sid
        self.chunk_bytes = CHUNK_BYTES
        if kind == "large":
            self.chunk_bytes = (0, 60, 120)[random.randint(2, 4) - 2]
        self._random = random
        self._wide = wide
        names = [b"%sk%d" % (salts[number % 2], number) for number in range(keys)]
        own = [(s, name) for s in (sids if wide else [sid]) for name in names]
        random.shuffle(own)
        self._parent: Key = (sid, b"p%s.%d" % (salts[0], random.randrange(PARENTS)))
        self._children: list[Key] = [
            (sid, b"c" + self._parent[1] + b"/%d" % number) for number in range(CHILDREN)
        ]
        self.reads: list[Key] = []
        self._targets: list[Key] = []
        if kind == "read":
            everything = [(s, name) for s in sids for name in names]
            self.reads = random.sample(everything, min(len(everything), random.randint(1, 5)))
        elif kind in ("update", "lock"):
            self.reads = own[: random.randint(2, 3)]
            other = (random.choice(sids), b"%sk0" % salts[0])
            if random.random() < 0.3 and other not in self.reads:
                self.reads.append(other)
            self._targets = own[: random.randint(1, 2)]
        elif kind == "plain":
            # Of many keys, so that most do not meet.
            many = [b"%sk%d" % (salts[0], number) for number in range(16 * keys)]
            self._targets = [(sid, name) for name in random.sample(many, random.randint(1, 2))]
        elif kind == "blind":
            self._targets = own[: random.randint(1, 3)]
        elif kind == "large":
            self._targets = own[: random.randint(2, 8)]
        elif kind == "table":
            self._targets = own[: random.randint(0, 1)]
        elif kind == "rewrite":
            self.reads = [(sid, name) for name in names]
        elif kind in ("child", "parent"):
            self.reads = [self._parent, *self._children]
        hot = PLAIN_HOT_CHANCE if kind == "plain" else HOT_CHANCE
        if self._targets and kind != "large" and random.random() < hot:
            # One key that is everybody's for a moment: a conflict over a fresh hash.
            self._targets.append((sid, b"%sh" % salts[1]))
        self.reads.append(CATALOG)

    def write_set(self, name: bytes, seen: dict[Key, bytes | None]) -> WriteSet:
        """What the transaction writes, having read `seen`."""
        out = WriteSet()
        out.plain = self.kind == "plain"
        for key in self._targets:
            out.rows[key] = name
        if self.kind == "lock":
            sids = [key[0] for key in self._targets] if self._wide else []
            sids.append(self.sid)
            out.locks = {key: NO_KEY_UPDATE for key in self.reads if key[0] in sids}
            for key in out.rows:
                out.locks.pop(key, None)
        elif self.kind == "child" and seen[self._parent] is not None:
            out.rows[self._random.choice(self._children)] = name
            out.shares[self._parent] = None
        elif self.kind == "parent":
            self._write_parent(out, name, seen)
        elif self.kind == "schema":
            version = self._new_version(out, name, seen)
            self._change_schema(out, version)
        elif self.kind == "rewrite":
            self._rewrite(out, name, seen)
        elif self.kind == "table":
            out.tables[self.sid] = self._random.random() < 0.5
        return out

    def _rewrite(self, out: WriteSet, name: bytes, seen: dict[Key, bytes | None]) -> None:
        """A new storage id takes over the rows; nobody may write the old one meanwhile."""
        version = self._new_version(out, name, seen)
        made = REWRITTEN + version
        out.reach = Reach(RELATIONS, (self.sid,))
        out.schema.append(wire.Create(made, wire.KIND_TABLE, [(1, 2)], 0))
        out.rows |= {
            (made, key): value
            for (sid, key), value in seen.items()
            if sid == self.sid and value is not None
        }
        out.tables[self.sid] = True
        out.rewritten = self.sid

    def _new_version(self, out: WriteSet, name: bytes, seen: dict[Key, bytes | None]) -> int:
        version = version_of(seen[CATALOG]) + 1
        out.rows[CATALOG] = b"%d/" % version + name
        out.rows[wire.SID_CATALOG, version.to_bytes(8, "big")] = name
        return version

    def _change_schema(self, out: WriteSet, version: int) -> None:
        """A new table, a new column, or what concerns everybody (a function)."""
        kind = self._random.choice((ADDITIVE, RELATIONS, RELATIONS, GLOBAL))
        out.reach = Reach(kind, (self.sid,) if kind == RELATIONS else ())
        if kind == RELATIONS and self._random.random() < 0.5:
            index = wire.Create(10_000 + version, wire.KIND_INDEX, [(0, 2)], self.sid)
            out.schema.append(index)
        elif kind == RELATIONS:
            out.schema.append(wire.Add(self.sid, 100 + version, 1, None))
        elif kind == ADDITIVE:
            out.schema.append(wire.Create(10_000 + version, wire.KIND_TABLE, [(1, 2)], 0))

    def _write_parent(self, out: WriteSet, name: bytes, seen: dict[Key, bytes | None]) -> None:
        children = [key for key in self._children if seen[key] is not None]
        if seen[self._parent] is None:
            out.rows[self._parent] = name
        elif not children:
            out.rows[self._parent] = None
        else:
            out.rows[children[0]] = None


def version_of(value: bytes | None) -> int:
    """The catalog version in CATALOG's row."""
    return int(value.split(b"/")[0]) if value is not None else 1


def writer_of(value: bytes) -> bytes:
    """The name of the transaction that wrote a value."""
    return value.rsplit(b"/", 1)[-1]
