"""Requests open on the replica: each slows the decoding of all others a little.

On the shared scale of work: `request_tokens` a request, and `context_share` for each token of KV
cache that it reads in every step. So the count decides among replicas with equal prefill work, is
all that matters for decode-bound traffic, and never outweighs a long prompt.
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
        out, each, share = candidates.out, candidates.request_tokens, candidates.context_share
        cost.blend(candidates.requests, each, candidates.decode_tokens, share, out)
        cost.saturate(out, candidates.scale_tokens, out)
        return out
