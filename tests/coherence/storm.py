"""The storm: writers on all instances, schema changes in the middle, and the reckoning."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable

import psycopg

from tests.coherence.ddl import Ddl
from tests.coherence.model import SCHEMA, Model
from tests.coherence.writers import Shared, Writer

WRITERS = 8


@dataclasses.dataclass
class Plan:
    """Seconds without DDL, with DDL, and without again; seconds between two changes."""

    before_s: float
    during_s: float
    after_s: float
    interval_s: float


class Storm:
    """`dsns` gives the instances' addresses now; with `kills`, connections may be lost."""

    def __init__(self, dsns: Callable[[], list[str]], plan: Plan, kills: bool = False) -> None:
        self.shared = Shared(dsns, kills)
        self.plan = plan
        self.calm = threading.Event()
        self.writers = [Writer(number, self.shared) for number in range(WRITERS)]
        self.ddl = Ddl(self.shared, plan.interval_s, self.calm)
        self.marks: list[float] = []

    def run(self, meanwhile: Callable[[float], None] = time.sleep) -> None:
        """`meanwhile` gets the seconds of each phase and may do harm during them."""
        with psycopg.connect(self.shared.dsns()[0], autocommit=True) as session:
            session.execute(SCHEMA)
        for writer in self.writers:
            writer.start()
        try:
            self._phase(time.sleep, self.plan.before_s)
            self.ddl.start()
            self._phase(meanwhile, self.plan.during_s)
            self.calm.set()
            self.ddl.join(timeout=120)
            self._phase(time.sleep, self.plan.after_s)
            self.marks.append(time.monotonic())
        finally:
            self.calm.set()
            self.shared.stopping.set()
            for writer in self.writers:
                writer.join(timeout=60)
        hung = [thread.name for thread in (*self.writers, self.ddl) if thread.is_alive()]
        assert not hung, f"hang: {hung}"

    def _phase(self, pass_time: Callable[[float], None], seconds: float) -> None:
        self.marks.append(time.monotonic())
        pass_time(seconds)

    # The reckoning

    def differences(self, dsn: str) -> list[str]:
        """What is wrong, as sentences: during the storm, and in the database now."""
        found = [line for writer in self.writers for line in writer.wrong] + self.ddl.wrong
        with psycopg.connect(dsn) as session:
            ledger = set(session.execute("SELECT writer, seq FROM ledger"))
            model = Model()
            model.apply(
                [
                    effect
                    for writer in self.writers
                    for effect in self._settle(writer, ledger, found)
                ]
            )
            return found + model.compare(session)

    def _settle(self, writer: Writer, ledger: set[tuple[int, int]], found: list[str]) -> list:
        """The effects of the writer's committed transactions."""
        mine = {seq for number, seq in ledger if number == writer.number}
        if lost := writer.committed.keys() - mine:
            found.append(f"{writer.name}: acknowledged but lost: {sorted(lost)[:10]}")
        if ghosts := mine - writer.committed.keys() - writer.unknown.keys():
            found.append(f"{writer.name}: refused but there: {sorted(ghosts)[:10]}")
        known = [effect for seq, effect in writer.unknown.items() if seq in mine]
        return [*writer.committed.values(), *known]

    def rates(self) -> list[float]:
        """Commits per second before, during and after."""
        times = sorted(t for writer in self.writers for t in writer.commit_times)
        edges = zip(self.marks, self.marks[1:], strict=False)
        return [sum(start <= t < end for t in times) / (end - start) for start, end in edges]

    def report(self) -> str:
        """A few lines for people."""
        commits = sum(len(writer.committed) for writer in self.writers)
        errors = sum((writer.errors for writer in self.writers), Counter[str]())
        total = commits + sum(errors.values())
        names = ("before", "during", "after")
        rates = ", ".join(
            f"{name} {rate:.0f}" for name, rate in zip(names, self.rates(), strict=False)
        )
        kinds = ", ".join(
            f"{name}: {count} ({100 * count / total:.2f}%)" for name, count in errors.most_common()
        )
        done = sum((writer.done for writer in self.writers), Counter[str]())
        lost = sum((writer.conflicts for writer in self.writers), Counter[str]())
        work = ", ".join(f"{what} {done[what]} ({lost[what]})" for what in sorted(done))
        unknown = sum(len(writer.unknown) for writer in self.writers)
        slowest = max(self.ddl.done, key=lambda one: one[1], default=("none", 0.0))
        changes = Counter(kind for kind, _ in self.ddl.done)
        return "\n".join(
            (
                f"storm: {WRITERS} writers, {len(self.shared.dsns())} instances, {commits} commits,"
                f" {unknown} of unknown outcome",
                f"  commits/s: {rates}",
                f"  errors: {kinds or 'none'}",
                f"  committed (refused): {work}",
                f"  DDL: {len(self.ddl.done)} done, {sum(self.ddl.retries.values())} tried again"
                f" {dict(self.ddl.retries)}, errors {dict(self.ddl.errors)},"
                f" slowest {slowest[0]} {slowest[1]:.1f} s, seen late {self.ddl.late}",
                f"  changes: {dict(changes)}",
            )
        )
