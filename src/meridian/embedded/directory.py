"""The cluster's directory: format, lock, identity, password, and who runs on it now.

meridian.json   format version, cluster id, profile
lock            held by the supervisor while it lives
password        of user admin (mode 0600)
run.json        process id, ports and sockets of the running supervisor, states of its instances
data/           journal, storage, metadata (the data plane's)
postgres/       a cache: PostgreSQL's directories, one per instance
log/            logs, rotated
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from pathlib import Path

import msgspec

from meridian.instance.errors import SetupError

FORMAT_VERSION = 1
PASSWORD_BYTES = 18
PATH_BYTES = 400
"""SQLite takes no path over 512 bytes; the rest is for the files of checkpoints."""
LOCK_TRIES = 10
LOCK_PAUSE_S = 0.05


class Identity(msgspec.Struct, frozen=True):
    """meridian.json."""

    format: int
    cluster: str
    profile: str


class InstanceFacts(msgspec.Struct, frozen=True):
    """One instance in run.json."""

    number: int
    port: int
    state: str
    """starting, serving, or down (it could not be started; the others serve)."""
    start_ms: int
    """How long its last start took."""


class Running(msgspec.Struct, frozen=True):
    """run.json: where the running cluster is reached. `dsns` has one entry per instance."""

    pid: int
    port: int
    host: str
    dsn: str
    dsns: list[str]
    gateway_socket: str
    socket_directory: str
    instances: list[InstanceFacts] = []


class ClusterDirectory:
    """One DIR. Nothing is touched before `open` has the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.data = self.path / "data"
        self.log = self.path / "log"
        self._lock: int | None = None

    def open(self, profile: str | None) -> Identity:
        """Take the lock and read or make the identity.

        Raises SetupError: in use, not ours, of an unknown format, or of another profile.
        """
        self._make()
        self._take_lock()
        try:
            return self._open(profile)
        except BaseException:
            self.close()
            raise

    def _open(self, profile: str | None) -> Identity:
        identity = self.identity()
        if identity is None:
            identity = self._create(profile or "standard")
        if profile is not None and profile != identity.profile:
            raise SetupError(
                f"{self.path} was made with --profile {identity.profile}",
                "A cluster keeps its profile. Use another --dir.",
            )
        for directory in (self.data, self.log):
            directory.mkdir(mode=0o700, exist_ok=True)
        return identity

    def close(self) -> None:
        """Give the lock back."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / "run.json").unlink()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def identity(self) -> Identity | None:
        """meridian.json, or None when there is none yet. Raises SetupError if it is unusable."""
        path = self.path / "meridian.json"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            version = msgspec.json.decode(raw)["format"]
            if version != FORMAT_VERSION:
                raise SetupError(
                    f"{self.path} has format version {version}; this Meridian knows "
                    f"version {FORMAT_VERSION}",
                    "Use the version of Meridian that made it.",
                )
            return msgspec.json.decode(raw, type=Identity)
        except (msgspec.DecodeError, KeyError, TypeError):
            raise SetupError(f"{path} is damaged", "Restore it from a copy.") from None

    def password(self) -> str:
        """The password of `admin`, made on first use."""
        path = self.path / "password"
        try:
            found = path.read_text().strip()
        except FileNotFoundError:
            found = ""
        if not found:
            found = secrets.token_urlsafe(PASSWORD_BYTES)
            write_private(path, found + "\n")
        if not found.isascii():
            raise SetupError(f"{path} holds other than ASCII characters", "Delete the file.")
        return found

    def announce(self, running: Running) -> None:
        """Write run.json for the other commands. Raises SetupError (the disk is full)."""
        path = self.path / "run.json"
        try:
            write_private(path, msgspec.json.encode(running).decode())
        except OSError as error:
            raise SetupError(f"{path} cannot be written: {error.strerror}") from error

    def running(self) -> Running | None:
        """run.json, if its supervisor lives."""
        try:
            found = msgspec.json.decode((self.path / "run.json").read_bytes(), type=Running)
        except (OSError, msgspec.DecodeError):
            return None
        return found if self.is_locked() else None

    def is_locked(self) -> bool:
        """Does a supervisor hold the lock?"""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _make(self) -> None:
        """Others may pass through the directory (PostgreSQL's user must), but not list it."""
        if len(os.fsencode(self.path)) > PATH_BYTES:
            raise SetupError(
                f"the path of the directory is longer than {PATH_BYTES} bytes",
                "Name one with a shorter path with --dir.",
            )
        try:
            self.path.mkdir(parents=True, mode=0o711 if os.geteuid() == 0 else 0o700)
        except FileExistsError:
            if not self.path.is_dir():
                raise SetupError(f"{self.path} is not a directory", "Name another --dir.") from None
            known = {"meridian.json", "lock"}
            present = {entry.name for entry in self.path.iterdir()}
            if present and not present & known:
                raise SetupError(
                    f"{self.path} is not empty and not a Meridian directory",
                    "Name an empty or new directory with --dir.",
                ) from None
        except OSError as error:
            raise SetupError(f"{self.path} cannot be made: {error.strerror}") from None

    def _take_lock(self) -> None:
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SetupError(f"{self.path} cannot be used: {error.strerror}") from None
        if not _lock_soon(descriptor):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise SetupError(
                f"{self.path} is in use by process {holder or 'unknown'}",
                "Stop that one first, or name another directory with --dir.",
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def _create(self, profile: str) -> Identity:
        identity = Identity(FORMAT_VERSION, secrets.token_hex(6), profile)
        write_private(self.path / "meridian.json", msgspec.json.encode(identity).decode() + "\n")
        return identity


def _lock_soon(descriptor: int) -> bool:
    """Lock within half a second: `is_locked` of another command holds it for an instant."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
    return False


def write_private(path: Path, text: str) -> None:
    """Replace `path` durably by `text`, readable by its owner only."""
    aside = path.with_name(path.name + ".new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    aside.rename(path)
