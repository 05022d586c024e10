"""Micro-benchmark of the storage engine: `python bench/storage.py [--rows N] [--json]`.

Numbers of one noisy machine: compare them with each other, not with other machines.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from meridian.storage import Engine, ScanRequest
from meridian.wire import ops

TABLE, OTHER = 2000, 2001
CHUNK_ROWS = 8_000
PAYLOAD = b"x" * 84


def keys(start: int, stop: int) -> list[bytes]:
    """8-byte keys of a range."""
    return [i.to_bytes(8, "big") for i in range(start, stop)]


def put(sid: int, start: int, stop: int, flags: int) -> ops.Put:
    """Rows of about 100 bytes."""
    rows = [(i, i % 100, PAYLOAD) for i in range(start, stop)]
    return ops.Put(sid, flags, (1, 2, 3), keys(start, stop), b"", b"", rows)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Bench:
    """One engine, one growing position."""

    def __init__(self, path: Path, rows: int) -> None:
        self.engine = Engine.create(path, boot_id="bench")
        self.rows = rows
        self.n = 0
        columns = [(1, 1), (2, 1), (3, 2)]
        self.apply([ops.Create(sid, 0, columns, 0) for sid in (TABLE, OTHER)])

    def apply(self, chunk: list[ops.Op]) -> None:
        """One commit."""
        self.n += 1
        self.engine.apply([(self.n * 256, chunk)], {0: self.n})

    def tau(self) -> int:
        """As of now."""
        return self.n * 256 + 1

    def run(self) -> Iterator[tuple[str, float]]:
        """(name, value) pairs."""
        rows, step = self.rows, CHUNK_ROWS
        puts = [put(TABLE, i, min(i + step, rows), ops.FRESH) for i in range(0, rows, step)]
        yield "load_rows_per_s", rows / sum(seconds(lambda p=p: self.apply([p])) for p in puts)
        puts = [put(TABLE, i, min(i + step, rows), 0) for i in range(0, rows, 4 * step)]
        updated = sum(len(p.keys) for p in puts)
        spent = sum(seconds(lambda p=p: self.apply([p])) for p in puts)
        yield "update_rows_per_s", updated / spent
        small = [[put(TABLE, i, i + 1, 0)] for i in range(0, 3000)]
        spent = seconds(lambda: [self.apply(chunk) for chunk in small])
        yield "small_commit_us", spent / len(small) * 1e6
        yield from self.reads()
        yield from self.staging()

    def reads(self) -> Iterator[tuple[str, float]]:
        """Point reads, scans, aggregates."""
        engine, tau = self.engine, self.tau()
        some = keys(0, self.rows)[:: max(1, self.rows // 20_000)]
        spent = seconds(lambda: [engine.get(tau, TABLE, (1, 3), [key]) for key in some])
        yield "get_us", spent / len(some) * 1e6
        slices = [some[i : i + 256] for i in range(0, len(some), 256)]
        spent = seconds(lambda: [engine.get(tau, TABLE, (1, 3), part) for part in slices])
        yield "get_many_us_per_key", spent / len(some) * 1e6
        request = ScanRequest(tau, TABLE, filter=[6, 2, 1, 3], aggs=((1, 0), (5, 1)))
        spent = seconds(lambda: engine.readers.submit(request).future.result())
        yield "filtered_scan_rows_per_s", self.rows / spent
        request = ScanRequest(tau, TABLE, group=(2,), aggs=((1, 0), (5, 1)))
        spent = seconds(lambda: engine.readers.submit(request).future.result())
        yield "grouped_rows_per_s", self.rows / spent

    def staging(self) -> Iterator[tuple[str, float]]:
        """Large transactions: the longest stall of each of their phases."""
        yield from self.large("load", OTHER, ops.FRESH)
        yield from self.large("update", TABLE, 0)
        self.engine.raise_floor(self.tau())
        times = [0.0]
        while self.engine.collect(1):
            times.append(seconds(lambda: self.engine.collect(500)))
        yield "collect_max_ms", max(times) * 1e3

    def large(self, name: str, sid: int, flags: int) -> Iterator[tuple[str, float]]:
        """One large transaction over all rows of a relation."""
        engine, rows, step = self.engine, self.rows, CHUNK_ROWS
        txid = name.encode().ljust(16)
        puts = [put(sid, i, min(i + step, rows), flags) for i in range(0, rows, step)]
        times = [
            seconds(lambda i=i, p=p: engine.stage(txid, i, [p], {})) for i, p in enumerate(puts)
        ]
        yield f"stage_{name}_rows_per_s", rows / sum(times)
        yield f"stage_{name}_max_ms", max(times) * 1e3
        self.n += 1
        spent = seconds(lambda: engine.resolve(txid, len(puts), self.n * 256, {0: self.n}))
        yield f"resolve_{name}_ms", spent * 1e3
        some = keys(0, rows)[:: max(1, rows // 2000)]
        spent = seconds(lambda: [engine.get(self.tau(), sid, (1,), [key]) for key in some])
        yield f"get_unsettled_{name}_us", spent / len(some) * 1e6
        times = []
        while not times or engine.unsettled:
            times.append(seconds(lambda: engine.settle(500)))
        yield f"settle_{name}_rows_per_s", rows / sum(times)
        yield f"settle_{name}_max_ms", max(times) * 1e3


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory) / "shard.db", arguments.rows)
        results = {name: round(value, 2) for name, value in bench.run()}
        bench.engine.close()
    if arguments.json:
        print(json.dumps({"name": "storage", "rows": arguments.rows, **results}))
    else:
        for name, value in results.items():
            print(f"{name:28} {value:14,.2f}")


if __name__ == "__main__":
    main()
