"""A simulated replica beside journals that come and are trimmed while it reads others."""

from __future__ import annotations

from random import Random

from meridian.journal.core import Lease, Marker, Position, Seal, make
from meridian.sim.disk import Disk
from meridian.sim.messages import Parts, Records
from meridian.sim.replica import Replica
from meridian.sim.store import Store
from meridian.sim.stream import SharedJournal
from meridian.sim.swarm import choose
from meridian.sim.world import World

FILES = next(seed for seed in range(100) if not choose(seed).streams and not choose(seed).rots)
EPOCH = (1, 7)


def test_a_journal_trimmed_before_it_was_heard_of_needs_a_checkpoint() -> None:
    """Another replica read it, made a checkpoint and had it trimmed meanwhile: docs/bugs.md."""
    journals: list[Disk | SharedJournal] = [Disk(Random(0))]
    object_store: list[Store] = []
    replica = Replica(World(FILES, choose(FILES)), 0, journals, [], object_store, Parts())
    replica.start()
    late = Disk(Random(0))
    late.write([make(EPOCH, 1, Marker(1)), make(EPOCH, 2, Seal(0, 50))])
    late.synced(len(late.data), 2)
    checkpoint = Store()
    checkpoint.positions = {0: 0, 1: 2}
    object_store.append(checkpoint)
    late.trim(2)
    assert late.beginning.n == 2
    journals.append(late)
    replica._hear(1)
    replica._poll()
    assert replica.alive
    assert replica.incarnation == 2
    assert replica.store.positions[1] == 2
    replica.receive("o1", Records(1, 3, [make(EPOCH, 3, Lease(90))]))
    assert dict(replica._bar.positions())[1] == 3


def test_a_new_journal_is_read_from_its_beginning() -> None:
    journals: list[Disk | SharedJournal] = [Disk(Random(0))]
    replica = Replica(World(FILES, choose(FILES)), 0, journals, [], [], Parts())
    replica.start()
    new = Disk(Random(0))
    new.beginning = Position(tau=20)
    journals.append(new)
    replica._hear(1)
    replica._poll()
    assert replica.incarnation == 1
    assert 1 in replica._readers
