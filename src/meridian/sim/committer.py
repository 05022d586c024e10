"""How a model query processor commits where key ranges have several owners (design 5.3)."""

from __future__ import annotations

from collections.abc import Generator
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from meridian.adjudicator import events as ev
from meridian.adjudicator.cut import Cut, cut, owners_of, pack
from meridian.adjudicator.footprint import Footprint
from meridian.sim.messages import Ask, AskMap, Peer, ThisMap, Told
from meridian.sim.world import MS, S, World
from meridian.wire import votes
from meridian.wire.partition import PartitionMap

if TYPE_CHECKING:
    from meridian.sim.client import Client, Txn

PATIENCE_NS = 20 * S
"""How long a transaction tries to read, and then to learn its outcome, before it gives up."""
LONG_PATIENCE_NS = 90 * S
"""The same where processes may stand still for half a minute."""
UNKNOWN_ANSWERS = 10
"""So many times "unknown", over longer than any owner takes to start, is for good."""

Wait = Generator[tuple[int, object], Any, Any]


def joined(cuts: list[Cut], owner: int) -> tuple[Footprint, tuple[tuple[int, bytes, bytes], ...]]:
    """What one owner must hold of all chunks: footprint and bounds."""
    parts = [one.part(owner) for one in cuts]
    first = parts[-1].footprint

    def every(name: str) -> Any:
        found = [getattr(part.footprint, name) for part in parts]
        if isinstance(found[0], bytes):
            return b"".join(found)
        return tuple(dict.fromkeys(sid for one in found for sid in one))

    names = ("writes", "shares", "checks", "sids", "written", "row_locked", "locked", "shared")
    print_ = msgspec.structs.replace(first, **{name: every(name) for name in names})
    return print_, tuple(bound for part in parts for bound in part.bounds)


def patience(world: World) -> int:
    """How long a transaction waits for others."""
    return LONG_PATIENCE_NS if world.swarm.long_pauses else PATIENCE_NS


def _of_another(told: Told, attempt: int) -> bool:
    """The end of an attempt that a newer one ended: who took it for that one's would end it too."""
    return told.answer.outcome is ev.Outcome.RETRY and 0 < told.attempt < attempt


