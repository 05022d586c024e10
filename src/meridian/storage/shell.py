"""The core's work done on the engine."""

from __future__ import annotations

from meridian.storage.core import Apply, Discard, Resolve, Stage, Work
from meridian.storage.engine import Engine
from meridian.wire.ops import decode_chunk


def perform(engine: Engine, work: Work) -> None:
    """One piece of work; answer it with Performed. Idempotent. Raises Failed, Corrupt."""
    positions = dict(work.positions)
    match work:
        case Apply():
            commits = [(tau, decode_chunk(chunk)) for tau, chunk in work.commits]
            engine.apply(commits, positions)
        case Stage():
            engine.stage(work.txid, work.seq, decode_chunk(work.chunk), positions)
        case Resolve():
            if work.tau > engine.applied_tau:
                # The last chunk is staged too, so that resolving stays short whatever its size.
                engine.stage(work.txid, work.seq, decode_chunk(work.chunk), {})
            engine.resolve(work.txid, work.seq + 1, work.tau, positions)
        case Discard():
            engine.discard(work.txid, positions)
