from array import array
from collections.abc import Sequence
from typing import TypeAlias

_Floats: TypeAlias = array[float] | memoryview[float]
_Numbers: TypeAlias = array[int] | array[float] | memoryview[int] | memoryview[float]
_Ints: TypeAlias = array[int] | memoryview[int]

class ScoreError(ValueError):
    """A score is NaN or outside 0..1. `scorer` and `slot` say where, `value` what it was."""

    scorer: int
    slot: int
    value: float
    def __init__(self, scorer: int, slot: int, value: float) -> None: ...

# Columns: 'd' float64, 'i' int32, 'B' masks (0: filtered out), 'Q' uint64. A column of another type
# raises TypeError, a too short one ValueError. The length is that of the mask, else of `out`.
# A value that is NaN always gets the worst score. About 60 ns + 1 ns a slot each.

def fraction(col: _Numbers, scale: float, out: _Floats) -> None:
    """col / scale, cut to 0..1. A scale <= 0 gives 1 for every positive value."""

def saturate(col: _Numbers, limit: float, out: _Floats) -> None:
    """1 - min(col / limit, 1): 1 when nothing is there, 0 at the limit and beyond."""

def inverse(col: _Numbers, out: _Floats) -> None:
    """1 / (1 + col), negative values as 0: no limit to choose, finest at small loads."""

def less_is_better(col: _Numbers, mask: _Ints, out: _Floats) -> None:
    """Least of the kept slots 1, greatest 0, linear between; all 1 when they are equal.

    Stretches any difference to the full range: only for columns where small differences matter.
    """

def tokens_saved(
    hit: _Numbers, prompt_tokens: float, out: _Floats, floor_tokens: float = 1024.0
) -> None:
    """hit / max(prompt_tokens, floor_tokens): a ratio, but not for prompts too short to matter.

    A match of 90 % of 200 tokens saves nothing that anybody feels (policies: prefill runs at 6,000
    to 43,000 tokens a second, so 1,024 tokens are 24 to 170 ms).
    """

def hit_tokens(
    blocks: _Ints,
    tokens_per_block: float,
    prompt_tokens: float,
    trust: _Floats | None,
    out: _Floats,
) -> None:
    """min(blocks * tokens_per_block, prompt_tokens - 1) * trust.

    An engine always computes the last prompt token (vLLM: a hit is at most prompt - 1 tokens).
    """

def whole_tokens(blocks: _Ints, tokens_per_block: float, trust: _Floats, out: _Ints) -> None:
    """blocks * tokens_per_block * trust, cut to whole tokens ('i')."""

def tier_tokens(
    gpu: _Ints,
    cpu: _Ints,
    any_tier: _Ints,
    soon: _Ints,
    sizes: _Ints,
    size: int,
    limit: int,
    cpu_worth: float,
    disk_worth: float,
    out: _Ints,
) -> None:
    """Tokens that a hit is worth, where `sizes` is `size`; other slots of `out` stay ('i').

    size * (gpu + cpu_worth * (cpu - gpu) + disk_worth * (any_tier - cpu)), or size * soon where
    that is more; each count at most `limit` blocks. The counts never fall from gpu to any_tier
    (`RadixTree.match`). soon: blocks that are being computed there.
    """

def count(mask: _Ints) -> int:
    """Number of kept slots."""

def keep_below(col: _Numbers, limit: float, mask: _Ints) -> int:
    """Clears the mask where col >= limit (or is NaN); returns how many slots that removed."""

def greatest(col: _Numbers, mask: _Ints) -> float:
    """Greatest value of the kept slots, at least 0."""

def excess(col: _Numbers, mask: _Ints, factor: float, limit: float, out: _Floats) -> None:
    """factor * (col - least kept value), cut to 0..limit: who had more than the least."""

def blend(col: _Numbers, factor: float, other: _Numbers, other_factor: float, out: _Floats) -> None:
    """out = factor * col + other_factor * other."""

def combine(
    scores: Sequence[Sequence[float] | memoryview[float]],
    weights: _Floats,
    mask: _Ints,
    out: _Floats,
) -> None:
    """out = sum of weights[i] * scores[i] at kept slots, -inf at the others.

    Each score is an 'd' column, or a list or tuple of floats (slower). Only kept slots are looked
    at. Raises ScoreError for a value that is NaN or outside 0..1 (1e-9 of slack, then cut),
    ValueError for a short score or a weight that is not finite; `out` is then half done.
    """

def top_k(
    out: _Floats, mask: _Ints, k: int, rand: int, order: _Ints, homes: _Ints | None = None
) -> int:
    """Fills `order` with the min(k, kept) best slots, best first; returns how many.

    Equal totals are ranked by a hash of (rand, slot): with a fresh rand each is first equally
    often and the places behind it are fair too. With `homes` ('Q', a hash of each replica's name)
    the rank is that of `rendezvous(rand, ...)`: pass a block key as `rand` and all routers send
    equal prefixes to the same home, whatever their slot numbers. Which key: that of the deepest
    block that any replica holds (its next home, when it is replicated), or of the prompt's last
    block when none holds any (different prompts spread, equal ones meet).
    Raises ValueError for a NaN at a kept slot.
    """

def arg_max(out: _Floats, mask: _Ints, rand: int, homes: _Ints | None = None) -> int:
    """The first slot of top_k, or -1 when none is kept."""

def rendezvous(key: int, homes: _Ints, mask: _Ints) -> int:
    """Kept slot with the greatest hash of (key, home), or -1 when none is kept.

    Highest random weight (Thaler, Ravishankar 1998): when a replica leaves, only its keys move.
    """
