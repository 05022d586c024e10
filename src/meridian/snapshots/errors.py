"""What can be wrong with a snapshot."""

from __future__ import annotations


class SnapshotUnusable(Exception):
    """It is not whole, of an unknown format, or damaged: another one must do; `args[0]`: why."""
