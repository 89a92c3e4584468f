"""Which replicas may serve a request at all. Floor 3: columns and specs, no clock.

`ready`, `served` and `subset` always apply. The first two and `labels` are static: their answer is
kept per (model, adapter) until the pool changes, so that they cost nothing per decision.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from warmlane.router.interfaces import Candidates, ReplicaView
from warmlane.router.types import ReplicaState, Request


class Ready:
    """Only READY replicas: not joining, drained, ejected or gone."""

    static = True

    def keep(self, request: Request, candidates: Candidates, mask: array[int]) -> int:
        return _drop(candidates, mask, lambda replica: replica.state is ReplicaState.READY)


class Served:
    """Only replicas that have the model, or the adapter, by their own /v1/models, and those on
    which the router may load the adapter.

    A replica whose list is not known yet is believed: its engine answers 404 itself.
    """

    static = True

    def keep(self, request: Request, candidates: Candidates, mask: array[int]) -> int:
        adapter, model = candidates.adapter, candidates.model

        def served(replica: ReplicaView) -> bool:
            if replica.models is None:
                return True
            if adapter:
                return adapter in replica.models.adapters or candidates.can_load(replica.slot)
            return not model or model in replica.models.models

        return _drop(candidates, mask, served)


class Subset:
    """Only the replicas that the request names, by name or endpoint."""

    static = False

    def keep(self, request: Request, candidates: Candidates, mask: array[int]) -> int:
        subset = request.subset
        if subset is None:
            return 0
        return _drop(candidates, mask, lambda each: each.name in subset or each.endpoint in subset)


class Labels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Only replicas whose labels hold every pair of `match`."""

    match: dict[str, str]
    static: ClassVar[bool] = True

    def keep(self, request: Request, candidates: Candidates, mask: array[int]) -> int:
        wanted = self.match.items()
        return _drop(candidates, mask, lambda replica: wanted <= replica.spec.labels.items())


class NotSaturated(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Not those beyond a limit. All saturated is answered 429, as back-pressure of the fleet.

    Limits that are left out do not apply. `waiting` and `kv_usage` come from scrapes and stop
    counting when a scrape is stale, so that an old bad figure cannot shut a healthy replica out.
    """

    requests: int | None = None
    prefill_tokens: int | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    static: ClassVar[bool] = False

    def keep(self, request: Request, candidates: Candidates, mask: array[int]) -> int:
        limits = (
            (candidates.requests, self.requests),
            (candidates.prefill_tokens, self.prefill_tokens),
            (candidates.waiting, self.waiting),
            (candidates.kv_usage, self.kv_usage),
        )
        removed = 0
        for column, limit in limits:
            if limit is None:
                continue
            for slot in range(len(mask)):
                if mask[slot] and column[slot] >= limit:
                    mask[slot] = 0
                    removed += 1
        return removed


FILTERS: Mapping[str, Any] = {
    "ready": Ready,
    "served": Served,
    "subset": Subset,
    "labels": Labels,
    "not_saturated": NotSaturated,
}


def _drop(candidates: Candidates, mask: array[int], keeps: Any) -> int:
    """Clear `mask` where an eligible replica fails `keeps`; how many."""
    removed = 0
    for slot, replica in enumerate(candidates.replicas):
        if mask[slot] and (replica is None or not keeps(replica)):
            mask[slot] = 0
            removed += 1
    return removed
