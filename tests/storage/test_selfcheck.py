"""Digests of equal copies are equal, damage of any kind is seen, and the right copy goes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from meridian.clock.tau import Interval
from meridian.storage import Engine, agreement
from meridian.storage.agreement import Agreed, Count, Counted, Due, RemoveSelf, SelfCheck, Suspect
from meridian.storage.errors import BelowHorizon, Cancelled, WrongPlace
from meridian.storage.selfcheck import digest, matches_journal
from meridian.wire import ops
from meridian.wire.ranges import ALL, END, EVERYTHING, Owned, Range, place
from tests.storage.feed import KEYS, SIDS, Feed


def build(path: Path, feed: Feed, owned: Any = ALL, through: int | None = None) -> Engine:
    engine = Engine.create(path, boot_id="boot", owned=owned)
    feed.feed(engine, through)
    return engine


@pytest.mark.parametrize("seed", range(8))
def test_copies_agree_whatever_they_did_last(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settled or not, collected or not, further ahead or not, of one range or of more."""
    monkeypatch.setattr("meridian.storage.selfcheck.ROWS", 5)
    feed = Feed(seed)
    for _ in range(120):
        feed.grow()
    cut = place(2001, KEYS[7])
    whole = build(tmp_path / "a.db", feed)
    half = build(tmp_path / "b.db", feed, [Owned(b"", cut)])
    settled = build(tmp_path / "c.db", feed)
    while settled.settle():
        pass
    settled.raise_floor(feed.tau - 5)
    while settled.collect():
        pass
    tau = feed.tau
    known = digest(whole, tau, EVERYTHING)
    assert digest(settled, tau, EVERYTHING) == known and sum(s.rows for s in known.sums) > 10
    part = Range(b"", cut)
    assert digest(half, tau, part) == digest(whole, tau, part) != known
    with pytest.raises(WrongPlace):
        digest(half, tau, EVERYTHING)
    with pytest.raises(BelowHorizon):
        digest(settled, feed.tau - 6, EVERYTHING)
    with pytest.raises(Cancelled):
        whole._db.execute("SELECT 1").fetchall()
        monkeypatch.setattr("meridian.storage.selfcheck.PROGRESS_STEPS", 10)
        digest(whole, tau, EVERYTHING, lambda: True)
    monkeypatch.setattr("meridian.storage.selfcheck.PROGRESS_STEPS", 50_000)
    attnums = {sid: list(feed.attnums[sid]) for sid in SIDS[:3]}
    for _ in range(60):
        feed.grow()
    feed.feed(whole)
    later = digest(whole, tau, EVERYTHING)
    unchanged = all(feed.attnums[sid] == attnums[sid] for sid in SIDS[:3])
    assert (later == known) == unchanged
    assert (later.schema == known.schema) == unchanged


