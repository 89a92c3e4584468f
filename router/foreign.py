"""Work at the replicas of one pool that this router did not send, by slot. Floor 3.

Two sources, added up: `tell` is what peers say of their own work (`router.share`), `see` what a
scrape shows beyond that and beyond this router's. Decisions read the sums in place and only while
`some`; a router that is alone pays one comparison for all of this.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from warmlane._core import cost


class Foreign:
    """Columns 'd' by slot: requests, of these waiting (no first token yet), uncached prompt tokens
    that wait, KV tokens. `told_*` is the part that comes from peers.
    """

    def __init__(self) -> None:
        self.requests = array("d")
        self.waiting = array("d")
        self.tokens = array("d")
        self.kv_tokens = array("d")
        self.told_requests = array("d")
        self.told_waiting = array("d")
        self.told_tokens = array("d")
        self.told_kv_tokens = array("d")
        self._seen = (array("d"), array("d"), array("d"))
        self.some = False

    @property
    def _sums(self) -> tuple[array[float], ...]:
        return self.requests, self.waiting, self.tokens, self.kv_tokens

    @property
    def told(self) -> tuple[array[float], ...]:
        """What peers say: requests, waiting, tokens, KV tokens."""
        return self.told_requests, self.told_waiting, self.told_tokens, self.told_kv_tokens

    def add_slot(self) -> None:
        """A slot more, with nothing there."""
        for column in (*self._sums, *self.told, *self._seen):
            column.append(0.0)

    def forget(self, slot: int) -> None:
        """The replica is gone."""
        for column in (*self._sums, *self.told, *self._seen):
            column[slot] = 0.0

    def see(self, slot: int, requests: float, waiting: float, tokens: float) -> None:
        """A scrape shows this beyond our own work and what peers told."""
        seen = requests, waiting, tokens
        for column, told, sums, value in zip(self._seen, self.told, self._sums, seen, strict=False):
            column[slot] = value
            sums[slot] = told[slot] + value
        self.some = self.some or self.requests[slot] > 0

    def unsee(self, slot: int) -> None:
        """What the last scrape showed is too old."""
        self.see(slot, 0.0, 0.0, 0.0)

    def tell(self, columns: Sequence[array[float]]) -> None:
        """What all peers say now, in the order of `told`, each at least as long as the pool."""
        for told, sums, new in zip(self.told, self._sums, columns, strict=True):
            cost.blend(new, 1.0, new, 0.0, told)
            cost.blend(new, 1.0, new, 0.0, sums)
        for seen, sums in zip(self._seen, self._sums, strict=False):
            cost.blend(sums, 1.0, seen, 1.0, sums)
        self.look()

    def look(self) -> None:
        """Find out anew whether there is any."""
        self.some = any(self.requests) or any(self.tokens)
