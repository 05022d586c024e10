"""`meridian bench adjudicator`: one adjudicator process, driven through its socket.

Transactions write 4 random keys of many; one client process keeps a bounded number of them under
way, so each frame holds what arrived meanwhile. Every decision is durable before it is answered.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from meridian.adjudicator import frames
from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.events import Appended, Code, Commit, Outcome, Replayed, TimerFired
from meridian.bench.servers import scratch
from meridian.clock.tau import Interval
from meridian.instance.errors import SetupError
from meridian.instance.users import die_with_parent
from meridian.journal.core import Position
from meridian.wire.ops import Put, encode_chunk
from meridian.wire.splitter import Splitter

KEYS_PER_TRANSACTION = 4
KEYS = 10_000_000
BATCH = 64
UNDER_WAY = 2_048
PREPARED = 20_000
"""Write sets made before the clock runs; the adjudicator cannot tell that they come again."""
MEMORY_KEYS = 1_000_000
SETTLE_S = 0.5


def run(seconds: float, rounds: int, report: Callable[[str], None]) -> dict[str, Any]:
    """The JSON of the bench. Raises SetupError when the process does not start."""
    asks = _asks(random.Random(1))
    rates, costs, conflicts = [], [], 0
    with scratch() as directory:
        for number in range(rounds):
            counts, elapsed, cpu_us = _round(directory / str(number), asks, seconds)
            decisions = sum(counts.values())
            rates.append(decisions / elapsed)
            costs.append(cpu_us / decisions)
            conflicts += counts.get((Outcome.ABORTED, Code.CONFLICT), 0)
            report(f"round {number + 1}: {rates[-1]:,.0f} decisions/s of {costs[-1]:.1f} us CPU")
    rates.sort()
    return {
        "name": "adjudicator",
        "decisions_per_s": round(rates[len(rates) // 2]),
        "spread": [round(rates[0]), round(rates[-1])],
        "cpu_us_per_decision": round(statistics.median(costs), 1),
        "keys_per_transaction": KEYS_PER_TRANSACTION,
        "conflicts": conflicts,
        "bytes_per_million_keys": _bytes_per_million_keys(),
        "rounds": rounds,
    }


def _write_set(draw: random.Random) -> bytes:
    """Four rows; hashes are drawn from KEYS numbers, spread over 64 bits."""
    numbers = sorted(draw.sample(range(KEYS), KEYS_PER_TRANSACTION))
    keys = [b"\x01" + number.to_bytes(8, "big") for number in numbers]
    hashes = b"".join((n * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "little") for n in numbers)
    rows = [(number, b"value of about 32 bytes" + b"." * 9) for number in numbers]
    return encode_chunk([Put(1000, 0, (1, 2), keys, hashes, b"", rows)])


def _asks(draw: random.Random) -> list[bytes]:
    return [_write_set(draw) for _ in range(PREPARED)]


def _round(
    directory: Path, chunks: list[bytes], seconds: float
) -> tuple[dict[tuple[int, int], int], float, float]:
    """How many answers of each kind, in how many seconds, for how much CPU of the process."""
    socket = directory / "socket"
    command = [sys.executable, "-m", "meridian.adjudicator", "--dir", str(directory)]
    process = subprocess.Popen(
        [*command, "--socket", str(socket)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent(signal.SIGTERM),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line != "ready\n":
            raise SetupError(f"the adjudicator did not start: {line.strip() or 'no output'}")
        return uvloop.run(_drive(socket, chunks, seconds, process.pid))
    finally:
        process.terminate()
        process.wait()


async def _drive(
    socket: Path, chunks: list[bytes], seconds: float, pid: int
) -> tuple[dict[tuple[int, int], int], float, float]:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_unix_connection(lambda: Client(chunks), str(socket))
    await asyncio.sleep(SETTLE_S)
    client.counts.clear()
    began, used_us = time.perf_counter(), _cpu_us(pid)
    await asyncio.sleep(seconds)
    counts, elapsed = dict(client.counts), time.perf_counter() - began
    used_us = _cpu_us(pid) - used_us
    client.stopping = True
    await asyncio.wait_for(client.idle.wait(), 60)
    return counts, elapsed, used_us


def _cpu_us(pid: int) -> float:
    """User and system CPU of a process: steadier than rates on a busy machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


class Client(asyncio.Protocol):
    """Keeps UNDER_WAY transactions at the adjudicator until told to stop."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.counts: dict[tuple[int, int], int] = {}
        self.stopping = False
        self.idle = asyncio.Event()
        self._chunks = chunks
        self._next = 0
        self._under_way = 0
        self._splitter = Splitter()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(frames.frame(frames.Hello(frames.PROTOCOL_VERSION)))
        self._send()

    def data_received(self, data: bytes) -> None:
        for body in self._splitter.feed(data):
            answer = frames.decode_answer(body)
            if isinstance(answer, frames.Answers):
                self._take(answer.told)
            assert not isinstance(answer, frames.Sorry), answer
        self._send()

    def _take(self, told: list[frames.Told]) -> None:
        counts = self.counts
        for one in told:
            key = one.outcome, one.code
            counts[key] = counts.get(key, 0) + 1
        self._under_way -= len(told)
        if self.stopping and self._under_way == 0:
            self.idle.set()

    def _send(self) -> None:
        while not self.stopping and self._under_way + BATCH <= UNDER_WAY:
            tau = time.time_ns()
            first, chunks, ids = self._next, self._chunks, os.urandom(16 * BATCH)
            asks = [
                frames.Ask(
                    n & 0xFFFFFFFF,
                    ids[16 * (n - first) : 16 * (n - first + 1)],
                    tau,
                    0,
                    0,
                    chunks[n % PREPARED],
                )
                for n in range(first, first + BATCH)
            ]
            self._next += BATCH
            self._under_way += BATCH
            self._transport.write(frames.frame(frames.Commits(asks)))


def _bytes_per_million_keys() -> int:
    """What a core's conflict memory takes, by the growth of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import measure_memory; measure_memory()"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def measure_memory() -> None:
    """Prints the bytes by which a core grows over MEMORY_KEYS different written keys."""
    core = Adjudicator(0)
    now = time.time_ns()
    core.step(Interval(now, now), Replayed(Position(), (1, 1)))
    core.step(Interval(now, now), Appended(core.ledger.n))
    before = 0
    width = KEYS_PER_TRANSACTION
    warm = MEMORY_KEYS // 10
    for number in range((MEMORY_KEYS + warm) // width):
        if number == warm // width:
            before = _resident_bytes()
        now += 1_000
        hashes = b"".join(
            ((number * width + i) * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "little")
            for i in range(width)
        )
        chunk = encode_chunk([Put(1000, 0, (), [b"k"] * width, hashes, b"", [()] * width)])
        instant = Interval(now, now)
        core.step(instant, Commit(0, number.to_bytes(16, "big"), now, 0, 0, 0, chunk))
        if number % BATCH == 0:
            core.step(instant, Appended(core.ledger.n))
            core.step(Interval(now + 10_000_000, now + 10_000_000), TimerFired("ack"))
            now += 10_000_000 // 100
    sys.stdout.write(f"{_resident_bytes() - before}\n")
