"""ALTER TABLE that rewrites a big table runs beside its writers, and ends as in PostgreSQL."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import psycopg
import pytest

from tests.conftest import Server
from tests.jobs.tables import Session, Writers, one, verify

ROWS = 2500


def make(session: Session, table: str = "r") -> None:
    """The same table in both servers; in ours its rewrites are jobs."""
    if one(session, "SELECT count(*) FROM pg_am WHERE amname = 'meridian'"):
        session.execute("SET meridian.rewrite_online_rows = 100")
    session.execute(f"DROP TABLE IF EXISTS {table}".encode())
    session.execute(
        f"CREATE TABLE {table} (id int PRIMARY KEY, gone int, a int, t text, u text UNIQUE,"
        " g int GENERATED ALWAYS AS (d * 2) STORED, d int DEFAULT 7,"
        " CONSTRAINT small CHECK (a < 1000))".encode()
    )
    session.execute(f"CREATE INDEX ON {table} (a, t)".encode())
    session.execute(f"CREATE INDEX ON {table} ((a + 1)) WHERE a > 5".encode())
    session.execute(f"ALTER TABLE {table} DROP COLUMN gone".encode())
    session.execute(
        f"INSERT INTO {table} (id, a, t, u)"
        f" SELECT i, i % 100, (i % 50)::text, 'u' || i FROM generate_series(1, {ROWS}) i".encode()
    )


def jobs(session: Session) -> int:
    """How many rewrites there were."""
    return int(one(session, "SELECT count(*) FROM sys.jobs WHERE job_type = 'REWRITE'"))


SHAPE = """
SELECT attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,
    pg_get_expr(adbin, adrelid)
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = 'r'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
INDEXES = (
    "SELECT pg_get_indexdef(indexrelid), indisvalid FROM pg_index WHERE indrelid = 'r'::regclass"
)
CONSTRAINTS = (
    "SELECT conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint"
    " WHERE conrelid = 'r'::regclass"
)


def state(session: Session) -> list[object]:
    """All that a user can see of the table."""
    seen: list[object] = [session.execute(SHAPE).fetchall()]
    for query in (INDEXES, CONSTRAINTS, "SELECT * FROM r"):
        seen.append(sorted(map(repr, session.execute(query.encode()).fetchall())))
    for condition in (
        "a = 17",
        "u = 'u77'",
        "id = 99",
        "id BETWEEN 7 AND 9",
        "a + 1 = 44 AND a > 5",
    ):
        query = f"SELECT id FROM r WHERE {condition} ORDER BY 1"
        try:
            seen.append(session.execute(query.encode()).fetchall())
        except psycopg.Error as error:
            seen.append(error.sqlstate)
    return seen


ALIKE = [
    "ALTER a TYPE bigint",
    "ALTER id TYPE bigint",
    "ALTER id TYPE text",
    "ALTER a TYPE text USING 'a' || a, DROP CONSTRAINT small",
    "ALTER a TYPE numeric(10, 2) USING a / 3.0",
    "ALTER t TYPE int USING t::int",
    "ALTER t TYPE int USING t::int, ALTER a TYPE int8",
    "ALTER u TYPE varchar(20) COLLATE \"C\", ALTER t TYPE timestamptz USING '2020-01-01'",
    "ALTER d TYPE bigint, DROP COLUMN g",
    "ADD w timestamptz DEFAULT now(), ALTER a TYPE bigint",
    "ADD v int GENERATED ALWAYS AS (a + 1) STORED",
    "ADD v int GENERATED ALWAYS AS (a + 1) STORED NOT NULL CHECK (v > 0)",
    "ALTER a TYPE bigint, ADD e int NOT NULL DEFAULT 5",
]
FAILING = [
    "ALTER u TYPE int USING u::int",
    "ALTER t TYPE smallint USING (t::int * 1000)::smallint",
    "ALTER u TYPE text USING left(u, 2)",
    "ALTER a TYPE bigint USING a + 990",
    "ADD v int GENERATED ALWAYS AS (NULLIF(a, 50)) STORED NOT NULL",
    "ALTER id TYPE bigint USING id / 2",
    "ALTER nowhere TYPE int",
    "ALTER t TYPE int",
    "ALTER a TYPE nothing",
    "ALTER d TYPE bigint",
]


@pytest.mark.parametrize("command", ALIKE + FAILING)
def test_as_in_postgresql(cluster: Server, stock: Server, command: str) -> None:
    said = []
    for server in (cluster, stock):
        with psycopg.connect(server.dsn, autocommit=True) as session:
            make(session)
            before = jobs(session) if server is cluster else 0
            try:
                session.execute(f"ALTER TABLE r {command}".encode())
                error = None
            except psycopg.Error as raised:
                error = (raised.sqlstate, raised.diag.message_primary, raised.diag.message_detail)
            said.append((error, state(session)))
            if server is cluster and command in ALIKE and "DROP" not in command:
                assert jobs(session) == before + 1
            if server is cluster:
                assert one(session, HIDDEN) == 0
    if "DEFAULT now()" in command:
        said = [(error, [None, *seen[1:3], *seen[4:]]) for error, seen in said]
    assert said[0] == said[1]


