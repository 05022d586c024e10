"""What every instance of a machine runs: PostgreSQL, the extension, and the user they run as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from meridian.instance import binaries, extension
from meridian.instance.users import PgUser, pg_user


@dataclass(frozen=True)
class Software:
    """Found once, shared by the instances of a cluster."""

    user: PgUser
    install: binaries.PgInstall
    extension: extension.Extension


def find(report: Callable[[str], None], user: PgUser | None = None) -> Software:
    """Compiles the extension where needed (seconds). Raises SetupError."""
    user = user or pg_user()
    install = binaries.for_user(binaries.find(), user)
    return Software(user, install, extension.compiled(install, report))
