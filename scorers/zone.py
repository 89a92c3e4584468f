"""Replicas of the router's own zone first: traffic between zones costs time and money."""

from __future__ import annotations

import msgspec

from warmlane.router.interfaces import Candidates
from warmlane.router.types import Request


class Zone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """1 in `prefer` (default: the router's zone), 0.5 where no zone is known, else 0."""

    prefer: str = ""

    def score(self, request: Request, candidates: Candidates) -> list[float] | None:
        zone = self.prefer or candidates.zone
        if not zone:
            return None
        near = {zone: 1.0, "": 0.5}
        return [
            0.0 if each is None else near.get(each.spec.zone, 0.0) for each in candidates.replicas
        ]
