"""Superuser sessions with the instances of a cluster, and their catalogs row by row."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import psycopg

from tests.crash.processes import Embedded
from tests.pgext.test_catdelta import LOCAL_CATALOGS, LOCAL_COLUMNS, TEMPORARY

Connection = psycopg.Connection[Any]
DEADLINE_S = 60.0


def running(cluster: Embedded) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((cluster.directory / "run.json").read_text())
    return facts


def root(cluster: Embedded, number: int) -> Connection:
    """Our superuser, as soon as the instance is there."""
    facts = running(cluster)
    port = facts["instances"][number - 1]["port"]
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return psycopg.connect(
                host=facts["socket_directory"],
                port=port,
                user="meridian_root",
                dbname="postgres",
                autocommit=True,
            )
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def catalogs(session: Connection) -> dict[str, Counter[str]]:
    """Every row of every catalog, without what is each instance's own."""
    names = session.execute(
        "SELECT c.relname, c.oid::regclass::text, array_agg(quote_ident(a.attname)"
        " ORDER BY a.attnum) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " AND a.attnum > 0 WHERE c.relkind = 'r' AND (c.relnamespace = 'pg_catalog'::regnamespace"
        " OR c.oid = 'meridian.relation'::regclass) GROUP BY 1, 2"
    ).fetchall()
    found = {}
    for name, table, columns in names:
        if name in LOCAL_CATALOGS:
            continue
        wanted = ", ".join(column for column in columns if column not in LOCAL_COLUMNS)
        where = "WHERE rolname <> 'admin'" if name == "pg_authid" else ""
        rows = session.execute(f"SELECT ROW({wanted})::text FROM {table} {where}".encode())
        found[name] = Counter(row[0] for row in rows if not TEMPORARY.match(row[0]))
    return found


def differences(one: Connection, two: Connection) -> dict[str, Any]:
    ours, theirs = catalogs(one), catalogs(two)
    return {
        name: (
            list((ours[name] - theirs[name]).elements())[:5],
            list((theirs[name] - ours[name]).elements())[:5],
        )
        for name in ours
        if ours[name] != theirs[name]
    }


def settle(sessions: tuple[Connection, Connection]) -> None:
    """Both have the newest version."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        versions = [s.execute("SELECT meridian.catalog_version()").fetchone() for s in sessions]
        if versions[0] == versions[1]:
            return
        assert time.monotonic() < deadline, versions
        time.sleep(0.05)
