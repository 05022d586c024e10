"""Adds and closes journals while traffic goes on (design section 4.7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meridian.adjudicator import events as ev
from meridian.sim.mapper import Mapper
from meridian.sim.messages import AskJournals, Change, Changed, TheseJournals
from meridian.sim.world import MS, Node, World

ASK_NS = 100 * MS


class Registrar(Node):
    """Node `m`: what it was told to do outlives its crashes, as in a metadata store.

    One change at a time, asked for until its outcome is heard: owners crash, answers get lost.
    """

    def __init__(
        self,
        world: World,
        owners: Callable[[int], list[str]],
        opened: Callable[[int, int], None],
        mapper: Mapper | None,
        routes: list[int],
    ) -> None:
        super().__init__(world, "m")
        self._owners = owners
        self._opened = opened
        self._mapper = mapper
        self._routes = routes
        self._journals = list(routes)
        """All that exist: one that has ended still tells outcomes (5.6)."""
        self._plan: list[tuple[int, ev.AddJournal | ev.CloseJournal]] = []
        """(journal whose owner is asked, what)"""

    @property
    def idle(self) -> bool:
        """Everything planned is done."""
        return not self._plan

    def add(self, number: int) -> None:
        """Journal `number` shall exist."""
        self._plan.append((0, ev.AddJournal(number)))

    def close(self, number: int) -> None:
        """Journal `number` shall end; what it owns goes to others first."""
        if self._mapper is not None:
            self._mapper.drain(number)
        self._plan.append((number, ev.CloseJournal()))

    def on_start(self) -> None:
        """Goes on with its plan."""
        self._ask()

    def _ask(self) -> None:
        if self._plan:
            journal, event = self._plan[0]
            for owner in self._owners(journal):
                self.world.send(self.name, owner, Change(event))
        self.after(ASK_NS, self._ask)

    def receive(self, source: str, message: Any) -> None:
        """What became durable; questions of control cores."""
        if isinstance(message, AskJournals):
            ended = tuple(one for one in self._journals if one not in self._routes)
            self.world.send(self.name, source, TheseJournals(tuple(self._journals), ended))
            return
        assert isinstance(message, Changed)
        if not self._plan:
            return
        journal, event = self._plan[0]
        told = message.effect
        if isinstance(told, ev.Added):
            if event == ev.AddJournal(told.journal):
                self._plan.pop(0)
                self._journals.append(told.journal)
                self._opened(told.journal, told.tau)
        elif isinstance(event, ev.CloseJournal) and message.journal == journal:
            self._plan.pop(0)
