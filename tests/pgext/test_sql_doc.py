"""The table of docs/sql.md is the class table that the database applies.

Run with MERIDIAN_WRITE_DOCS=1 to write it anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import psycopg

from tests.conftest import Server

DOCUMENT = Path(__file__).parents[2] / "docs" / "sql.md"
BEGIN, END = "<!-- statements -->\n", "<!-- end of statements -->"


def table(dsn: str) -> str:
    """Markdown of sys.statements, in its own order."""
    with psycopg.connect(dsn) as session:
        rows = session.execute("SELECT statement, class, note FROM sys.statements").fetchall()
    lines = ["| statement | class | |", "| --- | --- | --- |"]
    lines += [f"| {statement} | {name} | {note} |" for statement, name, note in rows]
    return "\n".join(lines) + "\n"


def test_document_is_current(cluster: Server) -> None:
    text = DOCUMENT.read_text()
    head, rest = text.split(BEGIN)
    written, tail = rest.split(END)
    current = table(cluster.dsn)
    if os.environ.get("MERIDIAN_WRITE_DOCS"):
        DOCUMENT.write_text(head + BEGIN + current + END + tail)
        return
    assert written == current
