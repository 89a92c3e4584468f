"""Plain-Python twin of `_core.cost`: the formulas of its stub file, lists in, lists out."""

from __future__ import annotations

import math
from collections.abc import Sequence

Values = Sequence[float]
WORD = (1 << 64) - 1


def share(value: float, scale: float) -> float:
    if math.isnan(value) or value <= 0:
        return 0.0
    return 1.0 if value >= scale else value / scale


def fraction(col: Values, scale: float) -> list[float]:
    return [share(value, scale) for value in col]


def saturate(col: Values, limit: float) -> list[float]:
    return [0.0 if math.isnan(value) else 1.0 - share(value, limit) for value in col]


def inverse(col: Values) -> list[float]:
    return [0.0 if math.isnan(value) else 1.0 / (1.0 + max(value, 0.0)) for value in col]


def less_is_better(col: Values, mask: Sequence[int]) -> list[float]:
    usable = [bool(kept) and math.isfinite(value) for value, kept in zip(col, mask, strict=False)]
    seen = [value for value, ok in zip(col, usable, strict=False) if ok]
    if not seen:
        return [0.0] * len(mask)
    least, most = min(seen), max(seen)
    spread = most - least
    return [
        (0.0 if not ok else (most - value) / spread if spread else 1.0)
        for value, ok in zip(col, usable, strict=False)
    ]


def hit_tokens(
    blocks: Sequence[int], per_block: float, prompt: float, trust: Values | None
) -> list[float]:
    most = max(0.0, prompt - 1.0)
    factors = trust if trust is not None else [1.0] * len(blocks)
    return [min(count * per_block, most) * f for count, f in zip(blocks, factors, strict=False)]


def combine(scores: Sequence[Values], weights: Values, mask: Sequence[int]) -> list[float]:
    out = []
    for slot, kept in enumerate(mask):
        total = 0.0 if kept else -math.inf
        for score, weight in zip(scores, weights, strict=False):
            if kept:
                total += weight * min(max(score[slot], 0.0), 1.0)
        out.append(total)
    return out


def mix(seed: int, home: int) -> int:
    word = (seed ^ (home * 0x9E3779B97F4A7C15)) & WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def top_k(
    total: Values, mask: Sequence[int], k: int, rand: int, homes: Sequence[int] | None
) -> list[int]:
    seed = rand & WORD

    def place(slot: int) -> tuple[float, int, int]:
        return (-total[slot], -mix(seed, homes[slot] if homes is not None else slot + 1), slot)

    kept = [slot for slot, value in enumerate(mask) if value]
    return sorted(kept, key=place)[: max(k, 0)]


def greatest(col: Values, mask: Sequence[int]) -> float:
    return max([0.0, *(value for value, kept in zip(col, mask, strict=False) if kept)])


def excess(col: Values, mask: Sequence[int], factor: float, limit: float) -> list[float]:
    least = min((value for value, kept in zip(col, mask, strict=False) if kept), default=math.inf)
    return [min(max(factor * (value - least), 0.0), limit) for value in col]


def blend(col: Values, factor: float, other: Values, other_factor: float) -> list[float]:
    return [factor * a + other_factor * b for a, b in zip(col, other, strict=False)]


def whole_tokens(
    blocks: Sequence[int], tokens_per_block: float, trust: Sequence[float]
) -> list[int]:
    return [
        int(each * tokens_per_block * factor) for each, factor in zip(blocks, trust, strict=True)
    ]


def tier_tokens(
    counts: Sequence[tuple[int, int, int]],
    soon: Sequence[int],
    sizes: Sequence[int],
    size: int,
    limit: int,
    worth: tuple[float, float],
    out: Sequence[int],
) -> list[int]:
    found = list(out)
    for at, (gpu, cpu, any_tier) in enumerate(counts):
        near, middle, far = (min(each, limit) for each in (gpu, cpu, any_tier))
        if sizes[at] == size:
            slower = (middle - near) * worth[0] + (far - middle) * worth[1]
            found[at] = int(max(near + slower, min(soon[at], limit)) * size)
    return found
