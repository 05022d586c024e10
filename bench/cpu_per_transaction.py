"""CPU microseconds per transaction, by process: steadier than rates on a busy machine.

python bench/cpu_per_transaction.py [point-read|update] [seconds]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from meridian.bench import servers, workloads
from meridian.instance import binaries

OPTIONS = {"point-read": "-S", "update": "-N"}
TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")


def role(pid: str) -> str | None:
    command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    if "meridian.dataplane" in command:
        return "data plane"
    if re.match(r"postgres: admin postgres ", command):
        return "backends"
    return "pgbench" if "/pgbench " in command else None


def cpu_us(below: Path) -> dict[str, int]:
    """Total CPU of each role among processes that belong to the server in `below`."""
    found: dict[str, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name = role(entry.name)
            ours = str(below) in (entry / "cmdline").read_text()
            ours = ours or str((entry / "cwd").readlink()).startswith(str(below))
            if name is None or not (ours or name == "pgbench"):
                continue
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[name] = found.get(name, 0) + (int(fields[11]) + int(fields[12])) * TICK_US
    return found


def measure(title: str, context: workloads.Context, option: str, below: Path) -> None:
    program = str(binaries.find().program("pgbench"))
    command = [
        program,
        "-n",
        "-M",
        "prepared",
        option,
        "-c",
        "16",
        "-j",
        "2",
        "--max-tries=100",
        "-T",
        str(round(context.seconds)),
        context.dsn,
    ]
    output: list[str] = []
    run = threading.Thread(
        target=lambda: output.append(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
    )
    run.start()
    time.sleep(1)
    first, started = cpu_us(below), time.monotonic()
    time.sleep(context.seconds - 2)
    second, elapsed_s = cpu_us(below), time.monotonic() - started
    run.join()
    rate = float(re.findall(r"^tps = ([0-9.]+)", output[0], re.MULTILINE)[0])
    shares = {name: (second[name] - first[name]) / elapsed_s / rate for name in first}
    parts = ", ".join(f"{name} {share:.0f}" for name, share in sorted(shares.items()))
    print(f"{title}: {rate:,.0f}/s; CPU us per transaction: {sum(shares.values()):.0f} ({parts})")


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "point-read"
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 8.0
    with servers.scratch() as directory:
        os.environ["MERIDIAN_STATE_DIR"] = str(directory)
        with servers.ours(directory / "ours") as our_dsn, servers.stock(directory) as stock_dsn:
            for title, dsn, below in (
                ("Meridian", our_dsn, directory / "ours"),
                ("stock", stock_dsn, directory / "stock"),
            ):
                context = workloads.Context(dsn, directory, seconds)
                workloads.WORKLOADS[name].set_up(context)
                time.sleep(5)
                measure(title, context, OPTIONS[name], below)


if __name__ == "__main__":
    main()
