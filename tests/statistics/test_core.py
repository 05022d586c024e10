"""Which tables are due, and in what order."""

from __future__ import annotations

from meridian.statistics.core import RETRY_S, Core, Table, changed


def table(oid: int, rows: int) -> Table:
    return Table(oid, f"t{oid}", rows)


def test_thresholds_are_autovacuums() -> None:
    assert changed(50, None) <= 1 < changed(51, None)
    assert changed(0, 50) <= 1 < changed(0, 56)
    assert changed(1150, 1000) <= 1 < changed(1151, 1000)
    assert changed(850, 1000) <= 1 < changed(849, 1000)
    assert changed(40, -1) <= 1, "a head without a number of rows"


def test_the_one_that_changed_most_comes_first() -> None:
    core = Core()
    tables = [table(1, 10), table(2, 2000), table(3, 100_000), table(4, 5000)]
    core.look(0, tables, {2: 1000, 4: 5100})
    order = []
    while (due := core.next()) is not None:
        order.append(due.oid)
    assert order == [3, 2]
    core.look(1, tables, {2: 2000, 3: 100_000, 4: 5100})
    assert core.next() is None


def test_what_cannot_be_analysed_is_left_alone_for_a_time() -> None:
    core = Core()
    core.look(0, [table(1, 100)], {})
    first = core.next()
    assert first is not None
    core.failed(0, first)
    core.look(RETRY_S - 1, [table(1, 100), table(2, 100)], {})
    assert core.next() == table(2, 100) and core.next() is None
    core.look(RETRY_S + 1, [table(1, 100)], {})
    assert core.next() == first


def test_pauses_leave_most_of_the_time_to_others() -> None:
    assert Core.pause_s(0.01) >= 1 and Core.pause_s(10) >= 90
