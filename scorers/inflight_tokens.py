"""Uncached prompt tokens on their way to a first token: the queue, in the unit that matters.

Counted by the router at the pick and released at the first token, so that it is right within a
burst, before any scrape could see it. Requests of others that wait in the engine are in it too.
"""

from __future__ import annotations

from array import array

import msgspec

from warmlane._core import cost
from warmlane.router.interfaces import Candidates
from warmlane.router.types import Request


class InflightTokens(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """1 for no prefill ahead, falling on the shared scale."""

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        cost.saturate(candidates.prefill_tokens, candidates.scale_tokens, candidates.out)
        return candidates.out
