"""Hand-written histories of every anomaly, and of what snapshot isolation allows."""

from __future__ import annotations

import json
import random

import msgspec
import pytest
from click.testing import CliRunner

from meridian.check.history import HistoryError, Transaction, check, parse
from meridian.cli.main import main


def _t(txn, begin, end, ops, commit=None, status="committed"):
    return Transaction(txn=txn, status=status, begin=begin, end=end, commit=commit, ops=ops)


def _names(*history) -> list[str]:
    return [anomaly.name for anomaly in check(list(history))]


def test_serial_history_is_clean() -> None:
    assert (
        _names(
            _t("a", 0, 1, [("w", "x"), ("w", "y")], 1),
            _t("b", 2, 3, [("r", "x", "a"), ("w", "x")], 2),
            _t("c", 4, 5, [("r", "x", "b"), ("r", "y", "a"), ("r", "z", None)]),
        )
        == []
    )


def test_g1a_aborted_read() -> None:
    assert _names(
        _t("a", 0, 1, [("w", "x")], status="aborted"), _t("b", 2, 3, [("r", "x", "a")])
    ) == ["G1a"]


def test_g1b_intermediate_read() -> None:
    assert _names(
        _t("a", 0, 3, [("w", "x"), ("w", "x")], 1), _t("b", 1, 4, [("r", "x", "a", 1)])
    ) == ["G1b"]


def test_g1c_circular_information_flow() -> None:
    assert _names(
        _t("a", 0, 9, [("w", "x"), ("r", "y", "b")], 1),
        _t("b", 0, 9, [("w", "y"), ("r", "x", "a")], 2),
    ) == ["G1c"]


def test_g_single_read_skew() -> None:
    assert _names(
        _t("a", 0, 9, [("r", "x", None), ("r", "y", "b")]),
        _t("b", 0, 9, [("w", "x"), ("w", "y")], 1),
    ) == ["G-single"]


def test_lost_update() -> None:
    assert "lost-update" in _names(
        _t("a", 0, 9, [("r", "x", None), ("w", "x")], 1),
        _t("b", 0, 9, [("r", "x", None), ("w", "x")], 2),
    )


def test_long_fork() -> None:
    assert _names(
        _t("a", 0, 1, [("w", "x")], 1),
        _t("b", 0, 1, [("w", "y")], 2),
        _t("c", 0, 9, [("r", "x", "a"), ("r", "y", None)]),
        _t("d", 0, 9, [("r", "x", None), ("r", "y", "b")]),
    ) == ["G-SI"]


def test_write_skew_is_allowed() -> None:
    assert (
        _names(
            _t("a", 0, 9, [("r", "x", None), ("r", "y", None), ("w", "x")], 1),
            _t("b", 0, 9, [("r", "x", None), ("r", "y", None), ("w", "y")], 2),
        )
        == []
    )


def test_real_time_stale_read() -> None:
    stale = _t("b", 2, 3, [("r", "x", None)])
    assert _names(_t("a", 0, 1, [("w", "x")], 1), stale) == ["real-time"]


def test_overlapping_stale_read_is_allowed() -> None:
    assert _names(_t("a", 0, 2.5, [("w", "x")], 1), _t("b", 2, 3, [("r", "x", None)])) == []


def test_real_time_between_commits() -> None:
    assert _names(_t("a", 0, 1, [("w", "x")], 5), _t("b", 2, 3, [("w", "x")], 4)) == ["real-time"]


def test_future_read() -> None:
    assert "future-read" in _names(_t("a", 5, 6, [("w", "x")], 1), _t("b", 2, 3, [("r", "x", "a")]))


def test_unknown_counts_when_read() -> None:
    unknown = _t("a", 0, None, [("w", "x")], 1, "unknown")
    assert _names(unknown, _t("b", 2, 3, [("r", "x", None)])) == []
    gone = _t("c", 4, 5, [("r", "x", None)])
    assert _names(unknown, _t("b", 2, 3, [("r", "x", "a")]), gone) != []


