"""Prompt tokens that the replica already holds: work saved, not a ratio.

A ratio would call 180 of 200 tokens better than 20,000 of 40,000. Here 1.0 is
`candidates.scale_tokens`, which the scorers of work share, so that a hit outweighs a queue exactly
when it saves more than the queue costs; `hit_price` says what a saved token is worth at this load.
"""

from __future__ import annotations

from array import array

import msgspec

from warmlane._core import cost
from warmlane.router.interfaces import Candidates
from warmlane.router.types import Request


class PrefixHit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Saved tokens on the shared scale; 0 where nothing is held."""

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        limit = candidates.scale_tokens / candidates.hit_price
        cost.fraction(candidates.hit_tokens, limit, candidates.out)
        return candidates.out
