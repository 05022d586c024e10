"""Filters of docs/formats.md as SQL text and parameters, with SQL's three-valued logic.

Values are always parameters, never text. A filter that cannot be proved to mean the same in SQLite
is refused with BadRequest.
"""

from __future__ import annotations

from array import array
from typing import Any, Protocol

import apsw

from meridian.storage.errors import BadRequest
from meridian.storage.relations import Column
from meridian.wire.ops import CLASS_BYTES, CLASS_INTEGER, CLASS_OPAQUE, CLASS_ORDERED

AND, OR, NOT, IS_NULL, IS_NOT_NULL, COMPARE, IN = range(1, 8)
COMPARISONS = {1: "<", 2: "<=", 3: "=", 4: ">=", 5: ">", 6: "<>"}

DEPTH_MAX = 100
"""Nesting of a filter; SQLite's own limit is 1,000 and a level may cost several."""
VALUES_MAX = 10_000
"""Parameters of one statement; longer lists of integers and bytes go as one array."""
INLINE_LIST = 64
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


class Parameters:
    """Values of a statement; `add` returns the placeholder."""

    def __init__(self, tau: int) -> None:
        self.values: list[Any] = [tau]

    def add(self, value: Any) -> str:
        """Bind one value."""
        if len(self.values) > VALUES_MAX:
            raise BadRequest("the filter has too many values")
        self.values.append(value)
        return f"?{len(self.values)}"


class Resolve(Protocol):
    """Gives column and SQL expression of an attnum; raises BadRequest if there is none."""

    def __call__(self, attnum: int) -> tuple[Column, str]: ...

    def raw(self, column: Column) -> str: ...


def successor(prefix: bytes) -> bytes | None:
    """The smallest string above every string that begins with `prefix`; None: there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,)) if stripped else None


def compile_filter(tree: Any, resolve: Resolve, parameters: Parameters, depth: int = 0) -> str:
    """SQL of a filter tree. Raises BadRequest on anything docs/formats.md does not allow."""
    if depth > DEPTH_MAX:
        raise BadRequest("the filter is nested too deeply")
    if not isinstance(tree, (list, tuple)) or not tree:
        raise BadRequest("a filter is a non-empty array")
    op, *rest = tree
    if op in (AND, OR):
        parts = [compile_filter(part, resolve, parameters, depth + 1) for part in rest]
        return _balanced(parts, "AND" if op == AND else "OR")
    if op == NOT and len(rest) == 1:
        return f"(NOT {compile_filter(rest[0], resolve, parameters, depth + 1)})"
    if op in (IS_NULL, IS_NOT_NULL) and len(rest) == 1:
        column, _ = resolve(_attnum(rest[0]))
        # The stored marker of a big value is not NULL either: no need to look the value up.
        return f"({resolve.raw(column)} IS {'NOT ' if op == IS_NOT_NULL else ''}NULL)"
    if op == COMPARE and len(rest) == 3:
        return _compare(*resolve(_attnum(rest[0])), rest[1], rest[2], parameters)
    if op == IN and len(rest) == 2 and isinstance(rest[1], (list, tuple)):
        return _in(*resolve(_attnum(rest[0])), list(rest[1]), parameters)
    raise BadRequest(f"unknown filter {op!r} with {len(rest)} operands")


def _attnum(value: Any) -> int:
    if type(value) is not int:
        raise BadRequest("a column is named by its number")
    return value


def _balanced(parts: list[str], word: str) -> str:
    """Join with logarithmic depth: SQLite parses a chain as a deep tree."""
    if not parts:
        return "1" if word == "AND" else "0"
    while len(parts) > 1:
        pairs = [f"({a} {word} {b})" for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    return parts[0]


def check_value(column: Column, value: Any) -> Any:
    """The value if it fits the column's class. Raises BadRequest."""
    if value is None:
        return None
    if column.column_class == CLASS_INTEGER:
        if isinstance(value, int) and INT64_MIN <= value <= INT64_MAX:
            return int(value)
        raise BadRequest("an integer column is compared with an int64")
    if column.column_class == CLASS_OPAQUE:
        raise BadRequest("an opaque column can only be tested for NULL")
    if not isinstance(value, bytes):
        raise BadRequest("this column is compared with bytes")
    if column.column_class == CLASS_ORDERED and not value:
        raise BadRequest("order bytes are never empty")
    return value


def _compare(column: Column, sql: str, cmp: Any, value: Any, parameters: Parameters) -> str:
    word = COMPARISONS.get(cmp)
    if word is None:
        raise BadRequest(f"unknown comparison {cmp!r}")
    value = check_value(column, value)
    if value is None:
        return "NULL"
    if column.column_class == CLASS_ORDERED:
        return _compare_ordered(sql, word, value, parameters)
    return f"({sql} {word} {parameters.add(value)})"


def _compare_ordered(sql: str, word: str, value: bytes, parameters: Parameters) -> str:
    """Order bytes are prefix-free: the values equal to v are the strings that begin with v."""
    above = successor(value)
    conditions = []
    if word in ("<", ">=", "=", "<>"):
        side = "<" if word in ("<", "<>") else ">="
        conditions.append(f"({sql} {side} {parameters.add(value)})")
    if word in ("<=", ">", "=", "<>"):
        side = "<" if word in ("<=", "=") else ">="
        # No string lies above the prefix ff..ff (NaN); NULL must stay NULL all the same.
        never = f"({sql} >= x'')" if side == "<" else f"({sql} < x'')"
        conditions.append(f"({sql} {side} {parameters.add(above)})" if above else never)
    return _balanced(conditions, "OR" if word == "<>" else "AND")


def _in(column: Column, sql: str, values: list[Any], parameters: Parameters) -> str:
    checked = [check_value(column, value) for value in values]
    present = [value for value in checked if value is not None]
    parts: list[str] = []
    if column.column_class == CLASS_OPAQUE:
        raise BadRequest("an opaque column can only be tested for NULL")
    if column.column_class == CLASS_ORDERED:
        parts = [_compare_ordered(sql, "=", value, parameters) for value in present]
    elif len(present) > INLINE_LIST:
        values_sql = f"carray({parameters.add(_array(column, present))})"
        parts = [f"({sql} IN (SELECT value FROM {values_sql}))"]
    elif present:
        parts = [f"({sql} IN ({', '.join(map(parameters.add, present))}))"]
    if len(present) < len(checked):
        parts.append("NULL")
    return _balanced(parts, "OR")


def _array(column: Column, values: list[Any]) -> Any:
    if column.column_class == CLASS_INTEGER:
        return apsw.carray(array("q", values))
    assert column.column_class == CLASS_BYTES
    return apsw.carray(tuple(values))
