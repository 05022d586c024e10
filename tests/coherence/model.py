"""What a database must hold after a storm: the acknowledged commits, applied to a few dictionaries.

Every effect commutes with every other one that can commit together with it (numbers are never used
twice, amounts are added), so the order of commits need not be known. A transaction's ledger row
tells whether it committed where its outcome was lost.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import psycopg

ACCOUNTS = 200
BALANCE = 1_000
REGIONS = 5
PARENTS_FIRST = 100

SCHEMA = f"""
CREATE TYPE mood AS ENUM ('m0');
CREATE FUNCTION storm_version() RETURNS int LANGUAGE sql STABLE AS 'SELECT 0';
CREATE FUNCTION storm_trigger() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN NEW.amount := NEW.amount; RETURN NEW; END';
CREATE TABLE region (id int PRIMARY KEY);
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, region int NOT NULL);
CREATE TABLE parent (id int PRIMARY KEY, name text UNIQUE NOT NULL, touched int NOT NULL);
CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent ON DELETE CASCADE,
  code int NOT NULL UNIQUE, amount int NOT NULL, mood mood NOT NULL, version int NOT NULL);
CREATE INDEX child_parent ON child (parent);
CREATE TABLE ledger (writer int, seq int, what text NOT NULL, PRIMARY KEY (writer, seq));
INSERT INTO region SELECT g FROM generate_series(1, {REGIONS}) g;
INSERT INTO account SELECT g, {BALANCE}, g % {REGIONS} + 1 FROM generate_series(1, {ACCOUNTS}) g;
INSERT INTO parent SELECT -g, 'first ' || g, 0 FROM generate_series(1, {PARENTS_FIRST}) g;
CREATE ROLE storm_reader;
"""


@dataclasses.dataclass
class Effect:
    """What one transaction does if it commits."""

    what: str = ""
    moved: tuple[int, int, int] | None = None
    """From account, to account, amount."""
    parent_born: tuple[int, str] | None = None
    parent_gone: int | None = None
    touched: int | None = None
    child_born: tuple[int, int, int, int, str, int] | None = None
    """id, parent, code, amount, mood, version."""
    child_gone: int | None = None
    added: tuple[int, int] | None = None
    """Child, amount."""
    versions: tuple[int, int] = (0, 0)
    """What storm_version() may have said: in force before BEGIN, asked for before COMMIT ended."""


class Model:
    """The state that the effects of committed transactions make."""

    def __init__(self) -> None:
        self.accounts = dict.fromkeys(range(1, ACCOUNTS + 1), BALANCE)
        self.parents = {-g: [f"first {g}", 0] for g in range(1, PARENTS_FIRST + 1)}
        self.children: dict[int, list[Any]] = {}
        self.wrong: list[str] = []

    def apply(self, effects: list[Effect]) -> None:
        """All of them; births before what happened to those born, ends last."""
        for effect in effects:
            if effect.moved:
                source, target, amount = effect.moved
                self.accounts[source] -= amount
                self.accounts[target] += amount
            if effect.parent_born:
                number, name = effect.parent_born
                self.parents[number] = [name, 0]
            if effect.child_born:
                number, *rest = effect.child_born
                self.children[number] = rest
                low, high = effect.versions
                if not low <= effect.child_born[5] <= high:
                    self.wrong.append(
                        f"child {number} has version {effect.child_born[5]}, the"
                        f" function said {low} to {high} then"
                    )
        for effect in effects:
            if effect.touched is not None:
                self.parents[effect.touched][1] += 1
            if effect.added:
                number, amount = effect.added
                self.children[number][2] += amount
        for effect in effects:
            if effect.child_gone is not None:
                self._end(self.children, effect.child_gone)
        for effect in effects:
            if effect.parent_gone is not None:
                self._end(self.parents, effect.parent_gone)
        self.children = {
            number: child for number, child in self.children.items() if child[0] in self.parents
        }

    def _end(self, things: dict[int, Any], number: int) -> None:
        if things.pop(number, None) is None:
            self.wrong.append(f"{number} was deleted twice, or never born")

    def compare(self, session: psycopg.Connection) -> list[str]:
        """Every difference between the database and the model."""
        found = list(self.wrong)
        for name, expected, sql in (
            ("account", self.accounts, "SELECT id, balance FROM account"),
            ("parent", self.parents, "SELECT id, name, touched FROM parent"),
            (
                "child",
                self.children,
                "SELECT id, parent, code, amount, mood::text, version FROM child",
            ),
        ):
            actual = {row[0]: list(row[1:]) for row in session.execute(sql.encode())}
            wanted = {k: v if isinstance(v, list) else [v] for k, v in expected.items()}
            found += [f"{name} {k}: lost" for k in wanted.keys() - actual.keys()]
            found += [f"{name} {k}: nobody wrote it" for k in actual.keys() - wanted.keys()]
            found += [
                f"{name} {k}: is {actual[k]}, should be {wanted[k]}"
                for k in wanted.keys() & actual.keys()
                if wanted[k] != actual[k]
            ]
        return found


INVARIANTS = {
    "money": f"SELECT sum(balance) = {ACCOUNTS * BALANCE} FROM account",
    "orphans": "SELECT count(*) = 0 FROM child c WHERE NOT EXISTS"
    " (SELECT FROM parent p WHERE p.id = c.parent)",
    "duplicate codes": "SELECT count(*) = count(DISTINCT code) FROM child",
    "duplicate names": "SELECT count(*) = count(DISTINCT name) FROM parent",
    "index and table": "SELECT (SELECT count(*) FROM child) ="
    " (SELECT count(*) FROM child WHERE parent > -1000000)",
    "regions": f"SELECT count(*) = {ACCOUNTS} FROM account JOIN region ON region.id = region",
}
"""Each is true in every snapshot, whatever happens."""
