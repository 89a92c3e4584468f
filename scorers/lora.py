"""Where the request's LoRA adapter is: loading one costs milliseconds to seconds."""

from __future__ import annotations

import msgspec

from warmlane.router.interfaces import Candidates, ReplicaView
from warmlane.router.types import Request


class LoraResidency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Four steps: active in the batch, registered, a free slot to load it into, none of these."""

    active: float = 1.0
    registered: float = 0.8
    free_slot: float = 0.6
    absent: float = 0.0

    def score(self, request: Request, candidates: Candidates) -> list[float] | None:
        adapter = candidates.adapter
        if not adapter:
            return None
        return [0.0 if each is None else self._step(adapter, each) for each in candidates.replicas]

    def _step(self, adapter: str, replica: ReplicaView) -> float:
        load, models = replica.load, replica.models
        # Waiting adapters count as held: the engine will load them before this one.
        held: frozenset[str] = (
            frozenset() if load is None else load.running_adapters | load.waiting_adapters
        )
        if adapter in held:
            return self.active
        if models is not None and adapter in models.adapters:
            return self.registered
        if load is not None and len(held) < (load.max_lora or 0):
            return self.free_slot
        return self.absent
