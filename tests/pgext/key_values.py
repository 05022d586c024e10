"""Random values of every type that can be a key, as SQL literals; edges are frequent."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from random import Random

PRECISE = "0123456789"
WORDS = ["", "a", "b", "ab", "a ", "a  ", " a", "é", "ß", "日本", "~", "\x01", "\x7f", "\U0001f600"]


def quoted(text: str, name: str) -> str:
    return "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + f"'::{name}"


def integer(bits: int, name: str, low: int | None = None) -> Callable[[Random], str]:
    lowest = -(1 << (bits - 1)) if low is None else low
    highest = (1 << (bits - 1)) - 1 if low is None else (1 << bits) - 1

    def make(rng: Random) -> str:
        value = rng.choice(
            [
                rng.randint(lowest, highest),
                rng.randint(0, 3),
                lowest,
                highest,
                max(lowest, min(highest, rng.choice([-1, 1]) << rng.randint(0, bits - 1))),
            ]
        )
        return f"'{value}'::{name}"

    return make


def float8(rng: Random) -> str:
    special = [
        "NaN",
        "Infinity",
        "-Infinity",
        "-0",
        "0",
        "5e-324",
        "-5e-324",
        "1.7976931348623157e308",
        "1",
        "-1",
    ]
    if rng.random() < 0.3:
        return f"'{rng.choice(special)}'::float8"
    if rng.random() < 0.5:
        return f"'{rng.uniform(-4, 4)!r}'::float8"
    value = struct.unpack("<d", rng.randbytes(8))[0]
    return f"'{value!r}'::float8" if math.isfinite(value) else "'NaN'::float8"


def float4(rng: Random) -> str:
    special = ["NaN", "Infinity", "-Infinity", "-0", "0", "1e-45", "3.4028235e38", "0.1"]
    if rng.random() < 0.4:
        return f"'{rng.choice(special)}'::float4"
    value = struct.unpack("<f", rng.randbytes(4))[0]
    return f"'{value!r}'::float4" if math.isfinite(value) else "'NaN'::float4"


def numeric(rng: Random) -> str:
    roll = rng.random()
    if roll < 0.15:
        return f"'{rng.choice(['NaN', 'Infinity', '-Infinity', '0', '0.000', '-0.0'])}'::numeric"
    sign = rng.choice(["", "-"])
    if roll < 0.4:
        zeros = "0" * rng.randint(0, 4)
        return (
            f"'{sign}{rng.choice(['1', '10', '0.1', '9999', '10000', '0.0001'])}'::numeric"
            if rng.random() < 0.5
            else f"'{sign}{rng.randint(0, 30)}.{zeros}'::numeric"
        )
    if roll < 0.5:
        return f"'{sign}{rng.randint(1, 99)}e{rng.randint(-600, 600)}'::numeric"
    if roll < 0.55:
        return f"'{sign}1e{rng.choice([131071, 130000, -16382, -16383, 404, -404, 408])}'::numeric"
    whole = "".join(rng.choices(PRECISE, k=rng.randint(1, 12)))
    part = "".join(rng.choices(PRECISE, k=rng.choice([1, 4, 8, 70, 300])))
    return f"'{sign}{whole}.{part}'::numeric"


def text(name: str) -> Callable[[Random], str]:
    def make(rng: Random) -> str:
        words = "".join(rng.choice(WORDS) for _ in range(rng.randint(0, 3)))
        if rng.random() < 0.02:
            words = rng.choice("xyz") * 3000 + words
        return quoted(words, name)

    return make


def bytea(rng: Random) -> str:
    if rng.random() < 0.6:
        data = bytes(rng.choice([0, 0, 1, 255]) for _ in range(rng.randint(0, 5)))
    else:
        data = rng.randbytes(rng.randint(0, 12))
    return f"'\\x{data.hex()}'::bytea"


def date(rng: Random) -> str:
    if rng.random() < 0.2:
        choices = ["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31", "2000-01-01"]
        return f"'{rng.choice(choices)}'::date"
    return f"('2000-01-01'::date + {rng.randint(-9000, 9000)})"


def timestamp(name: str) -> Callable[[Random], str]:
    def make(rng: Random) -> str:
        if rng.random() < 0.2:
            choices = ["infinity", "-infinity", "4713-01-01 BC", "294276-12-31", "2000-01-01"]
            return f"'{rng.choice(choices)}'::{name}"
        days, us = rng.randint(-9000, 9000), rng.randint(0, 10**6)
        return f"('2000-01-01'::{name} + '{days} days {us} us'::interval)"

    return make


def time(rng: Random) -> str:
    clock = f"{rng.randint(0, 23):02}:{rng.choice([0, 59]):02}:00.{rng.randint(0, 999999):06}"
    return f"'{rng.choice([clock, '24:00:00', '00:00:00'])}'::time"


def timetz(rng: Random) -> str:
    zone = rng.choice(["+00", "-15:59:59", "+15:59:59", "+01", "-01", "+05:30"])
    return f"'{rng.randint(0, 4):02}:{rng.choice(['00', '30'])}:00{zone}'::timetz"


def interval(rng: Random) -> str:
    special = [
        "1 mon",
        "30 days",
        "720:00:00",
        "1 day",
        "24:00:00",
        "-1 day",
        "0",
        "infinity",
        "-infinity",
        "1 mon -30 days",
        "178000000 years",
        "-178000000 years",
        "2147483647 days",
        "-2147483648 days",
        "9223372036854775807 us",
    ]
    if rng.random() < 0.5:
        return f"'{rng.choice(special)}'::interval"
    months, days, us = rng.randint(-20, 20), rng.randint(-90, 90), rng.randint(-(10**13), 10**13)
    return f"'{months} mons {days} days {us} us'::interval"


def inet(rng: Random) -> str:
    if rng.random() < 0.3:
        host = rng.choice(["::", "::1", "fe80::1", "ffff::", "fe80::"])
        return f"'{host}/{rng.choice([0, 1, 64, 127, 128])}'::inet"
    host = ".".join(str(rng.choice([0, 1, 10, 128, 255])) for _ in range(4))
    return f"'{host}/{rng.choice([0, 1, 8, 9, 24, 31, 32])}'::inet"


def cidr(rng: Random) -> str:
    return f"network({inet(rng)})"


def uuid(rng: Random) -> str:
    data = (
        rng.randbytes(16) if rng.random() < 0.7 else bytes(rng.choice([0, 255]) for _ in range(16))
    )
    return f"'{data.hex()}'::uuid"


def mac(size: int, name: str) -> Callable[[Random], str]:
    return lambda rng: f"'{bytes(rng.choice([0, 1, 128, 255]) for _ in range(size)).hex()}'::{name}"


def char(rng: Random) -> str:
    return (
        f"'{rng.choice(['', 'a', 'A', chr(1), '~'])}'::\"char\""
        if rng.random() < 0.8
        else f'({rng.randint(-128, 127)})::"char"'
    )


def boolean(rng: Random) -> str:
    return rng.choice(["true", "false"])


def lsn(rng: Random) -> str:
    return f"'{rng.choice([0, 1, 2**32 - 1]):X}/{rng.randint(0, 2**32 - 1):X}'::pg_lsn"


MAKERS: dict[str, Callable[[Random], str]] = {
    "int2": integer(16, "int2"),
    "int4": integer(32, "int4"),
    "int8": integer(64, "int8"),
    "oid": integer(32, "oid", 0),
    "regclass": lambda rng: f"{rng.randint(0, 2**32 - 1)}::oid::regclass",
    "xid8": integer(64, "xid8", 0),
    "money": lambda rng: f"({rng.randint(-(10**6), 10**6)})::money",
    "float4": float4,
    "float8": float8,
    "numeric": numeric,
    "text": text("text"),
    "varchar": text("varchar"),
    "name": text("name"),
    "bpchar": text("char(9)"),
    "bytea": bytea,
    "uuid": uuid,
    "date": date,
    "time": time,
    "timetz": timetz,
    "timestamp": timestamp("timestamp"),
    "timestamptz": timestamp("timestamptz"),
    "interval": interval,
    "bool": boolean,
    "inet": inet,
    "cidr": cidr,
    '"char"': char,
    "macaddr": mac(6, "macaddr"),
    "macaddr8": mac(8, "macaddr8"),
    "pg_lsn": lsn,
}
OPAQUE: dict[str, list[str]] = {
    "json": ["'{\"a\": [1, 2]}'::json"],
    "jsonb": ["'{\"a\": [1, 2.50]}'::jsonb", "'null'::jsonb"],
    "int4[]": ["'{1,NULL,3}'::int4[]", "'{}'::int4[]", "'[5:6]={1,2}'::int4[]"],
    "text[]": ["'{a,\"b c\",NULL}'::text[]"],
    "int4range": ["'[1,5)'::int4range", "'empty'::int4range"],
    "tsvector": ["'a b:3'::tsvector"],
    "point": ["'(1,2)'::point"],
    "box": ["'(1,2),(3,4)'::box"],
    "bit varying": ["'10101'::varbit", "''::varbit"],
    "xid": ["'7'::xid"],
    "tid": ["'(4,2)'::tid"],
}
