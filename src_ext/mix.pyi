from array import array
from collections.abc import Sequence
from typing import TypeAlias

from warmlane._core.price import Price

_Floats: TypeAlias = array[float] | memoryview[float]
_Ints: TypeAlias = array[int] | memoryview[int]

class Mix:
    """prefix_hit, inflight_tokens, running_requests, spread and kv_usage, fused; then top_k.

    Totals and order are those of the scorers, `cost.combine` and `cost.top_k` one by one: a test
    compares them. Five weights in that order. spread_rate, spread_limit: the parameters of
    `spread`. least_scale, request_tokens, context_share: those of `CandidateColumns`.
    price: in place of all scorers; its weight is the first of the five, the others are not used.
        Each `choose` tells it of the decision (`Price.placed`).
    limit: choices a decision, 1 to 16. About 0.2 us + 8 to 18 ns a slot.
    """

    totals: array[float]
    """Of the last `choose`, 'd' by slot; -inf where the mask is 0."""
    hits: array[float]
    """Of the last `choose`: tokens held, corrected by trust; 0 where the mask is 0."""

    price: Price | None
    homes: array[int] | None
    """'Q' by slot: a hash of the replica's name, by which ties are broken; None: by slot number."""

    def __init__(
        self,
        weights: Sequence[float],
        spread_rate: float,
        spread_limit: float,
        *,
        least_scale: float,
        request_tokens: float,
        context_share: float,
        limit: int = 5,
        price: Price | None = None,
    ) -> None: ...
    def bind(
        self,
        requests: _Ints,
        prefill_tokens: _Floats,
        decode_tokens: _Floats,
        placed_tokens: _Floats,
        kv_usage: _Floats,
        foreign_requests: _Floats,
        foreign_tokens: _Floats,
        foreign_kv_tokens: _Floats,
        trust: _Floats,
    ) -> None:
        """The pool's columns, read at each `choose`; all but `requests` ('i') are 'd'.

        They may grow meanwhile; a new object needs a new `bind`.
        """

    def choose(
        self,
        blocks: _Ints | None,
        block_tokens: float,
        prompt_tokens: float,
        mask: _Ints,
        foreign: bool,
        rand: int,
    ) -> tuple[tuple[int, ...], tuple[int, ...], float, float]:
        """Slots best first, whole hit tokens of each, the first one's hit with and before trust.

        blocks: 'i', blocks that each slot holds, None for nothing anywhere. foreign: count the
        foreign columns in. Columns may be longer than the mask. Raises TypeError and ValueError for
        columns of another type or too short, ValueError for a NaN total or before `bind`.
        """
