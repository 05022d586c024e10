"""The experiments show what they claim, from their own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from meridian.sim import experiments
from meridian.sim.cli import sim
from meridian.sim.experiments import crossbar, nines, scaling, statements
from meridian.sim.experiments.report import svg, text


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nines, "READS", 20_000)
    monkeypatch.setattr(statements, "TRANSACTIONS", 4_000)
    monkeypatch.setattr(scaling, "MEASURE_NS", 10 * scaling.MS)
    monkeypatch.setattr(scaling, "ADJUDICATORS", (1, 4))
    for name, value in {"SECONDS": 30.0, "CORE_SECONDS": 5.0, "HOSTS": (1, 40)}.items():
        monkeypatch.setattr(crossbar, name, value)
    monkeypatch.setattr(crossbar, "RARER_S", (300.0,))


def test_two_of_three_has_seven_and_a_half_nines() -> None:
    by_code = {row[0]: row for row in experiments.run("nines").rows}
    assert by_code["1 of 1"][2] == pytest.approx(4.0)
    assert by_code["2 of 3"][2] > 7.5
    # One stalled stream of three does not show in the tail; where all are needed it does.
    assert by_code["2 of 3"][4] < 3
    assert by_code["3 of 3"][4] > 100


def test_a_crossbar_of_forty_hosts_collapses_and_a_coded_one_does_not() -> None:
    one, forty, rare = experiments.run("crossbar").rows
    expected, in_turn, cut_loose, coded = forty[2:6]
    assert expected == 1_000_000
    assert in_turn < 15_000, "published: about 6,000"
    assert one[3] > 0.7 * one[2] and one[6] < 1.1, "a host alone is fine, but for its stalls"
    assert forty[6] > 5, "its tail is not that of one stall any more; published: 10 s"
    assert in_turn < cut_loose < coded
    assert coded > 0.2 * expected and forty[8] < 0.6 * forty[6]
    assert rare[3] > 0.5 * rare[2]


def test_commit_latency_is_flat_in_statements() -> None:
    rows = experiments.run("statements").rows
    commits = [row[1] for row in rows if row[0] >= 4]
    assert max(commits) < 1.05 * min(commits)
    with_locks = {row[0]: row[4] for row in rows}
    assert with_locks[32] > 3 * with_locks[8]
    assert with_locks[32] > 4 * rows[-1][3]


def test_adjudicators_and_journals_add_up() -> None:
    rates = {row[:2]: row[2:] for row in experiments.run("scaling").rows}
    one, four = rates["0%", 6]
    assert four > 3 * one, "owners of their own keys do not share anything"
    assert rates["0%", 1][1] < 0.6 * four, "one journal is not enough for four"
    assert rates["10%", 6][1] > 0.7 * four
    assert one * 1.2 < rates["50%", 6][1] < 0.7 * four, "a vote costs, and still adds up"


@pytest.mark.parametrize("name", ["nines", "statements"])
def test_reports(name: str) -> None:
    """Repeatable, and printable in all forms."""
    report = experiments.run(name, 7)
    assert report == experiments.run(name, 7)
    assert all(cell in text(report) for cell in report.header)
    assert ElementTree.fromstring(svg(report)).tag.endswith("svg")


def test_command(tmp_path: Path) -> None:
    figure = tmp_path / "figure.svg"
    nowhere = str(figure.parent / "none" / "figure.svg")
    refused = CliRunner().invoke(sim, ["experiment", "crossbar", "--svg", nowhere])
    assert refused.exit_code == 2 and "No such file" in refused.output
    done = CliRunner().invoke(sim, ["experiment", "nines", "--json", "--svg", str(figure)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["name"] == "nines"
    assert figure.read_text().startswith("<svg")
