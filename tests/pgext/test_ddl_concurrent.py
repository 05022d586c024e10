"""Writers while DDL rewrites, indexes and rekeys their table: no update is lost or made twice."""

from __future__ import annotations

import threading

import psycopg

from tests.conftest import Server

ROWS = 20
DDL = [
    "ALTER TABLE busy ADD COLUMN extra int DEFAULT 1",
    "ALTER TABLE busy ALTER v TYPE numeric",
    "CREATE INDEX busy_v ON busy (v)",
    "ALTER TABLE busy DROP CONSTRAINT busy_pkey",
    "ALTER TABLE busy ALTER v TYPE bigint",
    "ALTER TABLE busy ADD PRIMARY KEY (id)",
    "ALTER TABLE busy ADD CHECK (v >= 0)",
    "DROP INDEX busy_v",
    "ALTER TABLE busy DROP COLUMN extra",
    "ALTER TABLE busy ADD COLUMN r float8 DEFAULT random()",
    "ALTER TABLE busy DROP COLUMN r",
    "SELECT pg_sleep(0.05)",
]


class Writers:
    """Threads that add 1 to rows until told to stop; `added` counts acknowledged updates."""

    def __init__(self, dsn: str, number: int) -> None:
        self.dsn = dsn
        self.stop = threading.Event()
        self.added = 0
        self.unexpected: list[str] = []
        self._lock = threading.Lock()
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(number)]

    def _run(self, number: int) -> None:
        added = 0
        with psycopg.connect(self.dsn, autocommit=True) as session:
            while not self.stop.is_set():
                row = (added * 7 + number) % ROWS
                try:
                    done = session.execute("UPDATE busy SET v = v + 1 WHERE id = %s", [row])
                    added += done.rowcount
                except psycopg.errors.SerializationFailure:
                    continue
                except psycopg.Error as error:
                    self.unexpected.append(f"{error.sqlstate} {error}")
        with self._lock:
            self.added += added


def test_no_update_is_lost(cluster: Server) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as session:
        session.execute("CREATE TABLE busy (id int PRIMARY KEY, v bigint NOT NULL)")
        session.execute(f"INSERT INTO busy SELECT i, 0 FROM generate_series(0, {ROWS - 1}) i")
        writers = Writers(cluster.dsn, 3)
        for thread in writers.threads:
            thread.start()
        try:
            for sql in DDL * 2:
                while True:
                    try:
                        session.execute(sql.encode())
                        break
                    except psycopg.errors.SerializationFailure:
                        continue
        finally:
            writers.stop.set()
            for thread in writers.threads:
                thread.join(30)
        assert writers.unexpected == []
        assert writers.added > 0
        row = session.execute("SELECT sum(v), count(*), count(DISTINCT id) FROM busy").fetchone()
        assert row == (writers.added, ROWS, ROWS)
        session.execute("DROP TABLE busy")
