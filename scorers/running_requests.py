"""Requests open on the replica: each slows the decoding of all others a little.

One request weighs `candidates.request_tokens` of prefill on the shared scale, so that the count
decides among replicas with equal prefill work and never outweighs a long prompt.
"""

from __future__ import annotations

from array import array

import msgspec

from warmlane._core import cost
from warmlane.router.interfaces import Candidates
from warmlane.router.types import Request


class RunningRequests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """1 for none open, falling on the shared scale."""

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        limit = candidates.scale_tokens / candidates.request_tokens
        cost.saturate(candidates.requests, limit, candidates.out)
        return candidates.out
