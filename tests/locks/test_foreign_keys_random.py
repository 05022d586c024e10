"""Random transactions on two instances over random foreign keys: never an orphan."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import psycopg
import pytest

from tests.locks.conftest import Connect, Session

PROGRAMS = int(os.environ.get("MERIDIAN_FK_PROGRAMS", "6"))
STEPS = 350
VALUES = 8
EXPECTED = {"40001", "23505", "23503", "23502", "23001"}

ACTIONS = ["NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT"]
TIMES = ["", "DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"]

SCHEMA = """
DROP TABLE IF EXISTS a, b, c, d CASCADE;
CREATE TABLE a (id int PRIMARY KEY, u int UNIQUE, note int DEFAULT 0) {split};
{parts}
CREATE TABLE d (x int, y int, note int DEFAULT 0, {d_key} (x, y));
CREATE TABLE b (id int PRIMARY KEY, a int DEFAULT 1 REFERENCES a {a1} {t1},
  au int REFERENCES {au} {a2} {t2}, self int REFERENCES b {a3} {t3}, u int UNIQUE {tu});
CREATE TABLE c (id int, b int REFERENCES b {a4} {t4}, x int, y int DEFAULT 1,
  FOREIGN KEY (x, y) REFERENCES d (x, y) {match} {a5} {t5}) PARTITION BY HASH (id);
