"""What an adjudicator says of its work (control core, design requirement F2)."""

from __future__ import annotations

from meridian.adjudicator.heat import PLACES, Heat
from meridian.limits import S
from meridian.wire.partition import EVERYTHING, Span

NOW = 1_000 * S


def test_commits_a_second_slide_with_the_clock() -> None:
    heat = Heat()
    heat.committed(NOW, 100)
    assert heat.per_s(NOW + S // 2) == 100
    assert heat.per_s(NOW + S) == 100
    assert heat.per_s(NOW + S + S // 2) == 50
    heat.committed(NOW + S + S // 2, 10)
    assert heat.per_s(NOW + 2 * S) == 10
    assert heat.per_s(NOW + 4 * S) == 0


def test_the_middle_cuts_the_heat_inside_of_what_is_owned() -> None:
    heat = Heat()
    assert heat.middle((EVERYTHING,)) is None
    heat.touched((1000, b"%02d" % n) for n in range(20))
    assert heat.middle((EVERYTHING,)) == (1000, b"10")
    own = Span((1000, b"15"), (1000, b"19"))
    assert heat.middle((own,)) == (1000, b"17")
    border = Span((1000, b"19"), (1000, b"20"))
    assert heat.middle((border,)) is None, "a cut at the start of a range cuts nothing"
    heat.touched((7, b"x") for _ in range(PLACES))
    assert heat.middle((own,)) is None, "old heat is forgotten"
