"""Storage in ranges in the world: what happens, and the parts whose failure seeds seldom hit."""

from __future__ import annotations

import itertools
import random

import pytest

from meridian.journal.core import Position, Reader
from meridian.sim.archive import shard_name
from meridian.sim.client import Txn
from meridian.sim.routed import Scanned
from meridian.sim.run import Run, run_seed
from meridian.sim.shard_checks import check_replicas, check_scan
from meridian.sim.store import Store
from meridian.sim.swarm import choose
from meridian.sim.world import SimulationError
from meridian.snapshots.manifest import MANIFEST_NAME
from meridian.wire.ops import Put
from meridian.wire.ranges import END, EVERYTHING, Owned, Range, place

SHARDED = [seed for seed in range(400) if choose(seed).sharded]
ROW = b"\1" * 8


def store(rows: int, owned: Owned = Owned(b"", END)) -> Store:
    """Row n is written at tau 10 + n."""
    made = Store([owned])
    for n in range(rows):
        made.apply(10 + n, [Put(1000, 0, (1,), [b"k%d" % n], ROW, b"", [(b"v%d" % n,)])])
    return made


def still(seed: int = SHARDED[0]) -> Run:
    """A world with hosts that run, and nobody else."""
    run = Run(seed)
    assert run.fleet is not None
    return run


def test_everything_happens_within_a_few_seeds() -> None:
    counts: dict[str, int] = {}
    for seed in SHARDED[:16]:
        result = run_seed(seed)
        assert result.failure == ""
        for name, count in result.counts.items():
            counts[name] = counts.get(name, 0) + count
    for name in (
        "scans", "map", "build", "shrink", "remove", "snapshot", "trim", "joined", "reshape",
        "read refused 1", "read refused 2", "crash x host with replicas",
    ):  # fmt: skip
        assert counts.get(name), f"{name} never happened"


def test_a_third_of_the_seeds_have_ranges_and_some_of_these_added_journals() -> None:
    swarms = [choose(seed) for seed in range(400)]
    ranged = [one for one in swarms if one.sharded]
    assert 0.25 < len(ranged) / len(swarms) < 0.45
    growing = [one for one in ranged if one.adds]
    assert 0.2 < len(growing) / len(ranged) < 0.4
    assert any(one.controllers for one in growing) and any(one.partitioned for one in growing)
    assert any(one.rots for one in growing) and any(one.streams for one in growing)


def test_a_snapshot_knows_journals_that_its_file_holds_nothing_of() -> None:
    """6.7: else who is built from it skips the ADD that it holds already: docs/bugs.md."""
    run = still(next(seed for seed in SHARDED if not choose(seed).rots))
    fleet = run.fleet
    assert fleet is not None
    fleet.placement.start()
    replica = fleet.living()[0]
    replica.host.start()
    new, copy = len(run.journals), replica.stores[0].copy()
    copy.positions = {0: 0, new: 0}
    replica.snapshots.take(copy, random.Random(0))
    run.world.run(run.world.now + 1_000_000_000)
    ((_, manifest),) = fleet.archive._all()
    assert manifest.positions[new] == 0 and manifest.starts[new] == Position()
    part = Range(manifest.owned[0].lo, manifest.owned[0].hi)
    (built,) = fleet.archive.build(part, {0: Position()})
    assert new in built.positions


def test_files_that_become_one_know_every_journal_that_one_of_them_knew() -> None:
    first, second = store(0, Owned(b"", b"b")), store(0, Owned(b"b", END))
    first.positions, second.positions = {0: 7, 1: 3}, {0: 6}
    first.take_over(second)
    assert first.positions == {0: 6, 1: 0}


