"""Storage is checked in the background, and made anew when it is damaged.

Three sources know what a file must hold: the file itself (index = table, and what else
`storage/verify.py` demands), the last checkpoint, and the journal behind it; the latter two have
checksums. A pass compares all of them, a slice at a time, with rests in between. What differs is
damage of the file: it is remembered, the process ends, and the next one (the supervisor starts it
at once) makes all storage files anew from checkpoint and journal. What a new file shows again is
no damage of a file: it stays, and is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from meridian.dataplane import shard_files, shards
from meridian.errors import MeridianError
from meridian.journal.core import Body, Commit, JournalError, Reader
from meridian.metadata.identities import get_value, set_value
from meridian.metadata.store import MetadataStore
from meridian.storage import checkpoint, verify
from meridian.storage.compare import Comparison, Pace
from meridian.storage.errors import RebuildNeeded
from meridian.wire.ops import decode_chunk

if TYPE_CHECKING:
    from meridian.dataplane.node import Node

log = logging.getLogger("meridian.selfcheck")

DAMAGED_KEY: Final = "storage/damaged"
"""Metadata: damages for which storage is to be made anew, or was last."""
EVERY_S = 900.0
"""Between two passes."""
FIRST_S = 120.0
BUSY_PER_S = 200
"""Above so many requests per second a pass waits, but for no longer than EVERY_S once more."""
BUSY_SHARE = 0.25
"""So does one above this share of a core."""
LOOK_S = 30.0
"""Longer than the pauses of a load that comes and goes: a pass takes from it what it takes, above
all the interpreter's lock, which every answer needs."""


class Found(msgspec.Struct, array_like=True):
    """What is remembered. `heal`: the next start makes storage anew."""

    heal: bool
    damages: list[str]


def remembered(store: MetadataStore) -> Found:
    """The damages known last."""
    value = get_value(store, DAMAGED_KEY)
    return Found(False, []) if value is None else msgspec.msgpack.decode(value, type=Found)


def remember(store: MetadataStore, found: Found) -> None:
    """Across this process's end."""
    set_value(store, DAMAGED_KEY, msgspec.msgpack.encode(found))


class Checked(msgspec.Struct):
    """What a pass found."""

    damages: list[str] = []
    versions: int = 0
    """Versions of rows compared with the checkpoint or the journal."""
    rows: int = 0
    checkpoint: str = "none"
    seconds: float = 0.0


