"""Writes docs/experiments.md and its figures: every experiment of `meridian sim experiment`.

python bench/experiments.py
"""

from __future__ import annotations

from pathlib import Path

from meridian.sim import experiments
from meridian.sim.experiments.report import svg, text

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEAD = """# Experiments

Written by `python bench/experiments.py` from `meridian sim experiment NAME` (virtual time, seed 1):
what the published design predicts, and what this one does in the same model. None of it is a
measurement of a deployed cluster.
"""


def main() -> None:
    """All of them, in the order of their names."""
    figures = DOCS / "figures"
    figures.mkdir(exist_ok=True)
    parts = [HEAD]
    for name in experiments.NAMES:
        report = experiments.run(name)
        (figures / f"{name}.svg").write_text(svg(report))
        table = text(report).rstrip()
        parts.append(f"## {name}\n\n```\n{table}\n```\n\n![{report.title}](figures/{name}.svg)\n")
    (DOCS / "experiments.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
