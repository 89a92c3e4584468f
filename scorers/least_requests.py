"""Fewest open requests wins: the classic balancer, and the baseline of the benchmarks."""

from __future__ import annotations

from array import array

import msgspec

from warmlane._core import cost
from warmlane.router.interfaces import Candidates
from warmlane.router.types import Request


class LeastRequests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """1 - requests / limit; beyond `limit` open requests replicas are told apart no more."""

    limit: int = 65_536

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        cost.saturate(candidates.requests, self.limit, candidates.out)
        return candidates.out
