"""The writers of the storm: each runs random transactions and notes what became of each."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import psycopg

from tests.coherence.model import ACCOUNTS, INVARIANTS, PARENTS_FIRST, Effect

CODES = 400
LOST = ("08", "57")
"""SQLSTATE classes of a connection or server that went away."""
STEP = 1_000_000
"""Numbers of one writer."""


class Shared:
    """What DDL and writers know of each other."""

    def __init__(self, dsns: Callable[[], list[str]], kills: bool) -> None:
        self.dsns = dsns
        self.kills = kills
        self.stopping = threading.Event()
        self.version_known = 0
        """storm_version() says at least this."""
        self.version_asked = 0
        self.moods = ["m0"]
        """Labels whose ALTER TYPE was acknowledged."""


class Writer(threading.Thread):
    """Has a session on every instance; each transaction goes to any of them."""

    def __init__(self, number: int, shared: Shared) -> None:
        super().__init__(name=f"writer {number}", daemon=True)
        self.number, self.shared = number, shared
        self.rng = random.Random(number)
        self.seq = 0
        self.committed: dict[int, Effect] = {}
        self.unknown: dict[int, Effect] = {}
        self.refused: set[int] = set()
        self.commit_times: list[float] = []
        self.errors: Counter[str] = Counter()
        self.conflicts: Counter[str] = Counter()
        """40001 by what the transaction did."""
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.shared.stopping.is_set():
            sessions = self._connect()
            # With an instance missing, it is looked for again soon.
            until = self.seq + (1_000_000 if len(sessions) == len(self.shared.dsns()) else 20)
            while (
                self.seq < until
                and not self.shared.stopping.is_set()
                and not any(session.closed for session in sessions)
            ):
                self._transaction(self.rng.choice(sessions))
            for session in sessions:
                session.close()

    def _connect(self) -> list[psycopg.Connection]:
        """To every instance that lets us in; at least one."""
        while True:
            found = []
            for dsn in self.shared.dsns():
                try:
                    found.append(psycopg.connect(dsn, connect_timeout=10))
                except psycopg.Error as error:
                    self._note(error)
            if found or self.shared.stopping.wait(0.1):
                return found

    def _transaction(self, session: psycopg.Connection) -> None:
        self.seq += 1
        effect, seq, committing = Effect(), self.seq, False
        low = self.shared.version_known
        try:
            self.rng.choices(WORK, WEIGHTS)[0](self, session, effect)
            session.execute(
                "INSERT INTO ledger VALUES (%s, %s, %s)", (self.number, seq, effect.what)
            )
            committing = True
            session.commit()
        except psycopg.Error as error:
            self._note(error)
            if error.sqlstate == "40001":
                self.conflicts[effect.what] += 1
            self._failed(session, effect, low, committing and not refuses(error))
            return
        effect.versions = low, self.shared.version_asked
        self.committed[seq] = effect
        self.done[effect.what] += 1
        self.commit_times.append(time.monotonic())

    def _failed(self, session: psycopg.Connection, effect: Effect, low: int, unknown: bool) -> None:
        effect.versions = low, self.shared.version_asked
        if unknown:
            self.unknown[self.seq] = effect
        else:
            self.refused.add(self.seq)
        with contextlib.suppress(psycopg.Error):
            session.rollback()

    def _note(self, error: Exception) -> None:
        state = getattr(error, "sqlstate", None) or type(error).__name__
        words = str(error).strip().splitlines()[0] if str(error).strip() else ""
        code = next((c for c in ("OC000", "OC001") if c in words), "")
        lost = isinstance(error, psycopg.OperationalError) and state == "40001" and "FATAL" in words
        self.errors[" ".join(filter(None, (state, code, "session ended" if lost else "")))] += 1
        expected = state == "40001" or (
            self.shared.kills
            and (state.startswith(LOST) or state in ("OperationalError", "ConnectionTimeout"))
        )
        if not expected:
            self.wrong.append(f"{self.name}: {state} {error}")

    # What transactions do. Each chooses from what its snapshot shows.

    def _pick(self, session: psycopg.Connection, table: str) -> int | None:
        """The row at or after a random number of some writer, or of the first ones."""
        edge = self.rng.randrange(-1, 8) * STEP + self.rng.randrange(self.seq)
        edge = max(edge, -self.rng.randrange(PARENTS_FIRST))
        sql = f"SELECT id FROM {table} WHERE id >= %s ORDER BY id LIMIT 1"
        row = session.execute(sql.encode(), [edge]).fetchone()
        if row is None:
            row = session.execute(f"SELECT max(id) FROM {table}".encode()).fetchone()
        return None if row is None else row[0]

    def _transfer(self, session: psycopg.Connection, effect: Effect) -> None:
        source, target = self.rng.sample(range(1, ACCOUNTS + 1), 2)
        amount = self.rng.randint(1, 9)
        effect.what, effect.moved = "transfer", (source, target, amount)
        sql = "UPDATE account SET balance = balance + %s WHERE id = %s"
        session.execute(sql, (-amount, source))
        session.execute(sql, (amount, target))

    def _slow_transfer(self, session: psycopg.Connection, effect: Effect) -> None:
        """Stands in the way of schema changes, which end its session or wait for it."""
        self._transfer(session, effect)
        effect.what = "slow transfer"
        self._pick(session, "child")
        time.sleep(self.rng.uniform(0.1, 0.4))
        self._pick(session, "parent")

    def _new_parent(self, session: psycopg.Connection, effect: Effect) -> None:
        number = self.number * STEP + self.seq
        effect.what, effect.parent_born = "new parent", (number, f"p{number}")
        session.execute("INSERT INTO parent VALUES (%s, %s, 0)", effect.parent_born)

    def _drop_parent(self, session: psycopg.Connection, effect: Effect) -> None:
        number = self._pick(session, "parent")
        effect.what = "drop parent"
        row = session.execute("DELETE FROM parent WHERE id = %s RETURNING id", [number]).fetchone()
        effect.parent_gone = None if row is None else row[0]

    def _touch_parent(self, session: psycopg.Connection, effect: Effect) -> None:
        effect.what, effect.touched = "touch parent", self._pick(session, "parent")
        session.execute("UPDATE parent SET touched = touched + 1 WHERE id = %s", [effect.touched])

    def _new_child(self, session: psycopg.Connection, effect: Effect) -> None:
        parent = self._pick(session, "parent")
        code = self.rng.randrange(CODES)
        taken = session.execute("SELECT id FROM child WHERE code = %s", [code]).fetchone()
        effect.what = "new child"
        if taken is not None:
            self._delete_child(session, effect, taken[0])
        number, amount = self.number * STEP + self.seq, self.rng.randrange(1_000)
        mood = self.rng.choice(self.shared.moods[-3:])
        row = session.execute(
            "INSERT INTO child (id, parent, code, amount, mood, version)"
            " VALUES (%s, %s, %s, %s, %s::text::mood, storm_version()) RETURNING version",
            (number, parent, code, amount, mood),
        ).fetchone()
        assert row is not None and parent is not None
        effect.child_born = (number, parent, code, amount, mood, row[0])

    def _delete_child(self, session: psycopg.Connection, effect: Effect, number: int) -> None:
        row = session.execute("DELETE FROM child WHERE id = %s RETURNING id", [number]).fetchone()
        if row is None:
            self.wrong.append(f"{self.name}: child {number} was seen and could not be deleted")
        effect.child_gone = number

    def _add_to_child(self, session: psycopg.Connection, effect: Effect) -> None:
        number = self._pick(session, "child")
        effect.what = "add to child"
        if number is not None:
            effect.added = number, self.rng.randint(1, 50)
            session.execute(
                "UPDATE child SET amount = amount + %s WHERE id = %s", (effect.added[1], number)
            )

    def _look(self, session: psycopg.Connection, effect: Effect) -> None:
        effect.what = "look"
        for name in self.rng.sample(sorted(INVARIANTS), 2):
            row = session.execute(INVARIANTS[name].encode()).fetchone()
            if row != (True,):
                self.wrong.append(f"{self.name}: {name} does not hold")
        self._look_at_columns(session)
        mine = {
            seq
            for (seq,) in session.execute("SELECT seq FROM ledger WHERE writer = %s", [self.number])
        }
        if lost := self.committed.keys() - mine:
            self.wrong.append(f"{self.name}: does not see its own commits {sorted(lost)[:5]}")
        if ghosts := mine & self.refused:
            self.wrong.append(f"{self.name}: sees refused commits {sorted(ghosts)[:5]}")

    def _look_at_columns(self, session: psycopg.Connection) -> None:
        """Columns that DDL adds hold what they were added with, in every row."""
        cursor = session.execute("SELECT * FROM child", prepare=False)
        names = [column.name for column in cursor.description or ()]
        extra = [(at, name) for at, name in enumerate(names) if name.startswith("extra_")]
        for row in cursor:
            for at, name in extra:
                if row[at] is None or str(row[at]) != name.removeprefix("extra_"):
                    self.wrong.append(f"{self.name}: column {name} holds {row[at]!r}")
                    return


WORK = [
    Writer._transfer,
    Writer._slow_transfer,
    Writer._new_parent,
    Writer._drop_parent,
    Writer._touch_parent,
    Writer._new_child,
    Writer._add_to_child,
    Writer._look,
]
WEIGHTS = [30, 1, 8, 5, 10, 30, 12, 5]


def refuses(error: psycopg.Error) -> bool:
    """Whether an error of COMMIT says that nothing was committed."""
    state = error.sqlstate
    return state is not None and not state.startswith(("08", "57", "XX"))