@pytest.mark.parametrize(
    "lines",
    [
        ['{"txn": "a"}'],
        ["nonsense"],
        ['{"txn": "a", "status": "committed", "begin": 0, "ops": [["w", "x"]]}'],
        ['{"txn": "b", "status": "committed", "begin": 0, "ops": [["r", "x", "a"]]}'],
        ['{"txn": "a", "status": "comitted", "begin": 0, "ops": []}'],
        ['{"txn": "a", "status": "aborted", "begin": 0, "ops": [], "ends": 4}'],
        ['{"txn": "a", "status": "aborted", "begin": 5, "end": 4, "ops": []}'],
        *(
            ['{"txn": "a", "status": "aborted", "begin": 0, "ops": [' + op + "]}"]
            for op in (
                "[]", '["x", "x"]', '["w"]', '["w", null]', '["w", "x", "a"]', '["r", "x"]',
                '["r", "x", 5]', '["r", "x", "a", "1"]', '["r", "x", "a", 0]',
                '["r", "x", null, 1]', '["r", "x", "a", 1, 2]',
            )
        ),
    ],
)  # fmt: skip
def test_malformed_histories_are_refused(lines) -> None:
    with pytest.raises(HistoryError):
        check(parse(lines))


def test_versions_at_one_position_have_no_order() -> None:
    one, two = _t("a", 0, 9, [("w", "x")], 1), _t("b", 0, 9, [("w", "x")], 1)
    assert _names(one, two) == ["version-order"]
    assert _names(one, _t("b", 0, 9, [("w", "y")], 1)) == []


def test_instants_keep_all_their_digits() -> None:
    """As floats, nanoseconds since 1970 are 256 apart: a stale read would look concurrent."""
    now = 1_795_299_571_031_250_432
    written = _t("a", now, now + 10, [("w", "x")], 1)
    stale = _t("b", now + 20, now + 30, [("r", "x", None)])
    lines = [msgspec.json.encode(one) for one in (written, stale)]
    assert [anomaly.name for anomaly in check(parse(lines))] == ["real-time"]


def test_names_are_no_instants() -> None:
    stale = _t("@1", 2, 3, [("r", "x", None)])
    (found,) = check([_t("@0", 0, 1, [("w", "x")], 1), stale])
    assert (found.name, found.story) == ("real-time", "@1 -rw(x)-> @0 -rt-> @1")


def _simulate(rng: random.Random, stale_chance: float) -> list[Transaction]:
    """A correct snapshot-isolated store, except for reads that are stale with some chance."""
    versions: dict[str, list[tuple[int, str]]] = {key: [] for key in "abcde"}
    history, open_now = [], []
    for number in range(120):
        open_now.append((f"t{number}", number * 10, rng.sample("abcde", 3)))
        if len(open_now) < 3:
            continue
        name, start, keys = open_now.pop(rng.randrange(3))
        ops: list[tuple] = []
        for key in keys[:2]:
            seen = [v for v in versions[key] if v[0] <= start]
            if seen and rng.random() < stale_chance:
                seen = seen[:-1]
            ops.append(("r", key, seen[-1][1] if seen else None))
        target = keys[2]
        conflict = any(tau > start for tau, _ in versions[target])
        commit = number * 10 + 5
        if not conflict:
            ops.append(("w", target))
            versions[target].append((commit, name))
        history.append(
            _t(
                name,
                start,
                commit,
                ops,
                None if conflict else commit,
                "aborted" if conflict else "committed",
            )
        )
    return history


def test_a_correct_store_passes_and_a_stale_one_is_caught() -> None:
    caught = 0
    for seed in range(30):
        assert check(_simulate(random.Random(seed), 0)) == []
        caught += bool(check(_simulate(random.Random(seed), 0.1)))
    assert caught == 30


def test_documented_line_parses() -> None:
    line = {
        "txn": "t1",
        "begin": 10,
        "end": 20,
        "commit": 15,
        "status": "committed",
        "ops": [["w", "x"], ["r", "z", None]],
    }
    assert check(parse([json.dumps(line)])) == []


def test_command_line(tmp_path) -> None:
    file = tmp_path / "history.jsonl"
    stale = [_t("a", 0, 1, [("w", "x")], 1), _t("b", 2, 3, [("r", "x", None)])]
    runner = CliRunner()
    file.write_bytes(msgspec.json.encode(stale[0]) + b"\n")
    assert runner.invoke(main, ["check", "history", str(file)]).exit_code == 0
    file.write_bytes(b"\n".join(msgspec.json.encode(t) for t in stale))
    found = runner.invoke(main, ["check", "history", str(file)])
    assert found.exit_code == 1 and "real-time" in found.output
    for empty_or_wrong in (b"nonsense", b"", b"\n\n"):
        file.write_bytes(empty_or_wrong)
        assert runner.invoke(main, ["check", "history", str(file)]).exit_code == 2
