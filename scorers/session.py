"""Requests of one session to one replica, without a table: rendezvous hashing.

For requests whose prompt tells nothing (state kept by the engine, opaque paths); prompts carry
their own affinity through prefix_hit. When a replica leaves, only its own sessions move.
"""

from __future__ import annotations

import msgspec

from warmlane._core.hashing import root_key
from warmlane.router.interfaces import Candidates
from warmlane.router.types import Request


class SessionAffinity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """1 for the session's replica among the eligible ones, 0 for all others."""

    def score(self, request: Request, candidates: Candidates) -> list[float] | None:
        session = request.session
        if not session:
            return None
        scores, best, home = [0.0] * len(candidates), -1, -1
        for slot, replica in enumerate(candidates.replicas):
            if candidates.mask[slot] and replica is not None:
                key = root_key(session, replica.name)
                if key > best:
                    best, home = key, slot
        if home >= 0:
            scores[home] = 1.0
        return scores
