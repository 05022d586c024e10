"""Random literals of every type the programs use, edges included."""

from __future__ import annotations

from random import Random

SMALL_WORDS = ["", "a", "A", "b", "ab", "a b", "é", "ß", "zz", "%", "_", "日本", "a'b", "\\", "~"]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _integer(rng: Random, bits: int) -> str:
    edge = 1 << (bits - 1)
    if rng.random() < 0.05:
        return f"({rng.choice([-edge, edge - 1, -edge + 1])})"
    return f"({rng.randint(-20, 20)})"


def _float(rng: Random, name: str) -> str:
    if rng.random() < 0.15:
        special = rng.choice(["NaN", "Infinity", "-Infinity", "-0", "0", "1e-30", "-1e30"])
        return f"'{special}'::{name}"
    return f"({rng.randint(-40, 40) / 4})::{name}"


def _numeric(rng: Random) -> str:
    if rng.random() < 0.1:
        return f"'{rng.choice(['NaN', 'Infinity', '-Infinity'])}'::numeric"
    if rng.random() < 0.1:
        return rng.choice(["1.0", "1.00", "1", "0.000", "-0.0", "1e20", "123456789.987654321"])
    return f"({rng.randint(-300, 300)}.{rng.choice(['0', '5', '25', '50', '001'])})"


def _text(rng: Random) -> str:
    if rng.random() < 0.02:
        return f"repeat({_quote(rng.choice('xyz'))}, {rng.choice([1500, 2047, 2048, 2049, 2600])})"
    return _quote(rng.choice(SMALL_WORDS))


def _interval(rng: Random) -> str:
    choices = ["1 day", "24 hours", "1 mon", "30 days", "-1 day", "0", "1 year 2 mons", "3 sec"]
    return f"interval '{rng.choice(choices)}'"


def _timestamp(rng: Random, name: str) -> str:
    if rng.random() < 0.08:
        return f"'{rng.choice(['infinity', '-infinity'])}'::{name}"
    day, hour = rng.randint(1, 28), rng.randint(0, 23)
    return f"'2024-0{rng.randint(1, 9)}-{day:02} {hour:02}:00:0{rng.randint(0, 9)}'::{name}"


def _json(rng: Random, name: str) -> str:
    values = ['{"a": 1}', "[1, 2]", "null", '"x"', '{"b": {"c": [true]}}', "3.5"]
    return f"'{rng.choice(values)}'::{name}"


def literal(rng: Random, type_name: str, null_chance: float = 0.1) -> str:
    """A random SQL literal of `type_name` (an entry of TYPES), NULL with `null_chance`."""
    if rng.random() < null_chance:
        return "NULL"
    return _MAKERS[type_name](rng)


_MAKERS = {
    "smallint": lambda r: _integer(r, 16) + "::smallint",
    "integer": lambda r: _integer(r, 32),
    "bigint": lambda r: _integer(r, 64),
    "boolean": lambda r: r.choice(["true", "false"]),
    "real": lambda r: _float(r, "real"),
    "double precision": lambda r: _float(r, "double precision"),
    "numeric": _numeric,
    "numeric(12,3)": lambda r: f"{r.randint(-999, 999)}.{r.randint(0, 999):03}",
    "text": _text,
    "varchar(12)": lambda r: _quote(r.choice(SMALL_WORDS)),
    "char(4)": lambda r: _quote(r.choice(["", "a", "a ", "b", "ab", "zz"])),
    "bytea": lambda r: rf"'\x{r.choice(['', '00', '0000', '00ff', 'ff', 'ff00', 'abcd'])}'::bytea",
    "uuid": lambda r: (
        f"'0000000{r.randint(0, 9)}-0000-4000-8000-00000000000{r.randint(0, 3)}'::uuid"
    ),
    "date": lambda r: f"'2024-0{r.randint(1, 9)}-{r.randint(1, 28):02}'::date",
    "time": lambda r: f"'{r.randint(0, 23):02}:0{r.randint(0, 9)}'::time",
    "timetz": lambda r: f"'{r.randint(0, 23):02}:00{r.choice(['+00', '+02', '-05'])}'::timetz",
    "timestamp": lambda r: _timestamp(r, "timestamp"),
    "timestamptz": lambda r: _timestamp(r, "timestamptz"),
    "interval": _interval,
    "json": lambda r: _json(r, "json"),
    "jsonb": lambda r: _json(r, "jsonb"),
    "integer[]": lambda r: f"'{r.choice(['{}', '{1,2}', '{NULL}', '{3}'])}'::integer[]",
    "text[]": lambda r: f"'{r.choice(['{}', '{a,b}', '{NULL,x}'])}'::text[]",
}

TYPES = list(_MAKERS)
KEY_TYPES = [t for t in TYPES if t not in {"json", "jsonb", "integer[]", "text[]"}]
NUMBER_TYPES = ["smallint", "integer", "bigint", "numeric", "numeric(12,3)"]
