"""Which tables are to be analysed: those whose row count has changed a lot since. Pure.

The thresholds are autovacuum's (50 rows and a tenth of the table). Updates that leave the number
of rows as it is do not count: storage does not tell them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

THRESHOLD_ROWS = 50
SCALE = 0.1
LOOK_S = 60.0
REST = 9.0
"""Rest after an ANALYZE, in units of its duration; a look rests likewise."""
PAUSE_MIN_S = 1.0
RETRY_S = 600.0
"""A table whose ANALYZE failed is left alone for so long."""


@dataclass(frozen=True)
class Table:
    """One table as it is now; `name` is quoted as SQL wants it."""

    oid: int
    name: str
    rows: int


def changed(rows: int, analysed_rows: int | None) -> float:
    """How far beyond the threshold: above 1 it is due. None: it was never analysed."""
    before = max(analysed_rows or 0, 0)
    return abs(rows - before) / (THRESHOLD_ROWS + SCALE * before)


@dataclass
class Core:
    """Feed `look` with what there is, then ask `next` and tell `ended` until nothing is due."""

    due: list[Table] = field(default_factory=list)
    """The one that changed most comes last."""
    _failed: dict[int, float] = field(default_factory=dict)
    """Until when a table is left alone."""

    def look(self, now_s: float, tables: Iterable[Table], heads: Mapping[int, int]) -> None:
        """`heads`: number of rows when a table was last analysed, by its oid."""
        self._failed = {oid: until for oid, until in self._failed.items() if until > now_s}
        ranked = [
            (how_much, table.oid, table)
            for table in tables
            if (how_much := changed(table.rows, heads.get(table.oid))) > 1
            and table.oid not in self._failed
        ]
        self.due = [table for _, _, table in sorted(ranked, key=lambda entry: entry[:2])]

    def next(self) -> Table | None:
        """The table to analyse now."""
        return self.due.pop() if self.due else None

    def failed(self, now_s: float, table: Table) -> None:
        """Its ANALYZE was refused."""
        self._failed[table.oid] = now_s + RETRY_S

    @staticmethod
    def pause_s(elapsed_s: float) -> float:
        """After an ANALYZE that took so long."""
        return max(PAUSE_MIN_S, REST * elapsed_s)
