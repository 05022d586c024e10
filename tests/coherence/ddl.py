"""Schema changes of the storm: one after the other, each tried again on 40001."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import psycopg

from tests.coherence.writers import LOST, Shared

TRIES = 60
PAUSE_S = 0.05

Change = tuple[str, str]
"""Kind and statement."""


def changes(shared: Shared, rng: random.Random) -> Iterator[Change]:
    """Without end; what is added goes again when its turn comes."""
    for n in itertools.count(1):
        kind = rng.choice(("int", "numeric"))
        yield "add column", f"ALTER TABLE child ADD COLUMN extra_{n} int NOT NULL DEFAULT {n}"
        yield "build index", f"CREATE INDEX storm_{n} ON child (amount, parent)"
        yield (
            "function",
            (
                "CREATE OR REPLACE FUNCTION storm_version() RETURNS int"
                f" LANGUAGE sql STABLE AS 'SELECT {n}'"
            ),
        )
        yield "type change", f"ALTER TABLE child ALTER COLUMN amount TYPE {kind}"
        yield "enum value", f"ALTER TYPE mood ADD VALUE 'm{n}'"
        yield "add check", f"ALTER TABLE child ADD CONSTRAINT storm_{n} CHECK (amount >= 0)"
        yield "grant", "GRANT SELECT ON region TO storm_reader"
        yield "build unique index", f"CREATE UNIQUE INDEX storm_u{n} ON child (code, id)"
        yield "drop column", f"ALTER TABLE child DROP COLUMN extra_{n}"
        yield (
            "add foreign key",
            (
                f"ALTER TABLE account ADD CONSTRAINT storm_{n}"
                " FOREIGN KEY (region) REFERENCES region"
            ),
        )
        yield "drop index", f"DROP INDEX storm_{n}"
        yield "drop check", f"ALTER TABLE child DROP CONSTRAINT storm_{n}"
        yield "revoke", "REVOKE SELECT ON region FROM storm_reader"
        yield (
            "volatile default",
            (f"ALTER TABLE parent ADD COLUMN stamp_{n} uuid NOT NULL DEFAULT gen_random_uuid()"),
        )
        yield (
            "trigger",
            (
                f"CREATE TRIGGER storm_{n} BEFORE INSERT ON child FOR EACH ROW"
                " EXECUTE FUNCTION storm_trigger()"
            ),
        )
        yield "add column", f"ALTER TABLE ledger ADD COLUMN note_{n} text DEFAULT 'n{n}'"
        yield "drop unique index", f"DROP INDEX storm_u{n}"
        yield (
            "not valid",
            (f"ALTER TABLE parent ADD CONSTRAINT storm_v{n} CHECK (touched >= 0) NOT VALID"),
        )
        yield "type change", f"ALTER TABLE ledger ALTER COLUMN what TYPE varchar({100 + n})"
        yield "validate", f"ALTER TABLE parent VALIDATE CONSTRAINT storm_v{n}"
        yield "view", f"CREATE VIEW storm_{n} AS SELECT parent, count(*) FROM child GROUP BY 1"
        yield "drop trigger", f"DROP TRIGGER storm_{n} ON child"
        yield "drop foreign key", f"ALTER TABLE account DROP CONSTRAINT storm_{n}"
        yield "drop column", f"ALTER TABLE parent DROP COLUMN stamp_{n}"
        yield "drop column", f"ALTER TABLE ledger DROP COLUMN note_{n}"
        yield "drop check", f"ALTER TABLE parent DROP CONSTRAINT storm_v{n}"
        yield "drop view", f"DROP VIEW storm_{n}"


class Ddl(threading.Thread):
    """One statement every `interval_s`, on alternating instances."""

    def __init__(self, shared: Shared, interval_s: float, stop: threading.Event) -> None:
        super().__init__(name="ddl", daemon=True)
        self.shared, self.interval_s, self.stopping = shared, interval_s, stop
        self.done: list[tuple[str, float]] = []
        self.retries: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.job_rows = itertools.cycle((0, 1_000_000))
        self.late = 0
        """Changes that the other instance did not show at once (it may wait for a version)."""

    def run(self) -> None:
        turns = itertools.count()
        for kind, statement in changes(self.shared, random.Random(7)):
            if self.stopping.wait(self.interval_s):
                return
            self._before(kind, statement)
            started = time.monotonic()
            if not self._retry(kind, statement, turns):
                continue
            self.done.append((kind, time.monotonic() - started))
            self._after(kind, statement, turns)

    def _before(self, kind: str, statement: str) -> None:
        if kind == "function":
            self.shared.version_asked = int(statement.rsplit(" ", 1)[1].rstrip("'"))

    def _after(self, kind: str, statement: str, turns: Iterator[int]) -> None:
        if kind == "function":
            self.shared.version_known = self.shared.version_asked
        elif kind == "enum value":
            self.shared.moods.append(statement.rsplit("'", 2)[1])
        elif kind in ("grant", "revoke"):
            sql = "SELECT has_table_privilege('storm_reader', 'region', 'SELECT')"
            row = self._once(lambda session: session.execute(sql).fetchone(), turns)
            self.late += row != (kind == "grant",) and row is not None

    def _retry(self, kind: str, statement: str, turns: Iterator[int]) -> bool:
        for attempt in range(TRIES):
            try:
                self._connected(lambda session: session.execute(statement.encode()), turns)
                return True
            except psycopg.Error as error:
                state = error.sqlstate or type(error).__name__
                self.errors[state] += 1
                if attempt and self.shared.kills and is_there_already(statement, state):
                    return True
                if not self._may_retry(state):
                    self.wrong.append(f"ddl: {statement}: {state} {error}")
                    return False
                self.retries[kind] += 1
                time.sleep(PAUSE_S if state == "40001" else 0.5)
        self.wrong.append(f"ddl: {statement}: not done in {TRIES} tries")
        return False

    def _may_retry(self, state: str) -> bool:
        lost = state.startswith(LOST) or state in ("OperationalError", "ConnectionTimeout")
        # A job whose session was killed goes on.
        return state == "40001" or (self.shared.kills and (lost or state == "55006"))

    def _once(self, work: Callable[[psycopg.Connection], object], turns: Iterator[int]) -> object:
        try:
            return self._connected(work, turns)
        except psycopg.Error as error:
            if not self._may_retry(error.sqlstate or type(error).__name__):
                self.wrong.append(f"ddl: {error}")
            return None

    def _connected(
        self, work: Callable[[psycopg.Connection], object], turns: Iterator[int]
    ) -> object:
        dsns = self.shared.dsns()
        dsn = dsns[next(turns) % len(dsns)]
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as session:
            # Small as the tables are, every other rewrite is a background job.
            rows = next(self.job_rows)
            session.execute(f"SET meridian.rewrite_online_rows = {rows}".encode())
            return work(session)


def is_there_already(statement: str, state: str) -> bool:
    """An earlier try, whose outcome was lost with its connection, had done it."""
    adding = "ADD" in statement or statement.startswith("CREATE")
    return state in (("42701", "42P07", "42710") if adding else ("42703", "42704", "42P01"))
