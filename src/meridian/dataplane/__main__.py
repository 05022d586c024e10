"""`python -m meridian.dataplane`: the data plane as a process of its own.

Prints progress lines, then one line `ready`. Ends on SIGTERM or SIGINT, and when its parent does.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import resource
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from meridian.dataplane.logs import start_logging
from meridian.dataplane.node import Node
from meridian.errors import MeridianError
from meridian.gateway.requests import Requests
from meridian.gateway.server import Server
from meridian.limits import PROFILES

log = logging.getLogger("meridian.process")

_PR_SET_PDEATHSIG = 1
_PARENT_CHECK_S = 0.5
_SWITCH_S = 0.0002
"""Threads that finish a sync or a scan get the interpreter this soon from a busy event loop."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m meridian.dataplane")
    parser.add_argument("--dir", type=Path, required=True, help="data directory")
    parser.add_argument("--socket", type=Path, required=True, help="path of the gateway's socket")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="standard")
    parser.add_argument("--adjudicators", type=int, help="ranges of keys that decide commits (1)")
    parser.add_argument("--journals", type=int, help="journals, each with one writer (1)")
    parser.add_argument("--ephemeral", action="store_true", help="no fsync: nothing survives")
    parser.add_argument(
        "--storage-shards", type=int, default=0, help="files that storage is spread over (1)"
    )
    parser.add_argument("--socket-owner", default="", help="UID or UID:GID of the socket")
    parser.add_argument("--socket-mode", default="600", help="octal mode of the socket")
    parser.add_argument(
        "--parent-pid", type=int, default=os.getppid(), help="end with this process; 0: with none"
    )
    parser.add_argument("--log", type=Path, help="log file (default: DIR/log/dataplane.log)")
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="NAME=VALUE", help="override a limit"
    )
    return parser.parse_args(arguments)


def say(line: str) -> None:
    """One line on stdout; a reader that went away is no reason to fail."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except OSError:
        log.warning("stdout is closed")


def die_with_parent(parent_pid: int) -> None:
    """The kernel signals this process when its parent, or the thread that started it, ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGUSR2, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit("the parent process is gone")


def allow_many_files() -> None:
    """As many connections as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end_if_orphaned(parent_pid: int, gone: asyncio.Event) -> None:
    """The kernel's signal follows the thread that started us: ask whether the process is gone."""
    if parent_pid not in (0, os.getppid()):
        gone.set()


async def watch_parent(parent_pid: int, gone: asyncio.Event) -> None:
    """Also where the kernel's signal was lost or meant a thread only."""
    while parent_pid in (0, os.getppid()):  # noqa: ASYNC110 - nobody sets an event for this
        await asyncio.sleep(_PARENT_CHECK_S)
    gone.set()


def end_after_failure(node: Node, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback that failed left something half done: only a new process is sure of its state."""
    error = context.get("exception")
    log.error(str(context.get("message")), exc_info=error)
    if "handle" in context and error is not None:
        node.die(f"a step failed: {error!r}")


async def serve(options: argparse.Namespace) -> int:
    """Runs until told to end; returns the exit status."""
    overrides = dict(item.split("=", 1) for item in options.limit)
    limits = PROFILES[options.profile].with_overrides({k: int(v) for k, v in overrides.items()})
    node = Node(
        options.dir,
        profile=options.profile,
        limits=limits,
        ephemeral=options.ephemeral,
        storage_shards=options.storage_shards,
        adjudicators=options.adjudicators,
        journals=options.journals,
        report=say,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(partial(end_after_failure, node))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR2, end_if_orphaned, options.parent_pid, stop)
    watching = loop.create_task(watch_parent(options.parent_pid, stop))
    starting = loop.create_task(node.start())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        return 0
    await starting
    server = Server(Requests(node), options.socket)
    uid, _, gid = options.socket_owner.partition(":")
    await server.start(uid=int(uid or -1), gid=int(gid or -1), mode=int(options.socket_mode, 8))
    # What lives as long as the process need not be looked at by every full collection.
    gc.collect()
    gc.freeze()
    say("ready")
    log.info("ready")
    ends: set[asyncio.Future[Any]] = {stopping, node.fatal}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    await server.close()
    if node.fatal.done():
        say(f"data plane ends: {node.fatal.result()}")
        log.error("ends", extra={"reason": node.fatal.result()})
        return 3
    await node.close()
    log.info("ended")
    return 0


def main() -> None:
    """Entry point of the process."""
    options = parse(sys.argv[1:])
    if options.parent_pid:
        die_with_parent(options.parent_pid)
    allow_many_files()
    sys.setswitchinterval(_SWITCH_S)
    try:
        start_logging(options.log or options.dir / "log" / "dataplane.log", options.log_level)
        status = uvloop.run(serve(options))
    except (MeridianError, OSError) as error:
        log.error("cannot start", extra={"error": str(error)})
        say(str(error))
        status = 2
    # Reader threads and a writer that hangs on a dead disk must not keep the process.
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
