"""Keys against PostgreSQL's own operators; row values bit for bit."""

from __future__ import annotations

from random import Random
from typing import Any

import psycopg
import pytest

from meridian.wire.ops import conflict_hash
from tests.pgext.key_values import MAKERS, OPAQUE

Connection = psycopg.Connection[Any]
COUNT = 250
SUFFIXED = ("float4", "float8", "numeric")
LOSSY = {"float4", "float8", "numeric", "bpchar", "interval"}


def load(codec: Connection, type_name: str, seed: int) -> None:
    """Distinct-ish random values of one type in table v(a)."""
    rng = Random(f"{type_name} {seed}")
    values = [MAKERS[type_name](rng) for _ in range(COUNT)]
    codec.execute("DROP TABLE IF EXISTS v")
    codec.execute(f"CREATE TABLE v (a {type_name})")
    codec.execute("INSERT INTO v VALUES " + ", ".join(f"({value})" for value in values))


def faults(codec: Connection, condition: str) -> list[tuple[str, ...]]:
    """Pairs of values for which the condition does not hold."""
    return codec.execute(
        f"WITH k AS (SELECT a, meridian_debug.key(a, false, false) AS up,"
        f" meridian_debug.key(a, true, false) AS down FROM v)"
        f" SELECT x.a::text, y.a::text, x.up::text, y.up::text FROM k x, k y"
        f" WHERE ({condition}) IS NOT TRUE LIMIT 5"
    ).fetchall()


@pytest.mark.parametrize("type_name", MAKERS)
def test_key_order_is_operator_order(codec: Connection, type_name: str) -> None:
    load(codec, type_name, 1)
    assert not faults(codec, "(x.up < y.up) = (x.a < y.a) AND (x.up = y.up) = (x.a = y.a)")
    assert not faults(codec, "(x.down > y.down) = (x.a < y.a) AND (x.down = y.down) = (x.a = y.a)")


@pytest.mark.parametrize("type_name", MAKERS)
def test_no_key_is_a_prefix_of_another(codec: Connection, type_name: str) -> None:
    """Only then does a concatenation of keys compare column by column."""
    load(codec, type_name, 2)
    for key in ("up", "down"):
        assert not faults(
            codec,
            f"x.{key} = y.{key} OR substr(x.{key}, 1, length(y.{key})) <> y.{key}",
        )


@pytest.mark.parametrize("type_name", MAKERS)
def test_values_come_back(codec: Connection, type_name: str) -> None:
    load(codec, type_name, 3)
    assert not codec.execute(
        "SELECT a::text FROM v WHERE meridian_debug.value_roundtrips(a) IS NOT TRUE LIMIT 5"
    ).fetchall()
    lost = codec.execute(
        "SELECT a::text FROM v, (VALUES (true), (false)) d(down)"
        " WHERE meridian_debug.key_roundtrips(a, down) IS NOT TRUE LIMIT 5"
    ).fetchall()
    assert bool(lost) == (type_name in LOSSY)


@pytest.mark.parametrize("type_name", OPAQUE)
def test_opaque_values_come_back(codec: Connection, type_name: str) -> None:
    for value in OPAQUE[type_name]:
        row = codec.execute(
            f"SELECT meridian_debug.value_roundtrips({value}), meridian_debug.class({value})"
        ).fetchone()
        assert row == (True, 4), value


def test_large_and_compressed_values_come_back(codec: Connection) -> None:
    codec.execute("DROP TABLE IF EXISTS big")
    codec.execute("CREATE TABLE big (t text, b bytea, j jsonb, n numeric)")
    codec.execute(
        "INSERT INTO big SELECT repeat('ab', 500000), decode(repeat('00ff', 50000), 'hex'),"
        " jsonb_build_object('a', repeat('x', 100000)), repeat('7', 20000)::numeric / 3"
    )
    row = codec.execute(
        "SELECT meridian_debug.value_roundtrips(t), meridian_debug.value_roundtrips(b),"
        " meridian_debug.value_roundtrips(j), meridian_debug.value_roundtrips(n) FROM big"
    ).fetchone()
    assert row == (True, True, True, True)


def test_nulls(codec: Connection) -> None:
    row = codec.execute(
        "SELECT meridian_debug.key(NULL::int4, false, false), meridian_debug.key(1, false, false),"
        " meridian_debug.key(NULL::int4, true, true), meridian_debug.key(NULL::text, false, true),"
        " meridian_debug.value(NULL::int4), meridian_debug.value_roundtrips(NULL::text)"
    ).fetchone()
    assert row is not None
    assert row[0] == b"\x02" and row[0] > row[1] and row[2] == row[3] == b"\x00"
    assert row[4] == b"\xc0" and row[5] is True


