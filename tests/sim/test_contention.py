"""An optimistic system lives by its retries: who gives way, and that everybody's turn comes."""

from __future__ import annotations

import pytest

from meridian.sim.experiments.contention import hammer

CLIENTS = 8


def test_retrying_at_once_starves_whoever_is_slower() -> None:
    """Who has just won begins before those who lost; nothing in the system gives these a turn."""
    found = hammer(1, CLIENTS, "at once")
    assert found.fewest == 0
    assert found.worst > 200


@pytest.mark.parametrize("owners", (1, 3))
def test_giving_way_by_age_lets_everybody_win(owners: int) -> None:
    alone = hammer(1, 1, "at once", owners)
    found = hammer(2, CLIENTS, "by age", owners)
    assert found.commits >= 0.4 * alone.commits
    assert found.worst <= 40
    assert found.fewest >= 0.25 * found.commits / CLIENTS
