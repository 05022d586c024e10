"""The table of advisory locks: PostgreSQL's counting, queues, and waits that could never end."""

from __future__ import annotations

import itertools
import random

import pytest

from meridian.dataplane import advisory
from meridian.dataplane.advisory import SHARED, TRANSACTION, AdvisoryLocks, Granted
from meridian.errors import Kind, MeridianError

K, L, M = (1, 7), (1, 8), (2, 7)


def locked(table: AdvisoryLocks, owner: int, key: tuple[int, int], flags: int = 0) -> bool | None:
    state, granted = table.lock(owner, owner, key, flags, wait=True)
    assert granted == []
    return state


def tried(table: AdvisoryLocks, owner: int, key: tuple[int, int], flags: int = 0) -> bool | None:
    return table.lock(owner, owner, key, flags, wait=False)[0]


def test_exclusive_keeps_everybody_out() -> None:
    table = AdvisoryLocks()
    assert locked(table, 1, K) is True
    assert tried(table, 2, K) is False
    assert tried(table, 2, K, SHARED) is False
    assert tried(table, 2, L) is True
    assert tried(table, 2, M) is True, "two ints are another space of keys"
    assert table.unlock(1, K, 0) == (True, [])
    assert tried(table, 2, K) is True


def test_shared_locks_pass_each_other() -> None:
    table = AdvisoryLocks()
    assert locked(table, 1, K, SHARED) is locked(table, 2, K, SHARED) is True
    assert tried(table, 3, K) is False
    assert locked(table, 3, K) is None
    assert table.unlock(1, K, SHARED) == (True, [])
    assert table.unlock(2, K, SHARED) == (True, [Granted(3, 3)])


def test_locks_are_counted_per_mode_and_scope() -> None:
    table = AdvisoryLocks()
    for flags in (0, 0, SHARED, TRANSACTION):
        assert locked(table, 1, K, flags) is True
    assert table.unlock(1, K, SHARED)[0] and not table.unlock(1, K, SHARED)[0]
    assert table.unlock(1, K, 0)[0] and tried(table, 2, K) is False
    assert table.unlock(1, K, 0)[0] and not table.unlock(1, K, 0)[0]
    assert tried(table, 2, K) is False, "the transaction's lock is still there"
    assert table.unlock_all(1, 0) == [] and tried(table, 2, K) is False
    assert table.unlock_all(1, TRANSACTION) == [] and tried(table, 2, K) is True
    assert not table.unlock(3, K, 0)[0] and not table.unlock(1, L, 0)[0]


def test_who_waits_is_served_in_order() -> None:
    table = AdvisoryLocks()
    locked(table, 1, K, SHARED)
    assert locked(table, 2, K) is None
    assert locked(table, 3, K, SHARED) is None, "behind somebody who waits for all"
    assert locked(table, 4, K, SHARED) is None
    assert tried(table, 5, K, SHARED) is False
    assert table.unlock(1, K, SHARED) == (True, [Granted(2, 2)])
    assert table.unlock(2, K, 0) == (True, [Granted(3, 3), Granted(4, 4)])


def test_a_closed_or_canceled_owner_lets_others_in() -> None:
    table = AdvisoryLocks()
    locked(table, 1, K, SHARED)
    locked(table, 2, K)
    locked(table, 3, K, SHARED)
    assert table.cancel(2) == [Granted(3, 3)]
    assert table.cancel(2) == []
    locked(table, 4, K)
    assert table.close(1) == [] and table.close(3) == [Granted(4, 4)]
    assert table.close(4) == []
    assert table.rows() == [] and not table._locks and not table._held and table._holds == 0


def test_who_holds_passes_the_queue() -> None:
    table = AdvisoryLocks()
    locked(table, 1, K, SHARED)
    assert locked(table, 2, K) is None
    assert locked(table, 1, K, SHARED) is True
    assert locked(table, 1, K) is True, "alone: it may have more"


def refused(table: AdvisoryLocks, owner: int, key: tuple[int, int], flags: int = 0) -> Kind:
    with pytest.raises(MeridianError) as caught:
        table.lock(owner, owner, key, flags, wait=True)
    return caught.value.kind


def test_circles_are_refused() -> None:
    table = AdvisoryLocks()
    for owner in range(4):
        locked(table, owner, (1, owner))
    for owner in range(3):
        assert locked(table, owner, (1, owner + 1)) is None
    assert refused(table, 3, (1, 0)) == Kind.DEADLOCK
    assert locked(table, 3, L) is True, "the refused one goes on"
    assert table.close(3) == [Granted(2, 2)]


def test_two_that_share_cannot_both_have_more() -> None:
    table = AdvisoryLocks()
    locked(table, 1, K, SHARED)
    locked(table, 2, K, SHARED)
    assert locked(table, 1, K) is None
    assert refused(table, 2, K) == Kind.DEADLOCK
    assert table.unlock(2, K, SHARED) == (True, [Granted(1, 1)])


