"""Advisory locks of a whole cluster: who holds what, who waits, who must not wait (section 9).

Pure, like a core: every call returns what follows from it. An owner is one connection of a query
processor; it waits for at most one lock at a time and loses everything when it closes. Locks are
counted as PostgreSQL counts them: per mode, and apart for the session and for the transaction.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from meridian.errors import Kind, MeridianError
from meridian.limits import ADVISORY_LOCKS, ADVISORY_LOCKS_PER_OWNER

_MOVES = 64
"""Waiters that may be let by to break one circle; beyond it the new one is refused."""

OP_LOCK = 1
OP_TRY = 2
OP_UNLOCK = 3
OP_UNLOCK_ALL = 4
OP_WAITED_FOR = 5

SHARED = 1
TRANSACTION = 2

Key = tuple[int, int]
"""(class, key): class 1 = one bigint, 2 = two ints (the first in the upper half)."""


class Waiter(msgspec.Struct):
    """Somebody in the queue of a lock."""

    owner: int
    request: int
    flags: int


class Lock(msgspec.Struct):
    """One lock that is held or waited for; `counts` per owner, by flags."""

    counts: dict[int, list[int]]
    queue: list[Waiter]

    def blockers(self, owner: int, shared: bool) -> Iterator[int]:
        """Owners whose hold stands against a request."""
        for other, counts in self.counts.items():
            exclusive = counts[0] or counts[TRANSACTION]
            if other != owner and (not shared or exclusive):
                yield other

    def free_for(self, owner: int, flags: int) -> bool:
        """Whether no hold stands against a request."""
        return next(self.blockers(owner, bool(flags & SHARED)), None) is None


class Granted(msgspec.Struct, frozen=True):
    """A request that waited has its lock now."""

    owner: int
    request: int


class AdvisoryLocks:
    """The lock table. Invariant: a waiter's blockers include nobody who waits for it in turn."""

    def __init__(self) -> None:
        self._locks: dict[Key, Lock] = {}
        self._held: dict[int, dict[Key, None]] = {}
        self._waits: dict[int, Key] = {}
        self._waited_for: dict[int, tuple[int, ...]] = {}
        """Waiter -> who waits for it elsewhere (for a table lock in its instance)."""
        self._holds = 0

    def lock(
        self, owner: int, request: int, key: Key, flags: int, wait: bool
    ) -> tuple[bool | None, list[Granted]]:
        """True: granted, False: not without waiting, None: a Granted will tell, perhaps this one.

        Raises DEADLOCK when the wait could never end, ADVISORY_FULL at a limit.
        """
        if owner in self._waits:
            raise MeridianError(Kind.PROTOCOL_VIOLATION, why="the owner waits for a lock already")
        lock = self._locks.get(key)
        if lock is None:
            lock = Lock(counts={}, queue=[])
        mine = owner in lock.counts
        # Whoever holds the lock already passes the queue: it would wait for itself.
        queued = not mine and any(_conflict(w.flags, flags) for w in lock.queue)
        free = not queued and lock.free_for(owner, flags)
        if not free and not wait:
            return False, []
        self._check_room(owner, key)
        self._locks[key] = lock
        if free:
            self._grant(lock, owner, key, flags)
            return True, []
        # Whoever holds the lock comes first: those who wait, wait for it anyway.
        lock.queue.insert(0 if mine else len(lock.queue), Waiter(owner, request, flags))
        self._waits[owner] = key
        return None, self._resolve(owner)

    def unlock(self, owner: int, key: Key, flags: int) -> tuple[bool, list[Granted]]:
        """Whether the owner held it in this mode, and who has it now."""
        lock = self._locks.get(key)
        counts = lock.counts.get(owner) if lock is not None else None
        if lock is None or counts is None or counts[flags] == 0:
            return False, []
        counts[flags] -= 1
        self._drop_if_free(lock, owner, key)
        return True, self._wake(key)

    def unlock_all(self, owner: int, flags: int) -> list[Granted]:
        """The owner's locks of the session, or with TRANSACTION those of its transaction."""
        scope = flags & TRANSACTION
        granted: list[Granted] = []
        for key in list(self._held.get(owner, ())):
            lock = self._locks[key]
            counts = lock.counts[owner]
            counts[scope] = counts[scope | SHARED] = 0
            self._drop_if_free(lock, owner, key)
            granted += self._wake(key)
        return granted

    def cancel(self, owner: int) -> list[Granted]:
        """The owner waits no longer."""
        if owner not in self._waits:
            return []
        key = self._withdraw(owner)
        return self._wake(key)

    def waited_for(self, owner: int, others: tuple[int, ...]) -> tuple[bool, list[Granted]]:
        """Others wait for this waiter elsewhere, through whomever.

        True: its own wait could never end and is taken back.
        """
        key = self._waits.get(owner)
        if key is None:
            return False, []
        self._waited_for[owner] = others
        try:
            return False, self._resolve(owner)
        except MeridianError:
            return True, self._wake(key)

    def request(self, owner: int) -> int | None:
        """The request that waits."""
        key = self._waits.get(owner)
        if key is None:
            return None
        lock = self._locks[key]
        return lock.queue[_place(lock, owner)].request

    def close(self, owner: int) -> list[Granted]:
        """The owner is gone, and with it all it held."""
        granted = self.cancel(owner)
        return granted + self.unlock_all(owner, 0) + self.unlock_all(owner, TRANSACTION)

    def rows(self) -> list[tuple[int, int, int, bool, bool]]:
        """(class, key, owner, shared, granted) of every hold and every wait."""
        found = []
        for (kind, key), lock in self._locks.items():
            for owner, counts in lock.counts.items():
                found += [
                    (kind, key, owner, shared, True)
                    for shared in (False, True)
                    if counts[shared] or counts[shared | TRANSACTION]
                ]
            found += [(kind, key, w.owner, bool(w.flags & SHARED), False) for w in lock.queue]
        return found

    def _check_room(self, owner: int, key: Key) -> None:
        held = self._held.get(owner, {})
        if key in held:
            return
        # Also of who will wait, so that granting it later cannot fail.
        if len(held) >= ADVISORY_LOCKS_PER_OWNER or self._holds >= ADVISORY_LOCKS:
            raise MeridianError(Kind.ADVISORY_FULL)

    def _grant(self, lock: Lock, owner: int, key: Key, flags: int) -> None:
        held = self._held.setdefault(owner, {})
        if key not in held:
            held[key] = None
            self._holds += 1
        lock.counts.setdefault(owner, [0, 0, 0, 0])[flags] += 1

    def _drop_if_free(self, lock: Lock, owner: int, key: Key) -> None:
        if any(lock.counts[owner]):
            return
        del lock.counts[owner]
        del self._held[owner][key]
        self._holds -= 1
        if not self._held[owner]:
            del self._held[owner]

    # Deadlocks. Only a new waiter can close a circle, or news of who waits for one elsewhere.

    def _resolve(self, owner: int) -> list[Granted]:
        """Makes sure that the owner's new wait can end, or takes it back and raises DEADLOCK.

        A waiter that blocks another only by its place lets it by; who may have the lock then is
        granted it.
        """
        before = {key: list(lock.queue) for key, lock in self._locks.items() if lock.queue}
        suspects = [owner]
        moved: dict[Key, None] = {}
        for _ in range(_MOVES):
            circle = next((c for c in map(self._circle, suspects) if c), None)
            if circle is None:
                return [granted for key in moved for granted in self._wake(key)]
            step = next((step for step in circle if self._let_by(*step)), None)
            if step is None:
                break
            suspects += [who for who in step if who not in suspects]
            moved[self._waits[step[0]]] = None
        for key in moved:
            self._locks[key].queue = before[key]
        self._withdraw(owner)
        raise MeridianError(Kind.DEADLOCK)

    def _withdraw(self, owner: int) -> Key:
        key = self._waits.pop(owner)
        self._waited_for.pop(owner, None)
        lock = self._locks[key]
        lock.queue = [waiter for waiter in lock.queue if waiter.owner != owner]
        return key

    def _edges(self, owner: int) -> Iterator[int]:
        for told, others in self._waited_for.items():
            if owner in others:
                yield told
        key = self._waits.get(owner)
        if key is None:
            return
        lock = self._locks[key]
        place = _place(lock, owner)
        waiter = lock.queue[place]
        yield from lock.blockers(owner, bool(waiter.flags & SHARED))
        for ahead in lock.queue[:place]:
            if _conflict(ahead.flags, waiter.flags):
                yield ahead.owner

    def _circle(self, start: int) -> list[tuple[int, int]] | None:
        """The edges (waiter, blocker) of a circle through `start`."""
        seen = {start: start}
        path = [(start, self._edges(start))]
        while path:
            owner, edges = path[-1]
            blocker = next(edges, None)
            if blocker is None:
                path.pop()
            elif blocker == start:
                owners = [step for step, _ in path]
                return list(zip(owners, [*owners[1:], start], strict=True))
            elif blocker not in seen:
                seen[blocker] = owner
                path.append((blocker, self._edges(blocker)))
        return None

    def _let_by(self, owner: int, blocker: int) -> bool:
        """Moves a waiter before one that blocks it by nothing but its place."""
        key = self._waits.get(owner)
        if key is None or self._waits.get(blocker) != key:
            return False
        lock = self._locks[key]
        place, ahead = _place(lock, owner), _place(lock, blocker)
        shared = bool(lock.queue[place].flags & SHARED)
        if ahead > place or blocker in lock.blockers(owner, shared):
            return False
        lock.queue.insert(ahead, lock.queue.pop(place))
        return True

    def _wake(self, key: Key) -> list[Granted]:
        """Grants from the front of the queue what nothing stands against any more."""
        lock = self._locks[key]
        granted: list[Granted] = []
        passed: list[Waiter] = []
        for waiter in lock.queue:
            ahead = any(_conflict(other.flags, waiter.flags) for other in passed)
            if ahead or not lock.free_for(waiter.owner, waiter.flags):
                passed.append(waiter)
                continue
            del self._waits[waiter.owner]
            self._waited_for.pop(waiter.owner, None)
            self._grant(lock, waiter.owner, key, waiter.flags)
            granted.append(Granted(waiter.owner, waiter.request))
        lock.queue = passed
        if not lock.queue and not lock.counts:
            del self._locks[key]
        return granted


def _conflict(one: int, other: int) -> bool:
    return not (one & other & SHARED)


def _place(lock: Lock, owner: int) -> int:
    return next(place for place, waiter in enumerate(lock.queue) if waiter.owner == owner)
