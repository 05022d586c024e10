"""postgresql.conf, pg_hba.conf and pg_ident.conf of an instance; rewritten at every start."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from meridian.instance.extension import Extension
from meridian.instance.template import SUPERUSER
from meridian.instance.users import PgUser

DEV_SHM_NEEDED_BYTES = 16 * 1024 * 1024
CONNECTIONS = 200


@dataclass(frozen=True)
class Settings:
    """What differs between instances.

    While `open` is false clients are told that the server is starting up, and only the private
    socket is served. It can change while the server runs (SIGHUP); nothing else can.
    """

    port: int
    socket_directory: Path
    gateway_socket: Path
    listen: str = "127.0.0.1"
    trust: bool = False
    ephemeral: bool = False
    instance_id: int = 1
    instances: int = 1
    open: bool = True
    extra: dict[str, str] = field(default_factory=dict)


def quote(value: str) -> str:
    """A value as postgresql.conf wants it."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def shared_memory_type() -> str:
    """`posix` where /dev/shm has some room, else files in the data directory."""
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return "mmap"
    return "posix" if stat.f_bavail * stat.f_frsize >= DEV_SHM_NEEDED_BYTES else "mmap"


def postgresql_conf(settings: Settings, extension: Extension) -> str:
    """The whole file."""
    values = {
        "shared_preload_libraries": "meridian",
        "extension_control_path": f"{extension.control_path}:$system",
        "dynamic_library_path": f"{extension.library_path}:$libdir",
        "meridian.gateway_socket": str(settings.gateway_socket),
        "meridian.instance_id": str(settings.instance_id),
        "meridian.instances": str(settings.instances),
        "meridian.open": "on" if settings.open else "off",
        "listen_addresses": settings.listen,
        "port": str(settings.port),
        "unix_socket_directories": str(settings.socket_directory),
        "unix_socket_permissions": "0700",
        "max_connections": str(CONNECTIONS),
        "superuser_reserved_connections": "5",
        "password_encryption": "scram-sha-256",
        "shared_buffers": "64MB",
        "dynamic_shared_memory_type": shared_memory_type(),
        "io_method": "sync",
        "max_worker_processes": "4",
        "max_parallel_workers_per_gather": "0",
        "max_parallel_maintenance_workers": "0",
        "max_locks_per_transaction": "256",
        "jit": "off",
        "fsync": "off" if settings.ephemeral else "on",
        "synchronous_commit": "on",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_wal_size": "128MB",
        "min_wal_size": "16MB",
        "autovacuum_max_workers": "1",
        "autovacuum_worker_slots": "1",
        "allow_alter_system": "off",
        # A backend may die between the journal's yes and its local commit; the supervisor then
        # starts the server anew and applies what the catalog lacks before clients are let in.
        "restart_after_crash": "off",
        "log_destination": "stderr",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_checkpoints": "off",
        "log_timezone": "UTC",
        "timezone": "UTC",
        "lc_messages": "C",
        **settings.extra,
    }
    lines = "".join(f"{name} = {quote(value)}\n" for name, value in values.items())
    return f"# Written by Meridian at every start; changes are lost.\n{lines}"


def pg_hba_conf(settings: Settings) -> str:
    """TCP with a password (or trust, if asked); our superuser by the private socket only."""
    method = "trust" if settings.trust else "scram-sha-256"
    return (
        f"local all {SUPERUSER} peer map=meridian\n"
        f"local all all {method}\n"
        f"host all {SUPERUSER} all reject\n"
        f"host all all all {method}\n"
    )


def pg_ident_conf(user: PgUser) -> str:
    """Which operating system users are our superuser: PostgreSQL's own and the supervisor's."""
    names = dict.fromkeys((user.name, "root" if os.geteuid() == 0 else user.name))
    return "".join(f"meridian {quoted_name(name)} {SUPERUSER}\n" for name in names)


def quoted_name(name: str) -> str:
    """A name as pg_ident.conf wants it."""
    return '"' + name.replace('"', '""') + '"'