def test_a_place_in_the_queue_is_no_deadlock() -> None:
    table = AdvisoryLocks()
    locked(table, 1, K, SHARED)
    locked(table, 3, L)
    assert locked(table, 2, K) is None
    assert locked(table, 3, K, SHARED) is None, "waits behind 2, which waits for 1"
    assert table.lock(1, 11, L, 0, wait=True) == (None, [Granted(3, 3)])
    assert table.unlock(3, L, 0) == (True, [Granted(1, 11)])


def test_circles_through_waits_elsewhere() -> None:
    table = AdvisoryLocks()
    locked(table, 1, K)
    locked(table, 2, L, SHARED)
    assert locked(table, 3, L) is None
    assert locked(table, 4, L, SHARED) is None, "behind 3"
    assert table.waited_for(3, (5,)) == (False, [])
    assert table.request(3) == 3 and table.request(2) is None
    assert table.waited_for(3, (5, 2)) == (True, [Granted(4, 4)]), "2 waits for 3 elsewhere"
    assert table.waited_for(3, (2,)) == (False, []), "it waits no longer"
    assert locked(table, 3, K) is None
    assert table.waited_for(3, (2,)) == (False, [])
    assert refused(table, 1, L) == Kind.DEADLOCK, "1 for 2, 2 elsewhere for 3, 3 for 1"
    assert table.waited_for(3, ()) == (False, [])
    assert locked(table, 1, L) is None
    table.close(3)
    assert not table._waited_for


def test_one_wait_at_a_time_and_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    table = AdvisoryLocks()
    locked(table, 1, K)
    locked(table, 2, K)
    assert refused(table, 2, L) == Kind.PROTOCOL_VIOLATION
    monkeypatch.setattr(advisory, "ADVISORY_LOCKS_PER_OWNER", 2)
    locked(table, 1, L)
    assert refused(table, 1, M) == Kind.ADVISORY_FULL
    assert locked(table, 1, L) is True, "no other lock"
    monkeypatch.setattr(advisory, "ADVISORY_LOCKS", 2)
    assert refused(table, 3, M) == Kind.ADVISORY_FULL


class Model:
    """Who waits for whom, from the rows of the table alone."""

    def __init__(self, table: AdvisoryLocks) -> None:
        self.holds: dict[tuple[int, int], list[tuple[int, bool]]] = {}
        self.queues: dict[tuple[int, int], list[tuple[int, bool]]] = {}
        for kind, key, owner, shared, granted in table.rows():
            side = self.holds if granted else self.queues
            side.setdefault((kind, key), []).append((owner, shared))

    def hard(self, key: tuple[int, int], owner: int, shared: bool) -> set[int]:
        return {o for o, s in self.holds.get(key, []) if o != owner and not (s and shared)}

    def check(self) -> None:
        for holds in self.holds.values():
            for (one, a), (other, b) in itertools.combinations(holds, 2):
                assert one == other or (a and b), "two hold what excludes each other"
        edges: dict[int, set[int]] = {}
        for key, queue in self.queues.items():
            ahead: list[tuple[int, bool]] = []
            for owner, shared in queue:
                soft = {o for o, s in ahead if not (s and shared)}
                edges[owner] = self.hard(key, owner, shared) | soft
                assert edges[owner], "nothing stands against this waiter"
                ahead.append((owner, shared))
        while free := [owner for owner, who in edges.items() if not who & edges.keys()]:
            for owner in free:
                del edges[owner]
        assert not edges, "a circle"


@pytest.mark.parametrize("seed", range(40))
def test_no_circle_and_no_forgotten_waiter(seed: int) -> None:
    rng = random.Random(seed)
    table = AdvisoryLocks()
    waiting: set[int] = set()
    deadlocks = 0
    for step in range(600):
        owner, key = rng.randrange(7), (1, rng.randrange(4))
        granted: list[Granted] = []
        if owner in waiting:
            if rng.random() < 0.1:
                granted = table.cancel(owner)
                waiting.discard(owner)
        elif rng.random() < 0.6:
            try:
                flags = rng.randrange(4)
                state, granted = table.lock(owner, step, key, flags, rng.random() < 0.8)
                if state is None:
                    waiting.add(owner)
            except MeridianError as error:
                assert error.kind == Kind.DEADLOCK
                deadlocks += 1
        elif rng.random() < 0.7:
            granted = table.unlock(owner, key, rng.randrange(4))[1]
        elif rng.random() < 0.7:
            granted = table.unlock_all(owner, rng.choice((0, TRANSACTION)))
        else:
            granted = table.close(owner)
        assert {g.owner for g in granted} <= waiting
        waiting -= {g.owner for g in granted}
        Model(table).check()
    assert deadlocks
    for owner in range(7):
        table.close(owner)
    assert table.rows() == [] and not table._waits and table._holds == 0