class SelfCheck:
    """One per node; passes run in a thread."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.every_s = EVERY_S
        self.last: Checked | None = None
        self.passes = 0
        self._checking = asyncio.Lock()

    def status(self) -> dict[str, object]:
        """For `meridian status`."""
        last = self.last
        if last is None:
            return {"passes": self.passes, "damages": 0}
        return {
            "passes": self.passes,
            "damages": len(last.damages),
            "versions": last.versions,
            "rows": last.rows,
            "checkpoint": last.checkpoint,
            "seconds": round(last.seconds, 1),
        }

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.sleep(FIRST_S)
        while True:
            await self._idle()
            try:
                await self.check()
            except (MeridianError, OSError) as error:
                # A journal trimmed meanwhile, a disk that cannot be read: the next pass tells.
                log.warning("self-check was not finished", extra={"error": str(error)})
            await asyncio.sleep(self.every_s)

    async def _idle(self) -> None:
        """Until there is little to do, or patience ends."""
        until = time.monotonic() + self.every_s
        while time.monotonic() < until:
            requests, cpu_s = self._done()
            await asyncio.sleep(LOOK_S)
            requests_now, cpu_now_s = self._done()
            quiet = requests_now - requests < BUSY_PER_S * LOOK_S
            if quiet and cpu_now_s - cpu_s < BUSY_SHARE * LOOK_S:
                return

    def _done(self) -> tuple[int, float]:
        """Requests, and seconds of CPU: a few long scans keep a core as busy as many lookups."""
        counters = self.node.counters
        return counters.gets + counters.scans + counters.commits, time.process_time()

    async def check(self) -> Checked:
        """One pass; what is damaged and can be made anew ends this process. Raises MeridianError,
        OSError.
        """
        async with self._checking:
            started = time.monotonic()
            found = await asyncio.to_thread(_pass, self.node, 3)
            if found.damages:
                # Once more: nothing is thrown away for what was only looked at too early.
                again = await asyncio.to_thread(_pass, self.node, 0)
                kinds = {_kind(line) for line in found.damages}
                again.damages = [line for line in again.damages if _kind(line) in kinds]
                found = again
            found.seconds = time.monotonic() - started
            self.last = found
            self.passes += 1
            self.node.counters.storage_damages += len(found.damages)
            await self._act(found)
            return found

    async def _act(self, found: Checked) -> None:
        node = self.node
        facts = {"versions": found.versions, "rows": found.rows, "checkpoint": found.checkpoint}
        if not found.damages:
            log.info("self-check: storage is sound", extra=facts)
            if remembered(node.store).damages:
                remember(node.store, Found(False, []))
            if found.checkpoint == DAMAGED:
                log.error("the checkpoint is damaged: another one is made")
                await node.housekeeping.checkpoint()
            return
        for line in found.damages:
            log.error("storage is damaged", extra={"damage": line})
        why = self._why_not(found)
        if why:
            log.error("storage is not made anew", extra={"why": why})
            return
        remember(node.store, Found(True, found.damages))
        node.report(f"storage is damaged, it is made anew: {found.damages[0]}")
        node.die("storage is damaged")

    def _why_not(self, found: Checked) -> str:
        before = {_kind(line) for line in remembered(self.node.store).damages}
        if before & {_kind(line) for line in found.damages}:
            return "it was, and shows the same again: journal or checkpoint have it too"
        trimmed = any(seat.trim_position().n for seat in self.node.seats)
        if found.checkpoint == DAMAGED and trimmed:
            return "the checkpoint is damaged, and the journal begins after it"
        return ""


SOUND, DAMAGED = "sound", "damaged"


def _kind(line: str) -> str:
    """A damage without the keys that show it."""
    return line.rsplit(": ", 1)[0]


def _pass(node: Node, rest: int) -> Checked:
    """Everything once; for a thread. Raises MeridianError, OSError."""
    found = Checked()
    files = shards.files_of(node.engine)
    copies, found.checkpoint = _copies(node)
    pace = Pace(lambda: node.closing, rest)
    for number, path in enumerate(files):
        report = verify.run(path, pace.step)
        found.rows += report.rows
        found.damages += [f"shard {number}: {line}" for line in report.damages]
    comparisons = [Comparison(path, pace) for path in files]
    try:
        for one, copy in zip(comparisons, copies, strict=False):
            one.with_checkpoint(copy)
        for seat in node.seats:
            _with_journal(node, seat.number, comparisons)
        for number, one in enumerate(comparisons):
            found.versions += one.versions
            found.damages += [f"shard {number}: {line}" for line in one.finish()]
    finally:
        for one in comparisons:
            one.close()
    return found


def _copies(node: Node) -> tuple[list[Path], str]:
    """The files of the last checkpoint, by shard, if they are what was written."""
    path = node.checkpoint_path()
    if path is None or not path.exists():
        return [], "none"
    parts = [path / f"shard-{n}" for n in range(shard_files.checkpoint_shards(path))] or [path]
    try:
        for part in parts:
            checkpoint.check(part)
    except RebuildNeeded as error:
        log.error("checkpoint", extra={"error": str(error)})
        return [], DAMAGED
    return [part / checkpoint.STORAGE_NAME for part in parts], SOUND


def _with_journal(node: Node, number: int, comparisons: list[Comparison]) -> None:
    """What the journal holds of it: small commits, then those in several records."""
    large: dict[int, int] = {}
    for record_n, tau, payload in _records(node, number):
        if isinstance(payload, Commit):
            if payload.bodies:
                large.update(dict.fromkeys((*payload.bodies, record_n), tau))
            else:
                _compare(comparisons, tau, payload.chunk)
    if not large:
        return
    for record_n, _, payload in _records(node, number):
        tau_commit = large.get(record_n)
        if tau_commit is not None:
            _compare(comparisons, tau_commit, payload.chunk)


def _compare(comparisons: list[Comparison], tau: int, chunk: bytes) -> None:
    ops = decode_chunk(chunk)
    for one in comparisons:
        one.with_ops(tau, ops)


def _records(node: Node, number: int) -> Iterator[tuple[int, int, Commit | Body]]:
    """(n, tau, payload) of the records that count and are durable now."""
    seat = node.seats[number]
    last_n, start = seat.last_n, seat.trim_position()
    reader = Reader(start)
    try:
        for record in seat.journal.read(start.n + 1 if start.n else 0):
            if record.n > last_n or node.closing:
                return
            payload = reader.accept(record)
            if isinstance(payload, Commit | Body):
                yield record.n, record.tau, payload
    except JournalError as error:
        # `meridian verify` names it; storage is not to blame.
        log.error("journal", extra={"journal": number, "error": str(error)})
