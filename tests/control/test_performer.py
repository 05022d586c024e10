"""A host performs orders once, by the map in force, in time; and never brings back what ended."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from meridian.clock.tau import Interval
from meridian.control.performer import (
    PATIENCE_NS,
    WAITING_MAX,
    Answer,
    AskMap,
    Build,
    Do,
    Effect,
    End,
    InForce,
    Keep,
    Performer,
)
from meridian.control.views import Action, AddReplica, Publish, Remove, Shrink
from meridian.limits import S
from meridian.wire.ranges import Range

NOW = Interval(10 * S, 10 * S + 1000)
WIDE = Range(b"a", b"m")
ADD = AddReplica(1, 7, 3, *WIDE, "why")


def performer(**held: Range) -> Performer:
    return Performer(3, {int(name[1:]): part for name, part in held.items()}, {})


def do(core: Performer, action: Action, now: Interval = NOW) -> list[Effect]:
    effects = core.step(now, Do("k0", action))
    core.check()
    return effects


def remove(number: int = 2, replica: int = 7, version: int = 5, expires: int = 11 * S) -> Remove:
    return Remove(number, replica, version, expires, "why")


def shrink(lo: bytes, hi: bytes, version: int = 5, expires: int = 11 * S) -> Shrink:
    return Shrink(4, 7, lo, hi, version, expires, "why")


def test_a_replica_is_built_once() -> None:
    core = performer()
    assert do(core, ADD) == [Build(7, WIDE), Answer("k0", 1, True)]
    assert do(core, ADD) == [Answer("k0", 1, True)]
    other = AddReplica(9, 7, 3, b"c", b"d", "the same number again")
    assert do(core, other) == [Answer("k0", 9, False)]


def test_orders_for_other_hosts_and_performers_are_refused() -> None:
    elsewhere = AddReplica(1, 7, 4, b"a", b"m", "why")
    assert do(performer(), elsewhere) == [Answer("k0", 1, False)]
    assert do(performer(), Publish(5, (), 2, 11 * S, "why")) == [Answer("k0", 5, False)]


def test_nothing_is_given_up_but_by_the_map_in_force() -> None:
    core = performer(r7=WIDE)
    assert do(core, remove()) == [AskMap(1)]
    assert core.step(NOW, InForce(1, 6)) == [Answer("k0", 2, False)]
    assert core.replicas == {7: WIDE}
    assert do(core, shrink(b"a", b"f")) == [AskMap(2)]
    kept = Range(b"a", b"f")
    assert core.step(NOW, InForce(2, 5)) == [Keep(7, kept), Answer("k0", 4, True)]
    assert do(core, shrink(b"a", b"f")) == [Answer("k0", 4, True)]
    assert core.step(NOW, InForce(2, 5)) == []


def test_orders_are_void_after_their_time_also_while_the_map_is_asked_for() -> None:
    core = performer(r7=WIDE)
    assert do(core, remove(expires=9 * S)) == [Answer("k0", 2, False)]
    assert do(core, remove()) == [AskMap(1)]
    late = Interval(11 * S - 10, 11 * S + 10)
    assert core.step(late, InForce(1, 5)) == [Answer("k0", 2, False)]
    assert core.replicas == {7: WIDE}


def test_an_answer_that_took_too_long_says_nothing() -> None:
    core = performer(r7=WIDE)
    do(core, remove(expires=20 * S))
    late = Interval(NOW.earliest + PATIENCE_NS + 1, NOW.latest + PATIENCE_NS + 1)
    assert core.step(late, InForce(1, 5)) == [Answer("k0", 2, False)]


def test_what_ended_never_comes_back() -> None:
    core = performer(r7=WIDE)
    do(core, remove())
    assert core.step(NOW, InForce(1, 5)) == [End(7), Answer("k0", 2, True)]
    assert do(core, ADD) == [Answer("k0", 1, False)]
    assert do(core, remove()) == [Answer("k0", 2, True)]
    assert do(Performer(3, core.replicas, core.ended), ADD) == [Answer("k0", 1, False)]


def test_a_removal_that_overtook_its_addition_wins() -> None:
    core = performer()
    do(core, remove())
    assert core.step(NOW, InForce(1, 5)) == [Answer("k0", 2, True)]
    assert do(core, ADD) == [Answer("k0", 1, False)]


def test_a_replica_never_grows_by_a_shrink() -> None:
    core = performer(r7=Range(b"c", b"f"))
    do(core, shrink(b"a", b"d"))
    effects = core.step(NOW, InForce(1, 5))
    assert effects == [Keep(7, Range(b"c", b"d")), Answer("k0", 4, True)]
    assert do(core, shrink(b"x", b"z")) == [Answer("k0", 4, False)]


def test_what_waits_is_bounded() -> None:
    core = performer(r7=WIDE)
    for _ in range(WAITING_MAX):
        assert do(core, remove())[0] == AskMap(core._request)
    assert do(core, remove()) == [Answer("k0", 2, False)]


@given(some.lists(some.integers(0, 5), max_size=40), some.randoms())
def test_any_order_of_orders_ends_within_what_the_map_allows(
    kinds: list[int], random: object
) -> None:
    """Whatever comes: every Keep lies inside what was held, nothing comes after an End."""
    core = performer(r7=WIDE)
    held: Range | None = WIDE
    cuts = [b"a", b"c", b"f", b"j", b"m"]
    for step, kind in enumerate(kinds):
        lo, hi = cuts[step % 4], cuts[1 + (step * 3) % 4]
        action = (ADD, remove(version=5 + kind % 2), shrink(min(lo, hi), max(lo, hi)))[kind % 3]
        effects = do(core, action)
        asked = [one.request for one in effects if isinstance(one, AskMap)]
        effects += [one for request in asked for one in core.step(NOW, InForce(request, 5))]
        for effect in effects:
            if isinstance(effect, Keep):
                assert held is not None and held.covers(effect.part)
                held = effect.part
            elif isinstance(effect, End):
                held = None
            assert not isinstance(effect, Build)
