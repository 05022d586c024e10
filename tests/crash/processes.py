"""A `meridian dev` of its own, and its processes, for tests that kill them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg

START_TIMEOUT_S = 90


def descendants(pid: int) -> dict[int, str]:
    """All live processes below `pid`: pid -> command line."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found: dict[int, str] = {}
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        found.update({child: commands.get(child, "") for child in frontier})
    return found


def dev_command(directory: Path, *options: str, port: int = 0) -> list[str]:
    """`meridian dev` on a directory."""
    command = [sys.executable, "-m", "meridian", "dev", "--dir", str(directory)]
    return [*command, "--port", str(port), *options]


class Embedded:
    """One `meridian dev` on `directory`; start() may be called again after a kill."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.dsn = ""
        self.dsns: list[str] = []
        """One per instance."""

    def start(self) -> None:
        log = open(self.directory.parent / f"{self.directory.name}.err", "ab")  # noqa: SIM115
        command = dev_command(self.directory, "--json", *self.options)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        log.close()
        assert line, f"meridian dev ended with {self.process.wait()}: {self.errors()}"
        facts = json.loads(line)
        self.dsn, self.dsns = facts["dsn"], facts["dsns"]

    def errors(self) -> str:
        return (self.directory.parent / f"{self.directory.name}.err").read_text()[-4000:]

    def processes(self, role: str) -> list[int]:
        """Pids by role: data-plane, postmaster, backend, supervisor."""
        assert self.process is not None
        below = descendants(self.process.pid)
        if role == "supervisor":
            return [self.process.pid]
        if role == "data-plane":
            return [pid for pid, command in below.items() if "meridian.dataplane" in command]
        if role == "backend":
            return [
                pid
                for pid, command in below.items()
                if command.startswith("postgres: admin") and "127.0.0.1" in command
            ]
        return [pid for pid, command in below.items() if "/bin/postgres " in command + " "]

    def postmaster(self, number: int) -> int:
        """Pid of one instance's postmaster."""
        found = [
            pid
            for pid in self.processes("postmaster")
            if os.readlink(f"/proc/{pid}/cwd").endswith(f"/postgres/{number}")
        ]
        assert len(found) == 1, found
        return found[0]

    def kill(self, role: str) -> None:
        """kill -9 of one role, or of everything at once."""
        assert self.process is not None
        if role == "everything":
            victims = [self.process.pid, *descendants(self.process.pid)]
        elif role == "other postmaster":
            victims = self.processes("postmaster")[1:2]
        else:
            victims = self.processes(role)[:1]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if role in {"everything", "supervisor"}:
            self.process.wait()

    def ensure_running(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            self.start()

    def recover(self, table: str, patience_s: float = 60) -> None:
        """Waits until every instance reads this table; starts a supervisor that is gone."""
        until = time.monotonic() + patience_s
        while True:
            self.ensure_running()
            try:
                for dsn in self.dsns:
                    with psycopg.connect(dsn, connect_timeout=5) as session:
                        session.execute(f"SELECT count(*) FROM {table}".encode())
                return
            except psycopg.Error:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def stop(self) -> float:
        """SIGTERM; the seconds it took to end."""
        assert self.process is not None
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)
        return time.monotonic() - started

    def run_cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "meridian", *arguments, "--dir", str(self.directory)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
