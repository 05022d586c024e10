"""One client commits a large write set while another reads and commits: what does that one see?

    python bench/large_commit.py [--rows 2000000] [--row-bytes 100] [--tables 1] [--json]

With `MERIDIAN_ADJUDICATORS=3 MERIDIAN_JOURNALS=2 MERIDIAN_STORAGE_SHARDS=4` and `--tables 2` half
of the rows belong to another owner than its leader, who must vote on them.

Prints the other client's latencies before and during the large commit; exit status 1 when its p99
during it reaches 100 ms. Runs a data plane of its own in a temporary directory, fsync on.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from meridian.gateway.client import Client, GatewayError
from meridian.limits import CHUNK_SIZE_BYTES
from meridian.wire import frames
from meridian.wire.ops import FRESH, KIND_TABLE, Create, Put, conflict_hash, encode_chunk

P99_MAX_MS = 100.0
_APART = 32


def start(directory: Path, socket: Path) -> subprocess.Popen[str]:
    """A data plane that serves on `socket`."""
    command = [sys.executable, "-m", "meridian.dataplane"]
    command += ["--dir", str(directory), "--socket", str(socket)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "ready":
            return process
    raise RuntimeError(f"the data plane ended with {process.wait()}")


def hashes(keys: list[bytes]) -> bytes:
    """Distinct 64-bit values do as well as real hashes here, and cost no time in Python."""
    return b"".join(key[::-1] for key in keys)


class Other(threading.Thread):
    """Reads and updates single rows until told to stop; keeps (start, seconds, kind)."""

    def __init__(self, socket: Path, sid: int, rows: int) -> None:
        super().__init__(daemon=True)
        self.client = Client(socket)
        self.sid = sid
        self.rows = rows
        self.stopping = threading.Event()
        self.seen: list[tuple[float, float, str]] = []

    def run(self) -> None:
        number = 0
        while not self.stopping.is_set():
            number = (number + 1) % self.rows
            key = struct.pack(">q", number)
            started = time.perf_counter()
            tau = self.client.get(self.sid, [key], [1]).tau
            self.seen.append((started, time.perf_counter() - started, "read"))
            hashed = conflict_hash(self.sid, 0, key).to_bytes(8, "little")
            put = Put(self.sid, 0, (1,), [key], hashed, b"", [(number,)])
            started = time.perf_counter()
            self.client.commit([put], tau=tau, row_count=1)
            self.seen.append((started, time.perf_counter() - started, "commit"))
            time.sleep(0.002)


def quantiles(values: list[float]) -> dict[str, float]:
    """p50, p99 and the maximum, in milliseconds."""
    ordered = sorted(values) or [0.0]
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    last = len(ordered) - 1
    picked = {name: ordered[min(last, int(q * len(ordered)))] for name, q in at.items()}
    return {name: round(seconds * 1e3, 3) for name, seconds in picked.items()}


def send_large(client: Client, sids: list[int], rows: int, row_bytes: int) -> dict[str, float]:
    """The large write set, chunk by chunk; when which part of it was done."""
    per_chunk = max(1, CHUNK_SIZE_BYTES // (row_bytes + 30))
    txid = secrets.token_bytes(16)
    tau = client.begin()
    value = os.urandom(row_bytes)
    started = time.perf_counter()
    sent_bytes, chunk, seq = 0, b"", 0
    for first in range(0, rows, per_chunk):
        if chunk:
            client.send(frames.PART, txid, seq, chunk, tau)
            seq += 1
        numbers = range(first, min(rows, first + per_chunk))
        sid = sids[seq % len(sids)]
        keys = [struct.pack(">q", n) for n in numbers]
        values = [(n, value) for n in numbers]
        chunk = encode_chunk([Put(sid, FRESH, (1, 2), keys, hashes(keys), b"", values)])
        sent_bytes += len(chunk)
    sent = time.perf_counter()
    flags = frames.COMMIT_HAS_PARTS if seq else 0
    client.call(frames.COMMIT, 0, tau, txid, flags, rows, chunk)
    done = time.perf_counter()
    return {
        "started": started,
        "done": done,
        "mib": sent_bytes / (1 << 20),
        "chunks_s": sent - started,
        "commit_s": done - sent,
    }


def measure(rows: int, row_bytes: int, tables: int) -> dict[str, object]:
    """Runs everything; see the module's text."""
    with tempfile.TemporaryDirectory(prefix="large-") as name:
        directory, socket = Path(name) / "data", Path(name) / "socket"
        process = start(directory, socket)
        try:
            client = Client(socket, timeout_s=300)
            small = client.lease(frames.LEASE_SID, 2 + _APART * tables)[0]
            # So far apart that they belong to different adjudicators, if there are several.
            larges = [small + 1 + _APART * number for number in range(tables)]
            client.commit(
                [
                    Create(small, KIND_TABLE, [(1, 1)], 0),
                    *(Create(large, KIND_TABLE, [(1, 1), (2, 2)], 0) for large in larges),
                ],
                flags=frames.COMMIT_HAS_SCHEMA,
            )
            keys = [struct.pack(">q", n) for n in range(1000)]
            put = Put(small, FRESH, (1,), keys, hashes(keys), b"", [(0,)] * 1000)
            client.commit([put], row_count=1000)
            other = Other(socket, small, 1000)
            other.start()
            time.sleep(2)
            report = send_large(client, larges, rows, row_bytes)
            settled = time.perf_counter() + 2
            found = [client.scan(large, [], aggs=[[1, 0]]).rows[0][0] for large in larges]
            count = sum(found)
            time.sleep(max(0.0, settled - time.perf_counter()))
            other.stopping.set()
            other.join()
            peak_kib = _peak_kib(process.pid)
        finally:
            process.terminate()
            process.wait()
    return _report(rows, count, report, other.seen, peak_kib)


def _peak_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    return 0


def _report(
    rows: int,
    count: int,
    report: dict[str, float],
    seen: list[tuple[float, float, str]],
    peak_kib: int,
) -> dict[str, object]:
    before = [s for at, s, _ in seen if at < report["started"]]
    during = [s for at, s, _ in seen if report["started"] <= at <= report["done"]]
    after = [s for at, s, _ in seen if at > report["done"]]
    return {
        "name": "large-commit",
        "rows": rows,
        "rows_found": count,
        "mib": round(report["mib"], 1),
        "chunks_s": round(report["chunks_s"], 2),
        "commit_s": round(report["commit_s"], 3),
        "before_ms": quantiles(before),
        "during_ms": quantiles(during),
        "after_ms": quantiles(after),
        "peak_mib": peak_kib >> 10,
        "pass": quantiles(during)["p99"] < P99_MAX_MS and rows == count,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--row-bytes", type=int, default=100)
    parser.add_argument("--tables", type=int, default=1, help="tables that the rows go to")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        found = measure(options.rows, options.row_bytes, options.tables)
    except GatewayError as error:
        sys.exit(f"refused: {error} {error.detail}")
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    sys.exit(0 if found["pass"] else 1)


if __name__ == "__main__":
    main()
