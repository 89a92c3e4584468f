"""The arithmetic of `warmlane audit`: shares, their range, GPU-hours. Floor 6; no I/O.

The range of the avoidable share. Above: every block recomputed while another replica held it.
Below: only those stored while no other replica that held anything had requests waiting, since
sending them there might have cost more than it saved. Both are resampled over the audit's time
slices (bootstrap), which is the error of having looked for a while only; the range goes from the
5th percentile of the lower to the 95th of the upper.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import msgspec

RESAMPLES: Final = 1000
_SEED: Final = 1  # the same audit tells the same range twice
_EDGE: Final = 0.05


class Slice(msgspec.Struct, frozen=True):
    """Tokens of one time slice, all heard replicas together."""

    computed: float
    avoidable: float
    sure: float


class Range(msgspec.Struct, frozen=True):
    """A number with its bounds."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.expected * factor, self.high * factor)


def share(slices: Sequence[Slice]) -> Range | None:
    """Avoidable share of the computed prompt tokens, 0..1; None: none were computed.

    expected: the middle between the two bounds as they were seen.
    """
    computed = sum(each.computed for each in slices)
    if computed <= 0:
        return None
    chance = random.Random(_SEED)
    lows, highs = [], []
    for _ in range(RESAMPLES):
        drawn = chance.choices(slices, k=len(slices))
        total = sum(each.computed for each in drawn)
        if total > 0:
            lows.append(_part(sum(each.sure for each in drawn), total))
            highs.append(_part(sum(each.avoidable for each in drawn), total))
    seen_low = _part(sum(each.sure for each in slices), computed)
    seen_high = _part(sum(each.avoidable for each in slices), computed)
    low = min(seen_low, _at(lows, _EDGE))
    high = max(seen_high, _at(highs, 1 - _EDGE))
    return Range(low, (seen_low + seen_high) / 2, high)


def _part(tokens: float, of: float) -> float:
    return min(1.0, max(0.0, tokens / of))


def _at(values: list[float], place: float) -> float:
    values.sort()
    return values[min(len(values) - 1, int(place * len(values)))]


def grown(before: float | None, after: float | None) -> float | None:
    """Growth of a counter; one that went back began anew (the engine restarted)."""
    if before is None or after is None:
        return None
    return after - before if after >= before else after


def gpu_hours(part: Range, tokens_s: float, paces: Sequence[float], gpus: int) -> Range | None:
    """GPU-hours a day for the avoidable share of `tokens_s` computed tokens a second.

    paces: estimates of prefill seconds a token; the fastest bounds below, the slowest above.
    """
    known = [pace for pace in paces if pace > 0]
    if not known:
        return None
    day = tokens_s * 24 * gpus
    middle = sum(known) / len(known)
    return Range(
        part.low * day * min(known), part.expected * day * middle, part.high * day * max(known)
    )
