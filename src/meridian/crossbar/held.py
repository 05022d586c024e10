"""What a subscriber's file already held when it was opened: none of it is delivered again (pure).

Several files may be fed from one place in the journals, that of the one furthest behind. The others
then hear things a second time.
"""

from __future__ import annotations

from collections.abc import Mapping

from meridian.crossbar.core import Body, Dropped, Item, Transaction


class Held:
    """A file complete through `tau`, with everything of each journal through `positions`."""

    def __init__(self, tau: int, positions: Mapping[int, int]) -> None:
        self.tau = tau
        self.positions = positions

    def filtered(self, item: Item) -> Item | None:
        """What the file must still hear of an item; None: nothing."""
        if isinstance(item, Transaction) and item.tau <= self.tau:
            # Chunks that came again were staged anew.
            return Dropped(item.txid, item.journal, item.n) if item.bodies else None
        if isinstance(item, Body) and item.n <= self.positions.get(item.journal, 0):
            return None
        return item

    def bounds(
        self, tau: int, positions: tuple[tuple[int, int], ...]
    ) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Completeness and positions of a delivery: they never go back behind the file's."""
        known = self.positions
        return max(tau, self.tau), tuple((j, max(n, known.get(j, 0))) for j, n in positions)
