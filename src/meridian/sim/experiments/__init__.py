"""Experiments in virtual time: what the published design predicts, and what this one does.

Each module offers `run(seed) -> Report`; `meridian sim experiment NAME` prints it.
"""

from __future__ import annotations

import importlib

from meridian.sim.experiments.report import Report

NAMES = ("contention", "crossbar", "nines", "scaling", "statements")


def run(name: str, seed: int = 1) -> Report:
    """The report of one experiment. Raises KeyError for an unknown one."""
    if name not in NAMES:
        raise KeyError(name)
    module = importlib.import_module(f"meridian.sim.experiments.{name}")
    report = module.run(seed)
    assert isinstance(report, Report)
    return report
