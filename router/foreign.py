"""Work at the replicas of one pool that this router did not send, by slot. Floor 3.

Two sources, added up: `tell` is what peers say of their own work (`router.share`), `see` what a
scrape shows beyond that and beyond this router's. Decisions read the sums in place and only while
`some`; a router that is alone pays one comparison for all of this.

What a peer sent in the interval before a scrape is in the scrape and not yet in its word: taken for
the work of strangers it would count twice as soon as the peer tells of it, and would go on counting
after it ended, until the next scrape. So where there are peers a scrape waits until all of them
have spoken of the moment it was taken at; what is left of it is what no word before or after
explains. Until then the remainder of the scrape before holds.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import inf

from warmlane._core import cost


class _Scrape:
    """A scrape that waits for the peers' word: requests and waiting ones beyond our own, and the
    most that peers told of since just before it. newer: the last one that came meanwhile."""

    __slots__ = ("at", "each", "newer", "requests", "told_requests", "told_waiting", "waiting")

    def __init__(self, requests: float, waiting: float, each: float, at: float) -> None:
        self.requests = requests
        self.waiting = waiting
        self.each = each
        self.at = at
        self.told_requests = self.told_waiting = 0.0
        self.newer: _Scrape | None = None

    def heard(self, requests: float, waiting: float) -> None:
        self.told_requests = max(self.told_requests, requests)
        self.told_waiting = max(self.told_waiting, waiting)
        if self.newer is not None:
            self.newer.heard(requests, waiting)


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
        self._waits: dict[int, _Scrape] = {}
        self._said_at = inf
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
        self._waits.pop(slot, None)
        for column in (*self._sums, *self.told, *self._seen):
            column[slot] = 0.0

    def see(self, slot: int, requests: float, waiting: float, each: float, at: float) -> None:
        """A scrape of time `at` shows this beyond our own work; each: tokens of a waiting request.

        One that waits for the peers' word is not replaced by the next: else a peer that speaks
        less often than replicas are scraped would keep all of them waiting.
        """
        scrape = _Scrape(requests, waiting, each, at)
        scrape.heard(self.told_requests[slot], self.told_waiting[slot])
        waits = self._waits.get(slot)
        if waits is not None:
            waits.newer = scrape
        elif at > self._said_at:
            self._waits[slot] = scrape
        else:
            self._settle(slot, scrape)
            self.some = self.some or self.requests[slot] > 0

    def unsee(self, slot: int) -> None:
        """What the last scrape showed is too old."""
        self._waits.pop(slot, None)
        self._settle(slot, _Scrape(0.0, 0.0, 0.0, 0.0))

    def tell(self, columns: Sequence[array[float]], said_at: float = inf) -> None:
        """What all peers say now, in the order of `told`, each at least as long as the pool.

        said_at: all that they sent until then is in it; infinite where there are none.
        """
        for told, sums, new in zip(self.told, self._sums, columns, strict=True):
            cost.blend(new, 1.0, new, 0.0, told)
            cost.blend(new, 1.0, new, 0.0, sums)
        for seen, sums in zip(self._seen, self._sums, strict=False):
            cost.blend(sums, 1.0, seen, 1.0, sums)
        self._said_at = said_at
        for slot, scrape in list(self._waits.items()):
            scrape.heard(self.told_requests[slot], self.told_waiting[slot])
            while scrape.at <= said_at:
                self._settle(slot, scrape)
                if scrape.newer is None:
                    del self._waits[slot]
                    break
                self._waits[slot] = scrape = scrape.newer
        self.look()

    def _settle(self, slot: int, scrape: _Scrape) -> None:
        """This is what the scrape shows beyond everybody's word."""
        requests = max(0.0, scrape.requests - scrape.told_requests)
        waiting = max(0.0, scrape.waiting - scrape.told_waiting)
        seen = requests, waiting, waiting * scrape.each
        for column, told, sums, value in zip(self._seen, self.told, self._sums, seen, strict=False):
            column[slot] = value
            sums[slot] = told[slot] + value

    def look(self) -> None:
        """Find out anew whether there is any."""
        self.some = any(self.requests) or any(self.tokens)