CREATE TABLE c0 PARTITION OF c FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE c1 PARTITION OF c FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE INDEX ON b (a);
CREATE INDEX ON c (b);
"""
SPLIT = (
    "CREATE TABLE a0 PARTITION OF a FOR VALUES FROM (0) TO (4);"
    "CREATE TABLE a1 PARTITION OF a FOR VALUES FROM (4) TO (100);"
)

INVARIANTS = {
    "b.a": "SELECT count(*) FROM b WHERE a IS NOT NULL AND a NOT IN (SELECT id FROM a)",
    "b.au": "SELECT count(*) FROM b WHERE au IS NOT NULL AND au NOT IN (SELECT {au} FROM a)",
    "b.self": "SELECT count(*) FROM b WHERE self IS NOT NULL AND self NOT IN (SELECT id FROM b)",
    "c.b": "SELECT count(*) FROM c WHERE b IS NOT NULL AND b NOT IN (SELECT id FROM b)",
    "c.x": "SELECT count(*) FROM c WHERE x IS NOT NULL AND y IS NOT NULL AND NOT EXISTS"
    " (SELECT FROM d WHERE (d.x, d.y) = (c.x, c.y))",
    "a": "SELECT count(*) - count(DISTINCT id) FROM a",
    "b.u": "SELECT count(u) - count(DISTINCT u) FROM b",
    "d": "SELECT count(*) FROM (SELECT FROM d GROUP BY x, y HAVING count(*) > 1) twice",
    "index of b": "SELECT (SELECT count(*) FROM b WHERE a IS NOT NULL) -"
    " (SELECT count(*) FROM b WHERE a BETWEEN -100 AND 100)",
}


def schema(rng: random.Random) -> tuple[str, str]:
    """The statements, and which column of a `b.au` refers to."""
    split = rng.random() < 0.4
    words = {
        f"a{n}": f"ON DELETE {rng.choice(ACTIONS)} ON UPDATE {rng.choice(ACTIONS)}"
        for n in range(1, 6)
    }
    words |= {f"t{n}": rng.choice(TIMES) for n in range(1, 6)}
    text = SCHEMA.format(
        split="PARTITION BY RANGE (id)" if split else "",
        parts=SPLIT if split else "",
        au="a" if split else "a (u)",
        tu="",
        d_key=rng.choice(("PRIMARY KEY", "UNIQUE")),
        match=rng.choice(("", "MATCH FULL")),
        **words,
    )
    if split:
        # A unique key of a partitioned table holds the partition key.
        text = text.replace("u int UNIQUE, note int DEFAULT 0) PART", "u int, note int) PART")
    return text, "id" if split else "u"


def statement(rng: random.Random) -> str:
    def v() -> str:
        return str(rng.randrange(VALUES)) if rng.random() < 0.85 else "NULL"

    def n() -> int:
        return rng.randrange(VALUES)

    def fresh() -> int:
        return rng.randrange(VALUES, 1 << 30)

    makers: list[Callable[[], str]] = [
        lambda: f"INSERT INTO a VALUES ({n()}, {n()}) ON CONFLICT DO NOTHING",
        lambda: f"INSERT INTO d VALUES ({n()}, {n()}) ON CONFLICT DO NOTHING",
        lambda: f"INSERT INTO b VALUES ({fresh()}, {v()}, {v()}, {v()}, NULL)",
        lambda: f"INSERT INTO b VALUES ({fresh()}, {v()}, {v()}, NULL, NULL)",
        lambda: f"INSERT INTO c VALUES ({fresh()}, NULL, {n()}, {n()})",
        lambda: (
            f"INSERT INTO b VALUES ({n()}, {v()}, {v()}, {v()}, {v()})"
            f" ON CONFLICT (id) DO UPDATE SET a = {v()}"
        ),
        lambda: f"INSERT INTO c VALUES ({n()}, {v()}, {v()}, {v()})",
        lambda: f"UPDATE a SET id = {fresh() % 90 + 8} WHERE id = {n()}",
        lambda: f"UPDATE a SET u = {n()} WHERE id = {n()}",
        lambda: f"UPDATE a SET note = note + 1 WHERE id < {n()}",
        lambda: f"UPDATE b SET id = {fresh()} WHERE id = {n()}",
        lambda: f"UPDATE b SET self = {v()}, a = {v()} WHERE id = {n()}",
        lambda: f"UPDATE c SET b = {v()}, x = {v()} WHERE id = {n()}",
        lambda: f"UPDATE c SET id = {n()} WHERE id = {n()}",
        lambda: f"UPDATE d SET y = {n()} WHERE x = {n()} AND y = {n()}",
        lambda: f"DELETE FROM a WHERE id = {n()}",
        lambda: f"DELETE FROM a WHERE note > {n()}",
        lambda: f"DELETE FROM b WHERE id = {n()}",
        lambda: f"DELETE FROM c WHERE id = {n()}",
        lambda: f"DELETE FROM d WHERE x = {n()}",
        lambda: (
            f"SELECT * FROM {rng.choice('abc')} WHERE id = {n()} FOR"
            f" {rng.choice(('UPDATE', 'NO KEY UPDATE', 'SHARE', 'KEY SHARE'))}"
        ),
        lambda: "SET CONSTRAINTS ALL " + rng.choice(("DEFERRED", "IMMEDIATE")),
        lambda: "SAVEPOINT s",
    ]
    return rng.choice(makers)()


def attempt(session: Session, sql: str, seen: Counter[str]) -> None:
    try:
        session.execute(sql.encode())
        seen["done"] += 1
    except psycopg.Error as error:
        state = error.sqlstate or type(error).__name__
        seen[state] += 1
        assert state in EXPECTED, f"{sql}: {state} {error}"
        session.execute("ROLLBACK")


def step(rng: random.Random, session: Session, seen: Counter[str]) -> None:
    if session.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        attempt(session, "BEGIN", seen)
    choice = rng.random()
    if choice < 0.22:
        attempt(session, "COMMIT", seen)
    elif choice < 0.25:
        attempt(session, "ROLLBACK", seen)
    else:
        attempt(session, statement(rng), seen)


FILL = [
    f"INSERT INTO a SELECT g, g FROM generate_series(0, {VALUES - 1}) g ON CONFLICT DO NOTHING",
    f"INSERT INTO d SELECT g, h FROM generate_series(0, {VALUES - 1}) g,"
    f" generate_series(0, {VALUES - 1}) h ON CONFLICT DO NOTHING",
    "INSERT INTO b SELECT id, id, NULL, NULL, NULL FROM a WHERE id % 2 = 0 ON CONFLICT DO NOTHING",
    "INSERT INTO c SELECT id, id, id, 1 FROM b WHERE id IN (SELECT x FROM d WHERE y = 1)",
]


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_program(connect: Connect, seed: int) -> None:
    rng = random.Random(seed)
    sessions = [connect(0), connect(1), connect(0), connect(1)]
    text, au = schema(rng)
    sessions[0].execute(text.encode())
    seen: Counter[str] = Counter()
    for number in range(STEPS):
        if number % 50 == 0:
            for sql in FILL:
                sessions[number // 50 % 4].execute(sql.encode())
        step(rng, rng.choice(sessions), seen)
        if number % 50 != 49:
            continue
        for session in sessions:
            attempt(session, "COMMIT", seen)
        for reader in sessions[:2]:
            for name, sql in INVARIANTS.items():
                row = reader.execute(sql.format(au=au).encode()).fetchone()
                assert row == (0,), (seed, number, name)
    print(dict(seen))
    assert seen["done"] > STEPS and (seed >= 6 or seen["40001"])
