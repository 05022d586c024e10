"""The conflict window: which keys were written or shared lately, and when (design section 5).

Keys are 64-bit hashes.  Two keys with one hash cost a false abort, never a missed conflict.

The window is a list of *spans* in the order of their taus.  A `Generation` maps the keys of many
small transactions to their last taus; a `Layer` is the key set of one large transaction and bears
its one tau.  A span whose newest tau is not above tau_start holds no conflict and is not looked
at, so a recent transaction looks at one or two spans.  Whole spans are forgotten, oldest first;
then the *floor* rises to their newest tau, and what began below the floor is refused.

No loop here runs in Python over the keys of a large transaction: they are compared by `map` and set
operations in slices, a bounded number per step (`Draft.work`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import repeat
from struct import Struct
from sys import byteorder

from meridian.limits import CONFLICT_KEYS, CONFLICT_WINDOW_NS

GENERATION_KEYS = 65_536
"""Keys in one generation: few enough that freeing it takes a few milliseconds."""
GENERATION_NS = CONFLICT_WINDOW_NS // 16
LAYER_SET_KEYS = 65_536
"""Keys in one set of a layer: growing it further would copy it for too long."""
SLICE_KEYS = 16_384
"""Keys compared with one container in one go: about a millisecond."""
WORK_KEYS = 32_768
"""Keys compared in one step of background work: 2 or 3 ms."""

assert byteorder == "little", "hashes travel little-endian and are cast in place"

Keys = Sequence[int]

_FEW = 64
_UNPACK = [Struct(f"<{count}Q").unpack for count in range(_FEW + 1)]


def keys_of(hashes: bytes) -> Keys:
    """The keys in a string of little-endian 64-bit hashes; many are not copied."""
    count, rest = divmod(len(hashes), 8)
    assert not rest, len(hashes)
    # A tuple is made once and walked several times; a view makes each number anew.
    return _UNPACK[count](hashes) if count <= _FEW else memoryview(hashes).cast("Q")


class Generation:
    """Last write and share taus of the keys of many small transactions."""

    __slots__ = ("newest", "oldest", "shares", "writes")

    def __init__(self, oldest: int) -> None:
        self.oldest = oldest
        self.newest = oldest
        self.writes: dict[int, int] = {}
        self.shares: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.writes) + len(self.shares)

    def conflicts(self, tau_start: int, writes: Keys, shares: Keys) -> bool:
        """Rules 5.1 and 5.2: any tau above tau_start counts, however far ahead it lies."""
        taus = self.writes
        # Most keys are in no span at all, which is told fastest.
        if not taus.keys().isdisjoint(writes) and _after(tau_start, taus, writes):
            return True
        if self.shares and _after(tau_start, self.shares, writes):
            return True
        return bool(shares) and _after(tau_start, taus, shares)


class Layer:
    """The keys of one large transaction, in sets of bounded size; all bear one tau."""

    __slots__ = ("newest", "shares", "writes")

    def __init__(self, tau: int, writes: list[set[int]], shares: list[set[int]]) -> None:
        self.newest = tau
        self.writes = writes
        self.shares = shares

    def __len__(self) -> int:
        return sum(map(len, self.writes)) + sum(map(len, self.shares))

    def conflicts(self, tau_start: int, writes: Keys, shares: Keys) -> bool:
        """As Generation.conflicts."""
        if self.newest <= tau_start:
            return False
        return (
            _any_in(self.writes, writes)
            or _any_in(self.shares, writes)
            or _any_in(self.writes, shares)
        )


Span = Generation | Layer


def _after(tau: int, taus: dict[int, int], keys: Keys) -> bool:
    return bool(keys) and max(map(taus.get, keys, repeat(0))) > tau


def _any_in(sets: list[set[int]], keys: Keys) -> bool:
    return bool(keys) and not all(part.isdisjoint(keys) for part in sets)


class Draft:
    """The keys of a large transaction that is still arriving.

    Compared with the window slice by slice: when a slice is inserted, with what is recorded
    (`_todo`); each later commit is compared with what is inserted (`observe`).  Once both queues
    are empty and nothing conflicted, the transaction may commit, whatever its size, without
    another look at its keys.
    """

    def __init__(self, tau_start: int) -> None:
        self.tau_start = tau_start
        self.conflict = False
        self.count = 0
        self.writes: list[set[int]] = []
        self.shares: list[set[int]] = []
        self._write_slices: list[Keys] = []
        self._share_slices: list[Keys] = []
        self._todo: deque[tuple[Keys, dict[int, int] | set[int]]] = deque()
        self._arrived: deque[tuple[Keys, bool]] = deque()

    def add(self, writes: Keys, shares: Keys) -> None:
        """More keys; `work` inserts and compares them."""
        self.count += len(writes) + len(shares)
        for keys, is_write in ((writes, True), (shares, False)):
            for start in range(0, len(keys), SLICE_KEYS):
                self._arrived.append((keys[start : start + SLICE_KEYS], is_write))

    def _insert_next(self, spans: Iterable[Span]) -> int:
        part, is_write = self._arrived.popleft()
        sets = self.writes if is_write else self.shares
        if not sets or len(sets[-1]) + len(part) > LAYER_SET_KEYS:
            sets.append(set())
        sets[-1].update(part)
        # From here on `observe` sees these keys; all that was recorded before is compared by
        # `work`.
        (self._write_slices if is_write else self._share_slices).append(part)
        for span in spans:
            if span.newest > self.tau_start:
                self._plan(part, is_write, span)
        return len(part)

    def _plan(self, part: Keys, is_write: bool, span: Span) -> None:
        sets: list[dict[int, int]] | list[set[int]]
        if isinstance(span, Generation):
            sets = [span.writes, span.shares] if is_write else [span.writes]
        else:
            sets = [*span.writes, *span.shares] if is_write else span.writes
        self._todo.extend((part, container) for container in sets if container)

    def meets(self, writes: Keys, shares: Keys) -> bool:
        """Whether a small transaction and this one may not both commit unseen."""
        return (
            _any_in(self.writes, writes)
            or _any_in(self.shares, writes)
            or _any_in(self.writes, shares)
        )

    def observe(self, writes: Keys, shares: Keys) -> None:
        """A small transaction committed after tau_start."""
        self.conflict = self.conflict or self.meets(writes, shares)

    def observe_layer(self, layer: Layer) -> None:
        """Another large transaction committed after tau_start."""
        for part in self._write_slices:
            self._plan(part, True, layer)
        for part in self._share_slices:
            self._plan(part, False, layer)

    @property
    def ready(self) -> bool:
        """Whether every key was inserted and compared, or a comparison has failed."""
        return self.conflict or not (self._arrived or self._todo)

    def work(self, spans: Sequence[Span], budget: int = WORK_KEYS) -> None:
        """Inserts and compares about `budget` keys.  `spans` are those of the window now."""
        while budget > 0 and not self.ready:
            if self._arrived:
                budget -= 4 * self._insert_next(spans)
                continue
            keys, container = self._todo.popleft()
            budget -= len(keys)
            if isinstance(container, dict):
                self.conflict = max(map(container.get, keys, repeat(0))) > self.tau_start
            else:
                self.conflict = not container.isdisjoint(keys)


class Window:
    """All that one adjudicator remembers of its keys.

    Invariant: every write and share with a tau above `floor` is in a span; `count` keys at most
    CONFLICT_KEYS after every recording.
    """

    def __init__(self, floor: int, keys_max: int = CONFLICT_KEYS) -> None:
        self.floor = floor
        self._keys_max = keys_max
        self.work_keys = WORK_KEYS
        self._closed: deque[Span] = deque()
        self._closed_count = 0
        self._open = Generation(floor)
        self._drafts: list[Draft] = []
        # Freeing a set of a layer takes milliseconds, so forgotten ones are freed one by one.
        self._trash: list[set[int]] = []
        self.forgotten_for_space = 0

    def __len__(self) -> int:
        return self._closed_count + len(self._open)

    def conflicts(self, tau_start: int, writes: Keys, shares: Keys) -> bool:
        """Whether a transaction of a few keys must be refused (5.1, 5.2).  tau_start >= floor."""
        assert tau_start >= self.floor, (tau_start, self.floor)
        span: Span = self._open
        if span.newest > tau_start and span.conflicts(tau_start, writes, shares):
            return True
        for span in reversed(self._closed):
            if span.newest <= tau_start:
                return False
            if span.conflicts(tau_start, writes, shares):
                return True
        return False

    @property
    def receiving(self) -> bool:
        """A large transaction arrives: each commit is compared with it."""
        return bool(self._drafts)

    def record_all(self, first: int, last: int, taus: dict[int, int]) -> None:
        """Small transactions commit, the first at `first`, the last at `last`: `record` of each."""
        span = self._open
        assert first > span.newest and not self._drafts
        if len(span) >= GENERATION_KEYS or first - span.oldest > GENERATION_NS:
            self._rotate(first)
            span = self._open
        span.writes |= taus
        span.newest = last
        if len(self) > self._keys_max:
            self._make_room()

    def record(self, tau: int, writes: Keys, shares: Keys) -> None:
        """A small transaction commits at `tau`, above every tau recorded before."""
        span = self._open
        assert tau > span.newest, (tau, span.newest)
        count = len(span.writes) + len(span.shares)
        if count >= GENERATION_KEYS or tau - span.oldest > GENERATION_NS:
            self._rotate(tau)
            span, count = self._open, 0
        for draft in self._drafts:
            draft.observe(writes, shares)
        # Taus only grow here, so the newest entry of a key is its last: overwriting is right.
        span.writes |= dict.fromkeys(writes, tau)
        if shares:
            span.shares |= dict.fromkeys(shares, tau)
        span.newest = tau
        if self._closed_count + count + len(writes) + len(shares) > self._keys_max:
            self._make_room()

    def record_late(self, tau: int, writes: Keys, shares: Keys) -> None:
        """A commit that another adjudicator decided, or may have: `tau` may lie below others."""
        span = self._open
        if tau > span.newest:
            self.record(tau, writes, shares)
            return
        for draft in self._drafts:
            if tau > draft.tau_start:
                draft.observe(writes, shares)
        for taus, keys in ((span.writes, writes), (span.shares, shares)):
            highest = map(max, map(taus.get, keys, repeat(0)), repeat(tau))
            taus.update(zip(keys, highest, strict=True))
        if len(self) > self._keys_max:
            self._make_room()

    @property
    def newest(self) -> int:
        """The highest tau recorded."""
        return self._open.newest

    def open_draft(self, tau_start: int) -> Draft:
        """A large transaction begins to arrive.  Ends with publish() or drop()."""
        draft = Draft(tau_start)
        self._drafts.append(draft)
        return draft

    def work(self, draft: Draft) -> None:
        """A few milliseconds of inserting and comparing the keys of a draft."""
        draft.work((*self._closed, self._open), self.work_keys)

    def publish(self, draft: Draft, tau: int) -> None:
        """The large transaction commits at `tau`: its keys become a layer, in O(1)."""
        assert draft.ready and not draft.conflict and tau > self._open.newest
        assert draft.tau_start >= self.floor
        self._publish(draft, tau)

    def publish_late(self, draft: Draft, tau: int) -> None:
        """The same where another adjudicator decided it, or may have: `tau` may be below others."""
        if tau > self._open.newest:
            self._publish(draft, tau)
            return
        self._drafts.remove(draft)
        layer = Layer(tau, draft.writes, draft.shares)
        at = len(self._closed)
        while at and self._closed[at - 1].newest > tau:
            at -= 1
        self._closed.insert(at, layer)
        self._closed_count += len(layer)
        for other in self._drafts:
            if tau > other.tau_start:
                other.observe_layer(layer)
        self._make_room()

    def _publish(self, draft: Draft, tau: int) -> None:
        self._drafts.remove(draft)
        self._rotate(tau)
        layer = Layer(tau, draft.writes, draft.shares)
        self._closed.append(layer)
        self._closed_count += len(layer)
        self._open.newest = tau
        for other in self._drafts:
            other.observe_layer(layer)
        self._make_room()

    def drop(self, draft: Draft) -> None:
        """The large transaction will not commit."""
        self._drafts.remove(draft)
        self._trash += draft.writes
        self._trash += draft.shares

    def tidy(self) -> bool:
        """Frees a little of what was forgotten; False when nothing is left to free."""
        if self._trash:
            self._trash.pop()
        return bool(self._trash)

    def forget_through(self, tau: int) -> None:
        """Raises the floor over a commit whose keys are not recorded."""
        assert tau > self._open.newest
        self._open.newest = tau
        self.expire(tau + 1)
        self.floor = max(self.floor, tau)

    def forget_before(self, tau: int) -> None:
        """Raises the floor: what happened through `tau` is not all known."""
        self.expire(tau + 1)
        self.floor = max(self.floor, tau)

    def expire(self, before: int) -> None:
        """Forgets the spans whose taus all lie below `before`."""
        if self._open.newest < before and len(self._open):
            self._rotate(before)
        while self._closed and self._closed[0].newest < before:
            self._forget()

    def _rotate(self, oldest: int) -> None:
        if len(self._open):
            self._closed.append(self._open)
            self._closed_count += len(self._open)
        newest = self._open.newest
        self._open = Generation(oldest)
        self._open.newest = newest

    def _make_room(self) -> None:
        while len(self) > self._keys_max:
            if not self._closed:
                self._rotate(self._open.newest)
            self._forget()
            self.forgotten_for_space += 1

    def _forget(self) -> None:
        span = self._closed.popleft()
        self._closed_count -= len(span)
        if isinstance(span, Layer):
            self._trash += span.writes
            self._trash += span.shares
        assert self._closed_count >= 0
        self.floor = max(self.floor, span.newest)
