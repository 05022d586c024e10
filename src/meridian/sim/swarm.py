"""Which faults a run has: chosen per seed, so that no run has them all (swarm testing)."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from meridian.adjudicator.ledger import IN_FLIGHT
from meridian.adjudicator.together import COMMITS

MS = 1_000_000


class Swarm(msgspec.Struct, frozen=True, kw_only=True):
    """The mix of one run.  Times in ns, chances per message, sync or transaction."""

    owners: int
    replicas: int
    clients: int
    colocated: bool
    """Owners and replicas are one process with one clock, as in `meridian dev`."""
    streams: bool
    """Journals are shared streams that two owners contend for; else files of one process."""
    takeovers: int
    clock_error: int
    false_bounds: bool
    """Clocks leave their bounds: linearizability may go, isolation may not (C7)."""
    eager: float
    """Chance that a reader waits for a tau ahead of the clock."""
    eager_ns: int
    drop: float
    double: float
    late: float
    delay: tuple[int, int]
    late_delay: tuple[int, int]
    sync: tuple[int, int]
    slow_sync: float
    sync_failure: float
    crash_at_append: float
    crashes: int
    pauses: int
    cuts: int
    clock_steps: int
    checkpoints: int
    coded: bool
    """With streams: a journal is three of them, 2 of 3."""
    lag_bytes: int
    lost_tails: int
    dies_sealing: float
    """Chance that a new owner dies with its SEAL on one stream only."""
    elections: int
    """Times that a stream's servers fail in some way."""
    election: tuple[int, int]
    duplicates_ns: int
    """How long a stream remembers message ids."""
    adds: int
    """Journals added in the middle."""
    closes: int
    rots: int
    """Values that rot in one copy, unnoticed by its disk; then replicas check each other."""
    partitioned: bool
    """Key ranges belong to several owners, who vote; else each has relations of its own."""
    moves: int
    """Ranges that move in the middle."""
    moves_at_votes: float
    """Chance that a range moves right after a vote for it."""
    moves_more: float
    """Chance that further ranges of the same owner go with a range that moves."""
    crash_at_vote: float
    """Chance that an adjudicator crashes right after a vote or a verdict of its own."""
    wide: float
    """Chance that a transaction takes keys of several relations."""
    ahead: float
    """Chance that a transaction sends its voters their keys before it asks them."""
    window_keys: int
    """Keys that the conflict window holds; few make the floor rise."""
    work_keys: int
    """Keys compared in one go; few make large transactions take many steps."""
    keys: int
    machine: bool
    """Colocated: all read one clock over a wall that steps, also while the data plane is down."""
    in_flight: int
    """Decisions under way at an owner, beyond which commits have to come again."""
    gates: float
    """Chance that a transaction rewrites a relation behind a gate, where schemas change."""
    sharded: bool = False
    """Storage is ranges on hosts, found by a shard map; else every replica holds everything."""
    hosts: int = 0
    zones: int = 0
    shards: int = 0
    copies: int = 0
    """Replicas of a shard in the beginning."""
    disturbers: int = 0
    """Who reshape the shards at random."""
    hasty: float = 0.0
    """Chance that a change goes on before its step is done."""
    snapshots: int = 0
    """Times that a replica sends a snapshot of its range."""
    keeps: int = 0
    """Snapshots of a shard that are kept."""
    object_rots: int = 0
    """Times that a bit of a snapshot's object changes, where another snapshot is sound."""
    scans: float = 0.0
    """Chance that a transaction reads a range."""
    host_crashes: int = 0
    zone_cuts: int = 0
    controllers: int = 0
    """Control cores, who reshape shards for a reason, replace what died and take over."""
    safety_ns: int = 5_000 * MS
    """How long things fail."""
    deaths: int = 0
    """Hosts that never come back."""
    zone_crashes: int = 0
    one_way_cuts: int = 0
    """From one zone to another."""
    steerer_crashes: int = 0
    long_pauses: int = 0
    """Of 30 s, of a process or a host."""
    hot: float = 0.0
    """Chance that a transaction goes to the first relation, whatever was drawn."""
    apply_ns: int = MS
    """How long a piece of storage's work takes at most."""
    gateways: int = 0
    """Through which COMMITs travel, many to a frame; 0: each is a message of its own."""
    gather_ns: int = 0
    """How long a gateway waits for more."""
    frame_doubles: float = 0.0
    """Chance that a COMMIT is in its frame twice."""
    plain: float = 0.0
    """Chance that a transaction only writes rows that it has not read."""
    together: int = COMMITS
    """Commits of a frame that are decided together; fewer one by one."""
    weights: tuple[int, ...]
    """Kinds of transactions, in the order of client.KINDS."""