FAMILIES = [
    ("int2", "int4"),
    ("int2", "int8"),
    ("int4", "int8"),
    ("int8", "int2"),
    ("float4", "float8"),
    ("float8", "float4"),
    ("text", "varchar"),
    ("text", "name"),
    ("name", "text"),
    ("inet", "cidr"),
]


@pytest.mark.parametrize(("column", "other"), FAMILIES)
def test_bounds_of_another_type(codec: Connection, column: str, other: str) -> None:
    rng = Random(f"{column} {other}")
    values = ", ".join(f"({MAKERS[other](rng)})" for _ in range(COUNT))
    load(codec, column, 4)
    wrong = codec.execute(
        f"WITH o(b) AS (VALUES {values}), k AS (SELECT b,"
        f" meridian_debug.key_as('{column}'::regtype, b) AS bound FROM o)"
        f" SELECT a::text, b::text FROM k, v WHERE"
        f" ((meridian_debug.key(a, false, false) < bound) = (a < b)"
        f" AND (meridian_debug.key(a, false, false) = bound) = (a = b)) IS NOT TRUE LIMIT 5"
    ).fetchall()
    assert not wrong


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("date", "now()::timestamp"),
        ("timestamp", "now()"),
        ("timestamptz", "now()::date"),
        ("int4", "1::numeric"),
        ("text", "'a'::bpchar"),
        ("bool", "1"),
        ("bytea", "'a'::text"),
        ("oid", "1::int4"),
        ("text", "'{1}'::int4[]"),
    ],
)
def test_no_bounds_across_families(codec: Connection, column: str, value: str) -> None:
    query = f"SELECT meridian_debug.key_as('{column}'::regtype, {value})"
    assert codec.execute(query).fetchone() == (None,)


def test_order_bytes_and_values_agree(codec: Connection) -> None:
    """A stored value of class ordered is its order bytes and a suffix."""
    for type_name, suffix in (("float4", 1), ("float8", 1), ("numeric", 2)):
        load(codec, type_name, 5)
        rows = codec.execute(
            "SELECT meridian_debug.order_bytes(a), meridian_debug.value(a) FROM v"
        ).fetchall()
        for order, value in rows:
            assert value[:1] in (b"\xc4", b"\xc5")
            assert value.endswith(order + value[len(value) - suffix :])
    row = codec.execute("SELECT meridian_debug.order_bytes('NaN'::float8)").fetchone()
    assert row == (b"\xff" * 8,)


def supported(codec: Connection, family: str, type_name: str, collation: str = "default") -> bool:
    row = codec.execute(
        "SELECT meridian_debug.key_supported((SELECT oid FROM pg_opfamily WHERE opfname = %s AND"
        " opfmethod = 403), %s::regtype, (SELECT oid FROM pg_collation WHERE collname = %s"
        " AND collencoding IN (-1, 6) LIMIT 1))",
        (family, type_name, collation),
    ).fetchone()
    assert row is not None
    return bool(row[0])


def test_allow_list(codec: Connection) -> None:
    assert supported(codec, "integer_ops", "int4") and supported(codec, "text_ops", "varchar")
    assert supported(codec, "text_ops", "text", "C")
    assert supported(codec, "text_ops", "text", "ucs_basic")
    assert supported(codec, "text_ops", "name", "C")
    assert supported(codec, "text_pattern_ops", "text")
    for family, type_name in [
        ("jsonb_ops", "jsonb"),
        ("array_ops", "int4[]"),
        ("range_ops", "int4range"),
        ("record_ops", "record"),
        ("enum_ops", "anyenum"),
        ("tsvector_ops", "tsvector"),
        ("bpchar_ops", "varchar"),
        ("oid_ops", "int4"),
        ("integer_ops", "oid"),
        ("bit_ops", "bit"),
    ]:
        assert not supported(codec, family, type_name), family
    row = codec.execute(
        "SELECT collname FROM pg_collation WHERE collprovider = 'c' AND collname"
        " NOT IN ('C', 'POSIX') AND collencoding IN (-1, 6)"
        " AND collcollate NOT IN ('C', 'POSIX') LIMIT 1"
    ).fetchone()
    if row is not None:
        assert not supported(codec, "text_ops", "text", row[0])
        assert supported(codec, "text_pattern_ops", "text", row[0])


def test_conflict_hash_has_a_twin(codec: Connection) -> None:
    rng = Random(7)
    for _ in range(100):
        sid, kind = rng.randint(0, 2**63 - 1), rng.randint(0, 1)
        key = rng.randbytes(rng.randint(0, 40))
        row = codec.execute(
            "SELECT meridian_debug.conflict_hash(%s, %s, %s)", (sid, kind, key)
        ).fetchone()
        assert row is not None and row[0] % 2**64 == conflict_hash(sid, kind, key)
