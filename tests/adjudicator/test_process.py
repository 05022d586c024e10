"""The adjudicator as a process of its own: decisions through its socket, kill -9, bad input."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from meridian.adjudicator import frames
from meridian.adjudicator.events import Code, Outcome
from meridian.wire.frames import HEADER
from meridian.wire.splitter import Splitter
from tests.adjudicator.driver import put, txid


class Host:
    """A client of one connection that waits for each answer."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.splitter = Splitter()
        self.bodies: list[bytes] = []

    def send(self, message: object) -> None:
        self.socket.sendall(frames.frame(message))

    def receive(self) -> frames.Answer:
        while not self.bodies:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the adjudicator closed the connection")
            self.bodies += self.splitter.feed(data)
        return frames.decode_answer(self.bodies.pop(0))

    def hello(self) -> frames.Welcome:
        self.send(frames.Hello(frames.PROTOCOL_VERSION))
        welcome = self.receive()
        assert isinstance(welcome, frames.Welcome)
        return welcome

    def ask(self, *asks: frames.Ask) -> dict[int, frames.Told]:
        self.send(frames.Commits(list(asks)))
        return self.told(len(asks))

    def told(self, count: int) -> dict[int, frames.Told]:
        found: dict[int, frames.Told] = {}
        while len(found) < count:
            answers = self.receive()
            assert isinstance(answers, frames.Answers)
            found |= {one.to: one for one in answers.told}
        return found


class Adjudicator:
    """A running process on `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "s"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "meridian.adjudicator", "--dir", str(self.directory)]
        self.process = subprocess.Popen(
            [*command, "--socket", str(self.socket), "--number", "3"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)


@pytest.fixture
def adjudicator() -> Iterator[Adjudicator]:
    with TemporaryDirectory(prefix="meridian-") as directory:
        running = Adjudicator(Path(directory))
        try:
            yield running
        finally:
            running.process.kill()
            running.process.wait()


def ask(to: int, id_: int, *keys: str, tau: int = 0) -> frames.Ask:
    return frames.Ask(to, txid(id_), tau or time.time_ns(), 0, 0, put(*keys))


def test_decides_and_tells(adjudicator: Adjudicator) -> None:
    host = Host(adjudicator.socket)
    assert host.hello().number == 3
    early = time.time_ns()
    first = host.ask(ask(1, 1, "a", "b"), ask(2, 2, "c"))
    assert [first[to].outcome for to in (1, 2)] == [Outcome.COMMITTED] * 2
    assert first[1].tau < first[2].tau <= time.time_ns()
    assert first[1].tau & 0xFF == 3
    late = host.ask(ask(3, 3, "b", tau=early))[3]
    assert (late.outcome, late.code) == (Outcome.ABORTED, Code.CONFLICT)


def test_outcomes_survive_kill(adjudicator: Adjudicator) -> None:
    host = Host(adjudicator.socket)
    epoch = host.hello().epoch
    early = time.time_ns()
    committed = host.ask(ask(1, 1, "a", tau=early))[1]
    adjudicator.end(signal.SIGKILL)
    adjudicator.start()
    host = Host(adjudicator.socket)
    assert host.hello().epoch > epoch
    host.send(frames.Statuses([frames.AskStatus(7, txid(1), early)]))
    assert host.told(1)[7] == frames.Told(7, Outcome.COMMITTED, committed.tau, 0)
    again = host.ask(ask(8, 1, "a", tau=early), ask(9, 2, "a", tau=early))
    assert again[8].tau == committed.tau
    assert again[9].outcome == Outcome.ABORTED


def test_clean_end(adjudicator: Adjudicator) -> None:
    assert adjudicator.end(signal.SIGTERM) == 0


def test_one_process_per_directory(adjudicator: Adjudicator) -> None:
    command = [sys.executable, "-m", "meridian.adjudicator", "--dir", str(adjudicator.directory)]
    second = subprocess.run(
        [*command, "--socket", str(adjudicator.directory / "t")], capture_output=True, text=True
    )
    assert second.returncode == 2
    assert "in use" in second.stdout


BAD_ID = frames.Ask(1, b"", 0, 0, 0, b"")


@pytest.mark.parametrize(
    "data",
    [
        frames.frame(frames.Commits([])),
        frames.frame(frames.Hello(99)),
        HEADER.pack(3) + b"\xc1\xc1\xc1",
        HEADER.pack(1 << 30),
        frames.frame(frames.Hello(1)) + frames.frame(frames.Commits([BAD_ID])),
    ],
    ids=["no hello", "version", "garbage", "too long", "bad id"],
)  # fmt: skip
def test_bad_frames_end_the_connection_only(adjudicator: Adjudicator, data: bytes) -> None:
    bad = Host(adjudicator.socket)
    bad.socket.sendall(data)
    answer = bad.receive()
    if isinstance(answer, frames.Welcome):
        answer = bad.receive()
    assert isinstance(answer, frames.Sorry) and answer.message
    with pytest.raises(ConnectionError):
        bad.receive()
    good = Host(adjudicator.socket)
    good.hello()
    malformed = frames.Ask(1, os.urandom(16), time.time_ns(), 0, 0, b"\xc1")
    told = good.ask(malformed, ask(2, 2, "a"))
    assert told[1].code == Code.MALFORMED
    assert told[2].outcome == Outcome.COMMITTED
