"""From totals to an ordered list of slots, best first. Floor 3: chance comes in as `rand`.

A decision is an order and not one pick, so that a failed send moves on without deciding again.
Ties are broken by `rand`: equal replicas share equally, also within one burst.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from warmlane._core import cost
from warmlane.router.interfaces import Candidates


class Best:
    """Greatest total first."""

    needs_scores = True

    def pick(
        self, candidates: Candidates, totals: array[float], limit: int, rand: int, order: array[int]
    ) -> int:
        homes = candidates.homes
        if homes is not None and len(homes) < len(candidates.mask):
            homes = None  # the column has not followed the pool yet
        return cost.top_k(totals, candidates.mask, limit, rand, order, homes)


class RoundRobin:
    """Each eligible replica in turn, by slot; the next ones in turn are the fallbacks.

    The turn follows the last slot served, so that a replica which joins, leaves or is filtered out
    shifts nobody else's turn.
    """

    needs_scores = False

    def __init__(self) -> None:
        self._last = -1

    def pick(
        self, candidates: Candidates, totals: array[float], limit: int, rand: int, order: array[int]
    ) -> int:
        mask, count = candidates.mask, 0
        size = len(mask)
        for step in range(1, size + 1):
            slot = (self._last + step) % size
            if mask[slot]:
                order[count] = slot
                count += 1
                if count == limit:
                    break
        if count:
            self._last = order[0]
        return count


class Random(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A random eligible replica, by `rand`."""

    needs_scores: ClassVar[bool] = False

    def pick(
        self, candidates: Candidates, totals: array[float], limit: int, rand: int, order: array[int]
    ) -> int:
        eligible = [slot for slot, kept in enumerate(candidates.mask) if kept]
        count = min(limit, len(eligible))
        for place in range(count):  # the first places of a Fisher-Yates shuffle
            rand, step = divmod(rand, len(eligible) - place)
            other = place + step
            eligible[place], eligible[other] = eligible[other], eligible[place]
            order[place] = eligible[place]
        return count


PICKERS: Mapping[str, Any] = {"best": Best, "round_robin": RoundRobin, "random": Random}
