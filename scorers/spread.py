"""Fill all caches evenly: a little more for replicas that were sent less new work of late.

Without it an idle fleet sends everything that shares one short first block to one replica, whose
cache overflows while the others stay empty. The pull grows with the difference in placed tokens and
ends at `limit_tokens`, so that it decides where new prefixes go and never moves a long one.
"""

from __future__ import annotations

from array import array

import msgspec

from warmlane._core import cost
from warmlane.router.interfaces import Candidates
from warmlane.router.types import Request


class Spread(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """1 for the replica that got least; `rate` tokens of work for each token more than that."""

    rate: float = 0.02
    limit_tokens: float = 4096.0

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        placed, out = candidates.placed_tokens, candidates.out
        cost.excess(placed, candidates.mask, self.rate, self.limit_tokens, out)
        cost.saturate(out, candidates.scale_tokens, out)
        return out