class Committer:
    """Cuts write sets by a map that may be stale, asks the voters, makes attempts."""

    def __init__(self, client: Client, random: Random) -> None:
        self.client = client
        self._random = random
        self._map: PartitionMap | None = None
        self._epochs: dict[int, tuple[int, int]] = {}
        self._ahead = client.world.random(f"ahead/{client.name}")
        self._sent: dict[int, int] | None = None
        """So many messages with keys went ahead to each voter; None: they go with the question."""

    def forget(self) -> None:
        """A new process."""
        self._map = None
        self._epochs = {}

    def _fetch_map(self) -> Wait:
        world = self.client.world
        while True:
            world.send(self.client.name, "d", AskMap())
            answer = yield self._random.randint(20 * MS, 100 * MS), ThisMap
            if answer is not None:
                if self._map is None or answer.map.version >= self._map.version:
                    self._map = answer.map
                return
            if self._map is not None:
                return

    def lead_everywhere(self, txn: Txn) -> Wait:
        """A schema change is led by the first of all owners; its id says so from the start.

        Returns all of them, as far as is known.
        """
        if self._map is None:
            yield from self._fetch_map()
        assert self._map is not None
        txn.owner = self._map.everybody()[0]
        txn.txid = votes.name_leader(txn.txid, txn.owner)
        return self._map.everybody()

    def commit(self, txn: Txn, chunks: list[bytes], flags: int) -> Wait:
        """Until the outcome is known, or patience ends."""
        world, random = self.client.world, self._random
        if self._map is None:
            yield from self._fetch_map()
        assert self._map is not None
        leader = owners_of([cut(chunk, self._map) for chunk in chunks], self._map)[0]
        txn.owner = leader
        txn.txid = votes.name_leader(txn.txid, leader)
        world.using[txn.txid] = txn.writes.using()
        attempt, again, unsure, sent = 0, False, False, 0
        deadline = world.now + patience(world)
        self._sent = None
        if self._ahead.random() < world.swarm.ahead:
            self._send_ahead(txn, chunks)
        while world.now < deadline and txn.unknown_answers < UNKNOWN_ANSWERS:
            sent += 1
            if unsure or (again and random.random() < 0.2):
                self._tell(leader, Ask(ev.Status(0, txn.txid, txn.tau_start)))
            else:
                # After silence the same attempt may be sent again, or the next one.
                attempt += not again or random.random() < 0.5
                yield from self._send(txn, chunks, flags, attempt)
            again = True
            told = yield random.randint(100 * MS, 400 * MS), txn.txid
            while told is not None and _of_another(told, attempt):
                told = yield random.randint(100 * MS, 400 * MS), txn.txid
            if told is None:
                continue
            answer: ev.Answer = told.answer
            if answer.outcome is ev.Outcome.UNKNOWN:
                unsure = True
                txn.unknown_answers += 1
                yield random.randint(11 * MS, 220 * MS), None
            elif answer.outcome is ev.Outcome.RETRY:
                again = False
                world.count(f"retry {ev.Code(answer.code).name.lower()}")
                if answer.epoch > (0, 0):
                    self._epochs[leader] = answer.epoch
                if answer.code is ev.Code.PLACE and random.random() < 0.8:
                    yield from self._fetch_map()
                    # By another map others hold other keys: they go with the question.
                    self._sent = None
                if answer.code is ev.Code.PARTS and self._sent is not None:
                    # Lost, late, or gone with a voter that knew them: what is there stays.
                    self._send_ahead(txn, chunks)
                yield random.randint(MS, 20 * MS), None
            else:
                if txn.owners > 1:
                    world.count(f"cross {answer.outcome.name.lower()}")
                    world.counts["attempts"] = world.counts.get("attempts", 0) + attempt
                self._forget_ahead(txn)
                self.client.hear(txn, answer)
                return
        self._forget_ahead(txn)

    def _send_ahead(self, txn: Txn, chunks: list[bytes]) -> None:
        """Their keys, to all voters; a message per chunk."""
        assert self._map is not None
        self._sent = {}
        for chunk in chunks:
            for owner, part in cut(chunk, self._map).parts.items():
                if owner == txn.owner:
                    continue
                print_, seq = part.footprint, self._sent.get(owner, 0)
                self._sent[owner] = seq + 1
                shares = print_.shares + print_.checks
                message = votes.Ahead(
                    txn.txid, txn.tau_start, seq, print_.writes, shares, part.bounds
                )
                self._tell(owner, Peer(message), everybody=True)

    def _forget_ahead(self, txn: Txn) -> None:
        for owner in self._sent or ():
            self._tell(owner, Peer(votes.Forget(txn.txid)))

    def _tell(self, number: int, message: Any, *, everybody: bool = False) -> None:
        """To one or all of those who may be this adjudicator."""
        names = self.client.world.owner_names(number)
        if not everybody and self._random.random() < 0.5:
            names = [self._random.choice(names)]
        for name in names:
            if isinstance(message, Ask) and isinstance(message.event, ev.Commit):
                self.client.ask(name, message.event)
            else:
                self.client.world.send(self.client.name, name, message)

    def _send(self, txn: Txn, chunks: list[bytes], flags: int, attempt: int) -> Wait:
        assert self._map is not None
        leader = txn.owner
        cuts = [cut(chunk, self._map) for chunk in chunks]
        owners = owners_of(cuts, self._map)
        everywhere = any(one.everywhere for one in cuts)
        voters = tuple(owner for owner in owners if owner != leader)
        if voters:
            self.client.world.voted[txn.txid] = None
        txn.owners = max(txn.owners, len({*owners, leader}))
        epoch = self._epochs.get(leader, (0, 0)) if voters else (0, 0)
        if epoch > (0, 0) or not voters:
            for seq, chunk in enumerate(chunks[:-1]):
                self._tell(leader, Ask(ev.Part(txn.txid, txn.tau_start, seq, chunk)))
                yield self._random.randint(0, 2 * MS), None
            for voter in voters:
                print_, bounds = joined(cuts, voter)
                ahead = (self._sent or {}).get(voter, 0)
                if ahead:
                    self.client.world.count("asked by keys sent ahead")
                    print_ = msgspec.structs.replace(print_, writes=b"", shares=b"", checks=b"")
                    bounds = ()
                ask = votes.Ask(
                    txn.txid, attempt, epoch, txn.tau_start, txn.catver,
                    pack(print_), bounds, everywhere, ahead,
                )  # fmt: skip
                self._tell(voter, Peer(ask))
        request = ev.Commit(
            0, txn.txid, txn.tau_start, txn.catver, flags, len(chunks) - 1, chunks[-1],
            attempt if voters else 0, epoch, voters,
        )  # fmt: skip
        self._tell(leader, Ask(request))
        if self._random.random() < 0.05:
            # Somebody who does not know that the id names the leader (5.6).
            wrong = self._random.choice(owners)
            self._tell(wrong, Ask(msgspec.structs.replace(request, voters=(), attempt=0)))
