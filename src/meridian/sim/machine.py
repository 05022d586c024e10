"""One machine, one clock (design 4.2): all processes of a colocated world read the real `Clock`.

Its wall clock steps, back too, while it runs and while the data plane is down.  A data plane that
starts makes a new clock from the wall and lets it see the last tau of each journal, as recovery
does.  Query processors take tau_start from the data plane, so none begins while it is down.
"""

from __future__ import annotations

from meridian.clock.clock import Clock
from meridian.clock.tau import Interval
from meridian.sim.world import MS, Node, S, World

STEP_NS = 3 * S


class Machine:
    """The clock of all nodes of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.up = True
        self._random = world.random("machine")
        self._offset = 0
        self._clock = self._make()

    def _make(self) -> Clock:
        return Clock(0, wall_ns=self._wall, monotonic_ns=lambda: self.world.now)

    def _wall(self) -> int:
        return self.world.now + self._offset

    def of(self, node: Node) -> Machine:
        """The clock that a process reads."""
        return self

    def now(self) -> Interval:
        """Error 0 among the processes; true time may be elsewhere."""
        return self._clock.now()

    def observe(self, tau: int) -> None:
        """A journal holds this tau."""
        self._clock.observe(tau)

    def step(self) -> None:
        """Somebody sets the wall clock."""
        self._offset = self._random.choice((0, self._random.randint(-STEP_NS, STEP_NS), 5 * MS))

    def stop(self) -> None:
        """The data plane ends, and perhaps the machine."""
        self.up = False
        if self._random.random() < 0.5:
            self.step()

    def start(self) -> None:
        """A new process of the data plane; its journals are not read yet."""
        if not self.up:
            self._clock = self._make()
            self.up = True

    def heal(self) -> None:
        """The wall is right from here on; the clock goes slowly until the wall has caught up."""
        self._offset = 0
