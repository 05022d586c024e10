"""The extension's write buffer and its twin in Python: the same rows seen, the same bytes sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import msgspec
import pytest

from meridian.sim import cwrites, writes
from meridian.sim.run import run_seed
from meridian.sim.writes import PythonWrites, Writes
from meridian.wire import frames
from meridian.wire import ops as wire

SETS = 2400
SOURCE = Path(__file__).resolve().parents[2] / "src"
TXID = bytes(range(16))


@pytest.fixture(scope="module")
def pair() -> tuple[Writes, Writes]:
    try:
        return cwrites.CWrites(), PythonWrites()
    except cwrites.Unavailable as error:
        pytest.skip(str(error))


def test_conflict_hashes_agree(pair: tuple[Writes, Writes]) -> None:
    random = Random(1)
    native = cwrites.CWrites()
    for _ in range(2000):
        key = random.randbytes(random.choice((0, 1, 7, 8, 9, 40)))
        sid, kind = random.choice((1, 999, 1000, 2**62)), random.randrange(2)
        assert native.hash(sid, kind, key) == wire.conflict_hash(sid, kind, key)


class Program:
    """The same random calls on both; what they show must be the same after every one."""

    def __init__(self, random: Random, pair: tuple[Writes, Writes]) -> None:
        self.random = random
        self.pair = pair
        self.sids = random.sample((1, 2, 999, 1000, 1001, 2**40), random.randint(1, 4))
        self.keys = [random.randbytes(random.choice((0, 1, 8, 33))) for _ in range(12)]
        self.kinds = {sid: random.choice((0, 0, writes.INDEX, writes.HIDDEN)) for sid in self.sids}
        self.check_sid = random.choice(self.sids)
        self.open: list[int] = []
        self.cid = self.count = 0

    def both(self, call: str, *arguments: object) -> None:
        results = [getattr(one, call)(*arguments) for one in self.pair]
        assert results[0] == results[1], (call, arguments)

    def value(self) -> bytes:
        size = self.random.choice((0, 3, 31, 32, 255, 256, 2045, 2048, 2049, 9000))
        return bytes((self.random.randrange(256),)) * (size if self.random.random() < 0.2 else 5)

    def write(self) -> None:
        sid, key = self.random.choice(self.sids), self.random.choice(self.keys)
        flags = self.kinds[sid] | (self.random.randrange(8))
        if self.random.random() < 0.3:
            self.both("delete", sid, key, flags, self.cid)
            return
        attnums = self.random.choice(((1,), (1, 2), (1, 3), (2, 300)))
        values = tuple(self.value() for _ in attnums)
        self.both("put", sid, key, values, attnums, flags, self.cid)

    def savepoint(self) -> None:
        if self.open and self.random.random() < 0.6:
            call = self.random.choice(("rollback", "release"))
            self.both(call, self.open.pop())
        else:
            self.count += 1
            self.open.append(self.count)
            self.both("savepoint", self.count)

    def schema(self) -> None:
        sid = self.random.choice(self.sids)
        ops: list[wire.Op] = [
            wire.Create(sid, 0, [(1, 2)], 0), wire.Add(sid, 7, 1, None), wire.Drop(sid),
        ]  # fmt: skip
        self.both("schema", msgspec.msgpack.encode(self.random.choice(ops)))

    def step(self) -> None:
        dice = self.random.random()
        sid, key = self.random.choice(self.sids), self.random.choice(self.keys)
        if dice < 0.6:
            self.write()
        elif dice < 0.75:
            self.savepoint()
        elif dice < 0.85:
            self.both("lock", sid, key, self.random.randrange(4))
        elif dice < 0.88:
            self.schema()
        elif dice < 0.9:
            self.both("check", self.check_sid, key)
        else:
            self.cid += 1
        self.both("visible", sid, key, self.random.choice((writes.NEVER, self.cid)))

    def run(self) -> None:
        self.both("begin", self.random.choice((0, 1, 2**60)))
        for _ in range(self.random.choice((0, 1, 5, 30, 120))):
            self.step()
        self.both("size")
        self.both(
            "commit", TXID, self.random.choice((0, 300)), self.random.choice((0, 90, 5000, 1 << 20))
        )


@pytest.mark.parametrize("part", range(4))
def test_both_send_the_same_bytes(pair: tuple[Writes, Writes], part: int) -> None:
    for number in range(part, SETS, 4):
        Program(Random(number), pair).run()


def test_many_locks_and_rows_are_cut_into_the_same_chunks(pair: tuple[Writes, Writes]) -> None:
    sent = []
    for one in pair:
        one.begin(5)
        for number in range(20_000):
            one.put(1000, b"%08d" % (number * 7919 % 20_000), (b"v",))
            one.lock(1001, b"%08d" % number, number % 4)
        sent.append(one.commit(TXID, 1, 1 << 18))
    assert sent[0] == sent[1]
    assert sent[0].count(TXID) > 3


def test_answers_are_read_in_pieces(pair: tuple[Writes, Writes]) -> None:
    told = [
        (frames.COMMITTED, 1, 2**60), (frames.OUTCOME, 1, 2, 0),
        (frames.ERROR, 1, "OC000", "40001", "m" * 70_000, "", ""),
    ]  # fmt: skip
    for message in told:
        stream = frames.frame((frames.COMMITTED, 9, 1)) + frames.frame(message)
        for step in (1, 5, 1 << 20):
            for one in pair:
                one.status(TXID, 7)
            answers = [one.answer(stream, step) for one in pair]
            assert answers[0] == answers[1]
            assert answers[0][0] == message[0]
    assert answers[0][1] == writes.packed("40001")


def test_errors_are_told_and_the_next_transaction_works(pair: tuple[Writes, Writes]) -> None:
    native = pair[0]
    native.begin(1)
    with pytest.raises(ValueError, match="malformed schema op"):
        native.schema(b"\x90")
    native.check(1000, b"a")
    with pytest.raises(ValueError, match="two tables"):
        native.check(1001, b"a")
    with pytest.raises(ValueError, match="no storage id"):
        native.delete(0, b"k")
    native.status(TXID, 1)
    with pytest.raises(ValueError):
        native.answer(b"\xff\xff\xff\xff", 4)
    for one in pair:
        one.begin(2)
        one.put(1000, b"k", (b"v",))
    assert pair[0].commit(TXID, 0, 100) == pair[1].commit(TXID, 0, 100)


def test_without_a_compiler_the_simulator_runs_and_says_so(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "CC": "no-such-compiler"}
    env["MERIDIAN_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "meridian", "sim", "run", "--once", "--seeds", "1"]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[0].startswith("query processors write with the twin in Python: ")


@pytest.mark.parametrize("seed", (1, 3, 8, 12, 10_005, 10_021))
def test_a_seed_is_the_same_run_with_both(pair: tuple[Writes, Writes], seed: int) -> None:
    results = [run_seed(seed, writes=one) for one in pair]
    assert results[0] == results[1]
    assert results[0].failure == ""
