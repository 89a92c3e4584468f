"""Prompt tokens that the replica already holds: work saved, not a ratio.

A ratio would call 180 of 200 tokens better than 20,000 of 40,000. Here 1.0 stands for
`candidates.scale_tokens`, which the scorers of work share: with weight 1 a hit outweighs a queue
exactly when it saves more than the queue costs, with weight 2 already at half of that.
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
        cost.fraction(candidates.hit_tokens, candidates.scale_tokens, candidates.out)
        return candidates.out
