"""The conflict window against a plain model, its bounds, and its longest pause."""

from __future__ import annotations

import random
import time
from array import array

import pytest

from meridian.adjudicator import window as module
from meridian.adjudicator.window import SLICE_KEYS, Draft, Window, keys_of


class Model:
    """Every write and share ever, and the rules 5.1 and 5.2 word for word."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, frozenset[int]]] = []
        self.shares: list[tuple[int, frozenset[int]]] = []

    def record(self, tau: int, writes: list[int], shares: list[int]) -> None:
        self.writes.append((tau, frozenset(writes)))
        self.shares.append((tau, frozenset(shares)))

    def conflicts(self, tau_start: int, writes: list[int], shares: list[int]) -> bool:
        return any(
            tau > tau_start and not keys.isdisjoint({*writes, *shares}) for tau, keys in self.writes
        ) or any(tau > tau_start and not keys.isdisjoint(writes) for tau, keys in self.shares)


def pack(keys: list[int]) -> bytes:
    return array("Q", keys).tobytes()


@pytest.mark.parametrize("seed", range(60))
def test_window_agrees_with_the_model(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(module, "GENERATION_KEYS", rng.choice([4, 1000]))
    monkeypatch.setattr(module, "GENERATION_NS", rng.choice([20, 10**9]))
    monkeypatch.setattr(module, "SLICE_KEYS", rng.choice([1, 3, 1000]))
    monkeypatch.setattr(module, "LAYER_SET_KEYS", rng.choice([2, 1000]))
    keys_max = rng.choice([10, 10**6])
    window, model = Window(0, keys_max), Model()
    drafts: list[tuple[Draft, int, list[int], list[int]]] = []
    tau = 100
    universe = rng.choice([8, 60])
    passed = 0

    def some(most: int) -> list[int]:
        return [rng.randrange(universe) << 40 for _ in range(rng.randint(0, most))]

    for _ in range(400):
        tau += rng.randint(1, 4)
        start = max(tau - rng.choice([3, 30, 300]), 1)
        action = rng.random()
        if action < 0.6:
            writes, shares = some(3), some(2)
            if start < window.floor:
                continue
            found = window.conflicts(start, keys_of(pack(writes)), keys_of(pack(shares)))
            assert found == model.conflicts(start, writes, shares)
            if not found:
                passed += 1
                window.record(tau, keys_of(pack(writes)), keys_of(pack(shares)))
                model.record(tau, writes, shares)
        elif action < 0.7 and len(drafts) < 3:
            drafts.append((window.open_draft(start), start, [], []))
        elif action < 0.85 and drafts:
            draft, _, writes, shares = rng.choice(drafts)
            more_writes, more_shares = some(4), some(2)
            draft.add(keys_of(pack(more_writes)), keys_of(pack(more_shares)))
            writes += more_writes
            shares += more_shares
        elif action < 0.95 and drafts:
            window.work(rng.choice(drafts)[0])
        elif drafts:
            draft, start, writes, shares = drafts.pop(rng.randrange(len(drafts)))
            while not draft.ready:
                window.work(draft)
            if start < window.floor:
                window.drop(draft)
                continue
            assert draft.conflict == model.conflicts(start, writes, shares)
            if draft.conflict:
                window.drop(draft)
            else:
                passed += 1
                window.publish(draft, tau)
                model.record(tau, writes, shares)
        assert len(window) <= keys_max
        if rng.random() < 0.02:
            window.expire(tau - 50)
            assert window.floor <= tau
    assert passed > 10


def test_expiry_forgets_by_time_and_raises_the_floor() -> None:
    window = Window(0)
    window.record(1000, [1], [])
    window.record(2000, [2], [])
    window.expire(5000)
    assert len(window) == 0
    assert window.floor == 2000
    assert not window.conflicts(2000, [1, 2], [])


def test_a_draft_never_holds_the_loop_for_long() -> None:
    """A commit of 600,000 keys against a full generation: no step over 50 ms on a busy machine."""
    rng = random.Random(1)
    window = Window(0)
    window.record(500, keys_of(rng.randbytes(8 * 60_000)), [])
    draft = window.open_draft(100)
    worst = steps = 0.0
    for _ in range(20):
        chunk = rng.randbytes(8 * 30_000)
        begin = time.perf_counter()
        draft.add(keys_of(chunk), [])
        worst = max(worst, time.perf_counter() - begin)
    while not draft.ready:
        begin = time.thread_time()
        window.work(draft)
        worst = max(worst, time.thread_time() - begin)
        steps += 1
    assert not draft.conflict
    assert steps > 20
    begin = time.thread_time()
    window.publish(draft, 1000)
    worst = max(worst, time.thread_time() - begin)
    assert worst < 0.05, f"{worst * 1000:.1f} ms"
    assert draft.count == 600_000
    assert SLICE_KEYS <= 65_536


def test_a_large_transaction_that_is_heard_of_late_counts_at_its_tau() -> None:
    """Not later: what began after it and before it was heard of is not refused (seed 50072)."""
    window = Window(0)
    draft = window.open_draft(5)
    draft.add([1, 2], [3])
    window.work(draft)
    assert draft.ready
    window.record(20, [9], [])
    window.publish_late(draft, 10)
    assert window.conflicts(9, [1], []) and window.conflicts(9, [3], [])
    assert not window.conflicts(10, [1], []) and not window.conflicts(10, [3], [])
    assert window.conflicts(19, [9], []) and not window.conflicts(20, [9], [])
    window.expire(11)
    assert window.floor == 10 and window.conflicts(19, [9], [])
