"""Requests that wait inside the engine, by its own metrics; by the ledger when those are stale."""

from __future__ import annotations

from array import array

import msgspec

from warmlane._core import cost
from warmlane.router.interfaces import Candidates
from warmlane.router.types import Request


class QueueDepth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """1 - waiting / limit, 0 from `limit` waiting requests on."""

    limit: float = 64.0

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        cost.saturate(candidates.waiting, self.limit, candidates.out)
        return candidates.out
