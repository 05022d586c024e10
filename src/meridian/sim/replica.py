"""A replica process that holds everything: one lane, checkpoints of it, and self-checks."""

from __future__ import annotations

from typing import Any

from meridian.clock.tau import TAU_MAX
from meridian.sim.follower import Follower, Journal
from meridian.sim.lane import Lane
from meridian.sim.messages import CountAsked, CountTold, Get, Got, Parts
from meridian.sim.owner import Owner
from meridian.sim.store import Store
from meridian.sim.world import MS, S, World
from meridian.storage import agreement
from meridian.storage import core as st
from meridian.storage.agreement import SelfCheck

CHECK_NS = 300 * MS
CHECK_LAG_NS = 100 * MS
"""Digests are as of a little while ago, which the other replicas have as well."""
READ_PATIENCE_NS = 60 * S


class Replica(Follower):
    """Node `r<number>`: everything of every journal.  A crash may lose its file or keep it."""

    def __init__(
        self,
        world: World,
        number: int,
        journals: list[Journal],
        owners: list[Owner],
        object_store: list[Store],
        parts: Parts,
    ) -> None:
        super().__init__(world, f"r{number}", journals, owners, parts, f"replica/{number}")
        self.object_store = object_store
        self.store = Store()
        self._reads: dict[int, tuple[str, Get]] = {}
        self._token = 0
        self._check = SelfCheck(number, patience_ns=S)
        self._discard = False
        self._agreed = 0
        """Found equal to others as of this tau, after the healing: nothing rots since."""
        self._began_healed = False
        self._publishing: Store | None = None
        self._tried: Store | None = None
        """A checkpoint that waits for another replica to confirm it, and whether it did before."""
        self._checked: Store | None = None
        """The checkpoint that the check under way is of; None: it is of the file."""

    def checkpoint(self) -> None:
        """A copy of the file to the object store; the journals are trimmed behind it."""
        last = self.object_store[-1].positions if self.object_store else {}
        ahead = all(self.store.positions.get(number, 0) >= n for number, n in last.items())
        if not self.alive or not ahead:
            return
        if self.world.swarm.rots:
            # Rot in a checkpoint would outlive the journals that know better: see `_verdict`.
            self._publishing = self.store.copy()
            return
        self._publish(self.store.copy())

    def _publish(self, copy: Store) -> None:
        last = self.object_store[-1].positions if self.object_store else {}
        if not all(copy.positions.get(number, 0) >= n for number, n in last.items()):
            return
        self.object_store.append(copy)
        for owner in self.owners:
            owner.trim(copy.positions.get(owner.number, 0))
        self.cut(copy.positions)

    # Bit rot and the checks that find it

    def rot(self) -> None:
        """One bit of a current value of this copy is not what it was; its disk does not notice."""
        rotten = self.store.rot(self._random, self.name)
        if rotten is not None:
            self.world.trace("rot", self.name, *rotten)

    def demand(self, tau: int) -> None:
        """As if a reader waited for `tau`; where values rot, for a check of all that is there."""
        checked = max(tau, self.store.tau) + CHECK_LAG_NS
        super().demand(checked if self.world.swarm.rots else tau)

    def settled(self, tau: int) -> bool:
        """Complete through tau and, where values rot, found equal to the others since."""
        if self.complete < tau:
            return False
        # Completeness may run ahead of the clock: a tau does not tell when a check was made.
        if self.world.swarm.rots and self._agreed < max(self.store.tau, 1):
            return False
        self.store.forget_old_rot()
        return True

    def _check_others(self) -> None:
        peers = tuple(n for n in range(self.world.swarm.replicas) if f"r{n}" != self.name)
        tau = self.complete - CHECK_LAG_NS
        if self._tried is not None and self._tried is self._publishing:
            # Nobody confirmed it: the next one will do.
            self._publishing = None
        self._tried = self._publishing
        if self._publishing is not None:
            tau = self._publishing.tau
        if tau > self.store.horizon:
            if not self._check.busy:
                self._began_healed = self.world.healed
                self._checked = self._publishing
            self._judge(agreement.Due(tau, peers))
        self.after(CHECK_NS, self._check_others)

    def _judge(self, event: agreement.Event) -> None:
        for effect in self._check.step(self.clock.now(), event):
            match effect:
                case agreement.Count() if f"r{effect.replica}" == self.name:
                    self._judge(self._counted(effect))
                case agreement.Count():
                    asked = CountAsked(effect.number, effect.tau)
                    self.world.send(self.name, f"r{effect.replica}", asked)
                case agreement.SetTimer():
                    delay = max(effect.at - self.clock.now().earliest, 1_000)
                    self.after(delay, lambda: self._judge(agreement.TimerFired()))
                case _:
                    self._verdict(effect)

    def _counted(self, count: agreement.Count) -> agreement.Counted:
        """The own digest; of a checkpoint that waits, that of the checkpoint."""
        store = self.store if self._checked is None else self._checked
        digest = store.digest(count.tau)
        return agreement.Counted(count.number, count.replica, self.store.built, 0, digest)

    def _verdict(self, verdict: agreement.Effect) -> None:
        self.world.trace("verdict", self.name, type(verdict).__name__)
        publishing, self._publishing = self._publishing, None
        if isinstance(verdict, agreement.Agreed):
            if self._checked is None:
                if self._began_healed:
                    self._agreed = max(self._agreed, verdict.tau)
            # A checkpoint is as of when it was taken: the file may have rotted since.
            elif self._checked is publishing:
                self._publish(publishing)
        elif isinstance(verdict, agreement.RemoveSelf):
            self._discard = True
            self._agreed = 0
            self.crash()
            self.start()

    def _tell(self, source: str, asked: CountAsked) -> None:
        able = self.store.horizon <= asked.tau <= self.complete
        content = self.store.digest(asked.tau) if able else None
        number = int(self.name[1:])
        told = CountTold(asked.number, number, self.store.built, content)
        self.world.send(self.name, source, told)

    def states(self) -> list[str]:
        """Whether somebody waits for it."""
        return ["reads wait" if self._reads else "following"]

    def on_start(self) -> None:
        """Reads every journal from its beginning, applies what its file lacks."""
        starts = self.starts()
        lost = self._random.random() < 0.4 or self.store.lacks(starts)
        if lost or self._discard:
            self.store = self.object_store[-1].copy() if self.object_store else Store()
            if self.world.swarm.rots:
                # What another copy confirmed is what is visible at the checkpoint's tau; versions
                # replaced before may have rotted in it (`restore(history=False)`).
                self.store.horizon = max(self.store.horizon, self.store.tau)
            self.store.built = self.clock.now().latest
            self._discard = False
        self._publishing = None
        store = self.store
        assert not store.lacks(starts), "trimmed beyond the newest checkpoint"
        self.world.trace("start", self.name, store.tau)
        self._reads = {}
        self._bar = self.parts.crossbar()
        self.lanes = [Lane(self, 1, store, self._random)]
        self.begin(starts)
        if self.world.swarm.rots:
            self._check_others()

    def waiting_tau(self) -> int:
        """Of the reads that wait; else what was demanded."""
        return max((get.tau for _, get in self._reads.values()), default=self._wanted)

    def receive(self, source: str, message: Any) -> None:
        """Records, heartbeats, reads."""
        if self.heard(message):
            return
        match message:
            case CountAsked():
                self._tell(source, message)
            case CountTold():
                told = message
                self._judge(
                    agreement.Counted(told.number, told.replica, told.built, 0, told.content)
                )
            case Get():
                self._token += 1
                self._reads[self._token] = (source, message)
                deadline = self.clock.now().earliest + READ_PATIENCE_NS
                self.lanes[0].step(st.Read(self._token, message.tau, deadline))

    def may_serve(self, lane: Lane, token: int) -> None:
        """Complete through its tau."""
        self._serve(*self._reads.pop(token))

    def may_not_serve(self, lane: Lane, token: int, reason: int) -> None:
        """Nobody is told: query processors ask again."""
        self._reads.pop(token)

    def _serve(self, source: str, get: Get) -> None:
        found = [self.store.get(key, get.tau) for key in get.keys]
        newest = max((tau for _, tau in found), default=0)
        assert newest <= get.tau < TAU_MAX
        self.world.trace("read", self.name, get.tau, newest)
        if any(
            (key, tau) in self.store.rotten for key, (_, tau) in zip(get.keys, found, strict=True)
        ):
            # A reader would be told a wrong value until the rot is found; not modelled further.
            self.world.trace("rotten read", self.name)
            return
        got = Got(get.request, tuple(value for value, _ in found))
        self.world.send(self.name, source, got)