def test_records_that_are_read_again_are_no_load() -> None:
    """Else who puts its files together looks hot, is split and merged, for ever (seed 14132)."""
    replica = still().fleet.living()[0]  # type: ignore[union-attr]

    def written(through: int) -> int:
        """What it reports after it has read the journal from its beginning."""
        replica.opened(0, Position())
        for n in range(1, through + 1):
            replica.read_on(0, Reader(Position(n=n)))
        replica._caught_up = True
        return replica.report(0).writes_per_s

    assert written(400) == 400
    assert [written(through) for through in (200, 400, 403)] == [0, 0, 3]
    replica.host.start()
    replica.crash()
    replica.stores = [store(0, Owned(b"", b"b")), store(0, Owned(b"b", END))]
    for held, n in zip(replica.stores, (300, 410), strict=True):
        held.positions = {0: n}
    # It starts again with these files: the first draw says that they are not lost.
    replica._random = random.Random(2)
    replica.start()
    assert written(412) == 2


def test_a_snapshot_without_its_manifest_is_none() -> None:
    run = still()
    fleet = run.fleet
    assert fleet is not None
    node, held = fleet.placement, store(3)
    node.start()
    fleet.archive.write(node, held, {0: Position(n=4)})
    name = shard_name(EVERYTHING)
    while not any(one.name.endswith(MANIFEST_NAME) for one in fleet.archive.objects.list(name)):
        assert fleet.archive.build(EVERYTHING, {0: Position()})[0].tau == 0
        run.world.run(run.world.now + 10_000_000)
    built = fleet.archive.build(EVERYTHING, {0: Position(n=4)})
    assert [one.tau for one in built] == [12]
    assert built[0].positions == {0: 4}
    with pytest.raises(SimulationError, match="no snapshot holds"):
        fleet.archive.build(EVERYTHING, {0: Position(n=5)})


def test_a_range_of_several_snapshots_has_parts_of_their_own() -> None:
    run = still()
    fleet = run.fleet
    assert fleet is not None
    node = fleet.placement
    node.start()
    border = place(1000, b"k1")
    for rows, part in ((2, Owned(b"", border)), (3, Owned(border, END))):
        fleet.archive.write(node, store(rows, part), {0: Position(n=rows)})
    run.world.run(run.world.now + 1_000_000_000)
    wanted = Range(place(1000), place(1001))
    built = fleet.archive.build(wanted, {0: Position(n=1)})
    assert [one.ranges.owned[0].range for one in built] == [
        Range(wanted.lo, border),
        Range(border, wanted.hi),
    ]
    assert [one.complete for one in built] == [11, 12]


def test_the_checkers_see_what_is_wrong() -> None:
    truth, held = store(3), store(3, Owned(place(1000, b"k1"), END))
    replica = still().fleet.living()[0]  # type: ignore[union-attr]
    replica.stores = [held]
    check_replicas(truth, [replica])
    held.versions[1000, b"k2"] = ([12], [b"rot"])
    with pytest.raises(SimulationError, match="does not hold"):
        check_replicas(truth, [replica])
    del held.versions[1000, b"k2"]
    with pytest.raises(SimulationError, match="does not hold"):
        check_replicas(truth, [replica])


@pytest.mark.parametrize("descending", [False, True])
def test_scans_are_held_against_the_model(descending: bool) -> None:
    truth = store(4)
    rows = tuple(((1000, b"k%d" % n), b"v%d" % n) for n in range(3))
    rows = rows[::-1] if descending else rows

    def check(rows: tuple[tuple[tuple[int, bytes], bytes], ...], more: bool) -> None:
        txn = Txn(b"t", b"", 0, 0)
        txn.scans.append(Scanned(EVERYTHING, 12, descending, rows, more))
        check_scan(truth, txn.name, txn.scans[0])

    check(rows, False)
    check(rows[:2], True)
    for wrong, more in ((rows[:2], False), (rows[1:], True), (rows[::-1], False)):
        with pytest.raises(SimulationError, match="scan"):
            check(wrong, more)


def test_old_versions_go_and_reads_below_are_told_apart() -> None:
    held = store(1)
    for tau in (20, 30):
        held.apply(tau, [Put(1000, 0, (1,), [b"k0"], ROW, b"", [(b"%d" % tau,)])])
    held.collect(25)
    assert held.ranges.owned == (Owned(b"", END, 25),)
    assert held.versions[1000, b"k0"] == ([20, 30], [b"20", b"30"])
    assert list(itertools.chain(*held.scan(EVERYTHING, 25)))[1] == b"20"
