"""`python -m meridian.adjudicator`: one adjudicator with its journal, as a process of its own.

Recovers from its journal, takes a new epoch, prints `ready`, serves its socket. Ends on SIGTERM or
SIGINT; with status 3 when its journal cannot be written, so that whoever started it takes over.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop

from meridian.adjudicator.core import Adjudicator
from meridian.adjudicator.events import Refused, Replay, Replayed
from meridian.adjudicator.server import Hosts
from meridian.adjudicator.shell import Shell
from meridian.clock.clock import Clock
from meridian.errors import MeridianError
from meridian.journal.core import Reader
from meridian.journal.file import AppendError, FileJournal
from meridian.journal.files import Files
from meridian.journal.record import Record
from meridian.journal.segments import SegmentReader
from meridian.limits import SERVING_WAIT_S
from meridian.metadata.identities import next_epoch
from meridian.metadata.ownership import DirectoryLock
from meridian.metadata.store import MetadataStore

_SWITCH_S = 0.0002
"""The writer's thread gets the interpreter this soon from a busy event loop."""
_BACKLOG = 128
_TAIL_RECORDS = 100_000
"""Records read between two looks at which of them are proven durable."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m meridian.adjudicator")
    parser.add_argument("--dir", type=Path, required=True, help="directory of its journal")
    parser.add_argument("--socket", type=Path, required=True, help="path of its Unix socket")
    parser.add_argument("--number", type=int, default=0, help="its number, 0 to 255")
    parser.add_argument("--ephemeral", action="store_true", help="no fsync: nothing survives")
    return parser.parse_args(arguments)


def say(line: str) -> None:
    """One line for whoever started this process."""
    with contextlib.suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


class Process:
    """One adjudicator process; `ended` holds why it cannot go on."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.clock = Clock()
        self.hosts = Hosts()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Serves once this returns. Raises MeridianError, OSError."""
        options = self.options
        options.dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.lock = DirectoryLock(options.dir)
        store = MetadataStore(options.dir / "metadata.db", sync=not options.ephemeral)
        files = Files(sync=not options.ephemeral)
        journal = FileJournal(options.dir / "journal", options.number, files)
        adjudicator, reader = Adjudicator(options.number), Reader()
        segments = journal.read()
        tail = self._replay(segments, reader, adjudicator)
        self.clock.observe(reader.tau)
        position = reader.position()
        epoch = next_epoch(store, options.number, position.epoch[0] + 1)
        self.shell = Shell(
            clock=self.clock,
            adjudicator=adjudicator,
            answered=self.hosts.answered,
            refused=self._refused,
            lost=self._lost,
        )
        self.hosts.shell = self.shell
        self.shell.writer = journal.open_writer(
            segments, tail, self.shell.durable_in_thread, self.shell.failed_in_thread
        )
        self.shell.step(Replayed(position, epoch))
        await asyncio.wait_for(self.shell.settled.wait(), SERVING_WAIT_S)
        options.socket.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self.server = await loop.create_unix_server(
            self.hosts.connect, options.socket, backlog=_BACKLOG
        )

    def _replay(
        self, segments: SegmentReader, reader: Reader, adjudicator: Adjudicator
    ) -> list[Record]:
        """All that the journal tells; returns the records that no later one proves durable."""
        tail: list[Record] = []
        for record in segments:
            tail.append(record)
            if len(tail) > _TAIL_RECORDS:
                tail = [one for one in tail if one.n > segments.durable_n]
            payload = reader.accept(record)
            if payload is not None:
                adjudicator.step(self.clock.now(), Replay(record, payload))
        return tail

    def _refused(self, refused: Refused) -> None:
        """Transactions of several chunks do not come over this socket."""

    def _lost(self, reason: str, failure: AppendError | None) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    def close(self) -> None:
        """What was appended is durable."""
        self.server.close()
        self.hosts.close()
        self.shell.close()
        self.lock.release()


async def serve(options: argparse.Namespace) -> int:
    """Runs until told to end; returns the exit status."""
    process = Process(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await process.start()
    gc.collect()
    gc.freeze()
    say("ready")
    ends: set[asyncio.Future[Any]] = {asyncio.ensure_future(stop.wait()), process.ended}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if process.ended.done():
        say(f"adjudicator ends: {process.ended.result()}")
        return 3
    process.close()
    return 0


def main() -> None:
    """Entry point of the process."""
    sys.setswitchinterval(_SWITCH_S)
    try:
        status = uvloop.run(serve(parse(sys.argv[1:])))
    except (MeridianError, OSError) as error:
        say(str(error))
        status = 2
    os._exit(status)


if __name__ == "__main__":
    main()
