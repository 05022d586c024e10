"""The one place where SQLite's untyped rows enter typed code."""

from __future__ import annotations

from typing import Any

import apsw


def fetch(db: apsw.Connection, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
    """All rows of a statement; the statement is finished when this returns."""
    return db.execute(sql, values).fetchall()