def _journals(random: Random, *, changing: bool) -> dict[str, Any]:
    """What befalls journals: streams of several servers, journals that come and go."""
    return {
        "elections": random.choice((0, 1, 3, 8)),
        "election": random.choice(
            ((100 * MS, 600 * MS), (500 * MS, 2000 * MS), (4000 * MS, 9000 * MS))
        ),
        "duplicates_ns": random.choice((120_000 * MS, 200 * MS)),
        "adds": random.choice((1, 1, 2, 3)) if changing else 0,
        "closes": random.choice((0, 1, 2)) if changing else 0,
        "coded": random.random() < 0.5,
        "lag_bytes": random.choice((0, 300, 1 << 23)),
        "dies_sealing": random.choice((0.0, 0.3)),
        "lost_tails": random.choice((0, 0, 1, 4)),
    }


def choose(seed: int) -> Swarm:
    """The mix of a seed."""
    random = Random(f"{seed}/swarm")

    def often(chance: float, value: float) -> float:
        return random.uniform(0, value) if random.random() < chance else 0.0

    # Drawn apart: the rest of a seed's mix stays what it is.
    journals = Random(f"{seed}/swarm/journals")
    changing = journals.random() < 0.3
    rot = Random(f"{seed}/swarm/rot")
    rots = rot.choice((1, 3, 8)) if rot.random() < 0.2 else 0
    votes = Random(f"{seed}/swarm/votes")
    mixed = Random(f"{seed}/swarm/mixed")
    both = changing and mixed.random() < 0.5
    partitioned = both or (not changing and votes.random() < 0.6)
    owners = random.choice((1, 1, 1, 2, 3))
    if both:
        owners = mixed.choice((1, 2, 2, 3))
    elif partitioned:
        owners = votes.choice((2, 2, 3, 4))
    colocated = random.random() < 0.4
    clock_error = 0 if colocated else random.choice((0, 20_000, MS, 8 * MS, 50 * MS, 50 * MS))
    mix = Swarm(
        owners=owners,
        replicas=max(random.choice((1, 2)), rot.choice((2, 3)) if rots else 0),
        clients=random.randint(2, 6),
        colocated=colocated,
        streams=not colocated and random.random() < 0.4,
        takeovers=random.choice((1, 4, 12)),
        clock_error=clock_error,
        false_bounds=clock_error > 0 and random.random() < 0.15,
        eager=often(0.5, 0.2),
        eager_ns=random.choice((20, 100, 900)) * MS,
        drop=often(0.4, 0.1),
        double=often(0.5, 0.3),
        late=often(0.5, 0.1),
        delay=random.choice(((20_000, 100_000), (50_000, MS), (MS, 10 * MS))),
        late_delay=(10 * MS, random.choice((50, 400, 2000)) * MS),
        sync=random.choice(((50_000, 300_000), (MS, 5 * MS), (5 * MS, 40 * MS))),
        slow_sync=often(0.3, 0.05),
        sync_failure=often(0.3, 0.02),
        crash_at_append=often(0.4, 0.03),
        crashes=random.choice((0, 0, 1, 3, 6)),
        pauses=random.choice((0, 0, 1, 3)),
        cuts=random.choice((0, 0, 2, 5)),
        clock_steps=random.choice((0, 0, 5, 20)),
        checkpoints=random.choice((0, 0, 1, 4)),
        rots=rots,
        **_journals(journals, changing=changing),
        partitioned=partitioned,
        moves=votes.choice((0, 0, 2, 6, 20)) if partitioned else 0,
        moves_at_votes=votes.choice((0, 0, 0.02, 0.1)) if partitioned else 0,
        crash_at_vote=votes.choice((0.0, 0.0, 0.01, 0.05)) if partitioned else 0.0,
        wide=votes.choice((0.0, 0.3, 0.8)),
        moves_more=Random(f"{seed}/swarm/more").choice((0.0, 0.0, 0.0, 0.5)),
        ahead=Random(f"{seed}/swarm/ahead").choice((0.0, 0.3, 1.0)) if partitioned else 0.0,
        window_keys=random.choice((1 << 20, 1 << 20, 4, 16)),
        work_keys=random.choice((1 << 16, 1)),
        keys=random.choice((3, 6, 20)),
        machine=colocated and Random(f"{seed}/swarm/machine").random() < 0.5,
        in_flight=Random(f"{seed}/swarm/in_flight").choice((IN_FLIGHT, IN_FLIGHT, 2)),
        gates=Random(f"{seed}/swarm/gates").choice((0.0, 0.0, 0.02, 0.08)),
        weights=tuple(random.choice((0, 1, 1, 3)) for _ in range(9)),
    )
    return _gathered(mix if changing else _spread(mix, seed), seed)


