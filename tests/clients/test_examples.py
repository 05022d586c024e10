"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psycopg

from meridian.instance import binaries

ROOT = Path(__file__).resolve().parent.parent.parent


def test_order_desk(cluster) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "order_desk.py"), cluster.dsn],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS order_line, customer_order, product")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stock and orders agree" in done.stdout


def test_readme_transcript(cluster) -> None:
    """Every statement after the prompt, through psql, prints what the README prints."""
    text = (ROOT / "README.md").read_text()
    transcript = re.findall(r"\$ \.venv/bin/meridian psql\n(.*?)```", text, re.DOTALL)[0]
    statements = re.findall(r"^postgres=> (.*)$", transcript, re.MULTILINE)
    expected = re.sub(r"^postgres=> .*\n", "", transcript, flags=re.MULTILINE)
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS greeting")
    done = subprocess.run(
        [str(binaries.find().program("psql")), "-X", "-d", cluster.dsn],
        input="\n".join(statements),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS greeting")
    assert done.stderr == ""
    assert [line.rstrip() for line in done.stdout.splitlines() if line.strip()] == [
        line.rstrip() for line in expected.splitlines() if line.strip()
    ]
