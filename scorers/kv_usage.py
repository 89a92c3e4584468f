"""Share of the KV cache that running requests hold: a full one preempts and recomputes."""

from __future__ import annotations

from array import array

import msgspec

from warmlane._core import cost
from warmlane.router.interfaces import Candidates
from warmlane.router.types import Request


class KvUsage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """1 - kv_usage. Blocks kept for reuse only are not in use, so a warm idle cache scores 1."""

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        cost.saturate(candidates.kv_usage, 1.0, candidates.out)
        return candidates.out
