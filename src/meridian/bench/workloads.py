"""The client work of each benchmark. Both servers get the same, through the same programs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meridian.instance import binaries
from meridian.instance.errors import SetupError
from meridian.instance.users import clean_environment

CLIENTS = 16
SCALE = 10
"""pgbench scale: 1,000,000 accounts, so that 16 clients rarely meet."""
LOAD_ROWS = 200_000
SCAN_ROWS = 1_000_000
QUERIES = 3


@dataclass(frozen=True)
class Context:
    """One server under test; `scratch` is for files, `seconds` the length of one round."""

    dsn: str
    scratch: Path
    seconds: float


@dataclass(frozen=True)
class Workload:
    """`measure` returns a rate (`unit`): more is better."""

    unit: str
    set_up: Callable[[Context], None]
    measure: Callable[[Context], float]
    rest_s: float = 40.0
    """Before the first round: both servers work in the background after a large load."""


def _run(program: str, arguments: list[str], text: str = "") -> str:
    command = [str(binaries.find().program(program)), *arguments]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, env=clean_environment()
    )
    if done.returncode != 0:
        raise SetupError(f"{program} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def sql(context: Context, text: str) -> str:
    """Run SQL with psql; its output."""
    return _run("psql", ["-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-", "-d", context.dsn], text)


def _timed(context: Context, statement: str) -> float:
    """Seconds that psql measured for `statement`."""
    output = sql(context, f"\\timing on\n{statement}\n")
    times = re.findall(r"^Time: ([0-9.]+) ms", output, re.MULTILINE)
    return float(times[-1]) / 1000


def _pgbench_tables(context: Context) -> None:
    _run("pgbench", ["-i", "-q", "-s", str(SCALE), context.dsn])
    sql(context, "VACUUM ANALYZE pgbench_accounts;")


def _pgbench(context: Context, *options: str) -> float:
    fixed = ["-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "2", "--max-tries=100"]
    output = _run("pgbench", [*fixed, "-T", str(round(context.seconds)), *options, context.dsn])
    found = re.search(r"^tps = ([0-9.]+)", output, re.MULTILINE)
    failed = re.search(r"^number of failed transactions: ([0-9]+)", output, re.MULTILINE)
    if found is None or (failed is not None and int(failed[1]) > 0):
        raise SetupError(f"pgbench did not finish its transactions:\n{output}")
    return float(found[1])


def _load_file(context: Context) -> Path:
    path = context.scratch / "rows.tsv"
    if not path.exists():
        with open(path, "w") as handle:
            for n in range(LOAD_ROWS):
                handle.write(f"{n}\t{n * 7919 % 100_003}\tnote {n:010d} of the load\t{n / 8}\n")
    return path


def _load_set_up(context: Context) -> None:
    _load_file(context)


def _load(context: Context) -> float:
    sql(
        context,
        "DROP TABLE IF EXISTS load; "
        "CREATE TABLE load (id int PRIMARY KEY, a int, note text, f float8);",
    )
    path = str(_load_file(context)).replace("'", "''")
    return LOAD_ROWS / _timed(context, f"\\copy load FROM '{path}'")


def _scan_set_up(context: Context) -> None:
    sql(
        context,
        f"""
        CREATE TABLE scan (id int PRIMARY KEY, g int NOT NULL, v int NOT NULL, note text);
        INSERT INTO scan SELECT n, n % 100, (n::bigint * 7919 % 1000003)::int, 'note ' || n
          FROM generate_series(1, {SCAN_ROWS}) n;
        VACUUM ANALYZE scan;""",
    )


def _scan(context: Context) -> float:
    statement = "SELECT g, count(*), sum(v) FROM scan WHERE v < 500000 GROUP BY g ORDER BY g;"
    _timed(context, statement)
    return QUERIES / sum(_timed(context, statement) for _ in range(QUERIES))


WORKLOADS = {
    "point-read": Workload("transactions/s", _pgbench_tables, lambda c: _pgbench(c, "-S")),
    "update": Workload("transactions/s", _pgbench_tables, lambda c: _pgbench(c, "-N")),
    "load": Workload("rows/s", _load_set_up, _load, rest_s=0),
    "scan-agg": Workload("queries/s", _scan_set_up, _scan),
}