DAMAGES = {
    "value": "UPDATE r2000 SET c1 = c1 + 1 WHERE k = ? AND te = {max}",
    "bytes": "UPDATE r2000 SET c2 = x'ee' WHERE k = ? AND te = {max}",
    "null": "UPDATE r2000 SET c1 = NULL WHERE k = ? AND te = {max}",
    "gone": "DELETE FROM r2000 WHERE k = ? AND te = {max}",
    "ended": "UPDATE r2000 SET te = ts WHERE k = ? AND te = {max}",
    "key": "UPDATE r2000 SET k = k || x'07' WHERE k = ? AND te = {max}",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_shows(damage: str, tmp_path: Path) -> None:
    feed = Feed(3)
    for _ in range(90):
        feed.grow()
    engine = build(tmp_path / "a.db", feed)
    while engine.settle():
        pass
    sound = digest(engine, feed.tau, EVERYTHING)
    most = (1 << 63) - 1
    rows = engine._db.execute("SELECT k FROM r2000 WHERE te = ? ORDER BY k", (most,)).fetchall()
    assert rows
    engine._db.execute(DAMAGES[damage].format(max=most), (rows[len(rows) // 2][0],)).fetchall()
    rotten = digest(engine, feed.tau, EVERYTHING)
    assert rotten != sound and rotten.schema == sound.schema
    differing = [a.sid for a, b in zip(sound.sums, rotten.sums, strict=True) if a != b]
    assert differing == [2000]


@pytest.mark.parametrize("seed", range(6))
def test_the_journal_tells_what_a_file_must_show(seed: int, tmp_path: Path) -> None:
    feed = Feed(seed)
    for _ in range(100):
        feed.grow()
    cut = place(2001, KEYS[5])
    engines = [
        build(tmp_path / "a.db", feed),
        build(tmp_path / "b.db", feed, [Owned(cut, END)]),
    ]
    for engine in engines:
        while engine.settle():
            pass
        checked = 0
        for item in feed.items:
            if item.kind == "apply":
                assert matches_journal(engine, item.tau, item.arguments[0]), item.n
                checked += 1
        assert checked > 20
    rng = random.Random(seed)
    seen = 0
    for item in rng.sample([i for i in feed.items if i.kind == "apply"], 15):
        other = [
            ops.Put(op.sid, 0, op.attnums, op.keys, b"", b"", [(-1, *row[1:]) for row in op.rows])
            if isinstance(op, ops.Put) else op
            for op in item.arguments[0]
        ]  # fmt: skip
        if other != item.arguments[0]:
            assert not matches_journal(engines[0], item.tau, other)
            seen += 1
    assert seen
    gone = [ops.Put(2000, 0, (1,), [b"never"], b"", b"", [(1,)])]
    assert not matches_journal(engines[0], feed.tau, gone)
    assert not matches_journal(engines[0], feed.tau, [ops.Delete(SIDS[3] + 9, 0, [b"x"], b"", b"")])


# Who goes


def at(now: int) -> Interval:
    return Interval(now, now)


def verdicts(contents: dict[int, Any], schemas: dict[int, int] | None = None) -> dict[int, Any]:
    """The last effect of every replica's own check."""
    found: dict[int, Any] = {}
    for replica in contents:
        check = SelfCheck(replica)
        peers = tuple(sorted(set(contents) - {replica}))
        effects = check.step(at(0), Due(100, peers))
        counts = [one for one in effects if isinstance(one, Count)]
        assert {one.replica for one in counts} == set(contents)
        last: list[Any] = []
        for one in counts:
            schema = (schemas or {}).get(one.replica, 1)
            counted = Counted(
                one.number, one.replica, one.replica % 3, schema, contents[one.replica]
            )
            last = check.step(at(1), counted)
        assert not check.busy
        found[replica] = last[0] if last else None
    return found


def test_who_differs_from_the_majority_removes_itself() -> None:
    found = verdicts({1: "a", 2: "a", 3: "b"})
    assert found[3] == RemoveSelf(1, 100) and found[1] == found[2] == Agreed(1, 100, 2)
    assert set(map(type, verdicts({1: "a", 2: "a", 3: "a"}).values())) == {Agreed}
    found = verdicts({1: "a", 2: "a", 3: "b", 4: "c", 5: "a"})
    assert [r for r, one in found.items() if isinstance(one, RemoveSelf)] == [3, 4]


def test_without_a_majority_the_oldest_copy_goes_one_at_a_time() -> None:
    # Copies are as old as their number modulo 3.
    for contents, oldest in (
        ({1: "a", 2: "b"}, 1),
        ({1: "a", 2: "b", 3: "c"}, 3),
        ({1: "a", 2: "a", 4: "b", 5: "b"}, 1),
    ):
        found = verdicts(contents)
        assert found.pop(oldest) == RemoveSelf(1, 100)
        assert all(one == Suspect(1, tuple(contents)) for one in found.values())


def test_who_cannot_tell_has_no_vote() -> None:
    assert verdicts({1: "a", 2: None}) == {1: None, 2: None}
    found = verdicts({1: "a", 2: "b", 3: None})
    assert found[1] == RemoveSelf(1, 100) and found[2] == Suspect(1, (1, 2)) and found[3] is None


def test_schemas_may_differ_for_a_while() -> None:
    check = SelfCheck(1)
    effects: list[Any] = []
    for number in range(1, agreement.SCHEMA_TRIES + 1):
        check.step(at(0), Due(100, (2, 3)))
        for replica, schema in ((1, 7), (2, 8), (3, 8)):
            effects = check.step(at(0), Counted(number, replica, 0, schema, "x"))
        assert (effects == [RemoveSelf(number, 100)]) == (number == agreement.SCHEMA_TRIES)


def test_silent_peers_are_not_waited_for_for_ever() -> None:
    check = SelfCheck(1)
    check.step(at(0), Due(100, (2, 3)))
    assert check.step(at(0), Due(101, (2, 3))) == []
    check.step(at(0), Counted(1, 1, 0, 1, "a"))
    check.step(at(0), Counted(1, 2, 0, 1, "a"))
    assert check.step(at(0), Counted(99, 3, 0, 1, "b")) == []
    assert check.step(at(agreement.PATIENCE_NS - 1), agreement.TimerFired()) == []
    effects = check.step(at(agreement.PATIENCE_NS), agreement.TimerFired())
    assert effects == [Agreed(1, 100, 2)]
    assert check.step(at(agreement.PATIENCE_NS), Counted(1, 3, 0, 1, "b")) == []
