"""ALTER TABLE that rewrites a big table runs beside its writers, and ends as in PostgreSQL."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import Server
from tests.jobs.tables import Session, Writers, indexes, one, verify, wait_for

ROWS = 2500
NIGHTLY = pytest.mark.nightly


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


USUAL = [ALIKE[1], ALIKE[2], ALIKE[6], ALIKE[7], ALIKE[11], *FAILING[:4:2], *FAILING[3:5]]
"""The others run at night."""


@pytest.mark.parametrize(
    "command",
    [
        command if command in USUAL else pytest.param(command, marks=NIGHTLY)
        for command in ALIKE + FAILING
    ],
)
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


REFUSED = ("40001", "23505", "42804")
"""42804: psycopg prepared the statement when the column was text; stock PostgreSQL says it too."""
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


@pytest.mark.parametrize("commands", [COMMANDS[1:4:2], pytest.param(COMMANDS, marks=NIGHTLY)])
def test_writers_all_the_while(cluster: Server, stock: Server, commands: list[str]) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        make(session)
        session.execute("ALTER TABLE r DROP CONSTRAINT small")
        models = [Model(first, 3) for first in (1, 2, 3)]
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(Writers(cluster.dsn, 1, model.work, REFUSED))
                for model in models
            ]
            before = jobs(session)
            lost = [alter(session, command) for command in commands]
            assert jobs(session) >= before + len(commands)
        assert [w.unexpected for w in writers] == [[], [], []]
        print("lost", lost, "done", [w.done for w in writers], [w.refused for w in writers])
        check_models(session, stock, models, ["DROP CONSTRAINT small", *commands])
    assert cluster.directory is not None
    verify(cluster.directory)


SLOW = "ALTER t TYPE int USING slowly(t)"


@pytest.fixture
def slow(cluster: Server) -> Iterator[Session]:
    """A session with a table whose rewrite takes seconds."""
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        make(session)
        session.execute(
            "CREATE OR REPLACE FUNCTION slowly(text) RETURNS int IMMUTABLE LANGUAGE plpgsql AS"
            " $$BEGIN PERFORM pg_sleep(0.008) WHERE $1 LIKE '%5'; RETURN $1::int; END$$"
        )
        yield session


class Altering(threading.Thread):
    """ALTER TABLE in a session of its own; `error` is what it ended with."""

    def __init__(self, dsn: str, command: str) -> None:
        super().__init__()
        self.error: psycopg.Error | None = None
        self.session = psycopg.connect(dsn, autocommit=True)
        self.command = command
        self.start()

    def run(self) -> None:
        with self.session:
            self.session.execute("SET meridian.rewrite_online_rows = 100")
            try:
                self.session.execute(f"ALTER TABLE r {self.command}".encode())
            except psycopg.Error as error:
                self.error = error

    def end(self) -> psycopg.Error | None:
        self.join(60)
        assert not self.is_alive()
        return self.error


def under_way(session: Session, least: int = 0) -> str:
    """The id of the job that rewrites, once it has copied some rows."""
    query = "SELECT job_id FROM sys.jobs WHERE status = 'processing' AND rows_done > %s"
    row = wait_for(lambda: session.execute(query.encode(), [least]).fetchone())
    return str(row[0])


def nothing_is_left(session: Session) -> None:
    wait_for(lambda: one(session, HIDDEN) == 0)
    kind = "SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attname = 't'"
    assert one(session, kind + " AND attrelid = 'r'::regclass") == "text"
    assert one(session, "SELECT count(*) FROM r") == ROWS


def test_cancelled_by_its_statement(slow: Session) -> None:
    slow.execute("SET statement_timeout = '700ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        slow.execute(f"ALTER TABLE r {SLOW}".encode())
    slow.execute("RESET statement_timeout")
    nothing_is_left(slow)
    status = "SELECT status FROM sys.jobs ORDER BY update_time DESC LIMIT 1"
    assert one(slow, status) == "cancelled"


def test_cancelled_at_any_time(cluster: Server, slow: Session) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as watching:
        for ms in range(100, 700, 60):
            slow.execute(f"SET statement_timeout = '{ms}ms'".encode())
            with contextlib.suppress(psycopg.errors.QueryCanceled):
                slow.execute(f"ALTER TABLE r {SLOW}".encode())
                break
        slow.execute("RESET statement_timeout")
        wait_for(lambda: one(slow, HIDDEN) == 0)
        # It would have been lost with any backend that crashed.
        assert one(watching, "SELECT 1") == 1


def test_cancelled_by_another_session(cluster: Server, slow: Session) -> None:
    altering = Altering(cluster.dsn, SLOW)
    slow.execute(f"CALL sys.cancel_job('{under_way(slow)}')".encode())
    error = altering.end()
    assert error is not None and error.sqlstate == "57014"
    nothing_is_left(slow)
    slow.execute("UPDATE r SET t = 'x' WHERE id = 5")


def test_dropped_and_truncated(cluster: Server, slow: Session) -> None:
    altering = Altering(cluster.dsn, SLOW)
    under_way(slow)
    slow.execute("TRUNCATE r")
    error = altering.end()
    assert error is not None and error.sqlstate == "55000"
    assert one(slow, "SELECT count(*) FROM r") == 0
    make(slow)
    altering = Altering(cluster.dsn, SLOW)
    under_way(slow)
    slow.execute("DROP TABLE r")
    error = altering.end()
    assert error is not None and error.sqlstate == "57014"
    assert one(slow, HIDDEN) == 0


DDL = [
    "ALTER TABLE r ADD COLUMN z int",
    "ALTER TABLE r RENAME t TO tt",
    "ALTER TABLE r RENAME TO rr",
    "ALTER TABLE r SET SCHEMA sys",
    "ALTER INDEX r_u_key RENAME TO other",
    "CREATE INDEX ON r (t)",
    "ALTER TABLE r DROP COLUMN t",
]


def test_what_goes_on_and_what_does_not(cluster: Server, slow: Session) -> None:
    altering = Altering(cluster.dsn, SLOW)
    under_way(slow)
    for sql in DDL:
        with pytest.raises(psycopg.errors.ObjectInUse, match="is being rewritten"):
            slow.execute(sql.encode())
    slow.execute("DROP INDEX r_a_t_idx")
    slow.execute("GRANT SELECT ON r TO PUBLIC")
    began = time.monotonic()
    slow.execute("UPDATE r SET t = '77' WHERE id = 1")
    assert one(slow, "SELECT t FROM r WHERE id = 1") == "77"
    assert time.monotonic() - began < 1
    assert altering.end() is None
    assert slow.execute("SELECT t FROM r WHERE id IN (1, 2) ORDER BY id").fetchall() == [
        (77,),
        (2,),
    ]
    assert "r_a_t_idx" not in indexes(slow, "r")


@pytest.mark.parametrize("written", ["old part", "new part"])
def test_a_value_written_meanwhile_that_does_not_fit(
    cluster: Server, slow: Session, written: str
) -> None:
    """The writer came first: it gets its way, and ALTER TABLE fails."""
    altering = Altering(cluster.dsn, SLOW)
    under_way(slow, 200)
    id_ = 3 if written == "old part" else ROWS - 3
    slow.execute(f"UPDATE r SET t = 'abc' WHERE id = {id_}".encode())
    error = altering.end()
    assert error is not None
    assert (error.sqlstate, error.diag.message_primary) == (
        "22P02",
        'invalid input syntax for type integer: "abc"',
    )
    nothing_is_left(slow)
    assert one(slow, f"SELECT t FROM r WHERE id = {id_}") == "abc"


def test_the_session_that_ordered_it_counts(cluster: Server, stock: Server) -> None:
    """Time zone, role, search path, and the one now() of a statement."""
    values = []
    for server in (cluster, stock):
        with psycopg.connect(server.dsn, autocommit=True) as session:
            make(session)
            session.execute("DROP SCHEMA IF EXISTS elsewhere CASCADE")
            session.execute("CREATE SCHEMA elsewhere")
            session.execute(
                "CREATE FUNCTION elsewhere.twice(int) RETURNS int IMMUTABLE LANGUAGE sql"
                " AS 'SELECT 2 * $1'"
            )
            session.execute("SET search_path = elsewhere, public")
            session.execute("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'SQL, DMY'")
            session.execute("ALTER TABLE r ADD ts timestamp DEFAULT '2020-01-02 03:04:05'")
            before = one(session, "SELECT extract(epoch FROM clock_timestamp())")
            session.execute(
                "ALTER TABLE r ALTER ts TYPE timestamptz, ALTER t TYPE date"
                " USING ('0' || (t::int % 9 + 1) || '/04/2021')::date,"
                " ALTER a TYPE bigint USING twice(a),"
                " ADD o text DEFAULT current_user || random()::int % 1"
            )
            assert one(session, "SELECT count(DISTINCT o) FROM r") == 1
            session.execute("ALTER TABLE r ALTER ts TYPE timestamptz USING now()")
            assert one(session, "SELECT count(DISTINCT ts) FROM r") == 1
            assert one(session, "SELECT extract(epoch FROM min(ts)) FROM r") >= before
            session.execute("ALTER TABLE r ALTER ts TYPE text USING 'gone'")
            session.execute("RESET DateStyle")
            values.append(state(session))
    assert values[0] == values[1]
    with psycopg.connect(cluster.dsn) as session:
        assert jobs(session) >= 2


def test_values_drawn_for_new_columns(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        make(session)
        session.execute("DROP SEQUENCE IF EXISTS drawn")
        session.execute("CREATE SEQUENCE drawn START 500")
        before = jobs(session)
        session.execute(
            "ALTER TABLE r ADD s smallserial, ADD b int GENERATED BY DEFAULT AS IDENTITY"
            " (START 10 INCREMENT 5), ADD n bigint DEFAULT nextval('drawn'),"
            " ADD w uuid NOT NULL DEFAULT gen_random_uuid(),"
            " ADD c timestamptz DEFAULT clock_timestamp()"
        )
        assert jobs(session) == before + 1
        numbers = "SELECT min({0}), max({0}), count(DISTINCT {0}) FROM r"
        for column, expected in (
            ("s", (1, ROWS, ROWS)),
            ("b", (10, 10 + 5 * (ROWS - 1), ROWS)),
            ("n", (500, 500 + ROWS - 1, ROWS)),
        ):
            assert session.execute(numbers.format(column).encode()).fetchone() == expected
        assert one(session, "SELECT count(DISTINCT w) FROM r") == ROWS
        assert one(session, "SELECT count(DISTINCT c) FROM r") > 1
        row = session.execute(
            "INSERT INTO r (id, u) VALUES (0, 'x') RETURNING s, b, n, w IS NOT NULL"
        ).fetchone()
        assert row == (ROWS + 1, 10 + 5 * ROWS, 500 + ROWS, True)


def test_too_many_numbers_for_the_type(cluster: Server, stock: Server) -> None:
    said = []
    for server in (cluster, stock):
        with psycopg.connect(server.dsn, autocommit=True) as session:
            make(session)
            with pytest.raises(psycopg.Error) as error:
                session.execute(
                    "ALTER TABLE r ADD b smallint GENERATED ALWAYS AS IDENTITY (START 32000)"
                )
            said.append((error.value.sqlstate, state(session)))
    assert said[0] == said[1]


ONE_COMMIT = [
    "ADD k uuid UNIQUE DEFAULT gen_random_uuid()",
    "ALTER a TYPE bigint USING unsure(a)",
    "ALTER a TYPE bigint, ALTER d SET DEFAULT 9",
]


def test_what_stays_one_commit(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        make(session)
        session.execute(
            "CREATE OR REPLACE FUNCTION unsure(int) RETURNS int STABLE LANGUAGE plpgsql"
            " AS $$BEGIN RETURN $1; END$$"
        )
        before = jobs(session)
        for command in ONE_COMMIT:
            session.execute(f"ALTER TABLE r {command}".encode())
            make(session)
        with session.transaction():
            session.execute("ALTER TABLE r ALTER a TYPE bigint")
        make(session)
        session.execute("DROP TABLE IF EXISTS points")
        session.execute("CREATE TABLE points (u text REFERENCES r (u), v int)")
        session.execute("ALTER TABLE r ALTER u TYPE varchar")
        make_parted(session)
        session.execute("ALTER TABLE parted ALTER v TYPE bigint")
        assert jobs(session) == before
        # A foreign key of another column is none of its business.
        session.execute("ALTER TABLE r ALTER a TYPE bigint")
        assert jobs(session) == before + 1
        session.execute("INSERT INTO points VALUES ('u5')")
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            session.execute("INSERT INTO points VALUES ('nobody')")
        session.execute("DROP TABLE points, parted")


def make_parted(session: Session) -> None:
    session.execute("DROP TABLE IF EXISTS parted")
    session.execute("CREATE TABLE parted (id int, v int) PARTITION BY HASH (id)")
    for n in range(2):
        session.execute(
            f"CREATE TABLE parted{n} PARTITION OF parted"
            f" FOR VALUES WITH (MODULUS 2, REMAINDER {n})".encode()
        )
    session.execute(f"INSERT INTO parted SELECT i, i FROM generate_series(1, {ROWS}) i".encode())