def _gathered(mix: Swarm, seed: int) -> Swarm:
    """In part of the runs gateways gather what query processors commit into frames."""
    random = Random(f"{seed}/swarm/gateways of hosts")
    # Runs of control cores are long: they have no more query processors than they need.
    if random.random() >= 0.1 or mix.controllers:
        return mix
    return together(mix, random)


def together(mix: Swarm, random: Random) -> Swarm:
    """The same with gateways, and with more query processors: frames of some length."""
    if mix.partitioned and not mix.adds and random.random() < 0.5:
        # One of several owners looks at each commit by itself.
        mix = msgspec.structs.replace(
            mix, owners=1, partitioned=False, moves=0, moves_at_votes=0.0, crash_at_vote=0.0
        )
    return msgspec.structs.replace(
        mix,
        clients=random.choice((8, 8, 12, 16)),
        gateways=random.choice((1, 1, 2)),
        gather_ns=random.choice((3, 15, 40)) * MS,
        frame_doubles=random.choice((0.0, 0.05, 0.3)),
        plain=random.choice((0.5, 0.8, 0.95)),
        together=random.choice((2, 2, 4, COMMITS)),
        # As many more clients need more of what they share.
        window_keys=mix.window_keys if mix.window_keys > 16 else 16 * mix.window_keys,
        in_flight=mix.in_flight if mix.in_flight > 2 else 8,
    )


def _spread(mix: Swarm, seed: int) -> Swarm:
    """In half of the runs storage lies in ranges on hosts; control cores steer some of these.

    In some of either kind journals come and go meanwhile.
    """
    shards = Random(f"{seed}/swarm/shards")
    if shards.random() >= 0.5:
        return mix
    sharded = _sharded(mix, shards)
    control = Random(f"{seed}/swarm/control")
    spread = _steered(sharded, control) if control.random() < 0.4 else sharded
    objects = Random(f"{seed}/swarm/objects")
    if spread.snapshots and objects.random() < 0.3:
        spread = msgspec.structs.replace(spread, object_rots=objects.choice((3, 10, 30)), keeps=2)
    added = Random(f"{seed}/swarm/added")
    return _growing(spread, added) if added.random() < 0.3 else spread


def _growing(mix: Swarm, random: Random) -> Swarm:
    """Journals come and go; what does not concern them stays."""
    adds, closes = random.choice((1, 1, 2, 3)), random.choice((0, 1, 2))
    return msgspec.structs.replace(mix, adds=adds, closes=closes)


def _sharded(mix: Swarm, random: Random) -> Swarm:
    """Ranges on hosts: nothing shares a process, so that clocks are several."""
    clock_error = random.choice((0, 20_000, MS, 8 * MS, 50 * MS))
    hosts = random.choice((2, 3, 4))
    rots = mix.rots if random.random() < 0.5 else 0
    return msgspec.structs.replace(
        mix,
        sharded=True,
        colocated=False,
        clock_error=clock_error if mix.colocated else mix.clock_error,
        checkpoints=0,
        rots=rots,
        hosts=hosts,
        zones=random.choice((1, 2, 3)),
        shards=random.choice((1, 2, 3, 4)),
        copies=random.choice((2, 3)) if rots else random.choice((1, 2)),
        disturbers=random.choice((0, 1, 1, 2)),
        hasty=random.choice((0.0, 0.0, 0.3)),
        snapshots=random.choice((0, 10, 30, 60)),
        keeps=random.choice((1, 2)),
        scans=random.choice((0.2, 0.6)),
        host_crashes=random.choice((0, 0, 1, 3)),
        zone_cuts=random.choice((0, 0, 2)),
        apply_ns=random.choice((1, 1, 20, 80)) * MS,
    )


def _steered(mix: Swarm, random: Random) -> Swarm:
    """Control cores keep hosts, copies and owners in shape; nobody else disturbs the shards."""
    hosts = random.choice((3, 4, 5))
    copies = random.choice((1, 2, 2, 3))
    rots = mix.rots if copies > 1 else 0
    long_pauses = random.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 2))
    return msgspec.structs.replace(
        mix,
        disturbers=0,
        hosts=hosts,
        zones=random.choice((2, 3)),
        copies=copies,
        rots=rots,
        streams=random.random() < 0.6,
        controllers=random.choice((1, 1, 2)),
        safety_ns=(40_000 if long_pauses else random.choice((6_000, 9_000))) * MS,
        deaths=random.choice((0, 0, 1, 2)) if hosts - copies > 1 else 0,
        zone_crashes=random.choice((0, 0, 1, 2)),
        one_way_cuts=random.choice((0, 0, 1, 3)),
        steerer_crashes=random.choice((0, 1, 3)),
        long_pauses=long_pauses,
        hot=random.choice((0.0, 0.5, 0.9)),
        # Their policies give a build three seconds.
        apply_ns=MS,
    )
