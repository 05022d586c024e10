"""Which snapshots stay, what may go, and how far the journals may be trimmed behind them (pure)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meridian.journal.core import Position
from meridian.snapshots.manifest import MANIFEST_NAME, Manifest
from meridian.snapshots.objects import Entry

KEEP = 2
"""Whole snapshots of a shard: the newest, and one more should its objects turn out damaged."""
ORPHAN_AGE_S = 24 * 3600
"""Parts without a manifest that are younger may belong to a snapshot that is being written."""


def removable(
    entries: Sequence[Entry],
    now_s: float,
    keep: int = KEEP,
    readable: Callable[[str], bool] = lambda name: True,
) -> list[str]:
    """Objects of one shard to delete, in this order.

    `readable`: whether the journals still hold what follows the snapshot of this directory. One of
    a replica that lagged may come after they were trimmed behind another, with a higher tau even
    (a heartbeat moves it): it must not take that one's place.
    A manifest goes before its parts, so that a half deleted snapshot is none.
    """
    assert keep >= 1
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name.rpartition("/")[0], []).append(entry)
    whole = [name for name in sorted(by_name) if _manifest(by_name[name])]
    useful = [name for name in whole if readable(name)]
    kept = useful[-keep:] or whole
    names: list[str] = []
    for name in (one for one in whole if one not in kept):
        names += _manifest(by_name[name]) + _parts(by_name[name])
    for name in sorted(by_name):
        youngest = max(entry.modified_s for entry in by_name[name])
        if name not in whole and youngest < now_s - ORPHAN_AGE_S:
            names += _parts(by_name[name])
    return names


def _manifest(entries: Sequence[Entry]) -> list[str]:
    return [entry.name for entry in entries if entry.name.endswith(f"/{MANIFEST_NAME}")]


def _parts(entries: Sequence[Entry]) -> list[str]:
    return [entry.name for entry in entries if not entry.name.endswith(f"/{MANIFEST_NAME}")]


def trim_positions(kept: Sequence[Sequence[Manifest]]) -> dict[int, Position]:
    """Per journal the position through which no kept snapshot of any shard needs it (6.7).

    `kept`: for each shard its whole snapshots. A shard without one needs everything; so does a
    snapshot that does not know a journal. The conflict window has its own claim, beside this.
    """
    if not kept or not all(kept):
        return {}
    manifests = [manifest for shard in kept for manifest in shard]
    journals = set(manifests[0].starts).intersection(*(m.starts for m in manifests[1:]))
    return {
        journal: min((m.starts[journal] for m in manifests), key=lambda start: start.n)
        for journal in sorted(journals)
    }