HIDDEN = "SELECT count(*) FROM pg_class WHERE relnamespace = 'pg_meridian'::regnamespace"


class Model:
    """What the rows of one writer are, by its own commits: id -> (a, t, u)."""

    def __init__(self, first: int, step: int) -> None:
        self.ids = list(range(first, ROWS + 200, step))
        self.rows = {i: (i % 100, str(i % 50), f"u{i}") for i in self.ids if 1 <= i <= ROWS}

    def work(self, session: Session, rng: random.Random) -> None:
        """One transaction; the model follows when it has committed."""
        rows = dict(self.rows)
        with session.transaction():
            for _ in range(rng.choice([1, 1, 1, 5])):
                self.change(session, rng, rows)
        self.rows = rows

    def change(self, session: Session, rng: random.Random, rows: dict[int, Any]) -> None:
        id_ = rng.choice(self.ids)
        new = (rng.randrange(100), str(rng.randrange(50)), f"u{id_}.{rng.randrange(3)}")
        kind = rng.randrange(6)
        if kind == 0:
            session.execute("DELETE FROM r WHERE id = %s", [id_])
            rows.pop(id_, None)
        elif kind <= 2 and id_ in rows:
            session.execute("UPDATE r SET a = %s, t = %s, u = %s WHERE id = %s", [*new, id_])
            rows[id_] = new
        elif kind == 3 and id_ in rows:
            # A unique value moves from one row to another.
            other = rng.choice(sorted(rows))
            if other != id_:
                session.execute("UPDATE r SET u = u || '-' WHERE id = %s", [id_])
                session.execute("UPDATE r SET u = %s WHERE id = %s", [rows[id_][2], other])
                rows[other] = (*rows[other][:2], rows[id_][2])
                rows[id_] = (*rows[id_][:2], rows[id_][2] + "-")
        elif kind == 4:
            with contextlib.suppress(_Undo), session.transaction():
                session.execute("UPDATE r SET a = -5 WHERE id = %s", [id_])
                raise _Undo
        else:
            session.execute(
                "INSERT INTO r (id, a, t, u) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (id) DO UPDATE SET a = excluded.a, t = excluded.t, u = excluded.u",
                [id_, *new],
            )
            rows[id_] = new


class _Undo(Exception):
    pass


def check_models(session: Session, stock: Server, models: list[Model], commands: list[str]) -> None:
    """Our table is what PostgreSQL makes of the models' rows by the same commands."""
    with psycopg.connect(stock.dsn, autocommit=True) as other:
        make(other)
        other.execute("DELETE FROM r")
        with other.cursor().copy("COPY r (id, a, t, u) FROM STDIN") as copy:
            for model in models:
                for id_, row in model.rows.items():
                    copy.write_row((id_, *row))
        for command in commands:
            other.execute(f"ALTER TABLE r {command}".encode())
        assert state(session) == state(other)


COMMANDS = [
    "ALTER a TYPE bigint",
    "ALTER t TYPE int USING t::int",
    "ALTER a TYPE numeric(12, 2)",
    "ALTER u TYPE text USING lower(u)",
    "ADD v int GENERATED ALWAYS AS (t % 7) STORED, ADD x text NOT NULL DEFAULT 'x'",
    "ALTER id TYPE bigint",
    "ALTER id TYPE numeric",
]


def alter(session: Session, command: str) -> int:
    """Runs it, again as long as it loses; how often it lost."""
    for lost in range(20):
        try:
            session.execute(f"ALTER TABLE r {command}".encode())
            return lost
        except psycopg.errors.SerializationFailure:
            continue
    raise AssertionError(command)


def test_writers_all_the_while(cluster: Server, stock: Server) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        make(session)
        session.execute("ALTER TABLE r DROP CONSTRAINT small")
        models = [Model(first, 3) for first in (1, 2, 3)]
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(Writers(cluster.dsn, 1, model.work, ("40001", "23505")))
                for model in models
            ]
            before = jobs(session)
            lost = [alter(session, command) for command in COMMANDS]
            assert jobs(session) >= before + len(COMMANDS)
        assert [w.unexpected for w in writers] == [[], [], []]
        print("lost", lost, "done", [w.done for w in writers], [w.refused for w in writers])
        check_models(session, stock, models, ["DROP CONSTRAINT small", *COMMANDS])
    assert cluster.directory is not None
    verify(cluster.directory)
