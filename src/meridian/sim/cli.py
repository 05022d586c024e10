"""`meridian sim run`: many seeds, one after the other, each with its own mix of faults."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import IO, TextIO

import click
import msgspec

from meridian.sim import experiments, mutants
from meridian.sim.cwrites import default_writes
from meridian.sim.experiments import report
from meridian.sim.messages import Parts
from meridian.sim.run import Result, run_seed

PROGRESS_S = 2.0

LEGEND = """\
Each line: nanoseconds since the start, node, what, details. Nodes: o owner (adjudicator with its
journal; o0b: a second one that contends), l stream of a journal, r replica, h host, q query
processor, qg gateway, k control core, z random orders, m adds and closes journals, d and p the maps
of owners and shards.
"""


def run(
    seeds: int,
    start: int = 0,
    *,
    check: bool = True,
    explain: bool = False,
    parts: Parts | None = None,
    out: TextIO | None = None,
    progress: TextIO | None = None,
) -> int:
    """Runs `seeds` seeds from `start`; returns how many failed.

    With `check` every seed is run twice and the hashes of both runs are compared.  The last line is
    "N seeds, F failures".
    """
    out = out or sys.stdout
    progress = progress or sys.stderr
    out.write(default_writes()[1] + "\n" + (LEGEND if explain else ""))
    failures = 0
    totals: dict[str, int] = {}
    began = shown = time.monotonic()
    events = 0
    for seed in range(start, start + seeds):
        result = run_seed(seed, parts, story=explain)
        failure = result.failure or (_differs(result, parts) if check else "")
        events += result.events * (2 if check else 1)
        for name, count in result.counts.items():
            totals[name] = totals.get(name, 0) + count
        if explain:
            out.writelines(line + "\n" for line in result.story)
        if failure:
            failures += 1
            out.write(f"seed {seed}: {failure}\n")
            out.write(f"replay: meridian sim run --seeds 1 --start {seed} --explain\n")
        now = time.monotonic()
        if now - shown > PROGRESS_S:
            shown = now
            done = seed - start + 1
            progress.write(f"{done} of {seeds} seeds, {failures} failures\n")
            progress.flush()
    took = time.monotonic() - began
    out.write(_summary(totals, events, took))
    out.write(f"{seeds} seeds, {failures} failures\n")
    return failures


def _differs(first: Result, parts: Parts | None) -> str:
    second = run_seed(first.seed, parts)
    if (second.digest, second.events) == (first.digest, first.events):
        return ""
    return f"not deterministic: {first.digest} and then {second.digest}"


FAULTS = (
    "crash", "torn", "sync failed", "pause", "dropped", "expired", "move", "rot", "rejected",
)  # fmt: skip


def _summary(totals: dict[str, int], events: int, took: float) -> str:
    names = ("transactions", "commits", "aborts", "false aborts", "unknown")
    told = ", ".join(f"{name} {totals.get(name, 0)}" for name in names)
    cross = totals.get("cross committed", 0), totals.get("cross aborted", 0)
    faults = ", ".join(f"{name} {totals.get(name, 0)}" for name in FAULTS)
    return (
        f"{told}\nover several owners: committed {cross[0]}, aborted {cross[1]}\n"
        f"faults: {faults}\n{_steered(totals)}{exercised(totals)}"
        f"{events} events, {events / max(took, 0.001):.0f} per second\n"
    )


CONTROL = ("split", "merge", "copy", "replace", "move", "take-over")


def _steered(totals: dict[str, int]) -> str:
    """What control cores did, by kind; empty if no run had any."""
    if not any(name.startswith("steered ") for name in totals):
        return ""
    told = ", ".join(f"{name} {totals.get('steered ' + name, 0)}" for name in CONTROL)
    return f"control: {told}; orders refused {totals.get('order refused', 0)}\n"


def exercised(totals: dict[str, int]) -> str:
    """The table fault x state: how often a fault befell a node in that state."""
    cells = {tuple(name.split(" x ")): n for name, n in totals.items() if " x " in name}
    faults = sorted({fault for fault, _ in cells})
    states = sorted({state for _, state in cells})
    if not cells:
        return ""
    width = max(len(fault) for fault in faults)
    lines = [" " * width + "".join(f"  {state}" for state in states)]
    for fault in faults:
        row = "".join(f"  {cells.get((fault, state), 0):>{len(state)}}" for state in states)
        lines.append(f"{fault:<{width}}{row}")
    return "\n".join(lines) + "\n"


@click.group()
def sim() -> None:
    """Run the deterministic simulation."""


@sim.command("run")
@click.option("--seeds", type=click.IntRange(1), default=100, show_default=True)
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="First seed.")
@click.option("--once", is_flag=True, help="Do not run every seed twice to compare the hashes.")
@click.option("--explain", is_flag=True, help="Print what happened, event by event.")
def run_command(seeds: int, start: int, once: bool, explain: bool) -> None:
    """Run adjudicator, journal, crossbar and storage under faults and check every promise."""
    failures = run(seeds, start, check=not once, explain=explain)
    sys.exit(1 if failures else 0)


@sim.command("experiment")
@click.argument("name", type=click.Choice(experiments.NAMES))
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.option("--svg", type=click.File("w", lazy=False), help="Write the figure there.")
def experiment_command(name: str, seed: int, as_json: bool, svg: IO[str] | None) -> None:
    """Run a published experiment in virtual time: a table, and a figure with --svg."""
    result = experiments.run(name, seed)
    if svg is not None:
        svg.write(report.svg(result))
    click.echo(json.dumps(msgspec.to_builtins(result)) if as_json else report.text(result))


@sim.command("mutants")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--write",
    type=click.Path(path_type=Path, exists=True),
    help="Put the table into this file, between its markers.",
)
def mutants_command(names: tuple[str, ...], write: Path | None) -> None:
    """Run every mutant until a seed finds it; print the table. With NAME: those so called.

    NAME is a part of the name, such as "frame:". Exit status 1: one was not found.
    """
    chosen = [one for one in mutants.MUTANTS if not names or any(n in one.name for n in names)]
    unknown = [n for n in names if not any(n in one.name for one in chosen)]
    if unknown:
        raise click.UsageError(f"no mutant is called {unknown[0]!r}; docs/simulation.md has them")
    if names and write is not None:
        raise click.UsageError("--write is for the whole table")
    missing = []

    def found(mutant: mutants.Mutant) -> int | None:
        after = mutants.find(mutant, lambda seed, parts: run_seed(seed, parts).failure)
        click.echo(f"{mutant.name}: {after or 'not found'}", err=True)
        missing.extend([] if after else [mutant.name])
        return after

    text = mutants.table(found, chosen)
    if write is not None:
        write.write_text(between(write.read_text(), text))
    click.echo(text, nl=False)
    sys.exit(1 if missing else 0)


MARKERS = ("<!-- mutants: made by `meridian sim mutants --write` -->\n", "<!-- end -->\n")


def between(page: str, text: str) -> str:
    """The page with `text` between the markers. Raises ValueError where there are none."""
    begin, end = (page.index(marker) for marker in MARKERS)
    return page[: begin + len(MARKERS[0])] + text + page[end:]
