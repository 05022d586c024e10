"""`meridian dev --rebuild`: throw the caches away, once it is certain that nothing else goes.

Caches are the storage files and every PostgreSQL directory of the cluster. Journal, checkpoints,
metadata, password and identity are never touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from meridian.dataplane.rebuild import CannotRebuild, Sources, discard_storage
from meridian.embedded import data_plane, places
from meridian.embedded.directory import ClusterDirectory, Identity
from meridian.errors import MeridianError
from meridian.instance import processes
from meridian.instance.errors import SetupError
from meridian.instance.instance import STAMP


def discard(
    directory: ClusterDirectory,
    identity: Identity,
    report: Callable[[str], None],
    stop: Callable[[], bool],
) -> None:
    """Delete the caches of a cluster whose lock is ours; afterwards an ordinary start.

    Ends what a killed supervisor left. Raises SetupError, before anything was deleted, when the
    rebuild could lose something; InterruptedError once `stop()`.
    """
    data_plane.kill_leftovers(directory)
    instances = places.postgres_instances(directory.path, identity.cluster)
    for data in instances:
        processes.kill_leftovers(data)
    try:
        sources = discard_storage(directory.data, report, stop)
        for data in instances:
            _remove_instance(data)
    except CannotRebuild as refusal:
        raise SetupError(f"cannot rebuild: {refusal}", refusal.hint) from None
    except MeridianError as error:
        hint = error.kind.value.hint or "Nothing was deleted."
        raise SetupError(f"cannot rebuild: {error}", hint) from None
    except InterruptedError:
        raise
    except OSError as error:
        raise SetupError(f"the caches cannot be deleted: {error}") from None
    report(f"rebuild: {_deleted(len(instances))} deleted; {_plan(sources)}")


def _remove_instance(data: Path) -> None:
    """The stamp goes first: half a directory must never look like a whole one."""
    if data.is_symlink() or not data.is_dir():
        data.unlink()
        return
    (data / STAMP).unlink(missing_ok=True)
    shutil.rmtree(data)


def _deleted(count: int) -> str:
    directories = "directory" if count == 1 else "directories"
    return f"storage and {count} PostgreSQL {directories}"


def _plan(sources: Sources | None) -> str:
    if sources is None:
        return "there is no journal yet"
    journal = f"{sources.records} journal records ({sources.size_bytes >> 20} MiB)"
    if sources.checkpoint_n == 0:
        return journal
    return (
        f"the checkpoint at record {sources.checkpoint_n} "
        f"({sources.checkpoint_bytes >> 20} MiB) and {journal}"
    )
