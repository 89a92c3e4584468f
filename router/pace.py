"""How fast each replica of a pool prefills while it has work, learned from its own counters.

Feeds the gauge of predicted backlog, which autoscaling reads; decisions do not use it. Floor 3: no
clock, a few float operations a scrape. Only time with work waiting at its start counts: an idle
engine says nothing about how fast it could be.
"""

from __future__ import annotations

from array import array
from typing import Final

from warmlane.router.types import LoadSnapshot

# Engines count a whole prompt when they begin it, so a short window sees a burst or nothing.
WINDOW_S: Final = 5.0
_BLEND: Final = 0.3  # of a new window: about the last ten seconds of work decide


class PrefillPace:
    """By slot: uncached prompt tokens a second; 0.0 where nothing is known."""

    def __init__(self) -> None:
        self.tokens_per_s = array("d")
        self._tokens = array("d")
        self._seconds = array("d")
        self._busy = array("B")

    def add(self) -> None:
        """A slot more."""
        for column in (self.tokens_per_s, self._tokens, self._seconds):
            column.append(0.0)
        self._busy.append(0)

    def forget(self, slot: int) -> None:
        """Another replica takes the slot, or the engine began anew."""
        self.tokens_per_s[slot] = self._tokens[slot] = self._seconds[slot] = 0.0
        self._busy[slot] = 0

    def heard(
        self, slot: int, previous: LoadSnapshot | None, load: LoadSnapshot, busy: bool
    ) -> None:
        """A scrape. busy: prompts wait or are being prefilled at this moment."""
        was_busy = self._busy[slot]
        self._busy[slot] = busy
        if previous is None or not was_busy:
            return
        computed = _computed(load) - _computed(previous)
        seconds = load.taken_at - previous.taken_at
        if computed < 0 or seconds <= 0:
            self.forget(slot)  # the counters went backwards: another process
            return
        self._tokens[slot] += computed
        self._seconds[slot] += seconds
        if self._seconds[slot] < WINDOW_S:
            return
        seen = self._tokens[slot] / self._seconds[slot]
        self._tokens[slot] = self._seconds[slot] = 0.0
        known = self.tokens_per_s[slot]
        self.tokens_per_s[slot] = known + _BLEND * (seen - known) if known else seen

    def backlog_s(self, slot: int, tokens: float) -> float | None:
        """Seconds that so many uncached tokens take; None while the pace is not known."""
        pace = self.tokens_per_s[slot]
        if pace > 0:
            return tokens / pace
        return None if tokens > 0 else 0.0


def _computed(load: LoadSnapshot) -> float:
    """Prompt tokens that the engine computed, not found; 0 for one that does not count them."""
    return (load.prefix_queries or 0.0) - (load.prefix_hits or 0.0)
