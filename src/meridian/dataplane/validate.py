"""Do the relations and columns of a write set exist? Checked before the journal sees it.

A record that storage could not apply would stop every replica for good, so a client's bug must
end here. Races with concurrent DDL are the adjudicator's business (Code.CATALOG).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from meridian.errors import Kind, MeridianError
from meridian.wire.ops import Add, Alter, Big, Create, Delete, Drop, Op, Put

Columns = Container[int]
Created = dict[int, dict[int, int]]
"""Relations made or extended by earlier chunks of the same write set: sid -> attnum -> class."""


def created_by(ops: Sequence[Op], created: Created) -> None:
    """Adds the relations and columns that a chunk makes."""
    for op in ops:
        if isinstance(op, Create):
            columns = dict(op.columns)
            columns.setdefault(0, 0)
            created[op.sid] = columns
        elif isinstance(op, Add):
            created.setdefault(op.sid, {})[op.attnum] = op.column_class


def check_relations(
    ops: Sequence[Op], known: Callable[[int], Columns | None], created: Created
) -> None:
    """Raises SCHEMA_CHANGED for unknown relations and columns, BAD_WRITE_SET for a taken id."""
    for op in ops:
        if isinstance(op, Create):
            if known(op.sid) is not None:
                raise MeridianError(Kind.BAD_WRITE_SET, why=f"storage id {op.sid} is taken")
            continue
        if not isinstance(op, (Put, Delete, Big, Add, Drop, Alter)):
            continue
        here = created.get(op.sid, {})
        columns = known(op.sid)
        if columns is None and op.sid not in created:
            raise _stale(f"storage id {op.sid} does not exist")
        if isinstance(op, Put):
            attnums: Sequence[int] = op.attnums
        elif isinstance(op, Big):
            attnums = (op.attnum,)
        else:
            continue
        for attnum in attnums:
            if attnum not in here and (columns is None or attnum not in columns):
                raise _stale(f"storage id {op.sid} has no column {attnum}")


def _stale(why: str) -> MeridianError:
    return MeridianError(Kind.SCHEMA_CHANGED, detail=why)
